"""DICOM RT structure sets in, from any program. Outlines are filled by the even-odd rule at voxel centres."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian

from metricunet.errors import InputError
from metricunet.files.dicom.file import read_dataset
from metricunet.files.dicom.header import DAMAGE, one_line, text_of
from metricunet.files.dicom.series import CtSeries
from metricunet.files.rtstruct.model import RtStruct, RtStructure
from metricunet.files.rtstruct.move import moved
from metricunet.files.rtstruct.registration import read_registration
from metricunet.volume import FloatArray

RT_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
CLOSED_TYPES = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
#: Bytes of a tag and a length.
SHORTEST_ELEMENT = 8
#: Coordinates beyond this are no place in a patient.
FARTHEST_MM = 1e6
#: A contour may lie this far from the plane of the image that it names.
NAMED_IMAGE_MM = 0.1


def read_rtstruct(path: Path, series: CtSeries | None = None, *, registration: Path | None = None) -> RtStruct:
    """Read a structure set of any program.

    Args:
        path: the file.
        series: the scan that it is to be used on, if it is known already: it must lie in the same frame of
            reference, or `registration` must join the two.
        registration: a DICOM Spatial Registration (REG) that leads from the structure set's frame of reference
            to the scan's; contours are moved by it. It may shift and turn within the slices' plane alone.

    Raises:
        InputError: not a DICOM structure set, damaged, or in another frame of reference than `series`.
    """
    if registration is not None and series is None:
        raise InputError(f"{registration}: a registration needs the series to move contours to; give both")
    dataset = open_structure_set(path)
    notes: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            structures = tuple(_structures(path, dataset, notes))
            frame, series_uid = stated_references(dataset, structures)
            if not dataset.get("ReferencedFrameOfReferenceSequence"):
                instead = f"its ROIs state {frame}" if frame else "nothing else states one"
                notes.append(f"{path}: ReferencedFrameOfReferenceSequence is missing; {instead}")
    except DAMAGE as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: the structure set is damaged ({one_line(error)}); export it again") from error
    if series is not None:
        if registration is not None:
            structures, frame = moved(path, structures, frame, series, read_registration(registration), notes)
        check_frames(path, structures, frame, series)
        if frame is None:
            notes.append(f"{path}: states no frame of reference; it is taken to be that of the scan")
        if series_uid not in (None, series.series_uid):
            notes.append(f"{path}: was drawn on series {series_uid}, not on {series.series_uid}")
        elif registration is None:
            notes += [note for structure in structures for note in _image_notes(path, structure, series)]
    return RtStruct(path, structures, frame, series_uid, tuple(notes))


def open_structure_set(path: Path) -> Dataset:
    """Open a DICOM file and make sure that it is a structure set.

    Raises:
        InputError: no such file, not DICOM, not readable, cut off, incomplete, or of another modality.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = read_dataset(path)
            if _ends_early(path, dataset):
                raise EOFError("it ends before its end: truncated")
            modality, sop_class = text_of(dataset, "Modality"), text_of(dataset, "SOPClassUID")
    except InvalidDicomError as error:
        raise InputError(f"{path}: is not a DICOM file, expected an RTSTRUCT") from error
    except DAMAGE as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}); copy or export it again") from error
    if modality != "RTSTRUCT" and sop_class != RT_STRUCTURE_SET:
        raise InputError(f"{path}: is of modality {modality or 'unknown'}, expected RTSTRUCT")
    for keyword in ("StructureSetROISequence", "ROIContourSequence"):
        if keyword not in dataset:
            raise InputError(f"{path}: {keyword} is missing, so the file is incomplete; export it again")
    return dataset


def _ends_early(path: Path, dataset: Dataset) -> bool:
    """Tell whether a file is cut off within its last element or in front of another.

    pydicom takes what there is of a sequence of stated length, and regions would silently lack contours. To be
    asked before any element is looked at.
    """
    if dataset.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        return False  # one compressed stream: it cannot be read at all when cut off
    last: Any = max((dataset.get_item(tag) for tag in dataset.keys()), key=lambda e: int(e.tag), default=None)  # noqa: SIM118
    if not isinstance(last, RawDataElement):
        return last is None  # pydicom has found the end of a sequence of undefined length
    left = path.stat().st_size - last.value_tell - last.length
    return left < 0 or 0 < left < SHORTEST_ELEMENT


def structures_of(path: Path, dataset: Dataset) -> tuple[RtStructure, ...]:
    """Return the structures of an open set, without a word on what is odd about them."""
    return tuple(_structures(path, dataset, []))


def _structures(path: Path, dataset: Dataset, notes: list[str]) -> Iterator[RtStructure]:
    contours: dict[int, Dataset] = {}
    for item in dataset.get("ROIContourSequence") or []:
        contours[int(item.ReferencedROINumber)] = item
    types = {
        int(item.ReferencedROINumber): text_of(item, "RTROIInterpretedType")
        for item in dataset.get("RTROIObservationsSequence") or []
    }
    rois = list(dataset.get("StructureSetROISequence") or [])
    names = [text_of(roi, "ROIName") for roi in rois]
    for name, count in Counter(names).items():
        if count > 1:
            notes.append(f"{path}: {count} ROIs are named '{name}'")
    for roi, name in zip(rois, names, strict=True):
        number = int(roi.ROINumber)
        item = contours.pop(number, Dataset())
        loops, images, frames, others = _closed_contours(path, name, item)
        for kind, count in others.items():
            notes.append(f"{path}: ROI '{name}': contours that enclose nothing ({kind}) are passed over: {count}")
        if not loops:
            notes.append(f"{path}: ROI '{name}' has no contours")
        colour = [int(value) for value in item.get("ROIDisplayColor") or []]
        yield RtStructure(
            number=number,
            name=name,
            contours=tuple(loops),
            image_uids=tuple(images),
            image_frames=tuple(frames),
            passed_over=tuple(others.items()),
            colour=(colour[0], colour[1], colour[2]) if len(colour) == 3 else None,
            interpreted_type=types.get(number) or None,
            frame_of_reference_uid=text_of(roi, "ReferencedFrameOfReferenceUID") or None,
        )
    for number in contours:
        notes.append(f"{path}: holds contours of ROI number {number}, which it does not name")


