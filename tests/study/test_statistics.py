from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from metricunet.errors import InputError
from metricunet.evaluation.bootstrap import Resampling, crossed_bootstrap
from metricunet.evaluation.measures import DEFINITIONS
from metricunet.study.statistics import Comparison, FoldSeed, Scores, compare, primary_family

DICE, ASD = DEFINITIONS[0], DEFINITIONS[1]
NAN = math.nan


def scores(arm: str, values: ArrayLike, missed: NDArray[np.bool_] | None = None) -> Scores:
    array = np.array(values, dtype=float)
    seeds, cases = array.shape
    return Scores(arm, tuple(range(seeds)), tuple(f"c{i:03}" for i in range(cases)), array, missed)


def dice(a: ArrayLike, b: ArrayLike, draws: int = 200) -> Comparison:
    return compare(scores("a", a), scores("b", b), DICE, "higher", draws=draws)


def asd(a: ArrayLike, b: ArrayLike, draws: int = 200) -> Comparison:
    return compare(scores("a", a), scores("b", b), ASD, "lower", draws=draws)


def study(
    seeds: int = 3, cases: int = 30, effect: float = 0.01
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    generator = np.random.default_rng(5)
    a = 0.85 + 0.03 * generator.standard_normal((1, cases)) + 0.01 * generator.standard_normal((seeds, cases))
    return a, a + effect + 0.01 * generator.standard_normal((seeds, cases))


def test_numbers_of_a_complete_study_against_numpy_and_scipy() -> None:
    a, b = study()
    found = dice(a, b, draws=4000)
    assert (found.arm_a, found.arm_b, found.measure, found.title, found.unit) == ("a", "b", "dice", "Dice", "")
    assert (found.seeds, found.cases, found.runs, found.family) == ((0, 1, 2), 30, 90, "exploratory")
    assert (found.missed_a, found.missed_b, found.no_value_a, found.no_value_b) == (0, 0, 0, 0)
    assert found.mean_a == pytest.approx(a.mean())
    assert found.mean_b == pytest.approx(b.mean())
    assert found.difference == pytest.approx((b - a).mean())
    assert found.difference_of_seed == pytest.approx(tuple((b - a).mean(axis=1)))
    by_scipy = [stats.wilcoxon(row, method="exact").pvalue for row in b - a]
    assert found.p_of_seed == pytest.approx(tuple(by_scipy))
    d = (b - a).mean(axis=0)
    assert found.p == pytest.approx(stats.wilcoxon(d, method="exact").pvalue)
    assert found.d_z == pytest.approx(d.mean() / d.std(ddof=1))
    assert found.superiority == pytest.approx(np.mean(d > 0))
    ranks = stats.rankdata(np.abs(d))
    assert found.rank_biserial == pytest.approx(np.sum(np.sign(d) * ranks) / ranks.sum())
    assert found.relative_percent == pytest.approx(100 * (b.mean() / a.mean() - 1))
    assert found.interval is not None
    assert found.relative_interval_percent is not None
    assert found.interval.low < (b - a).mean() < found.interval.high
    assert found.relative_interval_percent.low == pytest.approx(100 * found.interval.low / a.mean(), rel=0.05)


def test_a_missed_organ_counts_as_zero_overlap() -> None:
    a, b = [[0.9, 0.8, 0.8]], [[0.9, 0.0, 0.9]]
    marks = np.array([[False, True, False]])
    found = compare(scores("a", a), scores("b", b, marks), DICE, "higher", draws=100)
    assert (found.missed_a, found.missed_b, found.no_value_b) == (0, 1, 0)
    assert found.difference == pytest.approx(-0.7 / 3)
    # Ranks 1 (tie), 2 (+0.1), 3 (the missed one).
    assert found.rank_biserial == pytest.approx((2 - 3) / 6)


def test_a_missed_organ_has_the_worst_rank_and_no_distance() -> None:
    a, b = [[5.0, 2.0, 1.0, 1.5]], [[1.0, 1.0, NAN, 1.4]]
    found = asd(a, b)
    assert (found.missed_a, found.missed_b, found.no_value_b, found.runs) == (0, 1, 1, 4)
    # Over n - missed: of each arm, and of both.
    assert found.mean_a == pytest.approx(9.5 / 4)
    assert found.mean_b == pytest.approx(3.4 / 3)
    assert found.difference == pytest.approx((-4 - 1 - 0.1) / 3)
    assert found.relative_percent == pytest.approx(100 * (3.4 / 8.5 - 1))
    # The improvements have ranks 1, 2, 3; the loss has 4, though 4 mm were gained elsewhere.
    assert found.rank_biserial == pytest.approx((1 + 2 + 3 - 4) / 10)
    assert found.superiority == pytest.approx(3 / 4)
    assert found.p_of_seed == pytest.approx((stats.wilcoxon([1, 2, 3, -4], method="exact").pvalue,))


def test_missed_by_both_is_a_tie() -> None:
    found = asd([[NAN, 2.0, 3.0]], [[NAN, 1.0, 1.0]])
    assert found.superiority == pytest.approx((0.5 + 1 + 1) / 3)
    assert found.rank_biserial == pytest.approx((2 + 3) / 6)
    assert found.difference == pytest.approx(-1.5)


def test_the_more_seeds_miss_a_case_the_worse_it_ranks() -> None:
    a = np.full((3, 4), 2.0)
    b = np.array([[NAN, NAN, 1.0, 1.0], [NAN, 1.0, 1.0, 1.9], [2.0, 1.0, 1.0, 1.9]])
    one, other = asd(a, b), asd(a[:, ::-1], b[:, ::-1])
    # Case 0 was missed by two seeds (rank 4), case 1 by one (3), though it gained in the others; 2 and 3 gained.
    assert one.rank_biserial == other.rank_biserial == pytest.approx((1 + 2 - 3 - 4) / 10)
    # Case 0 was missed by B in two seeds, case 1 by A in one.
    a, b = np.array([[2.0, NAN], [2.0, 2.0]]), np.array([[NAN, 2.0], [NAN, 2.0]])
    assert asd(a, b).rank_biserial == pytest.approx((1 - 2) / 3)


def test_missed_in_other_seeds_by_each_arm_is_a_tie_but_for_the_rest() -> None:
    a, b = np.array([[NAN, 2.0], [2.0, 2.0], [2.0, 2.0]]), np.array([[2.0, 2.0], [NAN, 2.0], [1.0, 2.0]])
    assert asd(a, b).superiority == pytest.approx((1 + 0.5) / 2)


def test_where_there_is_nothing_a_false_positive_ranks_below_an_empty_mask() -> None:
    """Case 0 does not hold the structure."""

    def of(arm: str, values: ArrayLike) -> Scores:
        return replace(scores(arm, values), empty=frozenset({"c000"}))

    a, b = of("a", [[NAN, 0.8, 0.8]]), of("b", [[0.0, 0.9, 0.8]])
    found = compare(a, b, DICE, "higher", draws=200)
    # Ranks 1 (tie), 2 (+0.1), 3 (the false positive).
    assert found.rank_biserial == pytest.approx((2 - 3) / 6)
    assert found.superiority == pytest.approx((0 + 1 + 0.5) / 3)
    assert found.p_of_seed == (found.p,)
    assert compare(b, a, DICE, "higher", draws=200).rank_biserial == pytest.approx((3 - 2) / 6)
    # It has no difference, and is counted beside it.
    assert found.difference == pytest.approx(0.05)
    assert (found.false_positive_a, found.false_positive_b) == (0, 1)
    assert (found.no_value_a, found.no_value_b) == (0, 0)
    both = compare(b, of("c", [[0.0, 0.9, 0.8]]), DICE, "higher", draws=200)
    assert (both.false_positive_a, both.false_positive_b, both.superiority) == (1, 1, 0.5)
    # A distance from nothing has nobody.
    apart = compare(of("a", [[NAN, 2.0]]), of("b", [[NAN, 2.0]]), ASD, "lower", draws=200)
    assert (apart.superiority, apart.no_value_a, apart.false_positive_b) == (0.5, 0, 0)


def test_nothing_found_by_both() -> None:
    found = asd([[NAN, NAN], [NAN, NAN]], [[1.0, 2.0], [1.0, NAN]])
    assert (found.mean_a, found.difference, found.interval, found.d_z) == (None, None, None, None)
    assert (found.relative_percent, found.relative_interval_percent) == (None, None)
    assert found.difference_of_seed == (None, None)
    assert found.superiority == 1.0
    json.dumps(found.to_json(), allow_nan=False)


def test_measures_that_can_be_negative_have_no_relative_difference() -> None:
    assert asd([[-1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0]]).relative_percent is None
    assert asd([[0.0, 0.0, 0.0]], [[1.0, 2.0, 3.0]]).relative_percent is None


def test_equal_arms() -> None:
    a, _ = study()
    found = dice(a, a)
    assert found.interval is not None
    assert (found.difference, found.interval.low, found.interval.high) == (0, 0, 0)
    assert (found.p, found.rank_biserial, found.superiority, found.d_z) == (1, 0, 0.5, None)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), missing=st.booleans())
