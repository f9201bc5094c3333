"""DICOM RT structure sets in, from any program. Outlines are filled by the even-odd rule at voxel centres."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from metricunet.errors import InputError
from metricunet.files.contours import filled
from metricunet.files.dicom import CtSeries
from metricunet.files.dicom_header import DAMAGE, one_line
from metricunet.volume import FloatArray, Geometry, Volume

RT_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
CLOSED_TYPES = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
#: Contours nearer to each other than this, across the slices, lie in one plane.
SAME_PLANE_MM = 0.02
#: Where no two of three or more planes of contours are nearer than this many slices, slices were skipped in
#: drawing. (Fewer planes, or some that are neighbours, may be separate parts.)
SPARSE_RATIO = 1.5
#: Room for rounding at half a slice.
ROUNDING_SLICES = 1e-6


@dataclass(frozen=True, eq=False)
class RtStructure:
    """A region as read; each contour is [points, 3] in LPS millimetres, not closed by a repeated point."""

    number: int
    name: str
    contours: tuple[FloatArray, ...]
    colour: tuple[int, int, int] | None
    interpreted_type: str | None
    frame_of_reference_uid: str | None


@dataclass(frozen=True, eq=False)
class RtStruct:
    """A structure set as read, with what was odd about it in `warnings`, a line each."""

    path: Path
    structures: tuple[RtStructure, ...]
    frame_of_reference_uid: str | None
    series_uid: str | None
    warnings: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The structures' names in the file's order."""
        return tuple(structure.name for structure in self.structures)

    def structure(self, name: str) -> RtStructure:
        """Return the structure of a name.

        Raises:
            InputError: no such structure, or several.
        """
        found = [structure for structure in self.structures if structure.name == name]
        if not found:
            raise InputError(f"{self.path}: has no ROI '{name}'; it has {', '.join(self.names) or 'none'}")
        if len(found) > 1:
            numbers = ", ".join(str(structure.number) for structure in found)
            raise InputError(f"{self.path}: ROIs {numbers} are all named '{name}'; give each a name of its own")
        return found[0]

    def mask(self, name: str, geometry: Geometry) -> Volume:
        """Fill a structure's contours on a grid: uint8, 1 where a voxel's centre is inside by even-odd.

        Contours are taken plane by plane. Where several planes fall into one slice the nearest one counts.

        Raises:
            InputError: no such structure or several; one without contours, whose contours lie outside the
                scan or are not parallel to its slices, are too sparse for them, or contain no voxel's centre.
        """
        structure = self.structure(name)
        at = f"{self.path}: ROI '{name}'"
        if not structure.contours:
            raise InputError(f"{at} has no contours; draw it, or choose another ROI")
        array = np.zeros(geometry.shape, dtype=np.uint8)
        for k, loops in _loops_by_slice(structure, geometry, at).items():
            array[k] = filled(loops, geometry.shape[1:])
        if not array.any():
            raise InputError(f"{at} contains no voxel's centre: it lies beside the scan or is too small for it")
        return Volume(array, geometry)


def read_rtstruct(path: Path, series: CtSeries | None = None) -> RtStruct:
    """Read a structure set of any program.

    Args:
        path: the file.
        series: the scan that it is to be used on, if it is known already: it must lie in the same frame of
            reference.

    Raises:
        InputError: not a DICOM structure set, damaged, or in another frame of reference than `series`.
    """
    dataset = _open(path)
    notes: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            structures = tuple(_structures(path, dataset, notes))
            frame, series_uid = _references(path, dataset, structures, notes)
    except (*DAMAGE, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: the structure set is damaged ({one_line(error)}); export it again") from error
    if series is not None:
        _check_frames(path, structures, frame, series)
        if frame is None:
            notes.append(f"{path}: states no frame of reference; it is taken to be that of the scan")
        if series_uid not in (None, series.series_uid):
            notes.append(f"{path}: was drawn on series {series_uid}, not on {series.series_uid}")
    return RtStruct(path, structures, frame, series_uid, tuple(notes))


def _open(path: Path) -> Dataset:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path)
    except InvalidDicomError as error:
        raise InputError(f"{path}: is not a DICOM file, expected an RTSTRUCT") from error
    except DAMAGE as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}); copy or export it again") from error
    if dataset.get("Modality") != "RTSTRUCT" and dataset.get("SOPClassUID") != RT_STRUCTURE_SET:
        raise InputError(f"{path}: is of modality {dataset.get('Modality') or 'unknown'}, expected RTSTRUCT")
    return dataset


def _structures(path: Path, dataset: Dataset, notes: list[str]) -> Iterator[RtStructure]:
    contours: dict[int, Dataset] = {}
    for item in dataset.get("ROIContourSequence") or []:
        contours[int(item.ReferencedROINumber)] = item
    types = {
        int(item.ReferencedROINumber): str(item.get("RTROIInterpretedType") or "")
        for item in dataset.get("RTROIObservationsSequence") or []
    }
    rois = list(dataset.get("StructureSetROISequence") or [])
    names = [str(roi.get("ROIName") or "").strip() for roi in rois]
    for name, count in Counter(names).items():
        if count > 1:
            notes.append(f"{path}: {count} ROIs are named '{name}'")
    for roi, name in zip(rois, names, strict=True):
        number = int(roi.ROINumber)
        item = contours.pop(number, Dataset())
        loops = _closed_contours(path, name, item, notes)
        if not loops:
            notes.append(f"{path}: ROI '{name}' has no contours")
        colour = [int(value) for value in item.get("ROIDisplayColor") or []]
        yield RtStructure(
            number=number,
            name=name,
            contours=tuple(loops),
            colour=(colour[0], colour[1], colour[2]) if len(colour) == 3 else None,
            interpreted_type=types.get(number) or None,
            frame_of_reference_uid=str(roi.get("ReferencedFrameOfReferenceUID") or "") or None,
        )
    for number in contours:
        notes.append(f"{path}: holds contours of ROI number {number}, which it does not name")


