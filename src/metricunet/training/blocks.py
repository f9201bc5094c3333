"""Training batches of 3D networks in stage 2: blocks of neighbouring slices from the fine boxes."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from metricunet.training.augment import augmented_input, in_plane_matrices, read_plane
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
        hu, labels = self.hu[case[:, None], stack].float(), self.labels[case[:, None], stack]
        matrices = in_plane_matrices(size, self.augment, self.mirror, generator)
        centre = self._centres(size, generator)
        shape = (self.crop_voxels[1], self.crop_voxels[2])
        # The slices are channels here, so that each of them is turned alike.
        turned = read_plane(hu, centre, matrices, shape)[:, None]
        images = augmented_input(turned, config.hu_window, self.augment, generator)
        planes = self._read_labels(
            labels.flatten(0, 1),
            centre.repeat_interleave(block, dim=0),
            matrices.repeat_interleave(block, dim=0),
            shape,
        )
        return Batch(images, planes.reshape(size, block, *shape))

    def _first_slices(self, chosen: Tensor, generator: Generator) -> Tensor:
        """Choose each block's first slice, so that the block holds the chosen slice, wherever that lies in it."""
        depth, block, low = self.hu.shape[1], self.config.block_slices, self._lowest_slice()
        offset = torch.randint(block, chosen.shape, generator=generator, device=self.device)
        return (chosen - offset).clamp(low, depth - low - block)

    def _lowest_slice(self) -> int:
        """The first slice of the box that a jittered crop could hold."""
        reach = int(self.jitter_mm[0] / self.config.spacing_mm[0])
        return max(0, (self.hu.shape[1] - self.crop_voxels[0]) // 2 - reach)
