"""Enhanced (multi-frame) CT: read as its frames say, and referred to frame by frame."""

from __future__ import annotations

import re
import shutil
import subprocess
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from metricunet.errors import InputError
from metricunet.files.dicom.pixels import read_hu
from metricunet.files.dicom.series import CtSeries, find_series
from metricunet.files.dicom.slice import SliceHeader
from metricunet.files.nifti import read_nifti, write_nifti
from metricunet.files.rtstruct.add import add_to_rtstruct
from metricunet.files.rtstruct.read import read_rtstruct
from metricunet.files.rtstruct.write import write_rtstruct
from metricunet.files.seg.read import read_seg
from metricunet.files.seg.write import write_seg
from metricunet.inference.inputs import find_inputs
from metricunet.volume import Volume
from tests.support.ct_cases import Series, draw_series, save, write
from tests.support.dicom_series import ORIENTATIONS, pattern, recompress, write_series
from tests.support.structure_sets import dciodvfy_complaints, ellipsoid, structure


def drawn_series(seed: int = 0, position: str = "FFS", slices: int = 8) -> Series:
    return draw_series(np.random.default_rng(seed), position, slices=slices)


def enhanced(folder: Path, change: Callable[[Dataset], None] | None = None, **more: int) -> Path:
    """Write an enhanced CT of several frames, changed as a test wants, and return the file."""
    write(drawn_series(**more), folder, np.random.default_rng(1), enhanced=True)
    path = folder / "enhanced.dcm"
    if change is not None:
        dataset = pydicom.dcmread(path)
        if dataset.file_meta.TransferSyntaxUID.is_compressed:
            dataset.decompress()
        change(dataset)
        dataset.save_as(path)
    return path


def only(path: Path) -> CtSeries:
    found = find_series(path)
    assert found.refused == ()
    (series,) = found.series
    return series