def _closed_contours(path: Path, name: str, item: Dataset, notes: list[str]) -> list[FloatArray]:
    loops: list[FloatArray] = []
    others: Counter[str] = Counter()
    for contour in item.get("ContourSequence") or []:
        kind = str(contour.get("ContourGeometricType") or "no type")
        if kind not in CLOSED_TYPES:
            others[kind] += 1
            continue
        points = _points(path, name, contour)
        if len(points) > 1 and np.array_equal(points[0], points[-1]):
            points = points[:-1]
        if len(points) < 3:
            others["fewer than three points"] += 1
        else:
            loops.append(points)
    for kind, count in others.items():
        notes.append(f"{path}: ROI '{name}': contours that enclose nothing ({kind}) are passed over: {count}")
    return loops


def _points(path: Path, name: str, contour: Dataset) -> FloatArray:
    # The text is read at once: pydicom would make an object of every number.
    element: Any = contour.get_item("ContourData")
    value = element.value if element is not None else b""
    try:
        text = value.decode("ascii").strip(" \0").split("\\") if isinstance(value, bytes) else value
        numbers = np.array(text if value else [], dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: ROI '{name}': ContourData is not numbers; export it again") from error
    if numbers.size % 3 or not np.isfinite(numbers).all():
        raise InputError(
            f"{path}: ROI '{name}': ContourData holds {numbers.size} numbers, expected finite ones, three for "
            "each point; export it again"
        )
    return numbers.reshape(-1, 3)


def _references(
    path: Path, dataset: Dataset, structures: Sequence[RtStructure], notes: list[str]
) -> tuple[str | None, str | None]:
    """Return the frame of reference and the series that the set refers to, as far as it says so."""
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []:
        uid = str(frame.get("FrameOfReferenceUID") or "") or None
        for study in frame.get("RTReferencedStudySequence") or []:
            for images in study.get("RTReferencedSeriesSequence") or []:
                return uid, str(images.get("SeriesInstanceUID") or "") or None
        return uid, None
    frames = {s.frame_of_reference_uid for s in structures if s.frame_of_reference_uid is not None}
    stated = frames.pop() if len(frames) == 1 else str(dataset.get("FrameOfReferenceUID") or "") or None
    instead = f"its ROIs state {stated}" if stated else "nothing else states one"
    notes.append(f"{path}: ReferencedFrameOfReferenceSequence is missing; {instead}")
    return stated, None


def _check_frames(path: Path, structures: Sequence[RtStructure], frame: str | None, series: CtSeries) -> None:
    wanted = series.frame_of_reference_uid
    stated = [("", frame)] + [(f"ROI '{s.name}': ", s.frame_of_reference_uid) for s in structures]
    for where, uid in stated:
        if uid is not None and uid != wanted:
            raise InputError(
                f"{path}: {where}frame of reference is {uid}, but {wanted} in series {series.series_uid}; "
                "choose the structure set that was drawn on this scan, or register the two first"
            )


def _loops_by_slice(structure: RtStructure, geometry: Geometry, at: str) -> dict[int, list[FloatArray]]:
    """Sort contours into slices: for each slice the loops [points, (row, column)] of its nearest plane."""
    placed = [geometry.to_index(points) for points in structure.contours]
    placed.sort(key=lambda points: float(points[:, 0].mean()))
    heights = [float(points[:, 0].mean()) for points in placed]
    slices, spacing = geometry.shape[0], geometry.spacing_mm[0]

    planes: list[tuple[float, list[FloatArray]]] = []
    for points, height in zip(placed, heights, strict=True):
        k = round(min(max(height, 0), slices - 1))
        off = float(np.abs(points[:, 0] - k).max())
        if off > 0.5 + ROUNDING_SLICES:
            z = float(geometry.to_world(points).mean(axis=0)[2])
            raise InputError(
                f"{at}: a contour at z = {z:.2f} mm lies up to {off * spacing:.2f} mm from the nearest slice "
                f"of the scan, at most half a slice, {spacing / 2:.2f} mm, is accepted; choose the scan it was "
                "drawn on"
            )
        if planes and (height - planes[-1][0]) * spacing <= SAME_PLANE_MM:
            planes[-1][1].append(points[:, 1:])
        else:
            planes.append((height, [points[:, 1:]]))
    gaps = np.diff([height for height, _ in planes])
    if len(gaps) > 1 and gaps.min() > SPARSE_RATIO:
        raise InputError(
            f"{at}: its contours lie {gaps.min() * spacing:.2f} mm apart or more, the slices {spacing:.2f} mm, "
            "so slices between them would stay empty; interpolate the contours to every slice first"
        )
    nearest: dict[int, tuple[float, list[FloatArray]]] = {}
    for height, loops in planes:
        k = round(min(max(height, 0), slices - 1))
        if k not in nearest or abs(height - k) < abs(nearest[k][0] - k):
            nearest[k] = (height, loops)
    return {k: loops for k, (_, loops) in nearest.items()}
