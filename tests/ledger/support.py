"""What tests write into ledgers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from metricunet.ledger import (
    CaseFacts,
    DecisionFacts,
    Ledger,
    Model,
    Scanner,
    record_case,
    record_decision,
)
from metricunet.ledger.edits import Edit
from metricunet.ledger.store import stamp

FIRST = datetime(2021, 1, 1, 9, tzinfo=UTC)
ODD = "<script>alert(1)</script>"


def facts(k: int, *, model: str = "a", scanner: Scanner | None = None) -> CaseFacts:
    codes = ["volume", "metal"]
    return CaseFacts(f"scan{k}", f"patient{k}", "review", "some", codes, Model("m", "1.0", model), scanner)


def edit(dice: float, path_mm: float, **parts: float) -> Edit:
    changed = 0.0 if dice == 1 else 1.0
    return Edit(dice, path_mm, 0.0, 0.0, 0.0, 1.0, 30.0, 30.0, changed, 0.0, **parts)


def decision(k: int, what: str = "accepted", edits: dict[str, Edit] | None = None) -> DecisionFacts:
    moment = stamp(FIRST + timedelta(days=k))
    return DecisionFacts(f"record{k}", 1, what, f"why {k}", f"reader {k}", moment, 60.0 + k, edits or {})


def fill(ledger: Ledger, count: int, corrected_from: int = 10**9) -> None:
    """Write cases, each decided a day after the one before; a third is corrected, later all."""
    with ledger.writing():
        for k in range(count):
            bad = k % 3 == 2 or k >= corrected_from
            change = edit(
                0.9 - 0.01 * (k % 5), 100.0 + k % 7, foot_ml=1.0, left_ml=0.75, right_ml=0.25, back_ml=1.0
            )
            edits = {"prostate": change if bad else edit(1.0, 0.0)}
            scanner = Scanner("ACME", "One" if k % 2 else "Two", "B30f")
            case = record_case(ledger, facts(k, model="a" if k < 40 else "b", scanner=scanner))
            record_decision(ledger, case, decision(k, "corrected" if bad else "accepted", edits))


def write_many(path: Path, first: int, count: int) -> None:
    """Write cases one by one, a transaction each."""
    ledger = Ledger(path)
    for k in range(first, first + count):
        record_decision(ledger, record_case(ledger, facts(k)), decision(k, edits={"prostate": edit(0.5, 10.0)}))


if __name__ == "__main__":
    import sys

    write_many(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
