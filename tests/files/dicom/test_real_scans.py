"""Intake of real scans: their grids, their pixels, and what becomes of a few of their slices."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from metricunet.files.dicom.series import find_series
from metricunet.files.dicom.stack import Allow
from tests.support.dicom_series import only


class TestRealScans:
    def test_feet_first_pelvis(self, shared_data: Path) -> None:
        series = only(find_series(shared_data / "pelvis_ct_dicom"))
        geometry = series.geometry
        assert geometry.shape == (235, 512, 512)
        np.testing.assert_allclose(geometry.spacing_mm, (0.8, 0.78125, 0.78125), atol=1e-9)
        assert str(series.header.PatientPosition) == "FFS"
        first, last = pydicom.dcmread(series.files[0]), pydicom.dcmread(series.files[-1])
        np.testing.assert_allclose(geometry.to_world([0, 0, 0]), first.ImagePositionPatient, atol=1e-6)
        np.testing.assert_allclose(geometry.to_world([234, 0, 0]), last.ImagePositionPatient, atol=1e-6)
        assert geometry.directions[2, 0] == pytest.approx(1)

    def test_pelvis_pixels_of_a_few_slices(self, shared_data: Path, tmp_path: Path) -> None:
        files = sorted((shared_data / "pelvis_ct_dicom").iterdir())[100:104]
        for path in files:
            (tmp_path / path.name).symlink_to(path)
        series = only(find_series(tmp_path))
        volume = series.read()
        assert volume.array.dtype == np.int16
        assert volume.array.min() == -1024
        for k, path in enumerate(series.files):
            assert np.array_equal(volume.array[k], pydicom.dcmread(path).pixel_array.astype(int) - 1024)

    def test_thorax(self, shared_data: Path) -> None:
        series = only(find_series(shared_data / "thorax_rt_dicom"))
        assert series.geometry.shape == (105, 512, 512)
        assert series.geometry.spacing_mm[0] == pytest.approx(4)

    def test_ten_two_slice_series(self, shared_data: Path) -> None:
        found = find_series(shared_data / "pelvis_slices_dicom")
        assert found.series == ()
        assert len(found.refused) == 10
        for refused in found.refused:
            path, _, reason = refused.reason.partition(": ")
            assert reason.startswith("belongs to a two-slice series")
            assert str(pydicom.dcmread(path, stop_before_pixels=True).SeriesInstanceUID) == refused.series_uid
            assert refused.file_count == 2

    @pytest.mark.parametrize("folder", ["pelvis_ct_dicom", "thorax_rt_dicom"])
    def test_real_slices_as_an_enhanced_file(self, shared_data: Path, tmp_path: Path, folder: str) -> None:
        highdicom = pytest.importorskip("highdicom")
        series = only(find_series(shared_data / folder))
        slices = [pydicom.dcmread(path) for path in series.files[40:44]]
        for ds in slices:
            ds.decompress() if ds.file_meta.TransferSyntaxUID.is_compressed else None
            _complete(ds)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # dates that were scrubbed to nonsense
            converted = highdicom.legacy.LegacyConvertedEnhancedCTImage(
                legacy_datasets=slices[::-1],
                series_instance_uid=generate_uid(),
                series_number=1,
                sop_instance_uid=generate_uid(),
                instance_number=1,
            )
            converted.save_as(tmp_path / "1.dcm")
        read = only(find_series(tmp_path))
        start = (40, 0, 0)
        assert read.geometry.same_grid(series.geometry.crop(start, read.geometry.shape), tolerance_mm=1e-3)
        hu = np.stack([ds.pixel_array.astype(int) - 1024 for ds in slices])
        assert np.array_equal(read.read().array, hu)

    def test_a_real_scan_with_slices_taken_out(self, shared_data: Path, tmp_path: Path) -> None:
        whole = only(find_series(shared_data / "thorax_rt_dicom"))
        kept = [k for k in range(40, 52) if k not in (44, 45, 49)]
        for k in kept:
            (tmp_path / whole.files[k].name).symlink_to(whole.files[k])
        (refused,) = find_series(tmp_path).refused
        assert refused.reason.startswith(f"{tmp_path / whole.files[43].name}: ")
        assert "2 slices are missing" in refused.reason
        series = only(find_series(tmp_path, Allow(gaps=True)))
        assert series.geometry.same_grid(whole.geometry.crop((40, 0, 0), (12, 512, 512)), tolerance_mm=1e-3)
        array = series.read().array
        for k in kept:
            assert np.array_equal(array[k - 40], pydicom.dcmread(whole.files[k]).pixel_array.astype(int) - 1024)


def _complete(ds: Dataset) -> None:
    """What a conversion asks of its slices and scrubbed ones lack, or hold nonsense in."""
    for keyword in ("PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber"):
        setattr(ds, keyword, "")
    for keyword in ("PositionReferenceIndicator", "ReferringPhysicianName", "StudyDate", "StudyTime"):
        setattr(ds, keyword, "")
    for keyword in ("SoftwareVersions", "ManufacturerModelName", "DeviceSerialNumber", "Manufacturer"):
        if keyword not in ds:
            setattr(ds, keyword, "unknown")
    ds.BurnedInAnnotation, ds.PatientName = "NO", "No^Name"
