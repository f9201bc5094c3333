"""What a study says in text, and that all is written and drawn again from its tables alone."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

from metricunet.study.figures import draw_figures
from metricunet.study.report import arms_table, conclusions_text, p_value, sections, tables_csv, tables_text
from metricunet.study.run import StudyResult
from metricunet.study.verdicts import conclude, write_conclusions
from tests.study.test_results import ABSENT, ROWS, row
from tests.support.tables import ARMS, make_tables


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


def test_what_was_not_contoured_is_said() -> None:
    rows = [ROWS[0], row("a", 0, "five", ABSENT), replace(row("a", 0, "six", ABSENT), contoured=False)]
    assert {line["not_contoured"] for line in csv.DictReader(io.StringIO(tables_csv({"truth": rows})))} == {"1"}
    text = tables_text("study", {"truth": rows}, ["dice"], [])
    assert "Not contoured, and so not scored, in 1 of the cases." in text
    assert "Not contoured" not in tables_text("study", {"truth": rows[:2]}, ["dice"], [])


def test_the_tables_of_arms(tmp_path: Path) -> None:
    changes = {
        "arms": {
            "base": {},
            "method": {"settings": {"metric.mode": "online", "metric.pair_weight": 0}},
            "control": {"settings": {"metric.mode": "control", "segment.dice_weight": 0}},
            "fcn": {"settings": {"segment.network": "fcn"}},
        }
    }
    arms = {"base": 0.0, "method": 1.0, "control": 0.2, "fcn": -1.0}
    concluded = conclude(make_tables(tmp_path, arms, cases=6, missed={"base": [(0, 1)]}, changes=changes))
    found = sections(concluded)
    ablation = found["ablation"].splitlines()
    assert ablation[2].startswith("| base | U-Net, 2.5D | Dice + cross-entropy | – | clean | 3 | 6 | 1 of 18 | 0.")
    assert ablation[3].startswith("| method | U-Net, 2.5D | Dice + cross-entropy | online: triplets | clean |")
    assert ablation[4].startswith(
        "| control | U-Net, 2.5D | cross-entropy | control: cross-entropy on the sampled"
    )
    assert len(ablation) == 5
    assert [line.split(" | ")[0] for line in found["comparison"].splitlines()[2:]] == [
        "| base",
        "| method",
        "| fcn",
    ]
    # By hand: the mean of the seeds' means.
    means = []
    for seed in (0, 1, 2):
        own = [r.values["dice"] for r in concluded.results.cases["truth"] if (r.arm, r.seed) == ("method", seed)]
        means.append(sum(v or 0 for v in own) / 6)
    assert f"| {sum(means) / 3:.3f} ± " in ablation[3]
    assert set(found) == {
        "ablation", "comparison", "reader", "smoothness", "features", "comparisons", "primary", "arms", "verdicts",
        "reasons", "why",
    }  # fmt: skip
    assert found["primary"] == found["comparisons"]  # there is one pair alone
    assert found["why"] == found["reasons"]


def test_missed_are_counted_of_the_cases_that_hold_the_structure(tmp_path: Path) -> None:
    """Of the six cases two hold no gland, in one of which an arm has a false positive."""
    folder = make_tables(tmp_path, cases=6, missed={"base": [(0, 1)]})
    path = folder / "cases.csv"
    head, *lines = path.read_text().splitlines()
    cells = [line.split(",") for line in lines]
    for own in cells:
        if own[3] in ("case_004", "case_005"):
            blank = [""] * (len(own) - 5)
            if own[0] == "method" and own[3] == "case_004":
                blank = ["0.0", "", "", "0.0", "", "0.0", "12.0"]
            own[5:] = blank
    path.write_text("\n".join([head, *(",".join(own) for own in cells)]) + "\n")
    found = arms_table(conclude(folder), ["dice"])
    assert "| base | 3 | 6 | 1 of 12 |" in found
    assert "| method | 3 | 6 | 0 of 12 |" in found


def test_drawn_again_from_the_tables_all_is_the_same(tmp_path: Path) -> None:
    folder = make_tables(tmp_path / "one", cases=8, missed={"base": [(0, 1)], "method": [(2, 4)]})
    for place in ("a", "b"):
        concluded = conclude(folder)
        write_conclusions(concluded, tmp_path / place)
        drawn = draw_figures(concluded, tmp_path / place)
        (tmp_path / place / "text.md").write_text(conclusions_text(concluded))
        assert [p.name for p in drawn] == ["differences.png", "arms.png", "smoothness.png", "features.png"]
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert len(files) == 7
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert (tmp_path / "a" / "arms.png").read_bytes()[:4] == b"\x89PNG"


def test_a_study_whose_arms_all_found_nothing_is_drawn(tmp_path: Path) -> None:
    """No surface distance has a value then."""
    missed = {arm: [(seed, case) for seed in range(3) for case in range(4)] for arm in ARMS}
    drawn = draw_figures(conclude(make_tables(tmp_path / "one", cases=4, missed=missed)), tmp_path)
    assert tmp_path / "arms.png" in drawn


def test_a_measure_without_any_value_costs_no_other_its_picture(tmp_path: Path) -> None:
    """As the change from slice to slice where every mask lies in one."""
    folder = make_tables(tmp_path / "one", cases=4)
    path = folder / "smoothness.csv"
    head, *rows = path.read_text().splitlines()
    column = head.split(",").index("slice_change_excess_pp")
    blank = [",".join("" if k == column else cell for k, cell in enumerate(row.split(","))) for row in rows]
    path.write_text("\n".join([head, *blank]) + "\n")
    assert [p.name for p in draw_figures(conclude(folder), tmp_path)] == [
        "differences.png", "arms.png", "smoothness.png", "features.png"
    ]  # fmt: skip


def test_a_study_drew_what_its_tables_give(whole_study: tuple[Path, Path, StudyResult], tmp_path: Path) -> None:
    """Without a pair there is nothing to compare; smoothness and features are shown all the same."""
    output = whole_study[1]
    concluded = conclude(output)
    assert concluded.comparisons.compared == ()
    for path in draw_figures(concluded, tmp_path):
        assert path.read_bytes() == (output / "figures" / path.name).read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in (output / "figures").iterdir()}
    assert conclusions_text(concluded).rstrip() in (output / "tables.md").read_text()
    assert "## Smoothness" in (output / "tables.md").read_text()
    assert json.loads((output / "comparisons.json").read_text())["verdicts"] == []


def test_p_values_for_people() -> None:
    assert [p_value(p) for p in (0.0004, 0.0321, 1.0)] == ["< 0.001", "0.032", "1.000"]
