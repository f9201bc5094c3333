"""Verdicts: what a comparison says of a claim that arm B is better than arm A, and why.

The claim is about B's own idea (here: tuples of voxels). B can also win because of what comes with the idea (more
weight on hard voxels, say); a control arm has that and not the idea. So two comparisons are judged together: B
against A, the arm to beat, and B against the control. *Benefit* is the difference, counted positive where B is
better; *worthwhile* is the smallest benefit that somebody would change a method for, fixed before the study.

**supported**: all of these hold.

1. The interval of the benefit over A lies above 0.
2. The benefit is above 0 in every single seed, so that it does not hang on a lucky one.
3. The interval of the benefit over the control lies above 0.
4. Both comparisons have at least `MIN_SEEDS` seeds; and where a missed structure has no value, B missed no more
   of them than the other arm, since the interval is over what both found.

**not supported**: not all of them hold, and at least one comparison *shows* that the claim's benefit is not there.

1. The interval of the benefit over A lies below 0 (B is worse), or below what is worthwhile (if B is better, then
   by too little to matter).
2. The same of the benefit over the control: the control does as well.

Only a comparison with at least `MIN_SEEDS` seeds can show that; and where a missed structure has no value, only
one in which B missed at least as many as the other arm, since those that the other arm alone missed speak for B.

**not decided**: anything else. That an interval holds 0 is no evidence against a claim, if it also holds a
worthwhile benefit: then the study was too small. Without a control a claim cannot be supported.

An interval above 0 and below the worthwhile benefit supports the claim that B is better; that it is by little is
said in the reasons. A claim with several measures needs all of them (`join`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from metricunet.study.intervals import CONFIDENCE, Interval
from metricunet.study.statistics import Comparison

Finding = Literal["supported", "not supported", "not decided"]

#: With fewer, "one sign in all seeds" is chance (0.5 with two), and the interval knows little of seeds.
MIN_SEEDS = 3
#: Decimals of a number for people, by its unit.
DECIMALS = {"": 4, "mm": 3, "%": 1}


@dataclass(frozen=True)
class Worthwhile:
    """The smallest benefit that matters.

    Attributes:
        amount: not below 0; 0 if every benefit matters.
        percent: whether it is a share of the other arm's mean, in percent, or in the measure's unit.
    """

    amount: float
    percent: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.amount) or self.amount < 0:
            raise ValueError(f"a worthwhile benefit is a number from 0 up; got {self.amount}")


@dataclass(frozen=True)
class Verdict:
    """What is concluded of a claim.

    Attributes:
        claim: in words.
        finding: see the top of this module.
        data: what the study ran on.
        reasons: sentences with the numbers.
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
        claim: in words, without a full stop.
        main: B against the arm to beat.
        control: B against the control; None if there is none.
        worthwhile: the smallest benefit that matters, over A and over the control.
        data: what the study ran on, as it goes on after "supported on".

    Raises:
        ValueError: if the comparisons are of different measures, or of different arms B.
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
        f"{main.arm_b} is better in {good_seeds} of {_counted(len(main.seeds), 'seed')}.",
    ]
    if control is None or over_control is None:
        reasons.append("No comparison with a control: without one a benefit cannot be put down to the claim.")
    else:
        reasons += _sentences(control, over_control, worthwhile, f"over the control {control.arm_a}")
    return Verdict(claim, finding, data, tuple(reasons))


def join(claim: str, verdicts: Sequence[Verdict]) -> Verdict:
    """Judge a claim by its verdicts in several measures.

    Supported if it is so in all of them, not supported if that is so in any, else not decided.

    Args:
        claim: in words, without a full stop.
        verdicts: one at least, all on the same data.

    Raises:
        ValueError: if there are none, or they are on different data.
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


def _read(comparison: Comparison, worthwhile: Worthwhile) -> _Reading:
    found = comparison.relative_interval_percent if worthwhile.percent else comparison.interval
    value = comparison.relative_percent if worthwhile.percent else comparison.difference
    interval = None if found is None else found.scaled(comparison.sign)
    return _Reading(
        benefit=None if value is None else value * comparison.sign,
        interval=interval,
        enough_seeds=len(comparison.seeds) >= MIN_SEEDS,
        above_zero=interval is not None and interval.low > 0,
        below_zero=interval is not None and interval.high < 0,
        below_worthwhile=interval is not None and interval.high < worthwhile.amount,
        hides_losses=comparison.no_value_b > comparison.no_value_a,
        hides_gains=comparison.no_value_a > comparison.no_value_b,
    )


def _sentences(comparison: Comparison, reading: _Reading, worthwhile: Worthwhile, over: str) -> list[str]:
    """Say what the benefit is, how it stands to 0 and to what is worthwhile, and what stands in its way."""
    unit = "%" if worthwhile.percent else comparison.unit
    size = f"on {_counted(comparison.cases, 'case')} and {_counted(len(comparison.seeds), 'seed')}"
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
        sentences.append(f"Fewer than {MIN_SEEDS} seeds decide nothing.")
    if reading.hides_losses or reading.hides_gains:
        sentences.append(
            f"Missed, and so not in it: {comparison.no_value_b} by {comparison.arm_b}, {comparison.no_value_a} by "
            f"{comparison.arm_a}, of {comparison.runs} each."
        )
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


def signed(value: float, unit: str) -> str:
    """Write a signed number with its unit for people, with as many decimals as the unit has use for."""
    text = f"{value:+.{DECIMALS.get(unit, 2)}f}"
    if float(text) == 0:
        text = text[1:]
    return f"{text.replace('-', '−')} {unit}".rstrip()
