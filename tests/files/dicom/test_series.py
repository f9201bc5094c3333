"""Intake of CT series: sound ones to the voxel and the micrometre, faulty ones refused by name."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from metricunet.errors import InputError
from metricunet.files.dicom.series import CtSeries, SeriesSearch, find_series
from metricunet.files.dicom.stack import Allow
from metricunet.volume import Geometry, Volume
from tests.support.dicom_series import ORIENTATIONS, companion, pattern, recompress, save, write_series

Edit = Callable[[int, Dataset], None]


def only(search: SeriesSearch) -> CtSeries:
    assert search.refused == ()
    (series,) = search.series
    return series


def rotation(axis: str, degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return {
        "x": np.array([[1, 0, 0], [0, c, -s], [0, s, c]]),
        "y": np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]),
        "z": np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]),
    }[axis]


class TestSoundSeries:
    @pytest.mark.parametrize("position", ORIENTATIONS)
    def test_every_voxel_is_where_its_file_says(self, tmp_path: Path, position: str) -> None:
        written = write_series(tmp_path, patient_position=position)
        series = only(find_series(tmp_path))
        assert series.files == written.files
        assert series.geometry.same_grid(written.geometry, tolerance_mm=1e-6)
        assert np.array_equal(series.read().array, pattern((8, 12, 10)))

    def test_known_positions_by_hand(self, tmp_path: Path) -> None:
        write_series(tmp_path, patient_position="HFP", origin_mm=(50, 70, -20), spacing_mm=(3, 0.5, 2))
        geometry = only(find_series(tmp_path)).geometry
        # Prone: a row runs to the patient's right, a column to the front. PixelSpacing is (between rows, columns).
        np.testing.assert_allclose(geometry.to_world([0, 0, 0]), [50, 70, -20], atol=1e-9)
        np.testing.assert_allclose(geometry.to_world([2, 0, 0]), [50, 70, -14], atol=1e-9)
        np.testing.assert_allclose(geometry.to_world([0, 4, 0]), [50, 68, -20], atol=1e-9)
        np.testing.assert_allclose(geometry.to_world([0, 0, 4]), [42, 70, -20], atol=1e-9)

    @pytest.mark.parametrize("position", ORIENTATIONS)
    def test_agrees_with_highdicom(self, tmp_path: Path, position: str) -> None:
        highdicom = pytest.importorskip("highdicom")
        written = write_series(tmp_path, patient_position=position, slope=2.0, intercept=-1000.0)
        ours = only(find_series(tmp_path)).read()
        theirs = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in written.files])
        other = Volume(theirs.array, Geometry(theirs.array.shape, theirs.affine))
        np.testing.assert_array_equal(other.reordered_like(ours.geometry).array, ours.array)

    @settings(deadline=None, max_examples=15)
    @given(
        position=st.sampled_from(list(ORIENTATIONS)),
        spacing=st.tuples(*[st.floats(0.3, 5.0).map(lambda v: round(v, 4))] * 3),
        origin=st.tuples(*[st.floats(-900, 900).map(lambda v: round(v, 3))] * 3),
        shape=st.tuples(st.integers(3, 6), st.integers(2, 6), st.integers(2, 6)),
        lean=st.floats(-0.6, 0.6),
    )
    def test_any_grid_within_tolerance(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        position: str,
        spacing: Any,
        origin: Any,
        shape: Any,
        lean: float,
    ) -> None:
        folder = tmp_path_factory.mktemp("series")
        written = write_series(
            folder,
            shape=shape,
            spacing_mm=spacing,
            origin_mm=origin,
            patient_position=position,
            turn=rotation("x", lean) @ rotation("z", -lean),
        )
        series = only(find_series(folder))
        assert series.geometry.same_grid(written.geometry, tolerance_mm=1e-3)
        assert np.array_equal(series.read().array, pattern(shape))

    def test_slices_keep_their_own_positions_and_identifiers(self, tmp_path: Path) -> None:
        written = write_series(tmp_path, patient_position="FFS")
        series = only(find_series(tmp_path))
        for k, path in enumerate(written.files):
            dataset = pydicom.dcmread(path)
            assert series.sop_uids[k] == dataset.SOPInstanceUID
            np.testing.assert_allclose(series.positions_mm[k], dataset.ImagePositionPatient)
        assert series.header.SOPInstanceUID == series.sop_uids[0]
        assert "PixelData" not in series.header
        assert series.frame_of_reference_uid == written.frame_of_reference_uid

    def test_a_hundredth_of_a_millimetre_of_jitter_passes(self, tmp_path: Path) -> None:
        jitter = np.random.default_rng(3).uniform(-0.01, 0.01, (40, 3))

        def shake(k: int, ds: Dataset) -> None:
            place = np.asarray(ds.ImagePositionPatient, dtype=float) + jitter[k]
            ds.ImagePositionPatient = [round(float(v), 6) for v in place]

        written = write_series(tmp_path, shape=(40, 4, 4), spacing_mm=(0.8, 0.7, 0.7), edit=shake)
        geometry = only(find_series(tmp_path)).geometry
        assert geometry.same_grid(written.geometry, tolerance_mm=0.02)

    def test_a_short_stack_with_jitter_is_not_taken_for_sheared(self, tmp_path: Path) -> None:
        def shake(k: int, ds: Dataset) -> None:
            x, y, z = ds.ImagePositionPatient
            ds.ImagePositionPatient = [float(x) + (0.02 if k == 2 else 0), y, z]

        write_series(tmp_path, shape=(3, 4, 4), spacing_mm=(0.6, 1, 1), edit=shake)
        assert only(find_series(tmp_path)).geometry.shape == (3, 4, 4)

    def test_two_series_in_one_folder_are_two_cases(self, tmp_path: Path) -> None:
        frame, study = generate_uid(), generate_uid()
        a = write_series(tmp_path, frame_of_reference_uid=frame, study_uid=study)
        for path in a.files:
            path.rename(path.with_name("a" + path.name))
        b = write_series(tmp_path, shape=(5, 12, 10), frame_of_reference_uid=frame, study_uid=study)
        found = find_series(tmp_path)
        assert found.refused == ()
        assert {s.series_uid: s.geometry.shape[0] for s in found.series} == {a.series_uid: 8, b.series_uid: 5}

    def test_one_series_may_lie_in_several_folders(self, tmp_path: Path) -> None:
        written = write_series(tmp_path)
        (tmp_path / "sub").mkdir()
        written.files[3].rename(tmp_path / "sub" / written.files[3].name)
        assert only(find_series(tmp_path)).geometry.same_grid(written.geometry)

    def test_a_single_file_stands_for_its_series_alone(self, tmp_path: Path) -> None:
        a = write_series(tmp_path)
        for path in a.files:
            path.rename(path.with_name("a" + path.name))
        b = write_series(tmp_path, shape=(4, 6, 6))
        assert only(find_series(b.files[2])).series_uid == b.series_uid

    def test_case_is_a_hash_and_tells_no_name(self, tmp_path: Path) -> None:
        write_series(tmp_path, shape=(3, 2, 2), series_uid="1.2.3")
        # printf 1.2.3 | sha256sum
        assert only(find_series(tmp_path)).case == "c47f5b18b8a4"

    def test_odd_but_harmless_values_are_no_news(self, tmp_path: Path) -> None:
        def edit(k: int, ds: Dataset) -> None:
            ds.SOPInstanceUID = f"1.02.x{k}"
            ds.StudyDate = "spring"

        write_series(tmp_path, edit=edit)
        series = only(find_series(tmp_path))
        assert series.sop_uids[0] == "1.02.x0"
        series.read()

    def test_companions_and_foreign_files_are_passed_over(self, tmp_path: Path) -> None:
        write_series(tmp_path)
        (tmp_path / "notes.txt").write_text("patient was lying still")
        (tmp_path / "empty").touch()
        (tmp_path / ".DS_Store").write_bytes(b"\0" * 300)
        save(tmp_path / "rs", companion("RTSTRUCT", "1.2.840.10008.5.1.4.1.1.481.3"))
        save(tmp_path / "rd", companion("RTDOSE", "1.2.840.10008.5.1.4.1.1.481.2", Rows=2, Columns=2))
        save(tmp_path / "sr.dcm", companion("SR", "1.2.840.10008.5.1.4.1.1.88.11"))
        directory = companion("", "1.2.840.10008.1.3.10")
        save(tmp_path / "DICOMDIR", directory)
        only(find_series(tmp_path))

    def test_a_directory_of_files_is_passed_over(self, tmp_path: Path) -> None:
        # As on a disc: DICOMDIR is DICOM, and no element of its data set says what it is.
        written = write_series(tmp_path)
        directory = Dataset()
        directory.FileSetID, directory.DirectoryRecordSequence = "DISC", []
        directory.file_meta = FileMetaDataset()
        directory.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
        directory.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        directory.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
        assert only(find_series(tmp_path)).geometry.same_grid(written.geometry)


class TestPixels:
    @pytest.mark.parametrize(
        "syntax",
        [ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless],
        ids=lambda uid: uid.name,
    )
    @pytest.mark.parametrize("signed", [False, True])
    def test_transfer_syntaxes(self, tmp_path: Path, syntax: pydicom.uid.UID, signed: bool) -> None:
        write_series(tmp_path, transfer_syntax=syntax, signed=signed)
        volume = only(find_series(tmp_path)).read()
        assert volume.array.dtype == np.int16
        assert np.array_equal(volume.array, pattern((8, 12, 10)))

    def test_big_endian(self, tmp_path: Path) -> None:
        def swap(k: int, ds: Dataset) -> None:
            ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()

        write_series(tmp_path, transfer_syntax=ExplicitVRBigEndian, edit=swap)
        assert np.array_equal(only(find_series(tmp_path)).read().array, pattern((8, 12, 10)))

    @pytest.mark.parametrize(
        "name",
        ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "JPEG2000"],
    )
    @pytest.mark.parametrize(("signed", "bits"), [(False, 16), (True, 16), (False, 12)])
    def test_compressed_pixels_come_back_to_the_bit(
        self, tmp_path: Path, name: str, signed: bool, bits: int
    ) -> None:
        def store(k: int, ds: Dataset) -> None:
            ds.BitsStored, ds.HighBit = bits, bits - 1

        written = write_series(tmp_path, signed=signed, edit=store)
        for path in written.files:
            recompress(path, name)
        assert pydicom.dcmread(written.files[0]).file_meta.TransferSyntaxUID.is_compressed
        assert np.array_equal(only(find_series(tmp_path)).read().array, pattern((8, 12, 10)))

    def test_unused_high_bits_are_ignored(self, tmp_path: Path) -> None:
        def overlay(k: int, ds: Dataset) -> None:
            ds.BitsStored, ds.HighBit = 12, 11
            ds.PixelData = (np.frombuffer(ds.PixelData, "<u2") | 0x4000).tobytes()

        write_series(tmp_path, edit=overlay)
        assert np.array_equal(only(find_series(tmp_path)).read().array, pattern((8, 12, 10)))

    def test_fractional_rescale_gives_float(self, tmp_path: Path) -> None:
        write_series(tmp_path, slope=0.5, intercept=-1024.0)
        array = only(find_series(tmp_path)).read().array
        assert array.dtype == np.float32
        assert np.array_equal(array, pattern((8, 12, 10)))

    def test_values_that_overflow_give_float(self, tmp_path: Path) -> None:
        def bright(k: int, ds: Dataset) -> None:
            if k == 5:
                ds.PixelData = np.full((12, 10), 60000, "<u2").tobytes()

        write_series(tmp_path, edit=bright)
        array = only(find_series(tmp_path)).read().array
        assert array.dtype == np.float32
        assert (array[5] == 60000 - 1024).all()
        assert np.array_equal(np.delete(array, 5, axis=0), np.delete(pattern((8, 12, 10)), 5, axis=0))

    def test_damage_that_only_decoding_shows_names_the_slice(self, tmp_path: Path) -> None:
        def spoil(k: int, ds: Dataset) -> None:
            if k == 4:
                ds.PixelData = pydicom.encaps.encapsulate([b"\1\0\0\0" + b"\0" * 80])

        written = write_series(tmp_path, transfer_syntax=RLELossless, after=spoil)
        with pytest.raises(InputError, match=r"-110\.00 mm.*truncated or damaged") as caught:
            only(find_series(tmp_path)).read()
        assert str(written.files[4]) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_file_that_goes_between_search_and_reading(self, tmp_path: Path) -> None:
        written = write_series(tmp_path)
        series = only(find_series(tmp_path))
        written.files[2].unlink()
        with pytest.raises(InputError, match=rf"{written.files[2]}.*has gone"):
            series.read()


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
        r"-109\.70 mm \(slice 5 of 8\): lies 2\.80 mm from \d+\.dcm, most slices 2\.50 mm.*even.*allow-gaps",
    ),
    "slightly uneven spacing": (shifted(4, dz=0.07), 4, r"2\.57 mm from \d+\.dcm, most slices 2\.50 mm"),
    "creeping spacing": (creeping, None, r"differences up to 0\.05 mm are accepted"),
    "slice shifted in its plane": (shifted(3, dx=1.5), 3, r"-112\.50 mm \(slice 4 of 8\): is shifted by 1\.50 mm"),
    "sheared stack": (sheared, None, r"within its plane.*by 1\.1 degrees, as from a tilted gantry.*allow-tilt"),
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

    def test_the_same_image_twice(self, tmp_path: Path) -> None:
        written = write_series(tmp_path)
        (tmp_path / "copy.dcm").write_bytes(written.files[3].read_bytes())
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

    def test_unknown_transfer_syntax(self, tmp_path: Path) -> None:
        def relabel(k: int, ds: Dataset) -> None:
            ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"
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
        assert "transfer syntax High-Throughput JPEG 2000" in refused.reason
        assert "cannot be decoded here" in refused.reason

    def test_data_sets_without_a_file_header(self, tmp_path: Path) -> None:
        written = write_series(tmp_path, transfer_syntax=ImplicitVRLittleEndian)
        for path in written.files:
            _write_bare(path, pydicom.dcmread(path))
        (refused,) = find_series(tmp_path).refused
        assert "no DICOM file header" in refused.reason

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


class TestNothingThere:
    def test_no_such_path(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no such file or folder"):
            find_series(tmp_path / "nowhere")

    def test_no_dicom_in_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("nothing here")
        with pytest.raises(InputError, match="holds no DICOM images"):
            find_series(tmp_path)

    def test_companions_alone(self, tmp_path: Path) -> None:
        save(tmp_path / "rs.dcm", companion("RTSTRUCT", "1.2.840.10008.5.1.4.1.1.481.3"))
        with pytest.raises(InputError, match="holds no DICOM images"):
            find_series(tmp_path)
        with pytest.raises(InputError, match="modality RTSTRUCT, expected a CT image"):
            find_series(tmp_path / "rs.dcm")

    def test_a_file_that_is_not_dicom(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("nothing here")
        with pytest.raises(InputError, match="is not a DICOM file"):
            find_series(tmp_path / "notes.txt")


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
