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
from torch import Generator, Tensor

from metricunet.metric.branch import build_heads, spread, without_autocast
from metricunet.metric.hardness import boundary_band
from metricunet.metric.losses import TripletForm, contrastive_loss, distances, triplet_margin_loss


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
    generator: Generator,
    *,
    classes: int = 2,
    hard_share: float = 0.5,
    band_mm: float = 3.0,
    spacing_mm: Sequence[float] | None = None,
    ignore_index: int = -100,
) -> PatchTuples:
    """Draw the tuples of a whole training, before it begins.

    Anchors take the classes in turn. Of anchors, positives and negatives alike `hard_share` lie within `band_mm`
    of another class (where there are such), the others anywhere else in their class, in any image.

    Args:
        labels: [images, *space], integers.
        tuples: how many.
        generator: on the device of `labels`; the same seed gives the same tuples.
        classes: number of classes, background included.
        hard_share: share of voxels near a surface, 0 to 1.
        band_mm: half width of the band around the surface.
        spacing_mm: voxel spacing along each axis of the space; None means 1 along each.
        ignore_index: label of voxels that count for no class.

    Raises:
        ValueError: fewer than two classes are there, or one has a single voxel.
    """
    near = boundary_band(labels, band_mm, spacing_mm, classes, ignore_index)
    pools: dict[int, tuple[Tensor, Tensor]] = {}
    for c in range(classes):
        member = labels == c
        if member.any():
            pools[c] = ((member & near).nonzero(), (member & ~near).nonzero())
    present = sorted(pools)
    if len(present) < 2 or min(len(hard) + len(easy) for hard, easy in pools.values()) < 2:
        raise ValueError(f"patch tuples need two classes of two voxels or more; found classes {present}")

    def draw(number: int, c: int) -> Tensor:
        return _from_pools(*pools[c], number, hard_share, generator)

    centres = labels.new_zeros((tuples, 3, labels.dim()), dtype=torch.int64)
    kinds = labels.new_zeros((tuples, 3), dtype=torch.int64)
    for k, c in enumerate(present):
        rows = torch.arange(k, tuples, len(present), device=labels.device)
        anchors, positives = draw(len(rows), c), draw(len(rows), c)
        # An anchor is not its own positive: one that was drawn twice takes the next anchor's.
        twice = (anchors == positives).all(dim=1, keepdim=True)
        centres[rows, 0], centres[rows, 1] = anchors, torch.where(twice, anchors.roll(1, 0), positives)
        kinds[rows, :2] = c
        others = [o for o in present if o != c]
        for m, other in enumerate(others):
            part = rows[m :: len(others)]
            centres[part, 2], kinds[part, 2] = draw(len(part), other), other
    return PatchTuples(centres, kinds)


def _from_pools(hard: Tensor, easy: Tensor, number: int, hard_share: float, generator: Generator) -> Tensor:
    """Draw voxels [number, 1 + axes] with replacement, `hard_share` of them from the first pool."""
    n_hard = round(number * hard_share)
    n_hard = 0 if not len(hard) else number if not len(easy) else n_hard
    parts = [
        pool[torch.randint(max(1, len(pool)), (n,), generator=generator, device=pool.device)]
        for pool, n in ((hard, n_hard), (easy, number - n_hard))
        if n
    ]
    drawn = torch.cat(parts) if parts else hard[:0]
    return drawn[torch.randperm(number, generator=generator, device=drawn.device)]


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
