"""What is concluded of tables whose differences are known, and that all is drawn again from the tables alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metricunet.errors import InputError
from metricunet.study.claims import worthwhile
from metricunet.study.conclusions import Conclusions, conclude, write_conclusions
from metricunet.study.figures import draw_figures
from metricunet.study.run import StudyResult
from metricunet.study.sections import p_value, report_text, sections
from metricunet.study.verdict import Worthwhile
from tests.support.tables import make_tables

AMOUNTS = {"measures": {"worthwhile": {"dice": 0.005, "asd_mm": 0.05, "fisher_ratio": "10 %"}}}


def findings(concluded: Conclusions) -> dict[str, str]:
    return {one.claim.letter: one.verdict.finding for one in concluded.judged}


def test_a_benefit_over_baseline_and_control_is_supported(tmp_path: Path) -> None:
    arms = {"base": 0.0, "method": 1.5, "control": 0.1}
    concluded = conclude(make_tables(tmp_path, arms, cases=40, seeds=(0, 1, 2, 3, 4), changes=AMOUNTS))
    assert findings(concluded) == {"a": "supported", "b": "supported", "c": "supported"}
    found = sections(concluded)
    line = "| (c) method segments the prostate better than base | **supported on the phantom** |"
    assert line in found["verdicts"]
    assert "method is better in 5 of 5 seeds." in found["reasons"]


def test_what_the_control_does_as_well_is_not_supported(tmp_path: Path) -> None:
    arms = {"base": 0.0, "method": 1.5, "control": 2.5}
    concluded = conclude(make_tables(tmp_path, arms, cases=40, seeds=(0, 1, 2, 3, 4), changes=AMOUNTS))
    assert findings(concluded)["c"] == "not supported"


def test_a_small_study_without_a_control_decides_nothing(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"primary": {"baseline": "base", "method": "method"}}
    concluded = conclude(make_tables(tmp_path, cases=4, seeds=(0,), changes=changes))
    assert set(findings(concluded).values()) == {"not decided"}
    assert "No comparison with a control" in report_text(concluded)


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
        own = [r.row.measures.dice for r in concluded.results.rows["truth"] if (r.arm, r.seed) == ("method", seed)]
        means.append(sum(v or 0 for v in own) / 6)
    assert f"| {sum(means) / 3:.3f} ± " in ablation[3]
    assert set(found) == {
        "ablation", "comparison", "reader", "smoothness", "features", "comparisons", "primary", "arms", "verdicts",
        "reasons", "why",
    }  # fmt: skip
    assert found["primary"] == found["comparisons"]  # there is one pair alone
    assert found["why"] == found["reasons"]


def test_drawn_again_from_the_tables_all_is_the_same(tmp_path: Path) -> None:
    folder = make_tables(tmp_path / "one", cases=8, missed={"base": [(0, 1)], "method": [(2, 4)]})
    for place in ("a", "b"):
        concluded = conclude(folder)
        write_conclusions(concluded, tmp_path / place)
        drawn = draw_figures(concluded, tmp_path / place)
        (tmp_path / place / "text.md").write_text(report_text(concluded))
        assert [p.name for p in drawn] == ["differences.png", "arms.png", "smoothness.png", "features.png"]
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert len(files) == 7
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert (tmp_path / "a" / "arms.png").read_bytes()[:4] == b"\x89PNG"


def test_a_study_drew_what_its_tables_give(whole_study: tuple[Path, Path, StudyResult], tmp_path: Path) -> None:
    """Without a pair there is nothing to compare; smoothness and features are shown all the same."""
    output = whole_study[1]
    concluded = conclude(output)
    assert concluded.comparisons.compared == ()
    for path in draw_figures(concluded, tmp_path):
        assert path.read_bytes() == (output / "figures" / path.name).read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in (output / "figures").iterdir()}
    assert report_text(concluded).rstrip() in (output / "tables.md").read_text()
    assert "## Smoothness" in (output / "tables.md").read_text()
    assert json.loads((output / "comparisons.json").read_text())["verdicts"] == []


def test_tables_of_another_study_are_refused(tmp_path: Path) -> None:
    folder = make_tables(tmp_path, cases=4)
    cases = folder / "cases.csv"
    cases.write_text(cases.read_text().replace("control,", "stranger,"))
    with pytest.raises(InputError, match=r"the tables have arm 'stranger', which .* does not name"):
        conclude(folder)
    cases.unlink()
    with pytest.raises(InputError, match=r"cases\.csv: not readable"):
        conclude(folder)


def test_small_words() -> None:
    assert worthwhile("10 %") == worthwhile("10%") == Worthwhile(10, percent=True)
    assert worthwhile(0.05) == Worthwhile(0.05)
    assert [p_value(p) for p in (0.0004, 0.0321, 1.0)] == ["< 0.001", "0.032", "1.000"]
