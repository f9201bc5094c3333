"""Structure sets and segmentations through their doors: edges, surfaces, holes, adding, registration, SEG.

Contours are read from the file by pydicom alone and measured here; masks are what the package reads back.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from metricunet.files.dicom.patient import patient_and_study
from metricunet.files.rtstruct.add import add_to_rtstruct
from metricunet.files.rtstruct.read import read_rtstruct
from metricunet.files.rtstruct.registration import SPATIAL_REGISTRATION
from metricunet.files.rtstruct.write import write_rtstruct
from metricunet.files.seg.read import read_seg
from metricunet.files.seg.write import write_seg
from metricunet.volume import FloatArray
from metricunet.workflows.commission.checks import VOXELS, CommissionCheck, Measurement
from metricunet.workflows.commission.subjects import HALF, ISLAND, Shape, Site, the_series
from metricunet.workflows.ct_writer import write_ct_series

DESCRIPTION = "Analytic shape, made by metricunet commission. Not a patient."
VOXEL_EDGES, BETWEEN, SMOOTH = "voxel-edges.rtstruct.dcm", "sub-voxel.rtstruct.dcm", "smoothed.rtstruct.dcm"
VOLUME_TOLERANCE_PERCENT = 0.5
CURVE_TOLERANCE_PIXELS = 0.1
SMOOTHING_MM = 0.5
#: Coordinates are written with six decimals.
WRITTEN_TOLERANCE_MM = 0.001
#: Contours are measured at points this far apart along them.
STEP_MM = 0.2
HOLED = "shell with a hole"


def voxel_edges(sites: Sequence[Site]) -> Iterator[CommissionCheck]:
    """Contours along voxels' edges: the mask comes back, and the contours hold it."""
    group = "RTSTRUCT, voxel edges"
    masks, areas, corners, planes = [], [], [], []
    for site in sites:
        path = site.folder / VOXEL_EDGES
        write_rtstruct(path, site.series, site.structures, description=DESCRIPTION, outline="voxel")
        masks += _masks(path, site)
        areas += _volumes(path, site, site.plan.shapes)
        corners.append(Measurement(site.plan.name, _off_corners_mm(path, site)))
        planes.append(Measurement(site.plan.name, _misplaced(path, site)))
    yield CommissionCheck(group, "Mask out and in", VOXELS, masks)
    yield _volume_check(group, "Contours' volume", areas)
    yield CommissionCheck(
        group, "Points on the corners of voxels", "off a corner", corners, WRITTEN_TOLERANCE_MM, "mm"
    )
    yield CommissionCheck(group, "Plane and image that contours name", "contours elsewhere", planes)


def between_voxels(sites: Sequence[Site]) -> Iterator[CommissionCheck]:
    """Contours on the surface of a partial-volume field: on the analytic curve, and the mask still comes back."""
    group = "RTSTRUCT, sub-voxel"
    masks, volumes, curves, planes = [], [], [], []
    for site in sites:
        path = site.folder / BETWEEN
        write_rtstruct(path, site.series, site.structures, description=DESCRIPTION)
        masks += _masks(path, site)
        # Of one voxel a linear field makes a diamond of half the area: its mask counts alone.
        shapes = [shape for shape in site.plan.shapes if shape.name != ISLAND]
        volumes += _volumes(path, site, shapes)
        contours = contours_of(path)
        for shape in shapes:
            off = np.concatenate([_off_curve_mm(points, shape) for _, points in contours[shape.name]])
            off /= site.plan.smaller_pixel_mm
            curves.append(Measurement(site.at(shape), float(off.mean()), {"largest": float(off.max())}))
        planes.append(Measurement(site.plan.name, _misplaced(path, site)))
    yield CommissionCheck(group, "Mask out and in", VOXELS, masks)
    yield _volume_check(group, "Contours' volume", volumes)
    yield CommissionCheck(
        group, "Contours on the analytic curve", "mean distance", curves, CURVE_TOLERANCE_PIXELS, "pixel"
    )
    yield CommissionCheck(group, "Plane and image that contours name", "contours elsewhere", planes)


def smoothing(sites: Sequence[Site]) -> Iterator[CommissionCheck]:
    """Smoothed contours against those that they were made from."""
    group = "RTSTRUCT, smoothed"
    moves, volumes, said = [], [], []
    for site in sites:
        plain, smooth = site.folder / "plain.rtstruct.dcm", site.folder / SMOOTH
        structures = [s for s in site.structures if s.name != ISLAND]
        for path, limit_mm in ((plain, 0.0), (smooth, SMOOTHING_MM)):
            done = write_rtstruct(
                path, site.series, structures, description=DESCRIPTION, outline="voxel", smoothing_mm=limit_mm
            )
        before, after = contours_of(plain), contours_of(smooth)
        plain.unlink()
        for structure, told in zip(structures, done, strict=True):
            pairs = list(zip(before[structure.name], after[structure.name], strict=True))
            farthest = max(_apart_mm(new, old) for (_, old), (_, new) in pairs)
            moves.append(Measurement(site.at(structure.name), farthest))
            was, now = (volume_ml(found[structure.name], site) for found in (before, after))
            volumes.append(Measurement(site.at(structure.name), 100 * (now / was - 1)))
            said.append(Measurement(site.at(structure.name), 1000 * (told.smoothing_change_ml - (now - was))))
    yield CommissionCheck(
        group, f"Smoothing of up to {SMOOTHING_MM:g} mm, largest move", "distance", moves, SMOOTHING_MM, "mm"
    )
    yield CommissionCheck(group, "Its change of volume", "change", volumes, VOLUME_TOLERANCE_PERCENT, "%")
    yield CommissionCheck(group, "The change that the program tells", "difference", said, 1.0, "mm³")


