"""The branch beside the segmentation: the loss that the configuration asks for, and the offline patches."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from metricunet.errors import InputError
from metricunet.metric import (
    HardEasySampler,
    IntensityKinds,
    PatchMetricLoss,
    VoxelClassLoss,
    VoxelMetricLoss,
    draw_patch_tuples,
    read_patches,
)
from metricunet.networks import Network
from metricunet.structures import IGNORE_CLASS
from metricunet.training.augment import augmented_input
from metricunet.training.batches import SegmentBatches
from metricunet.training.config import TrainConfig
from metricunet.training.partial_labels import certain_labels
from metricunet.training.voxel_branch import check_voxels, tuple_options, voxel_branch

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
        InputError: the network lacks a tap or cannot halve a patch often enough, or a setting of `voxel_branch`.
    """
    metric = config.metric
    if metric.weight == 0 or metric.mode == "none":
        return None
    if metric.mode == "offline":
        _check_patch(network, metric.patch_voxels, config)
        check_voxels(metric, classes)
        return PatchMetricLoss(network.bottleneck_channels, metric.embedding, tuple_options(metric))
    if max(metric.taps) >= len(network.decoder_channels):
        raise InputError(
            f"setting metric.taps is {list(metric.taps)}, but this network has decoder maps 0 to "
            f"{len(network.decoder_channels) - 1}; choose among these or raise segment.levels"
        )
    channels = [network.decoder_channels[tap] for tap in metric.taps]
    low, high = config.segment.hu_window
    tissues = IntensityKinds([(2 * hu - low - high) / (high - low) for hu in TISSUE_HU])
    return voxel_branch(metric, channels, classes, IGNORE_CLASS, tissues)


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
