"""Statistics of a paired comparison: two arms, the same cases, the same seeds.

A run is one seed of one arm; it gives every case a value. Arm B is held against arm A case by case and seed by
seed, so what is hard about a case, and what a seed's initialisation brings, cancels. Differences are B minus A.

**Replicates.** Where each fold scores the same cases, as the replicates of a study on few contours do, a run is a
fold and a seed of one arm, and what is said of seeds goes for these. Intervals are for new folds then: the runs of
one fold, which share their training cases, are taken together.

**Missed structures count.** The overlap of a missed structure is 0. A distance it does not have: its value is NaN,
and a case without a value in only one arm is that arm's worst in every rank (p, rank-biserial correlation,
superiority); without one in both, it is a tie. Means, differences and intervals of distances are over what was
found, n - missed (for differences: found by both arms), and the counts stand beside them: read them together.

**Where there is nothing to find.** If the reference does not hold the structure, an empty mask is right and has no
overlap, and a false positive has the overlap 0. There, no value is the best there is in every rank. It has no
difference, so false positives, too, are counted beside the means. Cases in which nobody contoured the structure
are no cases of it.

**Primary and exploratory.** A comparison is exploratory, its p values uncorrected, unless it went through
`primary_family`, which corrects the family's p values by Holm's method.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from metricunet.cohort.splits import Fold
from metricunet.errors import InputError
from metricunet.evaluation.bootstrap import DRAWS, Interval, Resampling, crossed_bootstrap
from metricunet.evaluation.measures import BoolArray, Definition
from metricunet.evaluation.ranks import TIE_DECIMALS, holm, signed_rank, superiority
from metricunet.volume import FloatArray

Better = Literal["higher", "lower"]
Family = Literal["primary", "exploratory"]


@dataclass(frozen=True)
class FoldSeed:
    """A run of an arm where each fold scores the same cases; it is written `3/0` for fold 3, seed 0.

    Attributes:
        fold: number of the fold, or `all`.
        seed: the seed, as the study file has it.
    """

    fold: Fold
    seed: int

    def __str__(self) -> str:
        return f"{self.fold}/{self.seed}"


#: A run of an arm: its seed, or its fold and seed.
RunKey = int | FoldSeed


def _order(run: RunKey) -> tuple[bool, int, int]:
    """Return what runs are sorted by: the fold, of which `all` is the last, and the seed."""
    if isinstance(run, int):
        return False, 0, run
    return (True, 0, run.seed) if run.fold == "all" else (False, run.fold, run.seed)


@dataclass(frozen=True, eq=False)
class Scores:
    """One measure of one arm.

    Attributes:
        arm: name of the arm.
        seeds: the seeds, or folds and seeds, one for each row of the values.
        cases: names of the cases, one for each column.
        values: float64 [seeds, cases]; NaN where there is none, as the distance of a missed structure.
        missed: bool [seeds, cases], where the structure was missed; default: where there is no value. Overlaps of
            missed structures are 0, so for them it has to be said.
        empty: names of the cases whose reference does not hold the structure.

    Raises:
        InputError: shapes or names that do not fit, or a value that is infinite.
    """

    arm: str
    seeds: tuple[RunKey, ...]
    cases: tuple[str, ...]
    values: FloatArray
    missed: BoolArray | None = None
    empty: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        values = np.asarray(self.values, dtype=np.float64)
        shape = (len(self.seeds), len(self.cases))
        if values.shape != shape or 0 in shape:
            raise InputError(
                f"arm {self.arm}: values of shape {values.shape}, expected {shape} for its seeds and cases, at "
                "least one of each"
            )
        for kind, names in (("seed", self.seeds), ("case", self.cases)):
            twice = sorted({str(n) for n in names if names.count(n) > 1})
            if twice:
                raise InputError(f"arm {self.arm}: {kind} {twice[0]} occurs twice; name every {kind} once")
        if np.isinf(values).any():
            raise InputError(f"arm {self.arm}: a value is infinite; leave out the value of a missed structure")
        if self.missed is not None and self.missed.shape != shape:
            raise InputError(f"arm {self.arm}: {self.missed.shape} marks of missed structures, expected {shape}")
        object.__setattr__(self, "values", values)

    @property
    def n_missed(self) -> int:
        """In how many seeds of how many cases the structure was missed, added up."""
        return self.n_without_value if self.missed is None else int(np.count_nonzero(self.missed))

    @property
    def n_without_value(self) -> int:
        """How many seeds of how many cases that hold the structure have no value, added up."""
        return int(np.count_nonzero(np.isnan(self.values[:, ~self.is_empty])))

    @property
    def n_false_positive(self) -> int:
        """How many seeds of how many cases that do not hold the structure have a value, added up."""
        return int(np.count_nonzero(~np.isnan(self.values[:, self.is_empty])))

    @property
    def is_empty(self) -> BoolArray:
        """Whether the reference does not hold the structure [cases]."""
        return np.array([case in self.empty for case in self.cases], dtype=bool)

    @classmethod
    def from_table(
        cls,
        arm: str,
        values: Mapping[tuple[RunKey, str], float | None],
        missed: frozenset[tuple[RunKey, str]] | None = None,
        empty: frozenset[str] = frozenset(),
    ) -> Scores:
        """Arrange values by seed and case, both sorted.

        Args:
            arm: name of the arm.
            values: seed and case to the value; None where there is none.
            missed: seed and case of every missed structure; default: where there is no value.
            empty: names of the cases whose reference does not hold the structure.

        Raises:
            InputError: a seed that lacks a case which another has.
        """
        seeds, cases = sorted({s for s, _ in values}, key=_order), sorted({c for _, c in values})
        for seed in seeds:
            for case in cases:
                if (seed, case) not in values:
                    raise InputError(
                        f"arm {arm}: seed {seed} has no row of case {case}, which another seed has; every seed "
                        "needs every case, so finish its run first"
                    )
        read = [[values[s, c] for c in cases] for s in seeds]
        array = np.array([[math.nan if v is None else v for v in row] for row in read], dtype=np.float64)
        shape = len(seeds), len(cases)
        marks = None
        if missed is not None:
            marks = np.array([[(s, c) in missed for c in cases] for s in seeds], dtype=bool).reshape(shape)
        return cls(arm, tuple(seeds), tuple(cases), array.reshape(shape), marks, empty)


@dataclass(frozen=True)
class Comparison:
    """Arm B against arm A in one measure; n is `runs`, seeds times cases.

    Attributes:
        measure, title, unit: as the measure's definition has them.
        better: whether larger or smaller values are better.
        arm_a, arm_b: names of the arms.
        family: `primary` if p is Holm-corrected in `p_holm`, else `exploratory`.
        seeds: the seeds, or folds and seeds, that both arms have.
        cases: number of cases.
        runs: number of seeds times number of cases.
        missed_a, missed_b: in how many of the runs the structure was missed.
        no_value_a, no_value_b: how many of the runs have no value though the case holds the structure. Of
            distances these are the missed ones; overlaps always have one.
        mean_a, mean_b: mean over the runs of the arm that have a value; None without any.
        difference: mean of B - A over the runs that have a value in both arms; None without any.
        interval: 95 % interval of the difference; see `crossed_bootstrap`. None with fewer than two cases.
        relative_percent, relative_interval_percent: 100 (sum of B / sum of A - 1) over the same runs; None for a
            measure that can be negative, or whose mean in A is 0.
        difference_of_seed: the difference in each seed.
        p_of_seed: p of the signed-rank test over the cases in each seed.
        p: p of the signed-rank test over the cases, of their means over seeds. It speaks of new cases under these
            seeds; only the interval speaks of new seeds, too.
        p_holm: p corrected for the primary family.
        d_z: Cohen's d_z: mean over standard deviation of the cases' differences (means over seeds; cases with a
            value in both arms). Positive where B is better, as are the two that follow.
        rank_biserial: rank-biserial correlation over the cases; see `SignedRank`.
        superiority: probability of superiority: the share of cases in which B is better, ties counting half.
        false_positive_a, false_positive_b: how many of the runs have a value though the case does not hold the
            structure. An overlap of 0 is that of a false positive; distances never have one there.
    """

    measure: str
    title: str
    unit: str
    better: Better
    arm_a: str
    arm_b: str
    family: Family
    seeds: tuple[RunKey, ...]
    cases: int
    missed_a: int
    missed_b: int
    no_value_a: int
    no_value_b: int
    mean_a: float | None
    mean_b: float | None
    difference: float | None
    interval: Interval | None
    relative_percent: float | None
    relative_interval_percent: Interval | None
    difference_of_seed: tuple[float | None, ...]
    p_of_seed: tuple[float, ...]
    p: float
    p_holm: float | None
    d_z: float | None
    rank_biserial: float
    superiority: float
    resampling: Resampling
    false_positive_a: int = 0
    false_positive_b: int = 0

    @property
    def runs(self) -> int:
        """Values of each arm, missing ones included."""
        return len(self.seeds) * self.cases

    @property
    def repeats(self) -> int:
        """How often it was repeated with other trainings: the folds where each is a run, else the seeds."""
        return len({seed.fold if isinstance(seed, FoldSeed) else seed for seed in self.seeds})

    @property
    def repeated(self) -> str:
        """What a repeat is called: `seed` or `replicate`."""
        return "replicate" if isinstance(self.seeds[0], FoldSeed) else "seed"

    @property
    def training(self) -> str:
        """What one of the `seeds` is called: as a repeat, or `run` where a repeat has several."""
        return self.repeated if len(self.seeds) == self.repeats else "run"

    @property
    def sign(self) -> int:
        """1 where larger differences are better, -1 where smaller ones are."""
        return 1 if self.better == "higher" else -1

    def to_json(self) -> dict[str, Any]:
        """Return all fields, intervals as [low, high]; nothing in it is infinite or NaN."""
        fields = asdict(self) | {"runs": self.runs}
        for name in ("interval", "relative_interval_percent"):
            interval: Interval | None = getattr(self, name)
            fields[name] = None if interval is None else [interval.low, interval.high]
        return {name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()}


def compare(
    a: Scores, b: Scores, definition: Definition, better: Better, *, draws: int = DRAWS, seed: int = 0
) -> Comparison:
    """Compare two arms in one measure, paired by case and by seed; exploratory until `primary_family` corrects it.

    Seeds that only one of the arms has are left out, since nothing can be paired with them; `Comparison.seeds`
    names those that are in it.

    Args:
        a: the arm to beat.
        b: the arm that is claimed to be better.
        definition: definition of the measure.
        better: whether larger or smaller values of it are better.
        draws: number of draws of the bootstrap.
        seed: seed of the bootstrap.

    Raises:
        InputError: the arms have no seed in common, or not the same cases.
    """
    a, b = _paired(a, b)
    sign = 1 if better == "higher" else -1
    difference = b.values - a.values
    both = ~np.isnan(difference)
    resampling = Resampling(draws, seed)
    absolute, relative = None, None
    if both.any():
        ones = both.astype(np.float64)
        top, bottom = np.where(both, difference, 0.0), np.where(both, a.values, 0.0)
        top, bottom, ones = (_of_folds(values, a.seeds) for values in (top, bottom, ones))
        absolute = crossed_bootstrap(top, ones, resampling)
        positive = all(np.where(both, arm.values, 0.0).min() >= 0 for arm in (a, b))
        if positive and bottom.sum() > 0:
            relative = crossed_bootstrap(100 * top, bottom, resampling)
    empty = a.is_empty | b.is_empty
    of_case = _rankable(a.values, b.values, sign, empty)
    test = signed_rank(of_case)
    return Comparison(
        measure=definition.name,
        title=definition.title,
        unit=definition.unit,
        better=better,
        arm_a=a.arm,
        arm_b=b.arm,
        family="exploratory",
        seeds=a.seeds,
        cases=len(a.cases),
        missed_a=a.n_missed,
        missed_b=b.n_missed,
        no_value_a=a.n_without_value,
        no_value_b=b.n_without_value,
        mean_a=_mean(a.values),
        mean_b=_mean(b.values),
        difference=_mean(difference),
        interval=None if absolute is None else absolute.interval,
        relative_percent=None if relative is None else relative.value,
        relative_interval_percent=None if relative is None else relative.interval,
        difference_of_seed=tuple(_mean(row) for row in difference),
        p_of_seed=tuple(
            signed_rank(_rankable(one[None], other[None], sign, empty)).p
            for one, other in zip(a.values, b.values, strict=True)
        ),
        p=test.p,
        p_holm=None,
        d_z=_d_z(sign * difference),
        rank_biserial=test.rank_biserial,
        superiority=superiority(of_case),
        resampling=resampling,
        false_positive_a=a.n_false_positive,
        false_positive_b=b.n_false_positive,
    )


def primary_family(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """Mark comparisons as the primary family and correct their p values together by Holm's method."""
    corrected = holm([comparison.p for comparison in comparisons])
    return tuple(
        replace(comparison, family="primary", p_holm=p)
        for comparison, p in zip(comparisons, corrected, strict=True)
    )


