"""The branch beside the segmentation: the loss that the configuration asks for, and the offline patches."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Generator, Tensor

from metricunet.errors import InputError
from metricunet.metric import (
    Background,
    BackgroundClusters,
    EmbeddingBank,
    HardEasySampler,
    IntensityKinds,
    PatchMetricLoss,
    Sampler,
    TupleOptions,
    VoxelClassLoss,
    VoxelMetricLoss,
    build_sampler,
    draw_patch_tuples,
    read_patches,
)
from metricunet.metric.sampling import sampler_settings
from metricunet.networks import Network
from metricunet.structures import IGNORE_CLASS
from metricunet.training.augment import augmented_input
from metricunet.training.batches import SegmentBatches
from metricunet.training.config import MetricConfig, TrainConfig
from metricunet.training.partial_labels import certain_labels

#: HU that part the kinds of background: air, fat, soft tissue, bone.
TISSUE_HU = (-140.0, -30.0, 130.0)

Branch = VoxelMetricLoss | VoxelClassLoss | PatchMetricLoss


def build_metric(network: Network, config: TrainConfig, classes: int) -> Branch | None:
    """Build the branch that the configuration asks for; None where it asks for none or its weight is 0.

    Args:
        network: the network of stage 2.
        config: the configuration of the training.
        classes: number of classes, background included.

    Raises:
        InputError: the network lacks a tap, or cannot halve a patch often enough.
    """
    metric = config.metric
    if metric.weight == 0 or metric.mode == "none":
        return None
    if metric.mode == "offline":
        _check_patch(network, metric.patch_voxels, config)
        return PatchMetricLoss(network.bottleneck_channels, metric.embedding, tuple_options(metric))
    if max(metric.taps) >= len(network.decoder_channels):
        raise InputError(
            f"setting metric.taps is {list(metric.taps)}, but this network has decoder maps 0 to "
            f"{len(network.decoder_channels) - 1}; choose among these or raise segment.levels"
        )
    sampler = _sampler(config, classes)
    channels = [network.decoder_channels[tap] for tap in metric.taps]
    labels: dict[str, Any] = {
        "ignore_index": IGNORE_CLASS,
        "unsure_mm": metric.unsure_mm,
        "left_out_mm": metric.left_out_mm,
        "background": _background(config),
    }
    if metric.mode == "control":
        return VoxelClassLoss(sampler, metric.embedding, channels, **labels)
    return VoxelMetricLoss(
        sampler,
        metric.embedding,
        channels,
        tuple_options(metric),
        bank=_bank(metric, classes, labels["background"]),
        bank_share=metric.bank_share,
        **labels,
    )


def _background(config: TrainConfig) -> Background | None:
    metric = config.metric
    if metric.background == "hu":
        low, high = config.segment.hu_window
        return IntensityKinds([(2 * hu - low - high) / (high - low) for hu in TISSUE_HU])
    if metric.background == "clusters":
        return BackgroundClusters(metric.background_clusters, metric.embedding, len(metric.taps))
    return None


def _bank(metric: MetricConfig, classes: int, background: Background | None) -> EmbeddingBank | None:
    if metric.bank == 0:
        return None
    if metric.bank_new > metric.bank:
        raise InputError(
            f"setting metric.bank_new is {metric.bank_new}; expected no more than metric.bank, {metric.bank}, the "
            "number of voxels that the bank holds of a class"
        )
    kinds = 1 if background is None else background.kinds
    return EmbeddingBank(metric.bank, classes + kinds - 1, metric.embedding, len(metric.taps), metric.bank_new)


def tuple_options(metric: MetricConfig) -> TupleOptions:
    """Return the options of the tuples and their losses, each of which is a setting of that name."""
    return TupleOptions(**{field.name: getattr(metric, field.name) for field in fields(TupleOptions)})


def _sampler(config: TrainConfig, classes: int) -> Sampler:
    metric = config.metric
    settings = metric.model_dump() | {"classes": classes}
    return build_sampler(metric.sampler, **{name: settings[name] for name in sampler_settings(metric.sampler)})


def _check_patch(network: Network, side: int, config: TrainConfig) -> None:
    # Two voxels a side are the least at the bottleneck: its normalisation needs more than one.
    least = 2 * network.divisor
    most = min(config.segment.box_voxels[1:])
    if side % network.divisor or not least <= side <= most:
        raise InputError(
            f"setting metric.patch_voxels is {side}; expected a multiple of {network.divisor} from {least} "
            f"to {most}"
        )


class PatchBatches:
    """The patches of the offline baseline, cut from the fine boxes that training batches are cut from.

    Args:
        boxes: the batches of stage 2, which hold the boxes.
        config: the configuration of the training; its seed decides the tuples.

    Raises:
        InputError: the boxes hold fewer than two classes, or a single voxel of one.
    """

    def __init__(self, boxes: SegmentBatches, config: TrainConfig) -> None:
        metric, stage = config.metric, config.segment
        self.boxes, self.config = boxes, config
        self.shape = (stage.input_slices, metric.patch_voxels, metric.patch_voxels)
        try:
            self.tuples = draw_patch_tuples(
                certain_labels(boxes.labels, boxes.unknown),
                metric.patch_tuples,
                config.seed,
                sampler=HardEasySampler(metric.voxels, boxes.classes, metric.hard_share, metric.band_mm),
                spacing_mm=stage.spacing_mm,
                ignore_index=IGNORE_CLASS,
            )
        except ValueError as error:
            raise InputError(f"metric.mode offline: {error}; use metric.mode=online") from error

    def draw(self, update: int, generator: Generator) -> Tensor:
        """Cut the patches of an update and change their HU at random.

        Args:
            update: number of the update.
            generator: draws the changes.

        Returns:
            [3 tuples, slices, side, side], -1 to 1; in 3D [3 tuples, 1, slices, side, side] with a block's slices.
        """
        part = self.tuples.of_update(update, self.config.metric.patch_tuples_per_update)
        hu = read_patches(self.boxes.hu, part.centres.flatten(0, 1), self.shape).to(torch.float32)
        stage = self.config.segment
        if stage.spatial_dims == 3:
            hu = hu[:, None]
        spacing_mm = stage.spacing_mm[-stage.spatial_dims :]
        return augmented_input(hu, spacing_mm, stage.hu_window, self.config.augment, generator)
