"""The losses that segmentation is trained for: soft Dice and cross-entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from metricunet.training.partial_labels import merge_unknown

#: This many voxels keep the soft Dice of an absent class defined.
SMOOTH = 1.0


def soft_dice_loss(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Return 1 minus the soft Dice, the mean over the classes but the background; sums run over the whole batch.

    Dice = (2 sum p t + s) / (sum p + sum t + s), Milletari, Navab, Ahmadi: V-Net (3DV 2016), unsquared.

    Args:
        logits: [batch, classes, *space].
        labels: [batch, *space], integers.
        ignore_index: label of voxels that do not count.
    """
    probabilities = logits.float().softmax(dim=1)
    counted = (labels != ignore_index).float()
    scores = []
    for k in range(1, logits.shape[1]):
        p, t = probabilities[:, k] * counted, (labels == k).float()
        scores.append((2 * (p * t).sum() + SMOOTH) / (p.sum() + t.sum() + SMOOTH))
    return 1 - torch.stack(scores).mean()


def segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    dice_weight: float,
    cross_entropy_weight: float,
    ignore_index: int = 255,
    unknown: Tensor | None = None,
) -> Tensor:
    """Return the weighted sum of soft Dice loss and mean cross-entropy; a weight of 0 leaves a loss out.

    Args:
        logits: [batch, classes, *space].
        labels: [batch, *space], integers.
        dice_weight: weight of the soft Dice loss.
        cross_entropy_weight: weight of the mean cross-entropy.
        ignore_index: label of voxels that do not count.
        unknown: [batch, classes], bool: classes that were not contoured in an image. There they count as part of
            the background, and the image does not count for their Dice.
    """
    logits = merge_unknown(logits, unknown)
    loss = logits.sum() * 0.0
    if dice_weight:
        loss = loss + dice_weight * soft_dice_loss(logits, labels, ignore_index)
    if cross_entropy_weight:
        entropy = F.cross_entropy(logits.float(), labels.long(), ignore_index=ignore_index, reduction="sum")
        loss = loss + cross_entropy_weight * entropy / (labels != ignore_index).sum().clamp(min=1)
    return loss
