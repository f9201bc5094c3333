"""Structure sets: written masks come back to the voxel here and elsewhere; odd files are read or named."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian, generate_uid

from metricunet.errors import InputError
from metricunet.files.dicom import CtSeries, find_series
from metricunet.files.nifti import read_nifti
from metricunet.files.rtstruct import Structure, read_rtstruct, write_rtstruct
from metricunet.volume import Geometry, Volume
from tests.support.dicom_series import ORIENTATIONS, write_series

Mask = NDArray[np.bool_]


def make_series(
    folder: Path,
    shape: tuple[int, int, int] = (8, 30, 34),
    spacing_mm: tuple[float, float, float] = (2.5, 0.9, 1.1),
    patient_position: str = "HFS",
) -> CtSeries:
    write_series(folder, shape=shape, spacing_mm=spacing_mm, patient_position=patient_position)
    (series,) = find_series(folder).series
    return series


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> CtSeries:
    return make_series(tmp_path_factory.mktemp("ct"))


def structure(name: str, mask: Mask, series: CtSeries, **more: object) -> Structure:
    return Structure(name, Volume(mask, series.geometry), **more)  # type: ignore[arg-type]


def ellipsoid(geometry: Geometry, semi_axes_mm: Sequence[float]) -> Mask:
    """Voxels whose centre lies in an ellipsoid about the grid's middle; semi-axes along slice, row, column."""
    index = np.stack(np.indices(geometry.shape), axis=-1) - (np.asarray(geometry.shape) - 1) / 2
    scaled = index * np.asarray(geometry.spacing_mm) / np.asarray(semi_axes_mm)
    return np.asarray((scaled**2).sum(axis=-1) < 1)


def slab_volume_ml(geometry: Geometry, semi_axes_mm: Sequence[float]) -> float:
    """Exact areas of an ellipsoid's cross-sections at the slices, times the slice distance."""
    heights = (np.arange(geometry.shape[0]) - (geometry.shape[0] - 1) / 2) * geometry.spacing_mm[0]
    shrink = np.clip(1 - (heights / semi_axes_mm[0]) ** 2, 0, None)
    return float(np.pi * semi_axes_mm[1] * semi_axes_mm[2] * shrink.sum() * geometry.spacing_mm[0] / 1000)


def shapes(shape: tuple[int, int, int]) -> dict[str, Mask]:
    """Shapes that have tripped writers of structure sets."""
    k, r, c = np.indices(shape)
    middle = [(n - 1) / 2 for n in shape]
    distance = np.hypot(r - middle[1], c - middle[2])
    inner_slices = (k > 0) & (k < shape[0] - 1)
    left = np.hypot(r - middle[1], c - middle[2] + 6.5) < 6.6
    right = np.hypot(r - middle[1], c - middle[2] - 6.5) < 6.6
    diagonal = np.zeros(shape, dtype=bool)
    diagonal[3, 5:8, 5:8] = True
    diagonal[3, 8:11, 8:11] = True
    diagonal[3, 11, 7] = True
    island = np.zeros(shape, dtype=bool)
    island[2, 4, 6] = True
    corners = np.zeros(shape, dtype=bool)
    corners[0, 0, 0] = corners[-1, -1, -1] = corners[0, -1, :] = True
    return {
        "shell": inner_slices & (distance < 12) & (distance > 5),
        "cored_shell": inner_slices & (((distance < 12) & (distance > 5)) | (distance < 2)),
        "lobes": inner_slices & (left | right),
        "diagonal": diagonal,
        "island": island,
        "corners": corners,
        "everything": np.ones(shape, dtype=bool),
        "noise": np.random.default_rng(5).random(shape) < 0.4,
    }


def plastimatch(rtstruct: Path, series: CtSeries, output: Path) -> dict[str, Volume]:
    """Let an independent program fill the contours on the CT's grid."""
    program = shutil.which("plastimatch")
    if program is None:
        pytest.skip("plastimatch is not installed")
    command = [program, "convert", "--input", rtstruct, "--referenced-ct", series.folder, "--xor-contours"]
    command += ["--output-prefix", output, "--prefix-format", "nii.gz"]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    names = {path: path.name.removesuffix(".nii.gz") for path in output.iterdir()}
    return {name: read_nifti(path).reordered_like(series.geometry) for path, name in names.items()}


def dciodvfy_complaints(path: Path) -> list[str]:
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    done = subprocess.run([program, str(path)], capture_output=True, text=True, errors="replace")
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


