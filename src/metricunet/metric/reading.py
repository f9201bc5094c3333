"""Reading feature maps at sampled voxels, by linear interpolation where a map is coarser than the labels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor


def read_features(features: Tensor, index: Tensor, label_shape: Sequence[int]) -> Tensor:
    """Gather the features of sampled voxels.

    Both grids cover the same field; voxel centres of the label grid are mapped to the feature grid and read
    there by linear interpolation, borders continued. Labels are never resampled.

    Args:
        features: [batch, channels, *coarse].
        index: [batch, voxels], places in the flattened label grid.
        label_shape: sides of the label grid, as many as the feature map has.

    Returns:
        [batch, voxels, channels], with gradient to the features.
    """
    coarse = tuple(features.shape[2:])
    if len(coarse) != len(label_shape):
        raise ValueError(f"features have {len(coarse)} spatial axes, labels {len(label_shape)}")
    flat = features.flatten(2)
    if coarse == tuple(label_shape):
        return _gather(flat, index)
    lows: list[Tensor] = []
    fractions: list[Tensor] = []
    rest = index
    for axis in reversed(range(len(coarse))):
        place = rest % label_shape[axis]
        rest = rest // label_shape[axis]
        position = (place.to(torch.float32) + 0.5) * (coarse[axis] / label_shape[axis]) - 0.5
        position = position.clamp(0, coarse[axis] - 1)
        low = position.floor()
        lows.insert(0, low.long())
        fractions.insert(0, position - low)
    places, weights = [], []
    for corner in product((0, 1), repeat=len(coarse)):
        weight = torch.ones_like(fractions[0])
        place = torch.zeros_like(index)
        for axis, step in enumerate(corner):
            weight = weight * (fractions[axis] if step else 1 - fractions[axis])
            place = place * coarse[axis] + (lows[axis] + step).clamp(max=coarse[axis] - 1)
        places.append(place)
        weights.append(weight)
    # One gather for all corners, for the gradient of each would be as large as the whole map.
    corners = _gather(flat, torch.cat(places, dim=1)) * torch.cat(weights, dim=1).to(features.dtype)[..., None]
    return corners.reshape(len(index), len(places), index.shape[1], -1).sum(dim=1)


def _gather(flat: Tensor, index: Tensor) -> Tensor:
    return flat.gather(2, index[:, None, :].expand(-1, flat.shape[1], -1)).transpose(1, 2)
