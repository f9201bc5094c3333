"""CT series as scanners and archives write them: read to the voxel, or refused for the true reason."""

from __future__ import annotations

import copy
import gc
import os
import re
import shutil
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.fileset import FileSet
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless, RLELossless, generate_uid

from metricunet.errors import InputError
from metricunet.files.dicom.series import find_series
from metricunet.inference.inputs import scans_at
from metricunet.workflows.check import check
from tests.support.ct_cases import as_enhanced, draw_series
from tests.support.dicom_series import Edit, only, pattern, recompress, write_series

SHAPE = (8, 12, 10)
HU = pattern(SHAPE)
ITEM = b"\xfe\xff\x00\xe0"
#: What pydicom compresses by itself.
LOSSLESS = {"pydicom JPEG-LS": JPEGLSLossless, "pydicom RLE": RLELossless}


def read(folder: Path) -> np.ndarray:
    return only(find_series(folder)).read().array


def reason(folder: Path) -> str:
    """Why the one series of a folder is refused; `check` says the same."""
    found = find_series(folder)
    assert found.series == ()
    (refused,) = found.refused
    assert next(p.message for p in check(folder) if p.severity == "error") == refused.reason
    return refused.reason


def raw(tag: int, vr: str, content: bytes) -> Edit:
    """Put bytes into an element as they are."""

    def edit(k: int, ds: Dataset) -> None:
        value = content + b" " * (len(content) % 2)
        ds._dict[Tag(tag)] = RawDataElement(Tag(tag), vr, len(value), value, 0, False, True)

    return edit


@pytest.mark.parametrize(
    ("tag", "vr", "content"),
    [
        (0x00101030, "DS", b"70,5"),
        (0x00181151, "DS", b"123.4.5"),
        (0x00181152, "IS", b"99999999999"),
        (0x00180060, "DS", b"N/A"),
        (0x00281050, "DS", b"40\\"),
        (0x00080020, "DA", b"2020.01.01"),
        (0x00100030, "DA", b"01/01/1950"),
        (0x00101010, "AS", b"70"),
        (0x00200013, "DS", b"A1"),
        (0x00200013, "IS", b"A1"),
        (0x00200013, "IS", b"1.5"),
        (0x00200012, "IS", b"1.5"),
        (0x00200012, "US", b"\1"),
        (0x00181151, "IS", b"123.4"),
        (0x00180050, "DS", b"3mm"),
        (0x00080020, "US", b"2020\1"),
        (0x00280120, "US", b"\1"),
    ],
    ids=lambda v: f"{v:08X}" if isinstance(v, int) else None,
)
@pytest.mark.filterwarnings("ignore")
def test_odd_values_that_play_no_part_cost_nothing(tmp_path: Path, tag: int, vr: str, content: bytes) -> None:
    write_series(tmp_path, after=raw(tag, vr, content))
    np.testing.assert_array_equal(read(tmp_path), HU)
    assert [p for p in check(tmp_path) if p.severity == "error"] == []


UNREADABLE = {
    "half a number": b"\x18\0\x45\x93FD\4\0\1\2\3\4",
    "half a number, private": b"\x45\0\x10\x10FD\4\0\1\2\3\4",
    "a private sequence that is none": b"\x09\0\x10\x10SQ\0\0\4\0\0\0\1\2\3\4",
    "a private sequence that is cut": b"\x09\0\x10\x10SQ\0\0\x0a\0\0\0\xfe\xff\0\xe0\x40\0\0\0\1\2",
    "a text that is a sequence": b"\x10\0\x10\0SQ\0\0\4\0\0\0\1\2\3\4",
    "within a sequence": (b"\x40\0\x75\x02SQ\0\0\x14\0\0\0\xfe\xff\0\xe0\x0c\0\0\0\x18\0\x45\x93FD\4\0\1\2\3\4"),
}


