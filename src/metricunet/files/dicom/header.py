"""One DICOM file's header as it stands, and whether its pixel data are all there.

A frame of a multi-frame file, taken out by `frames`, is read like a file of its own.

Nothing here decodes a pixel. A fault is an `InputError` that begins with the file's path and, once it is
known, the slice's position.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, MediaStorageDirectoryStorage

from metricunet.errors import InputError
from metricunet.files.dicom.file import (
    PREAMBLE,
    PREFIX,
    DicomHandle,
    bare_syntax,
    begins_bare,
    parsed,
    plain_text,
    read_readable,
)

#: What travels with a planning CT and is no scan of its own: passed over in a search.
COMPANION_MODALITIES = ("RTDOSE", "RTIMAGE", "RTSTRUCT", "RTPLAN", "RTRECORD", "SEG", "REG", "SR", "PR", "KO")
#: The elements that the intake reads of every file; the first slice's header is read in full later.
_TAGS = [
    *("ImageType", "SOPClassUID", "SOPInstanceUID", "Modality", "SeriesDescription", "PatientID"),
    *("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"),
    *("SamplesPerPixel", "NumberOfFrames", "BitsAllocated", "BitsStored", "PixelRepresentation"),
    *("RescaleIntercept", "RescaleSlope", "RescaleType", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("AcquisitionNumber", "ConvolutionKernel", "SliceThickness", "SpacingBetweenSlices"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]

#: Those of them that are texts. pydicom interprets an element when it is first asked for, and may fail only then:
#: these are asked for at once, numbers and functional groups where a fault of theirs can be named.
_TEXTS = [
    *("ImageType", "SOPClassUID", "SOPInstanceUID", "Modality", "SeriesDescription", "PatientID"),
    *("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "RescaleType", "ConvolutionKernel"),
]

#: What pydicom raises for a file that is damaged rather than foreign.
DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    NotImplementedError,
    struct.error,
    zlib.error,
    BytesLengthException,
    # Of values of another kind than their element's, of items that are not there, of nesting without end.
    AttributeError,
    OverflowError,
    RecursionError,
)

#: How the files begin that macOS leaves beside those it copies (._NAME), where folder icons and the like are kept.
_APPLE_BEGINNINGS = (b"\x00\x05\x16\x07", b"\x00\x05\x16\x00")
_SERIES_UID = 0x0020000E
_PIXEL_DATA = 0x7FE00010
#: Kinds of value (VR) that pixel data have where they state one.
_PIXEL_KINDS = (b"OW", b"OB", b"UN")
_ITEM = 0xFFFEE000
_SEQUENCE_END = 0xFFFEE0DD
_UNDEFINED_LENGTH = 0xFFFFFFFF


class DamagedFileError(InputError):
    """A DICOM file whose header cannot be read to its end. `series_uid` is empty where that is not known."""

    def __init__(self, message: str, series_uid: str = "") -> None:
        super().__init__(message)
        self.series_uid = series_uid


@dataclass(frozen=True)
class DicomFile:
    """A DICOM file as found: its elements, without pixels, and the fault of its pixel data if there is one.

    Attributes:
        path: path of the file.
        dataset: its elements; for a frame, those that a file of this frame alone would have.
        transfer_syntax: UID of its transfer syntax.
        pixel_fault: what is wrong with the pixel data, if that shows without decoding.
        frame: number of the frame, from 1; None for a file as a whole.
    """

    path: Path
    dataset: pydicom.Dataset
    transfer_syntax: str
    pixel_fault: str | None
    frame: int | None = None

    @property
    def series_uid(self) -> str:
        """SeriesInstanceUID, empty where the file has none."""
        return str(self.dataset.get("SeriesInstanceUID", "") or "")

    @property
    def is_image(self) -> bool:
        """Tell whether this is an image that ought to be looked at: CT or something that is taken for one."""
        return "Rows" in self.dataset and str(self.dataset.get("Modality", "")) not in COMPANION_MODALITIES

    @property
    def is_directory(self) -> bool:
        """Tell whether this is a DICOMDIR: the list of the files of a disc."""
        return bool(self.dataset.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage)

    @property
    def location(self) -> str:
        """The beginning of a message about this file: its path, and its position if it states one."""
        try:
            z = float(self.dataset.ImagePositionPatient[2])
        except (*DAMAGE, AttributeError, IndexError):
            return str(self.path) if self.frame is None else f"{self.path}: frame {self.frame}"
        return slice_location(self.path, self.frame, z)


def slice_location(path: Path, frame: int | None, z: float) -> str:
    """The beginning of a message about a slice."""
    what = "slice" if frame is None else f"frame {frame}"
    return f"{path}: {what} at z = {z:.2f} mm"


def read_dicom_file(path: Path) -> DicomFile | None:
    """Read a file's header; None if it is not DICOM.

    Raises:
        DamagedFileError: if the file cannot be opened, or its header is damaged, or its name alone is DICOM's.
    """
    series_uid = ""
    try:
        with DicomHandle(path) as handle:
            dataset = _parse(handle)
            if dataset is None:
                handle.seek(0)
                beginning = handle.read(512)
                if path.suffix.lower() == ".dcm" and not beginning.startswith(_APPLE_BEGINNINGS):
                    raise EOFError(f"{_likeness(beginning)}; remove it if it is no slice")
                return None
            for keyword in _TEXTS:
                _interpret(dataset, keyword)
            if _ends_early(dataset):
                # The last element that was read may itself be cut off, so it tells nothing.
                if any(tag > _SERIES_UID for tag in dataset.keys()):  # noqa: SIM118 - a Dataset iterates elements
                    series_uid = str(dataset.get("SeriesInstanceUID") or "")
                raise EOFError("it ends before the image's size")
            syntax = str(dataset.file_meta.get("TransferSyntaxUID", "") or "") or _bare_syntax(handle, dataset)
            fault = _pixel_fault(handle, dataset, syntax) if "Rows" in dataset else None
    except PermissionError as error:
        raise DamagedFileError(
            f"{path}: no permission to read this file; a slice may be missing without it"
        ) from error
    except (*DAMAGE, AttributeError, OverflowError, RecursionError) as error:
        raise _damaged(path, error, series_uid) from error
    return DicomFile(path, dataset, syntax, fault)


def read_full_header(path: Path) -> pydicom.Dataset:
    """Read every element of a file but its pixels, and leave out those that cannot be interpreted.

    What the intake needs it has read before, and named where it could not be read. What else a scanner wrote, as
    private sequences or numbers of half their length, costs nobody the scan.

    Raises:
        InputError: if the header is damaged, so that its elements cannot be told apart.
    """
    try:
        dataset = read_readable(path, stop_before_pixels=True)
        dataset.decode()
    except (*DAMAGE, AttributeError, OverflowError, RecursionError) as error:
        raise _damaged(path, error) from error
    return dataset


def one_line(error: BaseException) -> str:
    """An exception's message without line breaks, and without the traceback that pydicom puts into some."""
    said = str(error).partition("Traceback (most recent call last)")[0]
    return " ".join(said.split())[:200]


