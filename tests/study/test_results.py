"""Rows of a study's runs: written and read, and what they hold by arm, seed and case, worked out by hand."""

from __future__ import annotations

import statistics
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from metricunet.cohort.splits import Fold
from metricunet.errors import InputError
from metricunet.evaluation.measures import MEASURE_NAMES, Measures
from metricunet.study.results import (
    DEFINITIONS,
    FEATURES,
    SMOOTHNESS,
    Results,
    Row,
    better_of,
    cases_table,
    join_tables,
    paired_values,
    read_results,
    read_table,
    scores_by_fold,
    summarise_arms,
    write_table,
)  # fmt: skip
from metricunet.study.statistics import Comparison, FoldSeed, compare

MISSED = Measures(0.0, None, 0.0, 0.0, None, 0.0, -30.0)
ABSENT = Measures(None, None, None, None, None, None, None)


def measured(dice: float, asd_mm: float) -> Measures:
    return Measures(dice, asd_mm, dice, dice, 3 * asd_mm, dice, 0.5)


def row(arm: str, seed: int, case: str, measures: Measures, fold: Fold = 0, structure: str = "prostate") -> Row:
    return Row(arm, seed, fold, case, structure, {name: measures.value(name) for name in MEASURE_NAMES})


CASES = cases_table("truth")
ROWS = [
    row("a", 0, "one", measured(0.8, 2.0)), row("a", 0, "two", measured(0.9, 1.0)), row("a", 0, "six", ABSENT),
    row("a", 5, "one", measured(0.7, 3.0)), row("a", 5, "two", MISSED), row("a", 5, "six", ABSENT),
    row("b", 0, "one", measured(0.6, 1.0)), row("b", 0, "two", measured(0.6, 1.0)), row("b", 0, "six", ABSENT),
]  # fmt: skip


def test_seeds_are_kept_apart_and_a_missed_organ_counts() -> None:
    a, b = summarise_arms(ROWS)
    assert (a.arm, b.arm, list(a.of_seed), list(b.of_seed)) == ("a", "b", [0, 5], [0])
    assert [s.measures["dice"].mean for s in a.of_seed.values()] == [pytest.approx(0.85), pytest.approx(0.35)]
    assert [s.measures["asd_mm"].mean for s in a.of_seed.values()] == [1.5, 3.0]
    assert [(s.n, s.missed, s.true_absent) for s in a.of_seed.values()] == [(2, 0, 1), (2, 1, 1)]
    mean, std = a.between_seeds("dice")
    assert mean == pytest.approx(0.6)
    assert std == pytest.approx(statistics.stdev([0.85, 0.35]))
    assert b.between_seeds("dice") == (pytest.approx(0.6), None)


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
    one, two = tmp_path / "one", tmp_path / "two"
    rows = [row("a", 3, "one", measured(0.8, 2.0), "all"), row("a", 3, "odd, name", MISSED, "all")]
    write_table(one, CASES, rows)
    write_table(two, CASES, [row("b", 4, "six", ABSENT, 1)])
    assert (one / "cases.csv").read_text().splitlines()[1] == (
        "a,3,all,one,prostate,0.800000,2.000000,0.800000,0.800000,6.000000,0.800000,0.500000"
    )
    (tmp_path / "cases.csv").write_text(join_tables([one, two], CASES))
    found = read_table(tmp_path, CASES)
    assert found == [*rows, row("b", 4, "six", ABSENT, 1)]
    assert [r.evaluated.measures.outcome for r in found] == ["measured", "missed", "true_absent"]
    assert [r.missed for r in found] == [False, True, False]


def test_rows_without_structures_come_back_and_values_that_are_not_finite_do_not(tmp_path: Path) -> None:
    values = {"fisher_ratio": float("inf"), "knn_accuracy": 0.5, "probe_accuracy": None}
    write_table(tmp_path, FEATURES, [Row("a", 1, "all", "odd, name", None, values)])
    expected = Row("a", 1, "all", "odd, name", None, values | {"fisher_ratio": None})
    assert read_table(tmp_path, FEATURES) == [expected]
    assert not expected.missed


def test_rows_of_what_was_not_contoured_are_told_from_those_of_what_is_absent(tmp_path: Path) -> None:
    write_table(
        tmp_path,
        CASES,
        [row("a", 3, "one", measured(0.8, 2.0)), *(row("a", 3, c, ABSENT) for c in ("five", "six"))],
    )
    found = read_table(tmp_path, CASES, {"six": ("prostate",), "five": ("bladder",)})
    assert [r.evaluated.outcome for r in found] == ["measured", "true_absent", "not_contoured"]
    (summary,) = summarise_arms(found)[0].of_seed.values()
    assert (summary.n, summary.missed, summary.true_absent, summary.not_contoured) == (1, 0, 1, 1)
    assert list(paired_values(found, "a", "prostate", "dice")[0]) == [(3, "one"), (3, "five")]


