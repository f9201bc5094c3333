"""Enhanced (multi-frame) CT: each frame as the single-frame file that would hold it.

Position, spacing, rescale and the like stand in functional groups: in the shared ones where they hold for all
frames, in a frame's own where they do not. A frame's elements are gathered under the names that a single-frame
file gives them, so that every check of a slice is a check of a frame.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydicom.dataset import Dataset

from metricunet.errors import InputError
from metricunet.files.dicom.header import DAMAGE, DicomFile, one_line, optional_number
from metricunet.files.dicom.slice import ENHANCED_CT, check_no_localizer

#: Elements that hold for the whole file.
_OF_THE_FILE = [
    *("SOPClassUID", "SOPInstanceUID", "Modality", "PatientID", "StudyInstanceUID", "SeriesInstanceUID"),
    *("FrameOfReferenceUID", "Rows", "Columns", "SamplesPerPixel"),
    *("BitsAllocated", "BitsStored", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
]
#: Single-frame name: the functional group that holds it, and its name there.
_OF_A_FRAME = {
    "ImagePositionPatient": ("PlanePositionSequence", "ImagePositionPatient"),
    "ImageOrientationPatient": ("PlaneOrientationSequence", "ImageOrientationPatient"),
    "PixelSpacing": ("PixelMeasuresSequence", "PixelSpacing"),
    "SliceThickness": ("PixelMeasuresSequence", "SliceThickness"),
    "SpacingBetweenSlices": ("PixelMeasuresSequence", "SpacingBetweenSlices"),
    "RescaleSlope": ("PixelValueTransformationSequence", "RescaleSlope"),
    "RescaleIntercept": ("PixelValueTransformationSequence", "RescaleIntercept"),
    "RescaleType": ("PixelValueTransformationSequence", "RescaleType"),
    "ImageType": ("CTImageFrameTypeSequence", "FrameType"),
    "AcquisitionNumber": ("FrameContentSequence", "FrameAcquisitionNumber"),
    "ConvolutionKernel": ("CTReconstructionSequence", "ConvolutionKernel"),
}


def split_frames(file: DicomFile) -> list[DicomFile]:
    """Return the frames of a multi-frame CT file, or a single-frame file itself.

    Raises:
        InputError: functional groups that are missing, damaged, contradict each other or are not one for each
            frame; a frame that is a localizer.
    """
    if str(file.dataset.get("SOPClassUID", "") or "") not in ENHANCED_CT:
        return [file]
    try:
        frames = [
            replace(file, dataset=_as_single_frame(file, shared, own, number), frame=number)
            for number, shared, own in _groups(file)
        ]
    except (*DAMAGE, AttributeError, OverflowError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{file.path}: its functional groups are damaged ({one_line(error)}); copy or export it again"
        ) from error
    for frame in frames:
        check_no_localizer(frame)
    return frames


def _groups(file: DicomFile) -> list[tuple[int, Dataset, Dataset]]:
    """Number, shared groups and own groups of each frame."""
    shared = file.dataset.get("SharedFunctionalGroupsSequence") or []
    own = file.dataset.get("PerFrameFunctionalGroupsSequence") or []
    count = optional_number(file.dataset, "NumberOfFrames")
    if count < 1 or len(own) != count:
        raise InputError(
            f"{file.path}: NumberOfFrames is {count:g}, but PerFrameFunctionalGroupsSequence describes "
            f"{len(own)}; export the scan again"
        )
    if len(shared) > 1:
        raise InputError(
            f"{file.path}: SharedFunctionalGroupsSequence has {len(shared)} items, expected one; export it again"
        )
    return [(number, shared[0] if shared else Dataset(), item) for number, item in enumerate(own, start=1)]


def _as_single_frame(file: DicomFile, shared: Dataset, own: Dataset, number: int) -> Dataset:
    flat = Dataset()
    for keyword in _OF_THE_FILE:
        if keyword in file.dataset:
            try:
                flat.add(file.dataset[keyword])
            except DAMAGE as error:
                raise InputError(
                    f"{file.path}: {keyword} cannot be read ({one_line(error)}); copy or export it again"
                ) from error
    for keyword, (group, element) in _OF_A_FRAME.items():
        value = _element(file, shared, own, group, element, number)
        if value is not None:
            setattr(flat, keyword, value)
    return flat


def _element(file: DicomFile, shared: Dataset, own: Dataset, group: str, element: str, number: int) -> Any:
    """The value of an element in a functional group; None where there is none."""
    in_shared, in_own = (list(part.get(group) or []) for part in (shared, own))
    if in_shared and in_own:
        raise InputError(
            f"{file.path}: frame {number}: {group} stands both in the shared functional groups and in its own; "
            "export the scan again"
        )
    items = in_own or in_shared
    if len(items) > 1:
        raise InputError(f"{file.path}: frame {number}: {group} has {len(items)} items, expected one")
    try:
        return items[0].get(element) if items else None
    except DAMAGE as error:
        raise InputError(
            f"{file.path}: frame {number}: {element} in {group} cannot be read ({one_line(error)}); "
            "copy or export it again"
        ) from error
