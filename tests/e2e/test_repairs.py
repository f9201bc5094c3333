"""Scans with gaps or a tilt, and folders of everything, through the whole program.

The tiny model's mask may be good or bad: what is tested is where it lies, what it refers to, and what is said.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from metricunet.files.dicom.series import find_series
from metricunet.files.dicom.stack import Allow
from metricunet.files.nifti import read_nifti
from tests.support.command import Command
from tests.support.dicom_series import companion, save, write_series

GAP_NOTE = "2 slices are missing between z ="


def scan_of(tiny_cohort: Path, folder: Path, **more: Any) -> Path:
    """Write an unseen tiny scan as a DICOM series."""
    scan = read_nifti(tiny_cohort / "imagesTs" / "case_06_0000.nii.gz").canonical()
    write_series(folder, np.ascontiguousarray(scan.array), spacing_mm=scan.spacing_mm, signed=True, **more)
    return folder


def quality_of(out: Path) -> dict[str, Any]:
    (path,) = out.glob("*.quality.json")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def lean(k: int, ds: Dataset) -> None:
    """Slices that are sheared by 10 degrees."""
    x, y, z = (float(v) for v in ds.ImagePositionPatient)
    ds.ImagePositionPatient = [x, y + 4 * k * np.tan(np.radians(10)), z]


def test_missing_slices(metricunet: Command, tiny_cohort: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder, out = scan_of(tiny_cohort, tmp_path / "ct", leave_out=[4, 5]), tmp_path / "out"
    ended = metricunet("predict", folder, "-m", tiny_model, "-o", out, "--format", "nifti,rtstruct,seg")
    assert ended.status == 2
    assert "2 slices are missing" in ended.err
    assert "--allow-gaps" in ended.err
    assert not out.exists()

    words = ["predict", folder, "-m", tiny_model, "-o", out, "--format", "nifti,rtstruct,seg", "--draw-anyway"]
    ended = metricunet(*words, "--allow-gaps")
    assert ended.err == ""
    quality = quality_of(out)
    assert quality["verdict"] != "pass"
    assert any(GAP_NOTE in reason for reason in quality["reasons"])
    assert GAP_NOTE in ended.out
    (series,) = find_series(folder, Allow(gaps=True)).series
    assert series.geometry.shape == (30, 48, 56)
    (mask,), (drawn,) = out.glob("*.nii.gz"), out.glob("*.rtstruct.dcm")
    assert read_nifti(mask).geometry.same_grid(series.geometry, tolerance_mm=0.01)
    heights = {round(float(z), 3) for z in series.positions_mm[:, 2]}
    for contour in pydicom.dcmread(drawn).ROIContourSequence[0].ContourSequence:
        assert {round(float(z), 3) for z in contour.ContourData[2::3]} <= heights
    assert "done before" in metricunet(*words, "--allow-gaps").out


def test_a_tilted_gantry(metricunet: Command, tiny_cohort: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder, out = scan_of(tiny_cohort, tmp_path / "ct", edit=lean), tmp_path / "out"
    assert "--allow-tilt" in metricunet("predict", folder, "-m", tiny_model, "-o", out).err
    refused = metricunet(
        "predict", folder, "-m", tiny_model, "-o", out, "--allow-tilt", "--format", "nifti,rtstruct"
    )
    assert refused.status == 2
    assert "are tilted and were resampled" in refused.err
    assert "use --format nifti" in refused.err
    assert not out.exists()

    ended = metricunet("predict", folder, "-m", tiny_model, "-o", out, "--allow-tilt")
    assert ended.err == ""
    quality = quality_of(out)
    assert quality["verdict"] != "pass"
    assert any("sheared by 10.0 degrees" in reason for reason in quality["reasons"])
    (mask,) = out.glob("*.nii.gz")
    directions = read_nifti(mask).geometry.directions
    np.testing.assert_allclose(np.abs(directions).max(axis=0), 1, atol=1e-6)


def test_check_warns_of_what_is_allowed(metricunet: Command, tiny_cohort: Path, tmp_path: Path) -> None:
    folder = scan_of(tiny_cohort, tmp_path / "ct", leave_out=[4, 5])
    ended = metricunet("check", folder)
    assert ended.status == 1
    assert "2 slices are missing" in ended.out
    ended = metricunet("check", folder, "--allow-gaps")
    assert ended.status == 0
    assert f"warning: {folder}: {GAP_NOTE}" in ended.out
    tilted = scan_of(tiny_cohort, tmp_path / "tilted", edit=lean)
    assert metricunet("check", tilted, "--allow-gaps").status == 1
    assert metricunet("check", tilted, "--allow-tilt").status == 0


def test_a_series_that_is_not_in_hounsfield_units_is_an_error(metricunet: Command, tmp_path: Path) -> None:
    write_series(tmp_path, np.full((4, 5, 6), 100, np.int16))
    ended = metricunet("check", tmp_path)
    assert ended.status == 1


@pytest.fixture
def everything(tiny_cohort: Path, tmp_path: Path) -> Path:
    """A folder of two patients' scans, a localizer, a dose report, a plan, an MR, and a series with a gap."""

    def of(patient: str, kind: str = "CT") -> Any:
        def edit(k: int, ds: Dataset) -> None:
            ds.PatientID, ds.Modality, ds.SeriesDescription = patient, kind, kind

        return edit

    def scout(k: int, ds: Dataset) -> None:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    folder = tmp_path / "archive"
    scan_of(tiny_cohort, folder / "one", edit=of("P-1"))
    scan_of(tiny_cohort, folder / "two", edit=of("P-2"))
    write_series(folder / "one" / "scout", shape=(1, 12, 10), edit=scout)
    write_series(folder / "mr", edit=of("P-1", "MR"))
    report = companion("CT", "1.2.840.10008.5.1.4.1.1.7", SeriesDescription="Dose report", Rows=2, Columns=2)
    report.PixelData, report.BitsAllocated, report.SamplesPerPixel = b"\0" * 12, 8, 3
    save(folder / "one" / "report.dcm", report)
    save(folder / "one" / "plan.dcm", companion("RTPLAN", "1.2.840.10008.5.1.4.1.1.481.5"))
    save(folder / "one" / "dose.dcm", companion("RTDOSE", "1.2.840.10008.5.1.4.1.1.481.2", Rows=2, Columns=2))
    # All into one folder, as an export may have it.
    for path in [*folder.rglob("*.dcm")]:
        path.rename(folder / f"{path.parent.name}_{path.name}")
    return folder


