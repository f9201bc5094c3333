"""Structure sets as they are found: what is wrong with one region is told of it, and costs no other a voxel."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from metricunet.errors import InputError
from metricunet.files.dicom.series import CtSeries
from metricunet.files.rtstruct.add import _new_numbers
from metricunet.files.rtstruct.read import read_rtstruct
from tests.support.structure_sets import GRID, rtstruct, square

COLOUR, NUMBERS = "ROIDisplayColor", "ContourData"
GOOD = [square(1.5, 8.5, 3), square(1.5, 9.5, 6)]
OTHER = [square(2.5, 5.5, 3), square(2.5, 5.5, 6)]


def contour_item(dataset: Dataset, number: int) -> Dataset:
    return next(i for i in dataset.ROIContourSequence if i.get("ReferencedROINumber") == number)


def kind(text: str | None) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        contour = contour_item(dataset, 8).ContourSequence[0]
        if text is None:
            del contour.ContourGeometricType
        else:
            contour.ContourGeometricType = text

    return change


def no_number(dataset: Dataset) -> None:
    del dataset.StructureSetROISequence[1].ROINumber


def no_reference(dataset: Dataset) -> None:
    del contour_item(dataset, 8).ReferencedROINumber


def no_name(dataset: Dataset) -> None:
    del dataset.StructureSetROISequence[1].ROIName


def odd_observation(dataset: Dataset) -> None:
    dataset.RTROIObservationsSequence = [Dataset()]


#: What may be wrong with the second region, numbered 8.
FAULTS: dict[str, Callable[[Dataset], None]] = {
    "another type": kind("INTERPOLATED"),
    "no type": kind(None),
    "no number": no_number,
    "no reference": no_reference,
    "no name": no_name,
    "an observation of nothing": odd_observation,
}
#: Text in it that is no value of its element.
ODD = {
    "four colours": (COLOUR, b"1\\2\\3\\4"),
    "colours between strokes": (COLOUR, b"255/0/0"),
    "a colour's name": (COLOUR, b"red"),
    "a fraction of a colour": (COLOUR, b"127.5\\0\\0"),
    "no colour": (COLOUR, b""),
    "seven numbers": (NUMBERS, b"1\\2\\3\\4\\5\\6\\7"),
    "no numbers": (NUMBERS, b""),
    "decimal commas": (NUMBERS, b"1,5\\2,5\\3\\3,5\\2,5\\3\\3,5\\9,5\\3"),
    "commas between numbers": (NUMBERS, b"1,2,3,4,5,3,1,5,3"),
    "numbers that are none": (NUMBERS, b"nan\\nan\\3\\1\\2\\3\\2\\2\\3"),
}


@settings(max_examples=60)
@given(
    faults=st.lists(st.sampled_from([*FAULTS, *ODD]), min_size=1, max_size=3, unique=True), before=st.booleans()
)
def test_a_good_region_is_read_to_the_voxel_whatever_its_neighbour_is(
    tmp_path_factory: pytest.TempPathFactory, faults: list[str], before: bool
) -> None:
    folder = tmp_path_factory.mktemp("wild")

    def change(dataset: Dataset) -> None:
        # The reference goes last: by it the others find the item.
        for fault in sorted((f for f in faults if f in FAULTS), key="no reference".__eq__):
            FAULTS[fault](dataset)
        if before:
            dataset.StructureSetROISequence = list(dataset.StructureSetROISequence)[::-1]
            dataset.ROIContourSequence = list(dataset.ROIContourSequence)[::-1]

    odd = {("bad", ODD[fault][0]): ODD[fault][1] for fault in faults if fault in ODD}
    expected = read_rtstruct(rtstruct(folder / "good.dcm", [("good", GOOD)])).mask("good", GRID).array
    path = rtstruct(folder / "rs.dcm", [("good", GOOD), ("bad", OTHER)], change=change, odd=odd)
    assert np.array_equal(read_rtstruct(path).mask("good", GRID).array, expected)


@pytest.mark.parametrize("text", [b"255/0/0", b"red", b"", b"255\\0\\0\\1", b"-1\\0\\0", b"255"])
def test_a_colour_that_is_none_costs_the_colour_alone(tmp_path: Path, text: bytes) -> None:
    path = rtstruct(tmp_path / "rs.dcm", [("good", GOOD), ("odd", OTHER)], odd={("odd", COLOUR): text})
    good, odd = (read_rtstruct(path).structure(name) for name in ("good", "odd"))
    assert (good.fault, odd.fault, odd.colour) == ("", "", None)
    assert len(odd.contours) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"1,5\\2,5\\3\\3,5\\2,5\\3\\3,5\\9,5\\3", "has ContourData that is not numbers, the first '1,5'"),
        (b"1,2,3,4,5,3,1,5,3", "has ContourData that is not numbers, the first '1,2,3,4,5,3,1,5,3'"),
        (b"1\\2\\3\\4\\\\3\\1\\5\\3", "has ContourData that is not numbers, the first ''"),
        (b"nan\\nan\\3\\1\\2\\3\\2\\2\\3", "has ContourData that holds nan, expected lengths in millimetres"),
        (b"1\\2\\3\\4\\5\\3\\1\\1e7\\3", r"has ContourData that holds 1e\+07, expected lengths in millimetres"),
        (b"1\\2\\3\\4\\5\\6\\7", "has ContourData that holds 7 numbers, expected three for each point"),
    ],
)
def test_numbers_that_cannot_be_used_cost_their_region_and_are_told(
    tmp_path: Path, text: bytes, words: str
) -> None:
    path = rtstruct(tmp_path / "rs.dcm", [("good", GOOD), ("odd", OTHER)], odd={("odd", NUMBERS): text})
    good, odd = read_rtstruct(path).masks(GRID)
    assert (good.status, odd.status) == ("contoured", "unusable")
    assert re.search(rf"rs\.dcm: ROI 'odd' {words}; export it again$", odd.reason)


def test_numbers_with_exponents_are_numbers(tmp_path: Path) -> None:
    text = b"1.5E+00\\1.5e0\\3\\55.0E-1 \\1.5\\3\\5.5\\5.500000000000001\\3\\ 1.5\\5.5\\3"
    read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", OTHER)], odd={("a", NUMBERS): text}))
    assert read.mask("a", GRID).array.sum(axis=(1, 2)).tolist() == [0, 16, 9, 0, 0, 0]


#: What programs and hands leave in a contour, and the voxels of 12 x 12 that it holds all the same.
WHOLE = np.zeros((12, 12), dtype=bool)
WHOLE[2:9, 2:9] = True
ROWS, COLUMNS = np.indices((12, 12))
ODD_LOOPS: dict[str, tuple[list[list[float]], np.ndarray]] = {
    "points given three times": ([[v for p in np.reshape(square(1.5, 8.5, 3), (4, 3)) for v in [*p] * 3]], WHOLE),
    "a spike there and back": ([[*square(1.5, 8.5, 3)[:6], 11, 11, 3, *square(1.5, 8.5, 3)[3:]]], WHOLE),
    "a speck outside": ([square(1.5, 8.5, 3), square(10.4, 10.45, 3)], WHOLE),
    "a bow-tie": (
        [[0.5, 0.3, 3, 9.4, 9.7, 3, 9.4, 0.3, 3, 0.5, 9.7, 3]],
        (abs(ROWS - 5) <= abs(COLUMNS - 5)) & (COLUMNS > 0) & (COLUMNS < 10),
    ),
}


@pytest.mark.parametrize("name", ODD_LOOPS)
def test_odd_contours_hold_what_they_enclose(tmp_path: Path, name: str) -> None:
    loops, expected = ODD_LOOPS[name]
    array = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", loops)])).mask("a", GRID).array
    np.testing.assert_array_equal(array[1], expected)
    assert not np.delete(array, 1, axis=0).any()


@pytest.mark.filterwarnings("ignore:.*exceeds the size of 64 kByte")
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_a_contour_longer_than_64_kib(tmp_path: Path, syntax: str) -> None:
    """In explicit VR it does not fit into a DS, so it is written as of unknown kind."""
    turn = np.linspace(0, 2 * np.pi, 9000, endpoint=False)
    ring = np.stack([5 + 4.2 * np.cos(turn), 6 + 4.2 * np.sin(turn), np.full(9000, 3)], axis=1)
    dataset = pydicom.dcmread(rtstruct(tmp_path / "rs.dcm", [("a", [ring.ravel().round(3).tolist()])]))
    dataset.file_meta.TransferSyntaxUID = syntax
    encoding = {"implicit_vr": syntax == ImplicitVRLittleEndian, "little_endian": True}
    dataset.save_as(tmp_path / "rs.dcm", enforce_file_format=True, **encoding)
    read = read_rtstruct(tmp_path / "rs.dcm")
    assert [len(contour) for contour in read.structure("a").contours] == [9000]
    np.testing.assert_array_equal(read.mask("a", GRID).array[1], np.hypot(ROWS - 6, COLUMNS - 5) < 4.2)


def test_two_regions_of_one_number_are_refused_and_the_third_is_read(tmp_path: Path) -> None:
    def change(dataset: Dataset) -> None:
        contour_item(dataset, 9).ReferencedROINumber = 8
        dataset.StructureSetROISequence[2].ROINumber = 8

    rois = [("body", GOOD), ("bladder", OTHER), ("prostate", GOOD)]
    found = read_rtstruct(rtstruct(tmp_path / "rs.dcm", rois, change=change)).masks(GRID)
    assert [one.status for one in found] == ["contoured", "unusable", "unusable"]
    assert "has ROI number 8, as have 2 ROIs ('bladder' and 'prostate')" in found[1].reason


def test_two_regions_of_one_number_without_contours_are_not_drawn(tmp_path: Path) -> None:
    def change(dataset: Dataset) -> None:
        dataset.StructureSetROISequence[1].ROINumber = 7

    found = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", None), ("b", None)], change=change)).masks(GRID)
    assert [one.status for one in found] == ["not contoured", "not contoured"]


def test_contours_that_name_no_region_make_no_region_undrawn(tmp_path: Path) -> None:
    """They may be those of a region that has none under its number; of an empty region they are not."""
    rois = [("a", GOOD), ("b", OTHER), ("c", None)]

    def change(dataset: Dataset) -> None:
        contour_item(dataset, 8).ReferencedROINumber = None

    read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", rois, change=change))
    found = read.masks(GRID)
    assert [one.status for one in found] == ["contoured", "unusable", "not contoured"]
    assert (
        "no contours under its number, 8, and 1 items of ROIContourSequence that hold contours" in found[1].reason
    )
    assert any("1 items of ROIContourSequence name no ROI" in warning for warning in read.warnings)


def test_a_region_in_two_items_is_joined(tmp_path: Path) -> None:
    def change(dataset: Dataset) -> None:
        item = contour_item(dataset, 7)
        second = copy.deepcopy(item)
        item.ContourSequence, second.ContourSequence = item.ContourSequence[:1], second.ContourSequence[1:]
        dataset.ROIContourSequence.append(second)

    read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", GOOD)], change=change))
    assert read.mask("a", GRID).array.sum(axis=(1, 2)).tolist() == [0, 49, 64, 0, 0, 0]
    assert any("lie in 2 items of ROIContourSequence; they are joined" in warning for warning in read.warnings)


def test_the_reason_is_the_type_of_contours_that_is_not_known(tmp_path: Path) -> None:
    contours = [square(1.5, 8.5, z) for z in (0, 3, 6, 9, 12)]

    def change(dataset: Dataset) -> None:
        for contour in contour_item(dataset, 7).ContourSequence[1::2]:
            contour.ContourGeometricType = "INTERPOLATED_PLANAR"

    with pytest.warns(UserWarning, match="exceeds the maximum length"):
        path = rtstruct(tmp_path / "rs.dcm", [("a", contours)], change=change)
    with pytest.raises(InputError, match=r"\(INTERPOLATED_PLANAR: 2\) beside 3 closed ones"):
        read_rtstruct(path).mask("a", GRID)


def test_parts_on_planes_that_differ_by_rounding_are_both_kept(tmp_path: Path) -> None:
    contours = [square(0.5, 3.5, 3), square(5.5, 8.5, 3.03)]
    read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", contours)]))
    assert read.mask("a", GRID).array.sum(axis=(1, 2)).tolist() == [0, 18, 0, 0, 0, 0]


def test_a_set_without_a_file_header_is_read(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(rtstruct(tmp_path / "rs.dcm", [("a", GOOD)]))
    for implicit in (True, False):
        buffer = pydicom.filebase.DicomBytesIO()
        buffer.is_implicit_VR, buffer.is_little_endian = implicit, True
        pydicom.filewriter.write_dataset(buffer, dataset)
        (tmp_path / "bare.dcm").write_bytes(buffer.getvalue())
        assert read_rtstruct(tmp_path / "bare.dcm").mask("a", GRID).array.any()


@pytest.mark.parametrize("first", ["mr", "ct"])
def test_of_several_frames_the_images_of_the_contours_decide(tmp_path: Path, series: CtSeries, first: str) -> None:
    """The set lists two frames; a region of the other frame costs the rest nothing."""

    def change(dataset: Dataset) -> None:
        listed = [reference("9.9", "9.9.1", "9.9.1.1"), reference(series.frame_of_reference_uid, *own)]
        dataset.ReferencedFrameOfReferenceSequence = listed if first == "mr" else listed[::-1]
        image = Dataset()
        image.ReferencedSOPInstanceUID = series.sop_uids[2]
        contour_item(dataset, 7).ContourSequence[0].ContourImageSequence = [image]
        del dataset.StructureSetROISequence[0].ReferencedFrameOfReferenceUID
        dataset.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = "9.9"

    def reference(frame: str, uid: str, image_uid: str) -> Dataset:
        image, images, study, item = Dataset(), Dataset(), Dataset(), Dataset()
        image.ReferencedSOPInstanceUID = image_uid
        images.SeriesInstanceUID, images.ContourImageSequence = uid, [image]
        study.RTReferencedSeriesSequence = [images]
        item.FrameOfReferenceUID, item.RTReferencedStudySequence = frame, [study]
        return item

    own = series.series_uid, series.sop_uids[2]
    x, y, z = series.positions_mm[2]
    place = [x + 2, y + 2, z, x + 9, y + 2, z, x + 9, y + 9, z, x + 2, y + 9, z]
    path = rtstruct(tmp_path / "rs.dcm", [("a", [place]), ("mr", [place])], change=change)
    read = read_rtstruct(path, series)
    assert (read.frame_of_reference_uid, read.series_uid) == (series.frame_of_reference_uid, series.series_uid)
    assert read.mask("a", series.geometry).array.any()
    with pytest.raises(InputError, match=r"ROI 'mr' cannot be used on this scan: its frame of reference is 9\.9"):
        read.mask("mr", series.geometry)


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        (set(), [1, 2]),
        ({3}, [4, 5]),
        ({-5}, [1, 2]),
        ({2, 2**31 - 1}, [1, 3]),
        ({1, 2**31 - 2}, [2, 3]),
    ],
)
def test_new_numbers_are_free_and_legal(taken: set[int], expected: list[int]) -> None:
    assert _new_numbers(taken, 2) == expected
