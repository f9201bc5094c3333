"""The branch on sampled voxels that the settings of `metric` ask for, whatever network has the maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from metricunet.errors import InputError
from metricunet.metric import (
    Background,
    BackgroundClusters,
    EmbeddingBank,
    IntensityKinds,
    Sampler,
    TupleOptions,
    VoxelClassLoss,
    VoxelMetricLoss,
    build_sampler,
)
from metricunet.metric.sampling import sampler_settings
from metricunet.training.config import MetricConfig


def voxel_branch(
    metric: MetricConfig,
    channels: Sequence[int],
    classes: int,
    ignore_index: int,
    tissues: IntensityKinds | None = None,
) -> VoxelMetricLoss | VoxelClassLoss:
    """Build the metric loss, or in mode `control` its control.

    Args:
        metric: the settings.
        channels: number of channels of each map that the branch reads, in the order of the taps.
        classes: number of classes, background included.
        ignore_index: label of voxels that are never drawn.
        tissues: tells kinds of background apart by intensity; needed where `metric.background` is `hu`.

    Raises:
        InputError: fewer voxels than two of each class, a memory bank smaller than what is added to it, or a
            distance from surfaces that leaves nothing to do, or does nothing.
    """
    check_voxels(metric, classes)
    _check_distances(metric)
    background: Background | None = None
    if metric.background == "hu":
        background = tissues
    elif metric.background == "clusters":
        background = BackgroundClusters(metric.background_clusters, metric.embedding, len(channels))
    sampler = _sampler(metric, classes)
    labels: dict[str, Any] = {
        "ignore_index": ignore_index,
        "unsure_mm": metric.unsure_mm,
        "left_out_mm": metric.left_out_mm,
        "background": background,
    }
    if metric.mode == "control":
        return VoxelClassLoss(sampler, metric.embedding, channels, **labels)
    kinds = 1 if background is None else background.kinds
    bank = _bank(metric, classes + kinds - 1, len(channels))
    options = tuple_options(metric)
    return VoxelMetricLoss(
        sampler, metric.embedding, channels, options, bank=bank, bank_share=metric.bank_share, **labels
    )


def check_voxels(metric: MetricConfig, classes: int) -> None:
    """Check that the voxels drawn in an image are two or more of each class, as every sampler wants them.

    Raises:
        InputError: it names the setting.
    """
    if metric.voxels < 2 * classes:
        raise InputError(
            f"setting metric.voxels is {metric.voxels}; with {classes} classes, background included, expected "
            f"{2 * classes} or more"
        )


def _check_distances(metric: MetricConfig) -> None:
    if metric.sampler == "boundary" and metric.left_out_mm >= metric.band_mm > 0:
        raise InputError(
            f"setting metric.left_out_mm is {metric.left_out_mm:g}; with metric.sampler boundary it must be less "
            f"than metric.band_mm, {metric.band_mm:g}, or all that is drawn would be left out"
        )
    if metric.unsure_mm > 0 and metric.mode == "online" and not (metric.triplet_weight or metric.pair_weight):
        raise InputError(
            f"setting metric.unsure_mm is {metric.unsure_mm:g} and shrinks margins, but metric.triplet_weight and "
            "metric.pair_weight are 0, and no other loss has a margin; set it to 0 (metric.left_out_mm leaves "
            "unsure voxels out of any loss)"
        )


def tuple_options(metric: MetricConfig) -> TupleOptions:
    """Return the options of the tuples and their losses, each of which is a setting of that name."""
    return TupleOptions(**{field.name: getattr(metric, field.name) for field in fields(TupleOptions)})


def _bank(metric: MetricConfig, classes: int, maps: int) -> EmbeddingBank | None:
    if metric.bank == 0:
        return None
    if metric.bank_new > metric.bank:
        raise InputError(
            f"setting metric.bank_new is {metric.bank_new}; expected no more than metric.bank, {metric.bank}, the "
            "number of voxels that the bank holds of a class"
        )
    return EmbeddingBank(metric.bank, classes, metric.embedding, maps, metric.bank_new)


def _sampler(metric: MetricConfig, classes: int) -> Sampler:
    settings = metric.model_dump() | {"classes": classes}
    return build_sampler(metric.sampler, **{name: settings[name] for name in sampler_settings(metric.sampler)})
