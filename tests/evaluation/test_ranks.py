from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from metricunet.evaluation.ranks import EXACT_UP_TO, holm, signed_rank, superiority

#: Whole numbers, so that ties and zeros are frequent.
FEW = st.lists(st.integers(-4, 4), min_size=1, max_size=9)


def test_signed_ranks_by_hand() -> None:
    # Ranks 1 2 3 4 5 of which 2 is negative: W- = 2. Sums up to 2 of signs: {}, {1}, {2}: p = 2 * 3 / 32.
    result = signed_rank(np.array([1.0, -2.0, 3.0, 4.0, 5.0]))
    assert result.p == pytest.approx(6 / 32)
    assert result.rank_biserial == pytest.approx((13 - 2) / 15)


def test_zeros_take_the_lowest_ranks_by_hand() -> None:
    # Two zeros share ranks 1 and 2; -1 has rank 3, 2 and 5 have 4 and 5. W- = 3 of sums {}, 3 (4, 5 are more).
    result = signed_rank(np.array([0.0, -1.0, 2.0, 0.0, 5.0]))
    assert result.p == pytest.approx(2 * 2 / 8)
    assert result.rank_biserial == pytest.approx((4 + 5 - 3) / 15)


@pytest.mark.parametrize("n", [6, 20, 50])
def test_exact_p_against_scipy(n: int) -> None:
    for seed in range(5):
        d = np.random.default_rng(seed).normal(0.3, 1, n)
        assert signed_rank(d).p == pytest.approx(stats.wilcoxon(d, method="exact").pvalue, rel=1e-9)


def every_sign(differences: Sequence[int]) -> float:
    """Pratt's test by trying all signs, with scipy's ranks."""
    d = np.array(differences, dtype=float)
    ranks = stats.rankdata(np.abs(d))
    observed = abs(np.sum(np.sign(d) * ranks))
    kept = ranks[d != 0]
    sums = [abs(np.dot(signs, kept)) for signs in itertools.product((-1, 1), repeat=len(kept))]
    return float(np.mean(np.array(sums) >= observed - 1e-9))


@given(differences=FEW)
def test_exact_p_with_ties_and_zeros_against_all_signs(differences: list[int]) -> None:
    assert signed_rank(np.array(differences, dtype=float)).p == pytest.approx(every_sign(differences))


def test_many_cases_against_scipys_approximation() -> None:
    d = np.round(np.random.default_rng(1).normal(0.1, 1, EXACT_UP_TO + 100), 1)
    assert (d == 0).any()
    expected = stats.wilcoxon(d, zero_method="pratt", correction=False, method="approx").pvalue
    assert signed_rank(d).p == pytest.approx(expected, rel=1e-6)


def test_exact_and_approximate_p_meet() -> None:
    d = np.random.default_rng(2).normal(0.1, 1, EXACT_UP_TO)
    approximate = stats.wilcoxon(d, correction=True, method="approx").pvalue
    assert signed_rank(d).p == pytest.approx(approximate, rel=0.02)


def test_no_difference_at_all() -> None:
    result = signed_rank(np.zeros(7))
    assert (result.p, result.rank_biserial, superiority(np.zeros(7))) == (1.0, 0.0, 0.5)


def test_differences_that_rounding_made_unequal_are_ties() -> None:
    assert signed_rank(np.array([0.3 - 0.2, 0.2 - 0.1, -0.1])).p == signed_rank(np.array([1.0, 1.0, -1.0])).p


def test_superiority_by_hand() -> None:
    assert superiority(np.array([1.0, 2.0, 0.0, -5.0])) == pytest.approx(2.5 / 4)


@given(differences=FEW, order=st.randoms(use_true_random=False))
def test_order_does_not_matter_and_signs_mirror(differences: list[int], order: object) -> None:
    shuffled = list(differences)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    a, b, c = (signed_rank(np.array(d, dtype=float)) for d in (differences, shuffled, [-d for d in differences]))
    assert a == b
    assert (c.p, c.rank_biserial) == (a.p, -a.rank_biserial)
    assert superiority(-np.array(differences, dtype=float)) == pytest.approx(
        1 - superiority(np.array(differences, dtype=float))
    )


@given(differences=FEW, factor=st.sampled_from([0.5, 3.0, 100.0]))
def test_only_ranks_count(differences: list[int], factor: float) -> None:
    d = np.array(differences, dtype=float)
    assert signed_rank(np.sign(d) * np.abs(d * factor) ** 3) == signed_rank(d)


def test_pratts_ranks_do_not_reward_a_move_against_the_finding() -> None:
    # Pratt's paradox: dropping zeros first, a difference that falls to 0 can lower p.
    before = np.array([-1.0, 2, 3, 4, 5, 6, 7])
    after = np.array([-1.0, 0, 3, 4, 5, 6, 7])
    assert signed_rank(after).p >= signed_rank(before).p


def test_holm_by_hand() -> None:
    # Sorted 0.01 0.02 0.03 0.9: times 4, 3, 2, 1 = 0.04 0.06 0.06 0.9.
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx((0.06, 0.04, 0.9, 0.06))
    assert holm([0.7, 0.6]) == pytest.approx((1.0, 1.0))
    assert holm([0.2]) == pytest.approx((0.2,))
    assert holm([]) == ()


@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_none_and_bonferroni(p: list[float]) -> None:
    corrected = holm(p)
    for raw, adjusted in zip(p, corrected, strict=True):
        assert raw <= adjusted <= min(1.0, len(p) * raw) + 1e-15
    # The step-down procedure itself: reject in order while p_(k) <= alpha / (n - k).
    alpha, order = 0.05, np.argsort(p, kind="stable")
    rejected: set[int] = set()
    for k, index in enumerate(order):
        if p[index] * (len(p) - k) > alpha:
            break
        rejected.add(int(index))
    assert {i for i, value in enumerate(corrected) if value <= alpha} == rejected
