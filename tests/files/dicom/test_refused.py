"""Faulty CT series are refused, with the file, the slice and the fault named."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from metricunet.files.dicom.series import find_series
from tests.support.dicom_series import Edit, rotation, write_series


def on(slice_index: int, **values: Any) -> Edit:
    """Set elements of one slice; None removes them."""

    def edit(k: int, ds: Dataset) -> None:
        if k == slice_index:
            for keyword, value in values.items():
                if value is None:
                    delattr(ds, keyword)
                else:
                    setattr(ds, keyword, value)

    return edit


def shifted(slice_index: int, dx: float = 0, dy: float = 0, dz: float = 0) -> Edit:
    def edit(k: int, ds: Dataset) -> None:
        if k == slice_index:
            x, y, z = (float(v) for v in ds.ImagePositionPatient)
            ds.ImagePositionPatient = [x + dx, y + dy, z + dz]

    return edit


def sheared(k: int, ds: Dataset) -> None:
    x, y, z = (float(v) for v in ds.ImagePositionPatient)
    ds.ImagePositionPatient = [x, y + 0.05 * k, z]


def creeping(k: int, ds: Dataset) -> None:
    """Every gap is within the tolerance of the mean, but slices end up far from an even grid."""
    x, y, z = (float(v) for v in ds.ImagePositionPatient)
    ds.ImagePositionPatient = [x, y, z + (0.04 * k if k < 4 else 0.04 * (8 - k))]


def all_slices(**values: Any) -> Edit:
    def edit(k: int, ds: Dataset) -> None:
        for keyword, value in values.items():
            setattr(ds, keyword, value)

    return edit


#: Name: the fault, the slice at fault (None: any), and what the reason must say. z = -120 + 2.5 k.
FAULTS: dict[str, tuple[Edit, int | None, str]] = {
    "duplicate position": (shifted(4, dz=2.5), None, r"-107\.50 mm: lies at the position of \d+\.dcm"),
    "uneven spacing": (
        shifted(4, dz=0.3),
        4,
        r"-109\.70 mm \(slice 5 of 8\): lies 2\.80 mm from \d+\.dcm, most slices 2\.50 mm.*even.*allow_gaps=True",
    ),
    "slightly uneven spacing": (shifted(4, dz=0.07), 4, r"2\.57 mm from \d+\.dcm, most slices 2\.50 mm"),
    "creeping spacing": (creeping, None, r"differences up to 0\.05 mm are accepted"),
    "slice shifted in its plane": (shifted(3, dx=1.5), 3, r"-112\.50 mm \(slice 4 of 8\): is shifted by 1\.50 mm"),
    "sheared stack": (
        sheared,
        None,
        r"within its plane.*by 1\.1 degrees, as from a tilted gantry.*allow_tilt=True",
    ),
    "another frame of reference": (on(5, FrameOfReferenceUID="1.2.3"), 5, r"FrameOfReferenceUID is 1\.2\.3, but"),
    "another study": (on(5, StudyInstanceUID="1.2.3"), 5, r"StudyInstanceUID is 1\.2\.3, but"),
    "another patient": (on(5, PatientID="P-002"), 5, r"PatientID differs from that in \d+\.dcm"),
    "another orientation": (
        on(2, ImageOrientationPatient=[-1, 0, 0, 0, 1, 0]),
        2,
        r"ImageOrientationPatient is -1\\0\\0\\0\\1\\0, but 1\\0\\0\\0\\1\\0",
    ),
    "another pixel spacing": (
        on(2, PixelSpacing=[0.9, 1.2]),
        2,
        r"PixelSpacing is 0\.9 x 1\.2 mm, but 0\.9 x 1\.1",
    ),
    "another matrix": (
        on(2, Rows=6, PixelData=b"\0" * 120),
        2,
        r"the matrix \(rows x columns\) is 6 x 10, but 12 x 10",
    ),
    "another pixel format": (on(2, PixelRepresentation=1), 2, "pixel format"),
    "an MR image": (on(2, Modality="MR"), 2, "is an MR image, expected CT"),
    "a PT image": (on(2, Modality="PT"), 2, "is a PT image, expected CT"),
    "a localizer": (on(2, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), 2, "ImageType says LOCALIZER"),
    "a secondary capture": (
        on(2, SOPClassUID="1.2.840.10008.5.1.4.1.1.7"),
        2,
        "SOPClassUID is Secondary Capture Image Storage, expected CT Image Storage",
    ),
    "multi-frame": (on(2, NumberOfFrames=4), 2, "NumberOfFrames is 4, but SOPClassUID is CT Image Storage"),
    "another rescale": (on(2, RescaleIntercept=0), 2, r"the rescale .* is \(1, 0\), but \(1, -1024\)"),
    "another kernel": (
        lambda k, ds: setattr(ds, "ConvolutionKernel", "B60s" if k == 2 else "B30f"),
        2,
        "ConvolutionKernel is B60s, but B30f",
    ),
    "another thickness": (on(2, SliceThickness=5), 2, "SliceThickness is 5 mm, but 2.5 mm"),
    "interleaved acquisitions": (
        lambda k, ds: setattr(ds, "AcquisitionNumber", 7 if k == 3 else 2),
        3,
        "AcquisitionNumber is 7, but 2 in .* interleaved",
    ),
    "every second slice": (
        all_slices(SpacingBetweenSlices=1.25),
        None,
        r"SpacingBetweenSlices is 1\.25 mm, but the slices lie 2\.50 mm apart: 1 of every 2 are missing",
    ),
    "no position": (on(2, ImagePositionPatient=None), 2, "ImagePositionPatient is missing"),
    "short position": (
        on(2, ImagePositionPatient=[1, 2]),
        2,
        "ImagePositionPatient is .*expected 3 finite numbers",
    ),
    "no orientation": (on(2, ImageOrientationPatient=None), 2, "ImageOrientationPatient is missing"),
    "broken orientation": (on(2, ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), 2, "right angles"),
    "no pixel spacing": (on(2, PixelSpacing=None), 2, "PixelSpacing is missing"),
    "zero pixel spacing": (on(2, PixelSpacing=[0, 1]), 2, "PixelSpacing is 0 x 1 mm, expected above 0"),
    "no frame of reference": (on(2, FrameOfReferenceUID=None), 2, "FrameOfReferenceUID is missing"),
    "no slope": (on(2, RescaleSlope=None), 2, "RescaleSlope is missing"),
    "no intercept": (on(2, RescaleIntercept=None), 2, "RescaleIntercept is missing"),
    "zero slope": (on(2, RescaleSlope=0), 2, "RescaleSlope is 0, expected above 0"),
    "other units": (on(2, RescaleType="OD"), 2, "RescaleType is OD, expected HU"),
    "colour": (on(2, SamplesPerPixel=3), 2, "colour"),
    "eight bits": (on(2, BitsAllocated=8, BitsStored=8), 2, "BitsAllocated 8"),
    "no pixels": (on(2, PixelData=None), 2, "has no pixel data"),
    "too few pixels": (on(2, PixelData=b"\0" * 100), 2, "pixel data hold 100 bytes, expected 240"),
    "decubitus": (
        all_slices(ImageOrientationPatient=[0, 1, 0, -1, 0, 0]),
        None,
        "turns the image by 90.0 degrees",
    ),
    "sagittal": (
        all_slices(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
        None,
        "tilts the slices by 90.0 degrees",
    ),
}


class TestRefusedSeries:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_fault_is_named(self, tmp_path: Path, fault: str) -> None:
        edit, at, pattern_text = FAULTS[fault]
        written = write_series(tmp_path, edit=edit)
        found = find_series(tmp_path)
        assert found.series == ()
        (refused,) = found.refused
        assert refused.series_uid == written.series_uid
        assert refused.file_count == 8
        assert re.search(pattern_text, refused.reason), refused.reason
        assert "\n" not in refused.reason
        named = [path for path in written.files if refused.reason.startswith(f"{path}:")]
        assert len(named) == 1
        if at is not None:
            assert named == [written.files[at]]
            assert "slice at z = " in refused.reason or "position" in fault
        assert "Müller" not in refused.reason
        assert "P-00" not in refused.reason

    @pytest.mark.parametrize(
        ("left_out", "said"), [((3,), "1 slice is missing"), ((3, 4), "2 slices are missing")]
    )
    def test_missing_slice(self, tmp_path: Path, left_out: tuple[int, ...], said: str) -> None:
        written = write_series(tmp_path, leave_out=left_out)
        (refused,) = find_series(tmp_path).refused
        assert refused.reason.startswith(f"{written.files[2]}: slice at z = -115.00 mm (slice 3 of")
        assert said in refused.reason

    def test_missing_slice_of_a_four_slice_series(self, tmp_path: Path) -> None:
        write_series(tmp_path, shape=(4, 4, 4), leave_out=(1,))
        (refused,) = find_series(tmp_path).refused
        assert "1 slice is missing" in refused.reason

    @pytest.mark.parametrize(("axis", "said"), [("x", "tilts the slices by 1.2"), ("z", "turns the image by 1.2")])
    def test_more_than_a_degree_off(self, tmp_path: Path, axis: str, said: str) -> None:
        write_series(tmp_path, turn=rotation(axis, 1.2))
        (refused,) = find_series(tmp_path).refused
        assert said in refused.reason

    def test_tilted_gantry(self, tmp_path: Path) -> None:
        # The slices lean, but the table moves along the patient.
        c, s = np.cos(np.radians(12)), np.sin(np.radians(12))
        write_series(tmp_path, edit=all_slices(ImageOrientationPatient=[1, 0, 0, 0, round(c, 8), round(s, 8)]))
        (refused,) = find_series(tmp_path).refused
        assert "tilts the slices by 12.0 degrees from axial" in refused.reason
        assert "gantry tilt" in refused.reason

    @pytest.mark.parametrize(("count", "said"), [(1, "one-slice series"), (2, "two-slice series")])
    def test_too_short(self, tmp_path: Path, count: int, said: str) -> None:
        write_series(tmp_path, shape=(count, 4, 4))
        (refused,) = find_series(tmp_path).refused
        assert said in refused.reason

    def test_a_slice_that_was_exported_twice_counts_once(self, tmp_path: Path) -> None:
        written = write_series(tmp_path)
        (tmp_path / "copy.dcm").write_bytes(written.files[3].read_bytes())
        again = pydicom.dcmread(written.files[4])
        again.StudyDescription = "exported again"
        again.save_as(tmp_path / "again.dcm")
        (found,) = find_series(tmp_path).series
        assert len(found.files) == len(written.files)

    @pytest.mark.parametrize(("count", "said"), [(1, "one-slice series"), (2, "two-slice series")])
    def test_copies_are_no_slices_of_a_series_that_is_too_short(
        self, tmp_path: Path, count: int, said: str
    ) -> None:
        written = write_series(tmp_path, shape=(count, 4, 4))
        for k, file in enumerate((*written.files, *written.files)):
            (tmp_path / f"copy{k}.dcm").write_bytes(file.read_bytes())
        (refused,) = find_series(tmp_path).refused
        assert said in refused.reason
        assert refused.error is None

    def test_two_images_of_one_name_are_no_copies(self, tmp_path: Path) -> None:
        written = write_series(tmp_path)
        other = pydicom.dcmread(written.files[3])
        other.PixelData = bytes(len(other.PixelData))
        other.save_as(tmp_path / "other.dcm")
        (refused,) = find_series(tmp_path).refused
        assert "is the same image as" in refused.reason

    @pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless])
    @pytest.mark.parametrize("lost", [1, 60])
    def test_truncated_pixels_show_before_decoding(self, tmp_path: Path, syntax: Any, lost: int) -> None:
        written = write_series(tmp_path, transfer_syntax=syntax)
        content = written.files[4].read_bytes()
        written.files[4].write_bytes(content[:-lost])
        (refused,) = find_series(tmp_path).refused
        assert refused.reason.startswith(f"{written.files[4]}: slice at z = -110.00 mm: the file is truncated")

    @pytest.mark.parametrize("kept", [0, 100, 140, 400])
    def test_a_file_cut_in_its_header_spoils_its_series(self, tmp_path: Path, kept: int) -> None:
        # The first slice: without it the rest would look like a sound, shorter scan.
        written = write_series(tmp_path)
        written.files[0].write_bytes(written.files[0].read_bytes()[:kept])
        found = find_series(tmp_path)
        assert found.series == ()
        assert any(refused.reason.startswith(f"{written.files[0]}:") for refused in found.refused)

    def test_a_data_set_spoilt_from_its_beginning_is_not_taken_for_something_else(self, tmp_path: Path) -> None:
        # Without its class and modality nothing but the file's own header says that the first slice was one.
        written = write_series(tmp_path)
        content = written.files[0].read_bytes()
        at = content.index(b"\x08\x00\x16\x00")
        written.files[0].write_bytes(content[:at] + content[at + 21 :])
        found = find_series(tmp_path)
        assert found.series == ()
        assert any(refused.reason.startswith(f"{written.files[0]}:") for refused in found.refused)

    def test_damage_elsewhere_spoils_nothing(self, tmp_path: Path) -> None:
        write_series(tmp_path / "a")
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "1.dcm").write_bytes(b"\0" * 50)
        found = find_series(tmp_path)
        assert len(found.series) == 1
        (refused,) = found.refused
        assert refused.reason.startswith(str(tmp_path / "b" / "1.dcm"))

    def test_a_file_cut_behind_its_series_spoils_that_series_alone(self, tmp_path: Path) -> None:
        a, b = write_series(tmp_path), write_series(tmp_path / "b", shape=(5, 12, 10))
        for path in b.files:
            path.rename(tmp_path / f"b{path.name}")
        spoilt = tmp_path / f"b{b.files[0].name}"
        content = spoilt.read_bytes()
        # Within ImageOrientationPatient (0020,0037), behind SeriesInstanceUID and ImagePositionPatient.
        spoilt.write_bytes(content[: content.index(b"\x20\x00\x37\x00") + 12])
        found = find_series(tmp_path)
        assert [s.series_uid for s in found.series] == [a.series_uid]
        (refused,) = found.refused
        assert (refused.series_uid, refused.is_scan) == (b.series_uid, True)
        assert refused.reason.startswith(f"{spoilt}: the DICOM header is damaged")

    def test_a_file_cut_within_its_series_uid_may_be_of_any_series(self, tmp_path: Path) -> None:
        written = write_series(tmp_path)
        content = written.files[0].read_bytes()
        at = content.index(written.series_uid.encode())
        written.files[0].write_bytes(content[: at + 20])
        found = find_series(tmp_path)
        assert found.series == ()
        assert found.refused[0].reason.startswith(f"{written.files[0]}: the DICOM header is damaged")

    def test_an_unreadable_folder_is_listed_and_the_rest_is_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_series(tmp_path / "a")
        (tmp_path / "locked").mkdir()
        scan_folder = os.scandir

        def scandir(path: Any) -> Any:
            if str(path).endswith("locked"):  # permissions do not keep an administrator out
                raise PermissionError(13, "Permission denied", str(path))
            return scan_folder(path)

        monkeypatch.setattr(os, "scandir", scandir)
        found = find_series(tmp_path)
        assert len(found.series) == 1
        (refused,) = found.refused
        assert (
            refused.reason == f"{tmp_path / 'locked'}: cannot be read (Permission denied); check its permissions"
        )

    def test_a_folder_that_can_be_listed_and_not_entered_costs_itself_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_series(tmp_path / "a")
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "nothing.dcm").symlink_to(tmp_path / "nowhere")
        shut = write_series(tmp_path / "shut", shape=(4, 4, 4))
        ask = Path.stat

        def stat(path: Path, **options: Any) -> os.stat_result:
            if path.parent.name == "shut":  # a folder of mode 644; permissions do not keep an administrator out
                raise PermissionError(13, "Permission denied", str(path))
            return ask(path, **options)

        monkeypatch.setattr(Path, "stat", stat)
        found = find_series(tmp_path)
        assert len(found.series) == 1
        (refused,) = found.refused
        assert refused.reason == (
            f"{min(shut.files)}: cannot be read (Permission denied); check its permissions and those of its folder"
        )
        (only,) = find_series(tmp_path / "shut").refused
        assert only.reason == refused.reason

    @pytest.mark.parametrize(
        ("uid", "name"),
        [
            ("1.2.840.10008.1.2.4.201", "High-Throughput JPEG 2000"),
            ("1.2.840.10008.1.2.4.51", "JPEG Extended"),  # which decoders claim to know, and know for 8 bits
        ],
    )
    def test_unknown_transfer_syntax(self, tmp_path: Path, uid: str, name: str) -> None:
        def relabel(k: int, ds: Dataset) -> None:
            ds.file_meta.TransferSyntaxUID = uid
            ds.PixelData = pydicom.encaps.encapsulate([b"\0" * 100])

        written = write_series(tmp_path)
        for k, path in enumerate(written.files):
            dataset = pydicom.dcmread(path)
            relabel(k, dataset)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dataset["PixelData"].is_undefined_length = True
                dataset.save_as(path)
        (refused,) = find_series(tmp_path).refused
        assert f"transfer syntax {name}" in refused.reason
        assert "cannot be decoded here" in refused.reason

    def test_data_sets_without_a_file_header_are_read(self, tmp_path: Path) -> None:
        written = write_series(tmp_path, transfer_syntax=ImplicitVRLittleEndian)
        (whole,) = find_series(tmp_path).series
        expected = whole.read().array
        for path in written.files:
            _write_bare(path, pydicom.dcmread(path))
        (series,) = find_series(tmp_path).series
        assert np.array_equal(series.read().array, expected)

    def test_a_folder_of_mr_images_is_listed_as_such(self, tmp_path: Path) -> None:
        write_series(tmp_path / "ct")
        write_series(tmp_path / "mr", edit=all_slices(Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4"))
        found = find_series(tmp_path)
        assert len(found.series) == 1
        (refused,) = found.refused
        assert "is an MR image, expected CT" in refused.reason
        assert refused.description == "Pelvis"


def _write_bare(path: Path, dataset: Dataset) -> None:
    buffer = pydicom.filebase.DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = True, True
    pydicom.filewriter.write_dataset(buffer, dataset)
    path.write_bytes(buffer.getvalue())


def test_a_modality_of_odd_characters_is_told_in_one_line(tmp_path: Path) -> None:
    def edit(k: int, dataset: pydicom.Dataset) -> None:
        dataset.Modality = "M\x0fR"

    write_series(tmp_path, edit=edit)
    (refused,) = find_series(tmp_path).refused
    assert refused.reason.isprintable()
