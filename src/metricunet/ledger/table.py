"""The ledger's rows for people and programs: what is in the file, and how it is written as CSV."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from metricunet.ledger.edits import Edit
from metricunet.ledger.store import Ledger

EDIT_COLUMNS = tuple(entry.name for entry in fields(Edit))
#: Personal data: written only where they are asked for.
PEOPLE_COLUMNS = ("reviewer", "reason")
#: A spreadsheet takes a text that begins so for a formula, and carries it out.
FORMULA = ("=", "+", "-", "@", "\t", "\r")

#: Columns of a row, with what they are in the database.
_SOURCES: Mapping[str, str] = {
    "case": "cases.scan",
    "patient": "cases.patient",
    "manufacturer": "scanners.manufacturer",
    "scanner": "scanners.model",
    "kernel": "scanners.kernel",
    "model": "models.name",
    "model_version": "models.version",
    "model_sha256": "models.sha256",
    "verdict": "cases.verdict",
    "doubt": "cases.doubt",
    "codes": "cases.codes",
    "expected_error_mm": "cases.expected_error_mm",
    "review": "decisions.number",
    "decision": "decisions.decision",
    "decided": "decisions.decided",
    "seconds": "decisions.seconds",
    "is_last": "decisions.id = (SELECT id FROM decisions AS d WHERE d.case_id = cases.id "
    "ORDER BY decided DESC, id DESC LIMIT 1)",
    "reviewer": "decisions.reviewer",
    "reason": "decisions.reason",
    "structure": "edits.structure",
    **{name: f"edits.{name}" for name in EDIT_COLUMNS},
}
COLUMNS = tuple(_SOURCES)
_JOINED = """FROM cases JOIN models ON models.id = cases.model
    LEFT JOIN scanners ON scanners.id = cases.scanner
    LEFT JOIN decisions ON decisions.case_id = cases.id
    LEFT JOIN edits ON edits.decision_id = decisions.id"""


@dataclass(frozen=True)
class Decided:
    """What was decided last on a case.

    Attributes:
        decision: `accepted`, `corrected` or `rejected`.
        decided: when.
        seconds: how long the case was on the screen.
        edits: structure to what was changed.
    """

    decision: str
    decided: str
    seconds: float
    edits: Mapping[str, Edit] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A case in the ledger, with what was decided last.

    Attributes:
        verdict: of the program.
        model: that predicted it, in words.
        scanner: that took it, in words.
        decided: None where nobody has decided yet.
    """

    verdict: str
    model: str
    scanner: str
    decided: Decided | None


def read_rows(ledger: Ledger) -> list[dict[str, Any]]:
    """Return a row for each structure of each decision, and for each case without one, in the order of time.

    Columns are `COLUMNS`; None where there is nothing. `is_last` tells the decision that counts for the case.
    """
    chosen = ", ".join(f'{source} AS "{name}"' for name, source in _SOURCES.items())
    with ledger.reading() as db:
        rows = db.execute(
            f"SELECT {chosen} {_JOINED} "
            "ORDER BY coalesce(decided, cases.recorded), cases.id, decisions.id, structure"
        )
        return [{**dict(row), "codes": " ".join(json.loads(row["codes"]))} for row in rows]


def read_cases(ledger: Ledger) -> list[Case]:
    """Return all cases in the order in which they were decided, those without a decision last."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in read_rows(ledger):
        if row["decision"] is None or row["is_last"]:
            found.setdefault((row["case"], row["model_sha256"], row["model_version"]), []).append(row)
    cases = [_case(rows) for rows in found.values()]
    return sorted(cases, key=lambda case: (case.decided is None, case.decided.decided if case.decided else ""))


def csv_lines(rows: Iterable[Mapping[str, Any]], *, people: bool = False) -> Iterator[str]:
    """Write rows as lines of CSV, with a heading. Empty: there is nothing to say.

    Args:
        rows: as `read_rows` gives them.
        people: whether reviewers and reasons are written, which are personal data.
    """
    columns = [name for name in COLUMNS if people or name not in PEOPLE_COLUMNS]
    yield _line(columns)
    for row in rows:
        yield _line([_cell(row[name]) for name in columns])


def _case(rows: list[dict[str, Any]]) -> Case:
    first = rows[0]
    decided = None
    if first["decision"] is not None:
        edits = {
            row["structure"]: Edit(**{name: row[name] for name in EDIT_COLUMNS})
            for row in rows
            if row["structure"] is not None
        }
        decided = Decided(first["decision"], first["decided"], first["seconds"], edits)
    return Case(first["verdict"], _model(first), _scanner(first), decided)


def _model(row: Mapping[str, Any]) -> str:
    return f"{row['model'] or 'model'} {row['model_sha256'][:8]}, metricunet {row['model_version'] or '?'}"


def _scanner(row: Mapping[str, Any]) -> str:
    known = [row[name] for name in ("manufacturer", "scanner", "kernel") if row[name]]
    return ", ".join(known) or "not known"


def _cell(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.6f}"
    if isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    return value


def _line(values: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(list(values))
    return text.getvalue()


def count_rows(db: sqlite3.Connection, table: str) -> int:
    """Return how many rows a table of the ledger has."""
    (found,) = db.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(found)
