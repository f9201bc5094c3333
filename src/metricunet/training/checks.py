"""Settings of stage 2 that do not fit each other, found before any work."""

from __future__ import annotations

from metricunet.errors import InputError
from metricunet.networks import Network
from metricunet.training.config import SegmentConfig

#: The dimensions a network comes in, and the fewest levels it can have.
DIMS: dict[str, tuple[int, ...]] = {"unet": (2, 3), "fcn": (2,), "vnet": (3,)}
FEWEST_LEVELS = {"unet": 2, "fcn": 3, "vnet": 2}


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