class TestRoundTrip:
    @pytest.mark.parametrize("position", ORIENTATIONS)
    def test_shapes_come_back_to_the_voxel_here_and_elsewhere(self, tmp_path: Path, position: str) -> None:
        series = make_series(tmp_path / "ct", patient_position=position)
        masks = shapes(series.geometry.shape)
        path = tmp_path / "rs.dcm"
        write_rtstruct(path, series, [structure(n, m, series) for n, m in masks.items()], description="test")
        read = read_rtstruct(path, series)
        assert read.names == tuple(masks)
        assert read.warnings == ()
        for name, mask in masks.items():
            back = read.mask(name, series.geometry)
            assert back.array.dtype == np.uint8
            assert np.array_equal(back.array, mask), name
        theirs = plastimatch(path, series, tmp_path / "plastimatch")
        for name, mask in masks.items():
            assert np.array_equal(theirs[name].array != 0, mask), name

    @settings(deadline=None, max_examples=25)
    @given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.02, 0.98))
    def test_any_mask_comes_back(
        self, series: CtSeries, tmp_path_factory: pytest.TempPathFactory, seed: int, share: float
    ) -> None:
        mask = np.random.default_rng(seed).random((4, 6, 6)) < share
        whole = np.zeros(series.geometry.shape, dtype=bool)
        whole[2:6, 10:16, 9:15] = mask
        whole[0:2, 0, 0] = True  # two slices next to each other, so that it cannot be taken for skipped ones
        path = tmp_path_factory.mktemp("rs") / "rs.dcm"
        write_rtstruct(path, series, [structure("any", whole, series)], description="test")
        assert np.array_equal(read_rtstruct(path).mask("any", series.geometry).array, whole)

    # The mask itself is off the exact areas by this much at most, here up to 0.09 %: voxels are counted whole.
    @pytest.mark.parametrize(
        "spacing_mm",
        [(1.0, 0.8, 0.8), (2.0, 0.9, 0.9), (3.0, 0.7, 1.1), (5.0, 1.1, 0.6), (2.5, 0.9765625, 0.9765625)],
        ids=lambda s: "x".join(map(str, s)),
    )
    def test_an_ellipsoid_has_its_analytic_volume(
        self, tmp_path: Path, spacing_mm: tuple[float, float, float]
    ) -> None:
        semi_axes_mm = (24.0, 21.5, 27.0)
        shape = tuple(int(2 * a / s) + 5 for a, s in zip(semi_axes_mm, spacing_mm, strict=True))
        series = make_series(tmp_path / "ct", (shape[0], shape[1], shape[2]), spacing_mm)
        mask = ellipsoid(series.geometry, semi_axes_mm)
        path = tmp_path / "rs.dcm"
        write_rtstruct(path, series, [structure("Prostate", mask, series)], description="test")

        read = read_rtstruct(path, series)
        back = read.mask("Prostate", series.geometry)
        exact = slab_volume_ml(series.geometry, semi_axes_mm)
        assert np.array_equal(back.array, mask)
        assert back.array.sum() * series.geometry.voxel_volume_ml == pytest.approx(exact, rel=0.005)
        # The polygons' own area, by the shoelace formula, knows nothing of filling.
        areas = []
        for points in read.structure("Prostate").contours:
            x, y = points[:, 0], points[:, 1]
            areas.append(abs(float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))) / 2)
        assert sum(areas) * spacing_mm[0] / 1000 == pytest.approx(exact, rel=0.005)
        theirs = plastimatch(path, series, tmp_path / "plastimatch")["Prostate"]
        assert np.array_equal(theirs.array != 0, mask)

    def test_slightly_turned_scans(self, tmp_path: Path) -> None:
        angle = np.radians(0.7)
        turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
        write_series(tmp_path / "ct", shape=(6, 40, 40), turn=turn)
        (series,) = find_series(tmp_path / "ct").series
        mask = np.random.default_rng(2).random(series.geometry.shape) < 0.5
        write_rtstruct(tmp_path / "rs.dcm", series, [structure("any", mask, series)], description="test")
        assert np.array_equal(read_rtstruct(tmp_path / "rs.dcm").mask("any", series.geometry).array, mask)

    def test_a_contour_of_many_thousand_points(self, tmp_path: Path) -> None:
        # Explicit VR could not hold it. A comb has many turns in one loop.
        series = make_series(tmp_path / "ct", (3, 8, 6002), (3, 1, 1))
        mask = np.zeros(series.geometry.shape, dtype=bool)
        mask[1, 2, 1:6000] = True
        mask[1, 3:7, 1:6000:2] = True
        write_rtstruct(tmp_path / "rs.dcm", series, [structure("comb", mask, series)], description="test")
        read = read_rtstruct(tmp_path / "rs.dcm")
        assert len(read.structure("comb").contours[0]) == 12000
        assert np.array_equal(read.mask("comb", series.geometry).array, mask)


