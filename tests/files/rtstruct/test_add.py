"""Adding to a structure set of another program: what was there stays to the byte, what is untrue goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.charset import convert_encodings
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from metricunet.errors import InputError
from metricunet.files.dicom.codes import Code
from metricunet.files.dicom.series import CtSeries, find_series
from metricunet.files.rtstruct.add import add_to_rtstruct, check_addable
from metricunet.files.rtstruct.outlines import Structure
from metricunet.files.rtstruct.read import read_rtstruct
from metricunet.files.rtstruct.write import write_rtstruct
from metricunet.volume import Volume
from tests.support.structure_sets import (
    dciodvfy_complaints,
    make_series,
    plastimatch,
    rtstruct,
    shapes,
    square,
    structure,
)

WORDS = "Made by a model, not reviewed. Model trained on synthetic scans only."


def foreign_set(
    path: Path,
    series: CtSeries,
    syntax: str = ImplicitVRLittleEndian,
    change: Callable[[Dataset], None] | None = None,
) -> Path:
    """A clinic's approved structure set with things of its own in every corner."""
    masks = shapes(series.geometry.shape)
    structures = [structure("Bladder", masks["lobes"], series), structure("Rectum", masks["shell"], series)]
    write_rtstruct(path, series, structures, description="Drawn by hand", label="Plan A")
    dataset = pydicom.dcmread(path)
    dataset.SeriesDescription = "Clinic"
    dataset.Manufacturer = "Another"
    dataset.ApprovalStatus, dataset.ReviewerName = "APPROVED", "Doctor^A"
    dataset.ReviewDate, dataset.ReviewTime = "20200101", "101010"
    for block in (
        dataset.private_block(0x3287, "CLINIC", create=True),
        dataset.ROIContourSequence[0].private_block(0x3287, "CLINIC", create=True),
    ):
        block.add_new(1, "LO", "of our own ")
        block.add_new(2, "OB", b"\x00\x01\x02\x03")
    dataset.StructureSetROISequence[1].ROINumber = 41
    dataset.ROIContourSequence[1].ReferencedROINumber = 41
    dataset.RTROIObservationsSequence[1].ReferencedROINumber = 41
    dataset.RTROIObservationsSequence[1].ObservationNumber = 90
    dataset.ROIContourSequence[0].ContourSequence[0].ContourData[0] = "-12.50"
    if change is not None:
        change(dataset)
    dataset.file_meta.TransferSyntaxUID = syntax
    encoding = {"implicit_vr": syntax == ImplicitVRLittleEndian, "little_endian": True}
    dataset.save_as(path, enforce_file_format=True, **encoding)
    return path


def encoded(item: Dataset, implicit: bool, character_set: str | Sequence[str] = "ISO_IR 100") -> bytes:
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = implicit, True
    write_dataset(buffer, item, convert_encodings(character_set))
    return buffer.getvalue()


SEQUENCES = ("StructureSetROISequence", "ROIContourSequence", "RTROIObservationsSequence")
LARGEST = 2**31 - 1
CHANGED = {
    *("SOPInstanceUID", "InstanceCreationDate", "InstanceCreationTime", "StructureSetDate", "StructureSetTime"),
    *("ApprovalStatus", "ReviewDate", "ReviewTime", "ReviewerName", "PredecessorStructureSetSequence"),
}


@pytest.fixture
def new(series: CtSeries) -> Structure:
    mask = shapes(series.geometry.shape)["cored_shell"]
    field = Volume(np.where(mask, 0.8, 0.1).astype(np.float32), series.geometry)
    return structure("Prostate^auto", mask, series, colour=(1, 2, 3), probability=field)


