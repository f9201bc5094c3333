"""Whole predictions by torch, onnxruntime and OpenVINO, in processes of their own; and the bare networks in turn.

`python -m benchmarks runtimes SCAN --phantoms 8 --python OTHER/bin/python`, where that environment holds what
requirements-onnx.txt lists and metricunet, and no torch.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metricunet.api import load_scan
from metricunet.evaluation.measures import measure
from metricunet.files.nifti import read_labels
from metricunet.inference.models import named_model
from metricunet.inference.onnx_predictor import OnnxPredictor, Run, import_openvino, opened_model
from metricunet.inference.predictor import Predictor
from metricunet.inference.reruns import MOST_RERUNS
from metricunet.inference.segmenter import Segmenter, Stage
from metricunet.phantom import make_phantom
from metricunet.volume import Volume
from metricunet.workflows.bench.predict import seconds_of_cases
from metricunet.workflows.bench.process import run_metricunet
from metricunet.workflows.bench.result import MeasuredOn, Result, Row
from metricunet.workflows.bench.timing import Times, alternate, take_turns
from metricunet.workflows.ct_writer import CtGrid, write_ct_series
from metricunet.workflows.export import export

CPU = torch.device("cpu")
#: Sides of a coarse grid as a pelvis has them: 400 x 400 x 280 mm at 4 mm.
COARSE = (72, 104, 104)


def bench_runtimes(
    scans: Sequence[Path], model: Path, *, phantoms: int = 0, python: Path | None = None, repeats: int = 3
) -> Result:
    """Measure whole processes and bare networks, and count the voxels that differ from torch's in fp32.

    Args:
        scans: DICOM folders or files.
        model: the model file, or `base`.
        phantoms: how many phantoms of difficulty `real` are segmented as well, as uncompressed DICOM.
        python: interpreter of an environment without torch, for onnxruntime; None for this one.
        repeats: of each measurement.

    Raises:
        InputError: a scan or model that cannot be read.
    """
    used = named_model(model)
    with tempfile.TemporaryDirectory(prefix="metricunet-runtimes-") as name:
        folder = Path(name)
        exported = folder / "exported"
        export(used, exported, to="onnx")
        paths = [*scans, *(_phantom(folder / f"phantom-{seed}", seed) for seed in range(phantoms))]
        rows = {**_whole(paths, used, exported, python, repeats, folder), **_networks(used, exported, repeats)}
    about = {
        "model": str(used),
        "scans": ", ".join([*map(str, scans), *([f"{phantoms} phantoms"] if phantoms else [])]) or "none",
        "onnxruntime's process": str(python or sys.executable),
    }
    return Result("runtimes", MeasuredOn.of(CPU), about, rows)


def _phantom(folder: Path, seed: int) -> Path:
    scan = make_phantom(seed, "real").image.canonical()
    write_ct_series(folder, scan.array, CtGrid.of(scan.geometry))
    return folder


def _whole(
    paths: Sequence[Path], model: Path, exported: Path, python: Path | None, repeats: int, folder: Path
) -> dict[str, Row]:
    ways: dict[str, tuple[Path | str, list[object]]] = {
        "torch": (sys.executable, ["-m", model, "--device", "cpu"]),
        "onnxruntime": (python or sys.executable, ["-m", exported]),
    }
    if importlib.util.find_spec("openvino") is not None:
        ways["OpenVINO"] = (sys.executable, ["-m", exported, "--provider", "openvino"])
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    startups: dict[str, list[float]] = {way: [] for way in ways}
    peaks: dict[str, list[float]] = {way: [] for way in ways}
    equal: dict[str, list[float]] = {way: [] for way in ways}
    reference = Predictor([model], "cpu", "fp32")
    halves = _in_bf16(exported) if paths and "OpenVINO" in ways else None
    half: list[tuple[float, float]] = []
    target = reference.card.labels[reference.card.target]
    for number, path in enumerate(paths):

        def run(way: str, path: Path = path, number: int = number) -> float:
            interpreter, words = ways[way]
            output = folder / f"{number}-{way}-{len(seconds[way])}"
            drawn = ["--format", "nifti,rtstruct", "--draw-anyway"] if path.is_dir() else []
            # Another interpreter has its own packages, and shall not find those of this one.
            environment = {} if interpreter == sys.executable else {"PYTHONPATH": ""}
            call = ["predict", path, "-o", output, *drawn, *words]
            ended = run_metricunet(call, environment, python=interpreter)
            seconds[way].append(ended.seconds)
            startups[way].append(ended.seconds - seconds_of_cases(output))
            peaks[way] += [] if ended.peak_mib is None else [ended.peak_mib]
            return ended.seconds

        take_turns({way: partial(run, way) for way in ways}, repeats)
        scan = load_scan(path).volume
        labels = reference.predict(scan).labels
        if halves is not None:
            half.append(_compared(labels, halves.predict(scan).labels, target))
        for way in ways:
            written = next((folder / f"{number}-{way}-{len(seconds[way]) - 1}").glob("*.nii.gz"), None)
            if labels is None or written is None:
                equal[way].append(float(labels is None and written is None))
            else:
                found = read_labels(written).reordered_like(labels.geometry).array
                equal[way].append(float((found == labels.array).mean()))
    rows: dict[str, Row] = {}
    for way in ways if paths else ():
        rows[f"whole {way}"] = Row(f"{way}: the whole process", Times.of(seconds[way]))
        rows[f"startup {way}"] = Row("  of that, start-up", Times.of(startups[way]))
        rows[f"equal {way}"] = Row("  voxels as torch's in fp32, at least", 100 * min(equal[way]), "%")
        if peaks[way]:
            rows[f"peak {way}"] = Row("  peak memory of the process", max(peaks[way]), "MiB")
    if half:
        name = "OpenVINO in bf16, which is not offered: Dice of the target with torch's in fp32, at least"
        rows["half dice"] = Row(name, min(dice for _, dice in half))
        name = "  voxels that differ, of a million, at most"
        rows["half differing"] = Row(name, 1e6 * max(share for share, _ in half))
    return rows


def _in_bf16(exported: Path) -> Segmenter:
    """Return an exported model that OpenVINO computes in bf16, where the processor has it."""
    core = import_openvino().Core()

    def opener(path: Path) -> Run:
        compiled = core.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
        return lambda images: np.array(compiled([images])[0])

    return Segmenter([exported], [opened_model(exported, opener)], "openvino, bf16", MOST_RERUNS)


def _compared(one: Volume | None, other: Volume | None, target: int) -> tuple[float, float]:
    """Return the share of voxels in which two label maps differ, and the Dice of a value in them."""
    if one is None or other is None:
        both = one is None and other is None
        return float(not both), float(both)
    theirs = other.reordered_like(one.geometry)
    dice = measure(theirs.with_array(theirs.array == target), one.with_array(one.array == target)).dice
    return float((one.array != theirs.array).mean()), 1.0 if dice is None else dice


def _networks(model: Path, exported: Path, repeats: int) -> dict[str, Row]:
    """Time the networks alone on numbers drawn at random, and compare their probabilities."""
    found: dict[str, Any] = {
        "torch, fp32": Predictor([model], "cpu", "fp32"),
        "torch, bf16": Predictor([model], "cpu", "bf16"),
        "onnxruntime": OnnxPredictor([exported], provider="cpu"),
    }
    if importlib.util.find_spec("openvino") is not None:
        found["OpenVINO"] = OnnxPredictor([exported], provider="openvino")
    card = found["torch, fp32"].card
    sides = {"locate": COARSE, "segment": card.segment.crop_voxels}
    if card.organs is not None:
        sides["organs"] = card.organs.crop_voxels
    rows: dict[str, Row] = {}
    stage: Stage
    for stage, shape in sides.items():  # type: ignore[assignment]
        hu = np.random.default_rng(0).normal(20, 100, shape).astype(np.float32)
        runs: dict[str, Callable[[], Any]] = {
            way: partial(predictor.models[0].probabilities, stage, hu) for way, predictor in found.items()
        }
        wanted = runs["torch, fp32"]()
        for way, times in alternate(runs, repeats, CPU).items():
            difference = float(np.abs(runs[way]() - wanted).max())
            rows[f"{stage} {way}"] = Row(
                f"network of {stage}: {way}", Times.of(times), against=f"probabilities differ by {difference:.1e}"
            )
    return rows