@pytest.fixture(scope="module")
def written(series: CtSeries, tmp_path_factory: pytest.TempPathFactory) -> Path:
    masks = shapes(series.geometry.shape)
    path = tmp_path_factory.mktemp("rs") / "rs.dcm"
    structures = [
        structure("Prostate^auto", masks["shell"], series, colour=(10, 20, 255)),
        structure("Bladder", masks["diagonal"], series, interpreted_type="AVOIDANCE", description="low contrast"),
    ]
    made = datetime(2024, 3, 1, 8, 5, 9)
    write_rtstruct(path, series, structures, description="Made by a model. Not reviewed.", made=made)
    return path


class TestWrittenFile:
    def test_dciodvfy_finds_no_error(self, written: Path) -> None:
        assert dciodvfy_complaints(written) == []

    def test_an_ellipsoid_on_a_scan_with_bare_headers_is_valid_too(self, tmp_path: Path) -> None:
        def strip(k: int, ds: Dataset) -> None:
            for keyword in (
                "StudyID",
                "AccessionNumber",
                "ReferringPhysicianName",
                "PatientBirthDate",
                "StudyTime",
            ):
                delattr(ds, keyword)
            ds.PatientSex = "a1b2c3d4-not-a-sex"
            ds.StudyDate = "not a date"

        write_series(tmp_path / "ct", edit=strip)
        (series,) = find_series(tmp_path / "ct").series
        mask = ellipsoid(series.geometry, (5, 4, 4))
        write_rtstruct(tmp_path / "rs.dcm", series, [structure("Prostate", mask, series)], description="test")
        assert dciodvfy_complaints(tmp_path / "rs.dcm") == []

    def test_coordinates_by_hand(self, tmp_path: Path) -> None:
        write_series(tmp_path / "ct", shape=(3, 5, 6), spacing_mm=(4, 2, 0.5), origin_mm=(100, 200, -50))
        (series,) = find_series(tmp_path / "ct").series
        mask = np.zeros((3, 5, 6), dtype=bool)
        mask[1, 2, 3:5] = True
        write_rtstruct(tmp_path / "rs.dcm", series, [structure("box", mask, series)], description="test")
        dataset = pydicom.dcmread(tmp_path / "rs.dcm")
        (contour,) = dataset.ROIContourSequence[0].ContourSequence
        # Row 2 spans y = 203 to 205, columns 3 and 4 x = 101.25 to 102.25, slice 1 lies at z = -46.
        assert [float(v) for v in contour.ContourData] == [
            *(101.25, 203, -46),
            *(102.25, 203, -46),
            *(102.25, 205, -46),
            *(101.25, 205, -46),
        ]

    def test_contours_lie_in_the_plane_that_their_slice_states(self, tmp_path: Path) -> None:
        offsets = np.array([0, 0.013, -0.008, 0.01, 0.0071, 0])

        def jitter(k: int, ds: Dataset) -> None:
            x, y, z = (float(v) for v in ds.ImagePositionPatient)
            ds.ImagePositionPatient = [x, y, round(z + offsets[k], 6)]

        write_series(tmp_path / "ct", shape=(6, 5, 5), edit=jitter)
        (series,) = find_series(tmp_path / "ct").series
        mask = np.ones((6, 5, 5), dtype=bool)
        write_rtstruct(tmp_path / "rs.dcm", series, [structure("all", mask, series)], description="test")
        for contour in pydicom.dcmread(tmp_path / "rs.dcm").ROIContourSequence[0].ContourSequence:
            (image,) = contour.ContourImageSequence
            k = series.sop_uids.index(image.ReferencedSOPInstanceUID)
            assert {float(z) for z in contour.ContourData[2::3]} == {series.positions_mm[k, 2]}

    def test_what_planning_systems_ask_for(self, written: Path, series: CtSeries) -> None:
        dataset = pydicom.dcmread(written)
        assert dataset.Modality == "RTSTRUCT"
        assert dataset.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert dataset.ApprovalStatus == "UNAPPROVED"
        assert dataset.StructureSetDescription == "Made by a model. Not reviewed."
        assert dataset.StructureSetName == "Machine-made, not reviewed"
        assert (dataset.StructureSetDate, dataset.StructureSetTime) == ("20240301", "080509")
        assert 0 < len(dataset.StructureSetLabel) <= 16
        assert dataset.Manufacturer
        assert dataset.SoftwareVersions
        assert [roi.ROIName for roi in dataset.StructureSetROISequence] == ["Prostate^auto", "Bladder"]
        assert {roi.ROIGenerationAlgorithm for roi in dataset.StructureSetROISequence} == {"AUTOMATIC"}
        assert {r.ReferencedFrameOfReferenceUID for r in dataset.StructureSetROISequence} == {
            series.frame_of_reference_uid
        }
        types = [o.RTROIInterpretedType for o in dataset.RTROIObservationsSequence]
        assert types == ["ORGAN", "AVOIDANCE"]
        numbers = [roi.ROINumber for roi in dataset.StructureSetROISequence]
        assert numbers == [item.ReferencedROINumber for item in dataset.ROIContourSequence]
        assert numbers == [o.ReferencedROINumber for o in dataset.RTROIObservationsSequence]
        assert list(dataset.ROIContourSequence[0].ROIDisplayColor) == [10, 20, 255]

    def test_contours_name_their_own_slice(self, written: Path, series: CtSeries) -> None:
        dataset = pydicom.dcmread(written)
        for item in dataset.ROIContourSequence:
            for contour in item.ContourSequence:
                (image,) = contour.ContourImageSequence
                k = series.sop_uids.index(image.ReferencedSOPInstanceUID)
                assert image.ReferencedSOPClassUID == series.header.SOPClassUID
                assert {float(z) for z in contour.ContourData[2::3]} == {series.positions_mm[k, 2]}
                assert contour.ContourGeometricType == "CLOSED_PLANAR"
                assert isinstance(contour.NumberOfContourPoints, int)
                assert contour.NumberOfContourPoints * 3 == len(contour.ContourData)
                assert list(contour.ContourData[:3]) != list(contour.ContourData[-3:])
                assert max(len(str(v.original_string)) for v in contour.ContourData) <= 16

    def test_references_are_complete(self, written: Path, series: CtSeries) -> None:
        (frame,) = pydicom.dcmread(written).ReferencedFrameOfReferenceSequence
        assert frame.FrameOfReferenceUID == series.frame_of_reference_uid
        (study,) = frame.RTReferencedStudySequence
        assert study.ReferencedSOPInstanceUID == series.study_uid
        (images,) = study.RTReferencedSeriesSequence
        assert images.SeriesInstanceUID == series.series_uid
        assert [i.ReferencedSOPInstanceUID for i in images.ContourImageSequence] == list(series.sop_uids)

    def test_patient_and_study_are_those_of_the_scan(self, written: Path, series: CtSeries) -> None:
        dataset, scan = pydicom.dcmread(written), pydicom.dcmread(series.files[0])
        for keyword in (
            "PatientName",
            "PatientID",
            "PatientBirthDate",
            "PatientSex",
            "StudyInstanceUID",
            "StudyDate",
        ):
            assert dataset[keyword].value == scan[keyword].value
        assert str(dataset.PatientName) == "Müller^Max"
        assert dataset.SpecificCharacterSet == scan.SpecificCharacterSet
        assert dataset.SeriesInstanceUID != series.series_uid

    def test_names_beyond_the_scans_character_set(self, series: CtSeries, tmp_path: Path) -> None:
        mask = shapes(series.geometry.shape)["lobes"]
        write_rtstruct(tmp_path / "rs.dcm", series, [structure("前列腺", mask, series)], description="Größe")
        dataset = pydicom.dcmread(tmp_path / "rs.dcm")
        assert read_rtstruct(tmp_path / "rs.dcm").names == ("前列腺",)
        assert str(dataset.PatientName) == "Müller^Max"
        assert str(dataset.ReferringPhysicianName) == "Ärztin^Anna"
        assert dataset.StructureSetDescription == "Größe"

    def test_each_file_is_an_object_of_its_own(self, written: Path, series: CtSeries, tmp_path: Path) -> None:
        mask = shapes(series.geometry.shape)["shell"]
        write_rtstruct(tmp_path / "rs.dcm", series, [structure("a", mask, series)], description="test")
        first, second = pydicom.dcmread(written), pydicom.dcmread(tmp_path / "rs.dcm")
        assert first.SOPInstanceUID != second.SOPInstanceUID
        assert first.SeriesInstanceUID != second.SeriesInstanceUID


