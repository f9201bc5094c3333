"""Measures of a run beyond overlap: how smooth its masks are, and how well its features tell the classes apart.

Smoothness is measured in every scored case, against the true shape. Features are read from the finest decoder map,
which every network has whatever it was trained with, in a fixed sample of the scored cases; the probes are fitted
on a fixed sample of the training cases, in every arm on their true shapes. The voxels are the same in every arm.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from metricunet.cohort.prepare import IGNORE_CLASS
from metricunet.cohort.splits import Fold
from metricunet.errors import InputError
from metricunet.evaluation.features import FEATURE_NAMES, VoxelFeatures, band_features, fit_probes
from metricunet.evaluation.smoothness import SMOOTHNESS_NAMES, measure_smoothness
from metricunet.files.atomic import write_text
from metricunet.inference.predictor import Predictor
from metricunet.stages.network_input import autocast, pick_precision
from metricunet.stages.segment import View, read_field
from metricunet.study.data import TRUTH, spread
from metricunet.study.score import RUN_COLUMNS, ScoredCut, read_fold
from metricunet.study.stage_one import FITTING, Cut, read_cut
from metricunet.volume import resample_labels

SMOOTHNESS_FILE, FEATURES_FILE = "smoothness.csv", "features.csv"
SMOOTHNESS_COLUMNS = (*RUN_COLUMNS, "case", "structure", *SMOOTHNESS_NAMES)
FEATURES_COLUMNS = (*RUN_COLUMNS, "case", *FEATURE_NAMES)
#: Columns of each file.
COLUMNS = {SMOOTHNESS_FILE: SMOOTHNESS_COLUMNS, FEATURES_FILE: FEATURES_COLUMNS}
#: Training cases that probes are fitted on, and scored cases whose features are measured: all of them, up to this.
FITTING_CASES, FEATURE_CASES = 12, 40
#: Of each case, half from each class.
VOXELS, BAND_MM = 512, 3.0


@dataclass(frozen=True)
class BeyondRow:
    """Measures of one case, as one run sees it.

    Attributes:
        arm, seed, fold: of the run.
        case: name.
        structure: name; None for features, which tell all classes apart.
        values: measure to value; None where it has none.
    """

    arm: str
    seed: int
    fold: Fold
    case: str
    structure: str | None
    values: Mapping[str, float | None]


#: Case, structure if there is one, and the values.
Line = tuple[str, str | None, Mapping[str, float | None]]


def smoothness_lines(scored: ScoredCut) -> list[Line]:
    """Measure the smoothness of every structure of a case against the true shape; none where it is not known."""
    lines: dict[str, Line] = {
        structure: (scored.cut.name, structure, dict.fromkeys(SMOOTHNESS_NAMES)) for structure in scored.labels
    }
    for structure, mask, reference in scored.pairs(TRUTH):
        found = measure_smoothness(mask, reference)
        lines[structure] = (scored.cut.name, structure, {name: found.value(name) for name in SMOOTHNESS_NAMES})
    return list(lines.values())


def feature_lines(
    predictor: Predictor,
    folder: Path,
    fitting: Sequence[str],
    cases: Sequence[str],
    labels: dict[str, int],
    ignore: int | None,
) -> list[Line]:
    """Measure the features of a model in a sample of the scored cases.

    A case has no values where stage 1 did not find the target, or fewer than two classes are near a surface. None
    has any where that is so in all training cases, or where the network is three-dimensional, whose maps depend on
    the window.

    Args:
        predictor: of the model.
        folder: of the fold, with the cuts.
        fitting: names of the training cases that probes are fitted on.
        cases: names of the scored cases.
        labels: structure name to value in the references.
        ignore: value of voxels that nobody contoured, or None.
    """
    if predictor.models[0].segment.spatial_dims != 2:
        return no_features(cases)
    parts = [case_features(predictor, read_cut(folder, name, FITTING), labels, ignore) for name in fitting]
    found = [part for part in parts if part is not None]
    if not found:
        return no_features(cases)
    probes = fit_probes(VoxelFeatures.joined(found))
    lines: list[Line] = []
    for name, _, nothing in no_features(cases):
        own = case_features(predictor, read_cut(folder, name), labels, ignore)
        measured = None if own is None else probes.measure(own)
        lines.append((name, None, nothing if measured is None else {n: measured.value(n) for n in FEATURE_NAMES}))
    return lines


def no_features(cases: Sequence[str]) -> list[Line]:
    """Return the lines of a model whose features are not measured, for the sample of the scored cases."""
    return [(name, None, dict.fromkeys(FEATURE_NAMES)) for name in spread(cases, FEATURE_CASES)]


def case_features(
    predictor: Predictor, cut: Cut, labels: dict[str, int], ignore: int | None
) -> VoxelFeatures | None:
    """Read the finest decoder map near the true surfaces of a case; None without two classes there.

    Args:
        predictor: of a model whose stage 2 is 2.5D.
        cut: scan and references.
        labels: structure name to value in the references.
        ignore: value of voxels that nobody contoured, or None.
    """
    if cut.found.centre_mm is None:
        return None
    model = predictor.models[0]
    stage = model.card.segment
    crop = read_field(stage, cut.image, View(cut.found.centre_mm))
    hu = torch.from_numpy(crop.array).to(predictor.device)
    truth = resample_labels(cut.references[TRUTH], crop.geometry).array
    classes = np.zeros(truth.shape, dtype=np.uint8)
    for k, value in enumerate(labels.values(), start=1):
        classes[truth == value] = k
    if ignore is not None:
        classes[truth == ignore] = IGNORE_CLASS
    if cut.not_contoured:
        classes[classes == 0] = IGNORE_CLASS  # it may be what nobody drew
    with autocast(pick_precision(predictor.precision, predictor.device), predictor.device):
        found = band_features(
            model.segment,
            hu,
            torch.from_numpy(classes).to(predictor.device),
            stage.hu_window,
            stage.input_slices,
            stage.spacing_mm,
            band_mm=BAND_MM,
            voxels=VOXELS,
            classes=len(labels) + 1,
            ignore_index=IGNORE_CLASS,
        )
    return found if len(np.unique(found.classes)) > 1 else None


def write_beyond(path: Path, arm: str, seed: int, fold: Fold, lines: Iterable[Line]) -> None:
    """Write the lines of a run; the name of the file says which they are."""
    columns = COLUMNS[path.name]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for case, structure, values in lines:
        place = [arm, seed, fold, case] if structure is None else [arm, seed, fold, case, structure]
        writer.writerow([*place, *(_number(values[name]) for name in columns[len(place) :])])
    write_text(path, text.getvalue())


def read_beyond(path: Path) -> list[BeyondRow]:
    """Read the rows of a run, or of a whole study; the name of the file says which they are.

    Raises:
        InputError: not such a file.
    """
    columns = COLUMNS[path.name]
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            content = list(csv.DictReader(handle))
        return [_row(line, columns) for line in content]
    except (OSError, UnicodeDecodeError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise InputError(
            f"{path}: not readable as such a table ({error}); expected the columns {', '.join(columns)}"
        ) from error


def _row(line: dict[str, str], columns: Sequence[str]) -> BeyondRow:
    named = [c for c in columns if c in SMOOTHNESS_NAMES or c in FEATURE_NAMES]
    return BeyondRow(
        line["arm"],
        int(line["seed"]),
        read_fold(line["fold"]),
        line["case"],
        line["structure"] if "structure" in columns else None,
        {name: float(line[name]) if line[name] else None for name in named},
    )


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.6f}"
