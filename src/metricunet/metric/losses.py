"""The losses on tuples of embeddings, and their options. No tuples at all give zero, with a gradient of zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from metricunet.metric.sampling import Sample
from metricunet.metric.tuples import TRIPLETS, Pairs, dealt_out, hard_pairs, pick, random_pairs

#: Squared distances below this count as this, where the root's gradient would be infinite.
SQUARED_DISTANCE_FLOOR = 1e-8

TripletKind = Literal["semi_hard", "random", "hardest", "distance_weighted"]
TripletForm = Literal["hinge", "soft"]
PairKind = Literal["random", "hard", "all"]
MeanOver = Literal["violators", "all"]


@dataclass(frozen=True)
class TupleOptions:
    """Which tuples are formed, and what their losses ask of them.

    Attributes:
        triplets: `semi_hard` (a random positive, and the nearest negative that is farther away), `random`,
            `hardest`, or `distance_weighted`.
        triplet_form: `hinge` or `soft` (softplus).
        pairs: `random` (one of each kind for each voxel, an unbiased sample of all pairs), `hard` (the farthest
            voxel of its class and the nearest of another; embeddings collapse easily under it), or `all`.
        across: form tuples across the batch instead of within one image. Voxels are dealt out anew to as many rows
            of as many voxels, so memory and time stay those of tuples within an image.
        margin: the gap between the two distances that a triplet is asked to keep.
        positive_margin: distance up to which a pair of one class is left alone.
        negative_margin: distance from which on a pair of two classes is left alone.
        triplet_weight: weight of the triplet loss in the sum; 0 leaves it out.
        pair_weight: weight of the contrastive loss in the sum; 0 leaves it out.
        supcon_weight: weight of the supervised contrastive loss in the sum; 0 leaves it out.
        temperature: temperature of the supervised contrastive loss.
        mean_over: what the triplet and the pair loss are means over: the `violators` of their margins, so that few
            of them weigh as much as many, or `all` tuples, so that the loss fades as they become few.

    Raises:
        ValueError: a name is unknown, or the temperature is not above 0.
    """

    triplets: TripletKind = "semi_hard"
    triplet_form: TripletForm = "hinge"
    pairs: PairKind = "random"
    across: bool = False
    margin: float = 0.2
    positive_margin: float = 0.2
    negative_margin: float = 1.0
    triplet_weight: float = 1.0
    pair_weight: float = 1.0
    supcon_weight: float = 0.0
    temperature: float = 0.1
    mean_over: MeanOver = "violators"

    def __post_init__(self) -> None:
        kinds_of = {
            "triplets": TripletKind,
            "pairs": PairKind,
            "triplet_form": TripletForm,
            "mean_over": MeanOver,
        }
        for name, kinds in kinds_of.items():
            known, value = get_args(kinds), getattr(self, name)
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0; got {self.temperature}")


class MetricOutput(NamedTuple):
    """What every branch returns; all losses and statistics are scalars.

    Attributes:
        loss: what to train on: the weighted sum of the parts.
        parts: the losses in the sum by their names, unweighted, with gradient: `triplet`, `pair`, and `supcon`
            where it has a weight; the same with `bank_` before the name of tuples with a memory bank;
            `voxel_entropy` of the control. A triplet or pair loss that is left out is zero.
        statistics: values for the log, without gradient: `active_triplets` (share of the anchors whose triplet is
            inside the margin), `positive_distance` and `negative_distance` (means over the positives and negatives
            of the triplets), `spread` (1 minus the length of the mean embedding of an image; 0 is collapse),
            `hard_voxels` and `valid_voxels` (shares of the slots); `voxel_accuracy` of the control.
        sample: the voxels that were drawn; None where there are none to draw.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    statistics: dict[str, Tensor]
    sample: Sample | None = None


def tuple_losses(
    embeddings: Tensor,
    classes: Tensor,
    valid: Tensor,
    n_classes: int,
    options: TupleOptions,
    certainty: Tensor | None = None,
) -> MetricOutput:
    """Form tuples of embeddings and add up the losses on them.

    Args:
        embeddings: [batch, voxels, dimensions], of unit length.
        classes: [batch, voxels], integers from 0 to n_classes - 1 where valid.
        valid: [batch, voxels], bool.
        n_classes: number of classes.
        options: which tuples are formed, and which losses are computed on them.
        certainty: [batch, voxels], 0 to 1, how sure each voxel's class is; margins shrink by that of the least
            sure voxel of a tuple (`shrunk_margin`, `pair_margins`). None where all are sure.
    """
    sure = [] if certainty is None else [certainty]
    if options.across:
        embeddings, classes, valid, *sure = dealt_out(embeddings, classes, valid, *sure)
    drawn = random_pairs(classes, valid)
    mined = TRIPLETS[options.triplets](embeddings, classes, valid, n_classes, drawn)
    near = distances(embeddings, pick(embeddings, mined.positive))
    far = distances(embeddings, pick(embeddings, mined.negative))
    least = [torch.minimum(s, torch.minimum(*(s.gather(1, i) for i in mined[:2]))) for s in sure]
    margin = shrunk_margin(options.margin, *least)
    zero = embeddings.sum() * 0
    parts = {"triplet": zero, "pair": zero}
    if options.triplet_weight:
        parts["triplet"] = triplet_margin_loss(
            near, far, mined.valid, margin, options.triplet_form, options.mean_over
        )
    if options.pair_weight:
        parts["pair"] = _pair_loss(embeddings, classes, valid, n_classes, drawn, options, *sure)
    if options.supcon_weight:
        parts["supcon"] = supervised_contrastive_loss(embeddings, classes, valid, n_classes, options.temperature)
    statistics = triplet_statistics(near, far, mined.valid, valid.sum(), margin)
    return MetricOutput(weighted_sum(parts, options), parts, statistics)