@pytest.mark.parametrize("which", ["one", "all"])
@pytest.mark.parametrize("element", UNREADABLE.values(), ids=list(UNREADABLE))
def test_an_element_that_cannot_be_read_and_is_not_used_costs_nothing(
    tmp_path: Path, element: bytes, which: str
) -> None:
    pixels = b"\xe0\x7f\x10\0OW"
    for path in write_series(tmp_path).files[: 1 if which == "one" else None]:
        before, after = path.read_bytes().split(pixels)
        path.write_bytes(before + element + pixels + after)
    np.testing.assert_array_equal(read(tmp_path), HU)
    assert check(tmp_path) == []


@pytest.mark.parametrize(
    ("tag", "vr", "content", "said"),
    [
        (0x00200032, "DS", b"1\\2\\zz", "ImagePositionPatient is not a number"),
        (0x00200037, "FD", b"\1\2\3", "ImageOrientationPatient is not a number"),
        (0x00280030, "DS", b"0,9\\1,1", "PixelSpacing is not a number"),
        (0x00281053, "DS", b"none", "RescaleSlope is not a number"),
        (0x00281052, "FD", b"\1\2", "RescaleIntercept is not a number"),
        (0x00280010, "US", b"\1", "Rows is"),
        (0x00280100, "US", b"\1\2\3", "BitsAllocated is"),
        (0x00100020, "FD", b"\1\2", "PatientID cannot be read"),
        (0x0020000E, "FD", b"\1\2", "SeriesInstanceUID cannot be read"),
        (0x00200052, "FD", b"\1\2", "FrameOfReferenceUID cannot be read"),
    ],
)
def test_an_odd_value_that_is_needed_is_named(
    tmp_path: Path, tag: int, vr: str, content: bytes, said: str
) -> None:
    path = write_series(tmp_path).files[2]
    before = path.read_bytes()
    start = before.index(struct.pack("<HH", tag >> 16, tag & 0xFFFF))
    end = start + 8 + int.from_bytes(before[start + 6 : start + 8], "little")
    odd = before[start : start + 4] + vr.encode() + struct.pack("<H", len(content)) + content
    path.write_bytes(before[:start] + odd + before[end:])
    told = reason(tmp_path)
    assert told.startswith(f"{path}: ")
    assert said in told


def test_numbers_longer_than_allowed_and_with_exponents(tmp_path: Path) -> None:
    def edit(k: int, ds: Dataset) -> None:
        z = -120 + 2.5 * k
        raw(0x00200032, "DS", f"-4.05000e+001\\-62.2500000000000000000001\\{z:.3f}".encode())(k, ds)
        raw(0x00280030, "DS", b"0.900000000000000000\\1.100000000000000000")(k, ds)

    written = write_series(tmp_path, after=edit)
    series = only(find_series(tmp_path))
    assert series.geometry.same_grid(written.geometry)
    np.testing.assert_array_equal(series.read().array, HU)


def test_known_elements_of_unknown_kind(tmp_path: Path) -> None:
    def edit(k: int, ds: Dataset) -> None:
        for tag in (0x00200032, 0x00200037, 0x00280030, 0x00281052, 0x00281053, 0x00200052):
            value = ds[tag].value
            text = value if isinstance(value, str) else "\\".join(map(str, np.atleast_1d(value)))
            raw(tag, "UN", str(text).encode())(k, ds)

    written = write_series(tmp_path, after=edit)
    series = only(find_series(tmp_path))
    assert series.geometry.same_grid(written.geometry)
    assert series.frame_of_reference_uid == written.frame_of_reference_uid
    np.testing.assert_array_equal(series.read().array, HU)


