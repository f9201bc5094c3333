"""Training batches, cut from crops that live on the device.

The batch of update k depends on the seed and on k alone, so a resumed run sees what an unbroken one would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metricunet.cohort.prepare import BoxName, TargetBox
from metricunet.hu import AIR_HU
from metricunet.metric.gathering import drawn, each_its_own, own_rows, processes, rank
from metricunet.structures import IGNORE_CLASS
from metricunet.training.augment import Sides, Warp, augmented_input, read, read_classes, uniform
from metricunet.training.config import AugmentConfig, BoxConfig, LocateConfig
from metricunet.training.partial_labels import unknown_classes
from metricunet.volume import Volume

#: How far an aimed patch's middle may lie from the target's, in sides of the patch.
AIMED_WITHIN = 0.4


class CoarseCase(Protocol):
    """A case as stage 1 sees it; see `metricunet.cohort.prepare.PreparedCase`."""

    @property
    def coarse(self) -> Volume | None:
        """HU of the whole scan on stage 1's grid."""

    @property
    def coarse_labels(self) -> Volume | None:
        """Classes on the same grid."""

    @property
    def staged_unknown(self) -> tuple[int, ...]:
        """Classes of the two stages that were not contoured."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What is known of the case; `bed_mm` is where the target would lie in a scan that does not hold it."""


class BoxedCase(Protocol):
    """A case as stage 2 and the organs' network see it; see `metricunet.cohort.prepare.PreparedCase`."""

    def box(self, name: BoxName) -> TargetBox | None:
        """Return a box around the target; None where the scan holds none."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Images [batch, channels, *space] in -1..1 and labels [batch, *space], uint8 classes.

    `unknown` [contoured, classes] tells which classes were not contoured (`metricunet.training.partial_labels`);
    None where every case of the training was contoured in full. `plain` [uncontoured, channels, *space] are the
    last of the images before their HU were changed; their target was not contoured
    (`metricunet.training.teacher`). None where there are none.
    """

    images: Tensor
    labels: Tensor
    unknown: Tensor | None = None
    plain: Tensor | None = None

    @property
    def contoured(self) -> int:
        """Number of images with contours, the first ones."""
        return len(self.images) - (0 if self.plain is None else len(self.plain))

    @property
    def parts(self) -> tuple[int, ...]:
        """Number of images with contours and, where there are any, of those without."""
        return (self.contoured,) if self.plain is None else (self.contoured, len(self.plain))


class Batches(Protocol):
    """What a stage is trained on."""

    def draw(self, generator: Generator) -> Batch:
        """Return the batch of an update, which its generator alone decides."""
        ...


class Supply(Protocol):
    """What a stage is trained on, epoch for epoch."""

    def at_epoch(self, epoch: int) -> Batches:
        """Return what an epoch draws from, which its number alone decides."""
        ...


def update_seed(seed: int, stage: int, update: int) -> int:
    """Return the seed of one update's random numbers."""
    return (seed * 2 + stage) * 1_000_003 + update


def update_generator(seed: int, stage: int, update: int, device: torch.device) -> Generator:
    """Return the generator of one update's random numbers."""
    return torch.Generator(device=device).manual_seed(update_seed(seed, stage, update))


