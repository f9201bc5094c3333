"""Verdicts: what a study's comparisons say of the three claims about a method, and why. No model is needed for it.

A verdict judges the claim that arm B is better than arm A.

The claim is about B's own idea (here: tuples of voxels). B can also win because of what comes with the idea (more
weight on hard voxels, say); a control arm has that and not the idea. So two comparisons are judged together: B
against A, the arm to beat, and B against the control. *Benefit* is the difference, counted positive where B is
better; *worthwhile* is the smallest benefit that somebody would change a method for, fixed before the study.

**supported**: all of these hold.

1. The interval of the benefit over A lies above 0.
2. The benefit is above 0 in every single seed, so that it does not hang on a lucky one.
3. The interval of the benefit over the control lies above 0.
4. Both comparisons have at least `MIN_SEEDS` seeds; and where a missed structure has no value, B missed no more
   of them than the other arm, since the interval is over what both found. Nor has B more false positives in cases
   that do not hold the structure, in which an empty mask has no value.

**not supported**: not all of them hold, and at least one comparison *shows* that the claim's benefit is not there.

1. The interval of the benefit over A lies below 0 (B is worse), or below what is worthwhile (if B is better, then
   by too little to matter).
2. The same of the benefit over the control: the control does as well.

Only a comparison with at least `MIN_SEEDS` seeds can show that; and where a missed structure has no value, only
one in which B missed at least as many as the other arm, since those that the other arm alone missed speak for B,
as its false positives do.

**not decided**: anything else. That an interval holds 0 is no evidence against a claim, if it also holds a
worthwhile benefit: then the study was too small. Without a control a claim cannot be supported.

An interval above 0 and below the worthwhile benefit supports the claim that B is better; that it is by little is
said in the reasons. So is that B's masks are smoother than the true shape: that they are smoother than A's is true
all the same. A claim with several measures needs all of them (`join`).

Where folds are replicates (`metricunet.study.statistics`), these stand in place of seeds.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from metricunet.errors import InputError
from metricunet.evaluation.bootstrap import CONFIDENCE, Interval
from metricunet.evaluation.features import FEATURE_NAMES
from metricunet.evaluation.smoothness import SMOOTHNESS_NAMES
from metricunet.files.atomic import write_json, write_text
from metricunet.study.comparisons import (
    COMPARISONS_CSV,
    COMPARISONS_JSON,
    CONTROL,
    Comparisons,
    compare_all,
    comparison_json,
    comparisons_csv,
)
from metricunet.study.design import STUDY_NAME, Amount, Pair, Study, load_study
from metricunet.study.results import Results, read_results
from metricunet.study.statistics import Comparison

Finding = Literal["supported", "not supported", "not decided"]

#: With fewer, "one sign in all seeds" is chance (0.5 with two), and the interval knows little of seeds.
MIN_SEEDS = 3
#: Decimals of a number for people, by its unit.
DECIMALS = {"": 4, "mm": 3, "%": 1}
#: No number has more, whatever it has to be told from: what differs by less is rounding.
MOST_DECIMALS = 12


@dataclass(frozen=True)
class Worthwhile:
    """The smallest benefit that matters.

    Attributes:
        amount: number not below 0; it is 0 if every benefit matters.
        percent: whether the amount is in percent of the other arm's mean, and not in the measure's unit.
    """

    amount: float
    percent: bool = False

    @classmethod
    def read(cls, amount: Amount) -> Worthwhile:
        """Read the smallest benefit that matters, as a study file has it."""
        if isinstance(amount, str):
            return cls(float(amount.removesuffix("%")), percent=True)
        return cls(amount)

    def __post_init__(self) -> None:
        if not math.isfinite(self.amount) or self.amount < 0:
            raise ValueError(f"a worthwhile benefit is a number from 0 up; got {self.amount}")


@dataclass(frozen=True)
class Verdict:
    """What is concluded of a claim.

    Attributes:
        claim: the claim in words.
        finding: what is found of it; see the top of this module.
        data: name of what the study ran on.
        reasons: sentences that say why, with the numbers.
    """

    claim: str
    finding: Finding
    data: str
    reasons: tuple[str, ...]

    @property
    def heading(self) -> str:
        """The finding for people: `supported on the phantom`, `not supported`, `not decided`."""
        return f"supported on {self.data}" if self.finding == "supported" else self.finding

    @property
    def text(self) -> str:
        """Claim, finding and reasons as one paragraph."""
        return f"{self.claim}: {self.heading}. {' '.join(self.reasons)}"

    def to_json(self) -> dict[str, Any]:
        """Return claim, finding, heading and reasons."""
        return {
            "claim": self.claim,
            "finding": self.finding,
            "heading": self.heading,
            "reasons": list(self.reasons),
        }


@dataclass(frozen=True)
class _Reading:
    """A comparison read for a claim: what the benefit is, and what that shows."""

    benefit: float | None
    interval: Interval | None
    enough_seeds: bool
    above_zero: bool
    below_zero: bool
    below_worthwhile: bool
    hides_losses: bool
    hides_gains: bool

    @property
    def shows_benefit(self) -> bool:
        return self.above_zero and self.enough_seeds and not self.hides_losses

    @property
    def shows_none(self) -> bool:
        return (self.below_zero or self.below_worthwhile) and self.enough_seeds and not self.hides_gains


def judge(
    claim: str,
    main: Comparison,
    control: Comparison | None,
    worthwhile: Worthwhile,
    *,
    data: str = "the phantom",
) -> Verdict:
    """Judge the claim that arm B is better than arm A, in one measure.

    Args:
        claim: the claim in words, without a full stop.
        main: the comparison of B with the arm to beat.
        control: the comparison of B with the control; None if there is none.
        worthwhile: the smallest benefit that matters, over A and over the control.
        data: name of what the study ran on, as it goes on after "supported on".

    Raises:
        ValueError: the comparisons are of different measures, or of different arms B.
    """
    if control is not None and (control.measure, control.better, control.arm_b) != (
        main.measure,
        main.better,
        main.arm_b,
    ):
        raise ValueError(
            f"the control compares {control.arm_b} in {control.measure}, the main pair {main.arm_b} in "
            f"{main.measure}; expected the same"
        )
    over_a = _read(main, worthwhile)
    over_control = None if control is None else _read(control, worthwhile)
    good_seeds = sum(d is not None and d * main.sign > 0 for d in main.difference_of_seed)
    all_seeds_good = good_seeds == len(main.seeds)
    finding: Finding = "not decided"
    if over_a.shows_benefit and all_seeds_good and over_control is not None and over_control.shows_benefit:
        finding = "supported"
    elif over_a.shows_none or (over_control is not None and over_control.shows_none):
        finding = "not supported"
    reasons = [
        *_sentences(main, over_a, worthwhile, f"over {main.arm_a}"),
        f"{main.arm_b} is better in {good_seeds} of {_counted(len(main.seeds), main.training)}.",
    ]
    if main.measure in SMOOTHNESS_NAMES and main.mean_b is not None and main.mean_b < 0:
        mean = signed(main.mean_b, main.unit)
        reasons.append(f"{main.arm_b} is smoother than the true shape ({mean}), which is no gain in accuracy.")
    if control is None or over_control is None:
        reasons.append("No comparison with a control: without one a benefit cannot be put down to the claim.")
    else:
        reasons += _sentences(control, over_control, worthwhile, f"over the control {control.arm_a}")
    return Verdict(claim, finding, data, tuple(reasons))


def join(claim: str, verdicts: Sequence[Verdict]) -> Verdict:
    """Judge a claim by its verdicts in several measures.

    Supported if it is so in all of them, not supported if that is so in any, else not decided.

    Args:
        claim: the claim in words, without a full stop.
        verdicts: verdicts on the claim, at least one, all on the same data.

    Raises:
        ValueError: there are no verdicts, or they are on different data.
    """
    if len({verdict.data for verdict in verdicts}) != 1:
        raise ValueError("a claim needs verdicts, all on the same data")
    findings = {verdict.finding for verdict in verdicts}
    finding: Finding = "not decided"
    if findings == {"supported"}:
        finding = "supported"
    elif "not supported" in findings:
        finding = "not supported"
    return Verdict(claim, finding, verdicts[0].data, tuple(verdict.text for verdict in verdicts))


@dataclass(frozen=True)
class Claim:
    """A claim about a pair of arms.

    Attributes:
        letter: a, b or c, as the design names the claims.
        text: the claim in words.
        measures: names of the measures, all of which have to speak for the claim.
    """

    letter: str
    text: str
    measures: tuple[str, ...]


@dataclass(frozen=True)
class Judged:
    """What a study says of a claim.

    Attributes:
        role: role of the pair: `primary`, `secondary.0` and so on.
        pair: the arms that the claim is about.
        claim: the claim about them.
        verdict: verdict of all measures together.
        parts: name of each measure and its own verdict.
    """

    role: str
    pair: Pair
    claim: Claim
    verdict: Verdict
    parts: tuple[tuple[str, Verdict], ...]


def claims_of(pair: Pair, target: str, primary: Sequence[str]) -> tuple[Claim, ...]:
    """Return the claims about a pair, those of the method's paper."""
    b, a = pair.method, pair.baseline
    return (
        Claim("a", f"Voxel features of {b} are more representative than those of {a}", FEATURE_NAMES),
        Claim("b", f"Neighbourhoods are smoother in the masks of {b} than in those of {a}", SMOOTHNESS_NAMES),
        Claim("c", f"{b} segments the {target} better than {a}", tuple(primary)),
    )


