"""Part `feeding`: a training step of stage 2 with its data, against the bare step and MONAI's data path."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.alone import MONAI
from benchmarks.monai_batches import AHEAD, WORKERS, MonaiBatches
from benchmarks.peak import measure_peak
from benchmarks.report import cuda_line, missing, ratio_target, verdict, work_lines
from benchmarks.work import Work, multiply_adds
from metricunet.cohort.layout import read_cohort
from metricunet.cohort.prepare import PreparedCase, PrepareSettings, prepare
from metricunet.networks.device import keep_freed_memory
from metricunet.phantom import make_cohort
from metricunet.progress import Progress
from metricunet.stages.network_input import pick_precision
from metricunet.training.batches import Batch, SegmentBatches, update_generator
from metricunet.training.config import TrainConfig, load_config
from metricunet.training.loop import set_up
from metricunet.training.objectives import SEGMENT_STAGE, SegmentModule
from metricunet.workflows.bench.result import MeasuredOn, duration, head, ratio_line, times_line, value_line
from metricunet.workflows.bench.timing import Ratio, Times, counter, take_turns, wait
from metricunet.workflows.bench.untrained import CLASSES, STRUCTURE, fresh_model

ROUNDS = 5
#: Steps of one block: what is compared takes turns block by block, for a loader needs steps to be itself.
BLOCK = 6
#: Steps before a block of MONAI's loader counts, and batches after it, so that its workers are busy all the while.
LEAD = WORKERS * AHEAD
CASES = 4
#: A step with the real data path may take this much of the bare step; its overhead this share of MONAI's.
MOST_RATIO = 1.10
MOST_SHARE = 1 / 3


@dataclass(frozen=True)
class FeedingBench:
    """What feeding a training step costs. Times are of one step.

    Attributes:
        facts: where it was measured.
        preset: of the training; its metric branch is counted in everywhere.
        block: steps of a block; `n` of the times counts blocks.
        bare: the step on one fixed batch: the floor.
        ours: drawing the batch counted in.
        monai: the same step fed by MONAI; None where that is not installed.
        ours_over_bare, monai_over_bare: ratios, block by block.
        ours_overhead_s, monai_overhead_s: median of the differences to the bare step.
        overhead_share: ours of MONAI's; None without MONAI, or where that costs nothing.
        work: of the bare step.
    """

    facts: MeasuredOn
    preset: str
    block: int
    bare: Times
    ours: Times
    monai: Times | None
    ours_over_bare: Ratio
    monai_over_bare: Ratio | None
    ours_overhead_s: float
    monai_overhead_s: float | None
    overhead_share: float | None
    work: Work
    target_ratio: float = MOST_RATIO
    target_overhead_share: float = MOST_SHARE

    def to_json(self) -> dict[str, Any]:
        """Return it as plain dictionaries and lists."""
        return asdict(self)

    def text(self) -> str:
        """Write it for people to read."""
        target = self.target_ratio
        met = self.ours_over_bare.median <= target
        lines = [
            head("feeding", self.facts),
            f"  a training step of stage 2, preset {self.preset}; n counts blocks of {self.block} steps in turn",
            times_line("bare step on a fixed batch (floor)", self.bare),
            times_line("step with its data", self.ours),
        ]
        if self.monai is None:
            lines.append(missing("MONAI", MONAI))
        else:
            lines.append(times_line(f"step fed by MONAI, cached, {WORKERS} workers", self.monai))
        lines.append(ratio_target("step with its data / bare", self.ours_over_bare, f"at most {target:.2f}", met))
        if self.monai_over_bare is not None and self.monai_overhead_s is not None:
            lines.append(ratio_line("fed by MONAI / bare", self.monai_over_bare))
            lines.append(self._overheads(self.monai_overhead_s))
        return "\n".join([*lines, *work_lines(self.work), *cuda_line(self.facts)])

    def _overheads(self, monai_s: float) -> str:
        both = f"{duration(self.ours_overhead_s)} of {duration(monai_s)}"
        if self.overhead_share is None:
            return value_line("overhead, ours of MONAI's", both) + "; MONAI's is too small to compare"
        met = verdict(self.overhead_share <= self.target_overhead_share)
        return (
            value_line("overhead, ours of MONAI's", f"{self.overhead_share:.2f}")
            + f"  ({both}); target at most "
            + (f"{self.target_overhead_share:.2f} {met}")
        )


def bench_feeding(
    device: torch.device,
    *,
    preset: str = "default",
    repeats: int | None = None,
    settings: Sequence[str] = (),
    progress: Progress | None = None,
) -> FeedingBench:
    """Measure a training step.

    Args:
        device: to compute on.
        preset: of the training.
        repeats: rounds of blocks.
        settings: of the training, over the preset.
        progress: called with (done, all).

    Raises:
        InputError: an unknown preset or setting.
    """
    config = load_config(preset, settings=list(settings))
    keep_freed_memory()
    with tempfile.TemporaryDirectory(prefix="metricunet-benchmarks-") as folder:
        steps = TrainingSteps(config, phantom_cases(Path(folder), config), device)
        try:
            return _measure(steps, preset, repeats or ROUNDS, progress)
        finally:
            steps.close()


def phantom_cases(folder: Path, config: TrainConfig) -> list[PreparedCase]:
    """Make a few easy phantoms and prepare them for training."""
    make_cohort(folder / "cohort", CASES, seed=0, difficulty="easy")
    cohort = read_cohort(folder / "cohort")
    stages = PrepareSettings(STRUCTURE, config.locate.spacing_mm, config.segment.spacing_mm, config.segment.box_mm)
    return prepare(cohort.training, cohort.info, stages, folder / "prepared")


class TrainingSteps:
    """One network and the ways to feed it; each method takes a block of steps and returns the seconds of one step.

    Args:
        config: of the training.
        cases: prepared cases with a fine box.
        device: to compute on.
    """

    def __init__(self, config: TrainConfig, cases: Sequence[PreparedCase], device: torch.device) -> None:
        self.config, self.device = config, device
        jitter = config.segment.smallest_jitter_mm
        self.batches = SegmentBatches(
            cases, config.segment, config.augment, CLASSES, True, (jitter, jitter, jitter), device
        )
        self.module = SegmentModule(fresh_model(config)[2].to(device), config, [], CLASSES).to(device).train()
        self.optimizer = set_up(self.module, device).optimizer
        self.fixed = self._draw(0)
        self.update = 0
        try:
            self.monai: MonaiBatches | None = MonaiBatches(
                cases, config, (jitter, jitter), LEAD + BLOCK + LEAD, device
            )
        except ImportError:
            self.monai = None

    def step(self, batch: Batch) -> None:
        """Take one step, the metric branch at its full weight."""
        loss, _ = self.module(batch, self.config.metric.warm_up_updates)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()

    def bare(self) -> float:
        """Take steps on one fixed batch."""
        return self._block(lambda: self.fixed)

    def ours(self) -> float:
        """Take steps, each on a fresh batch."""

        def draw() -> Batch:
            self.update += 1
            return self._draw(self.update)

        return self._block(draw)

    def fed_by_monai(self) -> float:
        """Take steps on MONAI's batches, counted while its workers are as busy as in the middle of an epoch."""
        assert self.monai is not None
        batches = iter(self.monai)
        for _ in range(LEAD):
            self.step(next(batches))
        found = self._block(lambda: next(batches))
        for _ in batches:  # so that the workers are idle when others are timed
            pass
        return found

    def close(self) -> None:
        """Let the loader's workers go."""
        if self.monai is not None:
            self.monai.close()

    def _block(self, batch: Callable[[], Batch]) -> float:
        wait(self.device)
        began = time.perf_counter()
        for _ in range(BLOCK):
            self.step(batch())
        wait(self.device)
        return (time.perf_counter() - began) / BLOCK

    def _draw(self, update: int) -> Batch:
        torch.manual_seed(update)
        return self.batches.draw(update_generator(self.config.seed, SEGMENT_STAGE, update, self.device))


