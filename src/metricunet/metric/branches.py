"""The branches beside a segmentation network: feature maps in, a loss on voxels that are sampled online out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metricunet.metric.background import Background
from metricunet.metric.bank import EmbeddingBank, bank_losses
from metricunet.metric.gathering import counted_once, gathered, of_whole_batch, processes, sharing
from metricunet.metric.losses import MetricOutput, TupleOptions, tuple_losses
from metricunet.metric.sampling import (
    BAND_SLACK,
    HardEasySampler,
    Sample,
    Sampler,
    read_features,
    surface_distance,
)
from metricunet.metric.tuples import at_least_float32, dealt_out

EXTRA = 'pip install "metricunet[metric-learning]"'
Head = int | nn.Module | Sequence[nn.Module] | None
HALF = (torch.bfloat16, torch.float16)
#: Features shorter than this have no direction: what is left of them where an image is empty is rounding.
SHORTEST = 1e-4


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
        unsure_mm: labels count as less sure the nearer they are to a surface, from this distance on: the certainty
            of a voxel is its distance to the nearest voxel of another class over this, at most 1; 0 means that all
            are sure.
        left_out_mm: sampled voxels within this distance of a voxel of another class are left out; 0 leaves out
            none.
        background: tells kinds of background apart, each of which counts as a class of its own; None takes the
            background as one class.

    Raises:
        ValueError: `head` is a size, but `channels` is missing; or a distance is negative.
    """

    def __init__(
        self,
        sampler: Sampler | None = None,
        head: Head = None,
        channels: Sequence[int] | None = None,
        ignore_index: int = -100,
        unsure_mm: float = 0.0,
        left_out_mm: float = 0.0,
        background: Background | None = None,
    ) -> None:
        super().__init__()
        if min(unsure_mm, left_out_mm) < 0:
            raise ValueError(
                f"unsure_mm and left_out_mm must not be negative; got {unsure_mm:g} and {left_out_mm:g}"
            )
        self.sampler: Sampler = HardEasySampler() if sampler is None else sampler
        self.heads = build_heads(head, channels)
        self.ignore_index = ignore_index
        self.unsure_mm, self.left_out_mm, self.background = unsure_mm, left_out_mm, background

    @property
    def classes(self) -> int:
        """Number of classes that voxels are told apart by: the sampler's, and further kinds of background."""
        return self.sampler.classes + (0 if self.background is None else self.background.kinds - 1)

    def forward(
        self,
        features: Tensor | Sequence[Tensor],
        labels: Tensor,
        logits: Tensor | None = None,
        spacing_mm: Sequence[float] | None = None,
        image: Tensor | None = None,
        contoured: int | None = None,
    ) -> MetricOutput:
        """Sample voxels and compute the loss; losses and statistics are means over the maps.

        Args:
            features: a map [batch, channels, *coarse], or a list of them.
            labels: [batch, *space], integers; the maps may be coarser.
            logits: [batch, classes, *space]; they tell which voxels are hard.
            spacing_mm: voxel spacing along each axis of the space; None means 1 along each.
            image: [batch, *space], intensities; needed where they tell kinds of background apart.
            contoured: number of images, the first of the batch, whose labels are contours; None: all. Only their
                voxels enter a memory bank.

        Raises:
            ValueError: the number of maps is not that of the heads, shapes do not fit each other, the logits have
                more or fewer classes than the sampler, or `image` is missing.
        """
        maps = self.maps_of(features)
        given = None if logits is None else logits.detach()
        self._check_classes(given)
        if image is not None and image.flatten(1).shape != labels.flatten(1).shape:
            raise ValueError(
                f"image {tuple(image.shape)} does not lie on the grid of labels {tuple(labels.shape)}"
            )
        sample = self.sampler(labels, given, spacing_mm, self.ignore_index)
        sample = replace(self._weighed(sample, labels, spacing_mm), contoured=contoured)
        found, spreads = [], []
        for tap, feature_map in enumerate(maps):
            read = read_features(feature_map, sample.index, labels.shape[1:])
            projected = at_least_float32(read) if self.heads is None else through(self.heads[tap], read)
            with without_autocast(projected.device):
                embeddings = unit_length(projected)
                known = sample
                if self.background is not None:
                    kinds = self.background(embeddings.detach(), sample, tap, image)
                    known = replace(sample, classes=self._with_kinds(sample, kinds))
                if sharing():  # tuples are formed in the whole batch
                    projected, known = of_whole_batch(projected), _of_whole_batch(known)
                    embeddings = unit_length(projected)
                spreads.append(spread(embeddings, known.valid))
                found.append(self.objective(projected, embeddings, known, tap))
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
            embeddings: `projected`, scaled to unit length (`unit_length`).
            sample: the voxels that were sampled; their classes are 0 to `classes` - 1.
            tap: index of the map.
        """
        raise NotImplementedError

    def _check_classes(self, logits: Tensor | None) -> None:
        """Refuse logits of other classes: the branch would pass over classes, or call right voxels wrong."""
        if logits is not None and logits.shape[1] == 1:
            raise ValueError(
                "logits of one class, as for a sigmoid; give those of the background, too: "
                "torch.cat([torch.zeros_like(logits), logits], dim=1)"
            )
        if logits is not None and logits.shape[1] != (told := self.sampler.classes):
            raise ValueError(
                f"logits of {logits.shape[1]} classes for a sampler of {told}, background included; build the "
                f"sampler with classes={logits.shape[1]}, or pass no logits where they are no scores of classes"
            )

    def _weighed(self, sample: Sample, labels: Tensor, spacing_mm: Sequence[float] | None) -> Sample:
        """Leave out the voxels that are too near a surface, and say how sure the others are."""
        reach_mm = max(self.unsure_mm, self.left_out_mm)
        if reach_mm <= 0:
            return sample
        distance = surface_distance(labels, sample.index, reach_mm, spacing_mm, self.ignore_index)
        kept = distance > self.left_out_mm * (1 + BAND_SLACK)
        sample = replace(sample, valid=sample.valid & kept, hard=sample.hard & kept)
        if self.unsure_mm <= 0:
            return sample
        return replace(sample, certainty=(distance / self.unsure_mm).clamp(max=1))

    def _with_kinds(self, sample: Sample, kinds: Tensor) -> Tensor:
        """Number the kinds of background: the first stays class 0, the others follow after all classes."""
        further = torch.where(kinds > 0, self.sampler.classes - 1 + kinds, 0)
        return torch.where(sample.classes == 0, further, sample.classes)

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
        sampler: see `VoxelBranch`, also for `head`, `channels`, `ignore_index`, `unsure_mm`, `left_out_mm` and
            `background`.
        options: which tuples are formed, with which margins and weights; the default is `TupleOptions()`.
        bank: embeddings of earlier updates that tuples are formed with, too; None for tuples of this batch alone.
        bank_share: share of the tuples with the bank in the loss, 0 to 1; those of this batch have the rest.
        **settings: single options by their names, over `options`, such as `margin=0.3`.

    Raises:
        ValueError: an option has an impossible value, `head` is a size and `channels` is missing, or the bank is
            for another number of classes.
    """

    def __init__(
        self,
        sampler: Sampler | None = None,
        head: Head = None,
        channels: Sequence[int] | None = None,
        options: TupleOptions | None = None,
        ignore_index: int = -100,
        unsure_mm: float = 0.0,
        left_out_mm: float = 0.0,
        background: Background | None = None,
        bank: EmbeddingBank | None = None,
        bank_share: float = 0.5,
        **settings: Any,
    ) -> None:
        super().__init__(sampler, head, channels, ignore_index, unsure_mm, left_out_mm, background)
        self.options = replace(options or TupleOptions(), **settings)
        if not 0 <= bank_share <= 1:
            raise ValueError(f"bank_share must be between 0 and 1; got {bank_share}")
        if bank is not None and bank.classes != self.classes:
            raise ValueError(f"a bank of {bank.classes} classes; this branch tells {self.classes} apart")
        self.bank, self.bank_share = bank, bank_share

    def objective(self, projected: Tensor, embeddings: Tensor, sample: Sample, tap: int) -> MetricOutput:
        """Form tuples of the embeddings and compute their losses (see `VoxelBranch.objective`)."""
        here = tuple_losses(embeddings, sample.classes, sample.valid, self.classes, self.options, sample.certainty)
        if self.bank is None:
            return here
        known = sample.classes, sample.valid
        held = self.bank.held(tap)
        there = bank_losses(embeddings, *known, held, self.options, sample.certainty)
        if self.training:
            self.bank.enter(tap, embeddings, *known, sample.certainty, sample.contoured)
        parts = here.parts | {f"bank_{name}": part for name, part in there.parts.items()}
        loss = (1 - self.bank_share) * here.loss + self.bank_share * there.loss
        return MetricOutput(loss, parts, here.statistics | there.statistics)


