"""Part `uncontoured`: a training step that learns from scans without contours, against one of an equal batch."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.feeding import phantom_cases
from benchmarks.report import cuda_line, ratio_target
from metricunet.cohort.prepare import PreparedCase
from metricunet.networks.device import keep_freed_memory
from metricunet.progress import Progress
from metricunet.structures import IGNORE_CLASS
from metricunet.training.batches import Batch, SegmentBatches, update_generator
from metricunet.training.config import TrainConfig, load_config
from metricunet.training.loop import set_up
from metricunet.training.objectives import SEGMENT_STAGE, SegmentModule
from metricunet.training.uncontoured import MixedBatches, uncontoured_rows
from metricunet.workflows.bench.result import MeasuredOn, head, ratio_line, times_line
from metricunet.workflows.bench.timing import Ratio, Times, alternate, counter
from metricunet.workflows.bench.untrained import CLASSES, fresh_model

ROUNDS = 20
#: A step with teacher, memory bank and half of its images without contours may take this much of one without, by
#: the networks of preset `default`.
MOST_RATIO = 1.35
#: The study whose arms' settings of teacher and branch these are.
STUDY = Path(__file__).parents[1] / "studies/few-contours.yaml"
#: What takes turns, in words. All steps are of one batch size.
WORDS = {
    "contoured": "all images contoured, no branch",
    "teacher": "half without contours, a teacher",
    "control": "the same, and cross-entropy on voxels",
    "method": "the same, and tuples with a memory bank",
}


@dataclass(frozen=True)
class UncontouredBench:
    """What scans without contours cost. Times are of one step on a fixed batch.

    Attributes:
        facts: where it was measured.
        preset: of the training.
        batch: images in a batch.
        times: of each step, by its name in `WORDS`.
        ratios: of each to the step whose images are all contoured, round by round.
    """

    facts: MeasuredOn
    preset: str
    batch: int
    times: dict[str, Times]
    ratios: dict[str, Ratio]
    target_ratio: float = MOST_RATIO

    def to_json(self) -> dict[str, Any]:
        """Return it as plain dictionaries and lists."""
        return asdict(self)

    def text(self) -> str:
        """Write it for people to read."""
        lines = [
            head("uncontoured", self.facts),
            f"  a training step of stage 2, preset {self.preset}, {self.batch} images; in turn",
            *(times_line(WORDS[name], times) for name, times in self.times.items()),
        ]
        for name, ratio in self.ratios.items():
            if name == "method" and self.preset == "default":
                met = ratio.median <= self.target_ratio
                lines.append(ratio_target(f"{name} / contoured", ratio, f"at most {self.target_ratio:.2f}", met))
            else:
                lines.append(ratio_line(f"{name} / contoured", ratio))
        return "\n".join([*lines, *cuda_line(self.facts)])


def bench_uncontoured(
    device: torch.device,
    *,
    preset: str = "default",
    repeats: int | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> UncontouredBench:
    """Measure the steps in turn.

    Args:
        device: to compute on.
        preset: of the training.
        repeats: rounds.
        settings: of the training, over the preset.
        progress: called with (done, all).

    Raises:
        InputError: an unknown preset or setting.
    """
    configs = {
        name: load_config(preset, settings={**(settings or {}), **own})
        for name, own in settings_of_steps().items()
    }
    keep_freed_memory()
    with tempfile.TemporaryDirectory(prefix="metricunet-benchmarks-") as folder:
        cases = phantom_cases(Path(folder), configs["contoured"])
        steps = {name: TrainingStep(config, cases, device) for name, config in configs.items()}
        rounds = repeats or ROUNDS
        advance = counter(len(steps) * rounds, progress)
        found = alternate(steps, rounds, device, warm=2, advance=advance)
    return UncontouredBench(
        facts=MeasuredOn.of(device),
        preset=preset,
        batch=configs["contoured"].segment.batch_size,
        times={name: Times.of(seconds) for name, seconds in found.items()},
        ratios={name: Ratio.of(found[name], found["contoured"]) for name in list(found)[1:]},
    )


def settings_of_steps() -> dict[str, dict[str, Any]]:
    """Return the settings that tell the steps apart, by their names in `WORDS`."""
    arms = yaml.safe_load(STUDY.read_text(encoding="utf-8"))["arms"]
    control, method = (arms[f"teacher-{name}"]["settings"] for name in ("control", "metric"))
    alone = {"metric": {"mode": "none"}}
    return {"contoured": alone, "teacher": {**control, **alone}, "control": control, "method": method}


class TrainingStep:
    """Takes a step of a training on one fixed batch.

    Args:
        config: of the training.
        cases: prepared cases with a fine box, of whose contours those for the teacher's images are not read.
        device: to compute on.
    """

    def __init__(self, config: TrainConfig, cases: Sequence[PreparedCase], device: torch.device) -> None:
        torch.manual_seed(0)
        self.module = SegmentModule(fresh_model(config)[2].to(device), config, [], CLASSES).to(device).train()
        self.optimizer = set_up(self.module, device).optimizer
        apart = uncontoured_rows(config)
        contoured = _batches(config, cases, config.segment.batch_size - apart, device)
        batches: SegmentBatches | MixedBatches = contoured
        if apart:
            others = [_without_contours(case) for case in cases]
            batches = MixedBatches(contoured, _batches(config, others, apart, device))
        self.batch: Batch = batches.draw(update_generator(0, SEGMENT_STAGE, 0, device))
        # The branch at its full weight, and the teacher's loss at its own.
        self.update = max(config.metric.warm_up_updates, config.teacher.ramp_updates)

    def __call__(self) -> None:
        """Take one step."""
        loss, _ = self.module(self.batch, self.update)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()


def _batches(
    config: TrainConfig, cases: Sequence[PreparedCase], size: int, device: torch.device
) -> SegmentBatches:
    jitter = config.segment.smallest_jitter_mm
    settings = config.segment.model_copy(update={"batch_size": size})
    return SegmentBatches(cases, settings, config.augment, CLASSES, True, (jitter, jitter, jitter), device)


def _without_contours(case: PreparedCase) -> PreparedCase:
    assert case.fine_labels is not None
    nobody_knows = case.fine_labels.with_array(np.full_like(case.fine_labels.array, IGNORE_CLASS))
    facts = {**case.facts, "located_slices": (0, len(nobody_knows.array) - 1)}
    return replace(case, fine_labels=nobody_knows, facts=facts)
