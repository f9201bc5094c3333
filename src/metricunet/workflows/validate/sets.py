"""Structure sets of others, registrations and segmentations through their doors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from metricunet.files.dicom.patient import patient_and_study
from metricunet.files.rtstruct.add import add_to_rtstruct
from metricunet.files.rtstruct.read import read_rtstruct
from metricunet.files.rtstruct.registration import SPATIAL_REGISTRATION
from metricunet.files.seg.read import read_seg
from metricunet.files.seg.write import write_seg
from metricunet.volume import FloatArray
from metricunet.workflows.ct_writer import write_ct_series
from metricunet.workflows.validate.checks import Check, Finding
from metricunet.workflows.validate.contours import (
    BETWEEN,
    DESCRIPTION,
    VOXELS,
    WRITTEN_TOLERANCE_MM,
    contours_of,
    masks_back,
)
from metricunet.workflows.validate.subjects import Site, the_series

ADDED, SEGMENTATION, REGISTRATION = "added.rtstruct.dcm", "masks.seg.dcm", "registration.reg.dcm"
#: Whole slices, rows and columns by which the second scan is shifted, and degrees by which it is turned.
SHIFT_VOXELS, TURN_DEGREES = (-1, -3, 4), 17.0


def adding(sites: Sequence[Site]) -> Iterator[Check]:
    """A structure more in a set that is there: the others stay, the new one comes back."""
    group = "RTSTRUCT, adding"
    changed, masks = [], []
    for site in sites:
        before, after = site.folder / BETWEEN, site.folder / ADDED
        new = site.structure(site.plan.target, "ellipsoid again")
        add_to_rtstruct(before, after, site.series, [new], description=DESCRIPTION)
        changed.append(Finding(site.plan.name, float(_changed(before, after))))
        back = masks_back(after, site)[new.name]
        masks.append(Finding(site.plan.name, float(np.count_nonzero(back != new.mask.array))))
    yield Check(group, "Structures that were there", "changed", "", 0, tuple(changed))
    yield Check(group, "Mask of the new one, out and in", VOXELS, "", 0, tuple(masks))


def registered(sites: Sequence[Site]) -> Iterator[Check]:
    """Structure sets moved to a scan of another frame of reference by a registration."""
    group = "RTSTRUCT, registered"
    off, masks = [], []
    for site in sites:
        grid = site.plan.grid
        folder = site.folder / "second-ct"
        write_ct_series(
            folder,
            site.plan.hu,
            grid,
            storage=site.plan.storage,
            patient=f"VALIDATE-{site.plan.name}",
            description="second frame of reference",
        )
        other = the_series(folder)
        path, structures = site.folder / REGISTRATION, site.folder / BETWEEN
        shift = grid.place_mm(*SHIFT_VOXELS) - grid.place_mm(0, 0, 0)
        turned = _turn(TURN_DEGREES, site.plan.middle_mm, shift)
        _write_registration(path, site, other.frame_of_reference_uid, turned)
        read = read_rtstruct(structures, other, registration=path)
        meant = contours_of(structures)
        apart = [
            np.linalg.norm(found - (points @ turned[:3, :3].T + turned[:3, 3]), axis=1).max()
            for structure in read.structures
            for found, (_, points) in zip(structure.contours, meant[structure.name], strict=True)
        ]
        off.append(Finding(site.plan.name, float(max(apart))))
        _write_registration(path, site, other.frame_of_reference_uid, _turn(0, site.plan.middle_mm, shift))
        read = read_rtstruct(structures, other, registration=path)
        for structure in site.structures:
            back = read.mask(structure.name, other.geometry).array != 0
            differ = np.count_nonzero(back != np.roll(structure.mask.array, SHIFT_VOXELS, axis=(0, 1, 2)))
            masks.append(Finding(site.at(structure.name), float(differ)))
    yield Check(
        group,
        "Turned and shifted, against the matrix",
        "points off their place",
        "mm",
        WRITTEN_TOLERANCE_MM,
        tuple(off),
    )
    yield Check(group, "Shifted by whole voxels: mask", VOXELS, "", 0, tuple(masks))


def segmentations(sites: Sequence[Site]) -> Iterator[Check]:
    """Masks out and in as DICOM SEG, and as pydicom alone finds them."""
    group = "DICOM SEG out and in"
    masks, places = [], []
    for site in sites:
        path = site.folder / SEGMENTATION
        write_seg(path, site.series, site.structures, description=DESCRIPTION)
        back = read_seg(path, site.series)
        for structure in site.structures:
            differ = np.count_nonzero((back[structure.name].array != 0) != structure.mask.array)
            masks.append(Finding(site.at(structure.name), float(differ)))
        places += _frames(path, site)
    yield Check(group, "Mask out and in", VOXELS, "", 0, tuple(masks))
    yield Check(group, "Frames at their positions, by pydicom", VOXELS, "", 0, tuple(places))


def _changed(before: Path, after: Path) -> int:
    """Count the structures whose items are not the same, element by element, in the second file."""
    count = 0
    old, new = pydicom.dcmread(before), pydicom.dcmread(after)
    for sequence in ("StructureSetROISequence", "ROIContourSequence", "RTROIObservationsSequence"):
        there, then = getattr(old, sequence), getattr(new, sequence)
        count += sum(n >= len(then) or item != then[n] for n, item in enumerate(there))
    return count


def _turn(degrees: float, about_mm: FloatArray, shift_mm: FloatArray) -> FloatArray:
    """The 4 x 4 matrix of a turn about a line along z, then a shift."""
    angle = np.radians(degrees)
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:3, 3] = about_mm + shift_mm - matrix[:3, :3] @ about_mm
    return matrix


def _write_registration(path: Path, site: Site, target_uid: str, matrix: FloatArray) -> None:
    """Write a Spatial Registration from the site's frame of reference to another."""
    dataset = patient_and_study(site.series.header)
    dataset.SOPClassUID, dataset.SOPInstanceUID = UID(SPATIAL_REGISTRATION), generate_uid()
    dataset.Modality, dataset.SeriesInstanceUID, dataset.SeriesNumber = "REG", generate_uid(), 1
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = target_uid, ""
    dataset.Manufacturer, dataset.InstanceNumber = "metricunet", 1
    dataset.ContentDate, dataset.ContentTime = site.series.header.StudyDate, site.series.header.StudyTime
    dataset.ContentLabel, dataset.ContentDescription = "VALIDATE", "A known turn and shift"
    dataset.ContentCreatorName = dataset.Laterality = ""
    items = []
    for uid, values in ((target_uid, np.eye(4)), (site.series.frame_of_reference_uid, matrix)):
        part, step, item = Dataset(), Dataset(), Dataset()
        part.FrameOfReferenceTransformationMatrixType = "RIGID"
        part.FrameOfReferenceTransformationMatrix = [f"{v:.10g}" for v in values.ravel()]
        step.MatrixSequence = [part]
        item.FrameOfReferenceUID, item.MatrixRegistrationSequence = uid, [step]
        step.RegistrationTypeCodeSequence = []
        step.FrameOfReferenceTransformationComment = ""
        items.append(item)
    dataset.RegistrationSequence = items
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)