class TestAdded:
    @pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
    def test_what_was_there_is_there_to_the_byte(
        self, tmp_path: Path, series: CtSeries, new: Structure, syntax: str
    ) -> None:
        path = foreign_set(tmp_path / "in.dcm", series, syntax)
        original = path.read_bytes()
        made = datetime(2031, 2, 3, 4, 5, 6)
        check_addable(path, series)
        (done,) = add_to_rtstruct(path, tmp_path / "out.dcm", series, [new], description=WORDS, made=made)
        assert path.read_bytes() == original
        result = (tmp_path / "out.dcm").read_bytes()
        before, after = pydicom.dcmread(path), pydicom.dcmread(tmp_path / "out.dcm")
        implicit = syntax == ImplicitVRLittleEndian
        assert after.file_meta.TransferSyntaxUID == syntax
        for keyword in SEQUENCES:
            assert len(after[keyword].value) == 3
            for item, same in zip(before[keyword].value, after[keyword].value, strict=False):
                there = encoded(item, implicit)
                assert encoded(same, implicit) == there
                assert there in original
                assert there in result
        assert b"-12.50" in result
        for element in before:
            if element.keyword not in {*CHANGED, *SEQUENCES, "ReferencedFrameOfReferenceSequence"}:
                assert after[element.tag] == element
        assert {e.tag for e in after} - {e.tag for e in before} == {
            pydicom.tag.Tag("PredecessorStructureSetSequence")
        }
        assert after.ReferencedFrameOfReferenceSequence == before.ReferencedFrameOfReferenceSequence
        assert result.count(b"of our own") == original.count(b"of our own") == 2
        assert done.number == 42

    def test_the_new_object(self, tmp_path: Path, series: CtSeries, new: Structure) -> None:
        path = foreign_set(tmp_path / "in.dcm", series)
        made = datetime(2031, 2, 3, 4, 5, 6)
        add_to_rtstruct(path, tmp_path / "out.dcm", series, [new], description=WORDS, made=made)
        before, after = pydicom.dcmread(path), pydicom.dcmread(tmp_path / "out.dcm")
        assert after.SOPInstanceUID != before.SOPInstanceUID
        assert after.file_meta.MediaStorageSOPInstanceUID == after.SOPInstanceUID
        (predecessor,) = after.PredecessorStructureSetSequence
        assert predecessor.ReferencedSOPInstanceUID == before.SOPInstanceUID
        assert after.SeriesInstanceUID == before.SeriesInstanceUID
        assert (after.StructureSetDate, after.StructureSetTime) == ("20310203", "040506")
        assert after.ApprovalStatus == "UNAPPROVED"
        assert not {"ReviewDate", "ReviewTime", "ReviewerName"} & {e.keyword for e in after}
        assert dciodvfy_complaints(tmp_path / "out.dcm") == []

    @pytest.mark.parametrize(
        ("zone", "expected"),
        [
            ("+0530", ("20310203", "093506")),
            ("-0500", ("20310202", "230506")),
            ("+0000", ("20310203", "040506")),
            ("nowhere", ("20310203", "040506")),
        ],
    )
    def test_its_time_is_in_the_time_zone_that_the_set_states(
        self, tmp_path: Path, series: CtSeries, new: Structure, zone: str, expected: tuple[str, str]
    ) -> None:
        path = foreign_set(
            tmp_path / "in.dcm", series, change=lambda dataset: setattr(dataset, "TimezoneOffsetFromUTC", zone)
        )
        made = datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC)
        add_to_rtstruct(path, tmp_path / "out.dcm", series, [new], description=WORDS, made=made)
        after = pydicom.dcmread(tmp_path / "out.dcm")
        assert (after.StructureSetDate, after.StructureSetTime) == expected
        assert (after.InstanceCreationDate, after.InstanceCreationTime) == expected
        assert after.TimezoneOffsetFromUTC == zone

    def test_the_new_structure(self, tmp_path: Path, series: CtSeries, new: Structure) -> None:
        path = foreign_set(tmp_path / "in.dcm", series)
        second = structure("Second", shapes(series.geometry.shape)["noise"], series, interpreted_type="CTV")
        done = add_to_rtstruct(path, tmp_path / "out.dcm", series, [new, second], description=WORDS)
        assert [(d.name, d.number, d.outline) for d in done] == [
            ("Prostate^auto", 42, "surface"),
            ("Second", 43, "voxel"),
        ]
        after = pydicom.dcmread(tmp_path / "out.dcm")
        roi, other = after.StructureSetROISequence[2:]
        assert (roi.ROINumber, other.ROINumber) == (42, 43)
        assert roi.ROIGenerationAlgorithm == "AUTOMATIC"
        assert roi.ROIDescription == WORDS
        assert roi.ReferencedFrameOfReferenceUID == series.frame_of_reference_uid
        assert [o.ObservationNumber for o in after.RTROIObservationsSequence] == [1, 90, 91, 92]
        assert [o.ReferencedROINumber for o in after.RTROIObservationsSequence] == [1, 41, 42, 43]
        assert after.RTROIObservationsSequence[3].RTROIInterpretedType == "CTV"
        assert list(after.ROIContourSequence[2].ROIDisplayColor) == [1, 2, 3]
        read = read_rtstruct(tmp_path / "out.dcm", series)
        assert read.warnings == ()
        theirs = plastimatch(tmp_path / "out.dcm", series, tmp_path / "plastimatch")
        for added in (new, second):
            assert np.array_equal(read.mask(added.name, series.geometry).array, added.mask.array)
            assert np.array_equal(theirs[added.name].array != 0, added.mask.array)

    def test_references_are_completed(self, tmp_path: Path, series: CtSeries, new: Structure) -> None:
        def shorten(dataset: Dataset) -> None:
            images(dataset).ContourImageSequence = images(dataset).ContourImageSequence[2:5]

        def images(dataset: Dataset) -> Dataset:
            (frame,) = dataset.ReferencedFrameOfReferenceSequence
            found: Dataset = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
            return found

        path = foreign_set(tmp_path / "in.dcm", series, change=shorten)
        add_to_rtstruct(path, tmp_path / "out.dcm", series, [new], description=WORDS)
        before, after = pydicom.dcmread(path), pydicom.dcmread(tmp_path / "out.dcm")
        listed = [item.ReferencedSOPInstanceUID for item in images(after).ContourImageSequence]
        assert listed[:3] == [i.ReferencedSOPInstanceUID for i in images(before).ContourImageSequence]
        assert sorted(listed) == sorted(series.sop_uids)

    def test_a_set_without_references_gets_them(self, tmp_path: Path, series: CtSeries, new: Structure) -> None:
        def strip(dataset: Dataset) -> None:
            del dataset.ReferencedFrameOfReferenceSequence

        path = foreign_set(tmp_path / "in.dcm", series, change=strip)
        add_to_rtstruct(path, tmp_path / "out.dcm", series, [new], description=WORDS)
        assert read_rtstruct(tmp_path / "out.dcm", series).series_uid == series.series_uid

    def test_a_long_contour_in_a_set_of_explicit_encoding(self, tmp_path: Path) -> None:
        series = make_series(tmp_path / "ct", (4, 16, 6002), (3, 1, 1))
        comb = np.zeros(series.geometry.shape, dtype=bool)
        comb[1, 2, 1:6000] = True
        comb[1, 3:7, 1:6000:2] = True
        path = foreign_set(tmp_path / "in.dcm", series, ExplicitVRLittleEndian)
        add_to_rtstruct(path, tmp_path / "out.dcm", series, [structure("c", comb, series)], description="x")
        read = read_rtstruct(tmp_path / "out.dcm", series)
        assert np.array_equal(read.mask("c", series.geometry).array, comb)

    def test_real_set(self, shared_data: Path, tmp_path: Path) -> None:
        folder = shared_data / "thorax_rt_dicom"
        (series,) = find_series(folder).series
        (path,) = [p for p in folder.iterdir() if p.name.endswith("_m.dcm")]
        heart = read_rtstruct(path, series).mask("HEART", series.geometry)
        added = Structure("heart", heart, description="copy")
        out = tmp_path / "out.dcm"
        (done,) = add_to_rtstruct(path, out, series, [added], description=WORDS, on_clash="suffix")
        assert (done.name, done.number) == ("heart_2", 10)
        read, original = read_rtstruct(out, series), path.read_bytes()
        assert read.warnings == ()
        assert np.array_equal(read.mask("heart_2", series.geometry).array, heart.array)
        before, after = pydicom.dcmread(path), pydicom.dcmread(out)
        for keyword in SEQUENCES:
            for item, same in zip(before[keyword].value, after[keyword].value, strict=False):
                assert encoded(item, True) == encoded(same, True)
                assert encoded(item, True) in original
        assert set(dciodvfy_complaints(out)) <= set(dciodvfy_complaints(path))


