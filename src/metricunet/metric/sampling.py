"""Online voxel-wise sampling: which voxels of each image the metric loss looks at in this step.

Every sampler has a fixed output size with a validity mask, runs without gradient, never asks the device for a
value (so that it can be compiled, and captured in a CUDA graph), and is linear in the number of voxels.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from metricunet.metric.hardness import boundary_band, certainty, misclassified


@dataclass(frozen=True, eq=False)
class Sample:
    """The sampled voxels of a batch.

    Attributes:
        index: [batch, voxels], int64: place in the flattened label grid.
        classes: [batch, voxels], int64: label there.
        valid: [batch, voxels], bool: False where the slot holds no voxel (a class had too few).
        hard: [batch, voxels], bool: the voxel is of the kind that its sampler prefers.
    """

    index: Tensor
    classes: Tensor
    valid: Tensor
    hard: Tensor


class Sampler(Protocol):
    """Draws voxels from a batch of label maps. `classes` is their number, background included."""

    classes: int

    def __call__(
        self, labels: Tensor, logits: Tensor | None, spacing_mm: Sequence[float] | None, ignore_index: int
    ) -> Sample:
        """Draw from labels [batch, *space] (integers), given the logits of this step [batch, classes, *space]."""
        ...


class UniformSampler:
    """Every labelled voxel has the same chance. Of a small structure it sees next to nothing.

    Args:
        voxels: slots for each image.
        classes: number of classes, background included.
    """

    def __init__(self, voxels: int = 512, classes: int = 2) -> None:
        _check_counts(voxels, classes)
        self.voxels, self.classes = voxels, classes

    @torch.no_grad()
    def __call__(
        self,
        labels: Tensor,
        logits: Tensor | None = None,
        spacing_mm: Sequence[float] | None = None,
        ignore_index: int = -100,
    ) -> Sample:
        """Draw `voxels` slots for each image (see `Sampler`)."""
        flat = labels.flatten(1)
        order = (flat != ignore_index).cumsum(1, dtype=torch.int32)
        take = order[:, -1:].clamp(max=self.voxels)
        index = draw(order, take, self.voxels)
        valid = torch.arange(self.voxels, device=labels.device) < take
        return Sample(index, flat.gather(1, index).long(), valid, torch.zeros_like(valid))


class _ClassShares(ABC):
    """An equal share of the slots for each class, `hard_share` of it for its hard voxels.

    Where one kind runs short the other tops it up; where a class runs short its slots are invalid.
    """

    def __init__(self, voxels: int, classes: int, hard_share: float) -> None:
        _check_counts(voxels, classes)
        if not 0 <= hard_share <= 1:
            raise ValueError(f"hard_share must be between 0 and 1; got {hard_share}")
        self.voxels, self.classes, self.hard_share = voxels, classes, hard_share

    @abstractmethod
    def hard(
        self, labels: Tensor, logits: Tensor | None, spacing_mm: Sequence[float] | None, ignore_index: int
    ) -> Tensor:
        """Tell which voxels are hard: bool [batch, *space]."""

    @torch.no_grad()
    def __call__(
        self,
        labels: Tensor,
        logits: Tensor | None = None,
        spacing_mm: Sequence[float] | None = None,
        ignore_index: int = -100,
    ) -> Sample:
        """Draw `voxels` slots for each image (see `Sampler`)."""
        flat = labels.flatten(1)
        hard = self.hard(labels, logits, spacing_mm, ignore_index).flatten(1)
        slots = self.voxels // self.classes
        parts = [_draw_class(flat == c, hard, slots, round(slots * self.hard_share)) for c in range(self.classes)]
        index = torch.cat([p[0] for p in parts], dim=1)
        valid = torch.cat([p[1] for p in parts], dim=1)
        return Sample(index, flat.gather(1, index).long(), valid, hard.gather(1, index) & valid)


class ClassBalancedSampler(_ClassShares):
    """The same number of voxels from each class, each voxel of a class with the same chance.

    Args:
        voxels: slots for each image, shared equally between the classes.
        classes: number of classes, background included.
    """

    def __init__(self, voxels: int = 512, classes: int = 2) -> None:
        super().__init__(voxels, classes, 0.0)

    def hard(
        self, labels: Tensor, logits: Tensor | None, spacing_mm: Sequence[float] | None, ignore_index: int
    ) -> Tensor:
        """No voxel is preferred."""
        return torch.zeros_like(labels, dtype=torch.bool)


class BoundarySampler(_ClassShares):
    """Voxels within `band_mm` of another class, the same number from each class.

    Where the band of a class runs short, the rest of the class tops it up.

    Args:
        voxels: slots for each image, shared equally between the classes.
        classes: number of classes, background included.
        band_mm: half width of the band around the surface (in voxels where no spacing is given).
    """

    def __init__(self, voxels: int = 512, classes: int = 2, band_mm: float = 3.0) -> None:
        super().__init__(voxels, classes, 1.0)
        self.band_mm = _checked_band(band_mm)

    def hard(
        self, labels: Tensor, logits: Tensor | None, spacing_mm: Sequence[float] | None, ignore_index: int
    ) -> Tensor:
        """Tell which voxels lie in the band."""
        return boundary_band(labels, self.band_mm, spacing_mm, self.classes, ignore_index)


class MisclassifiedSampler(_ClassShares):
    """Voxels that the network gets wrong in this step, the same number from each class; it needs logits.

    Where a class has too few wrong voxels, right ones top it up.

    Args:
        voxels: slots for each image, shared equally between the classes.
        classes: number of classes, background included.
    """

    def __init__(self, voxels: int = 512, classes: int = 2) -> None:
        super().__init__(voxels, classes, 1.0)

    def hard(
        self, labels: Tensor, logits: Tensor | None, spacing_mm: Sequence[float] | None, ignore_index: int
    ) -> Tensor:
        """Tell which voxels are wrong."""
        return misclassified(labels, _needed(logits, "misclassified"))


class HardEasySampler(_ClassShares):
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
        super().__init__(voxels, classes, hard_share)
        self.band_mm = _checked_band(band_mm)

    def hard(
        self, labels: Tensor, logits: Tensor | None, spacing_mm: Sequence[float] | None, ignore_index: int
    ) -> Tensor:
        """Tell which voxels lie in the band or are wrong."""
        hard = boundary_band(labels, self.band_mm, spacing_mm, self.classes, ignore_index)
        if logits is not None:
            hard |= misclassified(labels, logits)
        return hard


class UncertainSampler:
    """The most doubtful voxels of each class: the smallest margin between the two best classes; needs logits.

    Nothing is random here, and the k smallest of an image are sought, which costs more than the other samplers.

    Args:
        voxels: slots for each image, shared equally between the classes.
        classes: number of classes, background included.
    """

    def __init__(self, voxels: int = 512, classes: int = 2) -> None:
        _check_counts(voxels, classes)
        self.voxels, self.classes = voxels, classes

    @torch.no_grad()
    def __call__(
        self,
        labels: Tensor,
        logits: Tensor | None = None,
        spacing_mm: Sequence[float] | None = None,
        ignore_index: int = -100,
    ) -> Sample:
        """Choose `voxels` slots for each image (see `Sampler`)."""
        flat = labels.flatten(1)
        margin = certainty(labels, _needed(logits, "uncertain")).flatten(1)
        slots = self.voxels // self.classes
        there = min(slots, flat.shape[1])
        empty = flat.shape[0], slots - there
        indices, valids = [], []
        for c in range(self.classes):
            smallest = torch.where(flat == c, margin, torch.inf).topk(there, dim=1, largest=False)
            indices += [smallest.indices, smallest.indices.new_zeros(empty)]
            valids += [torch.isfinite(smallest.values), torch.zeros(empty, dtype=torch.bool, device=flat.device)]
        index, valid = torch.cat(indices, dim=1), torch.cat(valids, dim=1)
        return Sample(index, flat.gather(1, index).long(), valid, valid)


#: The samplers by the names that a configuration uses.
SAMPLERS: dict[str, type[Any]] = {
    "mixture": HardEasySampler,
    "uniform": UniformSampler,
    "balanced": ClassBalancedSampler,
    "boundary": BoundarySampler,
    "misclassified": MisclassifiedSampler,
    "uncertain": UncertainSampler,
}


def sampler_settings(name: str) -> tuple[str, ...]:
    """Name the settings that a sampler takes.

    Raises:
        ValueError: unknown sampler.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}; got {name!r}")
    return tuple(inspect.signature(SAMPLERS[name]).parameters)


