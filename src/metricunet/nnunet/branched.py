"""nnU-Net's loss with the branch beside it: maps from its decoder, labels and scores from its targets.

Nothing here imports nnU-Net; what its trainer hands over are tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metricunet.errors import InputError
from metricunet.metric import GradientShare
from metricunet.structures import IGNORE_CLASS
from metricunet.training.config import MetricConfig


class Taps:
    """Keeps what some modules of a network return while it trains, until it is taken.

    Args:
        modules: the modules, in the order in which their maps are taken.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._maps: dict[int, Tensor] = {}
        for number, module in enumerate(modules):
            module.register_forward_hook(self._keeper(number))

    def _keeper(self, number: int) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if module.training:
                self._maps[number] = output

        return keep

    def take(self) -> list[Tensor]:
        """Return the maps of the last forward pass, and let go of them; empty where it was no training."""
        taken = [self._maps[number] for number in sorted(self._maps)]
        self._maps.clear()
        return taken


class BranchedLoss(nn.Module):
    """nnU-Net's loss and, while it trains, the weighted loss of the branch.

    Args:
        segmentation: nnU-Net's loss of outputs and targets, lists of them under deep supervision.
        branch: the loss on sampled voxels.
        taps: where the branch's maps come from.
        metric: settings of the weight.
        spacing_mm: voxel spacing along each axis of a patch.
        regions: number of regions that the network predicts by sigmoid; 0 where it predicts labels by softmax.
        ignore_label: label of voxels that nobody annotated; None where there are none. With regions it is the
            last channel of the targets.

    Attributes:
        updates: number of updates that the branch has seen; its weight rises over the first ones.
        facts: scalars of the last update: `segmentation`; the branch's loss, weight, parts and statistics.
    """

    def __init__(
        self,
        segmentation: nn.Module,
        branch: nn.Module,
        taps: Taps,
        metric: MetricConfig,
        spacing_mm: Sequence[float],
        regions: int = 0,
        ignore_label: int | None = None,
    ) -> None:
        super().__init__()
        self.segmentation, self.branch, self.taps, self.metric = segmentation, branch, taps, metric
        self.spacing_mm = tuple(float(step) for step in spacing_mm)
        self.regions, self.ignore_label = regions, ignore_label
        self.share = GradientShare(metric.weight) if metric.weight_as == "gradient_share" else None
        self.updates = 0
        self.facts: dict[str, Tensor] = {}

    def forward(self, output: Tensor | Sequence[Tensor], target: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the loss of a batch; in evaluation it is nnU-Net's alone."""
        loss: Tensor = self.segmentation(output, target)
        maps = self.taps.take()
        if not self.training:
            return loss
        finest = output if isinstance(output, Tensor) else output[0]
        wanted = target if isinstance(target, Tensor) else target[0]
        labels = class_labels(wanted, self.regions, self.ignore_label)
        scores = region_scores(finest.detach()) if self.regions else finest.detach()
        height = min(1.0, self.updates / self.metric.warm_up_updates) if self.metric.warm_up_updates else 1.0
        if self.share is None:
            weight = loss.new_tensor(self.metric.weight * height)
        else:
            weight = self.share.weight(height)
            maps = self.share.watched(maps, weight)
        out = self.branch(maps, labels, logits=scores, spacing_mm=self.spacing_mm)
        self.updates += 1
        self.facts = {
            "segmentation": loss.detach(),
            "loss": out.loss.detach(),
            "weight": weight,
            **{name: part.detach() for name, part in out.parts.items()},
            **out.statistics,
        }
        whole: Tensor = loss + weight * out.loss
        return whole


def tapped_modules(network: nn.Module, taps: Sequence[int]) -> tuple[list[nn.Module], list[int]]:
    """Find the modules of an nnU-Net decoder whose maps the branch reads, and the channels of these maps.

    Args:
        network: the network, neither compiled nor wrapped.
        taps: decoder maps, 0 the finest.

    Raises:
        InputError: the network has no such decoder, or not that many maps.
    """
    decoder = getattr(network, "decoder", None)
    stages, heads = getattr(decoder, "stages", None), getattr(decoder, "seg_layers", None)
    if not isinstance(stages, nn.ModuleList) or not isinstance(heads, nn.ModuleList):
        raise InputError(
            f"{type(network).__name__} has no decoder with stages to read maps from; use the plans of a U-Net, "
            "such as nnUNetPlans or nnUNetResEncUNetMPlans"
        )
    if max(taps) >= len(stages):
        raise InputError(
            f"setting metric.taps is {list(taps)}, but this network has decoder maps 0 to {len(stages) - 1}"
        )
    # nnU-Net counts its decoder's stages from the coarsest one on.
    return [stages[-1 - tap] for tap in taps], [_channels(heads[-1 - tap]) for tap in taps]


def _channels(head: Any) -> int:
    """Return the channels of the map that a layer segments."""
    return int(head.in_channels)


def class_labels(target: Tensor, regions: int = 0, ignore_label: int | None = None) -> Tensor:
    """Turn the targets of nnU-Net into one label for each voxel.

    Regions may overlap; as in nnU-Net's predictions the later one wins.

    Args:
        target: [batch, 1, *space], labels; or [batch, regions, *space], 1 in a region, with a further channel of
            what nobody annotated where there is an `ignore_label`.
        regions: number of regions; 0 for labels.
        ignore_label: label of voxels that nobody annotated; None where there are none.

    Returns:
        int64 [batch, *space]: 0 is background, `IGNORE_CLASS` what nobody annotated.
    """
    if not regions:
        labels = target[:, 0].long()
        return labels if ignore_label is None else labels.masked_fill(labels == ignore_label, IGNORE_CLASS)
    inside = target > 0.5 if target.is_floating_point() else target.bool()
    labels = torch.zeros_like(inside[:, 0], dtype=torch.long)
    for region in range(regions):
        labels = labels.masked_fill(inside[:, region], region + 1)
    return labels if ignore_label is None else labels.masked_fill(inside[:, -1], IGNORE_CLASS)


def region_scores(logits: Tensor) -> Tensor:
    """Turn the logits of regions into scores of classes, the largest of which is the class that nnU-Net predicts.

    A voxel is of class k where it is in region k and in no later one, and background where it is in none. The
    score is the smallest of the logits for that, so that it is above 0 for one class alone.

    Args:
        logits: [batch, regions, *space], above 0 in a region.

    Returns:
        [batch, regions + 1, *space].
    """
    outside_later = torch.full_like(logits[:, 0], torch.inf)
    scores = []
    for region in reversed(range(logits.shape[1])):
        scores.append(torch.minimum(logits[:, region], outside_later))
        outside_later = torch.minimum(outside_later, -logits[:, region])
    return torch.stack([outside_later, *reversed(scores)], dim=1)
