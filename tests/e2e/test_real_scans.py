"""A real DICOM series through the whole program.

The models know nothing of real scans: what is tested is geometry, references and validity, not where masks lie.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from metricunet.files.dicom.series import CtSeries, find_series
from metricunet.files.nifti import read_nifti, write_nifti
from metricunet.files.rtstruct.outlines import Structure
from metricunet.files.rtstruct.read import read_rtstruct
from metricunet.files.rtstruct.write import write_rtstruct
from metricunet.volume import Volume
from tests.support.command import Command
from tests.support.threshold_model import bands_known, write_bands_model

#: Where the gland lies in this scan: LPS, found by eye (behind the symphysis, below the bladder).
PROSTATE_Z_MM = (-478.0, -450.0)


@pytest.fixture(scope="module")
def series(shared_data: Path) -> CtSeries:
    search = find_series(shared_data / "pelvis_ct_dicom")
    assert search.refused == ()
    (series,) = search.series
    return series


def test_prediction_of_a_feet_first_series(
    metricunet: Command, shared_data: Path, series: CtSeries, tmp_path: Path
) -> None:
    folder, out = shared_data / "pelvis_ct_dicom", tmp_path / "out"
    with bands_known():
        model = write_bands_model(tmp_path / "model.safetensors")
        words = ("--format", "nifti,rtstruct", "--draw-anyway")
        ended = metricunet("predict", folder, "-m", model, "-o", out, *words)
    assert ended.err == ""
    assert (out / f"{series.case}.quality.json").is_file()
    assert (out / f"{series.case}.rtstruct.dcm").is_file()
    written = read_nifti(out / f"{series.case}.nii.gz")
    assert written.array.any()
    assert written.reordered_like(series.geometry).geometry is series.geometry


def test_a_mask_keeps_its_place_through_nifti_and_rtstruct(series: CtSeries, tmp_path: Path) -> None:
    """Mark a ball where the gland is; it must come back where it was."""
    centre = np.array([0.0, 0.0, np.mean(PROSTATE_Z_MM)])
    centre[:2] = series.geometry.centre_mm[:2]
    middle, shape = np.floor(series.geometry.to_index(centre)).astype(int), series.geometry.shape
    near = [np.arange(max(0, k - 50), min(n, k + 50)) for k, n in zip(middle, shape, strict=True)]
    index = np.stack(np.meshgrid(*near, indexing="ij"), axis=-1)
    mask = np.zeros(shape, dtype=np.uint8)
    mask[np.ix_(*near)] = np.linalg.norm(series.geometry.to_world(index) - centre, axis=-1) < 18
    volume = Volume(mask, series.geometry)
    write_nifti(tmp_path / "mask.nii.gz", volume)
    image = nib.load(tmp_path / "mask.nii.gz")
    ras = image.affine @ [*np.argwhere(np.asarray(image.dataobj)).mean(axis=0), 1]
    np.testing.assert_allclose([-ras[0], -ras[1], ras[2]], centre, atol=0.5)
    structures = [Structure("Prostate^auto", volume.with_array(mask > 0))]
    write_rtstruct(tmp_path / "set.dcm", series, structures, description="a ball")
    back = read_rtstruct(tmp_path / "set.dcm", series).mask("Prostate^auto", series.geometry)
    np.testing.assert_array_equal(back.array, mask)
    dataset = pydicom.dcmread(tmp_path / "set.dcm")
    used = {
        item.ReferencedSOPInstanceUID
        for contour in dataset.ROIContourSequence[0].ContourSequence
        for item in contour.ContourImageSequence
    }
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    assert used == {series.sop_uids[k] for k in slices}
    assert all(PROSTATE_Z_MM[0] - 25 < series.positions_mm[k][2] < PROSTATE_Z_MM[1] + 25 for k in slices)
    _oracles_agree(tmp_path, series, volume)


def _oracles_agree(folder: Path, series: CtSeries, volume: Volume) -> None:
    if shutil.which("dciodvfy") is None or shutil.which("plastimatch") is None:
        pytest.skip("dciodvfy or plastimatch is not installed (Debian: dicom3tools, plastimatch)")
    checked = subprocess.run(["dciodvfy", str(folder / "set.dcm")], capture_output=True, text=True, check=False)
    assert "Error" not in checked.stdout + checked.stderr
    subprocess.run(
        # It cannot decode JPEG 2000, so the grid comes from our NIfTI instead of the series.
        ["plastimatch", "convert", "--input", str(folder / "set.dcm"), "--fixed", str(folder / "mask.nii.gz"),
         "--output-prefix", str(folder / "pm"), "--prefix-format", "nii.gz", "--xor-contours"],
        check=True, capture_output=True,
    )  # fmt: skip
    (read,) = (folder / "pm").glob("*.nii.gz")
    theirs = read_nifti(read).reordered_like(series.geometry)
    np.testing.assert_array_equal(theirs.array > 0, volume.array > 0)


def test_a_real_nifti(metricunet: Command, shared_data: Path, tiny_model: Path, tmp_path: Path) -> None:
    path = shared_data / "pelvis_ct_nifti" / "example_ct.nii.gz"
    ended = metricunet("predict", path, "-m", tiny_model, "-o", tmp_path / "out")
    assert ended.err == ""
    assert metricunet("check", path).status == 0


def test_series_too_short_to_segment(
    metricunet: Command, shared_data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    ended = metricunet("predict", shared_data / "pelvis_slices_dicom", "-m", tiny_model, "-o", tmp_path / "out")
    assert ended.status == 2
    assert "two-slice series" in ended.err
    assert "9 more were refused" in ended.err
    assert not (tmp_path / "out").exists()
