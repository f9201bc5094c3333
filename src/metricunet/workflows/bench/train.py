"""Part `train`: `metricunet train` as a user runs it, on a few phantoms: seconds of an update, and memory."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from metricunet.phantom import make_cohort
from metricunet.progress import Progress
from metricunet.training.config import LocateConfig, SegmentConfig, load_config
from metricunet.workflows.bench.process import run_metricunet
from metricunet.workflows.bench.result import MeasuredOn, Result, Row
from metricunet.workflows.bench.timing import Times, counter
from metricunet.workflows.bench.untrained import write_untrained

REPEATS = 3
#: Updates that are timed together: log.csv writes hundredths of a second.
BLOCK = 20
CASES = 2
#: Nothing is learned, so that stage 1 goes on finding the target and stage 2 follows.
RATE = 1e-12
#: Seconds of an update of stage 2 (docs/performance.md), by preset.
BASELINE_S = {"small": 0.33, "default": 1.27}


def bench_train(
    preset: str,
    device: torch.device,
    *,
    repeats: int | None = None,
    settings: Sequence[str] = (),
    progress: Progress | None = None,
) -> Result:
    """Measure an update of each stage, its data and the metric branch counted in, and the memory of a training.

    Args:
        preset: preset of the training.
        device: device to compute on.
        repeats: number of blocks of `BLOCK` updates that count; one more comes before them.
        settings: settings of the training over the preset, as `section.key=value`.
        progress: called with (done, all).

    Raises:
        InputError: an unknown preset or setting.
    """
    config = load_config(preset, settings=list(settings))
    stages: dict[str, LocateConfig | SegmentConfig] = {"locate": config.locate, "segment": config.segment}
    changed = ["metric.warm_up_updates=0"]
    for stage in stages:
        changed += [f"{stage}.epochs={1 + (repeats or REPEATS)}", f"{stage}.updates_per_epoch={BLOCK}"]
        changed.append(f"{stage}.learning_rate={RATE}")
    advance = counter(2, progress)
    with tempfile.TemporaryDirectory(prefix="metricunet-bench-") as name:
        cohort, run, model = (Path(name) / part for part in ("cohort", "run", "untrained.safetensors"))
        make_cohort(cohort, CASES, seed=0, difficulty="easy")
        write_untrained(model, config)
        advance()
        words = [word for setting in (*settings, *changed) for word in ("--set", setting)]
        words += ["--preset", preset, "--fold", "all", "--init", str(model), "--device", str(device)]
        ended = run_metricunet(["train", cohort, "-o", run, *words])
        with (run / "log.csv").open(encoding="utf-8", newline="") as handle:
            log = list(csv.DictReader(handle))
        advance()
    # The first block warms up: memory is taken, kernels are chosen, the branch's graphs captured.
    times = {s: Times.of([float(r["seconds"]) / BLOCK for r in log if r["stage"] == s][1:]) for s in stages}
    whole_s = sum(times[name].median_s * s.epochs * s.updates_per_epoch for name, s in stages.items())
    baseline = f"{BASELINE_S[preset]:g} s on two cores of an AMD EPYC"
    rows = {
        "locate": Row("an update of stage 1", times["locate"]),
        "segment": Row("an update of stage 2", times["segment"], against=baseline),
        "whole": Row("all updates of a training, no validation", whole_s / 3600, "h"),
    }
    if ended.peak_mib is not None:
        rows["peak"] = Row("peak memory of the process", ended.peak_mib / 1024, "GiB")
    return Result(
        "train", MeasuredOn.of(device), {"preset": f"{preset}; n counts blocks of {BLOCK} updates"}, rows
    )
