"""Which arms of a study are compared in what, and the table of all comparisons.

Every pair of the study file, its method against its baseline and against its control; and every other arm against
the baseline of the first pair that trains on the same labels. Overlap and surface measures are compared against
every reference, smoothness against the truth, features where they are measured. One family is primary: the main
pair in the primary measures, on the target, against the truth. The volume difference is best at 0 and is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from metricunet.evaluation.bootstrap import Interval
from metricunet.evaluation.features import FEATURE_NAMES
from metricunet.evaluation.measures import SIGNED
from metricunet.evaluation.smoothness import SMOOTHNESS_NAMES
from metricunet.evaluation.summary import table_csv
from metricunet.study.data import TRUTH
from metricunet.study.design import Study
from metricunet.study.results import DEFINITIONS, Results, better_of
from metricunet.study.statistics import Comparison, Scores, compare, primary_family

#: Roles of the arms that are in no pair, and of a pair's comparison with the control.
ARM, CONTROL = "arm", "control"
COMPARISONS_CSV, COMPARISONS_JSON = "comparisons.csv", "comparisons.json"
COLUMNS = (
    "role", "reference", "structure", "measure", "unit", "better", "arm_a", "arm_b", "family", "seeds", "cases",
    "missed_a", "missed_b", "no_value_a", "no_value_b", "mean_a", "mean_b", "difference", "low", "high",
    "relative_percent", "relative_low", "relative_high", "p", "p_holm", "d_z", "rank_biserial", "superiority",
    "difference_of_seed", "p_of_seed", "false_positive_a", "false_positive_b",
)  # fmt: skip


@dataclass(frozen=True)
class Contrast:
    """Two arms to compare.

    Attributes:
        role: `primary`, `secondary.0` and so on: method against baseline; the same with ` control`: method against
            control; `arm`: any other arm against its baseline.
        arm_a: the arm to beat.
        arm_b: the other.
    """

    role: str
    arm_a: str
    arm_b: str

    @property
    def title(self) -> str:
        """Name for people."""
        return f"{self.arm_b} − {self.arm_a}"


@dataclass(frozen=True, eq=False)
class Compared:
    """A comparison and what it is of.

    Attributes:
        contrast: the arms.
        reference: whose contours.
        structure: name; None for features.
        comparison: the numbers.
        a, b: the values that they are of.
    """

    contrast: Contrast
    reference: str
    structure: str | None
    comparison: Comparison
    a: Scores
    b: Scores

    @property
    def measure(self) -> str:
        """Name of the measure."""
        return self.comparison.measure


@dataclass(frozen=True)
class Comparisons:
    """All of a study's comparisons.

    Attributes:
        compared: in the order of contrasts, references, structures and measures.
        left_out: what could not be compared, and why.
    """

    compared: tuple[Compared, ...]
    left_out: tuple[str, ...]

    def find(self, role: str, measure: str, structure: str, reference: str = TRUTH) -> Compared | None:
        """Return a pair's comparison in a measure; None where there is none."""
        for one in self.compared:
            asked = (one.contrast.role, one.measure, one.reference) == (role, measure, reference)
            if asked and one.structure in (structure, None):
                return one
        return None


def contrasts(plan: Study) -> list[Contrast]:
    """List the arms to compare, those of pairs first; none without a primary pair."""
    pairs = plan.content.pairs
    found: list[Contrast] = []
    for role, pair in pairs.items():
        found.append(Contrast(role, pair.baseline, pair.method))
        if pair.control is not None:
            found.append(Contrast(f"{role} {CONTROL}", pair.control, pair.method))
    told = {(c.arm_a, c.arm_b) for c in found}
    for arm in plan.arms if pairs else ():
        alike = [p.baseline for p in pairs.values() if plan.labels(p.baseline) == plan.labels(arm)]
        baseline = alike[0] if alike else next(iter(pairs.values())).baseline
        if arm != baseline and (baseline, arm) not in told:
            found.append(Contrast(ARM, baseline, arm))
    return found


