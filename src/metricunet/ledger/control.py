"""Control charts: whether what reviewers change drifts away from a stated baseline.

A chart of shares (p-chart) counts, in each group of n cases, the share p of a kind. Its limits are
p0 ± 3 √(p0 (1 - p0) / n), with p0 the share of the baseline, cut to 0 and 1 (NIST/SEMATECH e-Handbook of
Statistical Methods, 6.3.3.2).

A chart of the exponentially weighted moving average (EWMA) follows one value for each case:
z_t = λ x_t + (1 - λ) z_(t-1), from z_0, the mean of the baseline. Its limits are
z_0 ± L s √(λ / (2 - λ) · (1 - (1 - λ)^(2t))), with s the standard deviation of the baseline; t counts the cases
after it (the same handbook, 6.3.2.4, which states them for large t). λ = 0.1 with L = 2.814 gives, for values with
a normal distribution and known mean and spread, one false alarm in 500 cases (Lucas and Saccucci, Technometrics
1990).
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

#: Cases of a group of the chart of shares.
GROUP = 20
#: Cases that the limits are made from, the first ones.
BASELINE = 40
#: Fewer than this make no limits.
LEAST_BASELINE = 10
SIGMAS = 3.0
#: λ and L of the moving average.
WEIGHT, WIDTH = 0.1, 2.814
#: Why such a baseline has no limits: they would lie on its mean, and the first case that differs beyond them.
ALL_ALIKE = "the first {} cases are all alike, so they say nothing of the usual spread"


@dataclass(frozen=True)
class ChartPoint:
    """One point of a chart.

    Attributes:
        label: of its last case, such as a date.
        value: the share, or the moving average.
        lower: the limits there; None where there are none.
        upper: likewise.
        cases: how many cases came in since the point before.
        in_baseline: whether it is of the cases that the limits were made from, which are not judged.
    """

    label: str
    value: float
    lower: float | None
    upper: float | None
    cases: int
    in_baseline: bool

    @property
    def is_outside(self) -> bool:
        """Whether it lies outside the limits and is none of the baseline's."""
        if self.in_baseline or self.lower is None or self.upper is None:
            return False
        return not self.lower <= self.value <= self.upper


@dataclass(frozen=True)
class ControlChart:
    """A chart with its limits.

    Attributes:
        points: in the order of time.
        centre: mean of the baseline; None where there are no limits.
        baseline: number of cases that the limits were made from.
        problem: why there are no limits; empty where there are.
    """

    points: tuple[ChartPoint, ...]
    centre: float | None
    baseline: int
    problem: str = ""

    @property
    def first_outside(self) -> ChartPoint | None:
        """The first point outside the limits."""
        return next((point for point in self.points if point.is_outside), None)

    @property
    def is_outside_now(self) -> bool:
        """Whether the last point lies outside the limits."""
        return bool(self.points) and self.points[-1].is_outside


def share_chart(
    hits: Sequence[bool], labels: Sequence[str], *, group: int = GROUP, baseline: int = BASELINE
) -> ControlChart:
    """Chart the share of hits in groups of consecutive cases. After the baseline the groups begin anew.

    The last group of the baseline and the last of all may have fewer cases; limits of fewer are wider. A baseline
    of which all cases are hits, or none is, has no limits.

    Args:
        hits: whether each case is of the kind, in the order of time.
        labels: of the cases.
        group: cases of a group.
        baseline: cases that the limits are made from.
    """
    problem = _too_few(len(hits), baseline)
    if not problem and len(set(hits[:baseline])) == 1:
        problem = ALL_ALIKE.format(baseline)
    known = 0 if problem else baseline
    centre = None if problem else sum(hits[:known]) / known
    starts = [*range(0, known, group), *range(known, len(hits), group)]
    points = []
    for start, end in itertools.pairwise([*starts, len(hits)]):
        part = hits[start:end]
        lower = upper = None
        if centre is not None:
            reach = SIGMAS * math.sqrt(centre * (1 - centre) / len(part))
            lower, upper = max(0.0, centre - reach), min(1.0, centre + reach)
        points.append(ChartPoint(labels[end - 1], sum(part) / len(part), lower, upper, len(part), start < known))
    return ControlChart(tuple(points), centre, known, problem)


def average_chart(
    values: Sequence[float],
    labels: Sequence[str],
    *,
    baseline: int = BASELINE,
    weight: float = WEIGHT,
    width: float = WIDTH,
) -> ControlChart:
    """Chart the exponentially weighted moving average of values. After the baseline it begins anew at its mean.

    Args:
        values: one for each case, in the order of time.
        labels: of the cases.
        baseline: cases that the limits are made from.
        weight: λ, of the newest value.
        width: L, of the limits in standard deviations.
    """
    problem = _too_few(len(values), baseline)
    centre = spread = None
    if not problem:
        centre, spread = statistics.fmean(values[:baseline]), statistics.stdev(values[:baseline])
        if spread == 0:
            problem = ALL_ALIKE.format(baseline)
    average = centre if centre is not None else (values[0] if values else 0.0)
    points = []
    for k, (value, label) in enumerate(zip(values, labels, strict=True)):
        if k == baseline and centre is not None:
            average = centre
        average = weight * value + (1 - weight) * average
        lower = upper = None
        if not problem and centre is not None and spread is not None and k >= baseline:
            t = k - baseline + 1
            reach = width * spread * math.sqrt(weight / (2 - weight) * (1 - (1 - weight) ** (2 * t)))
            lower, upper = centre - reach, centre + reach
        points.append(ChartPoint(label, average, lower, upper, 1, not problem and k < baseline))
    return ControlChart(tuple(points), None if problem else centre, 0 if problem else baseline, problem)


def _too_few(cases: int, baseline: int) -> str:
    if baseline < LEAST_BASELINE:
        return f"a baseline of {baseline} cases says too little; at least {LEAST_BASELINE} are needed"
    if cases < baseline:
        return f"{cases} of the {baseline} cases that the limits are made from have been decided so far"
    return ""