def build_sampler(name: str, **settings: float) -> Sampler:
    """Build a sampler by its name in `SAMPLERS`, such as `build_sampler("boundary", voxels=256, band_mm=5)`.

    Raises:
        ValueError: unknown sampler, or a setting that it does not take or cannot be.
    """
    known = sampler_settings(name)
    for key in settings:
        if key not in known:
            raise ValueError(f"sampler {name} takes {', '.join(known)}; got {key}")
    sampler: Sampler = SAMPLERS[name](**settings)
    return sampler


def draw(order: Tensor, take: Tensor, slots: int) -> Tensor:
    """Draw places without replacement, spread evenly over the image; every member has the same chance.

    The members, in raster order from a random one on, are cut into `take` runs of equal length, and one is drawn
    from each run. The cost is one running count.

    Args:
        order: [batch, places], int32: the running count of the members.
        take: [batch, 1], int: how many to draw, at most the number of members.
        slots: length of the result, at least `take`.

    Returns:
        [batch, slots], int64; what follows the first `take` is any valid place.
    """
    number = torch.arange(slots, device=order.device)
    members, runs = order[:, -1:].long().clamp(min=1), take.long().clamp(min=1)
    first, after = number * members // runs, (number + 1) * members // runs
    chance = torch.rand((len(order), slots + 1), device=order.device)
    begin = _below(chance[:, :1], members)
    chosen = (begin + first + _below(chance[:, 1:], (after - first).clamp(min=1))) % members
    # The first place whose running count exceeds the number chosen.
    return torch.searchsorted(order, (chosen + 1).to(torch.int32)).clamp_(max=order.shape[1] - 1)


