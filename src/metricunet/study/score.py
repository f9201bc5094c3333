"""Scoring a trained model on the cases of its fold, and the rows that come of it.

The measures are those of `metricunet evaluate`, on each scan's own grid. A missed structure has a row, too.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metricunet.cohort.splits import Fold
from metricunet.errors import InputError
from metricunet.evaluation.measures import MEASURE_NAMES, NOTHING, Measures, measure
from metricunet.evaluation.summary import CSV_COLUMNS, CaseRow, cases_csv
from metricunet.files.atomic import write_text
from metricunet.inference.predictor import Predictor
from metricunet.study.data import TRUTH
from metricunet.study.stage_one import Cut, read_cut

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


def score_cases(
    model: Path, folder: Path, cases: Sequence[str], labels: dict[str, int], ignore: int | None, device: str
) -> dict[str, list[CaseRow]]:
    """Segment the cuts of a fold with a model and measure the masks against every reference.

    Args:
        model: model file.
        folder: of the fold, with the cuts.
        cases: their names.
        labels: structure name to value in the references.
        ignore: value of voxels that nobody contoured, or None.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Returns:
        Whose contours to rows, in the order of cases and structures.

    Raises:
        InputError: a cut or the model cannot be read.
    """
    predictor = Predictor([model], device)
    rows: dict[str, list[CaseRow]] = {}
    for name in cases:
        cut = read_cut(folder, name)
        for whose, measured in measured_cut(predictor, cut, labels, ignore).items():
            rows.setdefault(whose, []).extend(
                CaseRow(name, structure, m, structure not in cut.not_contoured)
                for structure, m in measured.items()
            )
    return rows


def measured_cut(
    predictor: Predictor, cut: Cut, labels: dict[str, int], ignore: int | None
) -> dict[str, dict[str, Measures]]:
    """Return whose contours to structure to measures, of one cut."""
    found = predictor.segment(cut.image, cut.found).labels
    values = np.zeros(cut.image.geometry.shape, dtype=np.uint8) if found is None else found.array
    measured: dict[str, dict[str, Measures]] = {}
    for whose, reference in cut.references.items():
        known = reference.array != ignore if ignore is not None else np.ones(values.shape, dtype=bool)
        measured[whose] = {
            structure: NOTHING
            if structure in cut.not_contoured
            else measure(
                reference.with_array((values == value) & known), reference.with_array(reference.array == value)
            )
            for structure, value in labels.items()
        }
    return measured


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


def join_rows(files: Iterable[Path]) -> str:
    """Put the rows of several runs under one heading."""
    text = io.StringIO()
    text.write(",".join(STUDY_COLUMNS) + "\n")
    for path in files:
        head, _, body = path.read_text(encoding="utf-8").partition("\n")
        if head != ",".join(STUDY_COLUMNS):
            raise InputError(f"{path}: has other columns than this version writes; delete it and run again")
        text.write(body)
    return text.getvalue()


def _row(line: dict[str, str], not_contoured: Mapping[str, Collection[str]]) -> StudyRow:
    measures = {name: float(line[name]) if line[name] else None for name in MEASURE_NAMES}
    fold: Fold = "all" if line["fold"] == "all" else int(line["fold"])
    contoured = line["structure"] not in not_contoured.get(line["case"], ())
    row = CaseRow(line["case"], line["structure"], Measures(**measures), contoured)
    return StudyRow(line["arm"], int(line["seed"]), fold, row)
