"""Training batches, cut from crops that live on the device.

The batch of update k depends on the seed and on k alone, so a resumed run sees what an unbroken one would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metricunet.cohort.prepare import AIR_HU, IGNORE_CLASS, PreparedCase
from metricunet.training.augment import augmented_input, in_plane_matrices, read_plane, uniform
from metricunet.training.config import AugmentConfig, LocateConfig, SegmentConfig


@dataclass(frozen=True, eq=False)
class Batch:
    """Images [batch, channels, *space] in -1..1 and labels [batch, *space], uint8 classes."""

    images: Tensor
    labels: Tensor


def update_generator(seed: int, stage: int, update: int, device: torch.device) -> Generator:
    """Return the generator of one update's random numbers."""
    return torch.Generator(device=device).manual_seed((seed * 2 + stage) * 1_000_003 + update)


class SegmentBatches:
    """Batches of stage 2: stacks of slices from the fine boxes.

    The crop's middle is jittered by the localiser's own error, for stage 2 must bear what stage 1 does to it.

    Args:
        cases: prepared cases with a fine box.
        config: of stage 2.
        augment: ranges of the random changes.
        classes: background included.
        mirror: whether left and right may be exchanged.
        jitter_mm: standard deviation of the crop's middle along slice, row and column.
        device: where the crops live.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        config: SegmentConfig,
        augment: AugmentConfig,
        classes: int,
        mirror: bool,
        jitter_mm: tuple[float, float, float],
        device: torch.device,
    ) -> None:
        fine = [c for c in cases if c.fine is not None and c.fine_labels is not None]
        self.config, self.augment, self.classes, self.mirror, self.device = (
            config,
            augment,
            classes,
            mirror,
            device,
        )
        self.jitter_mm = jitter_mm
        self.hu = torch.stack([torch.from_numpy(c.fine.array) for c in fine if c.fine]).to(device)
        self.labels = torch.stack([torch.from_numpy(c.fine_labels.array) for c in fine if c.fine_labels]).to(
            device
        )
        self._has_target = ((self.labels > 0) & (self.labels != IGNORE_CLASS)).flatten(2).any(dim=2)
        sides = zip(config.crop_mm, config.spacing_mm, strict=True)
        self.crop_voxels = tuple(round(side / step) for side, step in sides)

    def draw(self, generator: Generator) -> Batch:
        """Draw one batch."""
        config = self.config
        size, depth = config.batch_size, self.hu.shape[1]
        case = torch.randint(self.hu.shape[0], (size,), generator=generator, device=self.device)
        middle = self._slices(case, generator)
        reach = config.slices // 2
        stack = middle[:, None] + torch.arange(-reach, reach + 1, device=self.device)
        hu = self.hu[case[:, None], stack.clamp(0, depth - 1)].float()
        labels = self.labels[case, middle]
        matrices = in_plane_matrices(size, self.augment, self.mirror, generator)
        centre = self._centres(size, generator)
        shape = (self.crop_voxels[1], self.crop_voxels[2])
        images = augmented_input(
            read_plane(hu, centre, matrices, shape), config.hu_window, self.augment, generator
        )
        return Batch(images, self._read_labels(labels, centre, matrices, shape))

    def _slices(self, case: Tensor, generator: Generator) -> Tensor:
        """Choose the middle slices: often one that holds a structure, else any that a crop could hold."""
        depth, crop = self.hu.shape[1], self.crop_voxels[0]
        low = max(0, (depth - crop) // 2 - int(self.jitter_mm[0] / self.config.spacing_mm[0]))
        anywhere = torch.randint(low, depth - low, case.shape, generator=generator, device=self.device)
        holds = self._has_target[case].float()
        holding = torch.multinomial(holds + 1e-9, 1, generator=generator)[:, 0]
        chosen = uniform(tuple(case.shape), 0, 1, generator) < self.config.target_share
        return torch.where(chosen, holding, anywhere)

    def _centres(self, size: int, generator: Generator) -> Tensor:
        rows, columns = self.hu.shape[2:]
        middle = torch.tensor([(columns - 1) / 2, (rows - 1) / 2], device=self.device)
        jitter = torch.randn((size, 2), generator=generator, device=self.device)
        step = torch.tensor(
            [
                self.jitter_mm[2] / self.config.spacing_mm[2],
                self.jitter_mm[1] / self.config.spacing_mm[1],
            ],
            device=self.device,
        )
        room = torch.tensor(
            [(columns - self.crop_voxels[2]) / 2, (rows - self.crop_voxels[1]) / 2], device=self.device
        )
        return middle + torch.minimum(torch.maximum(jitter * step, -room), room)

    def _read_labels(self, labels: Tensor, centre: Tensor, matrices: Tensor, shape: tuple[int, int]) -> Tensor:
        values = [*range(1, self.classes), IGNORE_CLASS]
        shares = torch.stack([(labels == v).float() for v in values], dim=1)
        shares = read_plane(shares, centre, matrices, shape)
        shares = torch.cat([1 - shares.sum(dim=1, keepdim=True), shares], dim=1)
        table = torch.tensor([0, *values], dtype=torch.uint8, device=self.device)
        return table[shares.argmax(dim=1)]


class LocateBatches:
    """Batches of stage 1: patches of coarse scans, turned in the axial plane and scaled.

    Args:
        cases: prepared cases; some may hold no target.
        config: of stage 1.
        augment: ranges of the random changes.
        classes: background included.
        target: class of the target.
        mirror: whether left and right may be exchanged.
        device: where the scans live.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        config: LocateConfig,
        augment: AugmentConfig,
        classes: int,
        target: int,
        mirror: bool,
        device: torch.device,
    ) -> None:
        self.config, self.augment, self.classes, self.mirror, self.device = (
            config,
            augment,
            classes,
            mirror,
            device,
        )
        self.hu = [torch.from_numpy(c.coarse.array).to(device) for c in cases]
        self.labels = [torch.from_numpy(c.coarse_labels.array).to(device) for c in cases]
        self._centres = [_centre(labels == target) for labels in self.labels]

    def draw(self, generator: Generator) -> Batch:
        """Draw one batch."""
        size = self.config.batch_size
        patch = self.config.patch_voxels
        chosen = torch.randint(len(self.hu), (size,), generator=generator, device=self.device).tolist()
        plane = in_plane_matrices(size, self.augment, self.mirror, generator)
        images, labels = [], []
        for k, case in enumerate(chosen):
            hu, classes = self.hu[case].float(), self.labels[case]
            shape = torch.tensor(hu.shape, dtype=torch.float32, device=self.device)
            place = uniform((3,), 0, 1, generator)
            aimed = float(uniform((1,), 0, 1, generator)) < self.config.target_share
            centre = place * (shape - 1)
            target = self._centres[case]
            if aimed and target is not None:
                reach = torch.tensor(patch, dtype=torch.float32, device=self.device) * 0.4
                centre = target + (2 * place - 1) * reach
            grid = self._grid(centre, plane[k], shape)
            images.append(_read(hu - AIR_HU, grid)[0] + AIR_HU)
            values = [*range(1, self.classes), IGNORE_CLASS]
            shares = torch.cat([_read((classes == v).float(), grid) for v in values])
            shares = torch.cat([1 - shares.sum(dim=0, keepdim=True), shares])
            table = torch.tensor([0, *values], dtype=torch.uint8, device=self.device)
            labels.append(table[shares.argmax(dim=0)])
        hu = torch.stack(images)[:, None]
        return Batch(augmented_input(hu, self.config.hu_window, self.augment, generator), torch.stack(labels))

    def _grid(self, centre: Tensor, plane: Tensor, shape: Tensor) -> Tensor:
        """Where each voxel of the patch reads, in grid_sample's coordinates (column, row, slice)."""
        sides = [
            torch.arange(n, device=self.device, dtype=torch.float32) - (n - 1) / 2
            for n in self.config.patch_voxels
        ]
        z, y, x = torch.meshgrid(*sides, indexing="ij")
        turned = torch.stack([x, y], dim=-1) @ plane.T
        position = torch.cat([turned, z[..., None]], dim=-1) + centre.flip(0)
        return (2 * position + 1) / shape.flip(0) - 1


def _read(volume: Tensor, grid: Tensor) -> Tensor:
    """Read [slice, row, column] at a grid; zero beyond the volume. Returns [1, *patch]."""
    return F.grid_sample(
        volume[None, None].float(), grid[None], mode="bilinear", padding_mode="zeros", align_corners=False
    )[0]


def _centre(mask: Tensor) -> Tensor | None:
    places = mask.nonzero()
    return places.float().mean(dim=0) if len(places) else None
