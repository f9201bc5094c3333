"""What makes a voxel hard: it lies near a surface, it is wrongly predicted, or its class is in doubt.

Fixed shapes, no gradient, no value asked of the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: Distances are compared with this relative slack, so that a bound of 3 mm holds 3 voxels of 1 mm.
BAND_SLACK = 1e-6


def misclassified(labels: Tensor, logits: Tensor) -> Tensor:
    """Tell where the class of the largest logit is not the label: bool [batch, *space]."""
    _check_grid(labels, logits)
    if logits.shape[1] == 2:
        return (logits[:, 1] > logits[:, 0]).to(labels.dtype) != labels
    return logits.argmax(dim=1) != labels


def certainty(labels: Tensor, logits: Tensor) -> Tensor:
    """Probability of the best class minus that of the second best: float32 [batch, *space], 0 is full doubt."""
    _check_grid(labels, logits)
    if logits.shape[1] == 2:
        # tanh(|a - b| / 2) is the difference of the two softmax probabilities.
        return (logits[:, 1].float() - logits[:, 0].float()).abs_().mul_(0.5).tanh_()
    best = logits.float().softmax(dim=1).topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


def boundary_band(
    labels: Tensor, band_mm: float, spacing_mm: Sequence[float] | None, classes: int, ignore_index: int = -100
) -> Tensor:
    """Tell which voxels have a voxel of another class within `band_mm`, centre to centre (Euclidean).

    Exact: each class's surroundings are dilated by the ellipsoid of voxels that the band reaches, built from
    runs along the last axis. Time is linear in the image, memory a few bytes a voxel.

    Args:
        labels: [batch, *space], integers. Voxels of `ignore_index` neither have nor make a surface.
        band_mm: the largest distance, bound included.
        spacing_mm: voxel spacing along each axis of the space; None means 1 along each.
        classes: number of classes, background included.
        ignore_index: label of voxels that count for no class.

    Returns:
        bool [batch, *space].
    """
    spacing = [1.0] * (labels.dim() - 1) if spacing_mm is None else [float(s) for s in spacing_mm]
    if len(spacing) != labels.dim() - 1 or min(spacing) <= 0:
        raise ValueError(f"spacing_mm needs {labels.dim() - 1} positive numbers; got {spacing}")
    counted = labels != ignore_index
    bound = (band_mm * (1 + BAND_SLACK)) ** 2
    # Bytes, for torch's logic on bool is not vectorised.
    band = torch.zeros_like(labels, dtype=torch.uint8)
    for c in range(classes):
        member = labels == c
        band |= _dilate((counted & ~member).view(torch.uint8), 1, spacing, bound) & member.view(torch.uint8)
    return band.view(torch.bool)


def _dilate(mask: Tensor, axis: int, spacing: Sequence[float], bound: float) -> Tensor:
    """Dilate along `axis` and those after it by all steps whose squared length is at most `bound`."""
    step = spacing[axis - 1]
    length = mask.shape[axis]
    reach = min(int(math.sqrt(bound) / step), length - 1)
    last = axis == mask.dim() - 1
    # The runs along the last axis need no dilation of their own; other axes add what is left of the bound.
    result = mask.clone() if last else _dilate(mask, axis + 1, spacing, bound)
    for k in range(1, reach + 1):
        part = mask if last else _dilate(mask, axis + 1, spacing, bound - (k * step) ** 2)
        result.narrow(axis, 0, length - k).bitwise_or_(part.narrow(axis, k, length - k))
        result.narrow(axis, k, length - k).bitwise_or_(part.narrow(axis, 0, length - k))
    return result


def _check_grid(labels: Tensor, logits: Tensor) -> None:
    if logits.shape[0] != labels.shape[0] or logits.shape[2:] != labels.shape[1:]:
        raise ValueError(f"logits {tuple(logits.shape)} do not lie on the grid of labels {tuple(labels.shape)}")
