"""Verdicts: on comparisons whose intervals are known, and on tables whose differences are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metricunet.errors import InputError
from metricunet.evaluation.bootstrap import Interval, Resampling
from metricunet.evaluation.measures import DEFINITIONS
from metricunet.study.report import conclusions_text, sections
from metricunet.study.statistics import Better, Comparison, FoldSeed, Scores, compare
from metricunet.study.verdicts import Conclusions, Verdict, Worthwhile, conclude, join, judge, signed
from tests.support.tables import make_tables

HUNDREDTH = Worthwhile(0.01)
TENTH = Worthwhile(10, percent=True)


def comparison(
    low: float,
    high: float,
    *,
    arm_a: str = "unet",
    better: Better = "higher",
    seed_signs: Sequence[int] = (1, 1, 1, 1, 1),
    relative: tuple[float, float] | None = None,
    no_value: tuple[int, int] = (0, 0),
    measure: str = "dice",
    false_positive: tuple[int, int] = (0, 0),
    mean_b: float = 0.8,
) -> Comparison:
    """A comparison whose difference lies between low and high, and is positive or negative in each seed."""
    relative_interval = None if relative is None else Interval(*relative)
    return Comparison(
        measure=measure,
        title="Dice" if measure == "dice" else "ASD",
        unit="" if measure == "dice" else "mm",
        better=better,
        arm_a=arm_a,
        arm_b="metricunet",
        family="exploratory",
        seeds=tuple(range(len(seed_signs))),
        cases=100,
        missed_a=no_value[0],
        missed_b=no_value[1],
        no_value_a=no_value[0],
        no_value_b=no_value[1],
        mean_a=0.8,
        mean_b=mean_b,
        difference=(low + high) / 2,
        interval=Interval(low, high),
        relative_percent=None if relative is None else sum(relative) / 2,
        relative_interval_percent=relative_interval,
        difference_of_seed=tuple(0.01 * sign for sign in seed_signs),
        p_of_seed=(0.01,) * len(seed_signs),
        p=0.01,
        p_holm=None,
        d_z=0.5,
        rank_biserial=0.5,
        superiority=0.7,
        resampling=Resampling(),
        false_positive_a=false_positive[0],
        false_positive_b=false_positive[1],
    )


def finding(
    main: Comparison, control: Comparison | None, worthwhile: Worthwhile = HUNDREDTH, claim: str = "Better"
) -> str:
    return judge(claim, main, control, worthwhile).finding


BETTER = comparison(0.005, 0.020)
CONTROL = comparison(0.002, 0.012, arm_a="hard")


def test_supported_in_words() -> None:
    verdict = judge("Tuples segment better", BETTER, CONTROL, HUNDREDTH)
    assert verdict.text == (
        "Tuples segment better: supported on the phantom. "
        "Dice: benefit of metricunet over unet +0.0125 (95 % interval +0.0050 to +0.0200) on 100 cases and 5 "
        "seeds: better. metricunet is better in 5 of 5 seeds. "
        "Dice: benefit of metricunet over the control hard +0.0070 (95 % interval +0.0020 to +0.0120) on 100 "
        "cases and 5 seeds: better."
    )
    assert json.loads(json.dumps(verdict.to_json()))["heading"] == "supported on the phantom"
    assert judge("x", BETTER, CONTROL, HUNDREDTH, data="ward 3").heading == "supported on ward 3"


def test_a_number_can_be_told_from_what_it_is_held_against() -> None:
    assert [signed(v, "") for v in (0.00003, -0.00003, 0.0125)] == ["0.0000", "0.0000", "+0.0125"]
    assert [signed(v, "", 0.0) for v in (0.00003, -0.00003, 0.0)] == ["+0.00003", "−0.00003", "0.0000"]
    assert signed(0.00996, "mm", 0.0, 0.01) == "+0.00996 mm"
    assert signed(1e-17, "", 0.0) == "0.0000"  # of summing, and no side


@pytest.mark.parametrize(
    ("main", "control", "expected"),
    [
        # One condition of support after the other fails, and nothing shows that there is no benefit.
        (comparison(-0.001, 0.020), CONTROL, "not decided"),
        (comparison(0.0, 0.020), CONTROL, "not decided"),
        (comparison(0.005, 0.020, seed_signs=(1, 1, 1, 1, -1)), CONTROL, "not decided"),
        (comparison(0.005, 0.020, seed_signs=(1, 1, 1, 1, 0)), CONTROL, "not decided"),
        (comparison(0.005, 0.020, seed_signs=(1, 1)), CONTROL, "not decided"),
        (BETTER, None, "not decided"),
        (BETTER, comparison(-0.004, 0.012), "not decided"),
        (BETTER, comparison(0.002, 0.012, seed_signs=(1, 1)), "not decided"),
        # The control's seeds need not all agree.
        (BETTER, comparison(0.002, 0.012, seed_signs=(1, 1, -1)), "supported"),
        # No worthwhile benefit, over A or over the control.
        (comparison(-0.004, 0.009), CONTROL, "not supported"),
        (comparison(-0.004, 0.009), None, "not supported"),
        (comparison(-0.020, -0.001), CONTROL, "not supported"),
        (BETTER, comparison(-0.004, 0.009), "not supported"),
        (BETTER, comparison(-0.010, -0.001), "not supported"),
        # Too few seeds show nothing, either.
        (comparison(-0.004, 0.009, seed_signs=(1, 1)), None, "not decided"),
        # Better by little is better.
        (comparison(0.001, 0.009), comparison(0.001, 0.009), "supported"),
    ],
)
def test_findings(main: Comparison, control: Comparison | None, expected: str) -> None:
    assert finding(main, control) == expected


def test_distances_are_better_when_lower_and_worthwhile_in_percent() -> None:
    def asd(low: float, high: float, relative: tuple[float, float], arm_a: str = "unet") -> Comparison:
        signs = (-1, -1, -1)
        return comparison(
            low, high, better="lower", seed_signs=signs, relative=relative, measure="asd_mm", arm_a=arm_a
        )

    good, worse = asd(-0.3, -0.1, (-18.0, -6.0)), asd(0.1, 0.3, (6.0, 18.0))
    assert finding(good, good, TENTH) == "supported"
    assert finding(worse, good, TENTH) == "not supported"
    assert finding(good, worse, TENTH) == "not supported"
    assert finding(asd(-0.15, 0.05, (-9.0, 3.0)), good, TENTH) == "not supported"
    assert finding(asd(-0.2, 0.05, (-12.0, 3.0)), good, TENTH) == "not decided"
    verdict = judge("Better", good, asd(-0.15, 0.05, (-12.0, 3.0), "hard"), TENTH)
    assert verdict.reasons[0].startswith(
        "ASD: benefit of metricunet over unet +12.0 % (95 % interval +6.0 % to +18.0 %) on 100 cases and 3 seeds"
    )
    assert verdict.reasons[-1].endswith("no difference shown, and a worthwhile one not excluded.")
    in_mm = judge("Better", good, good, Worthwhile(0.05))
    assert "+0.200 mm (95 % interval +0.100 mm to +0.300 mm)" in in_mm.reasons[0]


def test_what_is_missed_is_not_in_an_interval_of_distances() -> None:
    def asd(low: float, high: float, no_value: tuple[int, int]) -> Comparison:
        return comparison(low, high, better="lower", seed_signs=(-1,) * 3, no_value=no_value, measure="asd_mm")

    equal, lost, won = (asd(-0.3, -0.1, n) for n in ((2, 2), (1, 2), (2, 1)))
    amount = Worthwhile(0.05)
    assert finding(equal, equal, amount) == finding(won, won, amount) == "supported"
    # B missed more: better distances of the rest support nothing.
    assert finding(lost, equal, amount) == finding(equal, lost, amount) == "not decided"
    # A missed more: no better distances of the rest are no evidence against B.
    assert finding(asd(0.1, 0.3, (2, 1)), None, amount) == "not decided"
    assert finding(asd(0.1, 0.3, (1, 2)), None, amount) == "not supported"
    reasons = judge("Better", lost, equal, amount).reasons
    assert "Missed, and so not in it: 2 by metricunet, 1 by unet, of 300 each." in reasons


def test_false_positives_where_there_is_nothing_are_not_in_an_interval_of_overlaps() -> None:
    equal, more, fewer = (comparison(0.005, 0.020, false_positive=n) for n in ((2, 2), (1, 3), (3, 1)))
    assert finding(equal, equal) == finding(fewer, fewer) == "supported"
    # B sees what is not there: better overlaps of the rest support nothing.
    assert finding(more, equal) == finding(equal, more) == "not decided"
    # A does: that B's other overlaps are no better is no evidence against B.
    assert finding(comparison(-0.020, -0.001, false_positive=(3, 1)), None) == "not decided"
    assert finding(comparison(-0.020, -0.001, false_positive=(1, 3)), None) == "not supported"
    reasons = judge("Better", more, equal, HUNDREDTH).reasons
    assert "False positives, not in it unless both have one: 3 of metricunet, 1 of unet, of 500 each." in reasons


def test_what_is_smoother_than_the_true_shape_is_said() -> None:
    def smooth(mean_b: float) -> Verdict:
        main, control = (
            comparison(
                -0.3, -0.1, arm_a=arm, better="lower", seed_signs=(-1,) * 3, mean_b=mean_b,
                measure="contour_roughness_excess_percent",
            )
            for arm in ("unet", "hard")
        )  # fmt: skip
        return judge("Smoother", main, control, Worthwhile(0.05))

    said = "metricunet is smoother than the true shape (−0.700 mm), which is no gain in accuracy."
    assert said in smooth(-0.7).reasons
    assert smooth(-0.7).finding == smooth(0.7).finding == "supported"
    assert not any("than the true shape" in reason for reason in smooth(0.7).reasons)


def test_runs_of_one_replicate_are_not_called_replicates() -> None:
    runs = [FoldSeed(fold, seed) for fold in range(3) for seed in range(2)]
    several = replace(comparison(0.005, 0.020, seed_signs=(1, 1, 1, 1, 1, -1)), seeds=tuple(runs))
    assert "metricunet is better in 5 of 6 runs." in judge("Better", several, None, HUNDREDTH).reasons
    single = replace(comparison(0.005, 0.020, seed_signs=(1, 1, -1)), seeds=tuple(runs[::2]))
    assert "metricunet is better in 2 of 3 replicates." in judge("Better", single, None, HUNDREDTH).reasons


def test_a_share_of_what_can_be_negative_is_said_to_be_none() -> None:
    cases = ("x", "y")
    found = compare(
        Scores("unet", (0, 1, 2), cases, np.full((3, 2), -1.0)),
        Scores("metricunet", (0, 1, 2), cases, np.full((3, 2), -1.5)),
        DEFINITIONS[1],
        "lower",
    )
    (first, *_) = judge("Better", found, None, TENTH).reasons
    assert first == (
        "ASD: benefit of metricunet over unet +0.500 mm on 2 cases and 3 seeds, which is no share in percent, "
        "since values are negative or all of unet are 0."
    )


def test_reasons_say_what_stands_in_the_way() -> None:
    verdict = judge("Better", comparison(-0.004, 0.009, seed_signs=(1, -1)), None, HUNDREDTH)
    assert verdict.reasons == (
        "Dice: benefit of metricunet over unet +0.0025 (95 % interval −0.0040 to +0.0090) on 100 cases and 2 "
        "seeds: no difference shown, and less than the worthwhile +0.0100.",
        "Fewer than 3 seeds decide nothing.",
        "metricunet is better in 1 of 2 seeds.",
        "No comparison with a control: without one a benefit cannot be put down to the claim.",
    )
    worse = judge("Better", comparison(-0.02, -0.01, seed_signs=(-1,) * 5), CONTROL, HUNDREDTH)
    assert worse.heading == "not supported"
    assert worse.reasons[0].endswith(": worse.")
    small = judge("Better", comparison(0.001, 0.009), CONTROL, HUNDREDTH)
    assert small.reasons[0].endswith("better, but by less than the worthwhile +0.0100.")


def test_from_raw_scores() -> None:
    generator = np.random.default_rng(0)
    cases = tuple(f"c{i}" for i in range(100))
    base = 0.85 + 0.03 * generator.standard_normal((1, 100))

    def arm(name: str, effect: float) -> Scores:
        return Scores(name, tuple(range(5)), cases, base + effect + 0.02 * generator.standard_normal((5, 100)))

    plain, hard, metric, same = (
        arm("unet", 0),
        arm("hard", 0.005),
        arm("metricunet", 0.02),
        arm("metricunet", 0.005),
    )

    def judged(b: Scores) -> Verdict:
        main, control = (compare(a, b, DEFINITIONS[0], "higher", draws=1000) for a in (plain, hard))
        return judge("Better", main, control, HUNDREDTH)

    assert judged(metric).finding == "supported"
    assert judged(same).finding == "not supported"


def test_nothing_to_compare_decides_nothing() -> None:
    nothing = Scores("unet", (0, 1, 2), ("x", "y"), np.full((3, 2), np.nan))
    some = Scores("metricunet", (0, 1, 2), ("x", "y"), np.ones((3, 2)))
    found = compare(nothing, some, DEFINITIONS[1], "lower")
    verdict = judge("Better", found, None, TENTH)
    assert verdict.finding == "not decided"
    assert verdict.reasons[0] == "ASD: no value on 2 cases and 3 seeds in both metricunet and unet."
    one = compare(
        Scores("unet", (0, 1, 2), ("x",), np.ones((3, 1))),
        Scores("metricunet", (0, 1, 2), ("x",), np.full((3, 1), 0.5)),
        DEFINITIONS[1],
        "lower",
    )
    verdict = judge("Better", one, one, TENTH)
    assert verdict.finding == "not decided"
    assert verdict.reasons[0].endswith("+50.0 % on 1 case and 3 seeds, too few values for an interval.")


def test_a_claim_of_several_measures() -> None:
    yes, no, open_ = (
        judge(name, main, CONTROL, HUNDREDTH)
        for name, main in (("Dice", BETTER), ("ASD", comparison(-0.02, -0.01)), ("PPV", comparison(-0.02, 0.02)))
    )
    assert join("Better", [yes, yes]).finding == "supported"
    assert join("Better", [yes, open_]).finding == "not decided"
    assert join("Better", [yes, open_, no]).finding == "not supported"
    both = join("Tuples segment better", [yes, open_])
    assert both.text.startswith(
        "Tuples segment better: not decided. Dice: supported on the phantom. Dice: benefit"
    )
    with pytest.raises(ValueError, match="a claim needs verdicts"):
        join("Better", [])


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the same"):
        judge("Better", BETTER, comparison(0.1, 0.2, measure="asd_mm"), HUNDREDTH)
    for amount in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="worthwhile benefit"):
            Worthwhile(amount)


def test_worthwhile_benefits_as_a_study_file_has_them() -> None:
    assert Worthwhile.read("10 %") == Worthwhile.read("10%") == Worthwhile(10, percent=True)
    assert Worthwhile.read(0.05) == Worthwhile(0.05)


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
    assert "No comparison with a control" in conclusions_text(concluded)


def test_tables_of_another_study_are_refused(tmp_path: Path) -> None:
    folder = make_tables(tmp_path, cases=4)
    cases = folder / "cases.csv"
    cases.write_text(cases.read_text().replace("control,", "stranger,"))
    with pytest.raises(InputError, match=r"the tables have arm 'stranger', which .* does not name"):
        conclude(folder)
    cases.unlink()
    with pytest.raises(InputError, match=r"cases\.csv: not readable"):
        conclude(folder)
