"""The control: the same sampled voxels and the same head, but cross-entropy in place of triplets and pairs.

A gain from looking harder at borders shows in this arm, too; a gain from metric learning does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metricunet.metric.branch import VoxelBranch, spread, without_autocast
from metricunet.metric.sampling import Sample, Sampler


class VoxelClassOutput(NamedTuple):
    """What `VoxelClassLoss` returns.

    Attributes:
        loss: cross-entropy over the sampled voxels, the mean over the maps.
        sample: the voxels that were drawn.
        statistics: scalars for the log, without gradient: `voxel_accuracy` (share of the sampled voxels that the
            head's classifier gets right), `spread`, `hard_voxels` and `valid_voxels` as in `VoxelMetricOutput`.
    """

    loss: Tensor
    sample: Sample
    statistics: dict[str, Tensor]


class VoxelClassLoss(VoxelBranch):
    """Cross-entropy on sampled voxels: `VoxelMetricLoss` without the metric learning.

    A linear classifier follows each head (its output before the unit length, which only distances need).

    Args:
        sampler: draws the voxels; default `HardEasySampler()`.
        head: an embedding size, one small perceptron for each map; or None.
        channels: channels of each map.
        ignore_index: label of voxels that are never drawn.
    """

    def __init__(
        self,
        sampler: Sampler | None = None,
        head: int | None = None,
        channels: Sequence[int] = (),
        ignore_index: int = -100,
    ) -> None:
        super().__init__(sampler, head, channels, ignore_index)
        if not channels:
            raise ValueError("channels= (channels of each map) is needed for the classifiers")
        sizes = channels if head is None else [head] * len(channels)
        self.classifiers = nn.ModuleList(nn.Linear(size, self.sampler.classes) for size in sizes)

    def forward(
        self,
        features: Tensor | Sequence[Tensor],
        labels: Tensor,
        logits: Tensor | None = None,
        spacing_mm: Sequence[float] | None = None,
    ) -> VoxelClassOutput:
        """Sample voxels and compute the loss. Arguments as `VoxelMetricLoss.forward`."""
        maps = self.maps_of(features)
        if len(maps) != len(self.classifiers):
            raise ValueError(f"{len(maps)} feature maps for {len(self.classifiers)} classifiers")
        sample = self.sample(labels, logits, spacing_mm)
        wanted = torch.where(sample.valid, sample.classes, -1)
        count = sample.valid.sum().clamp(min=1)
        losses, right, spreads = [], [], []
        for tap, feature_map in enumerate(maps):
            projected = self.project(feature_map, sample.index, labels.shape[1:], tap)
            with without_autocast(projected.device):
                scores = self.classifiers[tap](projected).flatten(0, 1)
                entropy = F.cross_entropy(scores, wanted.flatten(), ignore_index=-1, reduction="sum")
            losses.append(entropy / count)
            with torch.no_grad():
                right.append((scores.argmax(dim=1) == wanted.flatten()).sum() / count)
                spreads.append(spread(F.normalize(projected, dim=-1), sample.valid))
        statistics = {
            "voxel_accuracy": torch.stack(right).mean(),
            "spread": torch.stack(spreads).mean(),
            "hard_voxels": sample.hard.float().mean(),
            "valid_voxels": sample.valid.float().mean(),
        }
        return VoxelClassOutput(torch.stack(losses).mean(), sample, statistics)
