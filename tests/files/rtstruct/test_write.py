"""Structure sets: written masks come back to the voxel here and elsewhere; odd files are read or named."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from metricunet.errors import InputError
from metricunet.files.dicom.codes import Code
from metricunet.files.dicom.identity import Identity
from metricunet.files.dicom.series import CtSeries, find_series
from metricunet.files.rtstruct.outlines import Structure
from metricunet.files.rtstruct.read import read_rtstruct
from metricunet.files.rtstruct.write import write_rtstruct
from metricunet.volume import Volume
from tests.support.dicom_series import ORIENTATIONS, write_series
from tests.support.structure_sets import (
    dciodvfy_complaints,
    ellipsoid,
    make_series,
    plastimatch,
    shapes,
    slab_volume_ml,
    structure,
)


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
    write_rtstruct(
        path, series, structures, description="Made by a model. Not reviewed.", identity=Identity(made=made)
    )
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

    def test_codes_beyond_the_scans_character_set(self, series: CtSeries, tmp_path: Path) -> None:
        """The scan's own set, Latin 1, has no such letters, and its names come out as they went in."""
        code = Code("1", "99CLINIC", "前立腺 élevée")
        new = structure("a", shapes(series.geometry.shape)["lobes"], series, code=code)
        write_rtstruct(tmp_path / "rs.dcm", series, [new], description="test")
        dataset = pydicom.dcmread(tmp_path / "rs.dcm")
        (found,) = dataset.RTROIObservationsSequence[0].RTROIIdentificationCodeSequence
        assert found.CodeMeaning == code.meaning
        assert str(dataset.PatientName) == "Müller^Max"

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
