"""Scoring a trained model: the masks that it makes of the cases, and what is measured in them.

Overlap and surface measures are those of `metricunet evaluate`, on each scan's own grid; a missed structure has a
row, too. Smoothness is measured in every scored case, against the true shape. Features are read from the finest
decoder map, which every network has whatever it was trained with, in a fixed sample of the scored cases; the
probes are fitted on a fixed sample of the training cases, in every arm on their true shapes. The voxels are the
same in every arm.

A model of two stages segments the cuts of its fold. A network of one stage segments whole scans, and its mask is
scored on the whole scan, for it may lie anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from metricunet.evaluation.features import FEATURE_NAMES, VoxelFeatures, band_features, fit_probes
from metricunet.evaluation.measures import MEASURE_NAMES, Measures, measure
from metricunet.evaluation.smoothness import SMOOTHNESS_NAMES, Smoothness, measure_smoothness
from metricunet.files.record import sha256
from metricunet.inference.predictor import Predictor
from metricunet.stages.classes import keep_largest_piece
from metricunet.stages.forward import coarse_probabilities
from metricunet.stages.locate import classes_on, localise, locate_spec
from metricunet.stages.network_input import Precision, autocast, pick_precision
from metricunet.stages.segment import View, read_field
from metricunet.structures import IGNORE_CLASS, classes_of, values_of
from metricunet.study.data import TRUTH, ScoredCase, spread
from metricunet.study.folds import FITTING, Cut, read_cut, read_scan
from metricunet.training.fit import Located
from metricunet.training.run import Run
from metricunet.volume import Volume, resample_labels

#: Training cases that probes are fitted on, and scored cases whose features are measured: all of them, up to this.
FITTING_CASES, FEATURE_CASES = 12, 40
#: Of each case, half from each class.
VOXELS, BAND_MM = 512, 3.0


class Measured(NamedTuple):
    """What was measured in a case.

    Attributes:
        case: name.
        structure: name; None for features, which tell all classes apart.
        values: measure to value; None where it has none.
    """

    case: str
    structure: str | None
    values: Mapping[str, float | None]


@dataclass(frozen=True, eq=False)
class ScoredCut:
    """A cut, or a whole scan, and the mask that a model makes of it.

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

    def overlap(self, whose: str) -> list[Measured]:
        """Measure overlap and surfaces of every structure against a reference; no values if not contoured."""
        return self._measured(whose, measure, MEASURE_NAMES)

    def smoothness(self) -> list[Measured]:
        """Measure the smoothness of every structure against the true shape; no values if not contoured."""
        return self._measured(TRUTH, measure_smoothness, SMOOTHNESS_NAMES)

    def _measured(
        self, whose: str, measured: Callable[[Volume, Volume], Measures | Smoothness], names: Sequence[str]
    ) -> list[Measured]:
        values: dict[str, Mapping[str, float | None]] = {s: dict.fromkeys(names) for s in self.labels}
        for structure, mask, reference in self.pairs(whose):
            found = measured(mask, reference)
            values[structure] = {name: found.value(name) for name in names}
        return [Measured(self.cut.name, structure, of_structure) for structure, of_structure in values.items()]


def cut_predictor(model: Path, device: str, precision: Precision) -> Predictor:
    """Read a model to segment cuts with; a cut holds no more of the scan than one crop, so there are no reruns.

    Args:
        model: the model file.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, `gpu`, `gpu:N` or `mps`.
        precision: the precision of the training.
    """
    return Predictor([model], device, precision, reruns=0)


def segment_cut(predictor: Predictor, cut: Cut, labels: dict[str, int], ignore: int | None) -> ScoredCut:
    """Segment one cut.

    Args:
        predictor: of the model.
        cut: scan and references.
        labels: structure name to value in the references.
        ignore: value of voxels that nobody contoured, or None.
    """
    found = predictor.segment(cut.image, cut.found).labels
    values = np.zeros(cut.image.geometry.shape, dtype=np.uint8) if found is None else found.array
    return ScoredCut(cut, values, labels, ignore)


def segment_whole_scan(run: Run, located: Located, case: ScoredCase) -> ScoredCut:
    """Segment a whole scan with a trained network of one stage. Memory grows with the scan.

    Of the target, only the largest piece is kept, as by stage 2.

    Args:
        run: that it was trained in.
        located: the trained network.
        case: to segment.

    Raises:
        InputError: unreadable files, two different grids, or values that are no HU.
    """
    image, references = read_scan(case, run.info)
    spec = locate_spec(run.config.locate, run.classes)
    _, *shares = coarse_probabilities(located.network, spec, image, run.config.precision)
    classes = classes_on(image, shares)
    keep_largest_piece(classes, run.target)
    values = values_of(classes, run.labels)
    found = localise(shares[run.target - 1])
    files = [case.image, *case.references.values()]
    cut = Cut(case.name, image, references, found, sha256(files), case.not_contoured)
    return ScoredCut(cut, values, run.labels, run.info.ignore)


def score_features(
    predictor: Predictor,
    folder: Path,
    fitting: Sequence[str],
    cases: Sequence[str],
    labels: dict[str, int],
    ignore: int | None,
) -> list[Measured]:
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
    measured: list[Measured] = []
    for nothing in no_features(cases):
        own = case_features(predictor, read_cut(folder, nothing.case), labels, ignore)
        if own is None:
            measured.append(nothing)
        else:
            of_case = probes.measure(own)
            measured.append(Measured(nothing.case, None, {name: of_case.value(name) for name in FEATURE_NAMES}))
    return measured


def no_features(cases: Sequence[str]) -> list[Measured]:
    """Return rows without values for the sample of the scored cases: of a model without measured features."""
    return [Measured(name, None, dict.fromkeys(FEATURE_NAMES)) for name in spread(cases, FEATURE_CASES)]


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
    classes = classes_of(truth, labels, ignore)
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