def weighted_sum(parts: dict[str, Tensor], options: TupleOptions) -> Tensor:
    """Add up the losses on tuples, each by the weight that the options give it."""
    loss = options.triplet_weight * parts["triplet"] + options.pair_weight * parts["pair"]
    return loss + options.supcon_weight * parts["supcon"] if "supcon" in parts else loss


def shrunk_margin(margin: float, certainty: Tensor | None = None) -> float | Tensor:
    """Return the margin of triplets, in proportion to how sure their least sure voxel is; unsaid, all are sure."""
    return margin if certainty is None else margin * certainty


def pair_margins(options: TupleOptions, certainty: Tensor | None = None) -> tuple[float | Tensor, float | Tensor]:
    """Return the positive and the negative margin of pairs, given how sure their less sure voxel is.

    The less sure a pair is, the less is asked of it: the distance from which two of different classes are left
    alone shrinks to 0, and that up to which two of one class are left alone grows to the full negative margin.
    """
    low, high = options.positive_margin, options.negative_margin
    return (low, high) if certainty is None else (high - (high - low) * certainty, high * certainty)


def _pair_loss(
    embeddings: Tensor,
    classes: Tensor,
    valid: Tensor,
    n_classes: int,
    drawn: Pairs,
    options: TupleOptions,
    *sure: Tensor,
) -> Tensor:
    if options.pairs == "all":
        same = classes[:, :, None] == classes[:, None, :]
        itself = torch.eye(classes.shape[1], dtype=torch.bool, device=classes.device)
        exist = valid[:, :, None] & valid[:, None, :] & ~itself
        distance = all_distances(embeddings)
        least = [torch.minimum(s[:, :, None], s[:, None, :]) for s in sure]
    else:
        pairs = drawn if options.pairs == "random" else hard_pairs(embeddings, classes, valid, n_classes)
        near, far = pick(embeddings, pairs.positive), pick(embeddings, pairs.negative)
        distance = distances(embeddings, torch.stack([near, far]))
        exist = torch.stack([pairs.positive_valid, pairs.negative_valid])
        same = torch.zeros_like(exist)
        same[0] = True
        partners = torch.stack([pairs.positive, pairs.negative])
        least = [torch.minimum(s, s.expand_as(partners).gather(2, partners)) for s in sure]
    return contrastive_loss(distance, same, exist, *pair_margins(options, *least), options.mean_over)


