"""DICOM RT structure sets: the writer, and beside it the reader from `rtstruct_read`.

Outlines run along the edges of voxels, one CLOSED_PLANAR contour for each loop, holes being loops of their
own. Whoever fills them by the even-odd rule gets the mask back to the voxel.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.config import RAISE
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, ImplicitVRLittleEndian, generate_uid
from pydicom.valuerep import validate_value

from metricunet import __version__
from metricunet.errors import InputError
from metricunet.files.atomic import written_whole
from metricunet.files.contours import outlines
from metricunet.files.dicom import CtSeries
from metricunet.files.rtstruct_read import RT_STRUCTURE_SET, RtStruct, RtStructure, read_rtstruct
from metricunet.volume import FloatArray, Volume

__all__ = ["RtStruct", "RtStructure", "Structure", "read_rtstruct", "write_rtstruct"]

#: The retired class that the standard still names for the reference from a structure set to its study.
DETACHED_STUDY = "1.2.840.10008.3.1.2.3.1"
#: Lengths that the value representations allow: LO, SH.
LONG_STRING, SHORT_STRING = 64, 16

_PATIENT_AND_STUDY = [
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge"),
    *("PatientSize", "PatientWeight", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID"),
    *("StudyDescription", "AccessionNumber", "ReferringPhysicianName"),
]
#: Elements that must be there, if only empty.
_MAY_BE_EMPTY = [
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName", "OperatorsName", "PositionReferenceIndicator"),
]


@dataclass(frozen=True, eq=False)
class Structure:
    """A region to be written: its name (at most 64 characters) and its mask, where nonzero is inside."""

    name: str
    mask: Volume
    colour: tuple[int, int, int] = (255, 0, 0)
    interpreted_type: str = "ORGAN"
    description: str = ""


def write_rtstruct(
    path: Path,
    series: CtSeries,
    structures: Sequence[Structure],
    *,
    description: str,
    label: str = "metricunet auto",
    made: datetime | None = None,
) -> None:
    """Write masks on a CT series' grid as a structure set, whole or not at all.

    Args:
        path: the file to write.
        series: the scan; patient, study and references are taken from its headers.
        structures: at least one, each with a name of its own and a mask that is not empty.
        description: goes into StructureSetDescription and ought to say how the set was made.
        label: StructureSetLabel, at most 16 characters.
        made: the structure set's date and time; now by default.

    Raises:
        InputError: no structure, an empty mask, a mask on another grid, a name that is empty, too long or
            taken, a colour or type that DICOM does not allow, or a file that cannot be written.
    """
    _check_structures(path, series, structures, label)
    moment = made or datetime.now()
    with warnings.catch_warnings():
        # Patient data are copied as they stand, odd as they may be, so that they match those of the scan.
        warnings.simplefilter("ignore")
        dataset = _header(series, moment)
        dataset.StructureSetLabel = label
        dataset.StructureSetName = "Machine-made, not reviewed"
        dataset.StructureSetDescription = description
        dataset.StructureSetDate, dataset.StructureSetTime = _date(moment), _time(moment)
        dataset.ReferencedFrameOfReferenceSequence = DicomSequence([_reference(series)])
        numbered = list(enumerate(structures, start=1))
        dataset.StructureSetROISequence = DicomSequence([_roi(n, s, series) for n, s in numbered])
        dataset.ROIContourSequence = DicomSequence([_roi_contour(n, s, series) for n, s in numbered])
        dataset.RTROIObservationsSequence = DicomSequence([_observation(n, s) for n, s in numbered])
        dataset.ApprovalStatus = "UNAPPROVED"
        _set_character_set(
            dataset, series.header, [description, label, *(s.name + s.description for s in structures)]
        )
        with written_whole(path) as temporary:
            dataset.save_as(temporary, enforce_file_format=True)


def _check_structures(path: Path, series: CtSeries, structures: Sequence[Structure], label: str) -> None:
    if not structures:
        raise InputError(f"{path}: no structure to write; a structure set needs at least one")
    if not 0 < len(label) <= SHORT_STRING:
        raise InputError(f"{path}: label '{label}' has {len(label)} characters, expected 1 to {SHORT_STRING}")
    taken: set[str] = set()
    for structure in structures:
        at = f"{path}: structure '{structure.name}'"
        name = structure.name.strip()
        if not 0 < len(name) <= LONG_STRING or "\\" in name or not name.isprintable():
            raise InputError(f"{at}: a name has 1 to {LONG_STRING} printable characters and no backslash")
        if name.casefold() in taken:
            raise InputError(f"{at}: the name is given twice; planning systems refuse such a set, rename one")
        taken.add(name.casefold())
        if not re.fullmatch(r"[A-Z][A-Z0-9_ ]{,15}", structure.interpreted_type):
            raise InputError(
                f"{at}: interpreted type '{structure.interpreted_type}', expected ORGAN, CTV or the like"
            )
        if not all(0 <= value <= 255 for value in structure.colour):
            raise InputError(f"{at}: colour {structure.colour}, expected three values from 0 to 255")
        if not structure.mask.geometry.same_grid(series.geometry):
            raise InputError(f"{at}: its mask is not on the grid of series {series.series_uid}; resample it first")
        if not structure.mask.array.any():
            raise InputError(f"{at}: its mask is empty; leave the structure out")


def _header(series: CtSeries, moment: datetime) -> Dataset:
    """Everything about patient, study, series and equipment."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(RT_STRUCTURE_SET)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    # Explicit VR has 16 bits for the length of ContourData, about 2,000 points; implicit VR has 32.
    meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset = Dataset()
    dataset.file_meta = meta
    for keyword in _PATIENT_AND_STUDY:
        if keyword in series.header and _is_valid(series.header[keyword]):
            dataset.add(series.header[keyword])
    for keyword in _MAY_BE_EMPTY:
        if keyword not in dataset:
            setattr(dataset, keyword, "")
    dataset.SOPClassUID = RT_STRUCTURE_SET
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = _date(moment), _time(moment)
    dataset.Modality = "RTSTRUCT"
    dataset.SeriesInstanceUID = generate_uid()
    dataset.SeriesNumber = 1
    dataset.SeriesDescription = "Machine-made contours"
    dataset.InstanceNumber = 1
    dataset.FrameOfReferenceUID = series.frame_of_reference_uid
    dataset.Manufacturer = "metricunet"
    dataset.ManufacturerModelName = "metricunet"
    dataset.SoftwareVersions = __version__
    return dataset