class TestReading:
    @pytest.mark.parametrize("position", ORIENTATIONS)
    def test_a_conversion_by_highdicom_is_the_series_it_was_made_from(self, tmp_path: Path, position: str) -> None:
        written = write_series(tmp_path / "single", patient_position=position, edit=_complete)
        slices = [pydicom.dcmread(path) for path in written.files]
        converted = hd.legacy.LegacyConvertedEnhancedCTImage(
            legacy_datasets=slices[::-1],
            series_instance_uid=generate_uid(),
            series_number=1,
            sop_instance_uid=generate_uid(),
            instance_number=1,
        )
        (tmp_path / "enhanced").mkdir()
        converted.save_as(tmp_path / "enhanced" / "1.dcm")
        series = only(tmp_path / "enhanced")
        assert series.geometry.same_grid(written.geometry, tolerance_mm=1e-6)
        np.testing.assert_array_equal(series.read().array, pattern((8, 12, 10)))
        assert set(series.sop_uids) == {converted.SOPInstanceUID}
        assert sorted(f for f in series.frames if f) == list(range(1, 9))

    @pytest.mark.parametrize(
        "syntax",
        [ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless],
        ids=lambda uid: uid.name,
    )
    def test_transfer_syntaxes(self, tmp_path: Path, syntax: pydicom.uid.UID) -> None:
        drawn = drawn_series()
        drawn.syntax = syntax
        write(drawn, tmp_path, np.random.default_rng(1), enhanced=True)
        np.testing.assert_array_equal(only(tmp_path).read().array, drawn.hu)

    @pytest.mark.parametrize("left_out", ["preamble", "file header"])
    def test_files_as_some_programs_begin_them(self, tmp_path: Path, left_out: str) -> None:
        drawn = drawn_series()
        drawn.syntax = ImplicitVRLittleEndian
        write(drawn, tmp_path, np.random.default_rng(1), enhanced=True)
        path = tmp_path / "enhanced.dcm"
        content = path.read_bytes()
        preamble, length = 132, int.from_bytes(content[140:144], "little")  # of group 2, behind its first element
        path.write_bytes(content[preamble if left_out == "preamble" else 144 + length :])
        np.testing.assert_array_equal(only(tmp_path).read().array, drawn.hu)

    @pytest.mark.parametrize("name", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless"])
    def test_compressed_frames_come_back_to_the_bit(self, tmp_path: Path, name: str) -> None:
        drawn, rng = drawn_series(), np.random.default_rng(1)
        drawn.syntax = ExplicitVRLittleEndian
        stored = rng.integers(0, 4096, (8, 16, 20)).astype(np.uint16)  # a coder may fail on much smaller pictures
        for ds, plane in zip(drawn.slices, stored, strict=True):
            ds.Rows, ds.Columns, ds.PixelRepresentation, ds.PixelData = 16, 20, 0, plane.tobytes()
            ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        source = pydicom.dcmread(write(drawn, tmp_path / "plain", rng, enhanced=True).files[0])
        frames = []
        for k, plane in enumerate(source.pixel_array):
            drawn.slices[0].PixelData = plane.tobytes()
            save(tmp_path / f"{k}.dcm", drawn.slices[0])
            recompress(tmp_path / f"{k}.dcm", name)
            done = pydicom.dcmread(tmp_path / f"{k}.dcm")
            frames += pydicom.encaps.generate_frames(done.PixelData, number_of_frames=1)
        source.file_meta.TransferSyntaxUID = done.file_meta.TransferSyntaxUID
        source.PixelData = pydicom.encaps.encapsulate(frames)
        source["PixelData"].is_undefined_length = True
        (tmp_path / "compressed").mkdir()
        source.save_as(tmp_path / "compressed" / "1.dcm")
        np.testing.assert_array_equal(only(tmp_path / "compressed").read().array, stored.astype(int) - 1024)

    @pytest.mark.parametrize("cuts", [[3], range(1, 8)], ids=["two", "one frame each"])
    def test_several_files_make_one_scan(self, tmp_path: Path, cuts: Sequence[int]) -> None:
        drawn, rng = drawn_series(), np.random.default_rng(1)
        bounds = [0, *cuts, 8]
        for first, last in pairwise(bounds):
            part = drawn.slices[first:last]
            some = Series(part, drawn.positions_mm, drawn.across_mm, drawn.down_mm, drawn.hu, drawn.step_mm)
            write(some, tmp_path / str(first), rng, enhanced=True)
        series = only(tmp_path)
        assert len(set(series.files)) == len(cuts) + 1
        np.testing.assert_array_equal(series.read().array, drawn.hu)

    @pytest.mark.parametrize("is_changed", [False, True])
    def test_a_copy_of_the_file_is_compared_as_a_whole(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_changed: bool
    ) -> None:
        path = enhanced(tmp_path)
        again = tmp_path / "copy.dcm"
        shutil.copy(path, again)
        if is_changed:
            dataset = pydicom.dcmread(again)
            dataset.StudyDescription = "exported again"
            dataset.save_as(again)
        decoded: list[int] = []

        def counted(slices: tuple[SliceHeader, ...]) -> NDArray[Any]:
            decoded.append(len(slices))
            return read_hu(slices)

        def refused(self: Path) -> bytes:
            raise AssertionError(f"{self} is read into memory for each of its frames")

        monkeypatch.setattr("metricunet.files.dicom.copies.read_hu", counted)
        monkeypatch.setattr(Path, "read_bytes", refused)
        series = only(tmp_path)
        assert len(series.files) == 8
        assert decoded == ([8, 8] if is_changed else [])

    def test_frames_that_only_look_like_copies_are_refused(self, tmp_path: Path) -> None:
        path = enhanced(tmp_path)
        dataset = pydicom.dcmread(path)
        if dataset.file_meta.TransferSyntaxUID.is_compressed:
            dataset.decompress(generate_instance_uid=False)
        stored = np.frombuffer(dataset.PixelData, np.uint16).copy()
        stored[stored.size * 3 // 8] ^= 1  # in the fourth frame
        dataset.PixelData = stored.tobytes()
        dataset.save_as(tmp_path / "other.dcm")
        (found,) = find_series(tmp_path).refused
        assert "frame 4 at z" in found.reason
        assert "is the same image as" in found.reason

    def test_its_hash_counts_the_file_once(self, tmp_path: Path) -> None:
        path = enhanced(tmp_path)
        (entry,), _ = find_inputs([tmp_path])
        before = entry.sha256()
        path.write_bytes(path.read_bytes() + b"\0")
        assert entry.sha256() != before
        assert only(tmp_path).files == (path,) * 8


def _complete(k: int, ds: Dataset) -> None:
    """What a conversion asks of its slices."""
    ds.PositionReferenceIndicator = ""
    ds.SoftwareVersions, ds.ManufacturerModelName, ds.DeviceSerialNumber = "1", "Synthetic", "1"
    ds.BurnedInAnnotation = "NO"
    ds.AcquisitionNumber = 1


def _first_group(name: str) -> Callable[[Dataset], None]:
    """Give a functional group to the file's third frame alone, or a second time."""

    def change(ds: Dataset) -> None:
        group = getattr(ds.PerFrameFunctionalGroupsSequence[2], name)
        setattr(ds.SharedFunctionalGroupsSequence[0], name, group)

    return change


def _drop_a_description(ds: Dataset) -> None:
    del ds.PerFrameFunctionalGroupsSequence[-1]


def _lose_a_frame(ds: Dataset) -> None:
    ds.PixelData = ds.PixelData[: -2 * ds.Rows * ds.Columns]


def _two_items(ds: Dataset) -> None:
    frame = ds.PerFrameFunctionalGroupsSequence[2]
    frame.PlanePositionSequence = [*frame.PlanePositionSequence, Dataset()]


class TestRefusing:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (_first_group("PlanePositionSequence"), r": frame 1: PlanePositionSequence stands both in the shared"),
            (_drop_a_description, r": NumberOfFrames is 8, but PerFrameFunctionalGroupsSequence describes 7"),
            (_lose_a_frame, r"pixel data hold \d+ bytes, expected"),
            (_two_items, r": frame 3: PlanePositionSequence has 2 items, expected one"),
            (lambda ds: delattr(ds, "PerFrameFunctionalGroupsSequence"), r"describes 0; export the scan again"),
            (lambda ds: setattr(ds, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]), "says LOCALIZER"),
        ],
    )
    def test_damaged_functional_groups(self, tmp_path: Path, change: Callable[[Dataset], None], said: str) -> None:
        path = enhanced(tmp_path, change)
        found = find_series(tmp_path)
        assert found.series == ()
        assert found.refused[0].reason.startswith(f"{path}: ")
        assert re.search(said, found.refused[0].reason), found.refused[0].reason

    def test_a_truncated_file(self, tmp_path: Path) -> None:
        path = enhanced(tmp_path)
        path.write_bytes(path.read_bytes()[:-3])
        (refused,) = find_series(tmp_path).refused
        assert "truncated within its pixel data" in refused.reason

    def test_a_spoilt_frame_is_named_when_it_is_decoded(self, tmp_path: Path) -> None:
        drawn = drawn_series()
        drawn.syntax = RLELossless
        written = write(drawn, tmp_path, np.random.default_rng(1), enhanced=True)
        path, frame = written.files[3], written.frames[3]
        assert frame is not None
        dataset = pydicom.dcmread(path)
        parts = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=8))
        parts[frame - 1] = b"\1\0\0\0" + b"\0" * 80
        dataset.PixelData = pydicom.encaps.encapsulate(parts)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset.save_as(path)
        with pytest.raises(InputError, match=rf"enhanced\.dcm: frame {frame} at z = .*truncated or damaged"):
            only(tmp_path).read()

    def test_a_single_frame_localizer_beside_it_is_another_series(self, tmp_path: Path) -> None:
        enhanced(tmp_path)
        scout = drawn_series(slices=3).slices[0]
        scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        save(tmp_path / "scout.dcm", scout)
        found = find_series(tmp_path)
        assert len(found.series) == 1
        (refused,) = found.refused
        assert "ImageType says LOCALIZER" in refused.reason
        assert not refused.is_scan


