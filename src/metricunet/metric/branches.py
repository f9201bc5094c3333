"""The branches beside a segmentation network: feature maps in, a loss on voxels that are sampled online out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metricunet.metric.losses import MetricOutput, TupleOptions, tuple_losses
from metricunet.metric.sampling import HardEasySampler, Sample, Sampler, read_features
from metricunet.metric.tuples import at_least_float32, dealt_out

EXTRA = 'pip install "metricunet[metric-learning]"'
Head = int | nn.Module | Sequence[nn.Module] | None


class VoxelBranch(nn.Module):
    """What every loss on sampled voxels shares: it draws voxels, reads the maps there, and embeds what it read.

    Only the features of the sampled voxels go through a head. A loss of one's own derives from this class and
    defines `objective`.

    Args:
        sampler: draws the voxels; the default is `HardEasySampler()`.
        head: None (features are the embeddings), an embedding size (one small perceptron for each map), or one
            module for each map that takes [..., channels].
        channels: channels of each map; needed where `head` is a size.
        ignore_index: label of voxels that are never drawn.

    Raises:
        ValueError: `head` is a size, but `channels` is missing.
    """

    def __init__(
        self,
        sampler: Sampler | None = None,
        head: Head = None,
        channels: Sequence[int] | None = None,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        self.sampler: Sampler = HardEasySampler() if sampler is None else sampler
        self.heads = build_heads(head, channels)
        self.ignore_index = ignore_index

    def forward(
        self,
        features: Tensor | Sequence[Tensor],
        labels: Tensor,
        logits: Tensor | None = None,
        spacing_mm: Sequence[float] | None = None,
    ) -> MetricOutput:
        """Sample voxels and compute the loss; losses and statistics are means over the maps.

        Args:
            features: a map [batch, channels, *coarse], or a list of them.
            labels: [batch, *space], integers; the maps may be coarser.
            logits: [batch, classes, *space]; they tell which voxels are hard.
            spacing_mm: voxel spacing along each axis of the space; None means 1 along each.

        Raises:
            ValueError: the number of maps is not that of the heads, or shapes do not fit each other.
        """
        maps = self.maps_of(features)
        given = None if logits is None else logits.detach()
        sample = self.sampler(labels, given, spacing_mm, self.ignore_index)
        found, spreads = [], []
        for tap, feature_map in enumerate(maps):
            read = read_features(feature_map, sample.index, labels.shape[1:])
            projected = at_least_float32(read if self.heads is None else self.heads[tap](read))
            with without_autocast(projected.device):
                embeddings = F.normalize(projected, dim=-1)
                spreads.append(spread(embeddings, sample.valid))
                found.append(self.objective(projected, embeddings, sample, tap))
        statistics = {
            **_means([one.statistics for one in found]),
            "spread": torch.stack(spreads).mean(),
            "hard_voxels": sample.hard.float().mean(),
            "valid_voxels": sample.valid.float().mean(),
        }
        loss = torch.stack([one.loss for one in found]).mean()
        return MetricOutput(loss, _means([one.parts for one in found]), statistics, sample)

    def objective(self, projected: Tensor, embeddings: Tensor, sample: Sample, tap: int) -> MetricOutput:
        """Compute the loss on the sampled voxels of one map, its parts and statistics.

        Args:
            projected: [batch, voxels, dimensions], what the head made of the features, float32 or float64.
            embeddings: `projected`, scaled to unit length.
            sample: the voxels that were sampled.
            tap: index of the map.
        """
        raise NotImplementedError

    def maps_of(self, features: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """Return the maps as a list, one for each head.

        Raises:
            ValueError: the number of maps is not that of the heads.
        """
        maps = [features] if isinstance(features, Tensor) else list(features)
        if self.heads is not None and len(self.heads) != len(maps):
            raise ValueError(f"{len(maps)} feature maps for {len(self.heads)} heads")
        return maps


class VoxelMetricLoss(VoxelBranch):
    """Metric loss on voxels that are sampled online from intermediate feature maps: triplets and pairs.

    Args:
        sampler, head, channels, ignore_index: see `VoxelBranch`.
        options: which tuples are formed, with which margins and weights; the default is `TupleOptions()`.
        **settings: single options by their names, over `options`, such as `margin=0.3`.

    Raises:
        ValueError: an option has an impossible value, or `head` is a size and `channels` is missing.
    """

    def __init__(
        self,
        sampler: Sampler | None = None,
        head: Head = None,
        channels: Sequence[int] | None = None,
        options: TupleOptions | None = None,
        ignore_index: int = -100,
        **settings: Any,
    ) -> None:
        super().__init__(sampler, head, channels, ignore_index)
        self.options = replace(options or TupleOptions(), **settings)

    def objective(self, projected: Tensor, embeddings: Tensor, sample: Sample, tap: int) -> MetricOutput:
        """Form tuples of the embeddings and compute their losses (see `VoxelBranch.objective`)."""
        return tuple_losses(embeddings, sample.classes, sample.valid, self.sampler.classes, self.options)


class VoxelClassLoss(VoxelBranch):
    """The control: cross-entropy on the sampled voxels and through the heads of `VoxelMetricLoss`.

    A gain from looking harder at borders shows here, too; a gain from metric learning does not. A linear
    classifier follows each head and takes its output before that is scaled to unit length, as only distances need.

    Args:
        sampler, ignore_index: see `VoxelBranch`.
        head: an embedding size, for one small perceptron for each map; or None.
        channels: channels of each map.

    Raises:
        ValueError: `channels` is missing.
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

    def objective(self, projected: Tensor, embeddings: Tensor, sample: Sample, tap: int) -> MetricOutput:
        """Classify the voxels and compute the cross-entropy (see `VoxelBranch.objective`)."""
        wanted = torch.where(sample.valid, sample.classes, -1).flatten()
        count = sample.valid.sum().clamp(min=1)
        scores = self.classifiers[tap](projected).flatten(0, 1)
        entropy = F.cross_entropy(scores, wanted, ignore_index=-1, reduction="sum") / count
        right = (scores.argmax(dim=1) == wanted).sum() / count
        return MetricOutput(entropy, {"voxel_entropy": entropy}, {"voxel_accuracy": right})

    def maps_of(self, features: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """Return the maps as a list, one for each classifier (see `VoxelBranch.maps_of`)."""
        maps = super().maps_of(features)
        if len(maps) != len(self.classifiers):
            raise ValueError(f"{len(maps)} feature maps for {len(self.classifiers)} classifiers")
        return maps


class AdaptedMetricLoss(VoxelBranch):
    """A miner and a loss of pytorch-metric-learning on voxels that are sampled online.

    That library is an extra, which is imported when this loss is built and never before. It takes the valid
    embeddings of one image after another, so the device is asked how many there are: this loss cannot be captured
    in a CUDA graph. Images with fewer than two classes add nothing.

    Args:
        loss: an object of that library's losses, or the name of one in `pytorch_metric_learning.losses`.
        miner: an object of that library's miners, or the name of one; None leaves the tuples to the loss.
        sampler, head, channels, ignore_index: see `VoxelBranch`.
        across: form tuples across the batch, as `TupleOptions.across` does.

    Raises:
        ImportError: pytorch-metric-learning is not installed; the message is the line that installs it.
        ValueError: that library has no loss or miner of this name.
    """

    def __init__(
        self,
        loss: nn.Module | str,
        miner: nn.Module | str | None = None,
        sampler: Sampler | None = None,
        head: Head = None,
        channels: Sequence[int] | None = None,
        ignore_index: int = -100,
        across: bool = False,
    ) -> None:
        super().__init__(sampler, head, channels, ignore_index)
        try:
            from pytorch_metric_learning import losses, miners
        except ImportError as error:
            raise ImportError(f"pytorch-metric-learning is not installed; run: {EXTRA}") from error
        self.loss = _built(loss, losses)
        self.miner = None if miner is None else _built(miner, miners)
        self.across = across

    def objective(self, projected: Tensor, embeddings: Tensor, sample: Sample, tap: int) -> MetricOutput:
        """Hand the voxels of each image to the library (see `VoxelBranch.objective`)."""
        rows = embeddings, sample.classes, sample.valid
        total = embeddings.sum() * 0
        for e, c, v in zip(*(dealt_out(*rows) if self.across else rows), strict=True):
            kept, labels = e[v], c[v]
            if len(labels) < 2 or bool((labels == labels[0]).all()):
                continue
            tuples = None if self.miner is None else self.miner(kept, labels)
            total = total + self.loss(kept, labels, tuples)
        return MetricOutput(total / len(embeddings), {}, {})


def build_heads(head: Head, channels: Sequence[int] | None) -> nn.ModuleList | None:
    """Build one head for each map; arguments and errors are those of `VoxelBranch`."""
    if head is None:
        return None
    if isinstance(head, nn.Module):
        return nn.ModuleList([head])
    if not isinstance(head, int):
        return nn.ModuleList(head)
    if channels is None:
        raise ValueError(f"head={head} is an embedding size, so channels= (channels of each map) is needed too")
    return nn.ModuleList(nn.Sequential(nn.Linear(c, head), nn.ReLU(), nn.Linear(head, head)) for c in channels)


@torch.no_grad()
def spread(embeddings: Tensor, valid: Tensor) -> Tensor:
    """Return 1 minus the length of the mean embedding of an image, the mean over the images; 0 is collapse.

    Args:
        embeddings: [batch, voxels, dimensions], of unit length.
        valid: [batch, voxels], bool.
    """
    mean = (embeddings * valid[..., None]).sum(dim=1) / valid.sum(dim=1, keepdim=True).clamp(min=1)
    length: Tensor = torch.linalg.vector_norm(mean, dim=1)
    return 1 - length.mean()


def without_autocast(device: torch.device) -> torch.autocast:
    """Return the context in which distances keep the precision of their embeddings, whatever the caller's."""
    return torch.autocast(device.type, enabled=False)


def _means(found: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([one[name] for one in found]).mean() for name in found[0]}


def _built(wanted: nn.Module | str, module: Any) -> nn.Module:
    if isinstance(wanted, nn.Module):
        return wanted
    found = getattr(module, wanted, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"{module.__name__} has no {wanted!r}")
    built: nn.Module = found()
    return built
