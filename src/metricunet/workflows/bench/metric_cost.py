"""Measuring the metric branch: a training step with it and without, and the branch alone.

Steps with and without the branch alternate in one process, so that both see the same machine.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity

from metricunet.metric import (
    GraphedBranch,
    HardEasySampler,
    PatchMetricLoss,
    Sample,
    TupleOptions,
    VoxelMetricLoss,
    tuple_losses,
)
from metricunet.networks import build_network
from metricunet.networks.feeding import autocast
from metricunet.training.branch import build_metric
from metricunet.training.card import segment_network
from metricunet.training.config import TrainConfig, load_config
from metricunet.training.objectives import segmentation_loss
from metricunet.workflows.bench.timing import Ratio, Times, alternate, seconds

#: Highest ratio of a step with the branch to one without it, by preset.
RATIO_TARGETS = {"default": 1.05, "small": 1.15}
#: Memory beyond the features and their gradient, at `MEMORY_VOXELS` voxels of an image of `MEMORY_SIDE` cubed.
MEMORY_TARGET_MIB = 64.0
MEMORY_SIDE, MEMORY_VOXELS, MEMORY_CHANNELS = 128, 512, 16
#: Sides of cubes, and numbers of voxels, over which growth is measured.
SIDES = (32, 64, 128)
VOXELS = (256, 512, 1024, 2048)
CLASSES = 2
#: What is run of pytorch-metric-learning, and whether with all pairs.
REFERENCES = {"triplets": False, "triplets and all pairs": True}
Precision = Literal["bf16", "fp32"]


@dataclass(frozen=True)
class StepCost:
    """One preset in one precision.

    Attributes:
        preset, precision: of the training.
        pairs: how many pairs of steps.
        without_s, with_s: median time of a step.
        ratio: median of the pairs' ratios.
        quartiles: first and third quartile of the ratios.
        target: what the ratio should not exceed.
    """

    preset: str
    precision: Precision
    pairs: int
    without_s: float
    with_s: float
    ratio: float
    quartiles: tuple[float, float]
    target: float


@dataclass(frozen=True)
class Growth:
    """How the branch alone grows: sizes, least seconds of forward and backward, exponent of the last step."""

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    exponent: float


class TrainingStep:
    """A training step of stage 2 on a fixed batch, with the branch or without it.

    Args:
        config: of the training.
        precision: to compute in.
        device: to compute on.
    """

    def __init__(self, config: TrainConfig, precision: Precision, device: torch.device) -> None:
        torch.manual_seed(0)
        stage = config.segment
        side = [round(mm / step) for mm, step in zip(stage.crop_mm[1:], stage.spacing_mm[1:], strict=True)]
        self.config, self.precision, self.device = config, precision, device
        self.network = build_network(**segment_network(config, CLASSES)).to(device)
        branch = build_metric(self.network, config, CLASSES)
        assert branch is not None
        assert not isinstance(branch, PatchMetricLoss)
        self.branch = branch.to(device)
        self.on_voxels = GraphedBranch(self.branch)  # as training calls it
        parameters = [*self.network.parameters(), *self.branch.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, stage.learning_rate, fused=True)
        self.images = torch.randn(stage.batch_size, stage.slices, *side, device=device)
        self.labels = ellipses(stage.batch_size, side).to(device)

    def __call__(self, with_branch: bool) -> None:
        """Take one step."""
        with autocast(self.precision, self.device):
            logits, maps, _ = self.network.forward_with_maps(self.images)
        loss = segmentation_loss(logits, self.labels, 1.0, 1.0)
        if with_branch:
            with autocast(self.precision, self.device):
                taps = [maps[tap] for tap in self.config.metric.taps]
                out = self.on_voxels(taps, self.labels, logits, self.config.segment.spacing_mm[1:])
            loss = loss + self.config.metric.weight * out.loss
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()


def step_cost(
    preset: str, precision: Precision, pairs: int, device: torch.device, advance: Callable[[], None]
) -> StepCost:
    """Time training steps with and without the branch, in turn; `advance` is called after each step."""
    step = TrainingStep(load_config(preset), precision, device)
    runs = {"without": lambda: step(False), "with": lambda: step(True)}
    times = alternate(runs, pairs, device, advance=advance)
    ratio = Ratio.of(times["with"], times["without"])
    return StepCost(
        preset,
        precision,
        pairs,
        Times.of(times["without"]).median_s,
        Times.of(times["with"]).median_s,
        ratio.median,
        ratio.quartiles,
        RATIO_TARGETS.get(preset, RATIO_TARGETS["default"]),
    )


def ellipses(batch: int, sides: Sequence[int]) -> Tensor:
    """Return labels [batch, *sides] with an ellipse a third as wide as the image, a little elsewhere in each."""
    axes = [torch.arange(n, dtype=torch.float32) for n in sides]
    labels = torch.zeros(batch, *sides, dtype=torch.uint8)
    for k in range(batch):
        squared = torch.zeros(*sides)
        for axis, n in enumerate(sides):
            place = (axes[axis] - n * (0.45 + 0.1 * ((k + axis) % 3) / 2)) / (n / 6)
            squared = squared + place.square().reshape([-1 if a == axis else 1 for a in range(len(sides))])
        labels[k] = squared < 1
    return labels


@dataclass(frozen=True)
class BranchAlone:
    """The branch on one cubic image, without a network.

    Attributes:
        metric: the branch.
        features: [1, channels, side, side, side], with a gradient.
        labels, logits: on the same grid.
    """

    metric: VoxelMetricLoss
    features: Tensor
    labels: Tensor
    logits: Tensor

    @staticmethod
    def of(device: torch.device, side: int, voxels: int) -> BranchAlone:
        """Draw features and logits; the labels are an ellipsoid."""
        torch.manual_seed(0)
        metric = VoxelMetricLoss(HardEasySampler(voxels), head=32, channels=[MEMORY_CHANNELS]).to(device)
        features = torch.randn(1, MEMORY_CHANNELS, side, side, side, device=device, requires_grad=True)
        logits = torch.randn(1, CLASSES, side, side, side, device=device)
        return BranchAlone(metric, features, ellipses(1, [side] * 3).to(device), logits)

    def forward(self) -> Tensor:
        """Return the loss."""
        loss: Tensor = self.metric(self.features, self.labels, self.logits, (1.0, 1.0, 1.0)).loss
        return loss

    def forward_and_backward(self) -> Tensor:
        """Return the features with a fresh gradient."""
        self.features.grad = None
        torch.autograd.backward(self.forward())
        return self.features


def memory_mib(device: torch.device) -> float:
    """Measure the branch's peak memory beyond the features and their gradient, in MiB.

    The larger of the peak of the forward pass alone, and of both passes less the gradient.
    """
    alone = BranchAlone.of(device, MEMORY_SIDE, MEMORY_VOXELS)
    alone.forward_and_backward().grad = None
    gradient = alone.features.numel() * alone.features.element_size()
    forward = _peak_bytes(alone.forward, device)
    both = _peak_bytes(alone.forward_and_backward, device)
    return max(forward, both - gradient) / 2**20


def _peak_bytes(run: Callable[[], Tensor], device: torch.device) -> int:
    """Return how much more memory torch held while it ran than before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with _quiet(), torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    assert seen.profiler is not None
    held = peak = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the profiler's own chatter, written by C++ code to standard error, from the user's screen."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def growth(sizes: Sequence[int], build: Callable[[int], Callable[[], Tensor]], power: int = 1) -> Growth:
    """Time a function at each size; `power` tells how the amount of work follows from the size."""
    least = []
    for size in sizes:
        run = build(size)
        # The least, for growth is a property of the program and the rest is the machine's other work.
        least.append(min(_seconds(run, 7)))
    amounts = [size**power for size in sizes[-2:]]
    exponent = torch.tensor(least[-1] / least[-2]).log() / torch.tensor(amounts[1] / amounts[0]).log()
    return Growth(tuple(size**power for size in sizes), tuple(least), float(exponent))


