"""The tables of a study's runs: how their rows are written and read, and what they hold by arm, seed and case.

Every run writes a table for each reference (cases.csv against the truth, cases-WHOSE.csv else), smoothness.csv and
features.csv. A study joins those of its runs; all that it concludes is computed from these, so that one that was
stopped and went on ends with the same.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from metricunet.cohort.splits import Fold
from metricunet.errors import InputError
from metricunet.evaluation.features import DEFINITIONS as FEATURE_DEFINITIONS
from metricunet.evaluation.features import FEATURE_NAMES
from metricunet.evaluation.measures import DEFINITIONS as OVERLAP_DEFINITIONS
from metricunet.evaluation.measures import MEASURE_NAMES, Definition, Measures
from metricunet.evaluation.smoothness import DEFINITIONS as SMOOTHNESS_DEFINITIONS
from metricunet.evaluation.smoothness import SMOOTHNESS_NAMES
from metricunet.evaluation.summary import CaseRow, StructureSummary, csv_number, summarise, table_csv
from metricunet.files.atomic import write_text
from metricunet.study.data import TRUTH
from metricunet.study.statistics import Better, FoldSeed, RunKey, Scores

DEFINITIONS: dict[str, Definition] = {
    d.name: d for d in (*OVERLAP_DEFINITIONS, *SMOOTHNESS_DEFINITIONS, *FEATURE_DEFINITIONS)
}
#: A run of an arm and a case.
RunCase = tuple[RunKey, str]


def better_of(measure: str) -> Better:
    """Tell which values of a measure are better: the larger ones of ratios and features, else the smaller ones."""
    return "higher" if DEFINITIONS[measure].is_ratio else "lower"


@dataclass(frozen=True)
class Table:
    """A kind of table that every run writes.

    Attributes:
        name: name of the file.
        measures: names of the measures in it.
        of_structures: whether each structure has a row of its own.
    """

    name: str
    measures: tuple[str, ...]
    of_structures: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        """The heading."""
        return ("arm", "seed", "fold", "case", *(("structure",) if self.of_structures else ()), *self.measures)


SMOOTHNESS = Table("smoothness.csv", SMOOTHNESS_NAMES)
#: Features tell all classes apart, so a case has one row.
FEATURES = Table("features.csv", FEATURE_NAMES, of_structures=False)


def cases_table(reference: str) -> Table:
    """Return the table of measures against a reference: cases.csv against the truth, else cases-WHOSE.csv."""
    return Table("cases.csv" if reference == TRUTH else f"cases-{reference}.csv", MEASURE_NAMES)


@dataclass(frozen=True)
class Row:
    """The measures of one case, as one run sees it.

    Attributes:
        arm, seed, fold: the run that they are of.
        case: name of the case.
        structure: name of the structure; None in a table without structures.
        values: name of each measure to its value; None where it has none.
        contoured: whether the references say anything of the structure.
    """

    arm: str
    seed: int
    fold: Fold
    case: str
    structure: str | None
    values: Mapping[str, float | None]
    contoured: bool = True

    def run(self, by_fold: bool) -> RunKey:
        """Return the run that the row is of: its seed, or `by_fold` its fold and seed."""
        return FoldSeed(self.fold, self.seed) if by_fold else self.seed

    @property
    def evaluated(self) -> CaseRow:
        """The row as an evaluation has it; only those of `cases_table` can be."""
        return CaseRow(self.case, self.structure or "", Measures(**self.values), self.contoured)

    @property
    def missed(self) -> bool:
        """Whether the structure was missed; never said by rows of other tables than `cases_table`."""
        return "dice" in self.values and Measures(**self.values).outcome == "missed"

    @property
    def empty(self) -> bool:
        """Whether the reference is known not to hold the structure; said by rows of `cases_table` alone."""
        return "dice" in self.values and self.evaluated.outcome in ("true_absent", "false_positive")


def write_table(folder: Path, table: Table, rows: Iterable[Row]) -> None:
    """Write the rows of a run; a value that is not finite is left blank."""
    lines = []
    for row in rows:
        head = [row.arm, row.seed, row.fold, row.case, *([row.structure] if table.of_structures else ())]
        lines.append([*head, *(csv_number(row.values[name]) for name in table.measures)])
    write_text(folder / table.name, table_csv(table.columns, lines))


def read_table(
    folder: Path, table: Table, not_contoured: Mapping[str, Collection[str]] | None = None
) -> list[Row]:
    """Read the rows of a run, or of a whole study.

    Args:
        folder: folder that holds the table.
        table: the kind of table to read.
        not_contoured: name of a case to the structures that its references say nothing of; a row's blanks do not
            tell.

    Raises:
        InputError: a file that is not such a table.
    """
    path = folder / table.name
    unknown = not_contoured or {}
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            content = list(csv.DictReader(handle))
        return [
            Row(
                line["arm"],
                int(line["seed"]),
                "all" if line["fold"] == "all" else int(line["fold"]),
                line["case"],
                line["structure"] if table.of_structures else None,
                {name: float(line[name]) if line[name] else None for name in table.measures},
                not table.of_structures or line["structure"] not in unknown.get(line["case"], ()),
            )
            for line in content
        ]
    except (OSError, UnicodeDecodeError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise InputError(
            f"{path}: not readable as a study's table ({error}); expected the columns {', '.join(table.columns)}"
        ) from error


def join_tables(folders: Iterable[Path], table: Table) -> str:
    """Return the rows of several runs under one heading.

    Args:
        folders: folders of the runs.
        table: the kind of table to join.

    Raises:
        InputError: a table with other columns than the first.
    """
    heading = ",".join(table.columns)
    bodies = []
    for folder in folders:
        head, _, body = (folder / table.name).read_text(encoding="utf-8").partition("\n")
        if head != heading:
            raise InputError(
                f"{folder / table.name}: has other columns than this version writes; delete it and run again"
            )
        bodies.append(body)
    return "".join([heading, "\n", *bodies])


@dataclass(frozen=True)
class Results:
    """The rows of all runs.

    Attributes:
        cases: whose contours the cases are scored against to the rows, `truth` first.
        smoothness: rows of the masks' smoothness, measured against the truth.
        features: rows of the features, which are measured in a sample of the cases.
        replicates: whether the folds are replicates, so that each is a run of its own, a single one, too.
    """

    cases: dict[str, list[Row]]
    smoothness: list[Row]
    features: list[Row]
    replicates: bool = False

    @cached_property
    def by_fold(self) -> bool:
        """Whether each fold of a seed is a run of its own; see `scores_by_fold`."""
        return self.replicates or scores_by_fold(self.cases[TRUTH])

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms that have rows, in their order."""
        return tuple(dict.fromkeys(row.arm for row in self.cases[TRUTH]))

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of the structures, in their order."""
        return tuple(dict.fromkeys(row.structure for row in self.cases[TRUTH] if row.structure is not None))

    def scores(self, arm: str, measure: str, structure: str, reference: str = TRUTH) -> Scores | None:
        """Arrange an arm's values of a measure by seed and case.

        Where each fold scores the same cases, a fold and a seed stand in place of a seed. Else folds are taken
        together: of several that score one case, the mean. A seed that lacks cases which another seed has, as
        where one of its folds failed, is left out. A structure that was missed counts as missed in every measure
        but those of features, which look at voxels around the true surface. Cases in which nobody contoured the
        structure are left out.

        Args:
            arm: name of the arm.
            measure: a key of `DEFINITIONS`.
            structure: name of the structure; features know none.
            reference: whose contours to compare with; smoothness and features are of the truth alone.

        Returns:
            The values, or None where there are no rows, or where none of a feature's rows has a value.
        """
        empty = frozenset[str]()
        if measure in MEASURE_NAMES:
            values, missed = paired_values(self.cases[reference], arm, structure, measure, self.by_fold)
            empty = self._empty.get((reference, structure), empty)
        elif measure in SMOOTHNESS_NAMES:
            values, _ = paired_values(self.smoothness, arm, structure, measure, self.by_fold)
            empty = self._empty.get((TRUTH, structure), empty)
            of_truth = paired_values(self.cases[TRUTH], arm, structure, "dice", self.by_fold)[1]
            missed = frozenset(of_truth & values.keys())
        else:
            values, missed = paired_values(self.features, arm, None, measure, self.by_fold)
        whole = _whole_seeds(values)
        values = {key: value for key, value in values.items() if key[0] in whole}
        if not values or (measure in FEATURE_NAMES and all(v is None for v in values.values())):
            return None
        return Scores.from_table(arm, values, frozenset(key for key in missed if key[0] in whole), empty)

    @cached_property
    def _empty(self) -> dict[tuple[str, str], frozenset[str]]:
        """Reference and structure to the names of the cases whose reference does not hold it."""
        found: dict[tuple[str, str], set[str]] = {}
        for reference, rows in self.cases.items():
            for row in rows:
                if row.empty:
                    found.setdefault((reference, row.structure or ""), set()).add(row.case)
        return {key: frozenset(cases) for key, cases in found.items()}


def read_results(
    folder: Path, not_contoured: Mapping[str, Collection[str]] | None = None, *, replicates: bool = False
) -> Results:
    """Read the tables of a study: cases.csv, cases-WHOSE.csv, smoothness.csv and features.csv, if they are there.

    Args:
        folder: folder that holds the tables.
        not_contoured: name of a case to the structures that its references say nothing of.
        replicates: whether the folds are replicates.

    Raises:
        InputError: a file that cannot be read.
    """
    others = sorted(path.stem.removeprefix("cases-") for path in folder.glob("cases-*.csv"))
    cases = {whose: read_table(folder, cases_table(whose), not_contoured) for whose in (TRUTH, *others)}
    smoothness, features = (
        read_table(folder, table, not_contoured) if (folder / table.name).is_file() else []
        for table in (SMOOTHNESS, FEATURES)
    )
    return Results(cases, smoothness, features, replicates)


def scores_by_fold(rows: Iterable[Row]) -> bool:
    """Tell whether there are several folds, and each scores the same cases: then each is a repeat of the others.

    Folds that divide the cases among them, as in a cross-validation, are parts of one run.
    """
    cases: dict[Fold, set[str]] = {}
    for row in rows:
        cases.setdefault(row.fold, set()).add(row.case)
    return len(cases) > 1 and len({frozenset(own) for own in cases.values()}) == 1


def paired_values(
    rows: Iterable[Row], arm: str, structure: str | None, measure: str, by_fold: bool = False
) -> tuple[dict[RunCase, float | None], frozenset[RunCase]]:
    """Return an arm's values of a measure by seed and case, and where the structure was missed.

    Cases in which the structure is neither there nor predicted have no value in any measure and are missed by
    nobody; those in which it was not contoured are left out. Where several folds score one case, its value is the
    mean over those that have one, and it counts as missed if any of them missed it.

    Args:
        rows: all rows of the study in one table.
        arm: name of the arm.
        structure: name of the structure; None in a table without structures.
        measure: name of a measure of the table.
        by_fold: whether each fold of a seed is a run of its own.
    """
    found: dict[RunCase, list[float]] = {}
    missed: set[RunCase] = set()
    for row in rows:
        if row.arm != arm or row.structure != structure or not row.contoured:
            continue
        key = row.run(by_fold), row.case
        values = found.setdefault(key, [])
        if (value := row.values[measure]) is not None:
            values.append(value)
        if row.missed:
            missed.add(key)
    return {key: float(np.mean(v)) if v else None for key, v in found.items()}, frozenset(missed)


def _whole_seeds(keys: Iterable[RunCase]) -> Sequence[RunKey]:
    """Return the seeds that have every case that any seed has."""
    cases: dict[RunKey, set[str]] = {}
    for seed, case in keys:
        cases.setdefault(seed, set()).add(case)
    every = set().union(*cases.values())
    return [seed for seed, own in cases.items() if own == every]


@dataclass(frozen=True)
class ArmSummary:
    """One structure of one arm against one reference.

    Attributes:
        arm: name of the arm.
        structure: name of the structure.
        of_seed: each seed, or fold and seed, to its summary over the cases.
    """

    arm: str
    structure: str
    of_seed: dict[RunKey, StructureSummary]

    def between_seeds(self, measure: str) -> tuple[float | None, float | None]:
        """Return mean and standard deviation (n - 1) of the seeds' means; None where there is none."""
        found = [s.measures[measure].mean for s in self.of_seed.values()]
        means = np.array([m for m in found if m is not None])
        if not means.size:
            return None, None
        return float(means.mean()), float(means.std(ddof=1)) if means.size > 1 else None


def summarise_arms(rows: Iterable[Row]) -> list[ArmSummary]:
    """Summarise every arm and structure, in the order in which they first appear.

    Folds are taken together, unless each scores the same cases.

    Args:
        rows: all rows of one `cases_table`.
    """
    rows = list(rows)
    by_fold = scores_by_fold(rows)
    grouped: dict[str, dict[RunKey, list[Row]]] = {}
    for row in rows:
        grouped.setdefault(row.arm, {}).setdefault(row.run(by_fold), []).append(row)
    found = []
    for arm, by_seed in grouped.items():
        summaries = {seed: summarise(row.evaluated for row in of_seed) for seed, of_seed in by_seed.items()}
        structures = dict.fromkeys(name for summary in summaries.values() for name in summary)
        found += [
            ArmSummary(arm, name, {seed: s[name] for seed, s in summaries.items() if name in s})
            for name in structures
        ]
    return found