class SegmentBatches:
    """Batches of stage 2, or of the organs' network: stacks of slices from the boxes around the target.

    The crop's middle is jittered by the localiser's own error, for a network must bear what stage 1 does to it.

    Args:
        cases: prepared cases; those without the box are passed over.
        config: settings of the network; its batch is the share of this process, where several train together.
        augment: ranges of the random changes.
        classes: number of classes, background included.
        mirror: whether left and right may be exchanged.
        jitter_mm: standard deviation of the crop's middle along slice, row and column.
        device: device that holds the crops.
        partners: class that each class becomes in a mirror image; None: all stay what they are.
        box: the box that the network reads.
        whole: whether this process holds the boxes of all cases, and not its share of them alone.
    """

    def __init__(
        self,
        cases: Sequence[BoxedCase],
        config: BoxConfig,
        augment: AugmentConfig,
        classes: int,
        mirror: bool,
        jitter_mm: tuple[float, float, float],
        device: torch.device,
        partners: Sequence[int] | None = None,
        box: BoxName = "fine",
        whole: bool = False,
    ) -> None:
        boxes = [found for case in cases if (found := case.box(box)) is not None]
        self.config, self.augment, self.classes, self.mirror, self.device = (
            config,
            augment,
            classes,
            mirror,
            device,
        )
        self._held = HeldCases(len(boxes), whole)
        own = [boxes[k] for k in self._held.own]
        self.hu = torch.stack([torch.from_numpy(found.hu.array) for found in own]).to(device)
        self.labels = torch.stack([torch.from_numpy(found.labels.array) for found in own]).to(device)
        self.unknown = unknown_classes([found.unknown for found in boxes], classes, device)
        self._exchanged = _sides(partners, device)
        labels = [torch.from_numpy(found.labels.array) for found in boxes]
        self._values = _values(labels, classes)
        target = [((one > 0) & (one != IGNORE_CLASS)).flatten(1).any(dim=1) for one in labels]
        self._holds = torch.stack(target).float().to(device)
        for holds, found in zip(self._holds, boxes, strict=True):
            if found.located_slices is not None:
                first, last = found.located_slices
                holds[first : last + 1] = 1
        crop = config.crop_voxels
        self._warp = Warp(crop[1:], config.spacing_mm[1:], augment, mirror, device)
        # What a draw needs of the geometry, on the device once: a copy from the host would wait for it.
        depth, rows, columns = self.hu.shape[1:]
        reach = config.slices // 2
        self._neighbours = torch.arange(-reach, reach + 1, device=device)
        self._lowest = max(0, (depth - crop[0]) // 2 - int(jitter_mm[0] / config.spacing_mm[0]))
        self._holds = self._or_near(self._holds, int(config.target_margin_mm / config.spacing_mm[0]))
        self._size = torch.tensor([columns, rows], device=device)
        self._room = torch.tensor([(columns - crop[2]) / 2, (rows - crop[1]) / 2], device=device)
        self._jitter = torch.tensor([jitter_mm[k] / config.spacing_mm[k] for k in (2, 1)], device=device)

    def draw(self, generator: Generator) -> Batch:
        """Draw one batch, without waiting for the device."""
        hu, labels, unknown = self.crops(generator)
        return Batch(self.changed(hu, generator), labels, unknown)

    def changed(self, hu: Tensor, generator: Generator) -> Tensor:
        """Change the HU of crops at random, and map them to -1..1: images as the network takes them."""
        config = self.config
        spacing_mm = config.spacing_mm[-config.spatial_dims :]
        return augmented_input(hu, spacing_mm, config.hu_window, self.augment, generator)

    def crops(self, generator: Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """Draw crops, without waiting for the device.

        Returns:
            HU [batch, slices, rows, columns], labels [batch, rows, columns], and what was not contoured (`Batch`).
        """
        size, depth = self.config.batch_size, self.hu.shape[1]
        case = self._cases(generator)
        middle = self._slices(case, generator)
        centre = self._centres(size, generator)
        points, mirrored = self._warp.draw(size, generator)
        grid = self._warp.grid(points, centre, self._size)
        stack = (middle[:, None] + self._neighbours).clamp_(0, depth - 1)
        hu = read(self._held.read(self.hu, case, stack).float(), grid)
        labels = read_classes(self._held.read(self.labels, case, middle[:, None])[:, 0], grid, self._values)
        return hu, *_mirrored(labels, self._unknown_of(case), self._exchanged, mirrored)

    def at_epoch(self, epoch: int) -> SegmentBatches:
        """Return these: a cohort's cases are the same in every epoch."""
        return self

    def _or_near(self, holds: Tensor, margin: int) -> Tensor:
        """Return which slices hold a structure, or lie that close to one that does and within a crop's reach."""
        near = F.max_pool1d(holds[:, None], 2 * margin + 1, stride=1, padding=margin)[:, 0]
        place = torch.arange(holds.shape[1], device=self.device)
        reached = (place >= self._lowest) & (place < holds.shape[1] - self._lowest)
        return torch.where(reached, near, holds)

    def _cases(self, generator: Generator) -> Tensor:
        """Draw the cases of the whole batch: which of them a process holds is no matter of what is drawn."""
        size = self.config.batch_size * self._held.processes
        return torch.randint(len(self._holds), (size,), generator=generator, device=self.device)

    def _unknown_of(self, case: Tensor) -> Tensor | None:
        return None if self.unknown is None else own_rows(self.unknown[case])

    def _slices(self, case: Tensor, generator: Generator) -> Tensor:
        """Choose the middle slices of the whole batch: often at a structure (`_or_near`), else any of a crop."""
        size, depth = len(case), self.hu.shape[1]
        with each_its_own():
            anywhere = torch.randint(
                self._lowest, depth - self._lowest, (size,), generator=generator, device=self.device
            )
            # The greatest random number among the slices that hold a structure: each is equally likely.
            holding = (self._holds[case] + uniform((size, depth), 0, 1, generator)).argmax(dim=1)
            aimed = uniform((size,), 0, 1, generator) < self.config.target_share
            return torch.where(aimed, holding, anywhere)

    def _centres(self, size: int, generator: Generator) -> Tensor:
        """Draw the voxel (column, row) of the box that each crop's middle reads."""
        chance = drawn(lambda rows: torch.randn((rows, 2), generator=generator, device=self.device), size)
        jitter = chance * self._jitter
        return (self._size - 1) / 2 + torch.minimum(torch.maximum(jitter, -self._room), self._room)


class BlockBatches(SegmentBatches):
    """Batches of a 3D network: `batch_size` blocks of `block_slices` slices, every slice labelled.

    Jitter, choice of slices and random changes are those of `SegmentBatches`; the slices of a block are turned,
    scaled, mirrored and changed in HU together. A block lies anywhere around the slice that was chosen, and wholly
    within the slices that a crop could hold. Arguments as `SegmentBatches`.
    """

    def crops(self, generator: Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """Draw crops: HU [batch, 1, slices, rows, columns], labels [batch, slices, rows, columns], and `unknown`.

        The last is that of `Batch`.
        """
        config = self.config
        size, block = config.batch_size, config.block_slices
        case = self._cases(generator)
        first = self._first_slices(self._slices(case, generator), generator)
        stack = first[:, None] + torch.arange(block, device=self.device)
        centre = self._centres(size, generator)
        points, mirrored = self._warp.draw(size, generator)
        grid = self._warp.grid(points, centre, self._size)
        # The slices are channels here, so that each of them is turned alike.
        hu = read(self._held.read(self.hu, case, stack).float(), grid)[:, None]
        stacked = self._held.read(self.labels, case, stack).flatten(0, 1)
        planes = read_classes(stacked, grid.repeat_interleave(block, dim=0), self._values)
        labels = planes.view(size, block, *planes.shape[1:])
        return hu, *_mirrored(labels, self._unknown_of(case), self._exchanged, mirrored)

    def _first_slices(self, chosen: Tensor, generator: Generator) -> Tensor:
        """Choose each block's first slice, so that the block holds the chosen slice, wherever that lies in it.

        Like the slices chosen, these are of the whole batch.
        """
        depth, block = self.hu.shape[1], self.config.block_slices
        offset = torch.randint(block, chosen.shape, generator=generator, device=self.device)
        return (chosen - offset).clamp(self._lowest, depth - self._lowest - block)


class LocateBatches:
    """Batches of stage 1: patches of coarse scans, some of them aimed at the target, or at where it would lie.

    Args:
        cases: prepared cases; some may hold no target.
        config: settings of stage 1.
        augment: ranges of the random changes.
        classes: number of classes, background included.
        target: class of the target.
        mirror: whether left and right may be exchanged.
        device: device that holds the scans.
        partners: class that each class becomes in a mirror image; None: all stay what they are.
    """

    def __init__(
        self,
        cases: Sequence[CoarseCase],
        config: LocateConfig,
        augment: AugmentConfig,
        classes: int,
        target: int,
        mirror: bool,
        device: torch.device,
        partners: Sequence[int] | None = None,
    ) -> None:
        self.config, self.augment, self.classes, self.mirror, self.device = (
            config,
            augment,
            classes,
            mirror,
            device,
        )
        scans = [(c.coarse, c.coarse_labels, c.staged_unknown) for c in cases if c.coarse and c.coarse_labels]
        hu = [torch.from_numpy(image.array) for image, _, _ in scans]
        labels = [torch.from_numpy(classes.array) for _, classes, _ in scans]
        self._unknown = unknown_classes([unknown for _, _, unknown in scans], classes, device)
        self._exchanged = _sides(partners, device)
        self._values = _values(labels, classes)
        # Scans differ in shape. They lie one after the other, so that any of them is read without asking which.
        self._held = HeldCases(len(hu))
        self._hu = torch.cat([hu[k].flatten() for k in self._held.own]).to(device)
        self._labels = torch.cat([labels[k].flatten() for k in self._held.own]).to(device)
        counts = torch.tensor([hu[k].numel() for k in self._held.own])
        begin = torch.zeros(len(hu), dtype=torch.long)
        begin[self._held.own] = counts.cumsum(0) - counts
        self._begin = begin.to(device)
        self._shape = torch.tensor([scan.shape for scan in hu]).to(device)
        middles = [_middle(scan == target) for scan in labels]
        if config.aim_where_absent:
            beds = [_bed(case) for case in cases if case.coarse and case.coarse_labels]
            middles = [bed if middle is None else middle for middle, bed in zip(middles, beds, strict=True)]
        self._aimed_at = torch.tensor([middle is not None for middle in middles]).to(device)
        self._target = torch.stack([torch.zeros(3) if m is None else m for m in middles]).to(device)
        self._around = torch.tensor(config.patch_voxels, device=device) * AIMED_WITHIN
        self._warp = Warp(config.patch_voxels, config.spacing_mm, augment, mirror, device)
        # One voxel more on either side for the interpolation, and one for the middle's fraction.
        self._sides = [torch.arange(-n - 1, n + 3, device=device) for n in self._warp.reach_voxels()]
        self._first = torch.tensor([int(side[0]) for side in self._sides], device=device)
        self._size = torch.tensor([len(side) for side in reversed(self._sides)], device=device)

    def draw(self, generator: Generator) -> Batch:
        """Draw one batch, without waiting for the device."""
        config = self.config
        size = config.batch_size * self._held.processes
        case = torch.randint(len(self._begin), (size,), generator=generator, device=self.device)
        middle = self._middles(case, generator)
        whole = middle.floor().long()
        hu, labels = self._blocks(case, whole)
        points, mirrored = self._warp.draw(config.batch_size, generator)
        middle, whole = own_rows(middle), own_rows(whole)
        grid = self._warp.grid(points, (middle - whole - self._first).flip(1), self._size)
        images = augmented_input(read(hu, grid), config.spacing_mm, config.hu_window, self.augment, generator)
        unknown = None if self._unknown is None else own_rows(self._unknown[case])
        classes = read_classes(labels, grid, self._values)
        return Batch(images, *_mirrored(classes, unknown, self._exchanged, mirrored))

    def at_epoch(self, epoch: int) -> LocateBatches:
        """Return these: a cohort's cases are the same in every epoch."""
        return self

    def _middles(self, case: Tensor, generator: Generator) -> Tensor:
        """Draw the voxel [slice, row, column] of the scan that each patch's middle reads, of the whole batch."""
        with each_its_own():
            place = uniform((len(case), 3), 0, 1, generator)
            aimed = uniform((len(case),), 0, 1, generator) < self.config.target_share
        near = self._target[case] + (2 * place - 1) * self._around
        return torch.where((aimed & self._aimed_at[case])[:, None], near, place * (self._shape[case] - 1))

    def _blocks(self, case: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
        """Cut HU [batch, 1, *block] and classes [batch, *block]; air and background beyond the scan.

        Cases and middles are those of the whole batch, the blocks those of this process.
        """
        place = torch.zeros((), dtype=torch.long, device=self.device)
        inside = torch.ones((), dtype=torch.bool, device=self.device)
        for axis, side in enumerate(self._sides):
            length = self._shape[case, axis, None]
            at = middle[:, axis, None] + side
            view = (len(case), *[-1 if k == axis else 1 for k in range(3)])
            inside = inside & ((at >= 0) & (at < length)).view(view)
            place = place * length.view(-1, 1, 1, 1) + torch.minimum(at.clamp(min=0), length - 1).view(view)
        place = place + self._begin[case].view(-1, 1, 1, 1)
        inside = own_rows(inside)
        hu = self._held.read_flat(self._hu, case, place).float().masked_fill_(~inside, AIR_HU)
        return hu[:, None], self._held.read_flat(self._labels, case, place) * inside


class HeldCases:
    """Which cases this process holds on its device, where several train together, and how it reads the others.

    Every process knows what the whole batch reads. Each adds what it holds of that, and keeps the rows that are
    its own.

    Args:
        cases: number of cases.
        whole: whether this process holds all of them.
    """

    def __init__(self, cases: int, whole: bool = False) -> None:
        self.processes = processes()
        self._apart = self.processes > 1 and not whole
        # Where there are fewer cases than processes, some hold one that another one is asked for.
        self.own = list(range(rank(), cases, self.processes)) or [0] if self._apart else list(range(cases))

    def read(self, values: Tensor, case: Tensor, slices: Tensor) -> Tensor:
        """Read slices of cases, of the whole batch, and return those of the rows of this process.

        Args:
            values: [cases held, slices, rows, columns].
            case: [whole batch], numbers of cases.
            slices: [whole batch, slices to read].

        Returns:
            [batch, slices to read, rows, columns].
        """
        if not self._apart:
            return values[own_rows(case)[:, None], own_rows(slices)]
        return self._exchanged(values[self._at(case, len(values))[:, None], slices], case)

    def read_flat(self, values: Tensor, case: Tensor, place: Tensor) -> Tensor:
        """Read voxels of cases that lie one after the other, of the whole batch, and return those of this process.

        Args:
            values: [voxels of all cases held].
            case: [whole batch], numbers of cases.
            place: [whole batch, ...], index of each voxel, where the case is held.

        Returns:
            [batch, ...].
        """
        if not self._apart:
            return values[own_rows(place)]
        return self._exchanged(values[place.clamp(max=len(values) - 1)], case)

    def _at(self, case: Tensor, held: int) -> Tensor:
        """Return where cases lie among those that are held here; of one that is not, any."""
        return (case // self.processes).clamp(max=held - 1)

    def _exchanged(self, found: Tensor, case: Tensor) -> Tensor:
        mine = (case % self.processes == rank()).view(-1, *[1] * (found.dim() - 1))
        total = torch.where(mine, found, 0).to(torch.int32)  # not every backend adds smaller ones
        torch.distributed.all_reduce(total)
        return own_rows(total).to(found.dtype)


def _sides(partners: Sequence[int] | None, device: torch.device) -> Sides | None:
    """Return what exchanges the classes of both sides; None where no class has one."""
    if partners is None or list(partners) == list(range(len(partners))):
        return None
    return Sides(partners, device)


def _mirrored(
    labels: Tensor, unknown: Tensor | None, sides: Sides | None, mirrored: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return labels and `unknown` in which the structures of mirrored images have the sides that they lie on."""
    if sides is None:
        return labels, unknown
    return sides.of_labels(labels, mirrored), None if unknown is None else sides.of_unknown(unknown, mirrored)


def _values(labels: Sequence[Tensor], classes: int) -> list[int]:
    """List the classes but the background; the ignored one only where a scan has such voxels."""
    ignored = any(bool((scan == IGNORE_CLASS).any()) for scan in labels)
    return [*range(1, classes), *[IGNORE_CLASS] * ignored]


def _bed(case: CoarseCase) -> Tensor | None:
    """Return the voxel [slice, row, column] where the target would lie in a scan without it; None if unknown."""
    place_mm = case.facts.get("bed_mm")
    if place_mm is None or case.coarse is None:
        return None
    return torch.from_numpy(case.coarse.geometry.to_index(np.array([place_mm]))[0]).float()


def _middle(mask: Tensor) -> Tensor | None:
    """Return the centroid [slice, row, column] of a mask, in voxels; None where it is empty."""
    places = mask.nonzero()
    return places.float().mean(dim=0) if len(places) else None
