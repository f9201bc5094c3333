"""What each of the two stages is, as plain values: its network, the grid that it sees, the HU that it tells apart.

A model's card holds one of each, and the same two values drive training, prediction, studies and benchmarks. They
stand at the bottom of the package, below `metricunet.files`, because the model file reads and writes them, and a
card is read without torch. What is computed by them, on volumes and with networks, is in `metricunet.stages`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LocateSpec:
    """How to build and feed stage 1, which sees the whole scan on a coarse grid.

    Attributes:
        network: arguments of `metricunet.networks.build_network`.
        spacing_mm: voxel spacing of the coarse grid: slice, row, column.
        hu_window: HU that map to -1 and 1; what lies outside is clipped.
    """

    network: dict[str, Any]
    spacing_mm: tuple[float, float, float]
    hu_window: tuple[float, float]


@dataclass(frozen=True)
class SegmentSpec:
    """How to build and feed stage 2, which sees a crop around the located centre.

    Attributes:
        network: arguments of `metricunet.networks.build_network`.
        spacing_mm: voxel spacing of the crop's grid: slice, row, column.
        crop_voxels: sides of the crop: slice, row, column.
        hu_window: HU that map to -1 and 1; what lies outside is clipped.
        block_slices: slices of the windows that a 3D network takes; None for a 2.5D network.
    """

    network: dict[str, Any]
    spacing_mm: tuple[float, float, float]
    crop_voxels: tuple[int, int, int]
    hu_window: tuple[float, float]
    block_slices: int | None = None

    @property
    def input_slices(self) -> int:
        """Slices that the network takes: those of a block in 3D, neighbours in 2.5D."""
        return self.block_slices or int(self.network["in_channels"])

    @property
    def crop_mm(self) -> tuple[float, float, float]:
        """Sides of the crop in millimetres: slice, row, column."""
        slices, rows, columns = (n * step for n, step in zip(self.crop_voxels, self.spacing_mm, strict=True))
        return slices, rows, columns
