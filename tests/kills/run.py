"""Kill commands at random moments: `python tests/kills/run.py COMMAND --count 50 --seed 0`.

`predict` brings three DICOM series to NIfTI, RTSTRUCT and SEG, `convert` a label map to all that there is,
`import` three patients into a cohort, `phantom` makes a cohort of four scans, `demo` is the demo with hardly any
training, `commission` all of commissioning, and `study` shares a tiny study among two processes, of which one is
killed. After each kill -9 nothing visible may be half written: where a record is, its files are those that it
states. A rerun must end with the files of an unbroken run, and no others: byte for byte where nothing in them is
of the moment. The status is 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import numpy as np  # noqa: E402 - the paths come first
import pydicom  # noqa: E402

from metricunet.files.dicom.series import find_series  # noqa: E402
from metricunet.files.nifti import write_nifti  # noqa: E402
from metricunet.files.own import OwnFiles  # noqa: E402
from metricunet.volume import Volume  # noqa: E402
from tests.support.dicom_series import write_series  # noqa: E402
from tests.support.patients import Patient, write_ct, write_set  # noqa: E402
from tests.support.threshold_model import (  # noqa: E402
    GLAND_HU,
    ball,
    bands_known,
    drawn_scan,
    write_bands_model,
)

#: Fields of a record that differ between two runs that are alike: times, and hashes of what holds times and UIDs.
VARIES = ("files", "seal", "seconds", "started", "timings_s", "arguments", "finished")
#: Of the files of these commands only those with such endings are alike in two runs. The rest must be there.
ALIKE = {
    "study": (".csv", ".md"),
    "demo": (".nii.gz", "cases.csv", "summary.json", "phantoms.json"),
    "commission": (".nii.gz", ".nrrd", ".mha"),
}
#: The command, with the network of thresholds that the model of the tests names.
COMMAND = """
from metricunet.cli import main
from tests.support.threshold_model import bands_known
{setup}
with bands_known():
    main()