def _closed_contours(
    path: Path, name: str, item: Dataset
) -> tuple[list[FloatArray], list[str | None], list[int | None], Counter[str]]:
    loops: list[FloatArray] = []
    images: list[str | None] = []
    frames: list[int | None] = []
    others: Counter[str] = Counter()
    for contour in item.get("ContourSequence") or []:
        kind = text_of(contour, "ContourGeometricType") or "no type"
        if kind not in CLOSED_TYPES:
            others[kind] += 1
            continue
        points = _points(path, name, contour)
        if len(points) > 1 and np.array_equal(points[0], points[-1]):
            points = points[:-1]
        if len(points) < 3:
            others["fewer than three points"] += 1
            continue
        loops.append(points)
        references = contour.get("ContourImageSequence") or []
        uid = text_of(references[0], "ReferencedSOPInstanceUID") if len(references) == 1 else ""
        images.append(uid or None)
        frame = references[0].get("ReferencedFrameNumber") if uid else None
        frames.append(int(frame) if isinstance(frame, int) else None)
    return loops, images, frames, others


def _points(path: Path, name: str, contour: Dataset) -> FloatArray:
    # The text is read at once: pydicom would make an object of every number.
    element: Any = contour.get_item("ContourData")
    value = element.value if element is not None else b""
    try:
        text = value.decode("ascii").strip(" \0").split("\\") if isinstance(value, bytes) else value
        numbers = np.array(text if value else [], dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: ROI '{name}': ContourData is not numbers; export it again") from error
    if numbers.size % 3 or not (np.abs(numbers) <= FARTHEST_MM).all():
        raise InputError(
            f"{path}: ROI '{name}': ContourData holds {numbers.size} numbers, expected finite lengths, three for "
            "each point; export it again"
        )
    return numbers.reshape(-1, 3)


def stated_references(dataset: Dataset, structures: Sequence[RtStructure]) -> tuple[str | None, str | None]:
    """Return the frame of reference and the series that a set refers to, as far as it says so."""
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []:
        uid = text_of(frame, "FrameOfReferenceUID") or None
        for study in frame.get("RTReferencedStudySequence") or []:
            for images in study.get("RTReferencedSeriesSequence") or []:
                return uid, text_of(images, "SeriesInstanceUID") or None
        return uid, None
    frames = {s.frame_of_reference_uid for s in structures if s.frame_of_reference_uid is not None}
    return frames.pop() if len(frames) == 1 else text_of(dataset, "FrameOfReferenceUID") or None, None


def check_frames(path: Path, structures: Sequence[RtStructure], frame: str | None, series: CtSeries) -> None:
    """Refuse what lies in another frame of reference than a scan.

    Raises:
        InputError: naming both frames.
    """
    wanted = series.frame_of_reference_uid
    stated = [("", frame)] + [(f"ROI '{s.name}': ", s.frame_of_reference_uid) for s in structures]
    for where, uid in stated:
        if uid is not None and uid != wanted:
            raise InputError(
                f"{path}: {where}frame of reference is {uid}, but {wanted} in series {series.series_uid}; "
                "choose the set that was drawn on this scan, or give the registration (REG) that joins the two"
            )


def _image_notes(path: Path, structure: RtStructure, series: CtSeries) -> Iterator[str]:
    """Compare the images that contours name with those of the scan."""
    place = {image: k for k, image in enumerate(zip(series.sop_uids, series.frames, strict=True))}
    # Files of one frame are their frame 1; a file of many that is named as a whole tells nothing of the plane.
    place |= {(uid, 1): k for (uid, frame), k in place.items() if frame is None}
    unknown = [uid for uid in structure.image_uids if uid is not None and uid not in set(series.sop_uids)]
    if unknown:
        yield (
            f"{path}: ROI '{structure.name}': {len(unknown)} of its contours name images that series "
            f"{series.series_uid} lacks, the first {unknown[0]}"
        )
    normal: FloatArray = np.cross(series.geometry.directions[:, 1], series.geometry.directions[:, 2])
    off = [
        abs(float((points.mean(axis=0) - series.positions_mm[place[uid, frame]]) @ normal))
        for points, uid, frame in zip(
            structure.contours, structure.image_uids, structure.image_frames, strict=False
        )
        if uid is not None and (uid, frame) in place
    ]
    if off and max(off) > NAMED_IMAGE_MM:
        count = sum(value > NAMED_IMAGE_MM for value in off)
        yield (
            f"{path}: ROI '{structure.name}': {count} of its contours lie up to {max(off):.2f} mm from the plane "
            "of the image that they name; their coordinates count"
        )