def _frames(path: Path, site: Site) -> list[Finding]:
    """Place each frame by its own position and orientation, and compare with the masks."""
    dataset = pydicom.dcmread(path)
    labels = {int(s.SegmentNumber): str(s.SegmentLabel) for s in dataset.SegmentSequence}
    shared = dataset.SharedFunctionalGroupsSequence[0]
    orientation = [float(v) for v in shared.PlaneOrientationSequence[0].ImageOrientationPatient]
    spacing = [float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing]
    grid = site.plan.grid
    alike = np.allclose(orientation, grid.orientation) and np.allclose(spacing, grid.pixel_spacing_mm)
    z = grid.axes_mm()[0]
    found = {name: np.zeros(grid.shape, dtype=bool) for name in labels.values()}
    for frame, item in zip(
        np.atleast_3d(dataset.pixel_array), dataset.PerFrameFunctionalGroupsSequence, strict=True
    ):
        position = np.array([float(v) for v in item.PlanePositionSequence[0].ImagePositionPatient])
        k = int(np.argmin(np.abs(z - position[2])))
        alike = alike and bool(np.allclose(position, grid.place_mm(k, 0, 0), atol=WRITTEN_TOLERANCE_MM))
        name = labels[int(item.SegmentIdentificationSequence[0].ReferencedSegmentNumber)]
        found[name][k] |= frame != 0
    return [
        Finding(
            site.at(s.name),
            float(np.count_nonzero(found[s.name] != s.mask.array) if alike else s.mask.array.size),
        )
        for s in site.structures
    ]
