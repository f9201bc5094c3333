"""Online voxel-wise sampling: which voxels of each image the metric loss looks at in this step.

Everything here has a fixed output size with a validity mask, runs without gradient, never asks the device for
a value, and stays linear in the number of voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Sample:
    """The sampled voxels of a batch.

    Attributes:
        index: [batch, voxels], int64: place in the flattened label grid.
        classes: [batch, voxels], int64: label there.
        valid: [batch, voxels], bool: False where the slot holds no voxel (a class had too few).
        hard: [batch, voxels], bool: the voxel was hard when it was drawn.
    """

    index: Tensor
    classes: Tensor
    valid: Tensor
    hard: Tensor


class Sampler(Protocol):
    """Draws voxels from a batch of label maps."""

    def __call__(
        self, labels: Tensor, logits: Tensor | None, spacing_mm: Sequence[float] | None, ignore_index: int
    ) -> Sample:
        """Draw from labels [batch, *space] (integers), given the logits of this step [batch, classes, *space]."""
        ...


class HardEasySampler:
    """A class-balanced mixture of hard and easy voxels: the default.

    Each class gets an equal share of `voxels`. Within a class `hard_share` of its slots go to hard voxels: those
    the network gets wrong now, or whose centre lies within `band_mm` of the centre of a voxel of another class.
    Where one kind runs short the other tops it up; where a class runs short its slots are invalid.

    Args:
        voxels: slots for each image, shared equally between the classes.
        classes: number of classes, background included.
        hard_share: share of hard voxels, 0 to 1.
        band_mm: half width of the band around the surface (in voxels where no spacing is given).
    """

    def __init__(self, voxels: int = 512, classes: int = 2, hard_share: float = 0.5, band_mm: float = 3.0) -> None:
        if not 0 <= hard_share <= 1:
            raise ValueError(f"hard_share must be between 0 and 1; got {hard_share}")
        if classes < 2 or voxels < 2 * classes:
            raise ValueError(f"at least two classes and two voxels for each are needed; got {classes}, {voxels}")
        if band_mm < 0:
            raise ValueError(f"band_mm must not be negative; got {band_mm}")
        self.voxels, self.classes, self.hard_share, self.band_mm = voxels, classes, hard_share, band_mm

    @torch.no_grad()
    def __call__(
        self,
        labels: Tensor,
        logits: Tensor | None = None,
        spacing_mm: Sequence[float] | None = None,
        ignore_index: int = -100,
    ) -> Sample:
        """Draw `voxels` slots for each image (see `Sampler`)."""
        hard = boundary_band(labels, self.band_mm, spacing_mm, self.classes, ignore_index)
        if logits is not None:
            hard |= misclassified(labels, logits)
        flat, flat_hard = labels.flatten(1), hard.flatten(1)
        chance = torch.rand(flat.shape, device=labels.device)
        parts = [
            self._draw_class(flat == c, flat_hard, chance, self.voxels // self.classes)
            for c in range(self.classes)
        ]
        index = torch.cat([p[0] for p in parts], dim=1)
        valid = torch.cat([p[1] for p in parts], dim=1)
        return Sample(index, flat.gather(1, index).long(), valid, flat_hard.gather(1, index) & valid)

    def _draw_class(self, member: Tensor, hard: Tensor, chance: Tensor, slots: int) -> tuple[Tensor, Tensor]:
        """Draw slots from one class: index and validity, each [batch, slots]."""
        slots_there = min(slots, member.shape[1])
        n_hard = (member & hard).sum(dim=1, keepdim=True)
        n_easy = member.sum(dim=1, keepdim=True) - n_hard
        wanted_hard = round(slots * self.hard_share)
        take_hard = torch.minimum(n_hard, (slots - n_easy).clamp(min=wanted_hard))
        take_easy = torch.minimum(n_easy, slots - take_hard)
        # The largest keys win: members of the wanted kind have keys above 0, all others exactly 0.
        hard_first = torch.where(member & hard, chance + 1, 0.0).topk(slots_there, dim=1).indices
        easy_first = torch.where(member & ~hard, chance + 1, 0.0).topk(slots_there, dim=1).indices
        slot = torch.arange(slots, device=member.device).expand(member.shape[0], -1)
        last = slots_there - 1
        index = torch.where(
            slot < take_hard,
            hard_first.gather(1, slot.clamp(max=last)),
            easy_first.gather(1, (slot - take_hard).clamp(0, last)),
        )
        return index, slot < take_hard + take_easy


def misclassified(labels: Tensor, logits: Tensor) -> Tensor:
    """Tell where the class of the largest logit is not the label: bool [batch, *space]."""
    if logits.shape[0] != labels.shape[0] or logits.shape[2:] != labels.shape[1:]:
        raise ValueError(f"logits {tuple(logits.shape)} do not lie on the grid of labels {tuple(labels.shape)}")
    if logits.shape[1] == 2:
        return (logits[:, 1] > logits[:, 0]).to(labels.dtype) != labels
    return logits.argmax(dim=1) != labels


def boundary_band(
    labels: Tensor, band_mm: float, spacing_mm: Sequence[float] | None, classes: int, ignore_index: int = -100
) -> Tensor:
    """Tell which voxels have a voxel of another class within `band_mm`, centre to centre (Euclidean).

    Exact, by the separable squared distance transform (Felzenszwalb, Huttenlocher 2012) cut off at the band.

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
    band = torch.zeros_like(counted)
    bound = (band_mm * (1 + 1e-6)) ** 2
    # Of two classes the second is the complement of the first, but each voxel needs the other one's distance.
    for c in range(classes):
        member = labels == c
        squared = torch.where(counted & ~member, 0.0, torch.inf)
        for axis, step in enumerate(spacing, start=1):
            squared = _spread(squared, axis, step, int(band_mm / step * (1 + 1e-6)))
        band |= member & (squared <= bound)
    return band


def _spread(squared: Tensor, axis: int, step: float, reach: int) -> Tensor:
    """One pass of the distance transform: min over k of squared[i + k] + (k step)^2, |k| at most reach."""
    result = squared.clone()
    length = squared.shape[axis]
    for k in range(1, min(reach, length - 1) + 1):
        cost = (k * step) ** 2
        near, far = squared.narrow(axis, 0, length - k), squared.narrow(axis, k, length - k)
        ahead, behind = result.narrow(axis, 0, length - k), result.narrow(axis, k, length - k)
        torch.minimum(ahead, far + cost, out=ahead)
        torch.minimum(behind, near + cost, out=behind)
    return result