@torch.no_grad()
def triplet_statistics(
    near: Tensor, far: Tensor, exists: Tensor, anchors: Tensor, margin: float | Tensor
) -> dict[str, Tensor]:
    """Summarise triplets for the log (see `MetricOutput`).

    Args:
        near: distances of anchor and positive, any shape.
        far: distances of anchor and negative, shaped alike.
        exists: bool, shaped alike: which triplets exist.
        anchors: scalar: how many voxels could have had one.
        margin: the gap that a triplet is asked to keep, or that of each.
    """
    count = exists.sum().clamp(min=1)
    active = exists & (near - far + margin > 0)
    return {
        "active_triplets": active.sum() / anchors.clamp(min=1),
        "positive_distance": (near * exists).sum() / count,
        "negative_distance": (far * exists).sum() / count,
    }


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Return the Euclidean distances [...] of rows [..., dimensions]; the gradient of two equal rows is zero."""
    return (a - b).square().sum(dim=-1).clamp(min=SQUARED_DISTANCE_FLOOR).sqrt()


def all_distances(embeddings: Tensor) -> Tensor:
    """Return distances [batch, voxels, voxels] of embeddings [batch, voxels, dimensions] of unit length."""
    squared = 2 - 2 * torch.bmm(embeddings, embeddings.transpose(1, 2))
    return squared.clamp(min=SQUARED_DISTANCE_FLOOR).sqrt()


def triplet_margin_loss(
    positive: Tensor,
    negative: Tensor,
    valid: Tensor,
    margin: float | Tensor,
    form: TripletForm = "hinge",
    over: MeanOver = "violators",
) -> Tensor:
    """Take the mean over the triplets of a hinge or a soft hinge on the violation v of the margin.

    v = d(anchor, positive) - d(anchor, negative) + margin; the hinge is max(0, v), the soft one log(1 + exp(v)).
    Hinge: Schroff et al. (CVPR 2015), on distances instead of squared distances, the mean over the triplets with
    v > 0 or over all. Soft: Hermans, Beyer, Leibe (arXiv 1703.07737), with a margin, the mean over all.

    Args:
        positive: distances of anchor and positive, any shape.
        negative: distances of anchor and negative, shaped alike.
        valid: bool, shaped alike: which triplets exist.
        margin: the gap that a triplet is asked to keep, or that of each, shaped alike.
        form: `hinge` or `soft`.
        over: what the hinge's mean is over.
    """
    violation = positive - negative + margin
    return MEANS[over](violation.relu() if form == "hinge" else F.softplus(violation), valid)


def contrastive_loss(
    distance: Tensor,
    same: Tensor,
    valid: Tensor,
    positive_margin: float | Tensor,
    negative_margin: float | Tensor,
    over: MeanOver = "violators",
) -> Tensor:
    """Pull pairs of one class within `positive_margin`, push pairs of two apart to `negative_margin`.

    Hadsell, Chopra, LeCun (CVPR 2006), with hinges that are linear instead of squared: the mean over violating
    (or over all) positive pairs of max(0, d - positive_margin) plus the mean over violating (or over all) negative
    pairs of max(0, negative_margin - d).

    Args:
        distance: distances of the pairs, any shape.
        same: bool, shaped alike: both voxels are of one class.
        valid: bool, shaped alike: which pairs exist.
        positive_margin: distance up to which a pair of one class is left alone, or that of each, shaped alike.
        negative_margin: distance from which on a pair of two classes is left alone, or that of each.
        over: what the two means are over.
    """
    pull = MEANS[over]((distance - positive_margin).relu(), valid & same)
    push = MEANS[over]((negative_margin - distance).relu(), valid & ~same)
    return pull + push


def supervised_contrastive_loss(
    embeddings: Tensor, classes: Tensor, valid: Tensor, n_classes: int, temperature: float
) -> Tensor:
    """Make the voxels of each anchor's class the likeliest partners among all voxels of its row.

    Khosla et al.: Supervised contrastive learning (NeurIPS 2020), equation 2: the mean over anchors of
    log sum_a exp(e e_a / t) - mean_p(e e_p / t), where a runs over all other voxels of the row and p over those of
    the anchor's class. Anchors without a positive or without a negative do not count.

    Args:
        embeddings: [batch, voxels, dimensions], of unit length.
        classes: [batch, voxels], integers from 0 to n_classes - 1 where valid.
        valid: [batch, voxels], bool.
        n_classes: number of classes.
        temperature: t; smaller looks harder at the nearest voxels.
    """
    similarity = torch.bmm(embeddings, embeddings.transpose(1, 2)) / temperature
    itself = torch.eye(classes.shape[1], dtype=torch.bool, device=classes.device)
    # Not minus infinity: a row without any candidate must keep a finite gradient.
    nothing = torch.finfo(similarity.dtype).min / 2
    likeliest = similarity.masked_fill(itself | ~valid[:, None, :], nothing).logsumexp(dim=2)
    own = (classes[..., None] == torch.arange(n_classes, device=classes.device)) & valid[..., None]
    own = own.to(embeddings.dtype)
    # The sum over an anchor's positives is its product with the sum of its class, less itself: linear in voxels.
    sums = torch.bmm(own, torch.bmm(own.transpose(1, 2), embeddings)) - embeddings
    count = torch.bmm(own, own.sum(dim=1)[..., None])[..., 0]
    mean = (embeddings * sums).sum(dim=-1) / (temperature * (count - 1).clamp(min=1))
    counted = valid & (count > 1) & (count < valid.sum(dim=1, keepdim=True))
    return mean_of_positive(likeliest - mean, counted)


def mean_of_positive(terms: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of the terms that are valid and above zero; without any it is zero, with a gradient.

    Args:
        terms: any shape.
        valid: bool, shaped alike.
    """
    kept = torch.where(valid, terms, 0.0)
    return kept.sum() / (kept > 0).sum().clamp(min=1)


def mean_of_valid(terms: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of the valid terms; without any it is zero, with a gradient.

    Args:
        terms: any shape.
        valid: bool, shaped alike.
    """
    return torch.where(valid, terms, 0.0).sum() / valid.sum().clamp(min=1)


#: How the terms of a loss become one number, by the names that a configuration uses.
MEANS = {"violators": mean_of_positive, "all": mean_of_valid}
