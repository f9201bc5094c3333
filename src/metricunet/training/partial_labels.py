"""Learning from cases in which some structures were not contoured: what their labels do say, and no more.

A voxel labelled background there is background *or* one of the structures that nobody drew. A batch carries
`unknown` [batch, classes], bool: the classes that were not contoured in the image's case. Where every case of a
training was contoured in full it is None, and nothing here is done.

Shi, Xiao, Chen, Zhou: Marginal loss and exclusion loss for partially supervised multi-organ segmentation (Medical
Image Analysis 2021), the marginal loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metricunet.structures import IGNORE_CLASS

#: A logit whose probability is zero. Finite, for infinite ones have no gradient in lower precision.
NEVER = -1e4


def unknown_classes(unknown: Sequence[tuple[int, ...]], classes: int, device: torch.device) -> Tensor | None:
    """Return which classes were not contoured: bool [cases, classes]; None where all were, in every case.

    Args:
        unknown: of each case, the classes that were not contoured.
        classes: number of classes, background included.
        device: device of the table.
    """
    if not any(unknown):
        return None
    table = torch.zeros(len(unknown), classes, dtype=torch.bool)
    for row, own in zip(table, unknown, strict=True):
        row[list(own)] = True
    return table.to(device)


def merge_unknown(logits: Tensor, unknown: Tensor | None) -> Tensor:
    """Join the classes that were not contoured to the background of their image.

    The background's probability becomes the sum of its own and theirs, and theirs zero. So cross-entropy does not
    punish them where the labels say background, and neither side of their Dice counts these images.

    Args:
        logits: [batch, classes, *space].
        unknown: [batch, classes], bool.

    Returns:
        Logits of the same shape, float32; the argument itself where `unknown` is None.
    """
    if unknown is None:
        return logits
    logits = logits.float()
    hidden = unknown.view(*unknown.shape, *[1] * (logits.dim() - 2))
    background = torch.cat([logits[:, :1], logits.masked_fill(~hidden, NEVER)[:, 1:]], dim=1)
    known = logits.masked_fill(hidden, NEVER)[:, 1:]
    return torch.cat([background.logsumexp(dim=1, keepdim=True), known], dim=1)


def certain_labels(labels: Tensor, unknown: Tensor | None) -> Tensor:
    """Mark as ignored the background of images in which some class was not contoured: it may be that class.

    The metric branch compares single voxels, and a gland that nobody drew must not become a negative of glands.

    Args:
        labels: [batch, *space], uint8 classes.
        unknown: [batch, classes], bool.
    """
    if unknown is None:
        return labels
    doubtful = unknown.any(dim=1).view(-1, *[1] * (labels.dim() - 1))
    return labels.masked_fill(doubtful & (labels == 0), IGNORE_CLASS)
