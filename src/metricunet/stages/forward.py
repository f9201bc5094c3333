"""The forward pass of both stages with networks of torch, on tensors, for training, studies and prediction."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from metricunet.networks import Network
from metricunet.specs import LocateSpec, SegmentSpec
from metricunet.stages.locate import read_coarse
from metricunet.stages.network_input import (
    Precision,
    autocast,
    neighbouring_slices,
    normalise_hu,
    pick_precision,
)
from metricunet.stages.tiles import Kind, averaged, over_crops
from metricunet.volume import Volume

#: Slices that go through a 2.5D network at once. On a CPU more are slower, for their maps leave the caches.
SLICES_AT_ONCE = {"cpu": 8, "cuda": 64, "mps": 64}


def coarse_probabilities(
    network: Network, spec: LocateSpec, image: Volume, precision: Precision = "auto"
) -> list[Volume]:
    """Run stage 1 over a scan.

    Args:
        network: network of stage 1, in evaluation mode.
        spec: the spec of stage 1.
        image: the scan in HU, with axes to the head, the back and the left.
        precision: precision to compute in.

    Returns:
        Probability of each class on the coarse grid, the background first.
    """
    coarse = read_coarse(spec, image)
    voxels = torch.from_numpy(coarse.array).to(next(network.parameters()).device)
    probabilities = class_probabilities(network, voxels, spec.hu_window, precision)
    return [coarse.with_array(share) for share in probabilities.cpu().numpy()]


@torch.inference_mode()
def class_probabilities(
    network: Network, coarse: Tensor, hu_window: tuple[float, float], precision: Precision = "auto"
) -> Tensor:
    """Run stage 1 over a scan that is on the coarse grid already. Air is added until the network can halve it.

    Args:
        network: network of stage 1 in evaluation mode, on the device of `coarse`.
        coarse: HU [slice, row, column].
        hu_window: HU window of stage 1.
        precision: precision to compute in.

    Returns:
        float32 [classes, slice, row, column].
    """
    x = normalise_hu(coarse, hu_window)
    padding: list[int] = []
    for side in reversed(x.shape):
        padding += [0, -side % network.divisor]
    x = F.pad(x, padding, value=-1.0)[None, None]
    with autocast(pick_precision(precision, coarse.device), coarse.device):
        logits: Tensor = network(x)
    probabilities = logits.float().softmax(dim=1)[0]
    slices, rows, columns = coarse.shape
    return probabilities[:, :slices, :rows, :columns].clone()


@torch.inference_mode()
def crop_probabilities(network: Network, spec: SegmentSpec, crop: Tensor, precision: Precision = "auto") -> Tensor:
    """Run stage 2 over a crop: in 2.5D slice by slice, each with its neighbours; in 3D window by window.

    The windows of a 3D network are as deep as the blocks it was trained on. Memory is that of one window.

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
            return _in_blocks(network, images, spec.input_slices)
        stacks = neighbouring_slices(images, spec.input_slices)
        parts = [_probabilities(network, stack) for stack in torch.split(stacks, SLICES_AT_ONCE[crop.device.type])]
    return torch.cat(parts).transpose(0, 1).contiguous()


@torch.inference_mode()
def field_probabilities(
    network: Network, spec: SegmentSpec, field: Tensor, precision: Precision = "auto"
) -> Tensor:
    """Run stage 2 over a field that may be larger than its crop, see `metricunet.stages.tiles`.

    A field of one crop is one run of `crop_probabilities`.

    Args:
        network: network of stage 2, as for `crop_probabilities`.
        spec: the spec of stage 2.
        field: HU [slice, row, column], no side shorter than the crop's.
        precision: precision to compute in.

    Returns:
        float32 [classes, slice, row, column].
    """

    def find(crop: Tensor) -> Tensor:
        return crop_probabilities(network, spec, crop.contiguous(), precision)

    return over_crops(field, spec.crop_voxels, find, _kind(field))


def _in_blocks(network: Network, images: Tensor, slices: int) -> Tensor:
    depth = images.shape[0]
    if depth < slices:
        images = F.pad(images[None, None], (0, 0, 0, 0, 0, slices - depth), mode="replicate")[0, 0]

    def find(block: Tensor) -> Tensor:
        return _probabilities(network, block[None, None])[0]

    window = (slices, *images.shape[1:])
    return averaged(images, window, (True, False, False), find, _kind(images))[:, :depth].contiguous()


def _kind(field: Tensor) -> Kind[Tensor]:
    device = field.device
    return Kind(partial(torch.zeros, device=device), lambda weights: torch.from_numpy(weights).to(device))


def _probabilities(network: Network, images: Tensor) -> Tensor:
    logits: Tensor = network(images.contiguous())
    return logits.float().softmax(dim=1)
