"""Stage 2: class probabilities in the crop around the located centre."""

from __future__ import annotations

import math
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from metricunet.networks import Network
from metricunet.networks.feeding import (
    Precision,
    autocast,
    neighbouring_slices,
    normalise_hu,
    pick_precision,
)

#: Slices that go through a 2.5D network at once. On a CPU more are slower, for their maps leave the caches.
SLICES_AT_ONCE = {"cpu": 8, "cuda": 64}


@torch.inference_mode()
def crop_probabilities(
    network: Network,
    crop: Tensor,
    hu_window: tuple[float, float],
    slices: int,
    precision: Precision = "auto",
) -> Tensor:
    """Run stage 2 over a crop: in 2.5D slice by slice, each with its neighbours; in 3D window by window.

    The windows of a 3D network are as deep as the blocks it was trained on, for its normalisation depends on the
    size of its field; they overlap by half and are averaged, the middle of a window weighing most. Memory is that
    of one window.

    Args:
        network: in evaluation mode, on the device of `crop`.
        crop: HU [slice, row, column], rows and columns that the network can halve.
        hu_window: of stage 2.
        slices: that the network takes: neighbours in 2.5D, of a window in 3D.
        precision: to compute in.

    Returns:
        float32 [classes, slice, row, column].
    """
    images = normalise_hu(crop, hu_window)
    with autocast(pick_precision(precision, crop.device), crop.device):
        if network.spatial_dims == 3:
            return _in_windows(network, images, slices)
        stacks = neighbouring_slices(images, slices)
        parts = [_probabilities(network, stack) for stack in torch.split(stacks, SLICES_AT_ONCE[crop.device.type])]
    return torch.cat(parts).transpose(0, 1).contiguous()


@torch.inference_mode()
def field_probabilities(
    network: Network,
    field: Tensor,
    crop_voxels: tuple[int, int, int],
    hu_window: tuple[float, float],
    slices: int,
    precision: Precision = "auto",
) -> Tensor:
    """Run stage 2 over a field that may be larger than its crop.

    The network keeps to crops of the size that it was trained on, for its normalisation depends on the size of
    its picture. They overlap by half along each axis on which the field is larger, and are averaged, the middle of
    a crop weighing most. A field of one crop is one run of `crop_probabilities`.

    Args:
        network: see `crop_probabilities`.
        field: HU [slice, row, column], no side shorter than the crop's.
        crop_voxels: sides of the crop.
        hu_window: see there.
        slices: see there.
        precision: see there.

    Returns:
        float32 [classes, slice, row, column].
    """
    starts = [window_starts(length, side) for length, side in zip(field.shape, crop_voxels, strict=True)]
    if all(len(places) == 1 for places in starts):
        return crop_probabilities(network, field, hu_window, slices, precision)
    weight = torch.ones(crop_voxels, device=field.device)
    for axis, places in enumerate(starts):
        if len(places) > 1:
            rise = torch.arange(1, crop_voxels[axis] + 1, device=field.device)
            shape = [-1 if a == axis else 1 for a in range(3)]
            weight = weight * torch.minimum(rise, rise.flip(0)).float().reshape(shape)
    total: Tensor | None = None
    weights = torch.zeros(field.shape, device=field.device)
    for first in product(*starts):
        window = tuple(slice(n, n + side) for n, side in zip(first, crop_voxels, strict=True))
        found = crop_probabilities(network, field[window].contiguous(), hu_window, slices, precision)
        if total is None:
            total = torch.zeros((len(found), *field.shape), device=field.device)
        total[(slice(None), *window)] += found * weight
        weights[window] += weight
    assert total is not None
    return total / weights


def _in_windows(network: Network, images: Tensor, slices: int) -> Tensor:
    depth = images.shape[0]
    if depth < slices:
        images = F.pad(images[None, None], (0, 0, 0, 0, 0, slices - depth), mode="replicate")[0, 0]
    rise = torch.arange(1, slices + 1, device=images.device)
    weight = torch.minimum(rise, rise.flip(0)).float()[:, None, None]
    total: Tensor | None = None
    weights = torch.zeros((len(images), 1, 1), device=images.device)
    for first in window_starts(len(images), slices):
        window = slice(first, first + slices)
        found = _probabilities(network, images[None, None, window])[0] * weight
        if total is None:
            total = torch.zeros((len(found), *images.shape), device=images.device)
        total[:, window] += found
        weights[window] += weight
    assert total is not None
    return (total / weights)[:, :depth].contiguous()


def window_starts(length: int, window: int) -> list[int]:
    """Return the first places of windows that cover a length, evenly spread, neighbours sharing half or more.

    Args:
        length: to be covered, not less than the window.
        window: length of a window.
    """
    steps = math.ceil((length - window) / max(1, window // 2))
    return [round(k * (length - window) / steps) for k in range(steps + 1)] if steps else [0]


def _probabilities(network: Network, images: Tensor) -> Tensor:
    logits: Tensor = network(images.contiguous())
    return logits.float().softmax(dim=1)
