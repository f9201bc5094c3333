"""VoxelMetricLoss: sampling, reading, embedding, tuples and losses in one module."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from metricunet.metric.branch import VoxelBranch, spread, without_autocast
from metricunet.metric.losses import (
    TripletForm,
    all_distances,
    contrastive_loss,
    distances,
    supervised_contrastive_loss,
    triplet_margin_loss,
)
from metricunet.metric.sampling import Sample, Sampler
from metricunet.metric.tuples import TRIPLETS, Pairs, hard_pairs, mixed_rows, random_pairs

TripletKind = Literal["semi_hard", "random", "hardest", "distance_weighted"]
PairKind = Literal["random", "hard", "all"]


class TupleLosses(NamedTuple):
    """The losses on the tuples of one set of embeddings, and their weighted sum.

    Attributes:
        loss: the weighted sum.
        triplet, pair, supcon: each alone, unweighted; zero where its weight is.
        statistics: scalars for the log, without gradient (see `VoxelMetricOutput`).
    """

    loss: Tensor
    triplet: Tensor
    pair: Tensor
    supcon: Tensor
    statistics: dict[str, Tensor]


class VoxelMetricOutput(NamedTuple):
    """What `VoxelMetricLoss` returns.

    Attributes:
        loss: weighted sum of the losses, the mean over the maps.
        triplet: triplet loss, unweighted, the mean over the maps.
        pair: contrastive loss, unweighted, the mean over the maps.
        sample: the voxels that were drawn.
        statistics: scalars for the log, without gradient: `active_triplets` (share of the anchors whose triplet
            is inside the margin), `positive_distance` and `negative_distance` (means over random positives and
            mined negatives), `spread` (1 minus the length of the mean embedding of an image; 0 is collapse),
            `hard_voxels` and `valid_voxels` (shares of the slots).
        supcon: supervised contrastive loss, unweighted, the mean over the maps.
    """

    loss: Tensor
    triplet: Tensor
    pair: Tensor
    sample: Sample
    statistics: dict[str, Tensor]
    supcon: Tensor


class TupleObjective(nn.Module):
    """Forms tuples of embeddings and adds up the losses on them. It has no parameters.

    Args:
        n_classes: how many classes there are.
        triplets: `semi_hard` (for a random positive the nearest negative beyond it), `random`, `hardest`, or
            `distance_weighted`.
        pairs: `random` (one of each kind for each voxel, an unbiased sample of all pairs), `hard` (the farthest
            of its own class and the nearest of another; embeddings collapse easily under it), or `all`.
        triplet_form: `hinge` or `soft` (softplus).
        margin: triplet margin.
        positive_margin, negative_margin: margins of the contrastive loss.
        triplet_weight, pair_weight, supcon_weight: weights in the sum; 0 leaves the loss out.
        temperature: of the supervised contrastive loss.
        across: form tuples across the batch instead of within one image. Voxels are dealt out anew to as many rows
            of as many voxels, so memory and time stay those of tuples within an image.
    """

    def __init__(
        self,
        n_classes: int,
        triplets: TripletKind = "semi_hard",
        pairs: PairKind = "random",
        triplet_form: TripletForm = "hinge",
        margin: float = 0.2,
        positive_margin: float = 0.2,
        negative_margin: float = 1.0,
        triplet_weight: float = 1.0,
        pair_weight: float = 1.0,
        supcon_weight: float = 0.0,
        temperature: float = 0.1,
        across: bool = False,
    ) -> None:
        super().__init__()
        _one_of("triplets", triplets, TRIPLETS)
        _one_of("pairs", pairs, get_args(PairKind))
        _one_of("triplet_form", triplet_form, get_args(TripletForm))
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0; got {temperature}")
        self.n_classes = n_classes
        self.triplets, self.pairs, self.triplet_form = triplets, pairs, triplet_form
        self.margin, self.positive_margin, self.negative_margin = margin, positive_margin, negative_margin
        self.triplet_weight, self.pair_weight, self.supcon_weight = triplet_weight, pair_weight, supcon_weight
        self.temperature = temperature
        self.across = across

    def forward(self, embeddings: Tensor, classes: Tensor, valid: Tensor) -> TupleLosses:
        """Compute the losses.

        Args:
            embeddings: [batch, voxels, dimensions], of unit length.
            classes: [batch, voxels], integers from 0 to n_classes - 1 where valid.
            valid: [batch, voxels], bool.
        """
        with torch.no_grad():
            collapse = spread(embeddings, valid)
        if self.across:
            row = mixed_rows(len(classes), classes.shape[1], classes.device)
            classes, valid = classes.gather(0, row), valid.gather(0, row)
            embeddings = embeddings.gather(0, row[..., None].expand_as(embeddings))
        drawn = random_pairs(classes, valid)
        mined = TRIPLETS[self.triplets](embeddings, classes, valid, self.n_classes, drawn)
        positive = distances(embeddings, _pick(embeddings, mined.positive))
        negative = distances(embeddings, _pick(embeddings, mined.negative))
        zero = embeddings.sum() * 0
        triplet = pair = supcon = zero
        if self.triplet_weight:
            triplet = triplet_margin_loss(positive, negative, mined.valid, self.margin, self.triplet_form)
        if self.pair_weight:
            pair = self._pair_loss(embeddings, classes, valid, drawn)
        if self.supcon_weight:
            supcon = supervised_contrastive_loss(embeddings, classes, valid, self.n_classes, self.temperature)
        loss = self.triplet_weight * triplet + self.pair_weight * pair + self.supcon_weight * supcon
        with torch.no_grad():
            statistics = _statistics(positive, negative, mined.valid, valid, self.margin)
        return TupleLosses(loss, triplet, pair, supcon, {**statistics, "spread": collapse})

    def _pair_loss(self, embeddings: Tensor, classes: Tensor, valid: Tensor, drawn: Pairs) -> Tensor:
        if self.pairs == "all":
            same = classes[:, :, None] == classes[:, None, :]
            itself = torch.eye(classes.shape[1], dtype=torch.bool, device=classes.device)
            exist = valid[:, :, None] & valid[:, None, :] & ~itself
            distance = all_distances(embeddings)
        else:
            pairs = drawn if self.pairs == "random" else hard_pairs(embeddings, classes, valid, self.n_classes)
            near, far = _pick(embeddings, pairs.positive), _pick(embeddings, pairs.negative)
            distance = distances(embeddings, torch.stack([near, far]))
            exist = torch.stack([pairs.positive_valid, pairs.negative_valid])
            same = torch.zeros_like(exist)
            same[0] = True
        return contrastive_loss(distance, same, exist, self.positive_margin, self.negative_margin)


class VoxelMetricLoss(VoxelBranch):
    """Metric loss on voxels that are sampled online from intermediate feature maps.

    Args:
        sampler: draws the voxels; default `HardEasySampler()`.
        head: None (features are the embeddings), an embedding size (one small perceptron for each map), or one
            module for each map that takes [..., channels].
        channels: channels of each map; needed where `head` is a size.
        pairs, margin, positive_margin, negative_margin, triplet_weight, pair_weight, triplets, triplet_form,
            supcon_weight, temperature, across: see `TupleObjective`.
        ignore_index: label of voxels that are never drawn.
    """

    def __init__(
        self,
        sampler: Sampler | None = None,
        head: int | nn.Module | Sequence[nn.Module] | None = None,
        channels: Sequence[int] | None = None,
        pairs: PairKind = "random",
        margin: float = 0.2,
        positive_margin: float = 0.2,
        negative_margin: float = 1.0,
        triplet_weight: float = 1.0,
        pair_weight: float = 1.0,
        ignore_index: int = -100,
        *,
        triplets: TripletKind = "semi_hard",
        triplet_form: TripletForm = "hinge",
        supcon_weight: float = 0.0,
        temperature: float = 0.1,
        across: bool = False,
    ) -> None:
        super().__init__(sampler, head, channels, ignore_index)
        self.objective = TupleObjective(
            self.sampler.classes,
            triplets,
            pairs,
            triplet_form,
            margin,
            positive_margin,
            negative_margin,
            triplet_weight,
            pair_weight,
            supcon_weight,
            temperature,
            across,
        )

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
        maps = self.maps_of(features)
        sample = self.sample(labels, logits, spacing_mm)
        parts = []
        for tap, feature_map in enumerate(maps):
            embeddings = self.embed(feature_map, sample.index, labels.shape[1:], tap)
            with without_autocast(embeddings.device):
                parts.append(self.objective(embeddings, sample.classes, sample.valid))
        loss, triplet, pair, supcon = (torch.stack([part[k] for part in parts]).mean() for k in range(4))
        statistics = {k: torch.stack([p.statistics[k] for p in parts]).mean() for k in parts[0].statistics}
        statistics["hard_voxels"] = sample.hard.float().mean()
        statistics["valid_voxels"] = sample.valid.float().mean()
        return VoxelMetricOutput(loss, triplet, pair, sample, statistics, supcon)


def _statistics(
    positive: Tensor, negative: Tensor, exists: Tensor, valid: Tensor, margin: float
) -> dict[str, Tensor]:
    count = exists.sum().clamp(min=1)
    active = exists & (positive - negative + margin > 0)
    return {
        "active_triplets": active.sum() / valid.sum().clamp(min=1),
        "positive_distance": (positive * exists).sum() / count,
        "negative_distance": (negative * exists).sum() / count,
    }


def _pick(embeddings: Tensor, index: Tensor) -> Tensor:
    return embeddings.gather(1, index[..., None].expand(-1, -1, embeddings.shape[2]))


def _one_of(name: str, value: str, known: Iterable[str]) -> None:
    known = list(known)
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")
