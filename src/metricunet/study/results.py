"""What the runs of a study came to, read back from its tables; all that is concluded is computed from these."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from metricunet.evaluation.features import DEFINITIONS as FEATURE_DEFINITIONS
from metricunet.evaluation.features import FEATURE_NAMES
from metricunet.evaluation.measures import DEFINITIONS as OVERLAP_DEFINITIONS
from metricunet.evaluation.measures import MEASURE_NAMES, Definition
from metricunet.evaluation.smoothness import DEFINITIONS as SMOOTHNESS_DEFINITIONS
from metricunet.evaluation.smoothness import SMOOTHNESS_NAMES
from metricunet.study.beyond import FEATURES_FILE, SMOOTHNESS_FILE, BeyondRow, read_beyond
from metricunet.study.data import TRUTH
from metricunet.study.score import StudyRow, cases_name, read_rows
from metricunet.study.statistics import Better, Scores
from metricunet.study.tables import paired_values

DEFINITIONS: dict[str, Definition] = {
    d.name: d for d in (*OVERLAP_DEFINITIONS, *SMOOTHNESS_DEFINITIONS, *FEATURE_DEFINITIONS)
}


def better_of(measure: str) -> Better:
    """Tell which values of a measure are better: the larger ones of ratios and features, else the smaller ones."""
    return "higher" if DEFINITIONS[measure].is_ratio else "lower"


@dataclass(frozen=True)
class Results:
    """The rows of all runs.

    Attributes:
        rows: whose contours to the rows against them, `truth` first.
        smoothness: of the masks, against the truth.
        features: of a sample of the cases.
    """

    rows: dict[str, list[StudyRow]]
    smoothness: list[BeyondRow]
    features: list[BeyondRow]

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms that have rows, in their order."""
        return tuple(dict.fromkeys(row.arm for row in self.rows[TRUTH]))

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of the structures, in their order."""
        return tuple(dict.fromkeys(row.row.structure for row in self.rows[TRUTH]))

    def seeds(self, arm: str) -> tuple[int, ...]:
        """Return the seeds of an arm that have rows."""
        return tuple(dict.fromkeys(row.seed for row in self.rows[TRUTH] if row.arm == arm))

    def scores(self, arm: str, measure: str, structure: str, reference: str = TRUTH) -> Scores | None:
        """Arrange an arm's values of a measure by seed and case.

        Of several folds that score one case, the mean. A seed that lacks cases which another seed has, as where
        one of its folds failed, is left out. A structure that was missed counts as missed in every measure but
        those of features, which look at voxels around the true surface.

        Args:
            arm: whose.
            measure: a key of `DEFINITIONS`.
            structure: which; features know none.
            reference: whose contours; smoothness and features are of the truth alone.

        Returns:
            None where there are no rows, or, of features, none with a value.
        """
        if measure in MEASURE_NAMES:
            values, missed = paired_values(self.rows[reference], arm, structure, measure)
        elif measure in SMOOTHNESS_NAMES:
            values = _values((row for row in self.smoothness if row.structure == structure), arm, measure)
            missed = frozenset(paired_values(self.rows[TRUTH], arm, structure, "dice")[1] & values.keys())
        else:
            values, missed = _values(self.features, arm, measure), frozenset()
        whole = _whole_seeds(values)
        values = {place: value for place, value in values.items() if place[0] in whole}
        if not values or (measure in FEATURE_NAMES and all(v is None for v in values.values())):
            return None
        return Scores.from_table(arm, values, frozenset(place for place in missed if place[0] in whole))


def read_results(folder: Path) -> Results:
    """Read the tables of a study: cases.csv, cases-WHOSE.csv, smoothness.csv and features.csv, if they are there.

    Raises:
        InputError: a file that cannot be read.
    """
    others = sorted(p.stem.removeprefix("cases-") for p in folder.glob("cases-*.csv"))
    rows = {whose: read_rows(folder / cases_name(whose)) for whose in (TRUTH, *others)}
    smoothness, features = (
        read_beyond(folder / name) if (folder / name).is_file() else []
        for name in (SMOOTHNESS_FILE, FEATURES_FILE)
    )
    return Results(rows, smoothness, features)


def _values(rows: Iterable[BeyondRow], arm: str, measure: str) -> dict[tuple[int, str], float | None]:
    found: dict[tuple[int, str], list[float]] = {}
    for row in rows:
        if row.arm == arm:
            values = found.setdefault((row.seed, row.case), [])
            if (value := row.values[measure]) is not None:
                values.append(value)
    return {place: sum(values) / len(values) if values else None for place, values in found.items()}


def _whole_seeds(places: Iterable[tuple[int, str]]) -> Sequence[int]:
    """Return the seeds that have every case that any seed has."""
    cases: dict[int, set[str]] = {}
    for seed, case in places:
        cases.setdefault(seed, set()).add(case)
    every = set().union(*cases.values())
    return [seed for seed, own in cases.items() if own == every]
