"""What every objective on sampled voxels shares: drawing the voxels, reading the maps, and the heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metricunet.metric.reading import read_features
from metricunet.metric.sampling import HardEasySampler, Sample, Sampler


class VoxelBranch(nn.Module):
    """Draws voxels, gathers their features from each map, and sends only those through the map's head.

    Args:
        sampler: draws the voxels; default `HardEasySampler()`.
        head: None (features are the embeddings), an embedding size (one small perceptron for each map), or one
            module for each map that takes [..., channels].
        channels: channels of each map; needed where `head` is a size.
        ignore_index: label of voxels that are never drawn.
    """

    def __init__(
        self,
        sampler: Sampler | None = None,
        head: int | nn.Module | Sequence[nn.Module] | None = None,
        channels: Sequence[int] | None = None,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        self.sampler: Sampler = HardEasySampler() if sampler is None else sampler
        self.heads = build_heads(head, channels)
        self.ignore_index = ignore_index

    def sample(
        self, labels: Tensor, logits: Tensor | None = None, spacing_mm: Sequence[float] | None = None
    ) -> Sample:
        """Draw the voxels of this step. Arguments as `VoxelMetricLoss.forward`."""
        return self.sampler(labels, None if logits is None else logits.detach(), spacing_mm, self.ignore_index)

    def project(self, feature_map: Tensor, index: Tensor, label_shape: Sequence[int], tap: int = 0) -> Tensor:
        """Read the voxels `index` of one map and send them through its head: [batch, voxels, dimensions]."""
        gathered = read_features(feature_map, index, label_shape)
        if self.heads is not None:
            gathered = self.heads[tap](gathered)
        # A float64 caller keeps its precision; bf16 features are compared in float32.
        return gathered if gathered.dtype == torch.float64 else gathered.float()

    def embed(self, feature_map: Tensor, index: Tensor, label_shape: Sequence[int], tap: int = 0) -> Tensor:
        """Embed the voxels `index` of one map: [batch, voxels, dimensions] of unit length, float32 or float64."""
        return F.normalize(self.project(feature_map, index, label_shape, tap), dim=-1)

    def maps_of(self, features: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """Return the maps as a list, one for each head.

        Raises:
            ValueError: another number of maps than of heads.
        """
        maps = [features] if isinstance(features, Tensor) else list(features)
        if self.heads is not None and len(self.heads) != len(maps):
            raise ValueError(f"{len(maps)} feature maps for {len(self.heads)} heads")
        return maps


def build_heads(
    head: int | nn.Module | Sequence[nn.Module] | None, channels: Sequence[int] | None
) -> nn.ModuleList | None:
    """Build one head for each map (see `VoxelBranch`)."""
    if head is None:
        return None
    if isinstance(head, nn.Module):
        return nn.ModuleList([head])
    if not isinstance(head, int):
        return nn.ModuleList(head)
    if channels is None:
        raise ValueError(f"head={head} is an embedding size, so channels= (channels of each map) is needed too")
    return nn.ModuleList(nn.Sequential(nn.Linear(c, head), nn.ReLU(), nn.Linear(head, head)) for c in channels)


def spread(embeddings: Tensor, valid: Tensor) -> Tensor:
    """One minus the length of the mean embedding of an image, the mean over the images; 0 is collapse."""
    mean = (embeddings * valid[..., None]).sum(dim=1) / valid.sum(dim=1, keepdim=True).clamp(min=1)
    length: Tensor = torch.linalg.vector_norm(mean, dim=1)
    return 1 - length.mean()


def without_autocast(device: torch.device) -> torch.autocast:
    """Return the context in which distances keep the precision of their embeddings, whatever the caller's."""
    return torch.autocast(device.type, enabled=False)
