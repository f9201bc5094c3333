"""Training batches of 3D networks in stage 2: blocks of neighbouring slices from the fine boxes."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from metricunet.training.augment import augmented_input, read, read_classes
from metricunet.training.batches import Batch, SegmentBatches


class BlockBatches(SegmentBatches):
    """Batches of stage 2 in 3D: `batch_size` blocks of `block_slices` slices, every slice labelled.

    Jitter, choice of slices and random changes are those of `SegmentBatches`; the slices of a block are turned,
    scaled, mirrored and changed in HU together. A block lies anywhere around the slice that was chosen, and wholly
    within the slices that a crop could hold. Arguments as `SegmentBatches`.
    """

    def draw(self, generator: Generator) -> Batch:
        """Draw one batch: images [batch, 1, slices, rows, columns], labels [batch, slices, rows, columns]."""
        config = self.config
        size, block = config.batch_size, config.block_slices
        case = torch.randint(self.hu.shape[0], (size,), generator=generator, device=self.device)
        first = self._first_slices(self._slices(case, generator), generator)
        stack = first[:, None] + torch.arange(block, device=self.device)
        centre = self._centres(size, generator)
        grid = self._warp.grid(self._warp.draw(size, generator), centre, self._size)
        # The slices are channels here, so that each of them is turned alike.
        images = read(self.hu[case[:, None], stack].float(), grid)[:, None]
        images = augmented_input(images, config.spacing_mm, config.hu_window, self.augment, generator)
        labels = self.labels[case[:, None], stack].flatten(0, 1)
        planes = read_classes(labels, grid.repeat_interleave(block, dim=0), self._values)
        return Batch(images, planes.view(size, block, *planes.shape[1:]), self._unknown_of(case))

    def _first_slices(self, chosen: Tensor, generator: Generator) -> Tensor:
        """Choose each block's first slice, so that the block holds the chosen slice, wherever that lies in it."""
        depth, block = self.hu.shape[1], self.config.block_slices
        offset = torch.randint(block, chosen.shape, generator=generator, device=self.device)
        return (chosen - offset).clamp(self._lowest, depth - self._lowest - block)
