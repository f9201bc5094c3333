"""Part `locate`: stage 1 over a whole scan, against the same network slid over the coarse grid by MONAI."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.alone import MONAI, Bare, monai_slider, slid
from benchmarks.peak import measure_peak
from benchmarks.report import cuda_line, missing, work_lines
from benchmarks.subject import Subject
from benchmarks.work import Work, multiply_adds
from metricunet.inference.predictor import Predictor
from metricunet.networks.device import keep_freed_memory
from metricunet.progress import Progress
from metricunet.workflows.bench.result import MeasuredOn, head, ratio_line, times_line
from metricunet.workflows.bench.timing import Ratio, Run, Times, alternate, counter

REPEATS = 7
WINDOWS_AT_ONCE = 4


@dataclass(frozen=True)
class LocateBench:
    """What stage 1 costs.

    Attributes:
        facts: where it was measured.
        subject: scan and model, in words.
        ours: resampling, network and the best candidate.
        bare: the network alone, on the tensor that it was given: the floor.
        slide: stage 1 whose network is slid over the coarse grid; None without MONAI.
        over_bare: ours over bare.
        slide_over_ours: how many times faster one pass is; None without MONAI.
        window: sides of the sliding window.
        work: of the bare network.
    """

    facts: MeasuredOn
    subject: tuple[str, ...]
    ours: Times
    bare: Times
    slide: Times | None
    over_bare: Ratio
    slide_over_ours: Ratio | None
    window: tuple[int, int, int]
    work: Work

    def to_json(self) -> dict[str, Any]:
        """Return it as plain dictionaries and lists."""
        return asdict(self)

    def text(self) -> str:
        """Write it for people to read."""
        lines = [head("locate", self.facts), *self.subject]
        lines.append(times_line("stage 1 over the scan", self.ours))
        lines.append(times_line("bare network on the same tensor (floor)", self.bare))
        lines.append(ratio_line("stage 1 / bare network", self.over_bare))
        if self.slide is None or self.slide_over_ours is None:
            lines.append(missing("MONAI", MONAI))
        else:
            window = " x ".join(map(str, self.window))
            lines.append(times_line(f"stage 1 slid by MONAI, window {window}", self.slide))
            lines.append(ratio_line("slid by MONAI / stage 1", self.slide_over_ours))
        return "\n".join([*lines, *work_lines(self.work), *cuda_line(self.facts)])


def bench_locate(
    subject: Subject,
    device: torch.device,
    *,
    repeats: int | None = None,
    progress: Progress | None = None,
) -> LocateBench:
    """Measure stage 1.

    Args:
        subject: scan and model.
        device: to compute on.
        repeats: of each measurement.
        progress: called with (done, all).
    """
    keep_freed_memory()
    predictor = Predictor([subject.model], str(device))
    window = subject.config.locate.patch_voxels
    inferer = monai_slider(window, WINDOWS_AT_ONCE)
    bare = Bare(predictor.models[0].locate, lambda: predictor.locate(subject.scan))
    runs: dict[str, Run] = {"ours": lambda: predictor.locate(subject.scan), "bare": bare}
    if inferer is not None:
        sliding = slid(Predictor([subject.model], str(device)), "locate", inferer)
        runs["slide"] = lambda: sliding.locate(subject.scan)
    repeats = repeats or REPEATS
    cost = multiply_adds(bare)
    found = alternate(runs, repeats, device, advance=counter(len(runs) * repeats, progress))
    times = {name: Times.of(seconds) for name, seconds in found.items()}
    return LocateBench(
        facts=MeasuredOn.of(device),
        subject=tuple(subject.describe()),
        ours=times["ours"],
        bare=times["bare"],
        slide=times.get("slide"),
        over_bare=Ratio.of(found["ours"], found["bare"]),
        slide_over_ours=Ratio.of(found["slide"], found["ours"]) if "slide" in found else None,
        window=window,
        work=Work.of(cost, times["bare"].median_s, measure_peak(device, bare.precision)),
    )
