"""Part `metric`: a training step of a plain U-Net with the voxel-metric loss and without it, in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from metricunet.metric import GraphedBranch, VoxelMetricLoss
from metricunet.networks import UNet
from metricunet.networks.device import keep_freed_memory
from metricunet.progress import Progress
from metricunet.stages.network_input import autocast
from metricunet.training.branch import build_metric
from metricunet.training.config import TrainConfig, load_config
from metricunet.training.objectives import segmentation_loss
from metricunet.workflows.bench.result import MeasuredOn, Result, Row
from metricunet.workflows.bench.timing import Ratio, Times, alternate, counter

PAIRS = 20
CLASSES = 2
#: Highest ratio of a step with the loss to one without it, by preset.
TARGETS = {"default": 1.05, "small": 1.15}
Precision = Literal["bf16", "fp32"]
PRECISIONS: tuple[Precision, ...] = ("bf16", "fp32")


def bench_metric(
    preset: str,
    device: torch.device,
    *,
    pairs: int | None = None,
    settings: Sequence[str] = (),
    progress: Progress | None = None,
) -> Result:
    """Measure what the voxel-metric loss adds to a training step.

    Args:
        preset: preset of the training.
        device: device to compute on.
        pairs: number of pairs of a step without the loss and one with it, in each precision.
        settings: settings of the training over the preset, as `section.key=value`.
        progress: called with (done, all).

    Raises:
        InputError: an unknown preset or setting.
    """
    config = load_config(preset, settings=list(settings))
    keep_freed_memory()
    pairs = pairs or PAIRS
    advance = counter(2 * len(PRECISIONS) * pairs, progress)
    rows = {}
    for precision in PRECISIONS:
        step = TrainingStep(config, precision, device)
        runs = {"without": lambda step=step: step(False), "with": lambda step=step: step(True)}
        seconds = alternate(runs, pairs, device, advance=advance)
        ratio = Ratio.of(seconds["with"], seconds["without"])
        verdict = "met" if ratio.median <= TARGETS[preset] else "MISSED"
        for name, found in seconds.items():
            rows[f"{name}_{precision}"] = Row(f"training step {name} the loss, {precision}", Times.of(found))
        target = f"target at most {TARGETS[preset]:.2f} {verdict}"
        rows[f"ratio_{precision}"] = Row(f"with / without, {precision}", ratio, against=target)
    return Result("metric", MeasuredOn.of(device), {"preset": preset}, rows)


class TrainingStep:
    """A training step of a U-Net as wide as stage 2's on a fixed batch, with the loss or without it.

    Args:
        config: configuration of the training.
        precision: precision to compute in.
        device: device to compute on.
    """

    def __init__(self, config: TrainConfig, precision: Precision, device: torch.device) -> None:
        torch.manual_seed(0)
        stage = config.segment
        side = [round(mm / step) for mm, step in zip(stage.crop_mm[1:], stage.spacing_mm[1:], strict=True)]
        self.config, self.precision, self.device = config, precision, device
        self.network = UNet(stage.slices, CLASSES, stage.base_channels, stage.levels).to(device)
        metric = build_metric(self.network, config, CLASSES)
        assert isinstance(metric, VoxelMetricLoss)
        self.metric = metric.to(device)
        self.graphed = GraphedBranch(self.metric)
        parameters = [*self.network.parameters(), *self.metric.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, stage.learning_rate, fused=True)
        self.images = torch.randn(stage.batch_size, stage.slices, *side, device=device)
        self.labels = ellipses(stage.batch_size, side).to(device)

    def __call__(self, with_loss: bool) -> None:
        """Take one step."""
        with autocast(self.precision, self.device):
            logits, maps, _ = self.network.forward_with_maps(self.images)
        loss = segmentation_loss(logits, self.labels, 1.0, 1.0)
        if with_loss:
            with autocast(self.precision, self.device):
                taps = [maps[tap] for tap in self.config.metric.taps]
                out = self.graphed(taps, self.labels, logits, self.config.segment.spacing_mm[1:])
            loss = loss + self.config.metric.weight * out.loss
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()


def ellipses(batch: int, sides: Sequence[int]) -> Tensor:
    """Return labels [batch, *sides] with an ellipse a third as wide as the image in its middle."""
    axes = [((torch.arange(n) - (n - 1) / 2) / (n / 6)).square() for n in sides]
    inside = torch.stack(torch.meshgrid(*axes, indexing="ij")).sum(dim=0) < 1
    return inside.to(torch.uint8).repeat(batch, *[1] * len(sides))