"""


#: Makes the demo short.
SHORT_DEMO = """
from functools import partial
from metricunet.workflows import demo
settings = ("base_channels=4", "epochs=2", "updates_per_epoch=2")
tiny = [f"{stage}.{setting}" for stage in ("locate", "segment") for setting in settings]
demo.demo = partial(demo.demo, training_cases=3, unseen_cases=1, settings=(*demo.SETTINGS, *tiny))
"""


@dataclass(frozen=True)
class Target:
    """A command to kill.

    Attributes:
        words: of its command line, given the folder of its inputs; the output is added.
        records: pattern of its records in the output.
        processes: that work on one output at once; the first is killed.
        setup: lines of Python that come before the command.
        statuses: that it may end with when it was left alone.
    """

    words: Callable[[Path], list[object]]
    records: str
    processes: int = 1
    setup: str = ""
    statuses: tuple[int, ...] = (0,)


def of_predict(folder: Path) -> list[object]:
    """Three series, and a model that finds what is drawn in them."""
    if not (folder / "scans").exists():
        write_bands_model(folder / "model.safetensors")
        for k in range(3):
            scan = drawn_scan((ball((k, 0, 0), 16 + k), GLAND_HU))
            write_series(folder / "scans" / str(k), scan.array, spacing_mm=scan.spacing_mm)
    words = ["predict", folder / "scans", "-m", folder / "model.safetensors", "--device", "cpu"]
    return [*words, "--format", "nifti,rtstruct,seg"]


def of_import(folder: Path) -> list[object]:
    """Three patients with a prostate."""
    if not (folder / "patients").exists():
        for k in range(3):
            patient = Patient(f"Doe{k}^John", f"P-{k}")
            series = write_ct(folder / "patients" / str(k) / "ct", patient)
            write_set(
                folder / "patients" / str(k) / "rs.dcm", patient, series, {"Prostate": (4.5, 12.5, (1, 2, 3))}
            )
        (folder / "names.yaml").write_text("prostate: [Prostate]\n")
    return ["import", folder / "patients", "--names", folder / "names.yaml"]


def of_convert(folder: Path) -> list[object]:
    """A label map of two structures, on its series."""
    if not (folder / "ct").exists():
        scan = drawn_scan((ball((0, 0, 0), 16), GLAND_HU))
        write_series(folder / "ct", scan.array, spacing_mm=scan.spacing_mm)
        (series,) = find_series(folder / "ct").series
        labels = (scan.array == GLAND_HU).astype("uint8")
        labels[:3] = 2
        write_nifti(folder / "labels" / "a.nii.gz", Volume(labels, series.geometry))
    words = ["convert", folder / "labels" / "a.nii.gz", "--scan", folder / "ct"]
    return [*words, "--to", "nifti,masks,rtstruct,seg"]


def of_study(folder: Path) -> list[object]:
    """The study that the README begins with."""
    return ["study", ROOT / "studies" / "smoke.yaml", "--device", "cpu"]


def of_phantom(folder: Path) -> list[object]:
    """Four scans with a reader."""
    return ["phantom", "-n", "3", "--test", "1", "--difficulty", "easy", "--readers", "1"]


def of_demo(folder: Path) -> list[object]:
    """The demo."""
    return ["demo"]


def of_commission(folder: Path) -> list[object]:
    """All of the commissioning."""
    return ["commission"]


TARGETS = {
    "predict": Target(of_predict, "*.quality.json"),
    "import": Target(of_import, "import.json"),
    "convert": Target(of_convert, "convert.json"),
    "study": Target(of_study, "study.json", processes=2),
    "phantom": Target(of_phantom, "phantoms.json"),
    # A training that short may miss the gland.
    "demo": Target(of_demo, "demo.json", setup=SHORT_DEMO, statuses=(0, 1)),
    "commission": Target(of_commission, "commission.json"),
}


def main() -> int:
    """Run the campaign and say what became of it."""
    parser = argparse.ArgumentParser(description="Kill a command at random moments.")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, target = random.Random(options.seed), TARGETS[options.target]
    with tempfile.TemporaryDirectory() as name, bands_known():
        folder = Path(name)
        words = target.words(folder)
        began = time.monotonic()
        assert start(words, folder / "whole", target).wait() in target.statuses
        whole_s = time.monotonic() - began
        expected = contents(folder / "whole", options.target)
        faults, unfinished = [], 0
        for number in range(options.count):
            out = folder / f"out{number}"
            first, *others = [start(words, out, target) for _ in range(target.processes)]
            try:
                first.wait(draw.uniform(0.2, 1.05) * whole_s)
            except subprocess.TimeoutExpired:
                first.send_signal(signal.SIGKILL)
                first.wait()
                unfinished += 1
            faults += [f"{number}: {path}: not whole" for path in half_written(out, target, options.target)]
            badly = [p for p in others if p.wait() not in target.statuses]
            faults += [f"{number}: a process that shares the work ended badly" for _ in badly]
            if start(words, out, target).wait() not in target.statuses:
                faults.append(f"{number}: the rerun did not end well")
            elif (found := contents(out, options.target)) != expected:
                names = sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n))
                faults.append(f"{number}: the rerun ended with other files: {names}")
            shutil.rmtree(out, ignore_errors=True)
            print(f"\r{number + 1} runs, {unfinished} killed, {len(faults)} faults", end="", flush=True)
    print()
    print(f"{options.count} runs, {unfinished} killed before their end, {len(faults)} faults", *faults, sep="\n")
    return bool(faults)


def start(words: list[object], out: Path, target: Target) -> subprocess.Popen[bytes]:
    """Start the command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(setup=target.setup), *map(str, words), "-o", str(out)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def half_written(out: Path, target: Target, command: str) -> list[Path]:
    """Return records whose files are not as stated, and visible files that their readers cannot open."""
    bad = [p for p in out.glob(target.records) if not OwnFiles(out, p.name, command).is_whole()]
    for path in (p for p in out.rglob("*") if p.is_file() and not hidden(p.relative_to(out))):
        try:
            if path.suffix == ".dcm":
                pydicom.dcmread(path).decode()
            elif path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue  # of a process that is still at work
        except Exception:
            bad.append(path)
    return bad


def hidden(path: Path) -> bool:
    """Whether a file, or a folder that it lies in, is hidden: unfinished work."""
    return any(part.startswith(".") for part in path.parts)


def contents(out: Path, command: str) -> dict[str, Any]:
    """Return what each file says, apart from what differs between runs that are alike."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = str(path.relative_to(out))
        if path.name.endswith(".rtstruct.dcm"):
            rois = pydicom.dcmread(path).ROIContourSequence
            found[name] = [list(c.ContourData) for roi in rois for c in roi.ContourSequence]
        elif path.name.endswith(".seg.dcm"):
            found[name] = np.asarray(pydicom.dcmread(path).pixel_array).tobytes()
        elif (record := OwnFiles(path.parent, path.name, command).content()) is not None:
            kept = {key: value for key, value in record.items() if key not in VARIES}
            found[name] = None if path.name == "run.json" or command in ("study", "demo") else kept
        elif command in ALIKE and (path.name == "log.csv" or not path.name.endswith(ALIKE[command])):
            found[name] = None
        else:
            found[name] = path.read_bytes()
    return found


if __name__ == "__main__":
    sys.exit(main())
