"""Calibration: what the validation cases say of a trained network's probabilities, for its model file.

Each validation case is segmented in the crop around its true centre. Voxels within 10 mm of the box of what was
predicted count, those that nobody contoured do not: the choice must not depend on the truth, or the probabilities
would be held against voxels that they cannot know to be special. Far from the gland there is nothing to learn.

- The **temperature** is the one under which the true classes of these voxels are likeliest, all cases together.
- The **scale** is the ratio of true to expected boundary error, both summed over the cases, plus its standard
  error (jackknife over the cases): the fewer cases there are, the more error is expected, never less.
- The **range** of expected errors, scale included, is what a new case is compared with.

All of it is deterministic. The validation cases have also chosen the epoch, so they flatter the network a little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

from metricunet.cohort.layout import read_cohort
from metricunet.cohort.prepare import OrgansSettings, PreparedCase, PrepareSettings, prepare
from metricunet.cohort.splits import Fold, split_for
from metricunet.errors import InputError
from metricunet.files.model import Calibration, ModelCard, read_model, write_model
from metricunet.inference.predictor import load_model
from metricunet.networks import Network
from metricunet.progress import Progress
from metricunet.quality.boundary import boundary_error, near
from metricunet.quality.temperature import fit_temperature, tempered
from metricunet.specs import SegmentSpec
from metricunet.stages.classes import keep_largest_piece
from metricunet.stages.device import device_named
from metricunet.stages.forward import crop_probabilities
from metricunet.stages.network_input import Precision
from metricunet.structures import IGNORE_CLASS


@dataclass(frozen=True, eq=False)
class Validated:
    """What stage 2 makes of a validation case, near what it predicts.

    Attributes:
        probabilities: float32 [classes, slice, row, column].
        mask: the target, as a prediction leaves it [slice, row, column].
        classes: true ones [slice, row, column], `IGNORE_CLASS` included.
        spacing_mm: slice, row, column.
    """

    probabilities: NDArray[np.float32]
    mask: NDArray[np.bool_]
    classes: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]


def calibrate(
    model: str | Path,
    cohort: str | Path,
    output: str | Path,
    *,
    fold: Fold = 0,
    device: str = "auto",
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Calibrate a trained model on the validation cases of a cohort, as training does at its end.

    Args:
        model: model file.
        cohort: nnU-Net raw data set with the same structures.
        output: model file to write: the same weights, and a card with the calibration, which lists its cases among
            those that the model was validated on. May be `model` itself.
        fold: whose validation cases are taken.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, `gpu`, `gpu:N` or `mps`.
        cache: folder to keep the prepared cases in, for other models; default: they are not kept.
        progress: called with (done, all) while the cases are read.

    Raises:
        InputError: a model or cohort that cannot be read, other structures, a case that the model or one that
            it descends from was trained on, another's file at `output`, or no case that can be used.
    """
    model, cohort, output = Path(model), Path(cohort), Path(output)
    if output.exists() and not output.samefile(model):
        raise InputError(f"{output}: is there already; choose another name")
    loaded = load_model(model, device_named(device))
    card, content = loaded.card, read_cohort(cohort)
    if [*content.info.labels.items()] != [*card.labels.items()]:
        raise InputError(
            f"{cohort}: has the structures {', '.join(content.info.labels)}; expected those of {model}, "
            f"{', '.join(card.labels)}, with the same values and in the same order"
        )
    chosen = set(split_for(content, fold).val)
    stage = card.segment
    organs = card.organs
    settings = PrepareSettings(
        card.target,
        card.locate.spacing_mm,
        stage.spacing_mm,
        stage.crop_mm,
        None if organs is None else OrgansSettings(card.organs_structures, organs.spacing_mm, organs.crop_mm),
    )
    files = [case for case in content.training if case.name in chosen]
    with TemporaryDirectory() as temporary:
        cases = prepare(files, content.info, settings, Path(cache or temporary), progress)
    _refuse_seen(model, card, cases, fold)
    found = calibration(loaded.segment, stage, cases, card.target_class)
    if found is None:
        raise InputError(
            f"{cohort}: the model finds {card.target} in no validation case of fold {fold} that holds it, so "
            "there is nothing to calibrate on; choose another fold"
        )
    images = {*card.validation_cases, *(case.image_sha256 for case in cases if case.image_sha256)}
    card = replace(card, calibration=found, validation_cases=tuple(sorted(images)))
    write_model(output, card, read_model(model)[1])
    return output


