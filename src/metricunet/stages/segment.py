"""Stage 2: a network on a crop around the located centre, where it looks, and the probabilities that it finds.

What it looks at is a field: one crop, or more of them where the target reached the crop's faces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metricunet.networks import Network
from metricunet.specs import SegmentSpec
from metricunet.stages.network_input import (
    Precision,
    autocast,
    neighbouring_slices,
    normalise_hu,
    pick_precision,
    read_hu,
)
from metricunet.volume import FloatArray, Geometry, Volume

#: Slices that go through a 2.5D network at once. On a CPU more are slower, for their maps leave the caches.
SLICES_AT_ONCE = {"cpu": 8, "cuda": 64, "mps": 64}


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


@torch.inference_mode()
def crop_probabilities(network: Network, spec: SegmentSpec, crop: Tensor, precision: Precision = "auto") -> Tensor:
    """Run stage 2 over a crop: in 2.5D slice by slice, each with its neighbours; in 3D window by window.

    The windows of a 3D network are as deep as the blocks it was trained on, for its normalisation depends on the
    size of its field; they overlap by half and are averaged, the middle of a window weighing most. Memory is that
    of one window.

    Args:
        network: network of stage 2 in evaluation mode, on the device of `crop`.
        spec: the spec of stage 2; the crop may have any number of slices.
        crop: HU [slice, row, column], rows and columns that the network can halve.
        precision: precision to compute in.

    Returns:
        float32 [classes, slice, row, column].
    """
    images = normalise_hu(crop, spec.hu_window)
    with autocast(pick_precision(precision, crop.device), crop.device):
        if network.spatial_dims == 3:
            return _in_windows(network, images, spec.input_slices)
        stacks = neighbouring_slices(images, spec.input_slices)
        parts = [_probabilities(network, stack) for stack in torch.split(stacks, SLICES_AT_ONCE[crop.device.type])]
    return torch.cat(parts).transpose(0, 1).contiguous()


@torch.inference_mode()
def field_probabilities(
    network: Network, spec: SegmentSpec, field: Tensor, precision: Precision = "auto"
) -> Tensor:
    """Run stage 2 over a field that may be larger than its crop.

    The network keeps to crops of the size that it was trained on, for its normalisation depends on the size of
    its picture. They overlap by half along each axis on which the field is larger, and are averaged, the middle of
    a crop weighing most. A field of one crop is one run of `crop_probabilities`.

    Args:
        network: network of stage 2, as for `crop_probabilities`.
        spec: the spec of stage 2.
        field: HU [slice, row, column], no side shorter than the crop's.
        precision: precision to compute in.

    Returns:
        float32 [classes, slice, row, column].
    """
    crop_voxels = spec.crop_voxels
    starts = [window_starts(length, side) for length, side in zip(field.shape, crop_voxels, strict=True)]
    if all(len(places) == 1 for places in starts):
        return crop_probabilities(network, spec, field, precision)
    weight = torch.ones(crop_voxels, device=field.device)
    for axis, places in enumerate(starts):
        if len(places) > 1:
            rise = torch.arange(1, crop_voxels[axis] + 1, device=field.device)
            shape = [-1 if a == axis else 1 for a in range(3)]
            weight = weight * torch.minimum(rise, rise.flip(0)).float().reshape(shape)
    return _averaged(field, weight, lambda crop: crop_probabilities(network, spec, crop.contiguous(), precision))


def _in_windows(network: Network, images: Tensor, slices: int) -> Tensor:
    depth = images.shape[0]
    if depth < slices:
        images = F.pad(images[None, None], (0, 0, 0, 0, 0, slices - depth), mode="replicate")[0, 0]
    rise = torch.arange(1, slices + 1, device=images.device)
    weight = torch.minimum(rise, rise.flip(0)).float()[:, None, None].expand(slices, *images.shape[1:])
    averaged = _averaged(images, weight, lambda window: _probabilities(network, window[None, None])[0])
    return averaged[:, :depth].contiguous()


def _averaged(field: Tensor, weight: Tensor, find: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the weighted mean of what is found in windows that cover a field.

    Args:
        field: [slice, row, column].
        weight: weight of each voxel of a window, in the window's shape.
        find: takes a window of the field, and returns float32 [classes, slice, row, column].
    """
    starts = [window_starts(length, side) for length, side in zip(field.shape, weight.shape, strict=True)]
    total: Tensor | None = None
    weights = torch.zeros(field.shape, device=field.device)
    for first in product(*starts):
        window = tuple(slice(n, n + side) for n, side in zip(first, weight.shape, strict=True))
        found = find(field[window])
        if total is None:
            total = torch.zeros((len(found), *field.shape), device=field.device)
        total[(slice(None), *window)] += found * weight
        weights[window] += weight
    assert total is not None
    return total / weights


def window_starts(length: int, window: int) -> list[int]:
    """Return the first places of windows that cover a length, evenly spread, neighbours sharing half or more.

    Args:
        length: length to be covered, not less than the window.
        window: length of a window.
    """
    steps = math.ceil((length - window) / max(1, window // 2))
    return [round(k * (length - window) / steps) for k in range(steps + 1)] if steps else [0]


def _probabilities(network: Network, images: Tensor) -> Tensor:
    logits: Tensor = network(images.contiguous())
    return logits.float().softmax(dim=1)