def compare_all(plan: Study, results: Results) -> Comparisons:
    """Carry out every comparison of a study, as far as its runs go.

    Args:
        plan: the study file.
        results: the rows of its runs.
    """
    compared: list[Compared] = []
    left_out: list[str] = []
    for contrast in contrasts(plan):
        reason = _why_not(results, contrast)
        if reason is None:
            compared += _compared(plan, results, contrast)
        else:
            left_out.append(f"{contrast.title}: {reason}")
    return Comparisons(tuple(_corrected(plan, compared)), tuple(left_out))


def _why_not(results: Results, contrast: Contrast) -> str | None:
    """Say why two arms cannot be compared in any structure; None if they can."""
    arms = contrast.arm_a, contrast.arm_b
    reasons: list[str | None] = []
    for structure in results.structures:
        a, b = (results.scores(arm, "dice", structure) for arm in arms)
        if a is not None and b is not None:
            reasons.append(_why_not_paired(a, b))
        elif a is not None or b is not None:
            reasons.append(f"{arms[0 if a is None else 1]} has no finished run with all cases")
    if None in reasons:
        return None
    return reasons[0] if reasons else f"{arms[0]} has no finished run with all cases"


def _why_not_paired(a: Scores, b: Scores) -> str | None:
    if not set(a.seeds) & set(b.seeds):
        return "no seed in common"
    return None if set(a.cases) == set(b.cases) else "not the same cases"


def _compared(plan: Study, results: Results, contrast: Contrast) -> Iterator[Compared]:
    overlap = [m for m in plan.content.measures.all if m not in SIGNED]
    compared_in: list[tuple[str, str | None, str]] = [
        (reference, structure, measure)
        for reference in results.cases
        for structure in results.structures
        for measure in (*overlap, *(SMOOTHNESS_NAMES if reference == TRUTH else ()))
    ]
    compared_in += [(TRUTH, None, measure) for measure in FEATURE_NAMES]
    for reference, structure, measure in compared_in:
        a, b = (
            results.scores(arm, measure, structure or "", reference) for arm in (contrast.arm_a, contrast.arm_b)
        )
        if a is not None and b is not None and _why_not_paired(a, b) is None:
            comparison = compare(a, b, DEFINITIONS[measure], better_of(measure))
            yield Compared(contrast, reference, structure, comparison, a, b)


def _corrected(plan: Study, compared: Sequence[Compared]) -> Iterator[Compared]:
    """Correct the primary family for the number of its tests."""

    def primary(one: Compared) -> bool:
        on_target = (one.reference, one.structure) == (TRUTH, plan.base.target)
        return on_target and one.contrast.role == "primary" and one.measure in plan.content.measures.primary

    family = iter(primary_family([one.comparison for one in compared if primary(one)]))
    for one in compared:
        if primary(one):
            yield Compared(one.contrast, one.reference, one.structure, next(family), one.a, one.b)
        else:
            yield one


def comparisons_csv(compared: Iterable[Compared]) -> str:
    """Return the table of comparisons; blank where a number does not exist, lists parted by spaces."""
    return table_csv(COLUMNS, ([_cell(value) for value in _values(one)] for one in compared))


def _values(one: Compared) -> list[Any]:
    """Return a comparison's values in the order of `COLUMNS`."""
    c = one.comparison
    low, high = _ends(c.interval)
    relative_low, relative_high = _ends(c.relative_interval_percent)
    own: dict[str, Any] = {
        "role": one.contrast.role,
        "reference": one.reference,
        "structure": one.structure,
        "low": low,
        "high": high,
        "relative_low": relative_low,
        "relative_high": relative_high,
    }
    return [own[name] if name in own else getattr(c, name) for name in COLUMNS]


def comparison_json(one: Compared) -> dict[str, Any]:
    """Return everything about a comparison; nothing in it is infinite or NaN."""
    of_what = {"role": one.contrast.role, "reference": one.reference, "structure": one.structure}
    return of_what | one.comparison.to_json()


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (interval.low, interval.high)


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join("-" if v is None else _cell(v) for v in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)