def _refuse_seen(model: Path, card: ModelCard, cases: Sequence[PreparedCase], fold: Fold) -> None:
    """Refuse cases that a model, or one that it descends from, was trained on: too small errors would be expected.

    Raises:
        InputError: it names the first such case, and the model that has seen it.
    """
    trainings = [("was trained", "name the fold that it was validated on", card.cases)]
    for one in card.lineage:
        trainings.append((f"descends from {one.name}, which was trained", "name a fold without them", one.cases))
    for what, advice, images in trainings:
        if seen := [case.name for case in cases if case.image_sha256 in images]:
            raise InputError(
                f"{model}: {what} on {seen[0]} ({len(seen)} of {len(cases)} cases of fold {fold}); {advice}"
            )


def calibration(
    network: Network,
    stage: SegmentSpec,
    cases: Sequence[PreparedCase],
    target: int,
    precision: Precision = "auto",
) -> Calibration | None:
    """Fit the calibration of stage 2.

    Args:
        network: network of stage 2, in evaluation mode.
        stage: the spec of stage 2.
        cases: validation cases; those without the target, or where nothing is predicted, are passed over.
        target: class of the target in stage 2.
        precision: precision to compute in.

    Returns:
        None where no case is left.
    """
    found = [validated(network, stage, case, target, precision) for case in cases]
    # Around a mask that lies in what nobody contoured there is nothing to learn.
    seen = [v for v in found if v is not None and (v.classes != IGNORE_CLASS).any()]
    if not seen:
        return None
    known = [v.classes != IGNORE_CLASS for v in seen]
    fit = fit_temperature([(v.probabilities[:, k], v.classes[k]) for v, k in zip(seen, known, strict=True)])
    errors = np.array([_errors_mm(v, fit.temperature, target) for v in seen])
    scale = mm_scale(errors[:, 0], errors[:, 1])
    return Calibration(
        fit.temperature,
        scale,
        (float(errors[:, 0].min()) * scale, float(errors[:, 0].max()) * scale),
        len(seen),
        {"nll_before": fit.nll_before, "nll_after": fit.nll_after},
    )


def validated(
    network: Network, stage: SegmentSpec, case: PreparedCase, target: int, precision: Precision = "auto"
) -> Validated | None:
    """Segment a case around its true centre; None where it has no target or none is found. See `calibration`.

    Where a structure was not contoured, its voxels are among the background's, and so is its probability.
    """
    crop = case.central_crop(stage.crop_voxels)
    if crop is None or target in crop.unknown:
        return None
    hu = crop.hu
    images = torch.from_numpy(hu.array).to(next(network.parameters()).device)
    found = crop_probabilities(network, stage, images, precision).cpu().numpy()
    classes = found.argmax(axis=0).astype(np.uint8)
    keep_largest_piece(classes, target)
    mask = classes == target
    if not mask.any():
        return None
    for k in crop.unknown:
        found[0] += found[k]
        found[k] = 0
    part = near(mask, hu.spacing_mm)
    return Validated(found[:, *part], mask[part], crop.labels.array[part], hu.spacing_mm)


def mm_scale(expected_mm: NDArray[np.floating], true_mm: NDArray[np.floating]) -> float:
    """Return the ratio of true to expected errors plus its standard error; of one case no less than 1.

    Args:
        expected_mm: one for each case, above 0.
        true_mm: one for each case.
    """
    n = len(expected_mm)
    ratio = float(true_mm.sum() / expected_mm.sum())
    if n == 1:
        return max(1.0, ratio)
    without = (true_mm.sum() - true_mm) / (expected_mm.sum() - expected_mm)
    return ratio + float(np.sqrt((n - 1) / n * np.square(without - without.mean()).sum()))


def _errors_mm(case: Validated, temperature: float, target: int) -> tuple[float, float]:
    """Return expected and true boundary error of a case; voxels that nobody contoured count as right in both."""
    unknown = case.classes == IGNORE_CLASS
    probability = np.where(unknown, case.mask, tempered(case.probabilities, temperature)[target])
    truth = np.where(unknown, case.mask, case.classes == target)
    expected, found = (boundary_error(inside, case.mask, case.spacing_mm) for inside in (probability, truth))
    return expected.case_mm, found.case_mm
