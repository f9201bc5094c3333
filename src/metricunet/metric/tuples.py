"""Tuples of sampled voxels: triplets (anchor, positive, negative) and pairs, mined without gradient.

Embeddings are [batch, voxels, dimensions] and have unit length; tuples stay within one row of the batch. Memory
and time are at most quadratic in the voxels of a row, never cubic. `dealt_out` deals the voxels of a batch out
anew, so that tuples reach across images at the price of tuples within them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: Added to squared distances of voxels that are no candidates. On the unit sphere those are at most 4, their
#: differences too, so `BETWEEN` tells the two kinds apart.
FAR, BETWEEN = 16.0, 8.0
#: Squared distances that differ by less are equal: float32 tells no more of vectors of unit length.
RESOLUTION = 1e-6


class Triplets(NamedTuple):
    """One triplet for each anchor; a voxel is the anchor of the triplet at its own index.

    Attributes:
        positive: [batch, voxels], int64: index of another voxel of the anchor's class.
        negative: [batch, voxels], int64: index of a voxel of another class.
        valid: [batch, voxels], bool: which triplets exist.
    """

    positive: Tensor
    negative: Tensor
    valid: Tensor


class Pairs(NamedTuple):
    """One pair of each kind for each anchor; a voxel is the anchor of the pairs at its own index.

    Attributes:
        positive: [batch, voxels], int64: index of another voxel of the anchor's class.
        positive_valid: [batch, voxels], bool: which of these pairs exist.
        negative: [batch, voxels], int64: index of a voxel of another class.
        negative_valid: [batch, voxels], bool: which of these pairs exist.
    """

    positive: Tensor
    positive_valid: Tensor
    negative: Tensor
    negative_valid: Tensor


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
    chance = torch.rand((2, *classes.shape), dtype=torch.float32, device=classes.device)
    in_run = torch.arange(classes.shape[1], device=classes.device) - first
    positive = first + (in_run + _draw(chance[0], count - 1) + 1) % count
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
    """Turn numbers of 0 to 1 into whole numbers from 0 to below - 1, and into 0 where there is none."""
    highest = (below - 1).clamp(min=0)
    return torch.minimum((chance * below).long().clamp(min=0), highest)


@torch.no_grad()
def hard_pairs(embeddings: Tensor, classes: Tensor, valid: Tensor, n_classes: int) -> Pairs:
    """Find for each voxel the farthest one of its own class and the nearest one of another class.

    Args:
        embeddings: [batch, voxels, dimensions], of unit length.
        classes: [batch, voxels], integers from 0 to n_classes - 1 where valid.
        valid: [batch, voxels], bool.
        n_classes: number of classes.
    """
    raised = squared_distances(embeddings, classes, valid, n_classes, same=FAR, invalid=-FAR)
    raised.diagonal(dim1=1, dim2=2).fill_(0)
    farthest = raised.max(dim=2)
    nearest = squared_distances(embeddings, classes, valid, n_classes, same=FAR, invalid=FAR).min(dim=2)
    return Pairs(
        farthest.indices,
        (farthest.values > BETWEEN) & valid,
        nearest.indices,
        (nearest.values < BETWEEN) & valid,
    )


@torch.no_grad()
def random_triplets(embeddings: Tensor, classes: Tensor, valid: Tensor, n_classes: int, drawn: Pairs) -> Triplets:
    """Give each anchor one random positive and one random negative, without mining: O(N log N).

    Arguments as `semi_hard_triplets`; only `drawn` is used.
    """
    return Triplets(drawn.positive, drawn.negative, drawn.positive_valid & drawn.negative_valid)


@torch.no_grad()
def semi_hard_triplets(
    embeddings: Tensor, classes: Tensor, valid: Tensor, n_classes: int, drawn: Pairs
) -> Triplets:
    """Give each anchor its random positive, and the nearest negative that is farther away than it.

    Schroff, Kalenichenko, Philbin: FaceNet (CVPR 2015), section 3.2, with one random positive for each anchor.
    Anchors for which no negative is farther than the positive have no triplet.

    Args:
        embeddings: [batch, voxels, dimensions], of unit length.
        classes: [batch, voxels], integers from 0 to n_classes - 1 where valid.
        valid: [batch, voxels], bool.
        n_classes: number of classes.
        drawn: the pairs that `random_pairs` drew.
    """
    e = at_least_float32(embeddings.detach())
    bound = (e - pick(e, drawn.positive)).square().sum(dim=-1, keepdim=True) + RESOLUTION
    gap = squared_distances(e, classes, valid, n_classes, same=FAR, invalid=FAR, less=bound)
    # The largest reciprocal is that of the smallest gap above zero: one pass instead of a mask and two.
    best = gap.reciprocal_().max(dim=2)
    return Triplets(drawn.positive, best.indices, drawn.positive_valid & (best.values > 1 / BETWEEN))


@torch.no_grad()
def hardest_triplets(embeddings: Tensor, classes: Tensor, valid: Tensor, n_classes: int, drawn: Pairs) -> Triplets:
    """Give each anchor the farthest positive and the nearest negative.

    Hermans, Beyer, Leibe: In defense of the triplet loss (arXiv 1703.07737), "batch hard". Arguments as
    `semi_hard_triplets`; `drawn` is not used.
    """
    pairs = hard_pairs(embeddings, classes, valid, n_classes)
    return Triplets(pairs.positive, pairs.negative, pairs.positive_valid & pairs.negative_valid)


#: Distance-weighted sampling treats negatives nearer than the first as if they were that far away, and leaves out
#: those farther than the second, whose triplets would hardly ever violate a margin.
NEAREST_WEIGHTED, FARTHEST_WEIGHTED = 0.5, 1.4


@torch.no_grad()
def distance_weighted_triplets(
    embeddings: Tensor, classes: Tensor, valid: Tensor, n_classes: int, drawn: Pairs
) -> Triplets:
    """Give each anchor a random positive, and a negative drawn so that all distances are equally likely.

    Wu, Manmatha, Smola, Kraehenbuehl: Sampling matters (ICCV 2017), section 4.2: a negative at distance d has the
    weight 1 / q(d), where q(d) ~ d^(n-2) (1 - d^2/4)^((n-3)/2) is how distances of random points on the unit
    sphere in n dimensions are spread. Anchors with no negative within `FARTHEST_WEIGHTED` have no triplet.
    Arguments as `semi_hard_triplets`.
    """
    dimensions = embeddings.shape[2]
    squared = squared_distances(embeddings, classes, valid, n_classes, same=FAR, invalid=FAR)
    candidate = squared <= FARTHEST_WEIGHTED**2
    log_weight = negative_log_density(squared.clamp_(NEAREST_WEIGHTED**2, FARTHEST_WEIGHTED**2), dimensions)
    # Gumbel's trick: the largest of log weights with Gumbel noise is a draw in proportion to the weights.
    noise = torch.empty_like(log_weight).exponential_().clamp_(min=1e-30).log_()
    best = log_weight.sub_(noise).masked_fill_(~candidate, -torch.inf).max(dim=2)
    return Triplets(
        drawn.positive, best.indices, drawn.positive_valid & drawn.negative_valid & torch.isfinite(best.values)
    )


def negative_log_density(squared: Tensor, dimensions: int) -> Tensor:
    """Return the log of 1 / q(d), up to a constant, where q is the density of `distance_weighted_triplets`.

    Args:
        squared: squared distances d^2, any shape.
        dimensions: n, the dimensions of the space around the unit sphere.
    """
    return (2 - dimensions) / 2 * squared.log() - (dimensions - 3) / 2 * torch.log1p(-squared / 4)


def mixed_rows(batch: int, voxels: int, device: torch.device) -> Tensor:
    """Deal the voxels of a batch out anew: which image each slot of each new row comes from [batch, voxels].

    Each slot's voxels are handed round the batch by a random number of rows, so that every voxel lands in exactly
    one row and a row holds as many voxels of each class and kind as the samplers' slots do. Tuples mined in such
    rows reach across images, with the memory and time of tuples within them.
    """
    turn = torch.randint(batch, (1, voxels), device=device)
    return (torch.arange(batch, device=device)[:, None] + turn) % batch


def dealt_out(embeddings: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Deal embeddings [batch, voxels, dimensions] and others [batch, voxels] out by one draw of `mixed_rows`."""
    row = mixed_rows(len(embeddings), embeddings.shape[1], embeddings.device)
    return embeddings.gather(0, row[..., None].expand_as(embeddings)), *(one.gather(0, row) for one in others)


