"""Any miner and any loss of pytorch-metric-learning on our sampled voxels.

That library is an extra; it is imported when an adapter is built, never before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metricunet.metric.branch import VoxelBranch, spread, without_autocast
from metricunet.metric.sampling import Sample, Sampler
from metricunet.metric.tuples import mixed_rows

EXTRA = 'pip install "metricunet[metric-learning]"'


class AdaptedOutput(NamedTuple):
    """What `AdaptedMetricLoss` returns.

    Attributes:
        loss: the mean over images and maps.
        sample: the voxels that were drawn.
        statistics: `spread`, `hard_voxels` and `valid_voxels` as in `VoxelMetricOutput`.
    """

    loss: Tensor
    sample: Sample
    statistics: dict[str, Tensor]


class AdaptedMetricLoss(VoxelBranch):
    """A miner and a loss of pytorch-metric-learning on voxels that are sampled online.

    That library takes the valid embeddings of one image after another, so the device is asked how many there are:
    this cannot be captured in a CUDA graph. Images with fewer than two classes add nothing.

    Args:
        loss: an object of that library's losses, or the name of one in `pytorch_metric_learning.losses`.
        miner: an object of that library's miners, or the name of one; None leaves the tuples to the loss.
        sampler, head, channels, ignore_index: see `VoxelMetricLoss`.
        across: deal the voxels out across the batch, as `VoxelMetricLoss` does.

    Raises:
        ImportError: pytorch-metric-learning is not installed; the message is the line that installs it.
        ValueError: it has no loss or miner of that name.
    """

    def __init__(
        self,
        loss: nn.Module | str,
        miner: nn.Module | str | None = None,
        sampler: Sampler | None = None,
        head: int | nn.Module | Sequence[nn.Module] | None = None,
        channels: Sequence[int] | None = None,
        ignore_index: int = -100,
        across: bool = False,
    ) -> None:
        super().__init__(sampler, head, channels, ignore_index)
        losses, miners = _library()
        self.loss = _built(loss, losses)
        self.miner = None if miner is None else _built(miner, miners)
        self.across = across

    def forward(
        self,
        features: Tensor | Sequence[Tensor],
        labels: Tensor,
        logits: Tensor | None = None,
        spacing_mm: Sequence[float] | None = None,
    ) -> AdaptedOutput:
        """Sample voxels and compute the loss. Arguments as `VoxelMetricLoss.forward`."""
        sample = self.sample(labels, logits, spacing_mm)
        losses, spreads = [], []
        for tap, feature_map in enumerate(self.maps_of(features)):
            embeddings = self.embed(feature_map, sample.index, labels.shape[1:], tap)
            with without_autocast(embeddings.device):
                losses.append(self._of_rows(embeddings, sample))
            with torch.no_grad():
                spreads.append(spread(embeddings, sample.valid))
        statistics = {
            "spread": torch.stack(spreads).mean(),
            "hard_voxels": sample.hard.float().mean(),
            "valid_voxels": sample.valid.float().mean(),
        }
        return AdaptedOutput(torch.stack(losses).mean(), sample, statistics)

    def _of_rows(self, embeddings: Tensor, sample: Sample) -> Tensor:
        classes, valid = sample.classes, sample.valid
        if self.across:
            row = mixed_rows(len(classes), classes.shape[1], classes.device)
            classes, valid = classes.gather(0, row), valid.gather(0, row)
            embeddings = embeddings.gather(0, row[..., None].expand_as(embeddings))
        total = embeddings.sum() * 0
        for e, c, v in zip(embeddings, classes, valid, strict=True):
            kept, labels = e[v], c[v]
            if len(labels) < 2 or bool((labels == labels[0]).all()):
                continue
            tuples = None if self.miner is None else self.miner(kept, labels)
            total = total + self.loss(kept, labels, tuples)
        return total / len(embeddings)


def _library() -> tuple[Any, Any]:
    try:
        from pytorch_metric_learning import losses, miners
    except ImportError as error:
        raise ImportError(f"pytorch-metric-learning is not installed; run: {EXTRA}") from error
    return losses, miners


def _built(wanted: nn.Module | str, module: Any) -> nn.Module:
    if isinstance(wanted, nn.Module):
        return wanted
    found = getattr(module, wanted, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"{module.__name__} has no {wanted!r}")
    built: nn.Module = found()
    return built
