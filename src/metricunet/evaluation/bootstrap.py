"""Confidence intervals of a mean over cases and seeds, both of which are samples.

Seeds cross cases: every seed's run is measured on the same cases. The bootstrap therefore draws seeds and cases
independently, with replacement, and takes each case drawn from each seed drawn, in both arms (the "pigeonhole"
bootstrap; Owen, Annals of Applied Statistics, 2007). Its percentiles have the shape of the estimate's
distribution, but not its width: of n seeds, the variance between them comes out too small by (n - 1) / n, and what
varies from run to run without belonging to a seed or to a case counts three times. In simulated studies of three
seeds, a plain 95 % interval held the truth in 75 % of those whose seeds differ much, and in 98 % of those whose
seeds do not. So the interval is stretched about the estimate, by t · error / (1.96 · standard deviation of the
draws), where

- error is the estimate's standard error from the variances of seeds, cases and the rest, by two-way analysis of
  variance with random effects, each of them at least 0;
- t is the 97.5th percentile of Student's distribution, with the degrees of freedom that Satterthwaite's formula
  gives the sum of the variances of seeds and cases (Biometrics, 1946).

It then holds the truth in 93 to 95 % of simulated studies of five seeds, in 92 to 97 % of those of three, and in
85 % at worst of those of two; with skewed distances of which 3 % are missing, in 93 %.

BCa intervals were left aside: their acceleration is defined for one sample, not for two crossed ones, and the mean
of a hundred differences has little bias or skewness to correct.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import special

from metricunet.errors import InputError
from metricunet.volume import FloatArray

#: Of every interval.
CONFIDENCE = 0.95
DRAWS = 10_000
#: Fewer have no 2.5th percentile.
MIN_DRAWS = 100
#: Draws that are made at once.
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
    """How often the bootstrap draws, and the seed of its generator: what it takes to repeat an interval.

    Raises:
        InputError: if it draws less than `MIN_DRAWS` times.
    """

    draws: int = DRAWS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.draws < MIN_DRAWS:
            raise InputError(f"{self.draws} draws of the bootstrap, expected {MIN_DRAWS} or more (usual: {DRAWS})")


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
    error, degrees_of_freedom = _standard_error(top, bottom)
    spread = float(drawn.std())
    stretch = (
        1.0 if spread == 0 else error * special.stdtrit(degrees_of_freedom, tail) / special.ndtri(tail) / spread
    )
    low, high = value + stretch * (np.quantile(drawn, [tail, 1 - tail]) - value)
    return Estimate(value, Interval(float(low), float(high)))


def draw_ratios(top: FloatArray, bottom: FloatArray, resampling: Resampling) -> FloatArray:
    """Return Σ top / Σ bottom of samples of the seeds and of the cases [draws]; NaN where Σ bottom is 0."""
    drawn = np.empty(resampling.draws)
    first = 0
    for of_seed, of_case in _samples(*top.shape, resampling):
        n = len(of_seed)
        above = np.einsum("nc,nc->n", of_seed @ top, of_case)
        below = np.einsum("nc,nc->n", of_seed @ bottom, of_case)
        drawn[first : first + n] = np.divide(above, below, out=np.full(n, np.nan), where=below > 0)
        first += n
    return drawn


@lru_cache(maxsize=2)
def _samples(seeds: int, cases: int, resampling: Resampling) -> tuple[tuple[FloatArray, FloatArray], ...]:
    """Return how often each seed [draws, seeds] and each case [draws, cases] is drawn, some draws at a time.

    A study asks for the same samples again and again: of the same seeds and cases, for each of its measures.
    """
    generator = np.random.default_rng(resampling.seed)
    parts = []
    for first in range(0, resampling.draws, DRAWS_AT_ONCE):
        n = min(DRAWS_AT_ONCE, resampling.draws - first)
        of_seed = generator.multinomial(seeds, np.full(seeds, 1 / seeds), n).astype(np.float64)
        of_case = generator.multinomial(cases, np.full(cases, 1 / cases), n).astype(np.float64)
        parts.append((of_seed, of_case))
    return tuple(parts)


def _standard_error(top: FloatArray, bottom: FloatArray) -> tuple[float, float]:
    """Return the standard error of Σ top / Σ bottom and its degrees of freedom, for new cases and new seeds."""
    seeds, cases = top.shape
    # What each cell adds to the ratio, to first order; the mean of all is 0.
    share = (top - top.sum() / bottom.sum() * bottom) / bottom.mean()
    of_case, of_seed = share.mean(axis=0), share.mean(axis=1)
    # Mean squares over the number of cells: each is the variance of the estimate from one source, and of the rest.
    by_cases = float(of_case.var(ddof=1)) / cases
    if seeds == 1:
        return math.sqrt(by_cases), cases - 1
    by_seeds = float(of_seed.var(ddof=1)) / seeds
    rest = float(np.square(share - of_case - of_seed[:, None]).sum()) / ((seeds - 1) * (cases - 1) * seeds * cases)
    variance = rest + max(0.0, by_seeds - rest) + max(0.0, by_cases - rest)
    squares = by_seeds**2 / (seeds - 1) + by_cases**2 / (cases - 1)
    return math.sqrt(variance), (by_seeds + by_cases) ** 2 / squares if squares > 0 else math.inf