def test_exchanged_arms_mirror_and_the_order_of_cases_and_seeds_is_nothing(seed: int, missing: bool) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.integers(1, 6, (2, 3, 12)).astype(float)
    if missing:
        a[generator.random(a.shape) < 0.1] = NAN
        b[generator.random(b.shape) < 0.1] = NAN
    plain, mirrored = asd(a, b), asd(b, a)
    assert plain.difference is not None
    assert plain.d_z is not None
    assert mirrored.difference == pytest.approx(-plain.difference)
    assert mirrored.p == pytest.approx(plain.p)
    assert mirrored.p_of_seed == pytest.approx(plain.p_of_seed)
    assert mirrored.rank_biserial == pytest.approx(-plain.rank_biserial)
    assert mirrored.superiority == pytest.approx(1 - plain.superiority)
    assert mirrored.d_z == pytest.approx(-plain.d_z)
    rows, columns = generator.permutation(3), generator.permutation(12)
    moved = asd(a[rows][:, columns], b[rows][:, columns])
    for name in ("mean_a", "mean_b", "difference", "relative_percent", "p", "rank_biserial", "superiority", "d_z"):
        assert getattr(moved, name) == pytest.approx(getattr(plain, name)), name


def test_lower_is_better_for_distances() -> None:
    a, b = study()
    higher = dice(a, b)
    lower = asd(a, b)
    assert higher.difference == lower.difference
    assert higher.rank_biserial == pytest.approx(-lower.rank_biserial)
    assert higher.d_z is not None
    assert lower.d_z == pytest.approx(-higher.d_z)
    assert lower.superiority == pytest.approx(1 - higher.superiority)
    assert (higher.sign, lower.sign) == (1, -1)