def _below(chance: Tensor, bound: Tensor) -> Tensor:
    """Turn numbers of 0 to 1 into whole numbers of 0 to bound - 1; the clamp is for rounding."""
    return torch.minimum((chance * bound).long(), bound - 1)


def _draw_class(member: Tensor, hard: Tensor, slots: int, wanted_hard: int) -> tuple[Tensor, Tensor]:
    """Draw slots from one class: index and validity, each [batch, slots]."""
    hard_order = (member & hard).cumsum(1, dtype=torch.int32)
    easy_order = (member & ~hard).cumsum(1, dtype=torch.int32)
    n_hard, n_easy = hard_order[:, -1:], easy_order[:, -1:]
    take_hard = torch.minimum(n_hard, (slots - n_easy).clamp(min=wanted_hard))
    take_easy = torch.minimum(n_easy, slots - take_hard)
    slot = torch.arange(slots, device=member.device)
    after_hard = (slot - take_hard).clamp(min=0).long()
    index = torch.where(
        slot < take_hard,
        draw(hard_order, take_hard, slots),
        draw(easy_order, take_easy, slots).gather(1, after_hard),
    )
    return index, slot < take_hard + take_easy


def _check_counts(voxels: int, classes: int) -> None:
    if classes < 2 or voxels < 2 * classes:
        raise ValueError(f"at least two classes and two voxels for each are needed; got {classes}, {voxels}")


def _checked_band(band_mm: float) -> float:
    if band_mm < 0:
        raise ValueError(f"band_mm must not be negative; got {band_mm}")
    return band_mm


def _needed(logits: Tensor | None, name: str) -> Tensor:
    if logits is None:
        raise ValueError(f"sampler {name} needs logits: pass logits= of this step")
    return logits
