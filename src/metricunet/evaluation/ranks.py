"""Rank statistics of paired differences, and the correction for several tests. They ask little of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metricunet.volume import FloatArray

#: Up to this many cases the signed-rank test is exact; its time grows with the cube.
EXACT_UP_TO = 500
#: Differences that agree to this many decimals are equal: their sums differ in the last bits.
TIE_DECIMALS = 12


@dataclass(frozen=True)
class SignedRank:
    """Wilcoxon's signed-rank test.

    Attributes:
        p: two-sided.
        rank_biserial: matched-pairs rank-biserial correlation, (W+ - W-) / (sum of all ranks): 1 where every
            difference is positive, -1 where every one is negative. Ties pull it to 0.
    """

    p: float
    rank_biserial: float


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Correct p values for being several, by the step-down method of Holm (Scand J Stat, 1979).

    The k-th smallest of n is multiplied by n + 1 - k, is at least the one before it, and at most 1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    raised = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    corrected = np.empty_like(p)
    corrected[order] = raised
    return tuple(float(value) for value in corrected)


def signed_rank(differences: FloatArray) -> SignedRank:
    """Test with Wilcoxon's signed ranks whether paired differences lie around 0; two-sided.

    Zeros are ranked with the others and their ranks then dropped (Pratt, JASA 1959; scipy's `pratt`). The usual
    way, dropping zeros before ranking, throws cases away in which the arms do equally well, and by it a result can
    become *more* significant when a difference moves against it. Equal sizes share their mean rank.

    Up to `EXACT_UP_TO` differences p is exact: the share of all assignments of signs to these ranks, ties and
    zeros as they are, whose W+ is as far out as the one found. Beyond, it is the normal approximation with these
    ranks' own variance.

    Args:
        differences: finite [cases].
    """
    differences = _without_rounding(differences)
    doubled = _doubled_ranks(np.abs(differences))
    all_ranks = int(doubled.sum())
    plus, minus = int(doubled[differences > 0].sum()), int(doubled[differences < 0].sum())
    signed = doubled[differences != 0]
    if not signed.size:
        return SignedRank(1.0, 0.0)
    if len(differences) <= EXACT_UP_TO:
        p = min(1.0, 2 * float(_null_distribution(signed)[: min(plus, minus) + 1].sum()))
    else:
        p = math.erfc(abs(plus - minus) / math.sqrt(2 * float(np.square(signed.astype(np.float64)).sum())))
    return SignedRank(p, (plus - minus) / all_ranks)


def superiority(differences: FloatArray) -> float:
    """Return the share of paired differences above 0, zeros counting half.

    Args:
        differences: finite [cases].
    """
    differences = _without_rounding(differences)
    return float(np.mean((differences > 0) + 0.5 * (differences == 0)))


def _doubled_ranks(sizes: FloatArray) -> NDArray[np.int64]:
    """Return twice the mean rank of each size [cases], a whole number."""
    _, inverse, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    doubled: NDArray[np.int64] = (2 * np.cumsum(counts) - counts + 1)[inverse]
    return doubled


def _null_distribution(ranks: NDArray[np.int64]) -> FloatArray:
    """Return the probability of each sum [0 ... Σ ranks] of the ranks that fair coins choose."""
    probability = np.ones(1)
    for rank in ranks:
        longer = np.zeros(len(probability) + int(rank))
        longer[: len(probability)] = probability / 2
        longer[int(rank) :] += probability / 2
        probability = longer
    return probability


def _without_rounding(differences: FloatArray) -> FloatArray:
    return np.asarray(np.round(differences, TIE_DECIMALS), dtype=np.float64)
