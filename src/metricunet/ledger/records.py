"""Verdicts and decisions going into the ledger, each once, however often it is recorded."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

from metricunet.ledger.edits import Edit
from metricunet.ledger.store import Ledger, now


@dataclass(frozen=True)
class Scanner:
    """What took a scan, as its header says; empty where it is not known. Nothing of the patient.

    Attributes:
        manufacturer: as in DICOM's Manufacturer.
        model: as in ManufacturerModelName.
        kernel: as in ConvolutionKernel.
    """

    manufacturer: str = ""
    model: str = ""
    kernel: str = ""


@dataclass(frozen=True)
class Model:
    """What a case was predicted with.

    Attributes:
        name: of the model's file, or of several with a plus between; empty where it is not known.
        version: of metricunet that predicted.
        sha256: of the model's files.
    """

    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class CaseFacts:
    """What was predicted of a scan.

    Attributes:
        scan: keyed hash of the scan, see `Key.hashed`.
        patient: keyed hash of the patient; empty where it is not known yet.
        verdict: `pass`, `review` or `fail`.
        doubt: `none`, `some` or `strong`; empty where it is not known.
        codes: of the verdict's flags.
        model: that predicted it.
        scanner: that took it; None where nothing is known of it.
        expected_error_mm: of the target's boundary; None where it is not known.
    """

    scan: str
    patient: str
    verdict: str
    doubt: str
    codes: Sequence[str]
    model: Model
    scanner: Scanner | None = None
    expected_error_mm: float | None = None


@dataclass(frozen=True)
class DecisionFacts:
    """What a person decided on a case.

    Attributes:
        record: what tells this decision from all others, such as the SHA-256 of its record; a second one with the
            same is not written.
        number: which review of the case it is, from 1.
        decision: `accepted`, `corrected` or `rejected`.
        reason: why; personal data.
        reviewer: who; personal data.
        decided: when, as `metricunet.ledger.store.stamp` writes it.
        seconds: how long the case was on the screen.
        edits: structure to what was changed of its automatic mask; empty for what was rejected.
    """

    record: str
    number: int
    decision: str
    reason: str
    reviewer: str
    decided: str
    seconds: float
    edits: dict[str, Edit]


def record_case(ledger: Ledger, facts: CaseFacts) -> int:
    """Write what was predicted of a scan, and return the number of its row.

    A scan that the same model predicted before keeps its row, which says then what was found last.

    Raises:
        InputError: the ledger cannot be written.
    """
    with ledger.writing() as db:
        model, scanner = _model(db, facts.model), _scanner(db, facts.scanner)
        values = (
            facts.patient,
            scanner,
            facts.verdict,
            facts.doubt,
            json.dumps(sorted(set(facts.codes))),
            facts.expected_error_mm,
            now(),
            facts.scan,
            model,
        )
        changed = db.execute(
            "UPDATE cases SET patient = coalesce(nullif(?, ''), patient), scanner = coalesce(?, scanner), "
            "verdict = ?, doubt = ?, codes = ?, expected_error_mm = ?, recorded = ? WHERE scan = ? AND model = ?",
            values,
        )
        if not changed.rowcount:
            db.execute(
                "INSERT INTO cases (patient, scanner, verdict, doubt, codes, expected_error_mm, recorded, scan, "
                "model) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                values,
            )
        return _number(db, "SELECT id FROM cases WHERE scan = ? AND model = ?", (facts.scan, model))


def record_decision(ledger: Ledger, case_id: int, facts: DecisionFacts) -> bool:
    """Write what was decided on a case; return whether it was new.

    Args:
        ledger: that has the case.
        case_id: as `record_case` gave it.
        facts: what was decided.

    Raises:
        InputError: the ledger cannot be written.
    """
    with ledger.writing() as db:
        added = db.execute(
            "INSERT INTO decisions (case_id, record, number, decision, reason, reviewer, decided, seconds, "
            "recorded) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (record) DO NOTHING",
            (
                case_id,
                facts.record,
                facts.number,
                facts.decision,
                facts.reason,
                facts.reviewer,
                facts.decided,
                facts.seconds,
                now(),
            ),
        )
        if not added.rowcount:
            return False
        decision = _number(db, "SELECT id FROM decisions WHERE record = ?", (facts.record,))
        names = [field.name for field in fields(Edit)]
        holes = ", ".join("?" * (len(names) + 2))
        db.executemany(
            f"INSERT INTO edits (decision_id, structure, {', '.join(names)}) VALUES ({holes})",
            [(decision, structure, *astuple(edit)) for structure, edit in facts.edits.items()],
        )
        return True


def is_recorded(ledger: Ledger, record: str) -> bool:
    """Tell whether a decision is in the ledger, by what tells it from all others."""
    with ledger.reading() as db:
        return db.execute("SELECT 1 FROM decisions WHERE record = ?", (record,)).fetchone() is not None


def _model(db: sqlite3.Connection, model: Model) -> int:
    db.execute(
        "INSERT INTO models (name, version, sha256) VALUES (?, ?, ?) ON CONFLICT (sha256, version) DO NOTHING",
        (model.name, model.version, model.sha256),
    )
    if model.name:
        db.execute(
            "UPDATE models SET name = ? WHERE sha256 = ? AND version = ? AND name = ''",
            (model.name, model.sha256, model.version),
        )
    return _number(db, "SELECT id FROM models WHERE sha256 = ? AND version = ?", (model.sha256, model.version))


def _scanner(db: sqlite3.Connection, scanner: Scanner | None) -> int | None:
    if scanner is None:
        return None
    values = astuple(scanner)
    db.execute(
        "INSERT INTO scanners (manufacturer, model, kernel) VALUES (?, ?, ?) "
        "ON CONFLICT (manufacturer, model, kernel) DO NOTHING",
        values,
    )
    return _number(db, "SELECT id FROM scanners WHERE manufacturer = ? AND model = ? AND kernel = ?", values)


def _number(db: sqlite3.Connection, query: str, values: tuple[object, ...]) -> int:
    (found,) = db.execute(query, values).fetchone()
    return int(found)