def _paired(a: Scores, b: Scores) -> tuple[Scores, Scores]:
    """Bring both arms to the same seeds and cases, in the order of a."""
    seeds = tuple(seed for seed in a.seeds if seed in b.seeds)
    if not seeds:
        raise InputError(
            f"arms {a.arm} (seeds {_listed(a.seeds)}) and {b.arm} (seeds {_listed(b.seeds)}) have no seed in "
            "common; run both with the same seeds"
        )
    for one, other in ((a, b), (b, a)):
        lacking = sorted(set(one.cases) - set(other.cases))
        if lacking:
            raise InputError(
                f"arm {other.arm}: has no case {lacking[0]}, which arm {one.arm} has ({len(lacking)} such); "
                "expected the same cases in both, finish or repeat its runs"
            )
    return _chosen(a, seeds, a.cases), _chosen(b, seeds, a.cases)


def _chosen(scores: Scores, seeds: tuple[RunKey, ...], cases: tuple[str, ...]) -> Scores:
    chosen = np.ix_([scores.seeds.index(s) for s in seeds], [scores.cases.index(c) for c in cases])
    missed = None if scores.missed is None else scores.missed[chosen]
    return Scores(scores.arm, seeds, cases, scores.values[chosen], missed, scores.empty)


def _of_folds(values: FloatArray, runs: Sequence[RunKey]) -> FloatArray:
    """Add up the rows of each fold [folds, cases], for the runs of a fold share their training cases."""
    rows: dict[RunKey | Fold, FloatArray] = {}
    for run, row in zip(runs, values, strict=True):
        key = run.fold if isinstance(run, FoldSeed) else run
        rows[key] = rows[key] + row if key in rows else row
    return np.stack(list(rows.values()))


