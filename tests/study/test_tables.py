"""Tables of a study against numbers worked out by hand, and the way from rows to paired values."""

from __future__ import annotations

import csv
import io
import statistics
from pathlib import Path

import pytest

from metricunet.cohort.splits import Fold
from metricunet.errors import InputError
from metricunet.evaluation.measures import Measures
from metricunet.evaluation.summary import CaseRow
from metricunet.study.score import StudyRow, cases_name, join_rows, read_rows, write_rows
from metricunet.study.tables import arm_tables, paired_values, tables_csv, tables_text

MISSED = Measures(0.0, None, 0.0, 0.0, None, 0.0, -30.0)
ABSENT = Measures(None, None, None, None, None, None, None)


def measured(dice: float, asd_mm: float) -> Measures:
    return Measures(dice, asd_mm, dice, dice, 3 * asd_mm, dice, 0.5)


def row(
    arm: str, seed: int, case: str, measures: Measures, fold: Fold = 0, structure: str = "prostate"
) -> StudyRow:
    return StudyRow(arm, seed, fold, CaseRow(case, structure, measures))


ROWS = [
    row("a", 0, "one", measured(0.8, 2.0)), row("a", 0, "two", measured(0.9, 1.0)), row("a", 0, "six", ABSENT),
    row("a", 5, "one", measured(0.7, 3.0)), row("a", 5, "two", MISSED), row("a", 5, "six", ABSENT),
    row("b", 0, "one", measured(0.6, 1.0)), row("b", 0, "two", measured(0.6, 1.0)), row("b", 0, "six", ABSENT),
]  # fmt: skip


def test_seeds_are_kept_apart_and_a_missed_organ_counts() -> None:
    a, b = arm_tables(ROWS)
    assert (a.arm, b.arm, list(a.of_seed), list(b.of_seed)) == ("a", "b", [0, 5], [0])
    assert [s.measures["dice"].mean for s in a.of_seed.values()] == [pytest.approx(0.85), pytest.approx(0.35)]
    assert [s.measures["asd_mm"].mean for s in a.of_seed.values()] == [1.5, 3.0]
    assert [(s.n, s.missed, s.true_absent) for s in a.of_seed.values()] == [(2, 0, 1), (2, 1, 1)]
    mean, std = a.between_seeds("dice")
    assert mean == pytest.approx(0.6)
    assert std == pytest.approx(statistics.stdev([0.85, 0.35]))
    assert b.between_seeds("dice") == (pytest.approx(0.6), None)


def test_the_text_for_people() -> None:
    text = tables_text("trial", {"truth": ROWS, "reader": ROWS[:3]}, ["asd_mm", "dice"], ["A note."])
    assert text.startswith("# trial\n\n- A note.\n")
    assert text.count("## prostate, against the ") == 2
    lines = text.splitlines()
    assert "| arm | seed | cases | missed | ASD [mm] | Dice |" in lines
    assert "| a | 0 | 2 | 0 | 1.50 ± 0.71 | 0.850 ± 0.071 |" in lines
    assert "| a | 5 | 2 | 1 | 3.00 (1 of 2) | 0.350 ± 0.495 |" in lines
    assert "| **a** | **all** | 4 | 1 | **2.25 ± 1.06** | **0.600 ± 0.354** |" in lines
    assert "| b | 0 | 2 | 0 | 1.00 ± 0.00 | 0.600 ± 0.000 |" in lines
    assert not any("**b**" in line for line in lines)


def test_every_number_for_programs() -> None:
    lines = list(csv.DictReader(io.StringIO(tables_csv({"truth": ROWS}))))
    found = {(line["arm"], line["seed"], line["measure"]): line for line in lines}
    assert found["a", "5", "asd_mm"] == {
        "reference": "truth", "structure": "prostate", "arm": "a", "seed": "5", "measure": "asd_mm",
        "n": "2", "missed": "1", "mean": "3.000000", "std": "", "median": "3.000000",
        "not_contoured": "0",
    }  # fmt: skip
    assert (found["a", "all", "dice"]["mean"], found["a", "all", "dice"]["n"]) == ("0.600000", "4")
    assert len(lines) == 7 * (2 + 1 + 1 + 1)


