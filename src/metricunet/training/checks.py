"""Settings that do not fit each other, found before any work."""

from __future__ import annotations

import torch

from metricunet.errors import InputError
from metricunet.networks import Network, build_network
from metricunet.stages.segment import segment_spec
from metricunet.training.branch import build_metric
from metricunet.training.config import SegmentConfig, TrainConfig
from metricunet.training.uncontoured import uncontoured_rows

#: The dimensions a network comes in, and the fewest levels it can have.
DIMS: dict[str, tuple[int, ...]] = {"unet": (2, 3), "fcn": (2,), "vnet": (3,)}
FEWEST_LEVELS = {"unet": 2, "fcn": 3, "vnet": 2}


def check_settings(config: TrainConfig, classes: int) -> None:
    """Check that settings fit each other.

    Args:
        config: every setting.
        classes: number of classes of the networks, background included.

    Raises:
        InputError: it names the first setting that does not fit.
    """
    segment, locate = config.segment, config.locate
    check_network(segment)
    uncontoured_rows(config)
    if config.metric.weight_as == "gradient_share" and config.metric.mode == "offline":
        raise InputError(
            "setting metric.weight_as is gradient_share; with metric.mode offline it must be factor, for that "
            "branch reads no decoder maps"
        )
    with torch.device("meta"):
        network = build_network(**segment_spec(config.segment, classes).network)
        build_metric(network, config, classes)
    if segment.slices % 2 == 0:
        raise InputError(f"setting segment.slices is {segment.slices}; expected an odd number: one middle slice")
    for crop, box, step in zip(segment.crop_mm, segment.box_mm, segment.spacing_mm, strict=True):
        if crop > box:
            raise InputError(
                f"setting segment.crop_mm is {crop:g} where segment.box_mm is {box:g}; enlarge the box"
            )
        if step > crop:
            raise InputError(f"setting segment.spacing_mm is {step:g} where segment.crop_mm is {crop:g}")
    for side in segment.crop_voxels[1:]:
        if side % network.divisor:
            raise InputError(
                f"setting segment.crop_mm gives {side} voxels in the slice; with segment.levels "
                f"{segment.levels} it must be a multiple of {network.divisor}"
            )
    check_field(segment, network)
    divisor = 2 ** (locate.levels - 1)
    if any(side % divisor for side in locate.patch_voxels):
        raise InputError(
            f"setting locate.patch_voxels is {list(locate.patch_voxels)}; with locate.levels {locate.levels} each "
            f"side must be a multiple of {divisor}"
        )


def check_network(stage: SegmentConfig) -> None:
    """Check that there is such a network.

    Raises:
        InputError: a network that does not come in these dimensions, or with so few levels.
    """
    known = DIMS[stage.network]
    if stage.spatial_dims not in known:
        raise InputError(
            f"setting segment.spatial_dims is {stage.spatial_dims}; with segment.network {stage.network} it must "
            f"be {known[0]}"
        )
    if stage.levels < FEWEST_LEVELS[stage.network]:
        raise InputError(
            f"setting segment.levels is {stage.levels}; segment.network {stage.network} needs "
            f"{FEWEST_LEVELS[stage.network]} or more"
        )


def check_field(stage: SegmentConfig, network: Network) -> None:
    """Check that a block can be halved as often as the network does, and that normalisation has voxels to work on.

    Raises:
        InputError: a block that does not fit the network or the crop, or a crop too small for the levels.
    """
    slices, rows, columns = stage.crop_voxels
    space = [rows, columns]
    if stage.spatial_dims == 3:
        if stage.block_slices % network.divisor:
            raise InputError(
                f"setting segment.block_slices is {stage.block_slices}; with segment.levels {stage.levels} it "
                f"must be a multiple of {network.divisor}"
            )
        if stage.block_slices > slices:
            raise InputError(
                f"setting segment.block_slices is {stage.block_slices}, but segment.crop_mm holds {slices} "
                "slices; take smaller blocks or a taller crop"
            )
        space.insert(0, stage.block_slices)
    if all(side == network.normalised_stride for side in space):
        raise InputError(
            f"setting segment.levels is {stage.levels}: a crop of {' x '.join(map(str, space))} voxels leaves one "
            "voxel at the coarsest level; take fewer levels or a larger segment.crop_mm"
        )