def _rankable(a: FloatArray, b: FloatArray, sign: int, empty: BoolArray) -> FloatArray:
    """Return a number for each case [cases] that ranks as B's benefit does: positive where B is better.

    It is the mean benefit over the seeds in which both arms have a value. A case that one arm missed in more seeds
    than the other ranks beyond all of these, the more so the more seeds; and so does an `empty` case in which one
    arm has false positives in more seeds, for there no value is the best.
    """
    benefit = sign * (b - a)
    both = ~np.isnan(benefit)
    mean = np.where(both, benefit, 0.0).sum(axis=0) / np.maximum(both.sum(axis=0), 1)
    lost = np.isnan(a).sum(axis=0) - np.isnan(b).sum(axis=0)
    lost = np.where(empty, -lost, lost)
    outranking = 1 + 2 * float(np.abs(mean).max())
    return np.asarray(np.where(lost != 0, lost * outranking, mean), dtype=np.float64)


def _d_z(benefit: FloatArray) -> float | None:
    found = ~np.isnan(benefit)
    counts = found.sum(axis=0)
    of_case = np.where(found, benefit, 0.0).sum(axis=0)[counts > 0] / counts[counts > 0]
    of_case = np.asarray(np.round(of_case, TIE_DECIMALS), dtype=np.float64)
    if len(of_case) < 2 or np.ptp(of_case) == 0:
        return None
    return float(of_case.mean() / of_case.std(ddof=1))


def _mean(values: FloatArray) -> float | None:
    """Return the mean of the values that are there; None without any."""
    found = values[~np.isnan(values)]
    return float(found.mean()) if found.size else None


def _listed(seeds: Sequence[RunKey]) -> str:
    return ", ".join(str(seed) for seed in seeds)
