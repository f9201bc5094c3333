"""Kill `metricunet predict` at random moments: `python tests/kills/predict.py --count 50 --seed 0`.

Three DICOM series go to NIfTI, RTSTRUCT and SEG. After each kill -9 nothing visible may be half written: where a
verdict is, its files are those that it states. A rerun must end with the files of an unbroken run, and no others:
masks byte for byte, structure sets contour for contour, segmentations pixel for pixel. The status is 1 otherwise.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import numpy as np  # noqa: E402 - the paths come first
import pydicom  # noqa: E402

from metricunet.files.own import OwnFiles  # noqa: E402
from tests.support.dicom_series import write_series  # noqa: E402
from tests.support.threshold_model import GLAND_HU, ball, bands_known, drawn_scan, write_bands_model  # noqa: E402

#: What differs between two runs that are alike: times, and the UIDs of what they wrote.
VARIES = ("files", "seal", "seconds")

#: The command, with the network of thresholds that the model of the tests names.
COMMAND = """
from metricunet.cli import main
from tests.support.threshold_model import bands_known
with bands_known():
    main()
"""


def main() -> int:
    """Run the campaign and say what became of it."""
    parser = argparse.ArgumentParser(description="Kill predict at random moments.")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name, bands_known():
        folder = Path(name)
        model = write_bands_model(folder / "model.safetensors")
        for k in range(3):
            scan = drawn_scan((ball((k, 0, 0), 16 + k), GLAND_HU))
            write_series(
                folder / "scans" / str(k), scan.array, spacing_mm=scan.spacing_mm, series_uid=f"1.2.3.{k + 1}"
            )
        began = time.monotonic()
        assert _predict(folder, model, folder / "whole").wait() == 0
        whole_s = time.monotonic() - began
        expected = _contents(folder / "whole")
        faults, unfinished = [], 0
        for number in range(options.count):
            out = folder / f"out{number}"
            process = _predict(folder, model, out)
            try:
                process.wait(draw.uniform(0.3, 1.05) * whole_s)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                unfinished += 1
            faults += [f"kill {number}: {path}: not whole" for path in _half_written(out)]
            if _predict(folder, model, out).wait() != 0:
                faults.append(f"kill {number}: the rerun did not end well")
            elif (found := _contents(out)) != expected:
                names = sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n))
                faults.append(f"kill {number}: the rerun ended with other files: {names}")
            shutil.rmtree(out, ignore_errors=True)
    print(f"{options.count} runs, {unfinished} killed before their end, {len(faults)} faults", *faults, sep="\n")
    return bool(faults)


def _predict(folder: Path, model: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-c",
        COMMAND,
        "predict",
        str(folder / "scans"),
        "-m",
        str(model),
        "-o",
        str(out),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))}
    return subprocess.Popen(
        [*command, "--format", "nifti,rtstruct,seg", "--device", "cpu"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _half_written(out: Path) -> list[Path]:
    """Return verdicts whose files are not as stated, and files without one that a reader cannot open."""
    bad = [p for p in out.glob("*.quality.json") if not OwnFiles(out, p.name, "predict").is_whole()]
    for path in out.glob("*.dcm"):
        try:
            pydicom.dcmread(path).decode()
        except Exception:
            bad.append(path)
    return bad


def _contents(out: Path) -> dict[str, Any]:
    """Return what each file says, apart from what differs between runs that are alike; hidden ones are named."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        if path.name.endswith(".rtstruct.dcm"):
            rois = pydicom.dcmread(path).ROIContourSequence
            found[path.name] = [list(c.ContourData) for roi in rois for c in roi.ContourSequence]
        elif path.name.endswith(".seg.dcm"):
            found[path.name] = np.asarray(pydicom.dcmread(path).pixel_array).tobytes()
        elif path.name.endswith(".quality.json"):
            content = OwnFiles(out, path.name, "predict").content() or {}
            found[path.name] = {key: value for key, value in content.items() if key not in VARIES}
        else:
            found[path.name] = None if path.name == "run.json" else path.read_bytes()
    return found


if __name__ == "__main__":
    sys.exit(main())