@pytest.mark.parametrize("signed", [True, False])
def test_nothing_is_taken_from_unused_high_bits(tmp_path: Path, signed: bool) -> None:
    hu = np.clip(HU, -1000, 1000)

    def edit(k: int, ds: Dataset) -> None:
        ds.BitsStored, ds.HighBit = 12, 11
        stored = np.frombuffer(ds.PixelData, np.uint16).reshape(SHAPE[1:]) & 0x0FFF
        stored[:2] |= 0 if signed else 0xF000  # not extended by the sign; or an overlay of old
        ds.PixelData = stored.tobytes()

    write_series(tmp_path, hu, signed=signed, intercept=0.0 if signed else -1024.0, edit=edit)
    np.testing.assert_array_equal(read(tmp_path), hu)


def fragmented(syntax: str, table: str) -> Edit:
    """Compress a slice and cut its one frame in two. The offset table lists nothing, it or both parts."""

    def edit(k: int, ds: Dataset) -> None:
        ds.compress(syntax, generate_instance_uid=False)
        frame = next(generate_frames(ds.PixelData, number_of_frames=1))
        cut = len(frame) // 4 * 2
        parts = [frame[:cut], frame[cut:] + bytes((len(frame) - cut) % 2)]
        offsets = {"empty": [], "frame": [0], "fragments": [0, 8 + cut]}[table]
        items = [struct.pack(f"<{len(offsets)}I", *offsets), *parts]
        ds.PixelData = b"".join(ITEM + struct.pack("<I", len(item)) + item for item in items)
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True

    return edit


@pytest.mark.parametrize("syntax", [JPEGLSLossless, RLELossless], ids=lambda uid: uid.name)
@pytest.mark.parametrize("table", ["empty", "frame", "fragments"])
def test_a_frame_in_several_fragments_is_one_frame(tmp_path: Path, syntax: str, table: str) -> None:
    def compressed(k: int, ds: Dataset) -> None:
        fragmented(syntax, table)(k, ds)
        ds.file_meta.TransferSyntaxUID = syntax

    write_series(tmp_path, after=compressed)
    np.testing.assert_array_equal(read(tmp_path), HU)


def test_original_attributes_are_not_the_files_own(tmp_path: Path) -> None:
    def edit(k: int, ds: Dataset) -> None:
        old, modified = Dataset(), Dataset()
        old.PatientID, old.SeriesInstanceUID, old.SOPInstanceUID = "OLD", generate_uid(), generate_uid()
        modified.ModifiedAttributesSequence = [old]
        ds.OriginalAttributesSequence = [modified]

    written = write_series(tmp_path, edit=edit)
    assert only(find_series(tmp_path)).series_uid == written.series_uid
    np.testing.assert_array_equal(read(tmp_path), HU)


def says_implicit(content: bytes) -> bytes:
    return content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0", 1)


def says_explicit(content: bytes) -> bytes:
    """The file header's element, two bytes longer."""
    before, after = content.split(b"1.2.840.10008.1.2\0", 1)
    return before[:-2] + b"\x14\x00" + b"1.2.840.10008.1.2.1\0" + after


@pytest.mark.parametrize(
    ("syntax", "change"),
    [
        (ExplicitVRLittleEndian, says_implicit),
        (ImplicitVRLittleEndian, says_explicit),
        (ExplicitVRLittleEndian, lambda content: content[132:]),
        (ExplicitVRLittleEndian, lambda content: b"II*\0" + bytes(124) + content[128:]),
        (ExplicitVRLittleEndian, lambda content: content + b"\xfc\xff\xfc\xffOB\0\0\x40\0\0\0" + bytes(64)),
    ],
    ids=["says implicit", "says explicit", "no preamble", "TIFF preamble", "trailing padding"],
)
def test_files_whose_beginning_or_end_is_odd(
    tmp_path: Path, syntax: str, change: Callable[[bytes], bytes]
) -> None:
    for path in write_series(tmp_path, transfer_syntax=syntax).files:
        path.write_bytes(change(path.read_bytes()))
    np.testing.assert_array_equal(read(tmp_path), HU)