def text_of(dataset: pydicom.Dataset, keyword: str) -> str:
    """A text as it may stand in a message: one line of at most 64 characters, empty where there is none."""
    text = plain_text(dataset, keyword)
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:64].rstrip()


def _interpret(dataset: pydicom.Dataset, keyword: str) -> None:
    try:
        dataset.get(keyword)
    except DAMAGE as error:
        raise ValueError(f"{keyword} cannot be read: {one_line(error)}") from error


def _damaged(path: Path, error: BaseException, series_uid: str = "") -> DamagedFileError:
    return DamagedFileError(
        f"{path}: the DICOM header is damaged ({one_line(error)}); copy or export it again", series_uid
    )


def _likeness(beginning: bytes) -> str:
    """Say of a file that is named like DICOM what it is instead."""
    if not beginning.strip(b"\0"):
        return "it is empty"
    try:
        text = beginning.decode("ascii").strip()
    except UnicodeDecodeError:
        return "it does not begin like DICOM"
    return f"it holds text, which begins {text[:30]!r}"


def _parse(handle: DicomHandle) -> pydicom.Dataset | None:
    bare = begins_bare(handle)
    start = handle.read(PREAMBLE + len(PREFIX))
    handle.seek(0)
    if start[PREAMBLE:] != PREFIX and not bare:
        return None
    try:
        return parsed(handle, stop_before_pixels=True, force=bare, specific_tags=list(_TAGS))
    except InvalidDicomError:
        return None


def _bare_syntax(handle: DicomHandle, dataset: pydicom.Dataset) -> str:
    """The transfer syntax that a data set without a file header shows; empty where pixels may be compressed."""
    syntax = bare_syntax(dataset)
    if syntax is None:
        return ""
    start = handle.tell()
    head = handle.read(12)
    handle.seek(start)
    length = head[4:8] if dataset.original_encoding[0] else head[8:12]
    # Pixels of undefined length are compressed, and nothing says how.
    return "" if length == _UNDEFINED_LENGTH.to_bytes(4, "little") else str(syntax)


def _ends_early(dataset: pydicom.Dataset) -> bool:
    # pydicom takes the end of a file for the end of the header, wherever it comes.
    if "Rows" in dataset:
        return False
    sop_class, stated = (
        part.get(keyword)
        for part, keyword in ((dataset, "SOPClassUID"), (dataset.file_meta, "MediaStorageSOPClassUID"))
    )
    if not sop_class:  # a directory of files alone has none: anything else is spoilt from its beginning
        return bool(stated != MediaStorageDirectoryStorage)
    names = [UID(str(uid)).name for uid in (sop_class, stated) if uid]
    if all(name.endswith("Storage") and "Image Storage" not in name for name in names):
        return False  # raw data and the like of a scanner are of modality CT, too
    return bool(dataset.get("Modality") == "CT") or any("Image Storage" in name for name in names)


