"""Scans of odd shapes, contents and names in one folder: each is segmented, or refused in a line of its own."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from metricunet.files.nifti import read_labels, write_nifti
from tests.support.command import Command
from tests.support.threshold_model import GLAND_HU, ball, drawn_scan

SCAN = drawn_scan((ball((0, 0, 0), 18), GLAND_HU), shape=(30, 40, 40), spacing_mm=(3, 3, 3))


def put(path: Path, array: NDArray[Any]) -> Path:
    """Write an array [x, y, z] as it is."""
    nib.save(nib.Nifti1Image(array, np.diag([-3.0, -3.0, 3.0, 1.0])), path)
    return path


@pytest.mark.parametrize(
    "shape",
    [(1, 40, 40), (2, 40, 40), (30, 40, 1), (30, 1, 40), (2, 2, 2), (400, 3, 3)],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_a_scan_of_any_shape_ends_with_a_verdict(
    metricunet: Command, bands_model: Path, tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    first = [max(0, (n - k) // 2) for n, k in zip(SCAN.array.shape, shape, strict=True)]
    part = SCAN.crop(first, [min(n, k) for n, k in zip(SCAN.array.shape, shape, strict=True)])
    array = np.resize(part.array, shape)
    array.flat[0] = -1000  # every CT has some air
    write_nifti(tmp_path / "a.nii.gz", drawn_scan(shape=shape, spacing_mm=(3, 3, 3)).with_array(array))
    out = tmp_path / "out"
    ended = metricunet("predict", tmp_path / "a.nii.gz", "-m", bands_model, "-o", out, "--device", "cpu")
    assert ended.err == ""
    quality = json.loads((out / "a.quality.json").read_text())
    assert quality["verdict"] in ("review", "fail")  # a whole gland cannot be in it
    assert ended.status == (quality["verdict"] == "fail")
    if quality["structures"]:
        assert read_labels(out / "a.nii.gz").array.shape == shape


def test_what_is_no_scan_costs_no_other_its_mask(metricunet: Command, bands_model: Path, tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    write_nifti(scans / "good.nii.gz", SCAN)
    packed = (scans / "good.nii.gz").read_bytes()
    voxels = np.ascontiguousarray(SCAN.array.transpose(2, 1, 0))
    colours = np.zeros(voxels.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    put(scans / "flat.nii.gz", voxels[:, :, 3])
    put(scans / "phases.nii.gz", np.stack([voxels, voxels], axis=-1))
    put(scans / "waves.nii.gz", voxels.astype(np.complex64))
    put(scans / "colours.nii.gz", colours)
    put(scans / "empty_scan.nii.gz", np.full_like(voxels, -1000))
    put(scans / "huge.nii.gz", voxels.astype(np.float64) * 1e30)
    put(scans / "filled.nii.gz", np.where(voxels < -900, np.finfo(np.float32).min, voxels.astype(np.float32)))
    (scans / "plain.nii.gz").write_bytes(gzip.decompress(packed))
    (scans / "packed.nii").write_bytes(packed)
    (scans / "cut.nii.gz").write_bytes(packed[:-3000])
    (scans / "nothing.nii.gz").write_bytes(b"")
    (scans / "text.nii").write_text("hello" * 200)
    with zipfile.ZipFile(scans / "passed_over.zip", "w") as archive:
        archive.writestr("a.nii.gz", packed)
    said = {
        "flat.nii.gz": "has 2 dimensions (40, 40); expected one three-dimensional scan",
        "phases.nii.gz": "has 4 dimensions (40, 40, 30, 2); expected one three-dimensional scan",
        "waves.nii.gz": "voxels of type complex64; expected integers or real numbers",
        "colours.nii.gz": "expected integers or real numbers",
        "empty_scan.nii.gz": "every voxel is -1000; the scan is empty",
        "huge.nii.gz": "so these are no Hounsfield units",
        "filled.nii.gz": "the lowest value is -3.40282e+38, so these are no Hounsfield units",
        "plain.nii.gz": "is not compressed with gzip as its name says",
        "packed.nii": "is compressed with gzip, but not named so; rename it to packed.nii.gz",
        "cut.nii.gz": "the file is truncated or damaged",
        "nothing.nii.gz": "not a readable NIfTI file",
        "text.nii": "not a readable NIfTI file",
    }
    ended = metricunet("predict", scans, "-m", bands_model, "-o", out, "--device", "cpu")
    assert ended.status == 1
    lines = ended.err.splitlines()
    assert len(lines) == len(said)
    for name, words in said.items():
        (line,) = (line for line in lines if line.startswith(f"refused: {scans / name}: "))
        assert words in line
    assert {path.name for path in out.iterdir()} == {"good.nii.gz", "good.quality.json", "run.json"}
    for name, words in said.items():
        checked = metricunet("check", scans / name)
        assert checked.status in (1, 2)
        assert words in checked.out + checked.err
    assert metricunet("check", scans / "passed_over.zip").status == 2


def test_two_scans_of_one_name_are_named(metricunet: Command, bands_model: Path, tmp_path: Path) -> None:
    scans = [tmp_path / subject / "ct.nii.gz" for subject in ("s0", "s1")]
    for scan in scans:
        write_nifti(scan, SCAN)
    ended = metricunet("predict", *scans, "-m", bands_model, "-o", tmp_path / "out")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert f"{scans[1]}: case ct is there twice (see {scans[0]})" in ended.err
    assert not (tmp_path / "out").exists()
