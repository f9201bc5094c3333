"""One CT slice, in a file of its own or a frame of one: what it must state of itself.

A fault is an `InputError` that begins with the file's path and, once it is known, the slice's position.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, JPEGExtended12Bit

from metricunet.errors import InputError
from metricunet.files.dicom.header import (
    DAMAGE,
    DicomFile,
    numbers,
    optional_number,
    slice_location,
    text_as_stored,
    text_of,
    values,
    whole,
)
from metricunet.volume import FloatArray

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
#: Enhanced CT, and Legacy Converted Enhanced CT: several slices in one file, a frame each.
ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
#: Decoders that claim lossy JPEG of 12 bits, the one that CT has, and decode its form of 8 bits alone.
EIGHT_BITS_ALONE = frozenset({"gdcm", "pillow"})
#: Row and column vectors are unit vectors at right angles, written with at least three decimals.
UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class SliceHeader:
    """What one CT slice states of itself; lengths in LPS millimetres."""

    path: Path
    #: Number of the frame, from 1; None where the file holds this slice alone.
    frame: int | None
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
    #: AcquisitionNumber and ConvolutionKernel; empty where it states none.
    acquisition: str
    kernel: str
    #: SliceThickness and SpacingBetweenSlices; None where it states none.
    thickness_mm: float | None
    stated_step_mm: float | None
    #: Lowest and highest stored value that is padding, not tissue; None where it states none.
    padding: tuple[int, int] | None

    @property
    def location(self) -> str:
        """The beginning of a message about this slice."""
        return slice_location(self.path, self.frame, float(self.position_mm[2]))

    @property
    def name(self) -> str:
        """What to call this slice in a message that has named another: its file, and its frame if it is one."""
        return self.path.name if self.frame is None else f"frame {self.frame}"


class NotCtSliceError(InputError):
    """The image may be sound, but is no slice of a CT scan: an overview, a report, another modality."""


def check_kind(file: DicomFile) -> None:
    """Refuse what is no file of CT slices.

    Raises:
        NotCtSliceError: another modality, a localizer, a secondary capture.
        InputError: several frames in a file for one, a transfer syntax that cannot be decoded.
    """
    dataset, at = file.dataset, file.location
    modality = text_of(dataset, "Modality")
    sop_class = str(dataset.get("SOPClassUID", "") or "")
    if modality != "CT":
        article = "an" if modality[:1] in "AEIOMNRSXFHL" else "a"
        named = f"{article} {modality} image" if modality else "an image of unknown modality"
        raise NotCtSliceError(f"{at}: is {named}, expected CT; choose the CT series")
    if sop_class != CT_IMAGE and sop_class not in ENHANCED_CT:
        name = UID(sop_class).name or "nothing"
        raise NotCtSliceError(f"{at}: SOPClassUID is {name}, expected CT Image Storage; choose the CT series")
    frames = optional_number(dataset, "NumberOfFrames")
    if sop_class == CT_IMAGE and frames > 1:
        raise InputError(
            f"{at}: NumberOfFrames is {frames:g}, but SOPClassUID is CT Image Storage, which holds one; "
            "export the scan as Enhanced CT or as single-frame CT images"
        )
    check_no_localizer(file)
    _check_transfer_syntax(file)


def is_localizer(file: DicomFile) -> bool:
    """Tell whether ImageType (or FrameType) says LOCALIZER: an overview image, or scout."""
    return "LOCALIZER" in [str(value).upper() for value in values(file.dataset, "ImageType")]


def normal_of(file: DicomFile) -> FloatArray | None:
    """Return the unit vector across an image, in LPS; None where it does not state two directions in its plane."""
    try:
        across, down = np.asarray(numbers(file, "ImageOrientationPatient", 6)).reshape(2, 3)
    except InputError:
        return None
    normal = np.cross(across, down)
    length = float(np.linalg.norm(normal))
    return None if abs(length - 1) > UNIT_TOLERANCE else np.asarray(normal / length, dtype=np.float64)


def check_no_localizer(file: DicomFile) -> None:
    """Refuse an overview image.

    Raises:
        NotCtSliceError: ImageType (or FrameType) says LOCALIZER.
    """
    if is_localizer(file):
        field = "ImageType" if file.frame is None else "FrameType"
        raise NotCtSliceError(
            f"{file.location}: {field} says LOCALIZER: an overview image, not a slice; remove it from the series"
        )


def read_slice(file: DicomFile) -> SliceHeader:
    """Read and check what a slice states of itself.

    Raises:
        InputError: a field that is missing, or holds what a CT slice cannot.
    """
    path, dataset = file.path, file.dataset
    position = np.asarray(numbers(file, "ImagePositionPatient", 3))
    orientation = np.asarray(numbers(file, "ImageOrientationPatient", 6)).reshape(2, 3)
    at = file.location
    if file.pixel_fault is not None:
        raise InputError(f"{at}: {file.pixel_fault}")
    gram = orientation @ orientation.T
    if np.abs(gram - np.eye(2)).max() > UNIT_TOLERANCE:
        raise InputError(f"{at}: ImageOrientationPatient is not two unit vectors at right angles; export again")
    row_spacing, column_spacing = numbers(file, "PixelSpacing", 2)
    if row_spacing <= 0 or column_spacing <= 0:
        raise InputError(f"{at}: PixelSpacing is {row_spacing:g} x {column_spacing:g} mm, expected above 0")
    if whole(file, "SamplesPerPixel") != 1:
        raise InputError(f"{at}: holds a colour picture, expected grey values; choose the CT series")
    bits = (whole(file, "BitsAllocated"), whole(file, "BitsStored"), whole(file, "PixelRepresentation"))
    if bits[0] != 16 or not 1 <= bits[1] <= 16 or bits[2] not in (0, 1):
        raise InputError(
            f"{at}: BitsAllocated {bits[0]}, BitsStored {bits[1]}, PixelRepresentation {bits[2]}; "
            "expected 16, at most 16, and 0 or 1"
        )
    slope, intercept = _rescale(file, at)
    return SliceHeader(
        path=path,
        frame=file.frame,
        study_uid=_text(file, "StudyInstanceUID"),
        sop_uid=_text(file, "SOPInstanceUID"),
        frame_of_reference_uid=_text(file, "FrameOfReferenceUID"),
        patient_id=str(dataset.get("PatientID", "") or ""),
        position_mm=position,
        orientation=orientation,
        rows=whole(file, "Rows"),
        columns=whole(file, "Columns"),
        pixel_spacing_mm=(row_spacing, column_spacing),
        bits=bits,
        slope=slope,
        intercept=intercept,
        compressed=UID(file.transfer_syntax).is_compressed,
        acquisition=text_as_stored(dataset, "AcquisitionNumber"),
        kernel=text_as_stored(dataset, "ConvolutionKernel"),
        thickness_mm=optional_number(dataset, "SliceThickness") or None,
        stated_step_mm=abs(optional_number(dataset, "SpacingBetweenSlices")) or None,
        padding=_padding(file, signed=bits[2] == 1),
    )


def _padding(file: DicomFile, signed: bool) -> tuple[int, int] | None:
    """The stored values that PixelPaddingValue, and PixelPaddingRangeLimit if there is one, say are padding.

    They are of the pixels' own kind, and yet many programs write -2000 for pixels without sign, or 63536 for
    those with: the 16 bits are the same.
    """
    ends: list[int] = []
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        try:
            bits = [_sixteen_bits(value) for value in values(file.dataset, keyword)]
        except DAMAGE:
            bits = []
        ends += [value - 0x10000 if signed and value >= 0x8000 else value for value in bits[:1]]
        if not ends:
            return None
    return min(ends), max(ends)


def _sixteen_bits(value: float | str | bytes) -> int:
    """The bits of a number; it stays bytes where nothing tells whether it has a sign."""
    return (int.from_bytes(value[:2], "little") if isinstance(value, bytes) else int(value)) & 0xFFFF


def _check_transfer_syntax(file: DicomFile) -> None:
    if not file.transfer_syntax:
        raise InputError(
            f"{file.location}: has no DICOM file header, so its transfer syntax is unknown; "
            "export it again as a DICOM file (Part 10)"
        )
    uid = UID(file.transfer_syntax)
    try:
        decoder = get_decoder(uid)
        known = decoder.is_available
        if uid == JPEGExtended12Bit:
            known = not EIGHT_BITS_ALONE.issuperset(decoder.available_plugins)
    except NotImplementedError:
        known = False
    if not known:
        raise InputError(
            f"{file.location}: transfer syntax {uid.name} cannot be decoded here; "
            "export the scan uncompressed, or as JPEG, JPEG-LS or JPEG 2000 lossless"
        )


def _rescale(file: DicomFile, at: str) -> tuple[float, float]:
    (slope,) = numbers(file, "RescaleSlope", 1)
    (intercept,) = numbers(file, "RescaleIntercept", 1)
    if slope <= 0:
        raise InputError(f"{at}: RescaleSlope is {slope:g}, expected above 0; export it again")
    unit = str(file.dataset.get("RescaleType", "") or "HU").upper()
    if unit not in ("HU", "US"):
        raise InputError(f"{at}: RescaleType is {unit}, expected HU; choose the series in Hounsfield units")
    return slope, intercept


def _text(file: DicomFile, keyword: str) -> str:
    value = str(file.dataset.get(keyword, "") or "")
    if not value:
        raise InputError(f"{file.location}: {keyword} is missing; export the series again from its source")
    return value
