"""The losses on tuples of embeddings. Empty sets of tuples give zero, with a gradient of zero."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

#: Squared distances below this count as this, where the root's gradient would be infinite.
SQUARED_DISTANCE_FLOOR = 1e-8

TripletForm = Literal["hinge", "soft"]


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances of rows [..., dimensions]; the gradient of two equal rows is zero."""
    return (a - b).square().sum(dim=-1).clamp(min=SQUARED_DISTANCE_FLOOR).sqrt()


def all_distances(embeddings: Tensor) -> Tensor:
    """Euclidean distances [batch, voxels, voxels] of embeddings [batch, voxels, dimensions] of unit length."""
    squared = 2 - 2 * torch.bmm(embeddings, embeddings.transpose(1, 2))
    return squared.clamp(min=SQUARED_DISTANCE_FLOOR).sqrt()


def triplet_margin_loss(
    positive: Tensor, negative: Tensor, valid: Tensor, margin: float, form: TripletForm = "hinge"
) -> Tensor:
    """Mean over the triplets of a hinge or a soft hinge on the violation v of the margin.

    v = d(anchor, positive) - d(anchor, negative) + margin; the hinge is max(0, v), the soft one log(1 + exp(v)).
    Hinge: Schroff et al. (CVPR 2015), on distances instead of squared distances, the mean over the triplets with
    v > 0. Soft: Hermans, Beyer, Leibe (arXiv 1703.07737), with a margin, the mean over all.

    Args:
        positive: distances of anchor and positive, any shape.
        negative: distances of anchor and negative, the same shape.
        valid: bool, the same shape: which triplets exist.
        margin: the gap that a triplet is asked to keep.
        form: `hinge` or `soft`.
    """
    violation = positive - negative + margin
    return mean_of_positive(violation.relu() if form == "hinge" else F.softplus(violation), valid)


def contrastive_loss(
    distance: Tensor, same: Tensor, valid: Tensor, positive_margin: float, negative_margin: float
) -> Tensor:
    """Pull pairs of one class within `positive_margin`, push pairs of two apart to `negative_margin`.

    Hadsell, Chopra, LeCun (CVPR 2006), with hinges that are linear instead of squared: the mean over violating
    positive pairs of max(0, d - positive_margin) plus the mean over violating negative pairs of
    max(0, negative_margin - d).

    Args:
        distance: distances of the pairs, any shape.
        same: bool, the same shape: both voxels are of one class.
        valid: bool, the same shape: which pairs exist.
        positive_margin: distance up to which a pair of one class is left alone.
        negative_margin: distance from which on a pair of two classes is left alone.
    """
    pull = mean_of_positive((distance - positive_margin).relu(), valid & same)
    push = mean_of_positive((negative_margin - distance).relu(), valid & ~same)
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
        n_classes: how many classes there are.
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
    """Mean of those terms that are valid and above zero; zero, still with a gradient, where there is none."""
    kept = torch.where(valid, terms, 0.0)
    return kept.sum() / (kept > 0).sum().clamp(min=1)
