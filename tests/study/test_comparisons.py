"""A study's comparisons against plain Python on its tables, and which arms are compared with which."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from metricunet.study.comparisons import COLUMNS, Compared, Contrast, comparisons_csv, contrasts
from metricunet.study.design import load_study
from metricunet.study.verdicts import Conclusions, conclude, write_conclusions
from tests.support.tables import PAIR, make_tables

SEEDS, CASES = (0, 1, 2), 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of three arms; the method missed the gland of case 3 in seed 1. Not to be changed."""
    return make_tables(tmp_path_factory.mktemp("drawn"), seeds=SEEDS, cases=CASES, missed={"method": [(1, 3)]})


@pytest.fixture(scope="module")
def concluded(folder: Path) -> Conclusions:
    return conclude(folder)


def column(path: Path, arm: str, measure: str) -> dict[tuple[int, str], float | None]:
    with path.open(newline="") as handle:
        return {
            (int(row["seed"]), row["case"]): float(row[measure]) if row[measure] else None
            for row in csv.DictReader(handle)
            if row["arm"] == arm
        }


def differences(
    path: Path, measure: str, a: str = "base", b: str = "method"
) -> dict[tuple[int, str], float | None]:
    one, other = column(path, a, measure), column(path, b, measure)
    found: dict[tuple[int, str], float | None] = {}
    for place, value in one.items():
        better = other[place]
        found[place] = None if value is None or better is None else better - value
    return found


def of_pair(concluded: Conclusions, measure: str, role: str = "primary", reference: str = "truth") -> Compared:
    found = concluded.comparisons.find(role, measure, "prostate", reference)
    assert found is not None
    return found


def test_dice_against_plain_python(folder: Path, concluded: Conclusions) -> None:
    c = of_pair(concluded, "dice").comparison
    d = differences(folder / "cases.csv", "dice")
    values = [v for v in d.values() if v is not None]
    assert len(values) == len(SEEDS) * CASES
    assert d[1, "case_003"] == -(column(folder / "cases.csv", "base", "dice")[1, "case_003"] or 0)  # missed: 0
    assert c.difference == pytest.approx(sum(values) / len(values))
    assert c.difference_of_seed == pytest.approx(
        [statistics.mean(v for (s, _), v in d.items() if s == seed and v is not None) for seed in SEEDS]
    )
    cases = sorted({case for _, case in d})
    of_case = [statistics.mean(d[s, case] or 0 for s in SEEDS) for case in cases]
    assert c.p == pytest.approx(stats.wilcoxon(of_case, method="exact").pvalue)
    assert c.d_z == pytest.approx(statistics.mean(of_case) / statistics.stdev(of_case))
    assert c.superiority == pytest.approx(sum(v > 0 for v in of_case) / len(of_case))
    assert (c.missed_a, c.missed_b, c.no_value_b) == (0, 1, 0)
    assert c.interval is not None
    assert c.interval.low < c.difference < c.interval.high


@pytest.mark.parametrize(
    ("name", "measure"),
    [("cases.csv", "asd_mm"), ("smoothness.csv", "slice_change_excess_pp")],
)
def test_a_missed_organ_has_no_distance_and_no_smoothness_and_the_worst_rank(
    folder: Path, concluded: Conclusions, name: str, measure: str
) -> None:
    c = of_pair(concluded, measure).comparison
    d = differences(folder / name, measure)
    assert [place for place, v in d.items() if v is None] == [(1, "case_003")]
    values = [v for v in d.values() if v is not None]
    assert c.better == "lower"
    assert c.difference == pytest.approx(sum(values) / len(values))
    assert (c.missed_a, c.missed_b, c.no_value_a, c.no_value_b) == (0, 1, 0, 1)
    cases = sorted({case for _, case in d})
    benefit = {case: -statistics.mean(v for s in SEEDS if (v := d[s, case]) is not None) for case in cases}
    benefit["case_003"] = -1e3
    assert c.p == pytest.approx(stats.wilcoxon(list(benefit.values()), method="exact").pvalue)
    assert c.superiority == pytest.approx(sum(v > 0 for v in benefit.values()) / CASES)


