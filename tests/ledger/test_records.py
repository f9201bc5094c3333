"""Rows of the ledger: each case and decision once, as CSV the same, and without people when their time is over."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from metricunet.errors import InputError
from metricunet.ledger import Ledger, Queue, Scanner, record_case, record_decision
from metricunet.ledger.overview import overview_of
from metricunet.ledger.prune import age_of, prune
from metricunet.ledger.table import COLUMNS, PEOPLE_COLUMNS, csv_lines, read_cases, read_rows
from tests.ledger.support import FIRST, decision, edit, facts, fill


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite")


def stored(ledger: Ledger) -> bytes:
    return b"".join(path.read_bytes() for path in ledger.path.parent.glob(f"{ledger.path.name}*"))


def test_a_case_is_one_row_for_each_model_and_a_decision_is_written_once(ledger: Ledger) -> None:
    first = record_case(ledger, facts(1))
    assert record_case(ledger, replace(facts(1), verdict="pass", patient="", codes=["hu"])) == first
    assert record_case(ledger, facts(1, model="b")) != first
    assert record_decision(ledger, first, decision(1, edits={"prostate": edit(0.9, 5.0)}))
    assert not record_decision(ledger, first, decision(1, "rejected"))
    row, other = sorted(read_rows(ledger), key=lambda row: row["decision"] is None)
    assert (row["verdict"], row["codes"], row["patient"]) == ("pass", "hu", "patient1")
    assert (row["decision"], row["dice"], row["is_last"]) == ("accepted", 0.9, 1)
    assert other["decision"] is None


def test_the_last_decision_counts(ledger: Ledger) -> None:
    case = record_case(ledger, facts(1))
    record_decision(ledger, case, decision(5, "corrected", {"prostate": edit(0.8, 50.0)}))
    record_decision(ledger, case, decision(3, "rejected"))
    (found,) = read_cases(ledger)
    assert found.decided is not None
    assert found.decided.decision == "corrected"
    assert overview_of([found]).total.corrected == 1


def test_the_export_is_the_rows(ledger: Ledger) -> None:
    fill(ledger, 7)
    record_case(ledger, facts(99, scanner=Scanner('=cmd|"calc"', "-One, two", "")))
    rows = read_rows(ledger)
    assert len(rows) == 8
    for people in (True, False):
        read = list(csv.DictReader(io.StringIO("".join(csv_lines(rows, people=people)))))
        assert tuple(read[0]) == tuple(name for name in COLUMNS if people or name not in PEOPLE_COLUMNS)
        for line, row in zip(read, rows, strict=True):
            for name, text in line.items():
                value = row[name]
                if value is None:
                    assert text == ""
                elif isinstance(value, float):
                    assert float(text) == pytest.approx(value, abs=1e-6)
                else:
                    assert text.removeprefix("'") == str(value)
    texts = "".join(csv_lines(rows))
    assert "'=cmd" in texts
    assert ",'-One" in texts.replace('"', "")
    assert "reader" not in texts
    assert "why" not in texts


def test_an_overview_counts_what_was_written(ledger: Ledger) -> None:
    fill(ledger, 60, corrected_from=50)
    cases = read_cases(ledger)
    total = overview_of(cases).total
    wrong = sum(k % 3 == 2 or k >= 50 for k in range(60))
    assert (total.cases, total.decided, total.corrected, total.accepted) == (60, 60, wrong, 60 - wrong)
    assert total.changed == wrong
    assert total.dice == pytest.approx(0.88)
    overview = overview_of(cases)
    assert [group.cases for group in overview.by_model] == [40, 20]
    assert [group.cases for group in overview.by_month] == [31, 28, 1]
    assert overview.where["foot"] == 1.0
    assert (overview.where["left"], overview.where["right"]) == (0.75, 0.25)
    chosen = overview_of(cases, model=overview.models[1], scanner=overview.scanners[0])
    assert chosen.total.cases == 10
    assert chosen.models == overview.models
    shares, path, dice = (chart.chart for chart in overview.charts)
    assert [chart.baseline for chart in (shares, path, dice)] == [40, 40, 40]
    assert path.is_outside_now
    assert dice.is_outside_now
    assert "Above the limits" in overview.charts[1].sentence
    assert "more was changed" in overview.charts[1].sentence
    assert "more was changed" in overview.charts[2].sentence
    assert overview.charts[0].turns == ((2, overview.models[1]),)
    assert overview_of([]).total.cases == 0


def test_pruning_deletes_people_and_keeps_numbers(ledger: Ledger) -> None:
    fill(ledger, 10)
    Queue(ledger, lambda: FIRST).note("reader 0", "saw", detail="something old")
    before = read_rows(ledger)
    gone = prune(ledger, timedelta(days=3), now=FIRST + timedelta(days=8))
    assert (gone.decisions, gone.events, gone.cases) == (5, 1, 0)
    assert "reviewer and reason of 5 decisions, 1 line of the audit trail" in gone.text
    after = read_rows(ledger)
    for old, new in zip(before, after, strict=True):
        people = dict.fromkeys(PEOPLE_COLUMNS, "") if old["decided"] < gone.before else {}
        assert new == old | people
    # Not in the file either.
    assert b"reader 4" not in stored(ledger)
    assert b"something old" not in stored(ledger)
    assert b"reader 5" in stored(ledger)
    again = prune(ledger, timedelta(days=3), now=FIRST + timedelta(days=8))
    assert (again.decisions, again.events) == (0, 0)
    whole = prune(ledger, timedelta(days=3), cases=True, now=FIRST + timedelta(days=8))
    assert whole.cases == 5
    assert [row["case"] for row in read_rows(ledger)] == [f"scan{k}" for k in range(5, 10)]
    assert b"scan4" not in stored(ledger)


def test_pruning_says_where_a_reader_keeps_what_was_deleted_in_the_file(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite", patience_s=0.01)
    fill(ledger, 3)
    with Ledger(ledger.path).reading() as db:
        db.execute("SELECT count(*) FROM cases").fetchone()
        with pytest.raises(InputError, match=r"ledger.sqlite-wal may still hold it; run the command again"):
            prune(ledger, timedelta(0), now=FIRST + timedelta(days=9))
    assert all(not row["reviewer"] for row in read_rows(ledger))
    assert prune(ledger, timedelta(0), now=FIRST + timedelta(days=9)).decisions == 0
    assert b"reader 1" not in stored(ledger)


def test_lengths_of_time() -> None:
    assert [age_of(text).days for text in ("30d", " 30 days", "8w", "2Y", "0d", "1 day")] == [
        30,
        30,
        56,
        730,
        0,
        1,
    ]
    for text in ("", "30", "d", "-3d", "3 months", "1e3d"):
        with pytest.raises(InputError, match="no length of time"):
            age_of(text)
