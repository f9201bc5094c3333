"""What each group of `varied` phantoms buys: the trainings, and the tables of what came of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import groups
from benchmarks.groups import ALL, Plan, bench_groups, read_rows, table
from metricunet.errors import InputError
from tests.support.cohorts import TINY_SETTINGS
from tests.support.streams import simplify

TINY = {
    name: json.loads(value)
    for name, value in (setting.split("=") for setting in TINY_SETTINGS)
    if name.startswith(("locate.", "segment.")) and not name.endswith(("epochs", "updates_per_epoch"))
}
SHORT = Plan({"segment": 3, "locate": 3}, patients=4, unseen=5, seeds=1, workers=1, settings=TINY)


@pytest.fixture
def simple(monkeypatch: pytest.MonkeyPatch) -> None:
    simplify(monkeypatch)
    monkeypatch.setattr(groups, "draw_phantom", lambda *_: SimpleNamespace(description={"reach": "chest"}))


def test_trainings_without_a_group_and_their_rows(simple: None, tmp_path: Path) -> None:
    said: list[str] = []
    rows = bench_groups(tmp_path, SHORT, groups=["floor", "beyond"], say=said.append)
    assert said == [
        "stage segment, seed 0, without none",
        "stage segment, seed 0, without floor",
        "stage locate, seed 0, without none",
        "stage locate, seed 0, without beyond",
    ]
    assert [row | {name: "" for name in groups.COLUMNS if name not in row} for row in rows] == read_rows(
        tmp_path / "groups.csv"
    )
    # The fifth has no target, which stage 2 cannot be scored on.
    assert sum(row["stage"] == "segment" for row in rows) == 8
    assert sum(row["stage"] == "locate" for row in rows) == 10
    assert {row["kind"] for row in rows} <= {"beyond", "elsewhere", "place"}
    assert all(0 <= float(row["dice"]) <= 1 for row in rows if row["stage"] == "segment")


def test_what_is_done_is_not_done_again(simple: None, tmp_path: Path) -> None:
    first = bench_groups(tmp_path, SHORT, groups=["floor"])
    said: list[str] = []
    again = bench_groups(tmp_path, replace(SHORT, seeds=2), groups=["floor"], say=said.append)
    assert said == ["stage segment, seed 1, without none", "stage segment, seed 1, without floor"]
    assert [row["case"] for row in again[: len(first)]] == [row["case"] for row in first]


def test_rows_of_another_plan_are_left_alone(simple: None, tmp_path: Path) -> None:
    rows = bench_groups(tmp_path, SHORT, groups=["floor"])
    for other in (replace(SHORT, unseen=6), replace(SHORT, updates={"segment": 4, "locate": 3})):
        with pytest.raises(InputError, match=r"plan\.json: the rows beside it are of other phantoms, updates or"):
            bench_groups(tmp_path, other, groups=["floor"])
    assert [row["dice"] for row in read_rows(tmp_path / "groups.csv")] == [row["dice"] for row in rows]


def test_the_same_seed_gives_the_same_rows(simple: None, tmp_path: Path) -> None:
    one, two = (bench_groups(tmp_path / name, SHORT, groups=["floor", "absent"]) for name in ("a", "b"))
    assert one == two


def test_no_such_group(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'flor' is no group that is left out here; give some of floor, base"):
        bench_groups(tmp_path, SHORT, groups=["flor"])


def row_of(without: str, seed: int, case: int, dice: float) -> dict[str, str]:
    return {"stage": "segment", "without": without, "seed": str(seed), "case": str(case), "dice": f"{dice}"}


def test_what_a_group_bought_is_paired() -> None:
    rows = [
        row_of(without, seed, case, 0.5 + 0.1 * case + 0.02 * seed - (0.03 if without == "floor" else 0))
        for without in (ALL, "floor")
        for seed in range(3)
        for case in range(4)
    ]
    lines = table(rows).splitlines()
    assert "| none | 0.650, 0.670, 0.690 | 0.670 (0.020) |  |" in lines
    assert "| floor | 0.620, 0.640, 0.660 | 0.640 (0.020) | +0.030 (+0.030 to +0.030) |" in lines


def test_what_stage_1_does_is_counted_by_what_a_scan_shows() -> None:
    found = [
        ("pelvis", "3.0", "1"),
        ("pelvis", "", "0"),
        ("beyond", "15.1", "1"),
        ("beyond", "15.0", "1"),
        ("place", "", "1"),
        ("elsewhere", "", "0"),
    ]
    rows = [
        {"stage": "locate", "without": "absent", "seed": seed, "kind": kind, "off_mm": off, "found": yes}
        for seed in "01"
        for kind, off, yes in (found if seed == "0" else [("pelvis", "20.0", "1"), *found[1:]])
    ]
    rows[-1]["found"] = "1"
    assert "| absent | 1, 2 of 2 | 1, 1 of 2 | 1, 1 of 1 | 0, 1 of 1 |" in table(rows).splitlines()
