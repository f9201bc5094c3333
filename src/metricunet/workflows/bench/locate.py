"""Part `locate`: stage 1 over a whole scan, against the same network slid over the coarse grid by MONAI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from metricunet.inference.predictor import load_model
from metricunet.networks.device import keep_freed_memory
from metricunet.workflows.bench.cost import Work, multiply_adds
from metricunet.workflows.bench.peak import measure_peak
from metricunet.workflows.bench.report import cuda_line, head, missing, ratio_line, times_line, work_lines
from metricunet.workflows.bench.stages import MONAI, Stages, monai_slider
from metricunet.workflows.bench.subject import Subject
from metricunet.workflows.bench.timing import Facts, Ratio, Run, Times, alternate, counter

REPEATS = 7
WINDOWS_AT_ONCE = 4


@dataclass(frozen=True)
class LocateBench:
    """What stage 1 costs.

    Attributes:
        facts: where it was measured.
        subject: scan and model, in words.
        ours: resampling, network and the best candidate.
        resample: of that, reading the scan on the coarse grid.
        bare: the network alone, on a fixed tensor of the coarse grid: the floor.
        slide: the same, but the network is slid over the coarse grid; None without MONAI.
        over_bare: ours over bare.
        slide_over_ours: how many times faster one pass is; None without MONAI.
        window: sides of the sliding window.
        work: of the bare network.
    """

    facts: Facts
    subject: tuple[str, ...]
    ours: Times
    resample: Times
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
        lines.append(times_line("  of that, resampling to the coarse grid", self.resample))
        lines.append(times_line("bare network on a fixed tensor (floor)", self.bare))
        lines.append(ratio_line("stage 1 / bare network", self.over_bare))
        if self.slide is None or self.slide_over_ours is None:
            lines.append(missing("MONAI", MONAI))
        else:
            window = " x ".join(map(str, self.window))
            lines.append(times_line(f"slid by MONAI, window {window}", self.slide))
            lines.append(ratio_line("slid by MONAI / stage 1", self.slide_over_ours))
        return "\n".join([*lines, *work_lines(self.work), *cuda_line(self.facts)])


def bench_locate(
    subject: Subject,
    device: torch.device,
    *,
    repeats: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LocateBench:
    """Measure stage 1.

    Args:
        subject: scan and model.
        device: to compute on.
        repeats: of each measurement.
        progress: called with (done, all).
    """
    keep_freed_memory()
    stages = Stages(load_model(subject.model, device), subject.scan.canonical(), device)
    window = subject.config.locate.patch_voxels
    slider = monai_slider(window, WINDOWS_AT_ONCE)
    bare = stages.bare_locate()
    runs: dict[str, Run] = {"ours": stages.locate, "resample": stages.coarse, "bare": bare}
    if slider is not None:
        inferer = slider
        runs["slide"] = lambda: stages.slide_coarse(inferer)
    repeats = repeats or REPEATS
    cost = multiply_adds(bare)
    found = alternate(runs, repeats, device, advance=counter(len(runs) * repeats, progress))
    times = {name: Times.of(seconds) for name, seconds in found.items()}
    return LocateBench(
        facts=Facts.of(device),
        subject=tuple(subject.describe()),
        ours=times["ours"],
        resample=times["resample"],
        bare=times["bare"],
        slide=times.get("slide"),
        over_bare=Ratio.of(found["ours"], found["bare"]),
        slide_over_ours=Ratio.of(found["slide"], found["ours"]) if "slide" in found else None,
        window=window,
        work=Work.of(cost, times["bare"].median_s, measure_peak(device, stages.precision)),
    )