def test_values_by_seed_and_case_for_paired_statistics() -> None:
    values, missed = paired_values(ROWS, "a", "prostate", "asd_mm")
    assert values == {
        (0, "one"): 2.0, (0, "two"): 1.0, (0, "six"): None,
        (5, "one"): 3.0, (5, "two"): None, (5, "six"): None,
    }  # fmt: skip
    assert missed == {(5, "two")}
    assert paired_values(ROWS, "a", "prostate", "dice")[0][5, "two"] == 0.0
    assert paired_values(ROWS, "c", "prostate", "dice") == ({}, frozenset())


def test_several_folds_that_score_one_case_are_averaged() -> None:
    rows = [
        row("a", 0, "one", measured(0.8, 2.0), 0),
        row("a", 0, "one", MISSED, 1),
        row("a", 0, "one", measured(0.7, 4.0), 2),
        row("a", 0, "one", measured(0.1, 9.0), 0, "bladder"),
    ]
    assert paired_values(rows, "a", "prostate", "dice") == ({(0, "one"): pytest.approx(0.5)}, {(0, "one")})
    assert paired_values(rows, "a", "prostate", "asd_mm")[0] == {(0, "one"): 3.0}


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.csv", "a", 3, "all", [ROWS[0].row, CaseRow("odd, name", "prostate", MISSED)])
    write_rows(tmp_path / "b.csv", "b", 4, 1, [CaseRow("six", "prostate", ABSENT)])
    (tmp_path / "both.csv").write_text(join_rows([tmp_path / "a.csv", tmp_path / "b.csv"]))
    rows = read_rows(tmp_path / "both.csv")
    assert [(r.arm, r.seed, r.fold, r.row.case) for r in rows] == [
        ("a", 3, "all", "one"), ("a", 3, "all", "odd, name"), ("b", 4, 1, "six"),
    ]  # fmt: skip
    assert [r.row.measures.outcome for r in rows] == ["measured", "missed", "true_absent"]
    assert rows[0].row.measures == ROWS[0].row.measures


def test_rows_of_what_was_not_contoured_are_told_from_those_of_what_is_absent(tmp_path: Path) -> None:
    rows = [ROWS[0].row, CaseRow("five", "prostate", ABSENT), CaseRow("six", "prostate", ABSENT, contoured=False)]
    write_rows(tmp_path / "a.csv", "a", 3, 0, rows)
    found = read_rows(tmp_path / "a.csv", {"six": ("prostate",), "five": ("bladder",)})
    assert [r.row.outcome for r in found] == ["measured", "true_absent", "not_contoured"]
    (summary,) = arm_tables(found)[0].of_seed.values()
    assert (summary.n, summary.missed, summary.true_absent, summary.not_contoured) == (1, 0, 1, 1)
    assert {line["not_contoured"] for line in csv.DictReader(io.StringIO(tables_csv({"truth": found})))} == {"1"}
    text = tables_text("study", {"truth": found}, ["dice"], [])
    assert "Not contoured, and so not scored, in 1 of the cases." in text
    assert "Not contoured" not in tables_text("study", {"truth": found[:2]}, ["dice"], [])


def test_files_that_are_no_rows_of_a_study(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("case,dice\none,0.9\n")
    for call in (read_rows, lambda path: join_rows([path])):
        with pytest.raises(InputError, match=r"x\.csv"):
            call(tmp_path / "x.csv")
    with pytest.raises(InputError, match=r"y\.csv: not readable"):
        read_rows(tmp_path / "y.csv")


def test_the_main_reference_has_the_plain_name() -> None:
    assert (cases_name("truth"), cases_name("reader")) == ("cases.csv", "cases-reader.csv")