def same_numbers(dataset: Dataset) -> None:
    for sequence, keyword in zip(
        SEQUENCES, ("ROINumber", "ReferencedROINumber", "ReferencedROINumber"), strict=True
    ):
        setattr(dataset[sequence][1], keyword, 1)


def largest_number(dataset: Dataset) -> None:
    dataset.StructureSetROISequence[1].ROINumber = LARGEST
    dataset.ROIContourSequence[1].ReferencedROINumber = LARGEST
    dataset.RTROIObservationsSequence[1].ReferencedROINumber = LARGEST
    dataset.RTROIObservationsSequence[1].ObservationNumber = LARGEST


def no_observation(dataset: Dataset) -> None:
    dataset.RTROIObservationsSequence.clear()


def no_observations(dataset: Dataset) -> None:
    del dataset.RTROIObservationsSequence


def no_contours(dataset: Dataset) -> None:
    dataset.ROIContourSequence.clear()


def japanese(dataset: Dataset) -> None:
    """A set whose text is in shift characters; the name of the new structure is plain."""
    dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    dataset.StructureSetROISequence[0].ROIName = "前立腺"
    dataset.ReferringPhysicianName = ""
    dataset.PatientName = "Yamada^Tarou=山田^太郎"


#: Sets as other programs leave them, and the new structure's numbers of ROI and observation.
FOREIGN: dict[str, tuple[Callable[[Dataset], None], int, int]] = {
    "two of one number": (same_numbers, 2, 91),
    "the largest number": (largest_number, 2, 2),
    "an empty list of observations": (no_observation, 42, 1),
    "no list of observations": (no_observations, 42, 1),
    "nothing drawn": (no_contours, 42, 91),
    "Japanese": (japanese, 42, 91),
}