def _is_valid(element: DataElement) -> bool:
    """Tell whether a value may stand in a structure set: dates, ages and codes that are none may not.

    Names and identifiers are kept whatever they are, since they must match those of the scan.
    """
    if element.keyword == "PatientSex":
        return element.value in ("M", "F", "O")
    if element.VR not in ("AS", "DA", "DS", "TM"):
        return True
    try:
        validate_value(element.VR, str(element.value or ""), RAISE)
    except ValueError:
        return False
    return True


def _date(moment: datetime) -> str:
    return moment.strftime("%Y%m%d")


def _time(moment: datetime) -> str:
    return moment.strftime("%H%M%S")


def _set_character_set(dataset: Dataset, header: Dataset, texts: Sequence[str]) -> None:
    """Keep the scan's own encoding, so that names match to the byte; take UTF-8 where new text needs it."""
    if all(text.isascii() for text in texts):
        if header.get("SpecificCharacterSet"):
            dataset.SpecificCharacterSet = header.SpecificCharacterSet
    else:
        dataset.SpecificCharacterSet = "ISO_IR 192"


def _image(series: CtSeries, k: int) -> Dataset:
    image = Dataset()
    image.ReferencedSOPClassUID = series.header.SOPClassUID
    image.ReferencedSOPInstanceUID = series.sop_uids[k]
    return image


def _reference(series: CtSeries) -> Dataset:
    images = Dataset()
    images.SeriesInstanceUID = series.series_uid
    images.ContourImageSequence = DicomSequence([_image(series, k) for k in range(len(series.sop_uids))])
    study = Dataset()
    study.ReferencedSOPClassUID = DETACHED_STUDY
    study.ReferencedSOPInstanceUID = series.study_uid
    study.RTReferencedSeriesSequence = DicomSequence([images])
    frame = Dataset()
    frame.FrameOfReferenceUID = series.frame_of_reference_uid
    frame.RTReferencedStudySequence = DicomSequence([study])
    return frame


def _roi(number: int, structure: Structure, series: CtSeries) -> Dataset:
    roi = Dataset()
    roi.ROINumber = number
    roi.ReferencedFrameOfReferenceUID = series.frame_of_reference_uid
    roi.ROIName = structure.name.strip()
    if structure.description:
        roi.ROIDescription = structure.description
    roi.ROIGenerationAlgorithm = "AUTOMATIC"
    roi.ROIGenerationDescription = f"metricunet {__version__}"
    return roi


def _roi_contour(number: int, structure: Structure, series: CtSeries) -> Dataset:
    item = Dataset()
    item.ROIDisplayColor = list(structure.colour)
    mask = structure.mask.array != 0
    item.ContourSequence = DicomSequence(
        [
            _contour(points, series, k)
            for k in np.flatnonzero(mask.any(axis=(1, 2))).tolist()
            for points in _outlines_mm(mask[k], series, k)
        ]
    )
    item.ReferencedROINumber = number
    return item


def _outlines_mm(mask: NDArray[np.bool_], series: CtSeries, k: int) -> Iterator[FloatArray]:
    """Outlines of one slice [points, 3] in LPS, in the very plane that its file states."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    corner = np.array([rows[0], columns[0]])
    for loop in outlines(box):
        yield series.positions_mm[k] + (loop + corner) @ series.geometry.affine[:3, 1:3].T


def _contour(points: FloatArray, series: CtSeries, k: int) -> Dataset:
    contour = Dataset()
    contour.ContourImageSequence = DicomSequence([_image(series, k)])
    contour.ContourGeometricType = "CLOSED_PLANAR"
    contour.NumberOfContourPoints = len(points)
    contour.ContourData = [_decimal(value) for value in points.ravel().tolist()]
    return contour


def _decimal(value: float) -> str:
    """A number string of at most 16 characters, to the nanometre."""
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _observation(number: int, structure: Structure) -> Dataset:
    observation = Dataset()
    observation.ObservationNumber = number
    observation.ReferencedROINumber = number
    observation.RTROIInterpretedType = structure.interpreted_type
    observation.ROIInterpreter = ""
    return observation