def holes(sites: Sequence[Site]) -> Iterator[CommissionCheck]:
    """A hole kept, joined by a keyhole, and closed."""
    group = "RTSTRUCT, holes"
    rows = (
        ("keep", "A hole of its own contour comes back"),
        ("keyhole", "A hole joined by a keyhole comes back"),
        ("close", "A hole that is closed is filled"),
    )
    for way, name in rows:
        found = []
        for site in sites:
            (shape,) = (s for s in site.plan.shapes if s.name == HOLED)
            structure, path = site.structure(shape), site.folder / f"hole-{way}.rtstruct.dcm"
            write_rtstruct(path, site.series, [structure], description=DESCRIPTION, holes=way)  # type: ignore[arg-type]
            back = read_rtstruct(path, site.series).mask(HOLED, site.geometry).array != 0
            meant = structure.mask.array
            if way == "close":
                meant = site.plan.share(Shape("whole", shape.parts[:1])) > HALF
            found.append(Measurement(site.plan.name, float(np.count_nonzero(back != meant))))
        yield CommissionCheck(group, name, VOXELS, found)


def contours_of(path: Path) -> dict[str, list[tuple[str, FloatArray]]]:
    """Read contours by pydicom alone: for each ROI the image that each names, and its points in LPS mm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path)
        names = {int(roi.ROINumber): str(roi.ROIName) for roi in dataset.StructureSetROISequence}
        return {
            names[int(item.ReferencedROINumber)]: [_contour(contour) for contour in item.ContourSequence]
            for item in dataset.ROIContourSequence
        }


def volume_ml(contours: Sequence[tuple[str, FloatArray]], site: Site) -> float:
    """The contours' areas by the shoelace formula, those of holes taken off, times the slice distance."""
    signed = []
    for _, points in contours:
        x, y = (points - points[0])[:, :2].T
        signed.append(float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2)
    return abs(sum(signed)) * site.plan.slice_mm / 1000


def masks_back(path: Path, site: Site) -> dict[str, NDArray[np.bool_]]:
    """The masks that the package reads from a structure set, by name; empty where there is none."""
    empty = np.zeros(site.geometry.shape, dtype=bool)
    found = read_rtstruct(path, site.series).masks(site.geometry)
    return {roi.name: empty if roi.mask is None else roi.mask.array != 0 for roi in found}


def _contour(contour: Dataset) -> tuple[str, FloatArray]:
    points = np.array([float(v) for v in contour.ContourData]).reshape(-1, 3)
    return str(contour.ContourImageSequence[0].ReferencedSOPInstanceUID), points


def _masks(path: Path, site: Site) -> list[Measurement]:
    back = masks_back(path, site)
    return [
        Measurement(site.at(s.name), float(np.count_nonzero(back[s.name] != s.mask.array)))
        for s in site.structures
    ]


def _volumes(path: Path, site: Site, shapes: Sequence[Shape]) -> list[Measurement]:
    """Contours' volumes against the sums of the exact cross-sections; against the solid by the way."""
    contours = contours_of(path)
    z, _, _ = site.plan.grid.axes_mm()
    found = []
    for shape in shapes:
        volume = volume_ml(contours[shape.name], site)
        exact = shape.sections_ml(z, site.plan.slice_mm)
        solid = 100 * (volume / shape.volume_ml - 1)
        found.append(
            Measurement(
                site.at(shape),
                100 * (volume / exact - 1),
                {"volume_ml": volume, "sections_ml": exact, "solid_ml": shape.volume_ml, "against_solid": solid},
            )
        )
    return found


def _volume_check(group: str, name: str, found: list[Measurement]) -> CommissionCheck:
    return CommissionCheck(group, name, "against sum of sections", found, VOLUME_TOLERANCE_PERCENT, "%")


def _misplaced(path: Path, site: Site) -> float:
    """Count contours that do not lie in the plane of the image that they name, by that image's own header."""
    heights = {}
    for file in (site.folder / "ct").iterdir():
        header = pydicom.dcmread(file, specific_tags=["SOPInstanceUID", "ImagePositionPatient"])
        heights[str(header.SOPInstanceUID)] = float(header.ImagePositionPatient[2])
    wrong = 0
    for contours in contours_of(path).values():
        for uid, points in contours:
            wrong += uid not in heights or bool(np.abs(points[:, 2] - heights[uid]).max() > WRITTEN_TOLERANCE_MM)
    return float(wrong)


