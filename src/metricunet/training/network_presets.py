"""Networks of stage 2 that are compared with each other: equal in multiply-adds and in voxels seen.

The measure of all is the 2.5D U-Net of the preset `small`. Multiply-adds are counted for each labelled voxel of a
forward pass, on slices of 96 x 96 voxels and blocks of 32 such slices. One block of 32 labelled slices is the
batch of a 3D network where a 2.5D network has a batch of 32. Widths are the whole numbers that come nearest:

| preset      | base_channels | multiply-adds per voxel | to the first | parameters |
| ----------- | ------------- | ----------------------- | ------------ | ---------- |
| `unet-2.5d` | 16            | 46,576                  | 1.00         |  1,942,882 |
| `fcn`       | 21            | 46,265                  | 0.99         | 14,463,506 |
| `unet-3d`   | 14            | 43,642                  | 0.94         |  4,323,426 |
| `vnet`      | 5             | 47,209                  | 1.01         |  6,367,787 |

Parameters differ, for an FCN keeps most of them at its coarsest map, where they cost little.
"""

from __future__ import annotations

from typing import Any

#: Labelled slices in an update of each preset.
LABELLED_SLICES = 32

_FLAT = {"spatial_dims": 2, "slices": 5, "levels": 5, "batch_size": LABELLED_SLICES}
_SOLID = {"spatial_dims": 3, "block_slices": 32, "levels": 5, "batch_size": LABELLED_SLICES // 32}

#: Settings of the section `segment`, by name.
NETWORK_PRESETS: dict[str, dict[str, Any]] = {
    "unet-2.5d": {"network": "unet", **_FLAT, "base_channels": 16},
    "fcn": {"network": "fcn", **_FLAT, "base_channels": 21},
    "unet-3d": {"network": "unet", **_SOLID, "base_channels": 14},
    "vnet": {"network": "vnet", **_SOLID, "base_channels": 5},
}


def equal_batch_size(labelled_slices: int, spatial_dims: int, block_slices: int) -> int:
    """Return the batch size with which an update sees as many labelled slices.

    A 2.5D network sees one labelled slice for each member of the batch, a 3D network `block_slices`.

    Args:
        labelled_slices: in an update.
        spatial_dims: 2 or 3.
        block_slices: slices of a block, in 3D.

    Raises:
        ValueError: no whole number of blocks holds so many slices.
    """
    each = block_slices if spatial_dims == 3 else 1
    if labelled_slices < each or labelled_slices % each:
        raise ValueError(
            f"labelled_slices must be a multiple of block_slices {block_slices}; got {labelled_slices}"
        )
    return labelled_slices // each
