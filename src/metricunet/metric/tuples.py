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
def random_positives(classes: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Draw for each voxel another one of its class, each with the same chance.

    Sorting by class makes every class a run, within which a random step leads to the partner: this costs
    O(N log N) where drawing from a full matrix would cost O(N^2).

    Args:
        classes: [batch, voxels], integers.
        valid: [batch, voxels], bool.

    Returns:
        Partner indices and whether there is one, each [batch, voxels].
    """
    voxels = classes.shape[1]
    # Slots without a voxel form a run of their own at the end.
    key = torch.where(valid, classes, torch.iinfo(torch.int64).max)
    ordered, order = key.sort(dim=1)
    first = torch.searchsorted(ordered, ordered, right=False)
    count = torch.searchsorted(ordered, ordered, right=True) - first
    place = torch.arange(voxels, device=classes.device) - first
    step = 1 + (torch.rand(classes.shape, device=classes.device) * (count - 1)).long().clamp(max=voxels)
    partner = order.gather(1, first + (place + torch.minimum(step, (count - 1).clamp(min=0))) % count)
    result = torch.empty_like(partner).scatter_(1, order, partner)
    alone = torch.empty_like(valid).scatter_(1, order, count < 2)
    return result, valid & ~alone


@torch.no_grad()
def semi_hard_triplets(squared: Tensor, classes: Tensor, valid: Tensor, other: Tensor) -> Triplets:
    """For each anchor a random positive, and the nearest negative that is farther away than it.

    Schroff, Kalenichenko, Philbin: FaceNet (CVPR 2015), section 3.2, with one random positive for each anchor.
    Anchors for which no negative is farther than the positive have no triplet.
    """
    positive, has_positive = random_positives(classes, valid)
    bound = squared.gather(2, positive[..., None])
    nearest = torch.where(other & (squared > bound), squared, torch.inf).min(dim=2)
    return Triplets(positive, nearest.indices, has_positive & torch.isfinite(nearest.values))


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
