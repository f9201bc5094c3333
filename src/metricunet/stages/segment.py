"""Stage 2: a network on a crop around the located centre, and where it looks.

What it looks at is a field: one crop, or more of them where the target reached the crop's faces.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from metricunet.specs import SegmentSpec
from metricunet.stages.read import read_hu
from metricunet.volume import FloatArray, Geometry, Volume


@dataclass(frozen=True, eq=False)
class View:
    """Where stage 2 is to look.

    Attributes:
        centre_mm: LPS middle of the field.
        growth: sides of the field as multiples of the crop's: slice, row, column.
    """

    centre_mm: FloatArray
    growth: tuple[float, float, float] = (1.0, 1.0, 1.0)


class SegmentSettings(Protocol):
    """What a training chooses of stage 2."""

    @property
    def network(self) -> str:
        """Name of the network."""

    @property
    def spatial_dims(self) -> int:
        """2 for a 2.5D network, 3 for a 3D one."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel spacing of the crop: slice, row, column."""

    @property
    def crop_voxels(self) -> tuple[int, int, int]:
        """Sides of the crop: slice, row, column."""

    @property
    def hu_window(self) -> tuple[float, float]:
        """HU that map to -1 and 1."""

    @property
    def slices(self) -> int:
        """Neighbouring slices that a 2.5D network takes."""

    @property
    def block_slices(self) -> int:
        """Slices of the windows that a 3D network takes."""

    @property
    def base_channels(self) -> int:
        """Width of the finest level."""

    @property
    def levels(self) -> int:
        """Resolutions of the network."""


def segment_spec(settings: SegmentSettings, classes: int) -> SegmentSpec:
    """Return stage 2 as a training has chosen it, with instance normalisation.

    Args:
        settings: settings of the training.
        classes: number of classes, background included.
    """
    solid = settings.spatial_dims == 3
    network = {
        "architecture": settings.network,
        "in_channels": 1 if solid else settings.slices,
        "classes": classes,
        "base_channels": settings.base_channels,
        "levels": settings.levels,
        "spatial_dims": settings.spatial_dims,
        "norm": "instance",
    }
    block_slices = settings.block_slices if solid else None
    return SegmentSpec(network, settings.spacing_mm, settings.crop_voxels, settings.hu_window, block_slices)


def field_grid(spec: SegmentSpec, geometry: Geometry, view: View) -> Geometry:
    """Return the grid of a field of stage 2.

    Args:
        spec: the spec of stage 2.
        geometry: grid of the scan, whose axes the field has.
        view: the field that stage 2 looks at.
    """
    return geometry.box_around(view.centre_mm, _field_voxels(spec, view), spec.spacing_mm)


def read_field(spec: SegmentSpec, image: Volume, view: View) -> Volume:
    """Read a scan in HU on the grid of a field of stage 2; beyond the scan is air.

    Args:
        spec: the spec of stage 2.
        image: the scan in HU, with axes to the head, the back and the left.
        view: the field that stage 2 looks at.
    """
    return read_hu(image, field_grid(spec, image.geometry, view))


def covered_part(
    specs: Iterable[SegmentSpec], geometry: Geometry, view: View
) -> tuple[Geometry, tuple[int, int, int]]:
    """Return the part of a scan's grid that the fields of all models cover, and its first voxel in the scan.

    Args:
        specs: the spec of stage 2 of each model.
        geometry: grid of the scan.
        view: the field that stage 2 looks at.
    """
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    middle = geometry.to_index(view.centre_mm)
    for spec in specs:
        sides = np.asarray(_field_voxels(spec, view)) * np.asarray(spec.spacing_mm)
        half = sides / 2 / np.asarray(geometry.spacing_mm)
        low, high = np.minimum(low, middle - half), np.maximum(high, middle + half)
    first = np.clip(np.ceil(low), 0, np.asarray(geometry.shape) - 1).astype(int)
    last = np.clip(np.floor(high), first, np.asarray(geometry.shape) - 1).astype(int)
    start = (int(first[0]), int(first[1]), int(first[2]))
    return geometry.crop(start, (last - first + 1).tolist()), start


def central_crop(box: Volume, crop_voxels: Sequence[int]) -> Volume:
    """Cut a box to the crop in its middle.

    Args:
        box: a box on stage 2's grid.
        crop_voxels: sides of the crop: slice, row, column; no longer than the box's.
    """
    first = [(length - n) // 2 for length, n in zip(box.array.shape, crop_voxels, strict=True)]
    return box.crop(first, crop_voxels)


def _field_voxels(spec: SegmentSpec, view: View) -> tuple[int, int, int]:
    slices, rows, columns = (
        math.ceil(side * growth) for side, growth in zip(spec.crop_voxels, view.growth, strict=True)
    )
    return slices, rows, columns
