"""One DICOM file's header: what a CT slice must state, and whether its pixel data are all there.

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

import numpy as np
import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from metricunet.errors import InputError
from metricunet.files.dicom_file import DicomHandle, parsed, plain_text, read_dataset
from metricunet.volume import FloatArray

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
#: What travels with a planning CT and is no scan of its own: passed over in a search.
COMPANION_MODALITIES = ("RTDOSE", "RTIMAGE", "RTSTRUCT", "RTPLAN", "RTRECORD", "SEG", "REG", "SR", "PR", "KO")
#: Row and column vectors are unit vectors at right angles, written with at least three decimals.
UNIT_TOLERANCE = 1e-3

#: The elements that the intake reads of every file; the first slice's header is read in full later.
_TAGS = [
    *("ImageType", "SOPClassUID", "SOPInstanceUID", "Modality", "SeriesDescription", "PatientID"),
    *("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"),
    *("SamplesPerPixel", "NumberOfFrames", "BitsAllocated", "BitsStored", "PixelRepresentation"),
    *("RescaleIntercept", "RescaleSlope", "RescaleType"),
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

_BARE_BEGINNINGS = (
    *(b"\x02\x00\x00\x00", b"\x08\x00\x00\x00", b"\x08\x00\x01\x00"),
    *(b"\x08\x00\x05\x00", b"\x08\x00\x08\x00"),
)
_PIXEL_DATA = 0x7FE00010
_ITEM = 0xFFFEE000
_SEQUENCE_END = 0xFFFEE0DD
_UNDEFINED_LENGTH = 0xFFFFFFFF


@dataclass(frozen=True)
class DicomFile:
    """A DICOM file as found: its elements, without pixels, and the fault of its pixel data if there is one."""

    path: Path
    dataset: pydicom.Dataset
    transfer_syntax: str
    pixel_fault: str | None

    @property
    def series_uid(self) -> str:
        """SeriesInstanceUID, empty where the file has none."""
        return str(self.dataset.get("SeriesInstanceUID", "") or "")

    @property
    def is_image(self) -> bool:
        """Tell whether this is an image that ought to be looked at: CT or something that is taken for one."""
        return "Rows" in self.dataset and str(self.dataset.get("Modality", "")) not in COMPANION_MODALITIES

    @property
    def place(self) -> str:
        """The beginning of a message about this file: its path, and its position if it states one."""
        try:
            z = float(self.dataset.ImagePositionPatient[2])
        except (*DAMAGE, AttributeError, IndexError):
            return str(self.path)
        return f"{self.path}: slice at z = {z:.2f} mm"


@dataclass(frozen=True, eq=False)
class SliceHeader:
    """What one CT slice states of itself; lengths in LPS millimetres."""

    path: Path
    study_uid: str
    sop_uid: str
    frame_of_reference_uid: str
    patient_id: str
    position_mm: FloatArray
    orientation: FloatArray
    rows: int
    columns: int
    pixel_spacing_mm: tuple[float, float]
    bits: tuple[int, int, int]
    slope: float
    intercept: float
    #: Whether its pixels have to be decoded, not just read.
    compressed: bool

    @property
    def place(self) -> str:
        """The beginning of a message about this slice."""
        return f"{self.path}: slice at z = {self.position_mm[2]:.2f} mm"


def read_dicom_file(path: Path) -> DicomFile | None:
    """Read a file's header; None if it is not DICOM.

    Raises:
        InputError: if the file cannot be opened, or its header is damaged, or its name alone is DICOM's.
    """
    try:
        with DicomHandle(path) as handle:
            dataset = _parse(handle)
            if dataset is None:
                if path.suffix.lower() == ".dcm":
                    raise EOFError("it does not begin like DICOM; empty or truncated")
                return None
            if _ends_early(dataset):
                raise EOFError("it ends before the image's size")
            syntax = str(dataset.file_meta.get("TransferSyntaxUID", "") or "")
            fault = _pixel_fault(handle, dataset, syntax) if "Rows" in dataset else None
    except PermissionError as error:
        raise InputError(f"{path}: no permission to read this file; a slice may be missing without it") from error
    except DAMAGE as error:
        raise _damaged(path, error) from error
    return DicomFile(path, dataset, syntax, fault)


def read_full_header(path: Path) -> pydicom.Dataset:
    """Read every element of a file but its pixels.

    Raises:
        InputError: if an element is damaged.
    """
    try:
        dataset = read_dataset(path, stop_before_pixels=True)
        dataset.decode()
    except DAMAGE as error:
        raise _damaged(path, error) from error
    return dataset


def one_line(error: BaseException) -> str:
    """An exception's message without line breaks."""
    return " ".join(str(error).split())[:200]


