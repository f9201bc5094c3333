"""The card of a trained model: how to build and feed its networks, and what they were trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from metricunet import __version__
from metricunet.cohort.layout import DatasetInfo
from metricunet.cohort.names import standard_name
from metricunet.cohort.prepare import PreparedCase
from metricunet.files.model import FORMAT_VERSION, INTENDED_USE, ORGANS_FORMAT_VERSION, ModelCard
from metricunet.hu import level_hu, noise_hu
from metricunet.quality.checks import EXTENTS
from metricunet.stages.classes import box_of
from metricunet.stages.locate import locate_spec
from metricunet.stages.segment import segment_spec
from metricunet.structures import class_of, without
from metricunet.training.config import TrainConfig


def model_card(
    config: TrainConfig,
    info: DatasetInfo,
    train: Sequence[PreparedCase],
    val: Sequence[PreparedCase],
    data_sha256: str,
    crop_dice: float | None,
    errors_mm: np.ndarray,
    organs_dice: float | None = None,
) -> ModelCard:
    """Fill in the card of a training.

    Args:
        config: configuration of the training.
        info: what dataset.json says.
        train: training cases.
        val: validation cases; may be none.
        data_sha256: hash of all their files.
        crop_dice: best mean Dice of the validation cases in their crops.
        errors_mm: localisation errors of the validation cases in which stage 1 finds the target [cases found, 3].
        organs_dice: the same as `crop_dice` of the organs' network.
    """
    organs = config.organs.structures
    own = without(info.labels, organs)
    validation = {"cases": float(len(val))} if val else {}
    if crop_dice is not None:
        validation["crop_dice"] = crop_dice
    if organs_dice is not None:
        validation["organs_dice"] = organs_dice
    if val:
        validation["cases_with_target"] = float(sum("centre_mm" in case.facts for case in val))
        validation["cases_located"] = float(len(errors_mm))
    if val and len(errors_mm):
        validation["localisation_error_mm"] = float(np.linalg.norm(errors_mm, axis=1).mean())
    return ModelCard(
        locate=locate_spec(config.locate, len(own) + 1),
        segment=segment_spec(config.segment, len(own) + 1),
        labels=info.labels,
        tg263={name: standard_name(name, config.tg263) for name in info.labels},
        target=config.target,
        ranges=training_ranges(config, class_of(own, config.target), train),
        validation=validation,
        trained_on=info.trained_on or "not stated",
        data_sha256=data_sha256,
        seed=config.seed,
        version=__version__,
        license=config.license,
        intended_use=config.intended_use or INTENDED_USE,
        format_version=ORGANS_FORMAT_VERSION if organs else FORMAT_VERSION,
        organs=segment_spec(config.organs, len(organs) + 1) if organs else None,
        organs_structures=organs,
    )


def training_ranges(
    config: TrainConfig, target: int, cases: Sequence[PreparedCase]
) -> dict[str, tuple[float, float]]:
    """Return the smallest and the largest value of each quantity that verdicts compare a scan with.

    `slice_spacing_mm`, `pixel_spacing_mm`: of the scans. `volume_ml`, `target_hu` (median) and
    `extent_head_foot_mm`, `extent_front_back_mm`, `extent_left_right_mm` (sides of its box): of the target.
    `crop_hu` and `noise_hu`: see `metricunet.hu`; of stage 2's crop around the target.

    Args:
        config: configuration of the training.
        target: class of the target in stage 2.
        cases: training cases; those without the target count for the scans' quantities alone.
    """
    columns: dict[str, list[float]] = {}
    for case in cases:
        columns.setdefault("slice_spacing_mm", []).append(case.facts["spacing_mm"][0])
        columns.setdefault("pixel_spacing_mm", []).extend(case.facts["spacing_mm"][1:])
        if "volume_ml" in case.facts:
            columns.setdefault("volume_ml", []).append(case.facts["volume_ml"])
            columns.setdefault("target_hu", []).append(case.facts["target_hu"])
        for name, value in _fine_facts(config, target, case):
            columns.setdefault(name, []).append(value)
    return {name: (min(values), max(values)) for name, values in columns.items()}


def _fine_facts(config: TrainConfig, target: int, case: PreparedCase) -> Iterator[tuple[str, float]]:
    # The cached box is larger than the crop that a prediction sees.
    central = case.central_crop(config.segment.crop_voxels)
    if case.fine_labels is None or central is None:
        return
    box = box_of(case.fine_labels.array == target)
    if box is None:
        return  # a phantom's box in which nothing is to be found
    sides = [(p.stop - p.start) * step for p, step in zip(box, case.fine_labels.spacing_mm, strict=True)]
    yield from zip(EXTENTS, sides, strict=True)
    crop = central.hu.array
    for name, value in (("crop_hu", level_hu(crop)), ("noise_hu", noise_hu(crop))):
        if value is not None:
            yield name, value