def test_arms_are_paired_by_name() -> None:
    a, b = study()
    first = Scores("a", (1, 2, 3), tuple(f"c{i}" for i in range(30)), a)
    columns = np.random.default_rng(0).permutation(30)
    second = Scores("b", (9, 3, 1), tuple(f"c{i}" for i in columns), b[[1, 2, 0]][:, columns])
    found = compare(first, second, DICE, "higher", draws=100)
    assert found.seeds == (1, 3)
    assert found.difference_of_seed == pytest.approx(tuple((b - a).mean(axis=1)[[0, 2]]))


def test_a_table_is_arranged_by_name() -> None:
    table = {(2, "b"): 4.0, (1, "a"): 1.0, (1, "b"): None, (2, "a"): 3.0}
    found = Scores.from_table("arm", table, frozenset({(2, "a")}))
    assert (found.seeds, found.cases) == ((1, 2), ("a", "b"))
    np.testing.assert_array_equal(found.values, [[1, NAN], [3, 4]])
    # What is said counts; else what has no value.
    assert (found.n_missed, found.n_without_value) == (1, 1)
    assert Scores.from_table("arm", table).n_missed == 1
    assert Scores.from_table("arm", table, frozenset()).n_missed == 0


def test_faults_are_named() -> None:
    ones = np.ones((2, 2))
    good = Scores("a", (0, 1), ("x", "y"), ones)
    with pytest.raises(InputError, match=r"and b \(seeds 5, 6\) have no seed in common"):
        compare(good, Scores("b", (5, 6), ("x", "y"), ones), DICE, "higher")
    with pytest.raises(InputError, match=r"arm b: has no case y, which arm a has \(1 such\)"):
        compare(good, Scores("b", (0, 1), ("x", "z"), ones), DICE, "higher")
    with pytest.raises(InputError, match=r"arm a: has no case z, which arm b has"):
        compare(good, Scores("b", (0, 1), ("x", "y", "z"), np.ones((2, 3))), DICE, "higher")
    with pytest.raises(InputError, match="seed 2 has no row of case a"):
        Scores.from_table("arm", {(1, "a"): 1.0, (1, "b"): 1.0, (2, "b"): 1.0})
    with pytest.raises(InputError, match=r"values of shape \(2, 2\), expected \(1, 2\)"):
        Scores("a", (0,), ("x", "y"), ones)
    with pytest.raises(InputError, match="least one of each"):
        Scores.from_table("arm", {})
    with pytest.raises(InputError, match="case x occurs twice"):
        Scores("a", (0, 1), ("x", "x"), ones)
    with pytest.raises(InputError, match="seed 1 occurs twice"):
        Scores("a", (1, 1), ("x", "y"), ones)
    with pytest.raises(InputError, match="a value is infinite"):
        Scores("a", (0, 1), ("x", "y"), ones * math.inf)
    with pytest.raises(InputError, match="marks of missed structures"):
        Scores("a", (0, 1), ("x", "y"), ones, np.zeros((1, 2), dtype=bool))