class TestForeign:
    @pytest.mark.parametrize("name", FOREIGN)
    def test_what_is_there_stays_and_the_new_one_is_whole(
        self, tmp_path: Path, series: CtSeries, new: Structure, name: str
    ) -> None:
        change, number, observation = FOREIGN[name]
        path = foreign_set(tmp_path / "in.dcm", series, change=change)
        (done,) = add_to_rtstruct(path, tmp_path / "out.dcm", series, [new], description=WORDS)
        before, after = pydicom.dcmread(path), pydicom.dcmread(tmp_path / "out.dcm")
        assert str(after.PatientName) == str(before.PatientName)
        result = (tmp_path / "out.dcm").read_bytes()
        for keyword in SEQUENCES:
            *there, last = after[keyword].value
            assert list(there) == list(before.get(keyword, []))
            for item in before.get(keyword, []):
                assert encoded(item, True, before.SpecificCharacterSet) in result
            assert number == last.get("ROINumber", last.get("ReferencedROINumber")) == done.number
        assert last.ObservationNumber == observation
        assert [roi.ROIName for roi in after.StructureSetROISequence][:-1] == [
            roi.ROIName for roi in before.StructureSetROISequence
        ]
        read = read_rtstruct(tmp_path / "out.dcm", series)
        assert np.array_equal(read.mask(new.name, series.geometry).array, new.mask.array)

    @pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
    @pytest.mark.parametrize(
        ("good", "odd"), [(b"1\\2\\3 ", b"1/2/3 "), (b"1\\2\\3 ", b"red   "), (b"-12.50", b"-12,50")]
    )
    def test_values_that_are_none_are_passed_on_as_they_stand(
        self, tmp_path: Path, series: CtSeries, new: Structure, syntax: str, good: bytes, odd: bytes
    ) -> None:
        def coloured(dataset: Dataset) -> None:
            dataset.ROIContourSequence[0].ROIDisplayColor = [1, 2, 3]

        path = foreign_set(tmp_path / "in.dcm", series, syntax, change=coloured)
        content = path.read_bytes()
        at = content.index(good)
        element = content[at - 8 : at] + odd  # with its tag, its kind if that is stated, and its length
        path.write_bytes(content[:at] + odd + content[at + len(good) :])
        check_addable(path, series)
        add_to_rtstruct(path, tmp_path / "out.dcm", series, [new], description=WORDS)
        assert element in (tmp_path / "out.dcm").read_bytes()
        read = read_rtstruct(tmp_path / "out.dcm", series)
        assert [bool(structure.fault) for structure in read.structures] == [odd == b"-12,50", False, False]
        assert np.array_equal(read.mask(new.name, series.geometry).array, new.mask.array)


