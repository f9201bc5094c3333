"""Confidence intervals of a mean over cases and seeds, both of which are samples.

Seeds cross cases: every seed's run is measured on the same cases. The bootstrap therefore draws seeds and cases
independently, with replacement, and takes each case drawn from each seed drawn, in both arms (the "pigeonhole"
bootstrap; Owen, Annals of Applied Statistics, 2007). Two things are added, because a study has few seeds and the
plain bootstrap's interval of few is too narrow: in simulated studies whose seeds differ as much as their cases do,
a plain 95 % interval held the truth in 88 % of those with five seeds, and in 75 % of those with three.

- n - 1 of n seeds, and of n cases, are drawn, which makes the spread of the draws that of the estimate, where n
  would make it too small by (n - 1) / n (Rao and Wu, JASA 1988);
- the interval is stretched about the estimate by t / 1.96, t being the quantile of Student's distribution with the
  degrees of freedom that Satterthwaite's formula gives the sum of both variances (Biometrics, 1946).

So it holds the truth in 93 to 99 % of simulated studies of five seeds, the more the less seeds matter, in 91 to
99 % of those of three, and in 88 % at worst of those of two. Its ends are percentiles, not mean ± t · error, so
that a skewed measure has a skewed interval. BCa intervals were left aside: their acceleration is defined for one
sample, not for two crossed ones, and the mean of a hundred differences has little bias or skewness to correct.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from metricunet.volume import FloatArray

#: Of every interval.
CONFIDENCE = 0.95
DRAWS = 10_000
#: Draws that are held at once.
DRAWS_AT_ONCE = 1000


@dataclass(frozen=True)
class Interval:
    """Both ends of a confidence interval."""

    low: float
    high: float

    def scaled(self, factor: float) -> Interval:
        """Multiply by a factor; a negative one swaps the ends."""
        ends = sorted((self.low * factor, self.high * factor))
        return Interval(ends[0], ends[1])


@dataclass(frozen=True)
class Resampling:
    """How often the bootstrap draws, and the seed of its generator: what it takes to repeat an interval."""

    draws: int = DRAWS
    seed: int = 0


@dataclass(frozen=True)
class Estimate:
    """A value and its interval; None with fewer than two cases, or where some draws held nothing to divide by."""

    value: float
    interval: Interval | None


def crossed_bootstrap(top: FloatArray, bottom: FloatArray, resampling: Resampling) -> Estimate:
    """Estimate Σ top / Σ bottom, with an interval for new cases and new seeds.

    A mean of d over the cells that have one is the ratio of d (0 where there is none) and of ones (0 there, too).
    One seed cannot say how seeds differ: its interval is for new cases alone.

    Args:
        top: [seeds, cases], finite.
        bottom: [seeds, cases], finite, none below 0, and not all of them 0.
        resampling: draws and seed.
    """
    value = float(top.sum() / bottom.sum())
    if top.shape[1] < 2:
        return Estimate(value, None)
    drawn = draw_ratios(top, bottom, resampling)
    if not np.isfinite(drawn).all():
        return Estimate(value, None)
    tail = (1 - CONFIDENCE) / 2
    ends = np.quantile(drawn, [tail, 1 - tail])
    stretch = -special.stdtrit(_degrees_of_freedom(top, bottom), tail) / special.ndtri(1 - tail)
    low, high = value + stretch * (ends - value)
    return Estimate(value, Interval(float(low), float(high)))


def draw_ratios(top: FloatArray, bottom: FloatArray, resampling: Resampling) -> FloatArray:
    """Return Σ top / Σ bottom of samples of the seeds and of the cases [draws]; NaN where Σ bottom is 0."""
    seeds, cases = top.shape
    generator = np.random.default_rng(resampling.seed)
    drawn = np.empty(resampling.draws)
    for first in range(0, resampling.draws, DRAWS_AT_ONCE):
        n = min(DRAWS_AT_ONCE, resampling.draws - first)
        # How often each seed and each case is drawn [n, seeds], [n, cases].
        of_seed = generator.multinomial(max(seeds - 1, 1), np.full(seeds, 1 / seeds), n).astype(np.float64)
        of_case = generator.multinomial(cases - 1, np.full(cases, 1 / cases), n).astype(np.float64)
        above = np.einsum("nc,nc->n", of_seed @ top, of_case)
        below = np.einsum("nc,nc->n", of_seed @ bottom, of_case)
        drawn[first : first + n] = np.divide(above, below, out=np.full(n, np.nan), where=below > 0)
    return drawn


def _degrees_of_freedom(top: FloatArray, bottom: FloatArray) -> float:
    """Return Satterthwaite's degrees of freedom of the estimate's variance; infinite where nothing varies."""
    seeds, cases = top.shape
    # What each cell adds to the ratio, to first order: its mean is 0.
    share = (top - top.sum() / bottom.sum() * bottom) / bottom.mean()
    of_cases = float(share.mean(axis=0).var(ddof=1)) / cases
    of_seeds = float(share.mean(axis=1).var(ddof=1)) / seeds if seeds > 1 else 0.0
    squares = of_cases**2 / (cases - 1) + (of_seeds**2 / (seeds - 1) if seeds > 1 else 0.0)
    return (of_cases + of_seeds) ** 2 / squares if squares > 0 else float("inf")
