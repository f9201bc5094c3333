"""The conventional baseline: tuples of image patches are drawn once before training and embedded as a whole.

A patch has the class of its middle voxel. Its embedding is the network's bottleneck, pooled over the patch and
sent through a head; the losses are those of the online branch. The online branch is measured against what differs:
the tuples never change, they know nothing of the network's errors, and of a patch only its mean survives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from metricunet.metric.branches import build_heads, spread, through, unit_length, without_autocast
from metricunet.metric.losses import (
    MetricOutput,
    TupleOptions,
    contrastive_loss,
    distances,
    triplet_margin_loss,
    triplet_statistics,
)
from metricunet.metric.sampling import HardEasySampler, Sampler, seeded


@dataclass(frozen=True, eq=False)
class PatchTuples:
    """Triplets of patches; the pairs are anchor and positive, anchor and negative.

    Attributes:
        centres: [tuples, 3, 1 + axes], int64: image and middle voxel of anchor, positive and negative.
        classes: [tuples, 3], int64: the class of each middle voxel.
    """

    centres: Tensor
    classes: Tensor

    def of_update(self, update: int, size: int) -> PatchTuples:
        """Return the `size` tuples of an update; updates walk through the list in its order, again and again."""
        chosen = (update * size + torch.arange(size, device=self.centres.device)) % len(self.centres)
        return PatchTuples(self.centres[chosen], self.classes[chosen])


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
        tuples: how many to draw.
        seed: decides the tuples; torch's own random state is left as it was.
        sampler: a sampler that needs no logits; the default is `HardEasySampler()`.
        spacing_mm: voxel spacing along each axis of the space; None means 1 along each.
        ignore_index: label of voxels that count for no class.

    Raises:
        ValueError: fewer than two classes are present, or one has a single voxel.
    """
    drawn = HardEasySampler() if sampler is None else sampler
    with seeded(seed, labels.device):
        centres, kinds = [], []
        for image in range(len(labels)):
            sample = drawn(labels[image : image + 1], None, spacing_mm, ignore_index)
            index = sample.index[sample.valid]
            voxel = torch.stack(torch.unravel_index(index, labels.shape[1:]), dim=1)
            centres.append(torch.cat([torch.full_like(voxel[:, :1], image), voxel], dim=1))
            kinds.append(sample.classes[sample.valid])
        centre, kind = torch.cat(centres), torch.cat(kinds)
        present = [c for c in range(drawn.classes) if bool((kind == c).any())]
        if len(present) < 2 or any(int((kind == c).sum()) < 2 for c in present):
            raise ValueError(f"patch tuples need two classes of two voxels or more; found classes {present}")
        chosen = torch.zeros((tuples, 3), dtype=torch.int64, device=labels.device)
        for k, c in enumerate(present):
            anchors = slice(k, None, len(present))
            number = len(chosen[anchors])
            own, other = (kind == c).nonzero()[:, 0], (kind != c).nonzero()[:, 0]
            anchor = torch.randint(len(own), (number,), device=labels.device)
            # A step of at least one, so that no anchor is its own positive.
            step = 1 + torch.randint(len(own) - 1, (number,), device=labels.device)
            negative = torch.randint(len(other), (number,), device=labels.device)
            chosen[anchors] = torch.stack([own[anchor], own[(anchor + step) % len(own)], other[negative]], dim=1)
    return PatchTuples(centre[chosen], kind[chosen])


def read_patches(images: Tensor, centres: Tensor, patch: Sequence[int]) -> Tensor:
    """Cut patches out of images; one that would stick out is moved back inside.

    Args:
        images: [images, *space].
        centres: [patches, 1 + axes], int64: image and middle voxel.
        patch: sides in voxels, none longer than the image's.

    Returns:
        [patches, *patch].

    Raises:
        ValueError: a side of the patch is longer than that of the images, or there are more or fewer sides.
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


class PatchMetricLoss(torch.nn.Module):
    """Triplet and pair loss on the pooled bottleneck features of patch tuples.

    Args:
        channels: channels of the bottleneck.
        head: embedding size.
        options: the margins, the weights of the triplet and the pair loss, the form of the triplet loss, and what
            means are over; the other options have no meaning here.
        **settings: single options by their names, over `options`.
    """

    def __init__(
        self, channels: int, head: int = 32, options: TupleOptions | None = None, **settings: Any
    ) -> None:
        super().__init__()
        self.heads = build_heads(head, [channels])
        self.options = replace(options or TupleOptions(), **settings)

    def forward(self, bottleneck: Tensor) -> MetricOutput:
        """Compute the loss.

        Args:
            bottleneck: [3 tuples, channels, *space]: anchor, positive and negative of each tuple in turn.
        """
        assert self.heads is not None
        options = self.options
        projected = through(self.heads[0], bottleneck.flatten(2).mean(dim=2))
        with without_autocast(projected.device):
            embeddings = unit_length(projected).reshape(-1, 3, projected.shape[-1])
            anchor, positive, negative = embeddings.unbind(1)
            near, far = distances(anchor, positive), distances(anchor, negative)
            exists = torch.ones_like(near, dtype=torch.bool)
            triplet = triplet_margin_loss(
                near, far, exists, options.margin, options.triplet_form, options.mean_over
            )
            both = torch.stack([exists, ~exists])
            pair = contrastive_loss(
                torch.stack([near, far]),
                both,
                torch.ones_like(both),
                options.positive_margin,
                options.negative_margin,
                options.mean_over,
            )
        statistics = triplet_statistics(near, far, exists, exists.sum(), options.margin)
        everything = embeddings.flatten(0, 1)[None]
        statistics["spread"] = spread(everything, torch.ones_like(everything[..., 0], dtype=torch.bool))
        loss = options.triplet_weight * triplet + options.pair_weight * pair
        return MetricOutput(loss, {"triplet": triplet, "pair": pair}, statistics)
