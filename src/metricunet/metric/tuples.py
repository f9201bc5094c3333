"""Tuples of sampled voxels: triplets (anchor, positive, negative) and pairs. Mined without gradient.

Embeddings are [batch, voxels, dimensions]; tuples stay within one image. Memory and time are quadratic in the
voxels of an image, never cubic.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Triplets(NamedTuple):
    """One triplet for each anchor, all [batch, voxels]: indices into the voxels, and which triplets exist."""

    positive: Tensor
    negative: Tensor
    valid: Tensor


class Pairs(NamedTuple):
    """One pair of each kind for each anchor, all [batch, voxels]: indices, and which pairs exist."""

    positive: Tensor
    positive_valid: Tensor
    negative: Tensor
    negative_valid: Tensor


@torch.no_grad()
def squared_distances(embeddings: Tensor) -> Tensor:
    """Squared Euclidean distances [batch, voxels, voxels] of embeddings of unit length."""
    e = embeddings.detach().float()
    return (2 - 2 * torch.bmm(e, e.transpose(1, 2))).clamp_(min=0)


@torch.no_grad()
def random_pairs(classes: Tensor, valid: Tensor) -> Pairs:
    """Draw for each voxel one of its own class (not itself) and one of another, each with the same chance.

    Sorting by class makes every class a run, so that a random step leads to a partner: this costs O(N log N),
    where drawing from a full matrix would cost O(N^2).

    Args:
        classes: [batch, voxels], integers.
        valid: [batch, voxels], bool.
    """
    # Slots without a voxel form a run of their own at the end.
    key = torch.where(valid, classes, torch.iinfo(torch.int64).max)
    ordered, order = key.sort(dim=1)
    first = torch.searchsorted(ordered, ordered, right=False)
    count = torch.searchsorted(ordered, ordered, right=True) - first
    others = valid.sum(dim=1, keepdim=True) - count
    chance = torch.rand((2, *classes.shape), device=classes.device)
    place = torch.arange(classes.shape[1], device=classes.device) - first
    positive = first + (place + _draw(chance[0], count - 1) + 1) % count
    step = _draw(chance[1], others)
    negative = (step + count * (step >= first)).clamp(max=classes.shape[1] - 1)

    def unsorted(values: Tensor) -> Tensor:
        return torch.empty_like(values).scatter_(1, order, values)

    return Pairs(
        unsorted(order.gather(1, positive)),
        unsorted(count > 1) & valid,
        unsorted(order.gather(1, negative)),
        unsorted(others > 0) & valid,
    )


def _draw(chance: Tensor, below: Tensor) -> Tensor:
    """Whole numbers from 0 to below - 1; 0 where there is none."""
    highest = (below - 1).clamp(min=0)
    return torch.minimum((chance * below).long().clamp(min=0), highest)


@torch.no_grad()
def semi_hard_triplets(squared: Tensor, pairs: Pairs, other: Tensor) -> Triplets:
    """For each anchor its random positive, and the nearest negative that is farther away than it.

    Schroff, Kalenichenko, Philbin: FaceNet (CVPR 2015), section 3.2, with one random positive for each anchor.
    Anchors for which no negative is farther than the positive have no triplet.

    Args:
        squared: [batch, voxels, voxels], squared distances.
        pairs: from `random_pairs`.
        other: [batch, voxels, voxels], from `other_class`.
    """
    positive = pairs.positive
    bound = squared.gather(2, positive[..., None])
    nearest = torch.where(other & (squared > bound), squared, torch.inf).min(dim=2)
    return Triplets(positive, nearest.indices, pairs.positive_valid & torch.isfinite(nearest.values))


@torch.no_grad()
def hard_pairs(squared: Tensor, valid: Tensor, other: Tensor) -> Pairs:
    """For each voxel the farthest one of its own class and the nearest one of another class."""
    same = valid[:, :, None] & valid[:, None, :] & ~other
    same.diagonal(dim1=1, dim2=2).fill_(False)
    farthest = torch.where(same, squared, -1.0).max(dim=2)
    nearest = torch.where(other, squared, torch.inf).min(dim=2)
    return Pairs(farthest.indices, farthest.values >= 0, nearest.indices, torch.isfinite(nearest.values))


@torch.no_grad()
def other_class(classes: Tensor, valid: Tensor) -> Tensor:
    """Tell which two voxels [batch, voxels, voxels] both exist and are of two classes."""
    return (classes[:, :, None] != classes[:, None, :]) & valid[:, :, None] & valid[:, None, :]