@pytest.mark.parametrize("change", [says_implicit, says_explicit])
def test_a_wrong_syntax_hides_no_truncation(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    syntax = ExplicitVRLittleEndian if change is says_implicit else ImplicitVRLittleEndian
    files = write_series(tmp_path, transfer_syntax=syntax).files
    for path in files:
        path.write_bytes(change(path.read_bytes()))
    files[3].write_bytes(files[3].read_bytes()[:-20])
    assert f"{files[3]}: slice at z = -112.50 mm: the file is truncated within its pixel data" in reason(tmp_path)


def test_what_follows_the_pixels_and_is_no_element_is_refused_in_words_of_dicom(tmp_path: Path) -> None:
    written = write_series(tmp_path)
    for path in written.files:
        path.write_bytes(path.read_bytes() + b"\xff" * 333)
    (problem,) = [p for p in check(tmp_path) if p.severity == "error"]
    assert "its pixels cannot be decoded" in problem.message
    assert "PosixPath" not in problem.message


def icon(k: int, ds: Dataset) -> None:
    small = Dataset()
    small.Rows = small.Columns = small.BitsAllocated = small.BitsStored = 8
    small.HighBit, small.PixelRepresentation, small.SamplesPerPixel = 7, 0, 1
    small.PhotometricInterpretation, small.PixelData = "MONOCHROME2", bytes(64)
    small["PixelData"].VR = "OB"
    ds.IconImageSequence = [small]


def overlay(k: int, ds: Dataset) -> None:
    for tag, vr, value in (
        (0x60000010, "US", SHAPE[1]),
        (0x60000011, "US", SHAPE[2]),
        (0x60000040, "CS", "G"),
        (0x60000050, "SS", [1, 1]),
        (0x60000100, "US", 1),
        (0x60000102, "US", 0),
        (0x60003000, "OW", bytes(16)),
    ):
        ds.add_new(tag, vr, value)


def long_pixels(k: int, ds: Dataset) -> None:
    ds.PixelData = ds.PixelData + bytes(128)


def inverted(k: int, ds: Dataset) -> None:
    ds.PhotometricInterpretation = "MONOCHROME1"  # how it is shown, not what it holds


def nobody(k: int, ds: Dataset) -> None:
    ds.PatientID = ds.PatientName = ds.StudyDate = ""
    del ds.PatientPosition


def other_voltage(k: int, ds: Dataset) -> None:
    ds.KVP = "80" if k < 4 else "140"


@pytest.mark.parametrize("edit", [icon, overlay, long_pixels, inverted, nobody, other_voltage])
def test_what_else_a_slice_may_hold_changes_no_voxel(tmp_path: Path, edit: Edit) -> None:
    write_series(tmp_path, edit=edit)
    np.testing.assert_array_equal(read(tmp_path), HU)


@pytest.mark.parametrize(("stated", "thickness"), [("-2.5", "2.5"), ("0", "2.5"), ("5", "5")])
def test_spacing_between_slices_never_overrules_positions(tmp_path: Path, stated: str, thickness: str) -> None:
    def edit(k: int, ds: Dataset) -> None:
        ds.SpacingBetweenSlices, ds.SliceThickness = stated, thickness

    assert only(find_series(write_series(tmp_path, edit=edit).folder)).geometry.spacing_mm[0] == 2.5


@pytest.mark.parametrize("padding", [-2000, -3024, -32768])
def test_padding_outside_the_scan_circle(tmp_path: Path, padding: int) -> None:
    hu = HU.copy()
    hu[:, :2] = padding

    def edit(k: int, ds: Dataset) -> None:
        ds.add_new("PixelPaddingValue", "SS", padding)

    write_series(tmp_path, hu, signed=True, intercept=0.0, edit=edit)
    np.testing.assert_array_equal(read(tmp_path), hu)
    assert [p for p in check(tmp_path) if p.severity == "error"] == []


def padded(value: int, share_of_rows: int = 2, **elements: int | str) -> Edit:
    """Put one stored value into the first rows of pixels without sign, and state it so or otherwise."""

    def edit(k: int, ds: Dataset) -> None:
        stored = np.frombuffer(ds.PixelData, np.uint16).reshape(SHAPE[1:]).copy()
        stored[:share_of_rows] = value
        ds.PixelData = stored.tobytes()
        for keyword, stated in elements.items():
            vr = "SS" if isinstance(stated, int) and stated < 0 else "US"
            ds.add_new(keyword, vr, stated)

    return edit


IN_AIR = HU.copy()
IN_AIR[:, :2] = -1000


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=lambda uid: uid.name)
@pytest.mark.parametrize(
    ("value", "stated"),
    [
        (63536, {"PixelPaddingValue": 63536}),
        (63536, {"PixelPaddingValue": -2000}),
        (63536, {"PixelPaddingValue": 63000, "PixelPaddingRangeLimit": 64000}),
        (63536, {"PixelPaddingValue": 64000, "PixelPaddingRangeLimit": 63000}),
        (65535, {"PixelPaddingValue": 65535}),
    ],
)
def test_padding_without_sign_is_air(tmp_path: Path, syntax: str, value: int, stated: dict[str, int]) -> None:
    write_series(tmp_path, edit=padded(value, **stated), transfer_syntax=syntax)
    volume = only(find_series(tmp_path)).read()
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, IN_AIR)
    assert check(tmp_path) == []
    ((entry,), _) = scans_at(tmp_path)
    np.testing.assert_array_equal(entry.read().array, IN_AIR)  # as predict reads it


