"""The losses on tuples of embeddings. Empty sets of tuples give zero, with a gradient of zero."""

from __future__ import annotations

import torch
from torch import Tensor

#: Squared distances below this count as this, where the root's gradient would be infinite.
SQUARED_DISTANCE_FLOOR = 1e-8


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances of rows [..., dimensions]; the gradient of two equal rows is zero."""
    return (a - b).square().sum(dim=-1).clamp(min=SQUARED_DISTANCE_FLOOR).sqrt()


def triplet_margin_loss(positive: Tensor, negative: Tensor, valid: Tensor, margin: float) -> Tensor:
    """Mean over the violating triplets of max(0, d(anchor, positive) - d(anchor, negative) + margin).

    Schroff et al. (CVPR 2015), on distances instead of squared distances.

    Args:
        positive: distances of anchor and positive, any shape.
        negative: distances of anchor and negative, the same shape.
        valid: bool, the same shape: which triplets exist.
        margin: the gap that a triplet is asked to keep.
    """
    return mean_of_positive((positive - negative + margin).relu(), valid)


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


def mean_of_positive(terms: Tensor, valid: Tensor) -> Tensor:
    """Mean of those terms that are valid and above zero; zero, still with a gradient, where there is none."""
    kept = torch.where(valid, terms, 0.0)
    return kept.sum() / (kept > 0).sum().clamp(min=1)