def test_what_nobody_contoured_counts_in_no_comparison_of_smoothness(tmp_path: Path) -> None:
    nothing = dict.fromkeys(SMOOTHNESS.measures)
    cases, smooth = [], []
    for arm, excess in (("a", 2.0), ("b", 1.0)):
        for k in range(30):
            contoured = k < 10
            cases.append(row(arm, 0, f"{k:03}", measured(0.8, 2.0) if contoured else ABSENT))
            values = dict.fromkeys(SMOOTHNESS.measures, excess) if contoured else nothing
            smooth.append(Row(arm, 0, 0, f"{k:03}", "prostate", values))
    write_table(tmp_path, CASES, cases)
    write_table(tmp_path, SMOOTHNESS, smooth)
    results = read_results(tmp_path, {f"{k:03}": ("prostate",) for k in range(10, 30)})
    for measure in ("asd_mm", *SMOOTHNESS.measures):
        a, b = (results.scores(arm, measure, "prostate") for arm in "ab")
        assert a is not None
        assert b is not None
        found = compare(a, b, DEFINITIONS[measure], better_of(measure))
        assert (found.cases, found.no_value_a, found.no_value_b) == (10, 0, 0), measure
    assert (found.superiority, found.rank_biserial) == (1.0, 1.0)


def compared(rows: list[Row], measure: str) -> Comparison:
    results = Results({"truth": rows}, [], [])
    a, b = (results.scores(arm, measure, "prostate") for arm in "ab")
    assert a is not None
    assert b is not None
    return compare(a, b, DEFINITIONS[measure], better_of(measure))


def test_cases_in_which_nobody_contoured_the_structure_are_in_no_number() -> None:
    rows = [
        replace(row(arm, 0, f"{k:03}", measured(0.8 + better, 2.0) if k < 40 else ABSENT), contoured=k < 40)
        for arm, better in (("a", 0.0), ("b", 0.05))
        for k in range(100)
    ]
    found = compared(rows, "dice")
    assert (found.cases, found.superiority, found.rank_biserial) == (40, 1.0, 1.0)
    assert found.no_value_a == 0
    nowhere = Results({"truth": [replace(r, contoured=False) for r in rows]}, [], [])
    assert nowhere.scores("a", "dice", "prostate") is None


@pytest.mark.parametrize(
    ("measure", "superiority"),
    [("dice", 0.75), ("ppv", 0.75), ("surface_dice_2mm", 0.75), ("sensitivity", 0.5), ("asd_mm", 0.5)],
)
def test_an_empty_mask_of_what_is_not_there_is_better_than_a_false_positive(
    measure: str, superiority: float
) -> None:
    false_positive = Measures(0.0, None, None, 0.0, None, 0.0, 12.0)
    rows = [
        row("a", 0, "one", measured(0.8, 2.0)), row("a", 0, "six", false_positive),
        row("b", 0, "one", measured(0.8, 2.0)), row("b", 0, "six", ABSENT),
    ]  # fmt: skip
    found = compared(rows, measure)
    assert (found.cases, found.superiority) == (2, superiority)
    assert found.false_positive_a == (1 if superiority > 0.5 else 0)
    assert (found.false_positive_b, found.no_value_a, found.no_value_b) == (0, 0, 0)


def test_files_that_are_no_rows_of_a_study(tmp_path: Path) -> None:
    for table in (CASES, FEATURES):
        with pytest.raises(InputError, match=rf"{table.name}: not readable"):
            read_table(tmp_path, table)
        (tmp_path / table.name).write_text("case,dice\none,0.9\n")
        with pytest.raises(InputError, match=rf"{table.name}: not readable"):
            read_table(tmp_path, table)
        with pytest.raises(InputError, match=rf"{table.name}: has other columns"):
            join_tables([tmp_path], table)


def test_the_main_reference_has_the_plain_name() -> None:
    assert [cases_table(whose).name for whose in ("truth", "reader")] == ["cases.csv", "cases-reader.csv"]


def test_folds_that_score_the_same_cases_are_runs_of_their_own() -> None:
    rows = [
        row("a", seed, case, measured(0.1 * number, 1.0), fold)
        for number, (fold, seed, case) in enumerate(product(("all", 10, 2), (0, 1), ("two", "one")))
    ]
    assert scores_by_fold(rows)
    scores = Results({"truth": rows}, [], []).scores("a", "dice", "prostate")
    assert scores is not None
    assert [str(run) for run in scores.seeds] == ["2/0", "2/1", "10/0", "10/1", "all/0", "all/1"]
    assert scores.cases == ("one", "two")
    assert scores.values[0] == pytest.approx([0.9, 0.8])
    (summary,) = summarise_arms(rows)
    assert [str(run) for run in summary.of_seed] == ["all/0", "all/1", "10/0", "10/1", "2/0", "2/1"]
    assert summary.of_seed[FoldSeed(2, 0)].measures["dice"].mean == pytest.approx(0.85)


@pytest.mark.parametrize(
    "cases",
    [{0: "ab", 1: "cd"}, {0: "ab", 1: "bc"}, {0: "ab"}, {}],
    ids=["parts", "overlap", "one fold", "nothing"],
)
def test_folds_that_divide_the_cases_are_one_run(cases: dict[int, str]) -> None:
    rows = [row("a", 0, case, measured(0.5, 1.0), fold) for fold, own in cases.items() for case in own]
    assert not scores_by_fold(rows)
    assert list(paired_values(rows, "a", "prostate", "dice")[0]) == [
        (0, case) for case in dict.fromkeys("".join(cases.values()))
    ]
