"""The conventional baseline: tuples of image patches drawn once before training, embedded as a whole.

A patch has the class of its middle voxel. Its embedding is the network's bottleneck, pooled over the patch and
sent through a head; the losses are those of the online branch. What differs is what the online branch is measured
against: the tuples never change, they know nothing of the network's errors, and of a patch only its mean survives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metricunet.metric.branch import build_heads, spread, without_autocast
from metricunet.metric.losses import TripletForm, contrastive_loss, distances, triplet_margin_loss
from metricunet.metric.sampling import HardEasySampler, Sampler


@dataclass(frozen=True, eq=False)
class PatchTuples:
    """Triplets of patches; the pairs are anchor and positive, anchor and negative.

    Attributes:
        centres: [tuples, 3, 1 + axes], int64: image and middle voxel of anchor, positive and negative.
        classes: [tuples, 3], int64: class of each middle voxel.
    """

    centres: Tensor
    classes: Tensor

    def of_update(self, update: int, size: int) -> PatchTuples:
        """Return the `size` tuples of an update; the list is gone through again and again in its order."""
        place = (update * size + torch.arange(size, device=self.centres.device)) % len(self.centres)
        return PatchTuples(self.centres[place], self.classes[place])


def draw_patch_tuples(
    labels: Tensor,
    tuples: int,
    seed: int,
    *,
    sampler: Sampler | None = None,
    spacing_mm: Sequence[float] | None = None,
    ignore_index: int = -100,
) -> PatchTuples:
    """Draw the tuples of a whole training, before it begins.

    The sampler draws the candidates of each image once. Anchors take the classes in turn; positives and negatives
    come from any image.

    Args:
        labels: [images, *space], integers.
        tuples: how many.
        seed: the same seed gives the same tuples; torch's own random state is left as it was.
        sampler: one that needs no logits; default `HardEasySampler()`.
        spacing_mm: voxel spacing along each axis of the space; None means 1 along each.
        ignore_index: label of voxels that count for no class.

    Raises:
        ValueError: fewer than two classes are there, or one has a single voxel.
    """
    drawn = HardEasySampler() if sampler is None else sampler
    with torch.random.fork_rng([labels.device] if labels.device.type == "cuda" else []):
        torch.manual_seed(seed)
        places, kinds = [], []
        for image in range(len(labels)):
            sample = drawn(labels[image : image + 1], None, spacing_mm, ignore_index)
            index = sample.index[sample.valid]
            place = torch.stack(torch.unravel_index(index, labels.shape[1:]), dim=1)
            places.append(torch.cat([torch.full_like(place[:, :1], image), place], dim=1))
            kinds.append(sample.classes[sample.valid])
        place, kind = torch.cat(places), torch.cat(kinds)
        present = [c for c in range(drawn.classes) if bool((kind == c).any())]
        if len(present) < 2 or any(int((kind == c).sum()) < 2 for c in present):
            raise ValueError(f"patch tuples need two classes of two voxels or more; found classes {present}")
        chosen = torch.zeros((tuples, 3), dtype=torch.int64, device=labels.device)
        for k, c in enumerate(present):
            anchors = slice(k, None, len(present))
            number = len(chosen[anchors])
            own, other = (kind == c).nonzero()[:, 0], (kind != c).nonzero()[:, 0]
            anchor = torch.randint(len(own), (number,), device=labels.device)
            # A step of at least one place, so that no anchor is its own positive.
            step = 1 + torch.randint(len(own) - 1, (number,), device=labels.device)
            negative = torch.randint(len(other), (number,), device=labels.device)
            chosen[anchors] = torch.stack([own[anchor], own[(anchor + step) % len(own)], other[negative]], dim=1)
    return PatchTuples(place[chosen], kind[chosen])


def read_patches(images: Tensor, centres: Tensor, patch: Sequence[int]) -> Tensor:
    """Cut patches out of images; one that would stick out is moved back inside.

    Args:
        images: [images, *space].
        centres: [patches, 1 + axes], int64: image and middle voxel.
        patch: sides in voxels, none longer than the image's.

    Returns:
        [patches, *patch].
    """
    sides = images.shape[1:]
    if len(patch) != len(sides) or any(p > s for p, s in zip(patch, sides, strict=False)):
        raise ValueError(f"patches of {tuple(patch)} voxels do not fit into images of {tuple(sides)}")
    index = [centres[:, 0].reshape(-1, *[1] * len(sides))]
    for axis, (length, side) in enumerate(zip(patch, sides, strict=True)):
        first = (centres[:, 1 + axis] - length // 2).clamp(0, side - length)
        run = first[:, None] + torch.arange(length, device=centres.device)
        index.append(run.reshape(-1, *[length if a == axis else 1 for a in range(len(sides))]))
    return images[tuple(index)]


class PatchMetricOutput(NamedTuple):
    """What `PatchMetricLoss` returns: as `VoxelMetricOutput`, without a sample of voxels."""

    loss: Tensor
    triplet: Tensor
    pair: Tensor
    statistics: dict[str, Tensor]


class PatchMetricLoss(torch.nn.Module):
    """Triplet and pair loss on the pooled bottleneck features of patch tuples.

    Args:
        channels: of the bottleneck.
        head: embedding size.
        margin, positive_margin, negative_margin, triplet_weight, pair_weight, triplet_form: as in
            `VoxelMetricLoss`.
    """

    def __init__(
        self,
        channels: int,
        head: int = 32,
        margin: float = 0.2,
        positive_margin: float = 0.2,
        negative_margin: float = 1.0,
        triplet_weight: float = 1.0,
        pair_weight: float = 1.0,
        triplet_form: TripletForm = "hinge",
    ) -> None:
        super().__init__()
        self.heads = build_heads(head, [channels])
        self.margin, self.positive_margin, self.negative_margin = margin, positive_margin, negative_margin
        self.triplet_weight, self.pair_weight, self.triplet_form = triplet_weight, pair_weight, triplet_form

    def forward(self, bottleneck: Tensor) -> PatchMetricOutput:
        """Compute the loss.

        Args:
            bottleneck: [3 tuples, channels, *space]: anchor, positive and negative of each tuple in turn.
        """
        assert self.heads is not None
        projected = self.heads[0](bottleneck.flatten(2).mean(dim=2))
        projected = projected if projected.dtype == torch.float64 else projected.float()
        with without_autocast(projected.device):
            embeddings = F.normalize(projected, dim=-1).reshape(-1, 3, projected.shape[-1])
            anchor, positive, negative = embeddings.unbind(1)
            near, far = distances(anchor, positive), distances(anchor, negative)
            exists = torch.ones_like(near, dtype=torch.bool)
            triplet = triplet_margin_loss(near, far, exists, self.margin, self.triplet_form)
            both = torch.stack([exists, ~exists])
            pair = contrastive_loss(
                torch.stack([near, far]), both, torch.ones_like(both), self.positive_margin, self.negative_margin
            )
        with torch.no_grad():
            everything = embeddings.detach().flatten(0, 1)[None]
            statistics = {
                "active_triplets": (near - far + self.margin > 0).float().mean(),
                "positive_distance": near.mean(),
                "negative_distance": far.mean(),
                "spread": spread(everything, torch.ones_like(everything[..., 0], dtype=torch.bool)),
            }
        return PatchMetricOutput(
            self.triplet_weight * triplet + self.pair_weight * pair, triplet, pair, statistics
        )
