"""VoxelMetricLoss: sampling, reading, embedding, tuples and losses in one module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metricunet.metric.losses import contrastive_loss, distances, triplet_margin_loss
from metricunet.metric.reading import read_features
from metricunet.metric.sampling import HardEasySampler, Sample, Sampler
from metricunet.metric.tuples import hard_pairs, other_class, random_pairs, semi_hard_triplets, squared_distances


class VoxelMetricOutput(NamedTuple):
    """What `VoxelMetricLoss` returns.

    Attributes:
        loss: weighted sum of both losses, the mean over the maps.
        triplet: triplet loss, unweighted, the mean over the maps.
        pair: contrastive loss, unweighted, the mean over the maps.
        sample: the voxels that were drawn.
        statistics: scalars for the log, without gradient: `active_triplets` (share of the anchors whose triplet
            is inside the margin), `positive_distance` and `negative_distance` (means over random positives and
            mined negatives), `spread` (1 minus the length of the mean embedding of an image; 0 is collapse),
            `hard_voxels` and `valid_voxels` (shares of the slots).
    """

    loss: Tensor
    triplet: Tensor
    pair: Tensor
    sample: Sample
    statistics: dict[str, Tensor]


class VoxelMetricLoss(nn.Module):
    """Metric loss on voxels that are sampled online from intermediate feature maps.

    Args:
        sampler: draws the voxels; default `HardEasySampler()`.
        head: None (features are the embeddings), an embedding size (one small perceptron for each map), or one
            module for each map that takes [..., channels].
        channels: channels of each map; needed where `head` is a size.
        pairs: `random` (one of each kind for each voxel, an unbiased sample of all pairs) or `hard` (the farthest
            of its own class and the nearest of another; embeddings collapse easily under it).
        margin: triplet margin.
        positive_margin, negative_margin: margins of the contrastive loss.
        triplet_weight, pair_weight: weights in the sum; 0 leaves the loss out.
        ignore_index: label of voxels that are never drawn.
    """

    def __init__(
        self,
        sampler: Sampler | None = None,
        head: int | nn.Module | Sequence[nn.Module] | None = None,
        channels: Sequence[int] | None = None,
        pairs: Literal["random", "hard"] = "random",
        margin: float = 0.2,
        positive_margin: float = 0.2,
        negative_margin: float = 1.0,
        triplet_weight: float = 1.0,
        pair_weight: float = 1.0,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        self.sampler = HardEasySampler() if sampler is None else sampler
        self.heads = _heads(head, channels)
        if pairs not in ("random", "hard"):
            raise ValueError(f"pairs must be one of random, hard; got {pairs!r}")
        self.pairs = pairs
        self.margin, self.positive_margin, self.negative_margin = margin, positive_margin, negative_margin
        self.triplet_weight, self.pair_weight = triplet_weight, pair_weight
        self.ignore_index = ignore_index

    def forward(
        self,
        features: Tensor | Sequence[Tensor],
        labels: Tensor,
        logits: Tensor | None = None,
        spacing_mm: Sequence[float] | None = None,
    ) -> VoxelMetricOutput:
        """Sample voxels and compute the loss.

        Args:
            features: a map [batch, channels, *coarse], or a list of them.
            labels: [batch, *space], integers; the maps may be coarser.
            logits: [batch, classes, *space]; they tell which voxels are hard.
            spacing_mm: Python floats, one for each axis of the space.
        """
        maps = [features] if isinstance(features, Tensor) else list(features)
        if self.heads is not None and len(self.heads) != len(maps):
            raise ValueError(f"{len(maps)} feature maps for {len(self.heads)} heads")
        sample = self.sampler(labels, None if logits is None else logits.detach(), spacing_mm, self.ignore_index)
        triplet_losses, pair_losses, statistics = [], [], []
        for k, feature_map in enumerate(maps):
            embeddings = self.embed(feature_map, sample.index, labels.shape[1:], k)
            triplet, pair, facts = self._losses(embeddings, sample)
            triplet_losses.append(triplet)
            pair_losses.append(pair)
            statistics.append(facts)
        triplet, pair = torch.stack(triplet_losses).mean(), torch.stack(pair_losses).mean()
        mean = {name: torch.stack([s[name] for s in statistics]).mean() for name in statistics[0]}
        mean["hard_voxels"] = sample.hard.float().mean()
        mean["valid_voxels"] = sample.valid.float().mean()
        loss = self.triplet_weight * triplet + self.pair_weight * pair
        return VoxelMetricOutput(loss, triplet, pair, sample, mean)

    def embed(self, feature_map: Tensor, index: Tensor, label_shape: Sequence[int], tap: int = 0) -> Tensor:
        """Embed the voxels `index` of one map: float32 [batch, voxels, dimensions] of unit length."""
        gathered = read_features(feature_map, index, label_shape)
        if self.heads is not None:
            gathered = self.heads[tap](gathered)
        # A float64 caller keeps its precision; bf16 features are compared in float32.
        wide = gathered if gathered.dtype == torch.float64 else gathered.float()
        return F.normalize(wide, dim=-1)

    def _losses(self, embeddings: Tensor, sample: Sample) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        squared = squared_distances(embeddings)
        other = other_class(sample.classes, sample.valid)
        drawn = random_pairs(sample.classes, sample.valid)
        triplets = semi_hard_triplets(squared, drawn, other)
        positive = distances(embeddings, _pick(embeddings, triplets.positive))
        negative = distances(embeddings, _pick(embeddings, triplets.negative))
        triplet = triplet_margin_loss(positive, negative, triplets.valid, self.margin)
        pairs = drawn if self.pairs == "random" else hard_pairs(squared, sample.valid, other)
        same = torch.tensor([True, False], device=embeddings.device)[:, None, None]
        pair = contrastive_loss(
            torch.stack(
                [
                    distances(embeddings, _pick(embeddings, pairs.positive)),
                    distances(embeddings, _pick(embeddings, pairs.negative)),
                ]
            ),
            same.expand(2, *sample.valid.shape),
            torch.stack([pairs.positive_valid, pairs.negative_valid]),
            self.positive_margin,
            self.negative_margin,
        )
        with torch.no_grad():
            statistics = _statistics(embeddings, sample.valid, triplets.valid, positive, negative, self.margin)
        return triplet, pair, statistics


def _statistics(
    embeddings: Tensor, valid: Tensor, exists: Tensor, positive: Tensor, negative: Tensor, margin: float
) -> dict[str, Tensor]:
    count = exists.sum().clamp(min=1)
    active = exists & (positive - negative + margin > 0)
    mean = (embeddings * valid[..., None]).sum(dim=1) / valid.sum(dim=1, keepdim=True).clamp(min=1)
    return {
        "active_triplets": active.sum() / valid.sum().clamp(min=1),
        "positive_distance": (positive * exists).sum() / count,
        "negative_distance": (negative * exists).sum() / count,
        "spread": 1 - mean.norm(dim=1).mean(),
    }


def _pick(embeddings: Tensor, index: Tensor) -> Tensor:
    return embeddings.gather(1, index[..., None].expand(-1, -1, embeddings.shape[2]))


def _heads(
    head: int | nn.Module | Sequence[nn.Module] | None, channels: Sequence[int] | None
) -> nn.ModuleList | None:
    if head is None:
        return None
    if isinstance(head, nn.Module):
        return nn.ModuleList([head])
    if not isinstance(head, int):
        return nn.ModuleList(head)
    if channels is None:
        raise ValueError(f"head={head} is an embedding size, so channels= (channels of each map) is needed too")
    return nn.ModuleList(nn.Sequential(nn.Linear(c, head), nn.ReLU(), nn.Linear(head, head)) for c in channels)
