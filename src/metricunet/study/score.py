"""Scoring a trained model on the cases of its fold, and the rows that come of it.

The measures are those of `metricunet evaluate`, on each scan's own grid. A missed structure has a row, too.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricunet.cohort.splits import Fold
from metricunet.errors import InputError
from metricunet.evaluation.measures import MEASURE_NAMES, NOTHING, Measures, measure
from metricunet.evaluation.summary import CSV_COLUMNS, CaseRow, cases_csv
from metricunet.files.atomic import write_text
from metricunet.inference.predictor import Predictor
from metricunet.study.data import TRUTH
from metricunet.study.stage_one import Cut, read_cut
from metricunet.volume import Volume

#: Columns of a study's cases.csv: whose row it is, and then as in an evaluation.
RUN_COLUMNS = ("arm", "seed", "fold")
STUDY_COLUMNS = (*RUN_COLUMNS, *CSV_COLUMNS)


@dataclass(frozen=True)
class StudyRow:
    """One structure in one case, as one run segments it."""

    arm: str
    seed: int
    fold: Fold
    row: CaseRow


def cases_name(reference: str) -> str:
    """Return the file name of the rows against a reference: cases.csv against the truth, else cases-WHOSE.csv."""
    return "cases.csv" if reference == TRUTH else f"cases-{reference}.csv"


def cut_predictor(model: Path, device: str) -> Predictor:
    """Read a model to segment cuts with; a cut holds no more of the scan than one crop, so there are no reruns."""
    return Predictor([model], device, reruns=0)


def score_cases(
    predictor: Predictor, folder: Path, cases: Sequence[str], labels: dict[str, int], ignore: int | None
) -> Iterator[ScoredCut]:
    """Segment the cuts of a fold, one after the other.

    Args:
        predictor: of the model.
        folder: of the fold, with the cuts.
        cases: their names.
        labels: structure name to value in the references.
        ignore: value of voxels that nobody contoured, or None.

    Raises:
        InputError: a cut cannot be read.
    """
    for name in cases:
        yield segment_cut(predictor, read_cut(folder, name), labels, ignore)


def segment_cut(predictor: Predictor, cut: Cut, labels: dict[str, int], ignore: int | None) -> ScoredCut:
    """Segment one cut; see `score_cases`."""
    found = predictor.segment(cut.image, cut.found).labels
    values = np.zeros(cut.image.geometry.shape, dtype=np.uint8) if found is None else found.array
    return ScoredCut(cut, values, labels, ignore)


@dataclass(frozen=True, eq=False)
class ScoredCut:
    """A cut and the mask that a model makes of it.

    Attributes:
        cut: scan and references.
        values: label values on the cut's grid.
        labels: structure name to value.
        ignore: value of voxels that nobody contoured, or None.
    """

    cut: Cut
    values: NDArray[Any]
    labels: dict[str, int]
    ignore: int | None

    def pairs(self, whose: str) -> Iterator[tuple[str, Volume, Volume]]:
        """Yield name, mask and reference of each structure that was contoured; ignored voxels are in no mask."""
        reference = self.cut.references[whose]
        known = (
            reference.array != self.ignore if self.ignore is not None else np.ones(self.values.shape, dtype=bool)
        )
        for structure, value in self.labels.items():
            if structure in self.cut.not_contoured:
                continue
            mask = reference.with_array((self.values == value) & known)
            yield structure, mask, reference.with_array(reference.array == value)

    def rows(self, whose: str) -> list[CaseRow]:
        """Measure every structure against a reference; what was not contoured has no measures."""
        measured = {s: measure(mask, reference) for s, mask, reference in self.pairs(whose)}
        return [CaseRow(self.cut.name, s, measured.get(s, NOTHING), s in measured) for s in self.labels]


def write_rows(path: Path, arm: str, seed: int, fold: Fold, rows: Iterable[CaseRow]) -> None:
    """Write the rows of a run."""
    head, *lines = cases_csv(rows).splitlines()
    text = [",".join([*RUN_COLUMNS, head]), *(f"{arm},{seed},{fold},{line}" for line in lines)]
    write_text(path, "\n".join(text) + "\n")


def read_rows(path: Path, not_contoured: Mapping[str, Collection[str]] | None = None) -> list[StudyRow]:
    """Read the rows of a run, or of a whole study.

    Args:
        path: the file.
        not_contoured: case to structures that its references say nothing of; a row's blanks do not tell.

    Raises:
        InputError: not such a file.
    """
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            content = list(csv.DictReader(handle))
        return [_row(line, not_contoured or {}) for line in content]
    except (OSError, UnicodeDecodeError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise InputError(
            f"{path}: not readable as a study's cases ({error}); expected the columns {', '.join(STUDY_COLUMNS)}"
        ) from error


def join_rows(files: Iterable[Path], columns: Sequence[str] = STUDY_COLUMNS) -> str:
    """Put the rows of several runs under one heading.

    Args:
        files: of the runs.
        columns: that each of them has.

    Raises:
        InputError: it has others.
    """
    text = io.StringIO()
    text.write(",".join(columns) + "\n")
    for path in files:
        head, _, body = path.read_text(encoding="utf-8").partition("\n")
        if head != ",".join(columns):
            raise InputError(f"{path}: has other columns than this version writes; delete it and run again")
        text.write(body)
    return text.getvalue()


def _row(line: dict[str, str], not_contoured: Mapping[str, Collection[str]]) -> StudyRow:
    measures = {name: float(line[name]) if line[name] else None for name in MEASURE_NAMES}
    contoured = line["structure"] not in not_contoured.get(line["case"], ())
    row = CaseRow(line["case"], line["structure"], Measures(**measures), contoured)
    return StudyRow(line["arm"], int(line["seed"]), read_fold(line["fold"]), row)


def read_fold(text: str) -> Fold:
    """Read a fold as rows have it."""
    return "all" if text == "all" else int(text)
