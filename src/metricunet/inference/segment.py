"""Stage 2: class probabilities in the crop around the located centre."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metricunet.networks.feeding import (
    Precision,
    autocast,
    neighbouring_slices,
    normalise_hu,
    pick_precision,
)

#: Slices that go through the network at once. On a CPU more are slower, for their maps leave the caches.
SLICES_AT_ONCE = {"cpu": 8, "cuda": 64}


@torch.inference_mode()
def crop_probabilities(
    network: nn.Module,
    crop: Tensor,
    hu_window: tuple[float, float],
    slices: int,
    precision: Precision = "auto",
) -> Tensor:
    """Run stage 2 over a crop, slice by slice, each with its neighbours.

    Args:
        network: in evaluation mode, on the device of `crop`.
        crop: HU [slice, row, column].
        hu_window: of stage 2.
        slices: neighbouring slices that the network takes.
        precision: to compute in.

    Returns:
        float32 [classes, slice, row, column].
    """
    stacks = neighbouring_slices(normalise_hu(crop, hu_window), slices)
    parts = []
    with autocast(pick_precision(precision, crop.device), crop.device):
        for stack in torch.split(stacks, SLICES_AT_ONCE[crop.device.type]):
            parts.append(network(stack.contiguous()).float().softmax(dim=1))
    return torch.cat(parts).transpose(0, 1).contiguous()
