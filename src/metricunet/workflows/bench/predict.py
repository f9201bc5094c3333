"""Part `predict`: `metricunet predict` as a user runs it, in a process of its own; and each stage in this one."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from metricunet.api import load_scan
from metricunet.errors import InputError, argument
from metricunet.files.model import read_card
from metricunet.inference.models import named_model
from metricunet.inference.predictor import Predictor
from metricunet.inference.reruns import MOST_RERUNS
from metricunet.networks.device import keep_freed_memory
from metricunet.phantom import make_phantom
from metricunet.progress import Progress
from metricunet.training.config import load_config
from metricunet.volume import Volume
from metricunet.workflows.bench.process import run_metricunet
from metricunet.workflows.bench.result import MeasuredOn, Result, Row
from metricunet.workflows.bench.timing import Times, alternate, counter
from metricunet.workflows.bench.untrained import write_untrained
from metricunet.workflows.ct_writer import CtGrid, write_ct_series

REPEATS = 3
#: Of a real scan with preset `default` (docs/performance.md).
BASELINE = "9.5 s for 512 x 512 x 235, JPEG 2000, on two cores of an AMD EPYC"
BASELINE_MEMORY = "0.81 GiB there"


def bench_predict(
    scan: Path | None,
    model: Path | None,
    preset: str,
    device: torch.device,
    *,
    repeats: int | None = None,
    progress: Progress | None = None,
) -> Result:
    """Measure wall time and memory of `metricunet predict`, imports counted in, and the time of each stage.

    Args:
        scan: DICOM folder or file; None makes a phantom of difficulty `real`, as a DICOM series.
        model: model file; None makes an untrained one.
        preset: preset of the untrained model's networks.
        device: device to compute on.
        repeats: number of repeats of each measurement.
        progress: called with (done, all).

    Raises:
        InputError: a scan or model that cannot be read, or a model that finds nothing in the scan.
    """
    repeats = repeats or REPEATS
    advance = counter(3 * repeats, progress)
    if model is not None:
        model = named_model(model)
        read_card(model)  # a file that is no model is refused before any work
    with tempfile.TemporaryDirectory(prefix="metricunet-bench-") as name:
        folder = Path(name)
        words = "a phantom of difficulty real" if scan is None else str(scan)
        path = phantom_series(folder / "series") if scan is None else scan
        loaded = load_scan(path)
        image = loaded.volume
        used, reruns = model, MOST_RERUNS
        if used is None:
            used = folder / "model.safetensors"
            write_untrained(used, load_config(preset))
            reruns = 0  # its mask reaches the crop's edge, wherever that is
        formats = ("nifti", "rtstruct") if loaded.is_dicom else ("nifti",)
        wholes, startups, peaks = [], [], []
        for k in range(repeats):
            output = folder / f"out-{k}"
            arguments = [path, "-m", used, "-o", output, "--format", ",".join(formats), "--device", device]
            ended = run_metricunet(["predict", *arguments, "--reruns", reruns])
            if next(output.glob("*.nii.gz"), None) is None:
                raise nothing_found(used, words)
            wholes.append(ended.seconds)
            startups.append(ended.seconds - seconds_of_cases(output))
            peaks += [] if ended.peak_mib is None else [ended.peak_mib]
            advance()
        keep_freed_memory()
        predictor = Predictor([used], str(device), reruns=reruns)
        found = predictor.locate(image)
        runs = {"locate": lambda: predictor.locate(image), "segment": lambda: predictor.segment(image, found)}
        stages = alternate(runs, repeats, device, advance=advance)
    rows = {
        "whole": Row(f"the whole process, to {' and '.join(formats)}", Times.of(wholes), against=BASELINE),
        "startup": Row("  of that, start-up", Times.of(startups)),
        "locate": Row("stage 1, from the scan in memory", Times.of(stages["locate"])),
        "segment": Row("stage 2, its mask judged", Times.of(stages["segment"])),
    }
    if peaks:
        rows["peak"] = Row("peak memory of the process", max(peaks) / 1024, "GiB", BASELINE_MEMORY)
    made = f"untrained, preset {preset}: its mask is the whole crop"
    about = {"scan": described(words, image), "model": str(model or made)}
    return Result("predict", MeasuredOn.of(device), about, rows)


def phantom_series(folder: Path) -> Path:
    """Write a phantom of difficulty `real` as an uncompressed DICOM series."""
    scan = make_phantom(0, "real").image.canonical()
    write_ct_series(folder, scan.array, CtGrid.of(scan.geometry))
    return folder


def described(name: str, scan: Volume) -> str:
    """Name a scan with its voxels, slices last."""
    sides, steps = reversed(scan.array.shape), reversed(scan.spacing_mm)
    return f"{name}, {' x '.join(map(str, sides))} voxels of {' x '.join(f'{s:.3g}' for s in steps)} mm"


def seconds_of_cases(output: Path) -> float:
    """Return what a prediction's own record says that its cases took."""
    record = json.loads((output / "run.json").read_text(encoding="utf-8"))
    return float(sum(case["seconds"] for case in record["cases"].values()))


def nothing_found(model: Path, scan: str) -> InputError:
    """The error where there is no stage 2 to time."""
    return InputError(
        f"{model}: finds nothing in {scan}, so stage 2 never runs and there is nothing to time; choose another "
        f"{argument('scan')} or {argument('model')}"
    )
