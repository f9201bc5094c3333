"""Part `segment`: stage 2 in its crop, and both stages together, against stage 2 slid over the scan by MONAI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from metricunet.errors import InputError
from metricunet.inference.crops import MOST_RERUNS
from metricunet.inference.predictor import Predictor
from metricunet.networks.device import keep_freed_memory
from metricunet.workflows.bench.cost import Work, multiply_adds
from metricunet.workflows.bench.peak import measure_peak
from metricunet.workflows.bench.report import cuda_line, head, missing, ratio_line, times_line, work_lines
from metricunet.workflows.bench.stages import MONAI, STACKS_AT_ONCE, Stages, monai_slider
from metricunet.workflows.bench.subject import Subject
from metricunet.workflows.bench.timing import Facts, Ratio, Run, Times, alternate, counter

REPEATS = 7
#: The slide takes minutes: no round of it begins later than this.
SLIDE_BUDGET_S = 150.0
#: The two stages must be this many times faster than the slide.
TIMES_FASTER = 10.0


@dataclass(frozen=True)
class SegmentBench:
    """What stage 2 costs, and the whole prediction beside a slide over the whole scan.

    Attributes:
        facts: where it was measured.
        subject: scan and model, in words.
        stage2: resampling the crop, network, pasting back.
        bare: the network alone on fixed stacks of the crop's size: the floor.
        over_bare: stage 2 over bare.
        work: of the bare network.
        whole: both stages, from a scan in memory to a mask on its grid.
        slide: stage 2's network over every slice of the whole scan, resampling there and back counted in; None
            without MONAI.
        slide_over_whole: how many times faster the two stages are; None without MONAI.
        slide_over_stage2: the same for stage 2 alone.
    """

    facts: Facts
    subject: tuple[str, ...]
    stage2: Times
    bare: Times
    over_bare: Ratio
    work: Work
    whole: Times
    slide: Times | None
    slide_over_whole: Ratio | None
    slide_over_stage2: float | None
    target_times_faster: float = TIMES_FASTER

    def to_json(self) -> dict[str, Any]:
        """Return it as plain dictionaries and lists."""
        return asdict(self)

    def text(self) -> str:
        """Write it for people to read."""
        lines = [head("segment", self.facts), *self.subject]
        lines.append(times_line("stage 2 in its crop", self.stage2))
        lines.append(times_line("bare network on fixed stacks (floor)", self.bare))
        lines.append(ratio_line("stage 2 / bare network", self.over_bare))
        lines += work_lines(self.work)
        lines.append(times_line("both stages, scan in memory to mask", self.whole))
        if self.slide is None or self.slide_over_whole is None or self.slide_over_stage2 is None:
            lines.append(missing("MONAI", MONAI))
        else:
            target = self.target_times_faster
            met = self.slide_over_whole.median >= target
            lines.append(times_line("stage 2 slid over the whole scan by MONAI", self.slide))
            lines.append(
                ratio_line("slide / both stages", self.slide_over_whole, f"at least {target:g}", met)
                + f"; / stage 2 alone {self.slide_over_stage2:.1f}"
            )
        return "\n".join([*lines, *cuda_line(self.facts)])


def bench_segment(
    subject: Subject,
    device: torch.device,
    *,
    repeats: int | None = None,
    progress: Callable[[int, int], None] | None = None,
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
    # The stand-in's region reaches the crop's ends wherever it is.
    predictor = Predictor([subject.model], str(device), reruns=MOST_RERUNS if subject.trained else 0)
    stages = Stages(predictor.models[0], subject.scan.canonical(), device)
    centre = predictor.predict(subject.scan).localisation.centre_mm
    if centre is None:
        raise nothing_found(subject)
    crop = predictor.card.segment.crop_voxels
    slider = monai_slider(crop[1:], STACKS_AT_ONCE[device.type])
    bare = stages.bare_segment()
    parts: dict[str, Run] = {"stage2": lambda: stages.segment(centre), "bare": bare}
    wholes: dict[str, Run] = {"whole": lambda: predictor.predict(subject.scan)}
    if slider is not None:
        inferer = slider
        wholes["slide"] = lambda: stages.slide_fine(inferer)
    repeats = repeats or REPEATS
    advance = counter((len(parts) + len(wholes)) * repeats, progress)
    cost = multiply_adds(bare)
    found = alternate(parts, repeats, device, advance=advance)
    # Both networks are warm by now; a warming slide would cost minutes.
    found |= alternate(wholes, repeats, device, warm=0, budget_s=SLIDE_BUDGET_S, advance=advance)
    times = {name: Times.of(seconds) for name, seconds in found.items()}
    slid = "slide" in times
    return SegmentBench(
        facts=Facts.of(device),
        subject=tuple(subject.describe()),
        stage2=times["stage2"],
        bare=times["bare"],
        over_bare=Ratio.of(found["stage2"], found["bare"]),
        work=Work.of(cost, times["bare"].median_s, measure_peak(device, stages.precision)),
        whole=times["whole"],
        slide=times.get("slide"),
        slide_over_whole=Ratio.of(found["slide"], found["whole"]) if slid else None,
        slide_over_stage2=times["slide"].median_s / times["stage2"].median_s if slid else None,
    )


def nothing_found(subject: Subject) -> InputError:
    """The error where there is no stage 2 to time."""
    return InputError(
        f"{subject.model}: finds nothing in {subject.scan_name}, so stage 2 never runs and there is nothing to "
        "time; choose another --scan or --model"
    )
