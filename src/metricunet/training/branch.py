"""The branch beside the segmentation: the objective that the configuration asks for, and the offline patches."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from metricunet.cohort.prepare import IGNORE_CLASS
from metricunet.errors import InputError
from metricunet.metric import (
    HardEasySampler,
    PatchMetricLoss,
    Sampler,
    VoxelClassLoss,
    VoxelMetricLoss,
    build_sampler,
    draw_patch_tuples,
    read_patches,
)
from metricunet.metric.sampling import sampler_settings
from metricunet.networks import Network
from metricunet.training.augment import augmented_input
from metricunet.training.batches import SegmentBatches
from metricunet.training.config import TrainConfig
from metricunet.training.partial_labels import certain_labels

Branch = VoxelMetricLoss | VoxelClassLoss | PatchMetricLoss


def build_metric(network: Network, config: TrainConfig, classes: int) -> Branch | None:
    """Build the branch that the configuration asks for; None where there is none or its weight is 0.

    Raises:
        InputError: a tap that the network does not have, or a patch that it cannot halve often enough.
    """
    metric = config.metric
    if metric.weight == 0 or metric.mode == "none":
        return None
    if metric.mode == "offline":
        _check_patch(network, metric.patch_voxels, config)
        return PatchMetricLoss(
            network.bottleneck_channels,
            metric.embedding,
            metric.margin,
            metric.positive_margin,
            metric.negative_margin,
            metric.triplet_weight,
            metric.pair_weight,
            metric.triplet_form,
        )
    if max(metric.taps) >= len(network.decoder_channels):
        raise InputError(
            f"setting metric.taps is {list(metric.taps)}, but this network has decoder maps 0 to "
            f"{len(network.decoder_channels) - 1}; choose among these or raise segment.levels"
        )
    sampler = _sampler(config, classes)
    channels = [network.decoder_channels[tap] for tap in metric.taps]
    if metric.mode == "control":
        return VoxelClassLoss(sampler, metric.embedding, channels, IGNORE_CLASS)
    return VoxelMetricLoss(
        sampler,
        head=metric.embedding,
        channels=channels,
        pairs=metric.pairs,
        margin=metric.margin,
        positive_margin=metric.positive_margin,
        negative_margin=metric.negative_margin,
        triplet_weight=metric.triplet_weight,
        pair_weight=metric.pair_weight,
        ignore_index=IGNORE_CLASS,
        triplets=metric.triplets,
        triplet_form=metric.triplet_form,
        supcon_weight=metric.supcon_weight,
        temperature=metric.temperature,
        across=metric.across,
    )


def _sampler(config: TrainConfig, classes: int) -> Sampler:
    metric = config.metric
    settings = {
        "voxels": metric.voxels,
        "classes": classes,
        "hard_share": metric.hard_share,
        "band_mm": metric.band_mm,
    }
    known = sampler_settings(metric.sampler)
    return build_sampler(metric.sampler, **{k: v for k, v in settings.items() if k in known})


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
        boxes: of stage 2.
        config: of the training; its seed decides the tuples.
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
        """Return the patches of an update, with random changes of HU: [3 tuples, slices, side, side] in -1..1.

        In 3D a patch has a block's slices: [3 tuples, 1, slices, side, side].
        """
        part = self.tuples.of_update(update, self.config.metric.patch_tuples_per_update)
        hu = read_patches(self.boxes.hu, part.centres.flatten(0, 1), self.shape).to(torch.float32)
        stage = self.config.segment
        if stage.spatial_dims == 3:
            hu = hu[:, None]
        spacing_mm = stage.spacing_mm[-stage.spatial_dims :]
        return augmented_input(hu, spacing_mm, stage.hu_window, self.config.augment, generator)