class TestRefusedWriting:
    def refuse(
        self, tmp_path: Path, series: CtSeries, structures: list[Structure], match: str, **more: str
    ) -> None:
        path = tmp_path / "rs.dcm"
        with pytest.raises(InputError, match=match) as caught:
            write_rtstruct(path, series, structures, description="test", **more)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []

    def test_empty_mask(self, tmp_path: Path, series: CtSeries) -> None:
        empty = structure("Prostate", np.zeros(series.geometry.shape, dtype=bool), series)
        self.refuse(tmp_path, series, [empty], "structure 'Prostate': its mask is empty; leave the structure out")

    def test_no_structure(self, tmp_path: Path, series: CtSeries) -> None:
        self.refuse(tmp_path, series, [], "no structure to write")

    def test_mask_on_another_grid(self, tmp_path: Path, series: CtSeries) -> None:
        other = series.geometry.crop((0, 0, 1), series.geometry.shape)
        mask = Volume(np.ones(other.shape, dtype=bool), other)
        self.refuse(tmp_path, series, [Structure("a", mask)], "not on the grid of series")

    @pytest.mark.parametrize("name", ["", "  ", "x" * 65, "a\\b", "a\nb"])
    def test_bad_names(self, tmp_path: Path, series: CtSeries, name: str) -> None:
        mask = np.ones(series.geometry.shape, dtype=bool)
        with pytest.raises(InputError, match="a name has 1 to 64"):
            write_rtstruct(tmp_path / "rs.dcm", series, [structure(name, mask, series)], description="test")

    def test_duplicate_names(self, tmp_path: Path, series: CtSeries) -> None:
        mask = np.ones(series.geometry.shape, dtype=bool)
        twice = [structure("Prostate", mask, series), structure("prostate ", mask, series)]
        self.refuse(tmp_path, series, twice, "given twice")

    @pytest.mark.parametrize("kind", ["", " ", "organ", "A" * 17])
    def test_bad_types(self, tmp_path: Path, series: CtSeries, kind: str) -> None:
        mask = np.ones(series.geometry.shape, dtype=bool)
        bad = structure("a", mask, series, interpreted_type=kind)
        self.refuse(tmp_path, series, [bad], "expected ORGAN, CTV or the like")

    def test_bad_colour_and_label(self, tmp_path: Path, series: CtSeries) -> None:
        mask = np.ones(series.geometry.shape, dtype=bool)
        self.refuse(tmp_path, series, [structure("a", mask, series, colour=(0, 0, 256))], "0 to 255")
        self.refuse(tmp_path, series, [structure("a", mask, series)], "label", label="x" * 17)


