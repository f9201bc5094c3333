"""Online voxel-wise sampling: which voxels of each image a branch looks at in this step, and their features.

Every sampler fills a fixed number of slots and marks those that hold a voxel. It runs without gradient, never asks
the device for a value (so that it can be compiled, and captured in a CUDA graph), and is linear in the number of
voxels.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from metricunet.metric.gathering import drawn

#: Distances are compared with this relative slack, so that a bound of 3 mm holds 3 voxels of 1 mm.
BAND_SLACK = 1e-6


@dataclass(frozen=True, eq=False)
class Sample:
    """The sampled voxels of a batch.

    Attributes:
        index: [batch, voxels], int64: the voxel's index in the flattened label grid.
        classes: [batch, voxels], int64: the label of that voxel.
        valid: [batch, voxels], bool: False where the slot holds no voxel, because a class had too few.
        hard: [batch, voxels], bool: True where the voxel is of the kind that its sampler prefers.
        certainty: [batch, voxels], 0 to 1: how sure the label of that voxel is; None where all count as sure.
        contoured: number of images, the first of the batch, whose labels are contours; those of the others are
            what a teacher network is sure of. None where all are contours.
    """

    index: Tensor
    classes: Tensor
    valid: Tensor
    hard: Tensor
    certainty: Tensor | None = None
    contoured: int | None = None


class Sampler(Protocol):
    """A sampler draws voxels from a batch of label maps; `classes` is their number, background included."""

    classes: int

    def __call__(
        self, labels: Tensor, logits: Tensor | None, spacing_mm: Sequence[float] | None, ignore_index: int
    ) -> Sample:
        """Draw voxels for this step.

        Args:
            labels: [batch, *space], integers.
            logits: [batch, classes, *space], without gradient; None where they are not known.
            spacing_mm: voxel spacing along each axis of the space; None means 1 along each.
            ignore_index: label of voxels that are never drawn.
        """
        ...


#: Judges each voxel, given labels, logits, spacing, number of classes and ignored label (as `Sampler` has them):
#: [batch, *space], either bool (the voxel is hard) or floating point (the larger, the harder).
Hardness = Callable[[Tensor, Tensor | None, Sequence[float] | None, int, int], Tensor]


def misclassified(labels: Tensor, logits: Tensor | None, *_: Any) -> Tensor:
    """Call a voxel hard where the class of the largest logit is not its label: bool [batch, *space].

    Raises:
        ValueError: logits are missing, or do not lie on the grid of the labels.
    """
    logits = _on_the_grid(labels, logits)
    if logits.shape[1] == 2:
        return (logits[:, 1] > logits[:, 0]).to(labels.dtype) != labels
    return logits.argmax(dim=1) != labels


def doubt(labels: Tensor, logits: Tensor | None, *_: Any) -> Tensor:
    """Return the probability of the second best class minus that of the best: float32 [batch, *space], -1 to 0.

    Raises:
        ValueError: logits are missing, or do not lie on the grid of the labels.
    """
    logits = _on_the_grid(labels, logits)
    if logits.shape[1] == 2:
        # tanh(|a - b| / 2) is the difference of the two softmax probabilities.
        return (logits[:, 1].float() - logits[:, 0].float()).abs_().mul_(0.5).tanh_().neg_()
    best = logits.float().softmax(dim=1).topk(2, dim=1).values
    return best[:, 1] - best[:, 0]


@dataclass(frozen=True)
class NearSurface:
    """Call a voxel hard where its centre lies within `band_mm` of the centre of a voxel of another class.

    Attributes:
        band_mm: half width of the band around the surface, in voxels where no spacing is given.
        or_misclassified: also call a voxel hard that the network gets wrong now, where logits are given.

    Raises:
        ValueError: `band_mm` is negative.
    """

    band_mm: float = 3.0
    or_misclassified: bool = False

    def __post_init__(self) -> None:
        if self.band_mm < 0:
            raise ValueError(f"band_mm must not be negative; got {self.band_mm}")

    def __call__(
        self, labels: Tensor, logits: Tensor | None, spacing_mm: Sequence[float] | None, classes: int, ignored: int
    ) -> Tensor:
        """Return bool [batch, *space]: which voxels are hard (see `Hardness`)."""
        hard = boundary_band(labels, self.band_mm, spacing_mm, classes, ignored)
        if self.or_misclassified and logits is not None:
            hard |= misclassified(labels, logits)
        return hard


def boundary_band(
    labels: Tensor, band_mm: float, spacing_mm: Sequence[float] | None, classes: int, ignore_index: int = -100
) -> Tensor:
    """Tell which voxels have a voxel of another class within `band_mm`, centre to centre (Euclidean).

    The band is exact: the surroundings of each class are dilated by the ellipsoid of voxels that the band reaches,
    built from runs along the last axis. Time is linear in the image, memory is a few bytes for each voxel.

    Args:
        labels: [batch, *space], integers. Voxels of `ignore_index` neither have nor make a surface.
        band_mm: the largest distance, bound included.
        spacing_mm: voxel spacing along each axis of the space; None means 1 along each.
        classes: number of classes, background included.
        ignore_index: label of voxels that count for no class.

    Returns:
        bool [batch, *space].

    Raises:
        ValueError: the spacing is not one positive number for each axis.
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


