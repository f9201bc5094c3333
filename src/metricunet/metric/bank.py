"""A memory bank: embeddings of contoured voxels of earlier updates, by class, which new voxels are compared with.

A batch holds few images, and tuples within it know no others. The bank holds embeddings of many images, so that
tuples reach across all of them at the price of one matrix product. What it holds is some updates old: embeddings
drift slowly (Wang, Zhang, Huang, Scott: Cross-batch memory for embedding learning, CVPR 2020).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from metricunet.metric.gathering import gathered, sharing
from metricunet.metric.losses import (
    MetricOutput,
    TupleOptions,
    contrastive_loss,
    distances,
    mean_of_positive,
    pair_margins,
    shrunk_margin,
    triplet_margin_loss,
    triplet_statistics,
    weighted_sum,
)
from metricunet.metric.tuples import (
    BETWEEN,
    FAR,
    FARTHEST_WEIGHTED,
    NEAREST_WEIGHTED,
    RESOLUTION,
    Pairs,
    Triplets,
    at_least_float32,
    negative_log_density,
    squared_distances,
)


class Held(NamedTuple):
    """What a bank holds of one map, as flat lists of `classes` runs of equal length, one for each class.

    Attributes:
        embeddings: [entries, dimensions], of unit length.
        classes: [entries], int64.
        valid: [entries], bool: which of them are filled; within a run the filled ones come first.
        certainty: [entries], 0 to 1: how sure the label of each was.
        filled: [classes], int64: number of filled entries of each class.
    """

    embeddings: Tensor
    classes: Tensor
    valid: Tensor
    certainty: Tensor
    filled: Tensor


class EmbeddingBank(nn.Module):
    """Embeddings of contoured voxels of earlier updates: for each map and class a queue, first in, first out.

    It lives on the device and never asks it for a value. Its content is a buffer, so a checkpoint of the module
    holds it. Where several processes train, each takes up the voxels of all of them, so all hold the same bank;
    the batch of each must have as many images as those of the others.

    Args:
        size: number of embeddings that are held of each class.
        classes: number of classes, kinds of background included.
        dimensions: dimensions of the embeddings.
        maps: number of maps; each has embeddings of its own.
        new: greatest number of voxels of each class that an image adds at each update.

    Raises:
        ValueError: a number is below 1, or the bank cannot hold what one image adds.
    """

    def __init__(self, size: int, classes: int, dimensions: int, maps: int = 1, new: int = 16) -> None:
        super().__init__()
        if min(size, classes, dimensions, maps, new) < 1 or new > size:
            raise ValueError(
                "size, classes, dimensions, maps and new must be 1 or more, and new at most size; got "
                f"{size}, {classes}, {dimensions}, {maps}, {new}"
            )
        self.size, self.classes, self.new = size, classes, new
        # One entry more than it holds: what does not enter is written there, for nothing is asked of the device.
        self.register_buffer("embeddings", torch.zeros(maps, classes, size + 1, dimensions))
        self.register_buffer("certainty", torch.zeros(maps, classes, size + 1))
        self.register_buffer("entered", torch.zeros(maps, classes, dtype=torch.int64))
        self.embeddings: Tensor
        self.certainty: Tensor
        self.entered: Tensor

    @torch.no_grad()
    def held(self, tap: int) -> Held:
        """Return a copy of what is held of a map, so that tuples formed with it outlive the next entries.

        Args:
            tap: index of the map.
        """
        device = self.embeddings.device
        count = self.entered[tap].clamp(max=self.size)
        return Held(
            self.embeddings[tap, :, :-1].flatten(0, 1).clone(),
            torch.arange(self.classes, device=device).repeat_interleave(self.size),
            (torch.arange(self.size, device=device) < count[:, None]).flatten(),
            self.certainty[tap, :, :-1].flatten().clone(),
            count,
        )

    @torch.no_grad()
    def enter(
        self,
        tap: int,
        embeddings: Tensor,
        classes: Tensor,
        valid: Tensor,
        certainty: Tensor | None = None,
        images: int | None = None,
    ) -> None:
        """Take up voxels of new images, drawn at random, in place of the oldest.

        Args:
            tap: index of the map.
            embeddings: [batch, voxels, dimensions], of unit length; a voxel whose values are not finite stays out.
            classes: [batch, voxels], integers from 0 to `classes` - 1 where valid.
            valid: [batch, voxels], bool.
            certainty: [batch, voxels], 0 to 1; None: all are sure.
            images: number of images, the first of the batch, whose voxels may enter; None: all.
        """
        certainty = torch.ones_like(embeddings[..., 0]) if certainty is None else certainty
        # A batch can overflow in half precision. Its update is skipped, and must not spoil those that follow.
        valid = valid & torch.isfinite(embeddings).all(dim=-1)
        chance = torch.rand(classes.shape, dtype=torch.float32, device=classes.device)
        for k in range(self.classes):
            order = torch.where(valid & (classes == k), chance, -1.0)[:images]
            drawn = order.topk(min(self.new, order.shape[1]), dim=1)
            index = drawn.indices
            # One tensor for all that is told of an entry, for processes exchange it.
            told = torch.cat(
                [
                    embeddings[:images].gather(1, index[..., None].expand(-1, -1, embeddings.shape[2])),
                    certainty[:images].gather(1, index)[..., None],
                    (drawn.values >= 0)[..., None],
                ],
                dim=-1,
            )
            told = told.to(self.embeddings.dtype)
            # Of a batch that processes share, these are the rows of all of them.
            self._push(tap, k, (told if sharing() else gathered(told)).flatten(0, 1))

    def _push(self, tap: int, of_class: int, told: Tensor) -> None:
        """Write rows of embedding, certainty and whether it enters, one after the other."""
        enters = told[:, -1] > 0
        order = enters.cumsum(0) - 1
        total = enters.sum()
        # Of more than it can hold the last ones count, and each entry is written once.
        enters = enters & (order >= total - self.size)
        place = torch.where(enters, (self.entered[tap, of_class] + order) % self.size, self.size)
        self.embeddings[tap, of_class].index_copy_(0, place, told[:, :-2])
        self.certainty[tap, of_class].index_copy_(0, place, told[:, -2])
        self.embeddings[tap, of_class, -1] = 0
        self.certainty[tap, of_class, -1] = 0
        self.entered[tap, of_class] += total


def bank_losses(
    embeddings: Tensor,
    classes: Tensor,
    valid: Tensor,
    held: Held,
    options: TupleOptions,
    certainty: Tensor | None = None,
) -> MetricOutput:
    """Form tuples of new voxels and what a bank holds, and add up the losses on them.

    Each new voxel is an anchor; its positives and negatives are entries of the bank, without gradient. Losses,
    margins and kinds of tuples are those of `metricunet.metric.losses.tuple_losses`.

    Args:
        embeddings: [batch, voxels, dimensions], of unit length.
        classes: [batch, voxels], integers from 0 to the number of the bank's classes - 1 where valid.
        valid: [batch, voxels], bool.
        held: what the bank holds.
        options: which tuples are formed, and which losses are computed on them.
        certainty: [batch, voxels], 0 to 1; None: all labels are sure, those of the bank included.
    """
    e, of_class, exists = embeddings.flatten(0, 1), classes.flatten(), valid.flatten()
    of_class = torch.where(exists, of_class, 0)
    entries = held.embeddings.to(e.dtype)
    drawn = draw_partners(of_class, exists, held)
    mined = mine_triplets(e, of_class, exists, held, options, drawn)
    near, far = distances(e, entries[mined.positive]), distances(e, entries[mined.negative])
    own = [] if certainty is None else [certainty.flatten().to(e.dtype)]
    theirs = held.certainty.to(e.dtype)
    least = [torch.minimum(s, torch.minimum(*(theirs[i] for i in mined[:2]))) for s in own]
    margin = shrunk_margin(options.margin, *least)
    zero = e.sum() * 0
    parts = {"triplet": zero, "pair": zero}
    if options.triplet_weight:
        parts["triplet"] = triplet_margin_loss(
            near, far, mined.valid, margin, options.triplet_form, options.mean_over
        )
    if options.pair_weight:
        parts["pair"] = _pair_loss(e, of_class, exists, held, options, drawn, own)
    if options.supcon_weight:
        parts["supcon"] = contrast_with_bank(e, of_class, exists, held, options.temperature)
    found = triplet_statistics(near, far, mined.valid, exists.sum(), margin)
    statistics = {f"bank_{name}": value for name, value in found.items()}
    statistics["bank_filled"] = held.valid.to(e.dtype).mean()
    return MetricOutput(weighted_sum(parts, options), parts, statistics)


@torch.no_grad()
def draw_partners(classes: Tensor, valid: Tensor, held: Held) -> Pairs:
    """Draw for each voxel an entry of its class and one of another class, each with the same chance.

    Args:
        classes: [voxels], integers from 0 to the number of the bank's classes - 1.
        valid: [voxels], bool.
        held: what the bank holds.

    Returns:
        Indices into the entries, [voxels] each.
    """
    size = len(held.classes) // len(held.filled)
    count = held.filled[classes]
    after = held.filled.cumsum(0)  # as if the filled entries stood one after the other
    before = after - held.filled
    others = after[-1] - count
    chance = torch.rand((2, *classes.shape), dtype=torch.float32, device=classes.device)
    step, rest = ((share * n).long().clamp(min=0) for share, n in zip(chance, (count, others), strict=True))
    step, rest = torch.minimum(step, (count - 1).clamp(min=0)), torch.minimum(rest, (others - 1).clamp(min=0))
    rest = rest + count * (rest >= before[classes])
    other = torch.searchsorted(after, rest, right=True).clamp(max=len(held.filled) - 1)
    negative = (other * size + rest - before[other]).clamp(0, len(held.classes) - 1)
    return Pairs(classes * size + step, valid & (count > 0), negative, valid & (others > 0))


@torch.no_grad()
def mine_triplets(
    embeddings: Tensor, classes: Tensor, valid: Tensor, held: Held, options: TupleOptions, drawn: Pairs
) -> Triplets:
    """Give each anchor an entry of its class and one of another, as `TupleOptions.triplets` says.

    Args:
        embeddings: [voxels, dimensions], of unit length.
        classes: [voxels], integers.
        valid: [voxels], bool.
        held: what the bank holds.
        options: the kind of triplets.
        drawn: what `draw_partners` drew.

    Returns:
        Indices into the entries, [voxels] each.
    """
    exist = drawn.positive_valid & drawn.negative_valid
    if options.triplets == "random":
        return Triplets(drawn.positive, drawn.negative, exist)
    if options.triplets == "hardest":
        pairs = _hard_pairs(embeddings, classes, valid, held)
        return Triplets(pairs.positive, pairs.negative, exist)
    e = at_least_float32(embeddings.detach())
    if options.triplets == "semi_hard":
        bound = (e - held.embeddings.to(e.dtype)[drawn.positive]).square().sum(dim=1, keepdim=True) + RESOLUTION
        # The largest reciprocal is that of the smallest gap above zero, as in `semi_hard_triplets`.
        best = _squared(e, classes, held, same=FAR, invalid=FAR, less=bound).reciprocal_().max(dim=1)
        return Triplets(drawn.positive, best.indices, exist & (best.values > 1 / BETWEEN))
    squared = _squared(e, classes, held, same=FAR, invalid=FAR)
    candidate = squared <= FARTHEST_WEIGHTED**2
    log_weight = negative_log_density(squared.clamp_(NEAREST_WEIGHTED**2, FARTHEST_WEIGHTED**2), e.shape[1])
    noise = torch.empty_like(log_weight).exponential_().clamp_(min=1e-30).log_()
    found = log_weight.sub_(noise).masked_fill_(~candidate, -torch.inf).max(dim=1)
    return Triplets(drawn.positive, found.indices, exist & torch.isfinite(found.values))


@torch.no_grad()
def _hard_pairs(embeddings: Tensor, classes: Tensor, valid: Tensor, held: Held) -> Pairs:
    """Find for each voxel the farthest entry of its class and the nearest of another."""
    e = at_least_float32(embeddings.detach())
    farthest = _squared(e, classes, held, same=FAR, invalid=-2 * FAR).max(dim=1)
    nearest = _squared(e, classes, held, same=FAR, invalid=FAR).min(dim=1)
    return Pairs(
        farthest.indices, valid & (farthest.values > BETWEEN), nearest.indices, valid & (nearest.values < BETWEEN)
    )


def _squared(
    embeddings: Tensor, classes: Tensor, held: Held, same: float, invalid: float, less: Tensor | None = None
) -> Tensor:
    """Return squared distances [voxels, entries], raised as `squared_distances` says."""
    return squared_distances(
        embeddings[None],
        classes[None],
        torch.ones_like(classes[None], dtype=torch.bool),
        len(held.filled),
        same,
        invalid,
        None if less is None else less[None],
        (held.embeddings[None], held.classes[None], held.valid[None]),
    )[0]


def _pair_loss(
    embeddings: Tensor,
    classes: Tensor,
    valid: Tensor,
    held: Held,
    options: TupleOptions,
    drawn: Pairs,
    own: list[Tensor],
) -> Tensor:
    entries, theirs = held.embeddings.to(embeddings.dtype), held.certainty.to(embeddings.dtype)
    if options.pairs == "all":
        distance = distances_to(embeddings, entries)
        same = classes[:, None] == held.classes
        exist = valid[:, None] & held.valid
        least = [torch.minimum(s[:, None], theirs) for s in own]
    else:
        pairs = drawn if options.pairs == "random" else _hard_pairs(embeddings, classes, valid, held)
        partners = torch.stack([pairs.positive, pairs.negative])
        distance = distances(embeddings, entries[partners])
        exist = torch.stack([pairs.positive_valid, pairs.negative_valid])
        same = torch.zeros_like(exist)
        same[0] = True
        least = [torch.minimum(s, theirs[partners]) for s in own]
    return contrastive_loss(distance, same, exist, *pair_margins(options, *least), options.mean_over)


def distances_to(embeddings: Tensor, entries: Tensor) -> Tensor:
    """Return Euclidean distances [voxels, entries] of rows [voxels, dimensions] and [entries, dimensions]."""
    squared = (embeddings.square().sum(dim=1)[:, None] + entries.square().sum(dim=1)) - 2 * embeddings @ entries.T
    return squared.clamp(min=1e-8).sqrt()


def contrast_with_bank(
    embeddings: Tensor, classes: Tensor, valid: Tensor, held: Held, temperature: float
) -> Tensor:
    """Make the entries of each anchor's class the likeliest partners among all entries of the bank.

    The loss of `metricunet.metric.losses.supervised_contrastive_loss`, its candidates and positives from the bank.
    Anchors without a positive or without a negative do not count.

    Args:
        embeddings: [voxels, dimensions], of unit length.
        classes: [voxels], integers.
        valid: [voxels], bool.
        held: what the bank holds.
        temperature: smaller looks harder at the nearest entries.
    """
    entries = held.embeddings.to(embeddings.dtype)
    similarity = embeddings @ entries.T / temperature
    likeliest = similarity.masked_fill(~held.valid, torch.finfo(similarity.dtype).min / 2).logsumexp(dim=1)
    size = len(held.classes) // len(held.filled)
    sums = (entries * held.valid[:, None]).view(-1, size, entries.shape[1]).sum(dim=1)
    count = held.filled[classes]
    mean = (embeddings * sums[classes]).sum(dim=1) / (temperature * count.clamp(min=1))
    counted = valid & (count > 0) & (count < held.filled.sum())
    return mean_of_positive(likeliest - mean, counted)
