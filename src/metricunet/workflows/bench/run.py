"""Running the parts one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch

from metricunet.errors import InputError
from metricunet.training.config import PRESETS
from metricunet.workflows.bench import ALL, PARTS, Part
from metricunet.workflows.bench.subject import SLICES, Subject, prepared_subject
from metricunet.workflows.bench.timing import device_named

Progress = Callable[[int, int], None]
#: Steps with and without the metric branch.
METRIC_PAIRS = 20
#: Parts that need a scan and a model.
WITH_SUBJECT: tuple[Part, ...] = ("locate", "segment", "predict", "io")


class PartResult(Protocol):
    """What every part gives back."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain dictionaries and lists."""

    def text(self) -> str:
        """Write it for people to read."""


def bench(
    part: str = ALL,
    *,
    scan: Path | None = None,
    model: Path | None = None,
    preset: str = "default",
    slices: int = SLICES,
    repeats: int | None = None,
    device: str = "auto",
    bar: Callable[[str], Progress] = lambda name: lambda done, total: None,
) -> Iterator[tuple[Part, PartResult]]:
    """Measure speed and memory on this machine, part by part.

    Args:
        part: one of `PARTS`, or `all`.
        scan: DICOM folder or NIfTI file to measure on; None makes a phantom.
        model: model file; None makes one that finds something, whatever the scan.
        preset: of the networks and the training; not of part `metric`, which measures both.
        slices: of the phantom.
        repeats: of each measurement; None leaves it to each part.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        bar: opens a progress bar by its name.

    Yields:
        The name of each part and what it measured, as soon as it is done.

    Raises:
        InputError: a part, preset or device that does not exist, a scan or model that cannot be read, a model that
            finds nothing in the scan. All but the last are raised before anything is measured.
    """
    if part != ALL and part not in PARTS:
        raise InputError(f"bench must be one of {', '.join(PARTS)}, {ALL}; got {part!r}")
    if preset not in PRESETS:
        raise InputError(f"--preset must be one of {', '.join(PRESETS)}; got {preset!r}")
    if repeats is not None and repeats < 1:
        raise InputError(f"--repeats must be 1 or more; got {repeats}")
    where = device_named(device)
    wanted: Sequence[Part] = [name for name in PARTS if part in (ALL, name)]
    return _results(wanted, scan, model, preset, slices, repeats, where, bar)


def _results(
    wanted: Sequence[Part],
    scan: Path | None,
    model: Path | None,
    preset: str,
    slices: int,
    repeats: int | None,
    device: torch.device,
    bar: Callable[[str], Progress],
) -> Iterator[tuple[Part, PartResult]]:
    with ExitStack() as stack:
        subject: Subject | None = None
        if any(name in WITH_SUBJECT for name in wanted):
            preparing = bar("scan")
            preparing(0, 1)
            subject = stack.enter_context(prepared_subject(scan, model, preset, slices))
            preparing(1, 1)
        for name in wanted:
            progress = bar(name)
            progress(0, 1)  # shows the bar at once; a part may take a while to its first measurement
            if name in WITH_SUBJECT:
                assert subject is not None
                yield name, _on_subject(name, subject, device, repeats, progress)
            else:
                yield name, _on_training(name, preset, device, repeats, progress)


def _on_subject(
    name: Part, subject: Subject, device: torch.device, repeats: int | None, progress: Progress
) -> PartResult:
    # Each part brings libraries of its own, and some take seconds to import.
    if name == "locate":
        from metricunet.workflows.bench.locate import bench_locate

        return bench_locate(subject, device, repeats=repeats, progress=progress)
    if name == "segment":
        from metricunet.workflows.bench.segment import bench_segment

        return bench_segment(subject, device, repeats=repeats, progress=progress)
    if name == "predict":
        from metricunet.workflows.bench.predict import bench_predict

        return bench_predict(subject, device, repeats=repeats, progress=progress)
    from metricunet.workflows.bench.files import bench_files

    return bench_files(subject, device, repeats=repeats, progress=progress)


def _on_training(
    name: Part, preset: str, device: torch.device, repeats: int | None, progress: Progress
) -> PartResult:
    if name == "train":
        from metricunet.workflows.bench.train import bench_train

        return bench_train(device, preset=preset, repeats=repeats, progress=progress)
    from metricunet.workflows.bench.metric import bench_metric

    return bench_metric(pairs=repeats or METRIC_PAIRS, device=str(device), progress=progress)