def _pixel_fault(handle: BinaryIO, dataset: pydicom.Dataset, syntax: str) -> str | None:
    """Walk over the pixel data element without reading its values; the handle stands at its beginning."""
    if syntax == DeflatedExplicitVRLittleEndian:
        return None  # the whole data set is one compressed stream: faults show when it is decoded
    size = os.fstat(handle.fileno()).st_size
    order = "<" if dataset.original_encoding[1] else ">"
    head = handle.read(12)
    if len(head) < 8:
        return "has no pixel data (the file ends after the header); copy or export it again"
    if _tag(head, order) != _PIXEL_DATA:
        return "has no pixel data that a CT image holds; export it again"
    # What the file header says of the encoding may be wrong, and pydicom then reads the elements as they are. The
    # letters of a kind of value are an odd number, which no length is.
    if head[4:6] not in _PIXEL_KINDS:
        handle.seek(-4, os.SEEK_CUR)
        length = struct.unpack(order + "I", head[4:8])[0]
    else:
        length = struct.unpack(order + "I", head[8:12])[0] if len(head) == 12 else 0
    truncated = "the file is truncated within its pixel data; copy or export it again"
    frames = max(1, int(optional_number(dataset, "NumberOfFrames")))
    if length == _UNDEFINED_LENGTH:
        fragments = _fragments(handle)
        if fragments is None:
            return truncated
        few = f"pixel data hold {fragments} fragments, expected one or more for each of {frames} frames"
        return None if fragments >= frames else f"{few}; copy or export it again"
    if handle.tell() + length > size:
        return truncated
    # A number that is none is named when the slice is read.
    rows, columns, bits = (int(optional_number(dataset, k)) for k in ("Rows", "Columns", "BitsAllocated"))
    wanted = frames * rows * columns * 2
    if length < wanted and bits == 16:
        return f"pixel data hold {length} bytes, expected {wanted}; copy or export it again"
    return None


def _fragments(handle: BinaryIO) -> int | None:
    """Count the fragments of encapsulated pixel data; None if they do not run to their closing delimiter."""
    count = -1  # the first item is the offset table
    while True:
        head = handle.read(8)
        if len(head) < 8:
            return None
        tag, length = _tag(head, "<"), struct.unpack("<I", head[4:8])[0]
        if tag == _SEQUENCE_END:
            return max(0, count)
        if tag != _ITEM:
            return None
        count += 1
        handle.seek(length, os.SEEK_CUR)  # beyond the end, the next head is short


def _tag(head: bytes, order: str) -> int:
    group, element = struct.unpack(order + "HH", head[:4])
    return int(group) << 16 | int(element)


def values(dataset: pydicom.Dataset, keyword: str) -> Sequence[Any]:
    """An element's values, whatever their number; none where it is missing or empty."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return ()
    return [value] if isinstance(value, str | bytes | int | float) else list(value)


def text_as_stored(dataset: pydicom.Dataset, keyword: str) -> str:
    """An element's values as text, backslashes between; the bytes of one that is not what it should be."""
    try:
        return "\\".join(map(str, values(dataset, keyword)))
    except DAMAGE:
        item = dataset.get_item(keyword)
        content = b"" if item is None else item.value
        return content.decode("latin-1").strip(" \0") if isinstance(content, bytes) else str(content)


def numbers(file: DicomFile, keyword: str, count: int) -> tuple[float, ...]:
    """An element that must hold so many finite numbers.

    Raises:
        InputError: it is missing or holds something else.
    """
    try:
        found = tuple(float(value) for value in values(file.dataset, keyword))
    except DAMAGE as error:
        raise InputError(
            f"{file.location}: {keyword} is not a number ({one_line(error)}); export it again"
        ) from error
    if not found:
        raise InputError(f"{file.location}: {keyword} is missing; export the series again from its source")
    if len(found) != count or not all(math.isfinite(value) for value in found):
        raise InputError(
            f"{file.location}: {keyword} is {list(found[:8])}, expected {count} finite numbers; export it again"
        )
    return found


def whole(file: DicomFile, keyword: str) -> int:
    """An element that must hold one number, as a whole one.

    Raises:
        InputError: it is missing or holds something else.
    """
    (value,) = numbers(file, keyword, 1)
    return int(value)


def optional_number(dataset: pydicom.Dataset, keyword: str) -> float:
    """An element's number; 0 where it is missing or none."""
    try:
        found = float(dataset.get(keyword) or 0)
    except DAMAGE:
        return 0.0
    return found if math.isfinite(found) else 0.0