@torch.no_grad()
def surface_distance(
    labels: Tensor,
    index: Tensor,
    reach_mm: float,
    spacing_mm: Sequence[float] | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Return how far sampled voxels are from the nearest voxel of another class, centre to centre.

    All voxels within reach are looked at, so the distance is exact; the host copies nothing to the device.

    Args:
        labels: [batch, *space], integers.
        index: [batch, voxels], int64: indices into the flattened label grid.
        reach_mm: how far to look, bound included.
        spacing_mm: voxel spacing along each axis of the space; None means 1 along each.
        ignore_index: label of voxels that count for no class.

    Returns:
        float32 [batch, voxels]; infinite where there is none within reach.
    """
    shape = labels.shape[1:]
    spacing = [1.0] * len(shape) if spacing_mm is None else [float(step) for step in spacing_mm]
    bound = (reach_mm * (1 + BAND_SLACK)) ** 2
    reach = [min(int(math.sqrt(bound) / step), n - 1) for step, n in zip(spacing, shape, strict=True)]
    neighbour = torch.arange(math.prod(2 * r + 1 for r in reach), device=labels.device)
    place, squared = torch.zeros_like(index[..., None]), torch.zeros_like(neighbour, dtype=torch.float32)
    there = place == 0
    stride, steps = 1, 1
    for n, r, spacing_along in reversed(list(zip(shape, reach, spacing, strict=True))):
        offset = neighbour // steps % (2 * r + 1) - r
        at = (index // stride % n)[..., None] + offset
        there = there & (at >= 0) & (at < n)
        place = place + at.clamp(0, n - 1) * stride
        squared = squared + (offset.float() * spacing_along).square()
        stride, steps = stride * n, steps * (2 * r + 1)
    flat = labels.flatten(1)
    found = flat.gather(1, place.flatten(1)).view_as(place)
    own = flat.gather(1, index)[..., None]
    other = there & (found != own) & (found != ignore_index) & (squared <= bound)
    return torch.where(other, squared.sqrt(), torch.inf).amin(dim=-1)


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


def _on_the_grid(labels: Tensor, logits: Tensor | None) -> Tensor:
    if logits is None:
        raise ValueError("this sampler looks at the prediction and needs logits: pass logits= of this step")
    if logits.shape[0] != labels.shape[0] or logits.shape[2:] != labels.shape[1:]:
        raise ValueError(f"logits {tuple(logits.shape)} do not lie on the grid of labels {tuple(labels.shape)}")
    return logits


class UniformSampler:
    """Every voxel of the classes has an equal chance, so that of a small structure next to nothing is seen.

    Args:
        voxels: slots for each image.
        classes: number of classes, background included.

    Raises:
        ValueError: there are fewer than two classes, or than two voxels for each.
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
        known = (flat != ignore_index) & (flat >= 0) & (flat < self.classes)
        order = known.cumsum(1, dtype=torch.int32)
        take = order[:, -1:].clamp(max=self.voxels)
        index = draw(order, take, self.voxels)
        valid = torch.arange(self.voxels, device=labels.device) < take
        return Sample(index, flat.gather(1, index).long(), valid, torch.zeros_like(valid))


class BalancedSampler:
    """Each class gets an equal share of the slots; within a class hard voxels are preferred.

    Where one kind of voxel runs short the other tops it up; where a class runs short its slots are invalid.

    Args:
        voxels: slots for each image, shared equally between the classes.
        classes: number of classes, background included.
        hardness: judges the voxels, such as `NearSurface(3.0)`, `misclassified` or `doubt`; None prefers none.
            Where it returns bool, voxels are drawn at random, `hard_share` of them among the hard ones. Where it
            returns numbers, the hardest voxels of each class are taken and nothing is random.
        hard_share: share of the slots of a class that hard voxels get, 0 to 1.

    Raises:
        ValueError: there are fewer than two classes, or than two voxels for each, or the share is not in 0 to 1.
    """

    def __init__(
        self, voxels: int = 512, classes: int = 2, hardness: Hardness | None = None, hard_share: float = 0.5
    ) -> None:
        _check_counts(voxels, classes)
        if not 0 <= hard_share <= 1:
            raise ValueError(f"hard_share must be between 0 and 1; got {hard_share}")
        self.voxels, self.classes, self.hardness, self.hard_share = voxels, classes, hardness, hard_share

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
        if self.hardness is None:
            hard = torch.zeros_like(flat, dtype=torch.bool)
        else:
            hard = self.hardness(labels, logits, spacing_mm, self.classes, ignore_index).flatten(1)
        slots = self.voxels // self.classes
        at_random = hard.dtype == torch.bool
        parts = [
            _draw_class(flat == c, hard, slots, round(slots * self.hard_share))
            if at_random
            else _hardest_of_class(flat == c, hard, slots)
            for c in range(self.classes)
        ]
        index = torch.cat([p[0] for p in parts], dim=1)
        valid = torch.cat([p[1] for p in parts], dim=1)
        preferred = hard.gather(1, index) & valid if at_random else valid
        return Sample(index, flat.gather(1, index).long(), valid, preferred)


class HardEasySampler(BalancedSampler):
    """A class-balanced mixture of hard and easy voxels: the default.

    A voxel is hard where the network gets it wrong now, or where its centre lies within `band_mm` of the centre of
    a voxel of another class.

    Args:
        voxels: slots for each image, shared equally between the classes.
        classes: number of classes, background included.
        hard_share: share of hard voxels in a class, 0 to 1.
        band_mm: half width of the band around the surface, in voxels where no spacing is given.
    """

    def __init__(self, voxels: int = 512, classes: int = 2, hard_share: float = 0.5, band_mm: float = 3.0) -> None:
        super().__init__(voxels, classes, NearSurface(band_mm, or_misclassified=True), hard_share)


def _balanced(voxels: int = 512, classes: int = 2) -> BalancedSampler:
    return BalancedSampler(voxels, classes, None)


def _boundary(voxels: int = 512, classes: int = 2, band_mm: float = 3.0) -> BalancedSampler:
    return BalancedSampler(voxels, classes, NearSurface(band_mm), 1.0)


def _misclassified(voxels: int = 512, classes: int = 2) -> BalancedSampler:
    return BalancedSampler(voxels, classes, misclassified, 1.0)


def _uncertain(voxels: int = 512, classes: int = 2) -> BalancedSampler:
    return BalancedSampler(voxels, classes, doubt)


#: What builds each sampler, by the names that a configuration uses; docs/metric-learning.md says what they draw.
SAMPLERS: dict[str, Any] = {
    "mixture": HardEasySampler,
    "uniform": UniformSampler,
    "balanced": _balanced,
    "boundary": _boundary,
    "misclassified": _misclassified,
    "uncertain": _uncertain,
}


def sampler_settings(name: str) -> tuple[str, ...]:
    """Name the settings that a sampler takes.

    Raises:
        ValueError: no sampler has this name.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}; got {name!r}")
    return tuple(inspect.signature(SAMPLERS[name]).parameters)


def build_sampler(name: str, **settings: float) -> Sampler:
    """Build a sampler by its name in `SAMPLERS`, such as `build_sampler("boundary", voxels=256, band_mm=5)`.

    Raises:
        ValueError: no sampler has this name, it does not take a setting, or a value is impossible.
    """
    known = sampler_settings(name)
    for key in settings:
        if key not in known:
            raise ValueError(f"sampler {name} takes {', '.join(known)}; got {key}")
    sampler: Sampler = SAMPLERS[name](**settings)
    return sampler


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed what draws on a device while this is open, and leave the random state of all devices as it was.

    `torch.manual_seed` would also seed the other devices, whose state nobody would bring back.

    Args:
        seed: decides what is drawn.
        device: where it is drawn.
    """
    on_cpu = device.type == "cpu"
    with torch.random.fork_rng([] if on_cpu else [device], device_type="cuda" if on_cpu else device.type):
        if on_cpu:
            torch.default_generator.manual_seed(seed)
        elif device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        else:
            torch.get_device_module(device).manual_seed(seed)
        yield


def draw(order: Tensor, take: Tensor, slots: int) -> Tensor:
    """Draw members without replacement, spread evenly over the image; every member has an equal chance.

    The members, in raster order from a random one on, are cut into `take` runs of equal length, and one is drawn
    from each run. The cost is one running count.

    Args:
        order: [batch, voxels of the image], int32: the running count of the members.
        take: [batch, 1], integers: how many to draw, at most the number of members.
        slots: length of the result, at least `take`.

    Returns:
        [batch, slots], int64: indices of members; what follows the first `take` is any valid index.
    """
    number = torch.arange(slots, device=order.device)
    members, runs = order[:, -1:].long().clamp(min=1), take.long().clamp(min=1)
    first, after = number * members // runs, (number + 1) * members // runs
    # Whatever type is the default: half precision has too few numbers for all members to be drawn.
    chance = drawn(
        lambda rows: torch.rand((rows, slots + 1), dtype=torch.float32, device=order.device), len(order)
    )
    begin = _below(chance[:, :1], members)
    chosen = (begin + first + _below(chance[:, 1:], (after - first).clamp(min=1))) % members
    # The first index whose running count exceeds the number chosen.
    return torch.searchsorted(order, (chosen + 1).to(torch.int32)).clamp_(max=order.shape[1] - 1)


def _below(chance: Tensor, bound: Tensor) -> Tensor:
    """Turn numbers of 0 to 1 into whole numbers of 0 to bound - 1; the clamp is for rounding."""
    return torch.minimum((chance * bound).long(), bound - 1)


def _draw_class(member: Tensor, hard: Tensor, slots: int, wanted_hard: int) -> tuple[Tensor, Tensor]:
    """Draw slots from one class at random: index and validity, each [batch, slots]."""
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


def _hardest_of_class(member: Tensor, hardness: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Take the hardest voxels of one class: index and validity, each [batch, slots]."""
    there = min(slots, member.shape[1])
    hardest = torch.where(member, hardness, -torch.inf).topk(there, dim=1)
    fill = (0, slots - there)
    return F.pad(hardest.indices, fill), F.pad(torch.isfinite(hardest.values), fill)


def _check_counts(voxels: int, classes: int) -> None:
    if classes < 2 or voxels < 2 * classes:
        raise ValueError(f"at least two classes and two voxels for each are needed; got {classes}, {voxels}")


def read_features(features: Tensor, index: Tensor, label_shape: Sequence[int]) -> Tensor:
    """Gather the features of sampled voxels, by linear interpolation where the map is coarser than the labels.

    Both grids cover one field. Voxel centres of the label grid are mapped to the feature grid and read there, with
    borders continued; labels are never resampled.

    Args:
        features: [batch, channels, *coarse].
        index: [batch, voxels], int64: indices into the flattened label grid.
        label_shape: sides of the label grid, as many as the feature map has.

    Returns:
        [batch, voxels, channels], with gradient to the features.

    Raises:
        ValueError: the map and the labels have different numbers of axes, or are of more or fewer images.
    """
    coarse = tuple(features.shape[2:])
    if len(features) != len(index):
        raise ValueError(f"features are of {len(features)} images, labels of {len(index)}")
    if len(coarse) != len(label_shape):
        raise ValueError(f"features have {len(coarse)} spatial axes, labels {len(label_shape)}")
    flat = features.flatten(2)
    if coarse == tuple(label_shape):
        return _gather(flat, index)
    lows: list[Tensor] = []
    fractions: list[Tensor] = []
    rest = index
    for axis in reversed(range(len(coarse))):
        along = rest % label_shape[axis]
        rest = rest // label_shape[axis]
        position = (along.to(torch.float32) + 0.5) * (coarse[axis] / label_shape[axis]) - 0.5
        position = position.clamp(0, coarse[axis] - 1)
        low = position.floor()
        lows.insert(0, low.long())
        fractions.insert(0, position - low)
    corners, weights = [], []
    for steps in product((0, 1), repeat=len(coarse)):
        weight = torch.ones_like(fractions[0])
        corner = torch.zeros_like(index)
        for axis, step in enumerate(steps):
            weight = weight * (fractions[axis] if step else 1 - fractions[axis])
            corner = corner * coarse[axis] + (lows[axis] + step).clamp(max=coarse[axis] - 1)
        corners.append(corner)
        weights.append(weight)
    # One gather for all corners, for the gradient of each would be as large as the whole map.
    read = _gather(flat, torch.cat(corners, dim=1)) * torch.cat(weights, dim=1).to(features.dtype)[..., None]
    return read.reshape(len(index), len(corners), index.shape[1], -1).sum(dim=1)


def _gather(flat: Tensor, index: Tensor) -> Tensor:
    return flat.gather(2, index[:, None, :].expand(-1, flat.shape[1], -1)).transpose(1, 2)
