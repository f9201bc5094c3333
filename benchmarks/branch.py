"""Part `branch`: memory and time of the metric branch alone, and pytorch-metric-learning beside it."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity

from benchmarks.report import missing, value_target
from metricunet.metric import HardEasySampler, Sample, TupleOptions, VoxelMetricLoss, tuple_losses
from metricunet.networks.device import keep_freed_memory
from metricunet.progress import Progress
from metricunet.workflows.bench.metric import CLASSES, ellipses
from metricunet.workflows.bench.result import MeasuredOn, duration, head, value_line
from metricunet.workflows.bench.timing import counter, seconds

#: Memory beyond the features and their gradient, at `MEMORY_VOXELS` voxels of an image of `MEMORY_SIDE` cubed.
MEMORY_TARGET_MIB = 64.0
MEMORY_SIDE, MEMORY_VOXELS, MEMORY_CHANNELS = 128, 512, 16
#: Sides of cubes, and numbers of voxels, over which growth is measured.
SIDES = (32, 64, 128)
VOXELS = (256, 512, 1024, 2048)
#: What is run of pytorch-metric-learning, and whether with all pairs.
REFERENCES = {"triplets": False, "triplets and all pairs": True}


@dataclass(frozen=True)
class Growth:
    """How the branch alone grows: sizes, least seconds of forward and backward, exponent of the last step."""

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    exponent: float


@dataclass(frozen=True)
class BranchBench:
    """What the branch costs without a network.

    Attributes:
        facts: where it was measured.
        memory_mib: peak beyond the features and their gradient (see `MEMORY_TARGET_MIB`).
        image: growth with the number of voxels in the image.
        voxels: growth with the number of sampled voxels.
        ours_s, theirs_s: mining, losses and gradient on the same voxels, here and in pytorch-metric-learning;
            `theirs_s` is empty where that is not installed.
        cuda_graph: whether one CUDA graph captured the loss; None where there is no CUDA GPU.
    """

    facts: MeasuredOn
    memory_mib: float
    image: Growth
    voxels: Growth
    ours_s: float
    theirs_s: dict[str, float]
    cuda_graph: bool | None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain dictionaries and lists."""
        return asdict(self)

    def text(self) -> str:
        """Write it for people to read."""
        met = self.memory_mib <= MEMORY_TARGET_MIB
        name = f"memory, {MEMORY_VOXELS} voxels of {MEMORY_SIDE} cubed"
        memory = value_target(name, f"{self.memory_mib:.1f} MiB", f"at most {MEMORY_TARGET_MIB:g} MiB", met)
        lines = [head("branch", self.facts), memory + ", beyond the features and their gradient"]
        for what, growth, bound in (("voxels of the image", self.image, 1), ("sampled voxels", self.voxels, 2)):
            for size, taken in zip(growth.sizes, growth.seconds, strict=True):
                lines.append(value_line(f"{size:,d} {what}", duration(taken)))
            lines.append(f"  the last step grows with power {growth.exponent:.2f}; bound {bound}")
        lines.append(value_line(f"mining, losses and gradient, 8 x {MEMORY_VOXELS}", duration(self.ours_s)))
        lines += [value_line(f"  pytorch-metric-learning, {k}", duration(v)) for k, v in self.theirs_s.items()]
        if not self.theirs_s:
            lines.append(missing("pytorch-metric-learning", "metricunet[metric-learning]"))
        state = {
            None: "not run, no CUDA GPU was used",
            True: "one graph captures the whole loss, synchronisations refused",
            False: "one graph does NOT capture the loss",
        }
        return "\n".join([*lines, f"  CUDA: {state[self.cuda_graph]}"])


def bench_branch(device: torch.device, *, progress: Progress | None = None) -> BranchBench:
    """Measure the branch alone.

    Args:
        device: to compute on.
        progress: called with (done, all).
    """
    keep_freed_memory()
    advance = counter(4, progress)
    memory = memory_mib(device)
    advance()
    image = growth(SIDES, lambda side: BranchAlone.of(device, side, MEMORY_VOXELS).forward_and_backward, power=3)
    advance()
    voxels = growth(VOXELS, lambda n: BranchAlone.of(device, 64, n).forward_and_backward)
    advance()
    ours, theirs = beside(device)
    graph = captures_cuda_graph(device) if device.type == "cuda" else None
    advance()
    return BranchBench(MeasuredOn.of(device), memory, image, voxels, ours, theirs, graph)


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