class VoxelClassLoss(VoxelBranch):
    """The control: cross-entropy on the sampled voxels and through the heads of `VoxelMetricLoss`.

    A gain from looking harder at borders shows here, too; a gain from metric learning does not. A linear
    classifier follows each head and takes its output before that is scaled to unit length, as only distances need.

    Args:
        sampler: see `VoxelBranch`, also for `ignore_index`, `unsure_mm`, `left_out_mm` and `background`; voxels
            weigh as much as they are sure.
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
        unsure_mm: float = 0.0,
        left_out_mm: float = 0.0,
        background: Background | None = None,
    ) -> None:
        super().__init__(sampler, head, channels, ignore_index, unsure_mm, left_out_mm, background)
        if not channels:
            raise ValueError("channels= (channels of each map) is needed for the classifiers")
        sizes = channels if head is None else [head] * len(channels)
        self.classifiers = nn.ModuleList(nn.Linear(size, self.classes) for size in sizes)

    def objective(self, projected: Tensor, embeddings: Tensor, sample: Sample, tap: int) -> MetricOutput:
        """Classify the voxels and compute the cross-entropy (see `VoxelBranch.objective`)."""
        wanted = torch.where(sample.valid, sample.classes, -1).flatten()
        count = sample.valid.sum().clamp(min=1)
        weight, bias = (counted_once(one).to(projected.dtype) for one in self.classifiers[tap].parameters())
        scores = F.linear(projected, weight, bias).flatten(0, 1)
        if sample.certainty is None:
            entropy = F.cross_entropy(scores, wanted, ignore_index=-1, reduction="sum") / count
        else:
            weight = (sample.certainty * sample.valid).flatten().to(scores.dtype)
            each = F.cross_entropy(scores, wanted, ignore_index=-1, reduction="none")
            entropy = (weight * each).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
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
        sampler: see `VoxelBranch`, also for `head`, `channels` and `ignore_index`.
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
        # Without any tuples, too, what the loss learns has a gradient: other processes wait for it.
        total = total + sum(learned.sum() * 0 for learned in self.loss.parameters())
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


def through(head: nn.Module, features: Tensor) -> Tensor:
    """Send features through a head: float32 or float64, whatever the precision of the features.

    Where no autocast is open, features of half precision are brought to that of the head's weights.

    Args:
        head: takes [..., channels].
        features: [..., channels].
    """
    if features.dtype in HALF and not torch.is_autocast_enabled(features.device.type):
        weights = next(head.parameters(), None)
        features = features if weights is None else features.to(weights.dtype)
    return at_least_float32(head(features))


def unit_length(values: Tensor) -> Tensor:
    """Scale features to unit length; those shorter than `SHORTEST` become zeros, with a gradient of zero.

    Their own gradient would be that of a unit vector over their length: infinite in half precision, and in any
    other so large that a few empty voxels outweigh all else that the network learns from.

    Args:
        values: [..., dimensions].
    """
    short = torch.linalg.vector_norm(values.detach(), dim=-1, keepdim=True) < SHORTEST
    return F.normalize(torch.where(short, 0.0, values), dim=-1)


@torch.no_grad()
def spread(embeddings: Tensor, valid: Tensor) -> Tensor:
    """Return 1 minus the length of the mean embedding of an image, the mean over the images; 0 is collapse.

    Images without a voxel do not count; without any that does it is 0.

    Args:
        embeddings: [batch, voxels, dimensions], of unit length.
        valid: [batch, voxels], bool.
    """
    mean = (embeddings * valid[..., None]).sum(dim=1) / valid.sum(dim=1, keepdim=True).clamp(min=1)
    counted = valid.any(dim=1)
    spreads = (1 - torch.linalg.vector_norm(mean, dim=1)) * counted
    total: Tensor = spreads.sum() / counted.sum().clamp(min=1)
    return total


def without_autocast(device: torch.device) -> torch.autocast:
    """Return the context in which distances keep the precision of their embeddings, whatever the caller's."""
    return torch.autocast(device.type, enabled=False)


def _of_whole_batch(sample: Sample) -> Sample:
    """Return the samples of all processes that share a batch."""
    valid, hard = (gathered(flags.to(torch.uint8)) > 0 for flags in (sample.valid, sample.hard))
    return Sample(
        gathered(sample.index),
        gathered(sample.classes),
        valid,
        hard,
        None if sample.certainty is None else gathered(sample.certainty),
        None if sample.contoured is None else sample.contoured * processes(),
    )


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
