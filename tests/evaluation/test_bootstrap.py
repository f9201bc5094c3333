from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from metricunet.errors import InputError
from metricunet.evaluation.bootstrap import Interval, Resampling, crossed_bootstrap, draw_ratios
from metricunet.volume import FloatArray


def effects(generator: np.random.Generator, seeds: int, cases: int, of_seed: float, of_both: float) -> FloatArray:
    """Differences [seeds, cases] around 0: a part of the seed, of the case (0.02), and of both."""
    return np.asarray(
        of_seed * generator.standard_normal((seeds, 1))
        + 0.02 * generator.standard_normal((1, cases))
        + of_both * generator.standard_normal((seeds, cases))
    )


def test_draws_against_plain_loops() -> None:
    generator = np.random.default_rng(0)
    top, bottom = generator.normal(1, 1, (4, 6)), generator.uniform(0.5, 2, (4, 6))
    drawn = draw_ratios(top, bottom, Resampling(8000, 1))
    plain = []
    for _ in range(8000):
        seeds, cases = generator.integers(0, 4, 4), generator.integers(0, 6, 6)
        above = sum(top[s, c] for s in seeds for c in cases)
        plain.append(above / sum(bottom[s, c] for s in seeds for c in cases))
    assert stats.ks_2samp(drawn, plain).pvalue > 0.001
    assert drawn.mean() == pytest.approx(np.mean(plain), abs=0.03)
    assert drawn.std() == pytest.approx(np.std(plain), rel=0.05)


@pytest.mark.parametrize(
    ("seeds", "of_seed", "of_both"),
    [(1, 0.0, 0.0), (5, 0.0, 0.0), (5, 0.004, 0.01), (5, 0.02, 0.03), (3, 0.004, 0.03)],
)
def test_intervals_hold_the_truth_as_often_as_they_say(seeds: int, of_seed: float, of_both: float) -> None:
    generator = np.random.default_rng(11)
    held = 0
    for study in range(300):
        d = effects(generator, seeds, 40, of_seed, of_both)
        interval = crossed_bootstrap(d, np.ones_like(d), Resampling(1000, study)).interval
        assert interval is not None
        held += interval.low <= 0 <= interval.high
    assert 0.90 <= held / 300 <= 0.98


def test_one_seed_and_many_cases_give_students_interval() -> None:
    d = np.random.default_rng(4).normal(0.3, 1, (1, 200))
    interval = crossed_bootstrap(d, np.ones_like(d), Resampling(20_000)).interval
    assert interval is not None
    low, high = stats.t.interval(0.95, 199, d.mean(), stats.sem(d[0]))
    assert interval.low == pytest.approx(low, abs=0.01)
    assert interval.high == pytest.approx(high, abs=0.01)


def test_few_cases_of_one_seed_widen_it_too() -> None:
    d = np.array([[-2.0, -1.0, 1.0, 2.0]])
    interval = crossed_bootstrap(d, np.ones_like(d), Resampling()).interval
    assert interval is not None
    # Three degrees of freedom: 3.18 standard errors.
    assert interval.high - interval.low == pytest.approx(2 * 3.182 * stats.sem(d[0]), rel=0.05)


def test_the_width_is_that_of_an_analysis_of_variance() -> None:
    # By hand: effects of seeds -1 0 1, of cases -2 2, and a rest that sums to 0 along both.
    of_seed, of_case = np.array([[-1.0], [0.0], [1.0]]), np.array([[-2.0, 2.0]])
    rest = np.array([[0.3, -0.3], [0.0, 0.0], [-0.3, 0.3]])
    d = of_seed + of_case + rest
    # Mean squares: seeds 2 * 2 / 2, cases 3 * 8 / 1, rest 4 * 0.09 / 2; their sum less one rest, over 6 cells.
    by_seed, by_case, by_rest = 2.0, 24.0, 0.18
    error = np.sqrt((by_seed + by_case - by_rest) / 6)
    freedom = (by_seed + by_case) ** 2 / (by_seed**2 / 2 + by_case**2 / 1)
    resampling = Resampling(4000)
    interval = crossed_bootstrap(d, np.ones_like(d), resampling).interval
    drawn = draw_ratios(d, np.ones_like(d), resampling)
    ends = np.quantile(drawn, [0.025, 0.975]) * error / drawn.std() * stats.t.ppf(0.975, freedom) / 1.95996
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx(tuple(ends), rel=1e-4)


def test_few_seeds_widen_the_interval_as_student_says() -> None:
    # Five seeds that differ, cases that do not: t of four degrees of freedom, 2.78 standard errors.
    of_seed = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    d = np.repeat(of_seed[:, None], 100, axis=1)
    interval = crossed_bootstrap(d, np.ones_like(d), Resampling()).interval
    assert interval is not None
    assert interval.high - interval.low == pytest.approx(2 * 2.776 * of_seed.std(ddof=1) / np.sqrt(5), rel=0.1)


def test_an_interval_can_be_repeated() -> None:
    d = effects(np.random.default_rng(0), 3, 20, 0.01, 0.01)
    a, b, c = (crossed_bootstrap(d, np.ones_like(d), Resampling(500, seed)) for seed in (7, 7, 8))
    assert a == b != c
    assert a.value == c.value == pytest.approx(d.mean())


def test_signs_and_units() -> None:
    d = effects(np.random.default_rng(0), 3, 20, 0.01, 0.01)
    plain = crossed_bootstrap(d, np.ones_like(d), Resampling(2000)).interval
    mirrored = crossed_bootstrap(-10 * d, np.ones_like(d), Resampling(2000)).interval
    assert plain is not None
    assert mirrored is not None
    assert mirrored.low == pytest.approx(plain.scaled(-10).low)
    assert mirrored.high == pytest.approx(plain.scaled(-10).high)
    assert Interval(1, 2).scaled(-10) == Interval(-20, -10)


def test_equal_differences_have_a_point_for_an_interval() -> None:
    estimate = crossed_bootstrap(np.full((3, 8), 0.5), np.ones((3, 8)), Resampling(100))
    assert estimate.value == pytest.approx(0.5)
    assert estimate.interval is not None
    assert (estimate.interval.low, estimate.interval.high) == pytest.approx((0.5, 0.5))


def test_where_there_is_no_interval() -> None:
    assert crossed_bootstrap(np.ones((3, 1)), np.ones((3, 1)), Resampling(100)).interval is None
    # All but one of four cells are empty: many draws hold nothing.
    bottom = np.array([[1.0, 0], [0, 0]])
    assert crossed_bootstrap(bottom * 2, bottom, Resampling(100)).interval is None


def test_too_few_draws_are_refused() -> None:
    with pytest.raises(InputError, match="99 draws of the bootstrap, expected 100 or more"):
        Resampling(99)
