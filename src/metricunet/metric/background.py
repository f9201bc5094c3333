"""Kinds of background: fat, muscle, urine and bone are no one thing, and need not be pulled to one point.

Each kind counts as a class of its own for a branch's tuples or for its control's classifiers. Voxels are sampled
by the classes of the labels all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metricunet.metric.gathering import gathered
from metricunet.metric.sampling import Sample


class Background(Protocol):
    """What tells kinds of background apart; `kinds` is their number."""

    @property
    def kinds(self) -> int:
        """Number of kinds."""

    def __call__(self, embeddings: Tensor, sample: Sample, tap: int, image: Tensor | None) -> Tensor:
        """Return the kind of each sampled voxel: int64 [batch, voxels]; only that of background counts.

        Args:
            embeddings: [batch, voxels, dimensions], of unit length, without gradient.
            sample: the sampled voxels.
            tap: index of the map that the embeddings were read from.
            image: [batch, *space], intensities; None where they are not known.
        """
        ...


class IntensityKinds:
    """Kinds of background by intensity, such as air, fat, soft tissue and bone.

    Args:
        bounds: intensities that part one kind from the next, from low to high, in the unit of the images.

    Raises:
        ValueError: there is no bound, or they do not rise.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        if not bounds or any(high <= low for low, high in pairwise(bounds)):
            raise ValueError(f"bounds must be one or more rising numbers; got {list(bounds)}")
        self.bounds = tuple(bounds)
        self.kinds = len(bounds) + 1

    def __call__(self, embeddings: Tensor, sample: Sample, tap: int, image: Tensor | None) -> Tensor:
        """Return the kind of each sampled voxel (see `Background`).

        Raises:
            ValueError: there is no image.
        """
        if image is None:
            raise ValueError("kinds of background by intensity need the images: pass image= of this step")
        values = image.flatten(1).gather(1, sample.index)
        return torch.stack([values > bound for bound in self.bounds]).sum(dim=0)


class BackgroundClusters(nn.Module):
    """Kinds of background as clusters of its embeddings, which follow them from update to update.

    Spherical k-means, one step at each call: every voxel is of the kind of the nearest centre, and each centre
    moves towards the mean of its voxels. The first centres are voxels that are far from each other, and a centre
    that no voxel is nearest to goes to one that is far from its own. The centres are a buffer, so a checkpoint
    holds them; several processes, whose batches must have equally many images, have the same ones.

    Args:
        kinds: number of clusters.
        dimensions: dimensions of the embeddings.
        maps: number of maps; each has centres of its own.
        decay: share of a centre that remains at each update.

    Raises:
        ValueError: there are fewer than two kinds, or the decay is not in 0 to 1.
    """

    def __init__(self, kinds: int, dimensions: int, maps: int = 1, decay: float = 0.9) -> None:
        super().__init__()
        if kinds < 2 or not 0 <= decay <= 1:
            raise ValueError(f"kinds must be 2 or more and decay between 0 and 1; got {kinds}, {decay}")
        self.kinds, self.decay = kinds, decay
        self.register_buffer("centres", torch.zeros(maps, kinds, dimensions))
        self.register_buffer("begun", torch.zeros(maps, dtype=torch.bool))
        self.centres: Tensor
        self.begun: Tensor

    @torch.no_grad()
    def forward(self, embeddings: Tensor, sample: Sample, tap: int, image: Tensor | None) -> Tensor:
        """Return the kind of each sampled voxel (see `Background`), and let the centres follow in training."""
        values = embeddings.to(self.centres.dtype)
        # A batch can overflow in half precision. Its update is skipped, but a centre that is NaN would stay so.
        finite = torch.isfinite(values).all(dim=-1)
        values = torch.where(finite[..., None], values, 0.0)
        member = sample.valid & (sample.classes == 0) & finite
        told = torch.cat([values, member[..., None]], dim=-1)
        told = (gathered(told) if self.training else told).flatten(0, 1)
        seen, counted = told[:, :-1], told[:, -1] > 0
        centres = torch.where(self.begun[tap], self.centres[tap], far_apart(seen, counted, self.kinds))
        if self.training:
            self.centres[tap] = torch.where(counted.any(), self._moved(centres, seen, counted), self.centres[tap])
            self.begun[tap] |= counted.any()
        return (values @ centres.T).argmax(dim=-1)

    def _moved(self, centres: Tensor, seen: Tensor, counted: Tensor) -> Tensor:
        likeness = (seen @ centres.T).max(dim=1)
        own = F.one_hot(likeness.indices, self.kinds).to(seen.dtype) * counted[:, None]
        count = own.sum(dim=0)[:, None]
        mean = F.normalize(own.T @ seen, dim=1)
        followed = F.normalize(self.decay * centres + (1 - self.decay) * mean, dim=1)
        least_alike = likeness.values.masked_fill(~counted, 2.0).topk(min(self.kinds, len(seen)), largest=False)
        far = seen[least_alike.indices]
        # The first are of the background; there may be fewer than kinds.
        number = counted.sum().clamp(min=1, max=len(far))
        far = far[torch.arange(self.kinds, device=far.device) % number]
        return torch.where(count > 0, followed, far)


def far_apart(embeddings: Tensor, counted: Tensor, number: int) -> Tensor:
    """Choose voxels that are far apart: the first one, and again and again the one least like all chosen so far.

    Args:
        embeddings: [voxels, dimensions], of unit length.
        counted: [voxels], bool: which of them may be chosen.
        number: how many to choose.

    Returns:
        [number, dimensions]; where no voxel counts, any of them.
    """
    chosen = [embeddings[counted.to(torch.uint8).argmax(dim=0, keepdim=True)]]
    likeness = torch.full_like(embeddings[:, 0], -2.0)
    for _ in range(number - 1):
        likeness = torch.maximum(likeness, (embeddings @ chosen[-1].T)[:, 0])
        index = likeness.masked_fill(~counted, 3.0).argmin(dim=0, keepdim=True)
        chosen.append(embeddings[index])
    return torch.cat(chosen)