@pytest.mark.parametrize("stated", [{}, {"PixelPaddingValue": 0}, {"PixelPaddingValue": "", "Rows": 12}])
def test_padding_without_sign_that_no_file_states_is_named(tmp_path: Path, stated: dict[str, int | str]) -> None:
    write_series(tmp_path, edit=padded(63536, **stated))
    (problem,) = check(tmp_path)
    assert problem.severity == "error"
    assert problem.message.startswith(
        f"{tmp_path}: 17 % of the voxels hold the stored value 63536, which is 62512 HU"
    )
    assert "set PixelPaddingValue to 63536" in problem.message
    ((entry,), _) = scans_at(tmp_path)
    with pytest.raises(InputError) as error:
        entry.read()
    assert str(error.value) == problem.message


def test_values_above_all_hu_that_are_not_one_are_no_padding(tmp_path: Path) -> None:
    def edit(k: int, ds: Dataset) -> None:
        padded(60000 + k)(k, ds)

    write_series(tmp_path, edit=edit)
    (problem,) = check(tmp_path)
    assert "are no Hounsfield units" in problem.message


@pytest.mark.parametrize("stated", [0, 24, 1024, 2000])
def test_values_among_hu_are_tissue_whatever_is_said_to_be_padding(tmp_path: Path, stated: int) -> None:
    def edit(k: int, ds: Dataset) -> None:
        ds.add_new("PixelPaddingValue", "US", stated)

    write_series(tmp_path, edit=edit)
    np.testing.assert_array_equal(read(tmp_path), HU)


@pytest.mark.parametrize(
    ("step", "digits", "read_as"),
    [(0.625, 2, 0.625), (1.171875, 2, 1.171875), (0.625, 1, None), (1.25, 1, None), (2.5, 0, None)],
)
def test_positions_are_rounded_so_far(tmp_path: Path, step: float, digits: int, read_as: float | None) -> None:
    def edit(k: int, ds: Dataset) -> None:
        ds.ImagePositionPatient = [0, 0, f"{round(-50 + k * step, digits):.{digits}f}"]

    write_series(tmp_path, shape=(30, 12, 10), spacing_mm=(step, 0.9, 1.1), edit=edit)
    if read_as is None:
        assert "most slices" in reason(tmp_path)
    else:
        assert only(find_series(tmp_path)).geometry.spacing_mm[0] == pytest.approx(read_as, abs=1e-3)