class TestReferring:
    @pytest.fixture(params=list(ORIENTATIONS))
    def series(self, tmp_path: Path, request: pytest.FixtureRequest) -> CtSeries:
        rng = np.random.default_rng(4)
        drawn = draw_series(rng, request.param, slices=8)
        for ds in drawn.slices:
            ds.Rows, ds.Columns, ds.PixelSpacing, ds.SliceThickness = 30, 34, [0.9, 1.1], drawn.step_mm
            ds.PixelData = rng.integers(0, 2000, (30, 34)).astype(np.uint16).tobytes()
        write(drawn, tmp_path / "ct", rng, enhanced=True)
        return only(tmp_path / "ct")

    def test_structure_sets_name_frames(self, tmp_path: Path, series: CtSeries) -> None:
        mask = ellipsoid(series.geometry, (3.4 * series.geometry.spacing_mm[0], 9, 11))
        path = tmp_path / "rs.dcm"
        write_rtstruct(path, series, [structure("Prostate", mask, series)], description="test")
        dataset = pydicom.dcmread(path)
        study = dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
        (whole,) = study.RTReferencedSeriesSequence[0].ContourImageSequence
        assert whole.ReferencedSOPInstanceUID == series.sop_uids[0]
        assert whole.ReferencedSOPClassUID == "1.2.840.10008.5.1.4.1.1.2.1"
        assert "ReferencedFrameNumber" not in whole
        source = pydicom.dcmread(series.files[0])
        for contour in dataset.ROIContourSequence[0].ContourSequence:
            (image,) = contour.ContourImageSequence
            assert image.ReferencedSOPInstanceUID == source.SOPInstanceUID
            groups = source.PerFrameFunctionalGroupsSequence[image.ReferencedFrameNumber - 1]
            z = float(groups.PlanePositionSequence[0].ImagePositionPatient[2])
            assert float(contour.ContourData[2]) == pytest.approx(z, abs=0.3)  # the grid may lean a little
        read = read_rtstruct(path, series)
        assert read.warnings == ()
        assert read.structures[0].image_frames == tuple(
            c.ContourImageSequence[0].ReferencedFrameNumber for c in dataset.ROIContourSequence[0].ContourSequence
        )
        np.testing.assert_array_equal(read.mask("Prostate", series.geometry).array, mask)
        assert dciodvfy_complaints(path) == []
        more = tmp_path / "more.dcm"
        add_to_rtstruct(path, more, series, [structure("Bladder", ~mask, series)], description="test")
        assert read_rtstruct(more, series).warnings == ()
        np.testing.assert_array_equal(read_rtstruct(more).mask("Bladder", series.geometry).array, ~mask)
        _plastimatch_agrees(tmp_path, series, mask)

    def test_a_contour_that_names_the_wrong_frame_is_noted(self, tmp_path: Path, series: CtSeries) -> None:
        mask = ellipsoid(series.geometry, (3.4 * series.geometry.spacing_mm[0], 9, 11))
        path = tmp_path / "rs.dcm"
        write_rtstruct(path, series, [structure("Prostate", mask, series)], description="test")
        dataset = pydicom.dcmread(path)
        (image,) = dataset.ROIContourSequence[0].ContourSequence[0].ContourImageSequence
        image.ReferencedFrameNumber = series.frames[-1]
        dataset.save_as(path)
        (note,) = read_rtstruct(path, series).warnings
        assert "from the plane of the image that they name" in note

    def test_segmentations_name_frames(self, tmp_path: Path, series: CtSeries) -> None:
        mask = np.random.default_rng(3).random(series.geometry.shape) < 0.3
        mask[[0, 5]] = False
        path = tmp_path / "seg.dcm"
        write_seg(path, series, [structure("Prostate", mask, series)], description="test")
        np.testing.assert_array_equal(read_seg(path, series)["Prostate"].array, mask)
        # highdicom finds each plane by the frame that it refers to.
        theirs = hd.seg.segread(path)
        numbers = [f for f, k in zip(series.frames, range(8), strict=True) if f is not None and k not in (0, 5)]
        pixels = theirs.get_pixels_by_source_frame(series.sop_uids[0], numbers)
        np.testing.assert_array_equal(pixels[..., 0], mask[[1, 2, 3, 4, 6, 7]])
        dataset = pydicom.dcmread(path)
        (whole,) = dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        assert whole.ReferencedSOPInstanceUID == series.sop_uids[0]
        assert [item.ReferencedSOPInstanceUID for item in dataset.SourceImageSequence] == [series.sop_uids[0]]
        assert dciodvfy_complaints(path) == []


def _plastimatch_agrees(folder: Path, series: CtSeries, mask: np.ndarray) -> None:
    if shutil.which("plastimatch") is None:
        pytest.skip("plastimatch is not installed")
    # It reads no multi-frame CT, so the grid comes from our NIfTI.
    write_nifti(folder / "mask.nii.gz", Volume(mask.astype(np.uint8), series.geometry))
    subprocess.run(
        ["plastimatch", "convert", "--input", str(folder / "rs.dcm"), "--fixed", str(folder / "mask.nii.gz"),
         "--output-prefix", str(folder / "pm"), "--prefix-format", "nii.gz", "--xor-contours"],
        check=True, capture_output=True,
    )  # fmt: skip
    (read,) = (folder / "pm").glob("*.nii.gz")
    np.testing.assert_array_equal(read_nifti(read).reordered_like(series.geometry).array > 0, mask)