def test_a_folder_of_everything(metricunet: Command, tiny_model: Path, everything: Path, tmp_path: Path) -> None:
    found = find_series(everything)
    assert {str(s.header.PatientID) for s in found.series} == {"P-1", "P-2"}
    assert len(found.refused) == 3
    assert not any(refused.is_scan for refused in found.refused)
    reasons = " ".join(refused.reason for refused in found.refused)
    assert "says LOCALIZER" in reasons
    assert "is an MR image, expected CT" in reasons
    assert "Secondary Capture Image Storage" in reasons

    out = tmp_path / "out"
    ended = metricunet("predict", everything, "-m", tiny_model, "-o", out)
    assert len([*out.glob("*.quality.json")]) == 2
    assert ended.err.count("refused: ") == 3
    verdicts = {json.loads(path.read_text())["verdict"] for path in out.glob("*.quality.json")}
    assert ended.status == int("fail" in verdicts)  # what is no CT scan is listed, and is no failure
    assert metricunet("check", everything).status == 0

    # A scan that is refused is a failure, and stops nothing.
    write_series(everything / "gap", leave_out=[3])
    ended = metricunet("predict", everything, "-m", tiny_model, "-o", tmp_path / "more")
    assert ended.status == 1
    assert ended.err.count("refused: ") == 4
    assert len([*(tmp_path / "more").glob("*.quality.json")]) == 2