def phases(k: int, ds: Dataset) -> None:
    ds.ImagePositionPatient = [0, 0, -50 + 3 * (k % 4)]
    ds.AcquisitionNumber = ds.TemporalPositionIdentifier = 1 + k // 4


def energies(k: int, ds: Dataset) -> None:
    ds.KVP, ds.ImagePositionPatient = "80" if k % 2 else "140", [0, 0, -50 + 3 * (k // 2)]


def monitoring(k: int, ds: Dataset) -> None:
    ds.ImagePositionPatient = [0, 0, -50]


def on_the_side(k: int, ds: Dataset) -> None:
    ds.ImageOrientationPatient, ds.PatientPosition = [0, -1, 0, 1, 0, 0], "HFDR"


def own_rescale(k: int, ds: Dataset) -> None:
    ds.RescaleSlope = 1 if k % 2 else 0.5


def modified_hu(k: int, ds: Dataset) -> None:
    ds.RescaleType = "HU_MOD"


def no_frame(k: int, ds: Dataset) -> None:
    del ds.FrameOfReferenceUID


def third_of_the_steps(k: int, ds: Dataset) -> None:
    ds.SpacingBetweenSlices = "1.25"


def marked_as_scout(k: int, ds: Dataset) -> None:
    if k == 0:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (phases, "two acquisitions are interleaved"),
        (energies, "lies at the position of"),
        (monitoring, "lies at the position of"),
        (on_the_side, "turns the image by 90.0 degrees in its plane"),
        (own_rescale, "the rescale (slope, intercept) is"),
        (modified_hu, "RescaleType is HU_MOD, expected HU"),
        (no_frame, "FrameOfReferenceUID is missing"),
        (third_of_the_steps, "SpacingBetweenSlices is 1.25 mm, but the slices lie 2.50 mm apart"),
        (marked_as_scout, "ImageType says LOCALIZER"),
    ],
)
def test_what_is_no_one_scan_is_refused_for_what_it_is(tmp_path: Path, edit: Edit, words: str) -> None:
    write_series(tmp_path, edit=edit)
    assert words in reason(tmp_path)