def judge_all(plan: Study, comparisons: Comparisons) -> list[Judged]:
    """Judge every claim about every pair; one of whose measures there is no comparison is left out."""
    phantom = plan.content.data.phantom is not None
    judged: list[Judged] = []
    for role, pair in plan.content.pairs.items():
        for claim in claims_of(pair, plan.base.target, plan.content.measures.primary):
            parts: list[tuple[str, Verdict]] = []
            for measure in claim.measures:
                main = comparisons.find(role, measure, plan.base.target)
                control = comparisons.find(f"{role} {CONTROL}", measure, plan.base.target)
                if main is None:
                    continue
                verdict = judge(
                    claim.text,
                    main.comparison,
                    None if control is None else control.comparison,
                    Worthwhile.read(plan.content.measures.worthwhile.get(measure, 0.0)),
                    data="the phantom" if phantom else "this cohort",
                )
                parts.append((measure, verdict))
            if len(parts) == len(claim.measures):
                whole = join(claim.text, [verdict for _, verdict in parts])
                judged.append(Judged(role, pair, claim, whole, tuple(parts)))
    return judged


@dataclass(frozen=True)
class Conclusions:
    """What a study came to.

    Attributes:
        plan: the study file, as it was read.
        results: the rows of its runs.
        comparisons: the comparisons of its arms.
        judged: the verdicts on its claims.
    """

    plan: Study
    results: Results
    comparisons: Comparisons
    judged: tuple[Judged, ...]