def text_of(dataset: pydicom.Dataset, keyword: str) -> str:
    """A text as it may stand in a message: one line of at most 64 characters, empty where there is none."""
    text = plain_text(dataset, keyword)
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:64].rstrip()


def check_kind(file: DicomFile) -> None:
    """Refuse what is not a single-frame axial CT image.

    Raises:
        InputError: another modality, multi-frame, localizer, secondary capture, undecodable transfer syntax.
    """
    dataset, at = file.dataset, file.place
    modality = str(dataset.get("Modality", "") or "")
    sop_class = str(dataset.get("SOPClassUID", "") or "")
    if modality != "CT":
        article = "an" if modality[:1] in "AEIOMNRSXFHL" else "a"
        named = f"{article} {modality} image" if modality else "an image of unknown modality"
        raise InputError(f"{at}: is {named}, expected CT; choose the CT series")
    frames = _optional_number(dataset, "NumberOfFrames")
    if sop_class in ENHANCED_CT or frames > 1:
        raise InputError(
            f"{at}: is a multi-frame (enhanced) CT file, which is not supported yet; "
            "export the scan as single-frame CT images"
        )
    if sop_class != CT_IMAGE:
        name = UID(sop_class).name or "nothing"
        raise InputError(f"{at}: SOPClassUID is {name}, expected CT Image Storage; choose the CT series")
    image_type = [str(value).upper() for value in _values(dataset, "ImageType")]
    if "LOCALIZER" in image_type:
        raise InputError(
            f"{at}: ImageType says LOCALIZER: an overview image, not a slice; remove it from the series"
        )
    _check_transfer_syntax(file)


def read_slice(file: DicomFile) -> SliceHeader:
    """Read and check what a slice states of itself.

    Raises:
        InputError: a field that is missing, or holds what a CT slice cannot.
    """
    path, dataset = file.path, file.dataset
    position = np.asarray(_numbers(file, "ImagePositionPatient", 3))
    orientation = np.asarray(_numbers(file, "ImageOrientationPatient", 6)).reshape(2, 3)
    at = file.place
    if file.pixel_fault is not None:
        raise InputError(f"{at}: {file.pixel_fault}")
    gram = orientation @ orientation.T
    if np.abs(gram - np.eye(2)).max() > UNIT_TOLERANCE:
        raise InputError(f"{at}: ImageOrientationPatient is not two unit vectors at right angles; export again")
    row_spacing, column_spacing = _numbers(file, "PixelSpacing", 2)
    if row_spacing <= 0 or column_spacing <= 0:
        raise InputError(f"{at}: PixelSpacing is {row_spacing:g} x {column_spacing:g} mm, expected above 0")
    if _whole(file, "SamplesPerPixel") != 1:
        raise InputError(f"{at}: holds a colour picture, expected grey values; choose the CT series")
    bits = (_whole(file, "BitsAllocated"), _whole(file, "BitsStored"), _whole(file, "PixelRepresentation"))
    if bits[0] != 16 or not 1 <= bits[1] <= 16 or bits[2] not in (0, 1):
        raise InputError(
            f"{at}: BitsAllocated {bits[0]}, BitsStored {bits[1]}, PixelRepresentation {bits[2]}; "
            "expected 16, at most 16, and 0 or 1"
        )
    slope, intercept = _rescale(file, at)
    return SliceHeader(
        path=path,
        study_uid=_text(file, "StudyInstanceUID"),
        sop_uid=_text(file, "SOPInstanceUID"),
        frame_of_reference_uid=_text(file, "FrameOfReferenceUID"),
        patient_id=str(dataset.get("PatientID", "") or ""),
        position_mm=position,
        orientation=orientation,
        rows=_whole(file, "Rows"),
        columns=_whole(file, "Columns"),
        pixel_spacing_mm=(row_spacing, column_spacing),
        bits=bits,
        slope=slope,
        intercept=intercept,
        compressed=UID(file.transfer_syntax).is_compressed,
    )


def _damaged(path: Path, error: BaseException) -> InputError:
    return InputError(f"{path}: the DICOM header is damaged ({one_line(error)}); copy or export it again")


def _parse(handle: DicomHandle) -> pydicom.Dataset | None:
    start = handle.read(132)
    # Some programs write data sets without the file header: such a file begins with group 0002 or 0008.
    bare = start[128:] != b"DICM" and start[:4] in _BARE_BEGINNINGS
    if start[128:] != b"DICM" and not bare:
        return None
    handle.seek(0)
    try:
        return parsed(handle, stop_before_pixels=True, force=bare, specific_tags=list(_TAGS))
    except InvalidDicomError:
        return None