def beside(device: torch.device) -> tuple[float, dict[str, float]]:
    """Time mining, losses and gradient on the same embeddings, here and in pytorch-metric-learning."""
    torch.manual_seed(0)
    batch, dimensions = 8, 32
    labels = ellipses(batch, [128, 128]).to(device)
    sample: Sample = HardEasySampler(MEMORY_VOXELS)(labels, None, (1.0, 1.0))
    raw = torch.randn(batch, MEMORY_VOXELS, dimensions, device=device)
    embeddings = torch.nn.functional.normalize(raw, dim=-1).requires_grad_()
    options = TupleOptions()

    def ours() -> Tensor:
        embeddings.grad = None
        torch.autograd.backward(tuple_losses(embeddings, sample.classes, sample.valid, CLASSES, options).loss)
        return embeddings

    found = min(_seconds(ours, 7))
    try:
        from pytorch_metric_learning import losses, miners
    except ImportError:
        return found, {}
    miner = miners.BatchEasyHardMiner(pos_strategy="easy", neg_strategy="semihard")
    triplet = losses.TripletMarginLoss(margin=options.margin)
    pair = losses.ContrastiveLoss(pos_margin=options.positive_margin, neg_margin=options.negative_margin)

    def theirs(with_pairs: bool) -> Callable[[], Tensor]:
        def run() -> Tensor:
            embeddings.grad = None
            total = embeddings.sum() * 0
            for e, c, v in zip(embeddings, sample.classes, sample.valid, strict=True):
                total = total + triplet(e[v], c[v], miner(e[v], c[v]))
                if with_pairs:
                    total = total + pair(e[v], c[v])
            torch.autograd.backward(total)
            return embeddings

        return run

    return found, {name: min(_seconds(theirs(both), 5)) for name, both in REFERENCES.items()}


def captures_cuda_graph(device: torch.device) -> bool:
    """Tell whether one CUDA graph captures the whole loss, forward and backward, with no synchronisation."""
    metric = VoxelMetricLoss(HardEasySampler(), head=32, channels=[MEMORY_CHANNELS]).to(device)
    features = torch.randn(4, MEMORY_CHANNELS, 128, 128, device=device, requires_grad=True)
    labels, logits = ellipses(4, [128, 128]).to(device), torch.randn(4, CLASSES, 128, 128, device=device)

    def run() -> None:
        loss: Tensor = metric(features, labels, logits, (1.0, 1.0)).loss
        torch.autograd.backward(loss, inputs=[features])

    aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream(device))
    before = torch.cuda.get_sync_debug_mode()
    try:
        with torch.cuda.stream(aside):
            run()
            torch.cuda.set_sync_debug_mode("error")
            run()
        torch.cuda.set_sync_debug_mode(before)
        torch.cuda.current_stream(device).wait_stream(aside)
        features.grad = None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        graph.replay()
    except RuntimeError:
        return False
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return True


def _seconds(run: Callable[[], Tensor], times: int) -> list[float]:
    device = run().device
    return [seconds(run, device) for _ in range(times)]