def conclude(
    folder: Path, plan: Study | None = None, not_contoured: Mapping[str, Collection[str]] | None = None
) -> Conclusions:
    """Read a study's tables, compare its arms and judge its claims.

    Args:
        folder: folder with cases.csv, cases-WHOSE.csv, smoothness.csv and features.csv.
        plan: the study file; default: study.yaml in the folder.
        not_contoured: name of a case to the structures that its references say nothing of.

    Raises:
        InputError: a file that cannot be read, or a table of another study.
    """
    plan = load_study(folder / STUDY_NAME) if plan is None else plan
    results = read_results(folder, not_contoured, replicates=plan.replicates is not None)
    if strange := [arm for arm in results.arms if arm not in plan.arms]:
        raise InputError(
            f"{folder}: the tables have arm {strange[0]!r}, which {plan.path} does not name; put the study file "
            f"that led to them there as {STUDY_NAME}"
        )
    comparisons = compare_all(plan, results)
    return Conclusions(plan, results, comparisons, tuple(judge_all(plan, comparisons)))


def write_conclusions(conclusions: Conclusions, folder: Path) -> None:
    """Write comparisons.csv and comparisons.json, the latter with the verdicts."""
    write_text(folder / COMPARISONS_CSV, comparisons_csv(conclusions.comparisons.compared))
    write_json(
        folder / COMPARISONS_JSON,
        {
            "comparisons": [comparison_json(one) for one in conclusions.comparisons.compared],
            "left_out": list(conclusions.comparisons.left_out),
            "verdicts": [
                {
                    "pair": one.role,
                    "baseline": one.pair.baseline,
                    "method": one.pair.method,
                    "control": one.pair.control,
                    "letter": one.claim.letter,
                    **one.verdict.to_json(),
                    "measures": {name: verdict.to_json() for name, verdict in one.parts},
                }
                for one in conclusions.judged
            ],
        },
    )