def test_features_are_compared_where_they_are_measured(folder: Path, concluded: Conclusions) -> None:
    one = of_pair(concluded, "fisher_ratio")
    d = [v for v in differences(folder / "features.csv", "fisher_ratio").values() if v is not None]
    assert one.structure is None
    assert (one.comparison.better, one.comparison.cases) == ("higher", len(d) // len(SEEDS))
    assert one.comparison.difference == pytest.approx(sum(d) / len(d))
    assert concluded.comparisons.find("primary", "fisher_ratio", "prostate", "reader") is None


def test_the_primary_family_is_dice_and_asd_of_the_main_pair_alone(concluded: Conclusions) -> None:
    primary = [one for one in concluded.comparisons.compared if one.comparison.family == "primary"]
    assert [(o.contrast.role, o.reference, o.measure) for o in primary] == [
        ("primary", "truth", "dice"), ("primary", "truth", "asd_mm"),
    ]  # fmt: skip
    p = sorted(o.comparison.p for o in primary)
    by_hand = {p[0]: min(1.0, 2 * p[0]), p[1]: min(1.0, max(2 * p[0], p[1]))}
    for one in primary:
        assert one.comparison.p_holm == pytest.approx(by_hand[one.comparison.p])
    assert all(o.comparison.p_holm is None for o in concluded.comparisons.compared if o not in primary)
    measures = {o.measure for o in concluded.comparisons.compared}
    assert "volume_difference_ml" not in measures
    assert {"hd95_mm", "surface_dice_2mm", "contour_length_excess_percent", "probe_accuracy"} <= measures


def test_which_arms_are_compared(tmp_path: Path) -> None:
    arms: dict[str, Any] = {name: {} for name in ("base", "method", "control", "offline", "pairs")}
    arms |= {name: {"labels": "clean"} for name in ("base-clean", "method-clean", "third-clean")}
    changes = {
        "arms": arms,
        "data": {"phantom": {"n_train": 4, "n_val": 1, "n_test": 4, "labels": "displaced"}},
        "secondary": [PAIR | {"baseline": "offline"}, {"baseline": "base-clean", "method": "method-clean"}],
    }
    folder = make_tables(tmp_path, cases=4, changes=changes)
    plan = load_study(folder / "study.yaml")
    assert contrasts(plan) == [
        Contrast("primary", "base", "method"),
        Contrast("primary control", "control", "method"),
        Contrast("secondary.0", "offline", "method"),
        Contrast("secondary.0 control", "control", "method"),
        Contrast("secondary.1", "base-clean", "method-clean"),
        Contrast("arm", "base", "control"),
        Contrast("arm", "base", "offline"),
        Contrast("arm", "base", "pairs"),
        Contrast("arm", "base-clean", "third-clean"),
    ]
    # Three of the arms have been run.
    concluded = conclude(folder, plan)
    assert {o.contrast.role for o in concluded.comparisons.compared} == {
        "primary", "primary control", "secondary.0 control", "arm"
    }  # fmt: skip
    assert concluded.comparisons.left_out[0] == "method − offline: offline has no finished run with all cases"
    assert len(concluded.comparisons.left_out) == 5
    assert {one.role for one in concluded.judged} == {"primary"}


def test_arms_that_cannot_be_paired_are_named(tmp_path: Path) -> None:
    folder = make_tables(tmp_path, cases=4)
    path = folder / "cases.csv"
    rows = path.read_text().splitlines()
    path.write_text("\n".join(r for r in rows if not r.startswith(("method,1", "method,0", "control,2"))) + "\n")
    concluded = conclude(folder)
    assert concluded.comparisons.left_out == ("method − control: no seed in common",)
    path.write_text("\n".join(r for r in rows if not (r.startswith("method") and "case_002" in r)) + "\n")
    assert conclude(folder).comparisons.left_out[0] == "method − base: not the same cases"
    # A seed that lacks a case, as where one of its folds failed, is left out; the others are compared.
    path.write_text("\n".join(r for r in rows if not (r.startswith("method,1") and "case_002" in r)) + "\n")
    assert of_pair(conclude(folder), "dice").comparison.seeds == (0, 2)


def test_a_structure_that_nobody_contoured_costs_no_other_its_comparisons(tmp_path: Path) -> None:
    folder = make_tables(tmp_path, cases=4)
    path = folder / "cases.csv"
    head, *rows = path.read_text().splitlines()
    blank = [",".join([*row.split(",")[:4], "bladder", *[""] * (row.count(",") - 4)]) for row in rows]
    path.write_text("\n".join([head, *blank, *rows]) + "\n")
    unknown = {row.split(",")[3]: ("bladder",) for row in rows}
    comparisons = conclude(folder, not_contoured=unknown).comparisons
    assert comparisons.left_out == ()
    assert {one.structure for one in comparisons.compared} == {"prostate", None}
    assert comparisons.find("primary", "dice", "prostate") is not None


def test_the_files_of_comparisons(folder: Path, concluded: Conclusions, tmp_path: Path) -> None:
    write_conclusions(concluded, tmp_path)
    lines = list(csv.DictReader(io.StringIO((tmp_path / "comparisons.csv").read_text())))
    assert tuple(lines[0]) == COLUMNS
    assert len(lines) == len(concluded.comparisons.compared)
    c = of_pair(concluded, "dice").comparison
    assert (lines[0]["role"], lines[0]["arm_a"], lines[0]["arm_b"], lines[0]["measure"]) == (
        "primary", "base", "method", "dice",
    )  # fmt: skip
    assert float(lines[0]["difference"]) == pytest.approx(c.difference, rel=1e-5)
    assert [float(v) for v in lines[0]["difference_of_seed"].split()] == pytest.approx(
        c.difference_of_seed, rel=1e-5
    )
    assert c.interval is not None
    assert float(lines[0]["low"]) == pytest.approx(c.interval.low, rel=1e-5)
    content = json.loads((tmp_path / "comparisons.json").read_text())
    assert content["comparisons"][0]["p_holm"] == c.p_holm
    assert [v["letter"] for v in content["verdicts"]] == ["a", "b", "c"]
    assert comparisons_csv([]) == ",".join(COLUMNS) + "\n"
