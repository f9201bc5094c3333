"""The card of a trained model: how to build and feed its networks, and what they were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from metricunet import __version__
from metricunet.cohort.layout import DatasetInfo
from metricunet.cohort.names import standard_name
from metricunet.cohort.prepare import PreparedCase
from metricunet.files.model import ModelCard, StageCard
from metricunet.training.config import TrainConfig


def locate_network(config: TrainConfig, classes: int) -> dict[str, Any]:
    """Return the arguments of `build_network` for stage 1, a U-Net."""
    stage = config.locate
    return {
        "architecture": "unet",
        "in_channels": 1,
        "classes": classes,
        "base_channels": stage.base_channels,
        "levels": stage.levels,
        "spatial_dims": 3,
        "norm": "batch",
    }


def segment_network(config: TrainConfig, classes: int) -> dict[str, Any]:
    """Return the arguments of `build_network` for stage 2."""
    stage = config.segment
    return {
        "architecture": stage.network,
        "in_channels": 1 if stage.spatial_dims == 3 else stage.slices,
        "classes": classes,
        "base_channels": stage.base_channels,
        "levels": stage.levels,
        "spatial_dims": stage.spatial_dims,
        "norm": "instance",
    }


def model_card(
    config: TrainConfig,
    info: DatasetInfo,
    train: Sequence[PreparedCase],
    val: Sequence[PreparedCase],
    data_sha256: str,
    crop_dice: float | None,
    errors_mm: np.ndarray,
) -> ModelCard:
    """Fill in the card of a training.

    Args:
        config: of the training.
        info: what dataset.json says.
        train: training cases.
        val: validation cases; may be none.
        data_sha256: hash of all their files.
        crop_dice: best mean Dice of the validation cases in their crops.
        errors_mm: localisation errors of the validation cases [cases, 3].
    """
    classes = len(info.labels) + 1
    crop = [
        round(side / step) for side, step in zip(config.segment.crop_mm, config.segment.spacing_mm, strict=True)
    ]
    validation = {"cases": float(len(val))} if val else {}
    if crop_dice is not None:
        validation["crop_dice"] = crop_dice
    if val and len(errors_mm):
        validation["localisation_error_mm"] = float(np.linalg.norm(errors_mm, axis=1).mean())
    return ModelCard(
        locate=StageCard(locate_network(config, classes), config.locate.spacing_mm, None, config.locate.hu_window),
        segment=StageCard(
            segment_network(config, classes),
            config.segment.spacing_mm,
            (crop[0], crop[1], crop[2]),
            config.segment.hu_window,
            config.segment.block_slices if config.segment.spatial_dims == 3 else None,
        ),
        labels=info.labels,
        tg263={name: standard_name(name, config.tg263) for name in info.labels},
        target=config.target,
        ranges=_ranges(train),
        validation=validation,
        trained_on=info.trained_on or "not stated",
        data_sha256=data_sha256,
        seed=config.seed,
        version=__version__,
        license=config.license,
    )


def _ranges(cases: Sequence[PreparedCase]) -> dict[str, tuple[float, float]]:
    columns: dict[str, list[float]] = {}
    for case in cases:
        columns.setdefault("slice_spacing_mm", []).append(case.facts["spacing_mm"][0])
        columns.setdefault("pixel_spacing_mm", []).extend(case.facts["spacing_mm"][1:])
        if "volume_ml" in case.facts:
            columns.setdefault("volume_ml", []).append(case.facts["volume_ml"])
            columns.setdefault("target_hu", []).append(case.facts["target_hu"])
    return {name: (min(values), max(values)) for name, values in columns.items()}