def pick(embeddings: Tensor, index: Tensor) -> Tensor:
    """Return the embeddings [batch, voxels, dimensions] of the voxels `index` [batch, voxels] of each row."""
    return embeddings.gather(1, index[..., None].expand(-1, -1, embeddings.shape[2]))


def at_least_float32(values: Tensor) -> Tensor:
    """Return float64 as it is and all else as float32, in which bf16 features are compared."""
    return values if values.dtype == torch.float64 else values.float()


def squared_distances(
    embeddings: Tensor,
    classes: Tensor,
    valid: Tensor,
    n_classes: int,
    same: float,
    invalid: float,
    less: Tensor | None = None,
    others: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """Return squared distances [batch, voxels, others] of embeddings of unit length, raised where none is wanted.

    All of it is one matrix product, so no mask of that size is ever made.

    Args:
        embeddings: [batch, voxels, dimensions].
        classes: [batch, voxels], integers from 0 to n_classes - 1 where valid.
        valid: [batch, voxels], bool.
        n_classes: number of classes.
        same: added where two voxels are of one class.
        invalid: added in the columns of slots without a voxel.
        less: [batch, voxels, 1], subtracted from each anchor's row.
        others: embeddings, classes and validity of the voxels that distances are to; None: the voxels themselves.
    """
    e = at_least_float32(embeddings.detach())
    numbers = torch.arange(n_classes, device=classes.device)
    own = (classes[..., None] == numbers).to(e.dtype)
    one = torch.ones_like(e[..., :1])
    left = torch.cat([-2 * e, same * own, one, (0 * one if less is None else -less)], dim=-1)
    if others is not None:
        embeddings, classes, valid = others
        e = embeddings.to(e.dtype)
        own, one = (classes[..., None] == numbers).to(e.dtype), torch.ones_like(e[..., :1])
    right = torch.cat([e, own, 2 + invalid * (~valid)[..., None], one], dim=-1)
    return torch.bmm(left, right.transpose(1, 2))


#: What forms triplets, by the names that a configuration uses.
TRIPLETS = {
    "semi_hard": semi_hard_triplets,
    "random": random_triplets,
    "hardest": hardest_triplets,
    "distance_weighted": distance_weighted_triplets,
}