def rtstruct(
    path: Path,
    rois: Sequence[tuple[str, Sequence[Sequence[float]] | None]],
    *,
    frame: str | None = "1.2.3.4",
    sequence: bool = True,
    change: Callable[[Dataset], None] | None = None,
) -> Path:
    """Write a structure set as another program might: each ROI has a name and its contours' flat numbers."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.481.3", generate_uid()
    dataset.Modality = "RTSTRUCT"
    if sequence:
        reference = Dataset()
        reference.FrameOfReferenceUID = frame
        dataset.ReferencedFrameOfReferenceSequence = [reference]
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(rois, start=7):
        roi, item = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        if frame is not None:
            roi.ReferencedFrameOfReferenceUID = frame
        dataset.StructureSetROISequence.append(roi)
        item.ReferencedROINumber = number
        if contours is not None:
            item.ContourSequence = []
            for numbers in contours:
                contour = Dataset()
                contour.ContourGeometricType = "CLOSED_PLANAR"
                contour.NumberOfContourPoints = len(numbers) // 3
                contour.ContourData = [f"{value:.10g}" for value in numbers]
                item.ContourSequence.append(contour)
        dataset.ROIContourSequence.append(item)
    dataset.ROIContourSequence.reverse()  # their order is free
    if change is not None:
        change(dataset)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=True)
    return path


def square(low: float, high: float, z: float) -> list[float]:
    return [low, low, z, high, low, z, high, high, z, low, high, z]


GRID = Geometry.from_parts((6, 12, 12), (3.0, 1.0, 1.0))


class TestReading:
    def test_contours_in_any_order_and_several_in_a_slice(self, tmp_path: Path) -> None:
        contours = [square(2.5, 4.5, 6), square(0.5, 8.5, 3), square(1.5, 9.5, 6), square(6.5, 8.5, 6)]
        mask = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", contours)])).mask("a", GRID)
        assert mask.array.sum(axis=(1, 2)).tolist() == [0, 64, 64 - 4 - 4, 0, 0, 0]

    def test_a_repeated_last_point_is_dropped(self, tmp_path: Path) -> None:
        numbers = square(0.5, 8.5, 3)
        read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", [numbers + numbers[:3]])]))
        (contour,) = read.structure("a").contours
        assert contour.tolist() == np.reshape(numbers, (4, 3)).tolist()
        assert read.mask("a", GRID).array.sum() == 64

    def test_contours_drawn_on_thinner_slices_do_not_cancel(self, tmp_path: Path) -> None:
        # Three planes fall into each slice of 3 mm; the one through its centre counts.
        contours = [square(0.5, 8.5 if z % 3 == 0 else 5.5, z) for z in range(2, 11)]
        mask = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", contours)])).mask("a", GRID)
        assert mask.array.sum(axis=(1, 2)).tolist() == [0, 64, 64, 64, 0, 0]

    def test_contours_between_slices_go_to_the_nearest(self, tmp_path: Path) -> None:
        contours = [square(0.5, 8.5, z + 1.2) for z in (3, 6, 9)]
        mask = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", contours)])).mask("a", GRID)
        assert mask.array.sum(axis=(1, 2)).tolist() == [0, 64, 64, 64, 0, 0]

    def test_sparse_contours_are_refused(self, tmp_path: Path) -> None:
        read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", [square(0.5, 8.5, z) for z in (0, 6, 12)])]))
        with pytest.raises(
            InputError, match=r"ROI 'a': its contours lie 6\.00 mm apart or more, .*slices 3\.00 mm"
        ):
            read.mask("a", GRID)

    @pytest.mark.parametrize("z", [-1.6, 16.6, 700])
    def test_contours_beyond_the_scan_are_refused_by_name(self, tmp_path: Path, z: float) -> None:
        read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("CTV", [square(0.5, 8.5, 3), square(1, 2, z)])]))
        with pytest.raises(InputError, match=rf"rs\.dcm: ROI 'CTV': a contour at z = {z:.2f} mm .* half a slice"):
            read.mask("CTV", GRID)

    def test_half_a_slice_beyond_the_last_is_accepted(self, tmp_path: Path) -> None:
        read = read_rtstruct(
            rtstruct(tmp_path / "rs.dcm", [("a", [square(0.5, 8.5, -1.5), square(0.5, 8.5, 1.5)])])
        )
        assert read.mask("a", GRID).array[0].sum() == 64

    def test_a_contour_across_slices_is_refused(self, tmp_path: Path) -> None:
        slanted = [0, 0, 0, 8, 0, 0, 8, 8, 9, 0, 8, 9]
        with pytest.raises(InputError, match="ROI 'a': a contour"):
            read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", [slanted])])).mask("a", GRID)

    def test_contours_beside_the_scan(self, tmp_path: Path) -> None:
        read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", [square(50, 60, 3)])]))
        with pytest.raises(InputError, match="ROI 'a' contains no voxel's centre"):
            read.mask("a", GRID)

    def test_empty_and_unknown_rois(self, tmp_path: Path) -> None:
        read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("CTV", None), ("PTV", []), ("a", [square(1, 5, 3)])]))
        assert [w.partition("rs.dcm: ")[2] for w in read.warnings] == [
            "ROI 'CTV' has no contours",
            "ROI 'PTV' has no contours",
        ]
        for name in ("CTV", "PTV"):
            with pytest.raises(InputError, match=f"ROI '{name}' has no contours"):
                read.mask(name, GRID)
        with pytest.raises(InputError, match="has no ROI 'GTV'; it has CTV, PTV, a"):
            read.mask("GTV", GRID)

    def test_points_and_lines_enclose_nothing(self, tmp_path: Path) -> None:
        def change(dataset: Dataset) -> None:
            dataset.ROIContourSequence[0].ContourSequence[0].ContourGeometricType = "POINT"

        path = rtstruct(tmp_path / "rs.dcm", [("iso", [[1, 2, 3], [1, 2, 3, 4, 5, 3]])], change=change)
        read = read_rtstruct(path)
        assert len(read.warnings) == 3
        assert "enclose nothing (POINT) are passed over: 1" in read.warnings[0]
        assert "(fewer than three points)" in read.warnings[1]
        with pytest.raises(InputError, match="ROI 'iso' has no contours"):
            read.mask("iso", GRID)

    def test_duplicate_names_are_reported(self, tmp_path: Path) -> None:
        rois = [("a", [square(1, 5, 3)]), ("a", [square(1, 5, 6)]), ("b", [square(1, 5, 6)])]
        read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", rois))
        assert any("2 ROIs are named 'a'" in warning for warning in read.warnings)
        with pytest.raises(InputError, match="ROIs 7, 8 are all named 'a'"):
            read.mask("a", GRID)
        assert read.mask("b", GRID).array.any()

    def test_frame_of_reference_without_its_sequence(self, tmp_path: Path) -> None:
        read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", [square(1, 5, 3)])], sequence=False))
        assert read.frame_of_reference_uid == "1.2.3.4"
        assert "ReferencedFrameOfReferenceSequence is missing; its ROIs state 1.2.3.4" in read.warnings[0]

    def test_no_frame_of_reference_at_all(self, tmp_path: Path, series: CtSeries) -> None:
        path = rtstruct(tmp_path / "rs.dcm", [("a", [square(1, 5, 3)])], sequence=False, frame=None)
        read = read_rtstruct(path, series)
        assert read.frame_of_reference_uid is None
        assert "nothing else states one" in read.warnings[0]
        assert "taken to be that of the scan" in read.warnings[1]

    def test_another_frame_of_reference_is_refused(self, tmp_path: Path, series: CtSeries) -> None:
        for sequence in (True, False):
            path = rtstruct(tmp_path / "rs.dcm", [("a", [square(1, 5, 3)])], sequence=sequence)
            with pytest.raises(InputError, match=r"frame of reference is 1\.2\.3\.4, but") as caught:
                read_rtstruct(path, series)
            assert series.frame_of_reference_uid in str(caught.value)

    def test_one_roi_in_another_frame_is_refused_by_name(self, tmp_path: Path, series: CtSeries) -> None:
        def change(dataset: Dataset) -> None:
            dataset.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = "9.9"

        rois = [("a", [square(1, 5, 3)]), ("b", [square(1, 5, 3)])]
        path = rtstruct(tmp_path / "rs.dcm", rois, frame=series.frame_of_reference_uid, change=change)
        with pytest.raises(InputError, match=r"ROI 'b': frame of reference is 9\.9"):
            read_rtstruct(path, series)

    def test_a_set_drawn_on_another_series_of_the_same_frame_is_said(self, tmp_path: Path) -> None:
        frame = generate_uid()
        write_series(tmp_path / "a", frame_of_reference_uid=frame)
        write_series(tmp_path / "b", frame_of_reference_uid=frame)
        (a,), (b,) = find_series(tmp_path / "a").series, find_series(tmp_path / "b").series
        mask = np.ones(a.geometry.shape, dtype=bool)
        write_rtstruct(tmp_path / "rs.dcm", a, [structure("x", mask, a)], description="test")
        (note,) = read_rtstruct(tmp_path / "rs.dcm", b).warnings
        assert f"was drawn on series {a.series_uid}, not on {b.series_uid}" in note

    @pytest.mark.parametrize("numbers", [[1, 2], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8, float("nan")]])
    def test_broken_contour_data(self, tmp_path: Path, numbers: list[float]) -> None:
        def change(dataset: Dataset) -> None:
            element = pydicom.dataelem.RawDataElement
            text = b"\\".join(str(n).encode() for n in numbers)
            contour = dataset.ROIContourSequence[0].ContourSequence[0]
            del contour.ContourData
            tag = pydicom.tag.Tag("ContourData")
            contour._dict[tag] = element(tag, "DS", len(text), text, 0, True, True)

        path = rtstruct(tmp_path / "rs.dcm", [("CTV", [square(1, 2, 3)])], change=change)
        with pytest.raises(InputError, match="ROI 'CTV': ContourData holds"):
            read_rtstruct(path)

    def test_contours_without_a_name(self, tmp_path: Path) -> None:
        def change(dataset: Dataset) -> None:
            del dataset.StructureSetROISequence[0]

        rois = [("a", [square(1, 5, 3)]), ("b", [square(1, 5, 3)])]
        read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", rois, change=change))
        assert read.names == ("b",)
        assert "contours of ROI number 7, which it does not name" in read.warnings[0]

    def test_not_a_structure_set(self, tmp_path: Path, series: CtSeries) -> None:
        (tmp_path / "a.txt").write_text("nothing")
        with pytest.raises(InputError, match="is not a DICOM file"):
            read_rtstruct(tmp_path / "a.txt")
        with pytest.raises(InputError, match="is of modality CT, expected RTSTRUCT"):
            read_rtstruct(series.files[0])
        with pytest.raises(InputError, match="no such file"):
            read_rtstruct(tmp_path / "none.dcm")


class TestRealSets:
    def test_thorax(self, shared_data: Path, tmp_path: Path) -> None:
        folder = shared_data / "thorax_rt_dicom"
        (series,) = find_series(folder).series
        (path,) = [
            p for p in folder.iterdir() if pydicom.dcmread(p, specific_tags=["Modality"]).Modality == "RTSTRUCT"
        ]
        read = read_rtstruct(path, series)
        assert read.frame_of_reference_uid == series.frame_of_reference_uid
        assert any("ReferencedFrameOfReferenceSequence is missing" in warning for warning in read.warnings)
        expected = "LUNGS LUNG_R LUNG_L HEART SPINALCORD GTVp CTVp PTV4140 LIVER"
        assert read.names == tuple(expected.split())
        masks = {name: read.mask(name, series.geometry).array.astype(bool) for name in read.names}
        ml = {name: mask.sum() * series.geometry.voxel_volume_ml for name, mask in masks.items()}
        assert 800 < ml["LUNG_L"] < ml["LUNG_R"] < 1500
        assert ml["LUNGS"] == pytest.approx(ml["LUNG_L"] + ml["LUNG_R"], rel=0.01)
        assert ml["GTVp"] < ml["CTVp"] < ml["PTV4140"]
        assert (masks["GTVp"] & ~masks["PTV4140"]).sum() < 0.01 * masks["GTVp"].sum()
        # Right is towards lower x, the heart lies between.
        middle = {name: series.geometry.to_world(np.argwhere(mask).mean(axis=0)) for name, mask in masks.items()}
        assert middle["LUNG_R"][0] < middle["HEART"][0] < middle["LUNG_L"][0]
        # Lungs are air, the heart is not: contours and pixels lie in one place.
        hu = series.read().array
        assert np.median(hu[masks["LUNGS"]]) < -700
        assert 0 < np.median(hu[masks["HEART"]]) < 120

        # Another program fills the same clinical contours; centres close to a line may differ.
        theirs = plastimatch(path, series, tmp_path / "plastimatch")
        for name in ("HEART", "LUNG_L", "SPINALCORD", "LIVER"):
            other = theirs[name].array != 0
            both = (masks[name] & other).sum()
            assert 2 * both / (masks[name].sum() + other.sum()) > 0.995, name

    def test_prostate_without_a_referenced_frame(self, shared_data: Path) -> None:
        path = shared_data / "rtstruct_edge_cases" / "prostate_no_referenced_frame.dcm"
        read = read_rtstruct(path)
        assert any("ReferencedFrameOfReferenceSequence is missing" in warning for warning in read.warnings)
        points = np.concatenate(read.structure("PROSTATE").contours)
        low, high = points.min(axis=0), points.max(axis=0)
        shape = np.ceil((high - low) / [0.5, 0.5, 1]).astype(int)[::-1] + (1, 9, 9)  # noqa: RUF005
        grid = Geometry.from_parts(shape.tolist(), (1, 0.5, 0.5), (low[0] - 2, low[1] - 2, low[2]))
        mask = read.mask("PROSTATE", grid)
        assert mask.array.any(axis=(1, 2)).sum() == 31
        assert mask.array.sum() * grid.voxel_volume_ml == pytest.approx(35.5, abs=0.3)

    def test_rois_without_contours(self, shared_data: Path) -> None:
        read = read_rtstruct(shared_data / "rtstruct_edge_cases" / "empty_rois_phantom.dcm")
        assert sum("has no contours" in warning for warning in read.warnings) == 10
        for name in ("CTV", "PROS"):
            with pytest.raises(InputError, match=f"ROI '{name}' has no contours"):
                read.mask(name, GRID)
        assert len(read.structure("Bladder").contours) == 21