def _read(comparison: Comparison, worthwhile: Worthwhile) -> _Reading:
    found = comparison.relative_interval_percent if worthwhile.percent else comparison.interval
    value = comparison.relative_percent if worthwhile.percent else comparison.difference
    interval = None if found is None else found.scaled(comparison.sign)
    return _Reading(
        benefit=None if value is None else value * comparison.sign,
        interval=interval,
        enough_seeds=comparison.repeats >= MIN_SEEDS,
        above_zero=interval is not None and interval.low > 0,
        below_zero=interval is not None and interval.high < 0,
        below_worthwhile=interval is not None and interval.high < worthwhile.amount,
        hides_losses=_not_in_it(comparison)[1] > _not_in_it(comparison)[0],
        hides_gains=_not_in_it(comparison)[0] > _not_in_it(comparison)[1],
    )


def _not_in_it(comparison: Comparison) -> tuple[int, int]:
    """Return how many of the runs of A and of B are wrong without a difference to say so."""
    return (
        comparison.no_value_a + comparison.false_positive_a,
        comparison.no_value_b + comparison.false_positive_b,
    )


def _sentences(comparison: Comparison, reading: _Reading, worthwhile: Worthwhile, over: str) -> list[str]:
    """Say what the benefit is, how it stands to 0 and to what is worthwhile, and what stands in its way."""
    unit = "%" if worthwhile.percent else comparison.unit
    size = f"on {_counted(comparison.cases, 'case')} and {_counted(comparison.repeats, comparison.repeated)}"
    if reading.benefit is None and comparison.difference is not None:
        benefit = signed(comparison.difference * comparison.sign, comparison.unit)
        return [
            f"{comparison.title}: benefit of {comparison.arm_b} {over} {benefit} {size}, which is no share in "
            f"percent, since values are negative or all of {comparison.arm_a} are 0."
        ]
    if reading.benefit is None:
        return [f"{comparison.title}: no value {size} in both {comparison.arm_b} and {comparison.arm_a}."]
    said = f"{comparison.title}: benefit of {comparison.arm_b} {over} {signed(reading.benefit, unit)}"
    sentences: list[str] = []
    if reading.interval is None:
        sentences.append(f"{said} {size}, too few values for an interval.")
    else:
        ends = f"{signed(reading.interval.low, unit)} to {signed(reading.interval.high, unit)}"
        sentences.append(
            f"{said} ({100 * CONFIDENCE:.0f} % interval {ends}) {size}: {_standing(reading, worthwhile, unit)}."
        )
    if not reading.enough_seeds:
        sentences.append(f"Fewer than {MIN_SEEDS} {comparison.repeated}s decide nothing.")
    if reading.hides_losses or reading.hides_gains:
        a, b, c = comparison.arm_a, comparison.arm_b, comparison
        if c.no_value_a or c.no_value_b:
            missed = f"{c.no_value_b} by {b}, {c.no_value_a} by {a}"
            sentences.append(f"Missed, and so not in it: {missed}, of {c.runs} each.")
        if c.false_positive_a or c.false_positive_b:
            false = f"{c.false_positive_b} of {b}, {c.false_positive_a} of {a}"
            sentences.append(f"False positives, not in it unless both have one: {false}, of {c.runs} each.")
    return sentences


def _standing(reading: _Reading, worthwhile: Worthwhile, unit: str) -> str:
    wanted = signed(worthwhile.amount, unit)
    if reading.below_zero:
        return "worse"
    if reading.above_zero:
        return f"better, but by less than the worthwhile {wanted}" if reading.below_worthwhile else "better"
    if reading.below_worthwhile:
        return f"no difference shown, and less than the worthwhile {wanted}"
    return "no difference shown, and a worthwhile one not excluded"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def signed(value: float, unit: str, *limits: float) -> str:
    """Write a signed number with its unit for people, with as many decimals as the unit has use for.

    Args:
        value: the number.
        unit: its unit.
        limits: what it was held against; it has as many more decimals as it takes to be told from these.
    """
    decimals = DECIMALS.get(unit, 2)
    others = [limit for limit in limits if round(value - limit, MOST_DECIMALS) != 0]
    while decimals < MOST_DECIMALS and any(round(value, decimals) == round(other, decimals) for other in others):
        decimals += 1
    text = f"{value:+.{decimals}f}"
    if float(text) == 0:
        text = text[1:]
    return f"{text.replace('-', '−')} {unit}".rstrip()
