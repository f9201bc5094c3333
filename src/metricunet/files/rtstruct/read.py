"""DICOM RT structure sets in, from any program. Outlines are filled by the even-odd rule at voxel centres."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian

from metricunet.errors import InputError
from metricunet.files.dicom.file import read_dataset
from metricunet.files.dicom.header import DAMAGE, one_line, text_of
from metricunet.files.dicom.series import CtSeries
from metricunet.files.rtstruct.model import RtStruct
from metricunet.files.rtstruct.move import moved
from metricunet.files.rtstruct.references import check_frames, image_notes, stated_references, with_frames
from metricunet.files.rtstruct.registration import read_registration
from metricunet.files.rtstruct.rois import structures_of

RT_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
#: Bytes of a tag and a length.
SHORTEST_ELEMENT = 8


def read_rtstruct(path: Path, series: CtSeries | None = None, *, registration: Path | None = None) -> RtStruct:
    """Read a structure set of any program.

    Args:
        path: the file.
        series: the scan that it is to be used on, if it is known already: it must lie in the same frame of
            reference, or `registration` must join the two.
        registration: a DICOM Spatial Registration (REG) that leads from the structure set's frame of reference
            to the scan's; contours are moved by it. It may shift and turn within the slices' plane alone.

    What is wrong with one structure is its own `fault` and a warning, and costs the others nothing.

    Raises:
        InputError: not a DICOM structure set, damaged as a whole, or in another frame of reference than `series`
            with all that is drawn.
    """
    if registration is not None and series is None:
        raise InputError(f"{registration}: a registration needs the series to move contours to; give both")
    dataset = open_structure_set(path)
    notes: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            structures = structures_of(path, dataset, notes)
            frame, series_uid = stated_references(dataset, structures)
            structures = with_frames(path, dataset, structures, frame)
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
        structures = check_frames(path, structures, frame, series, notes)
        if frame is None:
            notes.append(f"{path}: states no frame of reference; it is taken to be that of the scan")
        if series_uid not in (None, series.series_uid):
            notes.append(f"{path}: was drawn on series {series_uid}, not on {series.series_uid}")
        elif registration is None:
            notes += [note for structure in structures for note in image_notes(path, structure, series)]
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
