"""What the metric branch costs on this machine: time of a training step, memory, and how both grow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from metricunet.errors import InputError
from metricunet.files.record import machine
from metricunet.networks.device import keep_freed_memory
from metricunet.training.config import PRESETS
from metricunet.workflows.bench.metric_cost import (
    MEMORY_SIDE,
    MEMORY_TARGET_MIB,
    MEMORY_VOXELS,
    SIDES,
    VOXELS,
    BranchAlone,
    Growth,
    Precision,
    StepCost,
    beside,
    captures_cuda_graph,
    growth,
    memory_mib,
    step_cost,
)
from metricunet.workflows.bench.report import head, verdict
from metricunet.workflows.bench.timing import Facts, counter, device_named


@dataclass(frozen=True)
class MetricBench:
    """All that `bench_metric` measured.

    Attributes:
        machine: processor, cores, versions.
        device, threads: where it ran.
        steps: one for each preset and precision.
        memory_mib: peak beyond the features and their gradient (see `MEMORY_TARGET_MIB`).
        image: growth with the number of places in the image.
        voxels: growth with the number of sampled voxels.
        ours_s, theirs_s: mining, losses and gradient on the same voxels, here and in pytorch-metric-learning;
            `theirs_s` is empty where that is not installed.
        cuda_graph: whether one CUDA graph captured the loss; None where there is no CUDA GPU.
    """

    machine: dict[str, Any]
    device: str
    threads: int
    steps: tuple[StepCost, ...]
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
        return format_bench(self)


def bench_metric(
    *,
    pairs: int = 20,
    presets: Sequence[str] = ("small", "default"),
    precisions: Sequence[Precision] = ("bf16", "fp32"),
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> MetricBench:
    """Measure what the metric branch costs.

    Args:
        pairs: of steps with and without the branch, for each preset and precision.
        presets: of the training.
        precisions: to compute in.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        progress: called with (done, all).

    Raises:
        InputError: a device that is not there, an unknown preset.
    """
    where = device_named(device)
    for preset in presets:
        if preset not in PRESETS:
            raise InputError(f"preset must be one of {', '.join(PRESETS)}; got {preset!r}")
    keep_freed_memory()
    advance = counter(2 * len(presets) * len(precisions) * pairs + 4, progress)
    steps = [step_cost(preset, p, pairs, where, advance) for preset in presets for p in precisions]
    memory = memory_mib(where)
    advance()
    image = growth(SIDES, lambda side: BranchAlone.of(where, side, MEMORY_VOXELS).forward_and_backward, power=3)
    advance()
    voxels = growth(VOXELS, lambda n: BranchAlone.of(where, 64, n).forward_and_backward)
    advance()
    ours, theirs = beside(where)
    graph = captures_cuda_graph(where) if where.type == "cuda" else None
    advance()
    return MetricBench(
        machine(), str(where), torch.get_num_threads(), tuple(steps), memory, image, voxels, ours, theirs, graph
    )


def format_bench(result: MetricBench) -> str:
    """Write the result for people to read."""
    facts = result.machine
    lines = [
        head("metric", Facts(facts, result.device, result.threads)),
        "",
    ]
    lines.append(f"{'one training step':<18}{'without':>10}{'with':>10}{'ratio':>8}  {'(quartiles)':<18}target")
    for s in result.steps:
        spread = f"({s.quartiles[0]:.3f} to {s.quartiles[1]:.3f})"
        step = f"{s.preset}, {s.precision}"
        lines.append(
            f"{step:<18}{s.without_s:>8.3f} s{s.with_s:>8.3f} s{s.ratio:>8.3f}  {spread:<18}"
            f"{s.target:.2f} {verdict(s.ratio <= s.target)}"
        )
    memory = verdict(result.memory_mib <= MEMORY_TARGET_MIB)
    grid = " x ".join([str(MEMORY_SIDE)] * 3)
    lines += [
        "",
        f"memory beyond the features and their gradient, {MEMORY_VOXELS} voxels of {grid}:"
        f" {result.memory_mib:.1f} MiB, target {MEMORY_TARGET_MIB:g} {memory}",
        "",
        *_growth_lines("places in the image", result.image, 1),
        *_growth_lines("sampled voxels", result.voxels, 2),
        f"mining, losses and gradient of 8 x {MEMORY_VOXELS} voxels: {result.ours_s * 1e3:.1f} ms",
    ]
    if not result.theirs_s:
        lines.append('pytorch-metric-learning: not installed (pip install "metricunet[metric-learning]")')
    for name, seconds in result.theirs_s.items():
        lines.append(f"pytorch-metric-learning, {name}: {seconds * 1e3:.1f} ms")
    if result.cuda_graph is None:
        lines.append("CUDA: not run, no CUDA GPU was used")
    else:
        state = "captures the whole loss" if result.cuda_graph else "does NOT capture the loss"
        lines.append(f"CUDA: one graph {state}, synchronisations refused")
    return "\n".join(lines)


def _growth_lines(name: str, growth: Growth, bound: int) -> list[str]:
    points = [
        f"{size:>12,d} {seconds * 1e3:>9.1f} ms"
        for size, seconds in zip(growth.sizes, growth.seconds, strict=True)
    ]
    end = f"the last step grows with power {growth.exponent:.2f}, bound {bound}"
    return [f"the branch alone, by {name} ({end}):", *points, ""]