def _ends_early(dataset: pydicom.Dataset) -> bool:
    # pydicom takes the end of a file for the end of the header, wherever it comes.
    sop_class = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    is_image = dataset.get("Modality") == "CT" or not sop_class or "Image Storage" in UID(str(sop_class)).name
    return is_image and "Rows" not in dataset


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
    if dataset.original_encoding[0]:
        handle.seek(-4, os.SEEK_CUR)
        length = struct.unpack(order + "I", head[4:8])[0]
    else:
        length = struct.unpack(order + "I", head[8:12])[0] if len(head) == 12 else 0
    truncated = "the file is truncated within its pixel data; copy or export it again"
    if length == _UNDEFINED_LENGTH:
        return None if _fragments_complete(handle) else truncated
    if handle.tell() + length > size:
        return truncated
    wanted = int(dataset.get("Rows") or 0) * int(dataset.get("Columns") or 0) * 2
    if length < wanted and int(dataset.get("BitsAllocated") or 0) == 16:
        return f"pixel data hold {length} bytes, expected {wanted}; copy or export it again"
    return None


def _fragments_complete(handle: BinaryIO) -> bool:
    """Tell whether encapsulated pixel data run to their closing delimiter."""
    while True:
        head = handle.read(8)
        if len(head) < 8:
            return False
        tag, length = _tag(head, "<"), struct.unpack("<I", head[4:8])[0]
        if tag == _SEQUENCE_END:
            return True
        if tag != _ITEM:
            return False
        handle.seek(length, os.SEEK_CUR)  # beyond the end, the next head is short


def _tag(head: bytes, order: str) -> int:
    group, element = struct.unpack(order + "HH", head[:4])
    return int(group) << 16 | int(element)


def _check_transfer_syntax(file: DicomFile) -> None:
    if not file.transfer_syntax:
        raise InputError(
            f"{file.place}: has no DICOM file header, so its transfer syntax is unknown; "
            "export it again as a DICOM file (Part 10)"
        )
    uid = UID(file.transfer_syntax)
    try:
        known = get_decoder(uid).is_available
    except NotImplementedError:
        known = False
    if not known:
        raise InputError(
            f"{file.place}: transfer syntax {uid.name} cannot be decoded here; "
            "export the scan uncompressed, or as JPEG, JPEG-LS or JPEG 2000 lossless"
        )


def _rescale(file: DicomFile, at: str) -> tuple[float, float]:
    (slope,) = _numbers(file, "RescaleSlope", 1)
    (intercept,) = _numbers(file, "RescaleIntercept", 1)
    if slope <= 0:
        raise InputError(f"{at}: RescaleSlope is {slope:g}, expected above 0; export it again")
    unit = str(file.dataset.get("RescaleType", "") or "HU").upper()
    if unit not in ("HU", "US"):
        raise InputError(f"{at}: RescaleType is {unit}, expected HU; choose the series in Hounsfield units")
    return slope, intercept


def _values(dataset: pydicom.Dataset, keyword: str) -> Sequence[Any]:
    value = dataset.get(keyword)
    if value is None or value == "":
        return ()
    return [value] if isinstance(value, str | bytes | int | float) else list(value)


def _numbers(file: DicomFile, keyword: str, count: int) -> tuple[float, ...]:
    try:
        found = tuple(float(value) for value in _values(file.dataset, keyword))
    except DAMAGE as error:
        raise InputError(
            f"{file.place}: {keyword} is not a number ({one_line(error)}); export it again"
        ) from error
    if not found:
        raise InputError(f"{file.place}: {keyword} is missing; export the series again from its source")
    if len(found) != count or not all(math.isfinite(value) for value in found):
        raise InputError(
            f"{file.place}: {keyword} is {list(found[:8])}, expected {count} finite numbers; export it again"
        )
    return found


def _whole(file: DicomFile, keyword: str) -> int:
    (value,) = _numbers(file, keyword, 1)
    return int(value)


def _optional_number(dataset: pydicom.Dataset, keyword: str) -> float:
    try:
        return float(dataset.get(keyword) or 0)
    except DAMAGE:
        return 0.0


def _text(file: DicomFile, keyword: str) -> str:
    value = str(file.dataset.get(keyword, "") or "")
    if not value:
        raise InputError(f"{file.place}: {keyword} is missing; export the series again from its source")
    return value