def _off_corners_mm(path: Path, site: Site) -> float:
    """How far points lie from the corners of voxels, halfway between the centres that the plan has."""
    _, y, x = site.plan.grid.axes_mm()
    points = np.concatenate([points for contours in contours_of(path).values() for _, points in contours])
    off = []
    for axis, centres in ((0, x), (1, y)):
        step = centres[1] - centres[0]
        place = (points[:, axis] - centres[0]) / step - 0.5
        off.append(float(np.abs((place - np.round(place)) * step).max()))
    return max(off)


def _off_curve_mm(points: FloatArray, shape: Shape) -> FloatArray:
    """Distances of a contour from the analytic curve, at even steps along it."""
    return shape.distance_mm(_along(points)[:, :2], float(points[0, 2]))


def _along(points: FloatArray) -> FloatArray:
    """Points at even steps along a closed contour."""
    closed = np.concatenate([points, points[:1]])
    at = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    steps = np.linspace(0, at[-1], max(16, int(at[-1] / STEP_MM)), endpoint=False)
    return np.stack([np.interp(steps, at, closed[:, k]) for k in range(closed.shape[1])], axis=1)


def _apart_mm(contour: FloatArray, other: FloatArray) -> float:
    """How far any point of a contour lies from the nearest edge of another."""
    points, begin = _along(contour)[:, None, :2], other[None, :, :2]
    edge = np.roll(other, -1, axis=0)[None, :, :2] - begin
    share = np.clip(((points - begin) * edge).sum(axis=-1) / np.maximum((edge**2).sum(axis=-1), 1e-30), 0, 1)
    return float(np.linalg.norm(points - begin - share[..., None] * edge, axis=-1).min(axis=1).max())


ADDED, SEGMENTATION, REGISTRATION = "added.rtstruct.dcm", "masks.seg.dcm", "registration.reg.dcm"
#: Whole slices, rows and columns by which the second scan is shifted, and degrees by which it is turned.
SHIFT_VOXELS, TURN_DEGREES = (-1, -3, 4), 17.0


def adding(sites: Sequence[Site]) -> Iterator[CommissionCheck]:
    """A structure more in a set that is there: the others stay, the new one comes back."""
    group = "RTSTRUCT, adding"
    changed, masks = [], []
    for site in sites:
        before, after = site.folder / BETWEEN, site.folder / ADDED
        new = site.structure(site.plan.target, "ellipsoid again")
        add_to_rtstruct(before, after, site.series, [new], description=DESCRIPTION)
        changed.append(Measurement(site.plan.name, float(_changed(before, after))))
        back = masks_back(after, site)[new.name]
        masks.append(Measurement(site.plan.name, float(np.count_nonzero(back != new.mask.array))))
    yield CommissionCheck(group, "Structures that were there", "changed", changed)
    yield CommissionCheck(group, "Mask of the new one, out and in", VOXELS, masks)


def registered(sites: Sequence[Site]) -> Iterator[CommissionCheck]:
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
        off.append(Measurement(site.plan.name, float(max(apart))))
        _write_registration(path, site, other.frame_of_reference_uid, _turn(0, site.plan.middle_mm, shift))
        read = read_rtstruct(structures, other, registration=path)
        for structure in site.structures:
            back = read.mask(structure.name, other.geometry).array != 0
            differ = np.count_nonzero(back != np.roll(structure.mask.array, SHIFT_VOXELS, axis=(0, 1, 2)))
            masks.append(Measurement(site.at(structure.name), float(differ)))
    yield CommissionCheck(
        group, "Turned and shifted, against the matrix", "points off their place", off, WRITTEN_TOLERANCE_MM, "mm"
    )
    yield CommissionCheck(group, "Shifted by whole voxels: mask", VOXELS, masks)


def segmentations(sites: Sequence[Site]) -> Iterator[CommissionCheck]:
    """Masks out and in as DICOM SEG, and as pydicom alone finds them."""
    group = "DICOM SEG out and in"
    masks, places = [], []
    for site in sites:
        path = site.folder / SEGMENTATION
        write_seg(path, site.series, site.structures, description=DESCRIPTION)
        back = read_seg(path, site.series)
        for structure in site.structures:
            differ = np.count_nonzero((back[structure.name].array != 0) != structure.mask.array)
            masks.append(Measurement(site.at(structure.name), float(differ)))
        places += _frames(path, site)
    yield CommissionCheck(group, "Mask out and in", VOXELS, masks)
    yield CommissionCheck(group, "Frames at their positions, by pydicom", VOXELS, places)


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


def _frames(path: Path, site: Site) -> list[Measurement]:
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
        Measurement(
            site.at(s.name),
            float(np.count_nonzero(found[s.name] != s.mask.array) if alike else s.mask.array.size),
        )
        for s in site.structures
    ]