@pytest.mark.parametrize("orientation", [[1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]], ids=["coronal", "sagittal"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_scout_in_the_series_of_its_slices_is_left_out_and_named(
    tmp_path: Path, orientation: list[int], count: int
) -> None:
    written = write_series(tmp_path)

    def scout(k: int, ds: Dataset) -> None:
        ds.ImageType, ds.ImageOrientationPatient = ["ORIGINAL", "PRIMARY", "LOCALIZER"], orientation

    same = {"series_uid": written.series_uid, "frame_of_reference_uid": written.frame_of_reference_uid}
    write_series(tmp_path / "scouts", shape=(count, 40, 20), edit=scout, **same)
    found = find_series(tmp_path)
    (series,) = found.series
    assert set(series.files) == set(written.files)
    np.testing.assert_array_equal(series.read().array, HU)
    assert [r.is_scan for r in found.refused] == [False] * count
    assert {r.files[0] for r in found.refused} == set((tmp_path / "scouts").iterdir())
    problems = check(tmp_path)
    assert [p.severity for p in problems] == ["warning"] * count
    assert "ImageType says LOCALIZER, and the image lies across the slices" in problems[0].message


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize(
    "encoder", ["JPEGLosslessProcess14_1", "JPEG2000Lossless", "JPEGLSLossless", "RLELossless", *LOSSLESS]
)
def test_signs_survive_every_encoder(tmp_path: Path, encoder: str, bits: int, signed: bool) -> None:
    """Twelve of sixteen bits with a sign, as gdcm and pydicom compress them."""
    hu = np.clip(HU, -1024, 1023)
    syntax = LOSSLESS.get(encoder)

    def edit(k: int, ds: Dataset) -> None:
        ds.BitsStored, ds.HighBit = bits, bits - 1
        if syntax is not None:
            ds.file_meta = FileMetaDataset()
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            ds.compress(syntax, generate_instance_uid=False)

    def after(k: int, ds: Dataset) -> None:
        if syntax is not None:
            ds.file_meta.TransferSyntaxUID = syntax

    written = write_series(tmp_path, hu, signed=signed, intercept=0 if signed else -1024, edit=edit, after=after)
    if syntax is None:
        for path in written.files:
            recompress(path, encoder)
    np.testing.assert_array_equal(read(tmp_path), hu)


@pytest.mark.parametrize("table", ["basic", "extended", "none"])
def test_frames_of_an_enhanced_file_in_two_fragments_each(tmp_path: Path, table: str) -> None:
    rng = np.random.default_rng(0)
    drawn = draw_series(rng, "HFS", slices=6)
    ds = as_enhanced(drawn.slices, rng)
    frames = []
    for one in drawn.slices:
        single = copy.deepcopy(one)
        single.file_meta = FileMetaDataset()
        single.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        single.compress(JPEGLSLossless, generate_instance_uid=False)
        frames.append(next(generate_frames(single.PixelData, number_of_frames=1)))
    data, offsets = b"", []
    for frame in frames:
        offsets.append(len(data))
        cut = len(frame) if table == "extended" else len(frame) // 4 * 2  # there a frame is one fragment
        parts = [part + bytes(len(part) % 2) for part in (frame[:cut], frame[cut:]) if part]
        data += b"".join(ITEM + struct.pack("<I", len(part)) + part for part in parts)
    listed = struct.pack("<6I", *offsets) if table == "basic" else b""
    ds.PixelData = ITEM + struct.pack("<I", len(listed)) + listed + data
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    if table == "extended":
        ds.ExtendedOffsetTable = struct.pack("<6Q", *offsets)
        ds.ExtendedOffsetTableLengths = struct.pack("<6Q", *map(len, frames))
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = (
        ds.SOPClassUID,
        ds.SOPInstanceUID,
    )
    ds.file_meta.TransferSyntaxUID = JPEGLSLossless
    ds.save_as(tmp_path / "ct.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read(tmp_path), drawn.hu)


def test_a_disc_and_its_directory_are_one(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # pydicom leaves its temporary folder to the collector
        disc = FileSet()
        for path in write_series(tmp_path / "made").files:
            disc.add(path)
        disc.write(tmp_path / "cd")
        del disc
        gc.collect()
    for name, content in (("AUTORUN.INF", b"[autorun]"), ("VIEWER.EXE", b"MZ" + bytes(500)), ("Thumbs.db", b"\0")):
        (tmp_path / "cd" / name).write_bytes(content)
    for given in (tmp_path / "cd", tmp_path / "cd" / "DICOMDIR"):
        np.testing.assert_array_equal(read(given), HU)
        assert check(given) == []


def test_folders_whose_names_are_no_text(tmp_path: Path) -> None:
    good, bad = write_series(tmp_path / "good"), write_series(tmp_path / "bad", edit=zero_slope)
    tree = os.fsencode(tmp_path) + b"/tree/M\xfcller"
    os.makedirs(tree)
    for written, name in ((good, b"/ct"), (bad, b"/ct2")):
        shutil.copytree(os.fsencode(written.folder), tree + name)
    found = find_series(tmp_path / "tree")
    assert [series.series_uid for series in found.series] == [good.series_uid]
    np.testing.assert_array_equal(found.series[0].read().array, HU)
    (refused,) = found.refused
    assert re.search(r"ct2/\d+\.dcm: slice at z = .*: RescaleSlope is 0", refused.reason)


def zero_slope(k: int, ds: Dataset) -> None:
    ds.RescaleSlope = 0