class TestNames:
    def test_a_clash_is_refused(self, tmp_path: Path, series: CtSeries) -> None:
        path = foreign_set(tmp_path / "in.dcm", series)
        twin = structure("bladder ", shapes(series.geometry.shape)["island"], series)
        with pytest.raises(InputError, match="has a structure named 'bladder' already; rename the new one"):
            add_to_rtstruct(path, tmp_path / "out.dcm", series, [twin], description=WORDS)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["in.dcm"]

    def test_or_suffixed_without_taking_another_name(self, tmp_path: Path, series: CtSeries) -> None:
        path = foreign_set(tmp_path / "in.dcm", series)
        island = shapes(series.geometry.shape)["island"]
        new = [structure(name, island, series) for name in ("Bladder", "BLADDER_2", "rectum")]
        done = add_to_rtstruct(path, tmp_path / "out.dcm", series, new, description=WORDS, on_clash="suffix")
        assert [d.name for d in done] == ["Bladder_3", "BLADDER_2", "rectum_2"]

    def test_capitals_and_blanks_make_no_other_name(
        self, tmp_path: Path, series: CtSeries, new: Structure
    ) -> None:
        def taken(dataset: Dataset) -> None:
            for roi, name in zip(
                dataset.StructureSetROISequence, ("prostate^AUTO", "Prostate^auto_2 "), strict=True
            ):
                roi.ROIName = name

        path = foreign_set(tmp_path / "in.dcm", series, change=taken)
        (done,) = add_to_rtstruct(path, tmp_path / "out.dcm", series, [new], description="", on_clash="suffix")
        assert done.name == "Prostate^auto_3"

    def test_the_longest_name(self, tmp_path: Path, series: CtSeries) -> None:
        long = "x" * 64
        path = foreign_set(
            tmp_path / "in.dcm",
            series,
            change=lambda dataset: setattr(dataset.StructureSetROISequence[0], "ROIName", long),
        )
        new = structure(long, shapes(series.geometry.shape)["island"], series)
        (done,) = add_to_rtstruct(path, tmp_path / "out.dcm", series, [new], description="", on_clash="suffix")
        assert done.name == "x" * 62 + "_2"

    def test_characters_that_the_set_cannot_hold(self, tmp_path: Path, series: CtSeries) -> None:
        path = foreign_set(tmp_path / "in.dcm", series)  # ISO_IR 100, like the scan
        island = shapes(series.geometry.shape)["island"]
        with pytest.raises(InputError, match=r"character set \(ISO_IR 100\) may not hold; use plain ASCII"):
            add_to_rtstruct(
                path, tmp_path / "out.dcm", series, [structure("前列腺", island, series)], description=WORDS
            )
        coded = structure("a", island, series, code=Code("1", "99CLINIC", "前列腺"))
        with pytest.raises(InputError, match="structure 'a': its name, description or code has characters"):
            add_to_rtstruct(path, tmp_path / "out.dcm", series, [coded], description=WORDS)
        add_to_rtstruct(path, tmp_path / "out.dcm", series, [structure("Größe", island, series)], description="")
        assert read_rtstruct(tmp_path / "out.dcm").names == ("Bladder", "Rectum", "Größe")


