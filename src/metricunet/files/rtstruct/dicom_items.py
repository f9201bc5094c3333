"""The parts of a structure set that stand for one structure, and the checks on what is to become one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence

from metricunet import __version__
from metricunet.errors import InputError
from metricunet.files.dicom.codes import code_of
from metricunet.files.dicom.series import CtSeries
from metricunet.files.rtstruct.outlines import Drawing, Structure, check_probability
from metricunet.volume import FloatArray

#: The retired class that the standard still names for the reference from a structure set to its study.
DETACHED_STUDY = "1.2.840.10008.3.1.2.3.1"
#: Lengths that the value representations allow: ST, LO, SH.
SHORT_TEXT, LONG_STRING, SHORT_STRING = 1024, 64, 16
#: Left in ROIDescription for remarks on the drawing.
ROOM_FOR_REMARKS = 124


def check_structures(path: Path, series: CtSeries, structures: Sequence[Structure], description: str) -> None:
    """Refuse what cannot become a structure of a valid set.

    Raises:
        InputError: no structure, an empty mask, a mask or probability on another grid, a name that is empty,
            too long or taken, a colour or type that DICOM does not allow, too long a description; slices that
            are tilted, or none within a mask.
    """
    series.check_planes()
    if not structures:
        raise InputError(f"{path}: no structure to write; a structure set needs at least one")
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
        length = len(f"{structure.description} {description}".encode())
        if length > SHORT_TEXT - ROOM_FOR_REMARKS:
            raise InputError(
                f"{at}: its description and the set's take {length} bytes, at most "
                f"{SHORT_TEXT - ROOM_FOR_REMARKS} are accepted; shorten them"
            )
        if not structure.lies_on(series.geometry):
            raise InputError(f"{at}: its mask is not on the grid of series {series.series_uid}; resample it first")
        if not structure.mask.array.any():
            raise InputError(f"{at}: its mask is empty; leave the structure out")
        if series.resampling is not None and not series.on_slices(structure.inside(series.geometry)).any():
            raise InputError(f"{at}: its mask lies between two slices, where others are missing; leave it out")
        check_probability(structure, series, at)


def image_item(series: CtSeries, k: int) -> Dataset:
    """A reference to slice k."""
    image = Dataset()
    image.ReferencedSOPClassUID = series.header.SOPClassUID
    image.ReferencedSOPInstanceUID = series.sop_uids[k]
    if series.frames[k] is not None:
        image.ReferencedFrameNumber = series.frames[k]
    return image


def file_items(series: CtSeries) -> list[Dataset]:
    """A reference to each file of a series, as a whole."""
    items = []
    for uid in dict.fromkeys(series.sop_uids):
        image = Dataset()
        image.ReferencedSOPClassUID = series.header.SOPClassUID
        image.ReferencedSOPInstanceUID = uid
        items.append(image)
    return items


def reference_item(series: CtSeries) -> Dataset:
    """An item of ReferencedFrameOfReferenceSequence: the frame, the study, the series and its slices."""
    images = Dataset()
    images.SeriesInstanceUID = series.series_uid
    images.ContourImageSequence = DicomSequence(file_items(series))
    study = Dataset()
    study.ReferencedSOPClassUID = DETACHED_STUDY
    study.ReferencedSOPInstanceUID = series.study_uid
    study.RTReferencedSeriesSequence = DicomSequence([images])
    frame = Dataset()
    frame.FrameOfReferenceUID = series.frame_of_reference_uid
    frame.RTReferencedStudySequence = DicomSequence([study])
    return frame


def roi_item(number: int, structure: Structure, drawing: Drawing, series: CtSeries, description: str) -> Dataset:
    """An item of StructureSetROISequence. `description` says how the structure was made."""
    roi = Dataset()
    roi.ROINumber = number
    roi.ReferencedFrameOfReferenceUID = series.frame_of_reference_uid
    roi.ROIName = structure.name.strip()
    words = (structure.description.strip(), description.strip(), drawing.remarks)
    roi.ROIDescription = " ".join(word for word in words if word)
    roi.ROIGenerationAlgorithm = structure.generation
    how = "sub-voxel outline" if drawing.outline == "surface" else "outline along voxel edges"
    roi.ROIGenerationDescription = f"metricunet {__version__}, {how}"[:LONG_STRING]
    return roi


def contour_item(number: int, structure: Structure, drawing: Drawing, series: CtSeries) -> Dataset:
    """An item of ROIContourSequence."""
    item = Dataset()
    item.ROIDisplayColor = list(structure.colour)
    item.ContourSequence = DicomSequence([_contour(points, series, k) for k, points in drawing.contours])
    item.ReferencedROINumber = number
    return item


def observation_item(number: int, roi_number: int, structure: Structure) -> Dataset:
    """An item of RTROIObservationsSequence."""
    observation = Dataset()
    observation.ObservationNumber = number
    observation.ReferencedROINumber = roi_number
    observation.RTROIInterpretedType = structure.interpreted_type
    observation.ROIInterpreter = ""
    code = structure.code or code_of(structure.name)
    if code is not None:
        observation.RTROIIdentificationCodeSequence = DicomSequence([code.item()])
    return observation


def dicom_date(moment: datetime) -> str:
    """The day as DICOM writes it (DA)."""
    return moment.strftime("%Y%m%d")


def dicom_time(moment: datetime) -> str:
    """The time of day as DICOM writes it (TM)."""
    return moment.strftime("%H%M%S")


def _contour(points: FloatArray, series: CtSeries, k: int) -> Dataset:
    contour = Dataset()
    contour.ContourImageSequence = DicomSequence([image_item(series, k)])
    contour.ContourGeometricType = "CLOSED_PLANAR"
    contour.NumberOfContourPoints = len(points)
    contour.ContourData = [_decimal(value) for value in points.ravel().tolist()]
    return contour


def _decimal(value: float) -> str:
    """A number string of at most 16 characters, to the nanometre."""
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
