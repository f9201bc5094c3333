"""`metricunet bench`: how fast predicting, training and the metric branch are on this machine.

What the maintainers measure beside that (each network alone, other libraries, growth, files) is `python -m
benchmarks` in the repository.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from metricunet.errors import InputError, argument
from metricunet.progress import Bars, Progress, no_bars

if TYPE_CHECKING:
    from metricunet.workflows.bench.result import Result

Part = Literal["predict", "train", "metric"]
PARTS: tuple[Part, ...] = get_args(Part)
ALL = "all"


def bench(
    part: str = ALL,
    *,
    scan: Path | None = None,
    model: Path | None = None,
    preset: str | None = None,
    repeats: int | None = None,
    device: str = "auto",
    bar: Bars = no_bars,
) -> Iterator[tuple[Part, Result]]:
    """Measure speed and memory on this machine, part by part. Nothing but temporary files is written.

    Args:
        part: one of `PARTS`, or `all`.
        scan: DICOM folder or file to predict; None makes a phantom.
        model: model file to predict with; None makes an untrained one.
        preset: preset of the networks and the training; None is `default`.
        repeats: number of repeats of each measurement; None leaves it to each part.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, `gpu`, `gpu:N` or `mps`.
        bar: opens a progress bar by its name.

    Yields:
        The name of each part and what it measured, as soon as it is done.

    Raises:
        InputError: a part, preset or device that does not exist, no repeats, or a scan or model for a part that
            predicts nothing, or a preset where a model's own networks are all that is measured: before anything is
            measured. A scan or model that cannot be read, a model that finds
            nothing in the scan: when that part begins.
    """
    if part not in (*PARTS, ALL):
        raise InputError(f"bench must be one of {', '.join(PARTS)}, {ALL}; got {part!r}")
    for named, given in ((argument("scan", scan), scan), (argument("model", model), model)):
        if given is not None and part not in ("predict", ALL):
            raise InputError(f"{named} is for the part predict, and {part} reads no scan or model; leave it out")
    if preset is not None and model is not None and part == "predict":
        raise InputError(
            f"{argument('preset', preset)} is for networks made here, and {argument('model', model)} brings its "
            "own; leave one of them out"
        )
    measured = preset or "default"
    if repeats is not None and repeats < 1:
        raise InputError(f"{argument('repeats')} must be 1 or more; got {repeats}")
    # Heavy imports wait until the arguments are known to be right.
    from metricunet.stages.device import device_named
    from metricunet.training.config import PRESETS
    from metricunet.workflows.bench import metric, predict, train

    if measured not in PRESETS:
        raise InputError(f"{argument('preset')} must be one of {', '.join(PRESETS)}; got {measured!r}")
    where = device_named(device)
    runs: dict[Part, Callable[[Progress], Result]] = {
        "predict": lambda told: predict.bench_predict(
            scan, model, measured, where, repeats=repeats, progress=told
        ),
        "train": lambda told: train.bench_train(measured, where, repeats=repeats, progress=told),
        "metric": lambda told: metric.bench_metric(measured, where, pairs=repeats, progress=told),
    }

    def results() -> Iterator[tuple[Part, Result]]:
        for name in PARTS:
            if part in (ALL, name):
                progress = bar(name)
                progress(0, 1)  # shows the bar at once; a part may take a while to its first measurement
                yield name, runs[name](progress)

    return results()