class TestRefused:
    def refuse(self, path: Path, series: CtSeries, new: Structure, *words: str) -> None:
        out = path.parent / "out.dcm"
        with pytest.raises(InputError) as caught:
            add_to_rtstruct(path, out, series, [new], description=WORDS)
        with pytest.raises(InputError) as early:
            check_addable(path, series)
        assert str(early.value) == str(caught.value)
        for word in words:
            assert word in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not out.exists()

    def test_another_frame_of_reference(self, tmp_path: Path, series: CtSeries, new: Structure) -> None:
        path = rtstruct(tmp_path / "in.dcm", [("a", [square(1, 5, -120)])])
        self.refuse(path, series, new, "frame of reference is 1.2.3.4, but", series.frame_of_reference_uid)

    def test_another_series(self, tmp_path: Path, series: CtSeries, new: Structure) -> None:
        other = generate_uid()

        def change(dataset: Dataset) -> None:
            (frame,) = dataset.ReferencedFrameOfReferenceSequence
            frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0].SeriesInstanceUID = other

        path = foreign_set(tmp_path / "in.dcm", series, change=change)
        self.refuse(path, series, new, f"refers to series {other}", series.series_uid)

    def test_another_patient_is_not_named(self, tmp_path: Path, series: CtSeries, new: Structure) -> None:
        path = foreign_set(
            tmp_path / "in.dcm", series, change=lambda dataset: setattr(dataset, "PatientID", "P-777")
        )
        self.refuse(path, series, new, "its PatientID is not that of series")
        with pytest.raises(InputError) as caught:
            add_to_rtstruct(path, tmp_path / "out.dcm", series, [new], description=WORDS)
        assert "P-777" not in str(caught.value)

    def test_images_that_the_series_lacks(self, tmp_path: Path, series: CtSeries, new: Structure) -> None:
        missing = generate_uid()

        def change(dataset: Dataset) -> None:
            contour = dataset.ROIContourSequence[1].ContourSequence[0]
            contour.ContourImageSequence[0].ReferencedSOPInstanceUID = missing

        path = foreign_set(tmp_path / "in.dcm", series, change=change)
        self.refuse(path, series, new, missing, "lacks; give the whole series")

    def test_nothing_that_ties_it_to_the_scan(self, tmp_path: Path, series: CtSeries, new: Structure) -> None:
        path = rtstruct(tmp_path / "in.dcm", [("a", [square(1, 5, -120)])], frame=None, sequence=False)
        self.refuse(path, series, new, "nothing says that it was drawn on this scan")

    def test_itself(self, tmp_path: Path, series: CtSeries, new: Structure) -> None:
        path = foreign_set(tmp_path / "in.dcm", series)
        before = path.read_bytes()
        with pytest.raises(InputError, match="is the structure set to add to; give another file"):
            add_to_rtstruct(path, path, series, [new], description=WORDS)
        assert path.read_bytes() == before

    def test_no_set_and_wrong_choices(self, tmp_path: Path, series: CtSeries, new: Structure) -> None:
        self.refuse(tmp_path / "none.dcm", series, new, "no such file")
        path = foreign_set(tmp_path / "in.dcm", series)
        with pytest.raises(InputError, match="on_clash is 'replace', expected one of refuse, suffix"):
            add_to_rtstruct(
                path,
                tmp_path / "out.dcm",
                series,
                [new],
                description=WORDS,
                on_clash="replace",  # type: ignore[arg-type]
            )

    def test_a_roi_without_a_number_is_passed_on(self, tmp_path: Path, series: CtSeries, new: Structure) -> None:
        def change(dataset: Dataset) -> None:
            del dataset.StructureSetROISequence[0].ROINumber

        path = foreign_set(tmp_path / "in.dcm", series, change=change)
        there = pydicom.dcmread(path).StructureSetROISequence
        add_to_rtstruct(path, tmp_path / "out.dcm", series, [new], description=WORDS)
        rois = pydicom.dcmread(tmp_path / "out.dcm").StructureSetROISequence
        assert list(rois)[:-1] == list(there)
        assert rois[-1].ROIName == new.name
