"""DICOM RT structure sets out.

Each closed line is one CLOSED_PLANAR contour on one slice. By default holes are lines of their own that run the
other way round, so that both the even-odd rule and the winding number give the area.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, ImplicitVRLittleEndian

from metricunet import __version__
from metricunet.errors import InputError
from metricunet.files.atomic import written_whole
from metricunet.files.dicom.identity import RANDOM, Identity
from metricunet.files.dicom.patient import patient_and_study
from metricunet.files.dicom.series import CtSeries
from metricunet.files.rtstruct.character_set import set_character_set
from metricunet.files.rtstruct.dicom_items import (
    LONG_STRING,
    SHORT_STRING,
    check_structures,
    contour_item,
    dicom_date,
    dicom_time,
    observation_item,
    reference_item,
    roi_item,
)
from metricunet.files.rtstruct.outlines import Holes, Outline, Structure, Style, WrittenStructure, drawn, written
from metricunet.files.rtstruct.read import RT_STRUCTURE_SET


def write_rtstruct(
    path: Path,
    series: CtSeries,
    structures: Sequence[Structure],
    *,
    description: str,
    label: str = "metricunet auto",
    set_name: str = "Machine-made, not reviewed",
    identity: Identity = RANDOM,
    outline: Outline = "surface",
    holes: Holes = "keep",
    smoothing_mm: float = 0.0,
) -> tuple[WrittenStructure, ...]:
    """Write structures on a CT series' grid as a structure set, whole or not at all.

    Args:
        path: the file to write.
        series: the scan; patient, study and references are taken from its headers.
        structures: at least one, each with a name of its own and a mask that is not empty.
        description: goes into StructureSetDescription, and into the description of each structure (which may
            be copied elsewhere without its set). It ought to say how the structures were made.
        label: StructureSetLabel, at most 16 characters.
        set_name: StructureSetName, at most 64 characters.
        identity: where the structure set's UIDs come from, and its date and time; random and now by default.
        outline: "surface" draws where a structure's probability is one half, between voxels' centres, and
            along voxels' edges where it has no probability; "voxel" draws along edges always. Either way the
            contours, filled by the even-odd rule at voxels' centres, give the mask back to the voxel.
        holes: "keep" writes them as contours of their own, for readers that fill by the even-odd rule, as
            most planning systems do, and loses nothing; "keyhole" joins each to the outline around it by a line
            run there and back, for readers that add contours up; "close" fills them.
        smoothing_mm: the furthest that smoothing may move an outline, at most 0.5; 0 for none. What is smoothed
            does not give the mask back to the voxel; the change of volume is returned and written.

    Returns:
        For each structure what was written.

    Raises:
        InputError: no structure, an empty mask, a mask or probability on another grid, a name that is empty,
            too long or taken, a colour or type that DICOM does not allow, or a file that cannot be written.
    """
    style = Style(outline, holes, smoothing_mm)
    check_structures(path, series, structures, description)
    if not 0 < len(label) <= SHORT_STRING:
        raise InputError(f"{path}: label '{label}' has {len(label)} characters, expected 1 to {SHORT_STRING}")
    if len(set_name) > LONG_STRING:
        raise InputError(f"{path}: set_name has {len(set_name)} characters, at most {LONG_STRING} are accepted")
    moment = identity.moment()
    with warnings.catch_warnings():
        # Patient data are copied as they stand, odd as they may be, so that they match those of the scan.
        warnings.simplefilter("ignore")
        dataset = _header(series, identity)
        if not all(structure.automatic for structure in structures):
            dataset.SeriesDescription = "Converted contours"
        dataset.StructureSetLabel = label
        dataset.StructureSetName = set_name
        dataset.StructureSetDescription = description
        dataset.StructureSetDate, dataset.StructureSetTime = dicom_date(moment), dicom_time(moment)
        dataset.ReferencedFrameOfReferenceSequence = DicomSequence([reference_item(series)])
        drawings = [drawn(structure, series, style) for structure in structures]
        numbered = list(zip(itertools.count(1), structures, drawings, strict=False))
        dataset.StructureSetROISequence = DicomSequence(
            [roi_item(n, s, d, series, description) for n, s, d in numbered]
        )
        dataset.ROIContourSequence = DicomSequence([contour_item(n, s, d, series) for n, s, d in numbered])
        dataset.RTROIObservationsSequence = DicomSequence([observation_item(n, n, s) for n, s, _ in numbered])
        dataset.ApprovalStatus = "UNAPPROVED"
        set_character_set(
            dataset, series.header, [description, label, set_name, *(structure.text for structure in structures)]
        )
        with written_whole(path) as temporary:
            dataset.save_as(temporary, enforce_file_format=True)
    return tuple(written(s, n, d) for n, s, d in numbered)


def _header(series: CtSeries, identity: Identity) -> Dataset:
    """Everything about patient, study, series and equipment."""
    moment = identity.moment()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(RT_STRUCTURE_SET)
    meta.MediaStorageSOPInstanceUID = identity.uid("structure set")
    # Explicit VR has 16 bits for the length of ContourData, about 2,000 points; implicit VR has 32.
    meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset = patient_and_study(series.header)
    dataset.file_meta = meta
    dataset.OperatorsName = dataset.PositionReferenceIndicator = ""
    dataset.SOPClassUID = RT_STRUCTURE_SET
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = dicom_date(moment), dicom_time(moment)
    dataset.Modality = "RTSTRUCT"
    dataset.SeriesInstanceUID = identity.uid("structure set", "series")
    dataset.SeriesNumber = 1
    dataset.SeriesDescription = "Machine-made contours"
    dataset.InstanceNumber = 1
    dataset.FrameOfReferenceUID = series.frame_of_reference_uid
    dataset.Manufacturer = "metricunet"
    dataset.ManufacturerModelName = "metricunet"
    dataset.SoftwareVersions = __version__
    return dataset