def _measure(steps: TrainingSteps, preset: str, rounds: int, progress: Progress | None) -> FeedingBench:
    device = steps.device
    clocks = {"bare": steps.bare, "ours": steps.ours}
    if steps.monai is not None:
        clocks["monai"] = steps.fed_by_monai
    steps.step(steps.fixed)
    cost = multiply_adds(lambda: steps.step(steps.fixed))
    found = take_turns(clocks, rounds, advance=counter(len(clocks) * rounds, progress))
    bare, ours, monai = found["bare"], found["ours"], found.get("monai")
    ours_s = overhead_s(ours, bare)
    monai_s = None if monai is None else overhead_s(monai, bare)
    precision = pick_precision(steps.config.precision, device)
    return FeedingBench(
        facts=MeasuredOn.of(device),
        preset=preset,
        block=BLOCK,
        bare=Times.of(bare),
        ours=Times.of(ours),
        monai=None if monai is None else Times.of(monai),
        ours_over_bare=Ratio.of(ours, bare),
        monai_over_bare=None if monai is None else Ratio.of(monai, bare),
        ours_overhead_s=ours_s,
        monai_overhead_s=monai_s,
        overhead_share=ours_s / monai_s if monai_s is not None and monai_s > 0 else None,
        work=Work.of(cost, statistics.median(bare), measure_peak(device, precision)),
    )


def overhead_s(times: Sequence[float], bare: Sequence[float]) -> float:
    """Return the median of the differences, round by round."""
    return statistics.median(a - b for a, b in zip(times, bare, strict=True))