def test_the_primary_family_is_corrected_together() -> None:
    a, b = study()
    pair = [replace(dice(a, b), p=0.02), replace(asd(a, b), p=0.03)]
    first, second = primary_family(pair)
    assert (first.family, first.p_holm, second.p_holm) == ("primary", 0.04, 0.04)
    assert (first.p, pair[0].p_holm, pair[0].family) == (0.02, None, "exploratory")


def test_json_holds_every_field() -> None:
    a, b = study()
    (found,) = primary_family([dice(a, b)])
    read = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert set(read) == set(vars(found)) | {"runs"}
    assert found.interval is not None
    assert read["interval"] == [found.interval.low, found.interval.high]
    assert read["difference_of_seed"] == list(found.difference_of_seed)
    assert read["family"] == "primary"
    assert read["resampling"] == {"draws": 200, "seed": 0}


def test_one_case_and_one_seed() -> None:
    found = dice([[0.8]], [[0.9]])
    assert found.difference == pytest.approx(0.1)
    assert (found.interval, found.d_z, found.p) == (None, None, 1.0)


def test_replicates_are_paired_by_case_and_fold_as_in_a_plain_loop() -> None:
    generator = np.random.default_rng(3)
    cases = tuple(f"c{k}" for k in range(9))
    of_a, of_b = (tuple(FoldSeed(fold, 0) for fold in folds) for folds in ((0, 1, 2, 3), (3, 7, 2, 0)))
    a, b = (0.8 + 0.1 * generator.random((4, 9)) for _ in range(2))
    found = compare(Scores("a", of_a, cases, a), Scores("b", of_b, cases, b), DICE, "higher", draws=500)
    assert found.seeds == (FoldSeed(0, 0), FoldSeed(2, 0), FoldSeed(3, 0))
    assert (found.repeats, found.repeated, found.runs) == (3, "replicate", 27)
    by_run, by_case = [], [0.0] * 9
    for fold in (0, 2, 3):
        total = 0.0
        for case in range(9):
            gained = float(b[(3, 7, 2, 0).index(fold), case] - a[fold, case])
            total += gained
            by_case[case] += gained / 3
        by_run.append(total / 9)
    assert found.difference_of_seed == pytest.approx(by_run)
    assert found.difference == pytest.approx(sum(by_run) / 3)
    assert found.p == pytest.approx(stats.wilcoxon(by_case, method="exact").pvalue)
    read = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert read["seeds"][1] == {"fold": 2, "seed": 0}


def test_seeds_of_one_replicate_are_taken_together_in_intervals() -> None:
    """Else two seeds of each of three replicates would pass for six replicates."""
    a, b = study(seeds=6, cases=20)
    b = b + 0.02 * np.repeat([[-1.0], [0.0], [1.0]], 2, axis=0)
    cases = tuple(f"c{k:02}" for k in range(20))
    runs = tuple(FoldSeed(fold, seed) for fold in range(3) for seed in range(2))
    nested = compare(Scores("a", runs, cases, a), Scores("b", runs, cases, b), DICE, "higher", draws=500)
    assert (nested.repeats, len(nested.seeds)) == (3, 6)
    assert (nested.repeated, nested.training) == ("replicate", "run")
    sums = (b - a).reshape(3, 2, 20).sum(axis=1)
    wanted = crossed_bootstrap(sums, np.full((3, 20), 2.0), Resampling(500, 0)).interval
    assert nested.interval == wanted
    plain = dice(a, b, draws=500)
    assert plain.interval is not None
    assert nested.interval is not None
    assert nested.difference == plain.difference
    assert nested.interval.high - nested.interval.low > 1.3 * (plain.interval.high - plain.interval.low)
