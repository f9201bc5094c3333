"""How much memory a prediction takes: no float copy of a whole scan is ever made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.support.dicom_series import write_series

#: Runs a command and prints the peak of its resident memory in KiB. A process of its own, since a child's peak
#: counts what its parent held when it was started.
MEASURED = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
MATRIX = (512, 512)
SPACING_MM = (1.0, 0.5, 0.6)


def peak_bytes(model: Path, folder: Path, slices: int) -> int:
    """Return the peak of `metricunet predict` on a DICOM scan of a bright ball in a body of fat."""
    sides = [n * step for n, step in zip((slices, *MATRIX), SPACING_MM, strict=True)]
    axes = [np.linspace(-side / 2, side / 2, n) for side, n in zip(sides, (slices, *MATRIX), strict=True)]
    body = (axes[1][:, None] / 100) ** 2 + (axes[2] / 120) ** 2 < 1
    hu = np.where(body, -90, -1000).astype(np.int16)[None].repeat(slices, axis=0)
    ball = (axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2) < 20**2
    hu[ball] = 60
    write_series(folder / "scan", hu, spacing_mm=SPACING_MM)
    command = [sys.executable, "-m", "metricunet", "predict", folder / "scan", "-m", model, "-o", folder / "out"]
    result = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, command)], capture_output=True, text=True, check=True
    )
    status, kibibytes = map(int, result.stdout.split())
    assert status == 0
    assert list((folder / "out").glob("*.nii.gz"))
    return kibibytes * 1024


def test_a_long_scan_costs_its_voxels_in_16_bits_and_its_labels_in_8(tiny_model: Path, tmp_path: Path) -> None:
    few, many = 100, 320
    more = peak_bytes(tiny_model, tmp_path / "many", many) - peak_bytes(tiny_model, tmp_path / "few", few)
    voxels = (many - few) * MATRIX[0] * MATRIX[1]
    # 2 bytes for HU, 1 for labels, 1 for what the writer holds; a float copy alone would be 4 more.
    assert more < 4.5 * voxels
