"""Part `segment`: stage 2 in its crop, and both stages together, against stage 2 slid over the scan by MONAI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from benchmarks.alone import MONAI, Bare, monai_slider, slid, with_crop
from benchmarks.peak import measure_peak
from benchmarks.report import cuda_line, missing, ratio_target, work_lines
from benchmarks.subject import Subject
from benchmarks.work import Work, multiply_adds
from metricunet.inference.predictor import Predictor
from metricunet.networks.device import keep_freed_memory
from metricunet.progress import Progress
from metricunet.workflows.bench.predict import nothing_found
from metricunet.workflows.bench.result import MeasuredOn, head, ratio_line, times_line
from metricunet.workflows.bench.timing import Ratio, Run, Times, alternate, counter

REPEATS = 7
#: The slide takes minutes: no round of it begins later than this.
SLIDE_BUDGET_S = 150.0
#: The two stages must be this many times faster than the slide.
TIMES_FASTER = 10.0
#: Windows that go through a 2.5D network at once: what is fastest for it.
STACKS_AT_ONCE = {"cpu": 8, "cuda": 64}


@dataclass(frozen=True)
class SegmentBench:
    """What stage 2 costs, and the whole prediction beside a slide over the whole scan.

    Attributes:
        facts: where it was measured.
        subject: scan and model, in words.
        stage2: from the scan in memory and what stage 1 found to the mask.
        bare: the network alone on the tensors that it was given: the floor.
        over_bare: stage 2 over bare.
        work: of the bare network.
        whole: both stages, from a scan in memory to a mask on its grid.
        slide: stage 2 whose crop is the whole scan, its network slid over that; None without MONAI, and for a 3D
            network, which goes over its crop in windows by itself.
        slide_over_whole: how many times faster the two stages are; None where `slide` is.
        slide_over_stage2: the same for stage 2 alone.
        solid: whether the network is a 3D one.
    """

    facts: MeasuredOn
    subject: tuple[str, ...]
    stage2: Times
    bare: Times
    over_bare: Ratio
    work: Work
    whole: Times
    slide: Times | None
    slide_over_whole: Ratio | None
    slide_over_stage2: float | None
    solid: bool
    target_times_faster: float = TIMES_FASTER

    def to_json(self) -> dict[str, Any]:
        """Return it as plain dictionaries and lists."""
        return asdict(self)

    def text(self) -> str:
        """Write it for people to read."""
        lines = [head("segment", self.facts), *self.subject]
        lines.append(times_line("stage 2 in its crop", self.stage2))
        lines.append(times_line("bare network on the same tensors (floor)", self.bare))
        lines.append(ratio_line("stage 2 / bare network", self.over_bare))
        lines += work_lines(self.work)
        lines.append(times_line("both stages, scan in memory to mask", self.whole))
        if self.solid:
            lines.append("  a 3D network goes over its crop in windows by itself, so it is not slid by MONAI")
        elif self.slide is None or self.slide_over_whole is None:
            lines.append(missing("MONAI", MONAI))
        else:
            target = self.target_times_faster
            met = self.slide_over_whole.median >= target
            lines.append(times_line("stage 2 slid over the whole scan by MONAI", self.slide))
            lines.append(
                ratio_target("slide / both stages", self.slide_over_whole, f"at least {target:g}", met)
                + f"; / stage 2 alone {self.slide_over_stage2:.1f}"
            )
        return "\n".join([*lines, *cuda_line(self.facts)])


def bench_segment(
    subject: Subject,
    device: torch.device,
    *,
    repeats: int | None = None,
    progress: Progress | None = None,
) -> SegmentBench:
    """Measure stage 2, and both stages beside the slide.

    Args:
        subject: scan and model.
        device: to compute on.
        repeats: of each measurement; the slide ends earlier when it has taken `SLIDE_BUDGET_S`.
        progress: called with (done, all).

    Raises:
        InputError: the model finds nothing in the scan, so stage 2 never runs.
    """
    keep_freed_memory()
    predictor = Predictor([subject.model], str(device), **subject.options)
    scan = subject.scan
    found = predictor.locate(scan)
    if found.centre_mm is None:
        raise nothing_found(subject.model, subject.scan_name)
    bare = Bare(predictor.models[0].segment, lambda: predictor.segment(scan, found))
    parts: dict[str, Run] = {"stage2": lambda: predictor.segment(scan, found), "bare": bare}
    wholes: dict[str, Run] = {"whole": lambda: predictor.predict(scan)}
    sliding = slid_over_scan(subject, bare.inputs[0][0].shape[2:], device)
    if sliding is not None:
        middle = replace(found, centre_mm=scan.geometry.centre_mm)
        wholes["slide"] = lambda: sliding.segment(scan, middle)
    repeats = repeats or REPEATS
    advance = counter((len(parts) + len(wholes)) * repeats, progress)
    cost = multiply_adds(bare)
    seconds = alternate(parts, repeats, device, advance=advance)
    # Both networks are warm by now; a warming slide would cost minutes.
    seconds |= alternate(wholes, repeats, device, warm=0, budget_s=SLIDE_BUDGET_S, advance=advance)
    times = {name: Times.of(taken) for name, taken in seconds.items()}
    return SegmentBench(
        facts=MeasuredOn.of(device),
        subject=tuple(subject.describe()),
        stage2=times["stage2"],
        bare=times["bare"],
        over_bare=Ratio.of(seconds["stage2"], seconds["bare"]),
        work=Work.of(cost, times["bare"].median_s, measure_peak(device, bare.precision)),
        whole=times["whole"],
        slide=times.get("slide"),
        slide_over_whole=None if sliding is None else Ratio.of(seconds["slide"], seconds["whole"]),
        slide_over_stage2=None if sliding is None else times["slide"].median_s / times["stage2"].median_s,
        solid=bare.inputs[0][0].ndim == 5,
    )


def slid_over_scan(subject: Subject, window: Sequence[int], device: torch.device) -> Predictor | None:
    """Return a predictor whose stage 2 sees a crop around the whole scan, slid over in windows of the crop it had.

    It is to be told that the target is in the middle of the scan.

    Args:
        subject: scan and model.
        window: sides of what the network is given at once.
        device: to compute on.

    Returns:
        The predictor; None without MONAI, and for a 3D network.
    """
    inferer = monai_slider(tuple(window), STACKS_AT_ONCE[device.type])
    if inferer is None or len(window) != 2:
        return None
    predictor = Predictor([subject.model], str(device), reruns=0)
    spacing_mm, divisor = predictor.card.segment.spacing_mm, predictor.models[0].segment.divisor
    extent_mm = subject.scan.canonical().geometry.extent_mm
    sides = [round(mm / step) for mm, step in zip(extent_mm, spacing_mm, strict=True)]
    return slid(with_crop(predictor, [side + -side % divisor for side in sides]), "segment", inferer)
