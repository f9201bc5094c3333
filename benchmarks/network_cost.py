"""What a network costs: its multiply-adds and parameters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from metricunet.networks.base import Network


def multiply_adds(network: nn.Module, shape: Sequence[int]) -> int:
    """Count the multiply-adds of one forward pass, without computing it.

    Convolutions, transposed ones too, and matrix products count; normalisation, activation, pooling and
    interpolation, which have few, do not. Padding counts as if it were read.

    Args:
        network: any module of one input; left as it is.
        shape: of the input, batch and channels included.

    Raises:
        ValueError: a shape that the network does not take.
    """
    named = itertools.chain(network.named_parameters(), network.named_buffers())
    weights = {name: torch.empty_like(tensor, device="meta") for name, tensor in named}
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        functional_call(network, weights, (torch.empty(tuple(shape), device="meta"),))
    # torch counts a multiplication and an addition as two operations.
    return counter.get_total_flops() // 2


def multiply_adds_per_voxel(network: Network, space: Sequence[int]) -> float:
    """Count the multiply-adds of one forward pass for each voxel of the output (in 2.5D the middle slice).

    Args:
        network: any.
        space: sides of the input: rows and columns, in 3D slices before them.
    """
    return multiply_adds(network, (1, network.in_channels, *space)) / math.prod(space)


def parameters(network: nn.Module) -> int:
    """Count the trained numbers."""
    return sum(p.numel() for p in network.parameters())
