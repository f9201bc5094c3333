"""What a file or a folder of files holds of structures, on the scan that it belongs to.

Label maps, folders of masks (TotalSegmentator's), structure sets and segmentations are read alike: first the names
of the structures, then one mask after the other on the scan's own grid. Nothing is resampled.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError
from scipy import ndimage

from metricunet.cohort.importing.label_maps import on_grid
from metricunet.cohort.importing.names_file import listed
from metricunet.cohort.importing.source import RegionStatus
from metricunet.cohort.importing.totalsegmentator import MASKS
from metricunet.cohort.layout import read_dataset_json
from metricunet.errors import InputError
from metricunet.files import slicer
from metricunet.files.dicom.file import read_dataset
from metricunet.files.dicom.header import DAMAGE, one_line, text_of
from metricunet.files.dicom.series import CtSeries
from metricunet.files.reviews import stated_labels
from metricunet.files.rtstruct.model import RtStructure
from metricunet.files.rtstruct.read import read_rtstruct
from metricunet.files.scan import is_scan, scan_files
from metricunet.files.seg.read import describe_seg, read_segments
from metricunet.volume import Geometry, Volume

#: A label map of more values than this is none, but a scan perhaps.
MOST_VALUES = 1000
#: What follows the case in names of DICOM files.
DICOM_ENDINGS = (".dcm", ".rtstruct", ".seg")


@dataclass(frozen=True)
class ScanGrid:
    """The scan that structures belong to.

    Attributes:
        name: what to call it in messages.
        geometry: its grid.
        files: that it consists of.
        series: where it is DICOM; None for a file.
    """

    name: str
    geometry: Geometry
    files: tuple[Path, ...]
    series: CtSeries | None


@dataclass(frozen=True)
class Held:
    """A structure that a source names.

    Attributes:
        name: the name in the source, as it is spelled there.
        location: the file and the structure in it, for messages.
        drawn: False where the source names the structure but holds nothing of it.
        key: the value by which the source finds the structure.
        value: its value in a label map; None elsewhere.
        colour: red, green, blue from 0 to 255, where the source states it.
        interpreted_type: RTROIInterpretedType, where the source states it.
    """

    name: str
    location: str
    drawn: bool = True
    key: Any = None
    value: int | None = None
    colour: tuple[int, int, int] | None = None
    interpreted_type: str | None = None


@dataclass(frozen=True, eq=False)
class Drawn:
    """A structure as read.

    Attributes:
        status: `contoured`: there is a mask. `absent`: the source speaks of every voxel, and none is of it. `not
            contoured`: nothing was drawn. `unusable`: something was, and cannot be used.
        mask: uint8 of 0 and 1, on the part of the scan's grid that holds the structure; None without one.
        reason: why there is no mask, one line; empty where there is one, or nothing to say.
        notes: what was odd, a line each.
    """

    status: RegionStatus
    mask: Volume | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()


class Delineations(ABC):
    """The structures of one source.

    Attributes:
        kind: what the source is, for messages: a label map, a folder of masks, an RTSTRUCT, a SEG.
        case: a name for what is made of it.
        files: all files that it is read from.
        structures: that it names, in its order.
        notes: what was odd about it as a whole, a line each.
        ignored: value of voxels that nobody contoured (nnU-Net's ignore label); None where there is none.
        undrawn: what is so of a structure that it names and of which it holds nothing.
    """

    kind: str
    case: str
    files: tuple[Path, ...]
    structures: tuple[Held, ...]
    notes: tuple[str, ...] = ()
    ignored: int | None = None
    undrawn: RegionStatus = "absent"

    @abstractmethod
    def read(self, wanted: Sequence[Held]) -> Iterator[Drawn]:
        """Read structures one by one, in the order asked for."""


class LabelMap(Delineations):
    """One label map.

    Its structures are named by itself (3D Slicer), by the record of the prediction or review that wrote it, by a
    dataset.json, or by their values.
    """

    kind = "a label map"

    def __init__(self, path: Path, scan: ScanGrid) -> None:
        self.case = slicer.map_name(path)
        self._geometry = scan.geometry
        self._array = on_grid(path, scan.geometry, scan.name)
        self._boxes = ndimage.find_objects(self._array)
        there = [value for value, box in enumerate(self._boxes, start=1) if box is not None]
        own = slicer.segments(path) if slicer.is_segmentation(path) else {}
        recorded = None if own else stated_labels(path)
        described = None if recorded else _described(path)
        info = None if own or described is None else read_dataset_json(described)
        if not own and recorded is None and info is None and len(there) > MOST_VALUES:
            raise InputError(
                f"{path}: holds {len(there)} different values, at most {MOST_VALUES} structures are expected; "
                "give a label map, not a scan"
            )
        names = own or (info.labels if info is not None else {str(value): value for value in there})
        by = "its own header" if described is None else str(described / "dataset.json")
        if recorded is not None:
            names, by = recorded[0], str(recorded[1])
        self.ignored = None if info is None or info.ignore not in there else info.ignore
        self._check_named(path, there, names, by)
        self.files = (
            *scan_files(path),
            *([described / "dataset.json"] if info is not None and described else []),
            *([recorded[1]] if recorded is not None else []),
        )
        self.structures = tuple(
            Held(name, f"{path}: label {value} ({name})", value in there, value, value)
            for name, value in names.items()
        )

    def _check_named(self, path: Path, there: Sequence[int], names: dict[str, int], by: str) -> None:
        strange = [value for value in there if value not in names.values() and value != self.ignored]
        if strange:
            raise InputError(
                f"{path}: the value {listed(map(str, strange))} has no name in {by}, which names "
                f"{', '.join(map(str, sorted(names.values())))}; name it there, or move the label map elsewhere"
            )

    def read(self, wanted: Sequence[Held]) -> Iterator[Drawn]:
        """Take structures out of the label map."""
        for held in wanted:
            box = self._boxes[held.key - 1] if held.key <= len(self._boxes) else None
            if box is None:
                yield Drawn("absent")
            else:
                yield Drawn("contoured", _part(self._array[box] == held.key, box, self._geometry))


class MaskFolder(Delineations):
    """A folder with a file for each structure, as TotalSegmentator writes it."""

    kind = "a folder of masks"

    def __init__(self, folder: Path, scan: ScanGrid) -> None:
        there = folder / MASKS if (folder / MASKS).is_dir() else folder
        own = there.absolute()
        self.case = own.parent.name if own.name.lower() == MASKS and own.parent.name else own.name
        self._scan = scan
        known = {path.resolve() for path in scan.files}
        masks = sorted(
            p
            for p in there.iterdir()
            if p.is_file() and is_scan(p) and not p.name.startswith(".") and p.resolve() not in known
        )
        if not masks:
            raise InputError(
                f"{there}: holds no mask; expected STRUCTURE.nii.gz for each structure, or give one file"
            )
        above = [own.parent] if own.name.startswith("labels") else []  # nnU-Net's labelsTr
        for described in dict.fromkeys((there, folder, *above)):
            if (described / "dataset.json").is_file():
                raise InputError(
                    f"{described}: holds label maps of nnU-Net (dataset.json), one for each scan; give the label "
                    f"map of this scan, such as {masks[0]}"
                )
        self.files = tuple(file for mask in masks for file in _files_of(mask))
        self.structures = tuple(Held(slicer.map_name(path), str(path), True, path) for path in masks)

    def read(self, wanted: Sequence[Held]) -> Iterator[Drawn]:
        """Read the masks of structures; what is wrong with one of them costs no other."""
        for held in wanted:
            try:
                array = on_grid(held.key, self._scan.geometry, self._scan.name)
            except InputError as error:
                yield Drawn("unusable", reason=str(error))
                continue
            value = int(array.max())
            if value and ((array != 0) & (array != value)).any():
                several = listed(str(v) for v in np.unique(array) if v)
                yield Drawn(
                    "unusable",
                    reason=f"{held.key}: holds the values {several}, expected one beside 0: it is a label map of "
                    "several structures; convert it by itself",
                )
            else:
                yield _cropped(array, self._scan.geometry)


class StructureSet(Delineations):
    """A DICOM structure set. Contours are filled by the even-odd rule at voxels' centres."""

    kind = "a structure set"
    undrawn: RegionStatus = "not contoured"

    def __init__(self, path: Path, scan: ScanGrid) -> None:
        series = _series_of(path, scan, "a structure set")
        self.case, self.files = _dicom_case(path), (path,)
        self._geometry = scan.geometry
        self._set = read_rtstruct(path, series)
        if self._set.series_uid not in (None, series.series_uid):
            raise InputError(
                f"{path}: was drawn on series {self._set.series_uid}, not on {series.series_uid}; give the scan "
                "that it was drawn on"
            )
        self._check_images(path, series)
        if not self._set.structures:
            raise InputError(f"{path}: holds no ROI; export it again")
        of_one = [f": ROI '{structure.name}'" for structure in self._set.structures]
        self.notes = tuple(note for note in self._set.warnings if not any(part in note for part in of_one))
        self.structures = tuple(
            Held(
                structure.name,
                f"{path}: ROI {'without a number' if structure.number is None else structure.number} "
                f"'{structure.name}'",
                bool(structure.contours or structure.fault or structure.passed_over),
                position,
                None,
                structure.colour,
                structure.interpreted_type,
            )
            for position, structure in enumerate(self._set.structures)
        )

    def _check_images(self, path: Path, series: CtSeries) -> None:
        """Refuse a set whose contours name images, and none of this scan."""
        named = {uid for structure in self._set.structures for uid in structure.image_uids if uid is not None}
        if named and not named & set(series.sop_uids):
            raise InputError(
                f"{path}: its contours name {len(named)} images, none of which is of series {series.series_uid}; "
                "give the scan that it was drawn on"
            )
        if not named and self._set.series_uid is None and self._set.frame_of_reference_uid is None:
            raise InputError(
                f"{path}: states no frame of reference, no series and no image, so nothing says that it was drawn "
                f"on series {series.series_uid}; export it again with its references"
            )

    def read(self, wanted: Sequence[Held]) -> Iterator[Drawn]:
        """Fill the contours of structures."""
        for held in wanted:
            structure: RtStructure = self._set.structures[held.key]
            found = self._set.filled(structure, self._geometry)
            # What makes a structure unusable is its reason already.
            own = [t for t in self._set.warnings if f": ROI '{structure.name}':" in t and not structure.fault]
            notes = (*own, *found.notes)
            if found.mask is not None:
                drawn = _cropped(found.mask.array, self._geometry)
                yield Drawn(drawn.status, drawn.mask, "", notes)
            else:
                lost = found.status != "not contoured"
                yield Drawn("unusable" if lost else "not contoured", None, found.reason, notes)


class Segmentation(Delineations):
    """A DICOM segmentation: binary, fractional or a label map."""

    kind = "a segmentation"

    def __init__(self, path: Path, scan: ScanGrid) -> None:
        self.case, self.files = _dicom_case(path), (path,)
        series = _series_of(path, scan, "a segmentation")
        found = read_segments(path, series)
        made_on = describe_seg(path).series_uids
        if made_on and series.series_uid not in made_on:
            raise InputError(
                f"{path}: was made on series {', '.join(made_on)}, not on {series.series_uid}; give the scan that "
                "it was made on"
            )
        self._masks = {one.number: one.mask for one in found}
        self.structures = tuple(
            Held(one.name, f"{path}: segment {one.number} '{one.name}'", bool(one.mask.array.any()), one.number)
            for one in found
        )

    def read(self, wanted: Sequence[Held]) -> Iterator[Drawn]:
        """Take segments out of the file."""
        for held in wanted:
            mask = self._masks[held.key]
            yield _cropped(mask.array, mask.geometry)


def open_delineations(path: Path, scan: ScanGrid) -> Delineations:
    """Open whatever holds structures: a label map, a folder of masks, a structure set or a segmentation.

    Args:
        path: the file or folder.
        scan: that the structures belong to. Structure sets and segmentations need a DICOM series.

    Raises:
        InputError: none of these, damaged, on another grid than the scan's, or of another scan.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_dir():
        if (path / "dataset.json").is_file() and not _scans_in(path):
            raise InputError(
                f"{path}: is a data set of nnU-Net, with many cases; give the label map of this scan, such as "
                f"{path / 'labelsTr' / 'CASE.nii.gz'}"
            )
        return MaskFolder(path, scan)
    if is_scan(path):
        return LabelMap(path, scan)
    return {"RTSTRUCT": StructureSet, "SEG": Segmentation}[_modality(path)](path, scan)


def _scans_in(folder: Path) -> bool:
    return any(is_scan(p) and not p.name.startswith(".") for p in folder.iterdir() if p.is_file())


def _modality(path: Path) -> str:
    """Return RTSTRUCT or SEG."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = read_dataset(path, stop_before_pixels=True, specific_tags=["Modality"])
            modality = text_of(dataset, "Modality") or "unknown"
    except InvalidDicomError as error:
        raise InputError(
            f"{path}: is neither DICOM nor, by its name, NIfTI, NRRD or MetaImage; expected a label map, a "
            "structure set or a segmentation"
        ) from error
    except DAMAGE as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}); copy or export it again") from error
    if modality not in ("RTSTRUCT", "SEG"):
        raise InputError(f"{path}: is of modality {modality}, expected a structure set (RTSTRUCT) or a SEG")
    return modality


def _series_of(path: Path, scan: ScanGrid, what: str) -> CtSeries:
    if scan.series is None:
        raise InputError(
            f"{path}: is {what}, which belongs to a DICOM series, and {scan.name} is none; give the folder of the "
            "series that it was drawn on"
        )
    return scan.series


def _described(path: Path) -> Path | None:
    """Return the folder of the dataset.json that names a label map's values: its own, or the one above."""
    folders = (path.parent, path.absolute().parent.parent)
    return next((folder for folder in folders if (folder / "dataset.json").is_file()), None)


def _dicom_case(path: Path) -> str:
    """Return a DICOM file's name without what says its kind."""
    name = path.name
    for ending in DICOM_ENDINGS:
        if name.lower().endswith(ending) and len(name) > len(ending):
            name = name[: -len(ending)]
    return name


def _files_of(path: Path) -> tuple[Path, ...]:
    try:
        return scan_files(path)
    except InputError:  # reading it says why
        return (path,)


def _cropped(array: NDArray[Any], geometry: Geometry) -> Drawn:
    """Return a mask on the part of the grid that holds it."""
    inside = array != 0
    box = ndimage.find_objects(inside.view(np.uint8))
    if not box:
        return Drawn("absent")
    return Drawn("contoured", _part(inside[box[0]], box[0], geometry))


def _part(inside: NDArray[np.bool_], box: Sequence[slice], geometry: Geometry) -> Volume:
    return Volume(
        np.ascontiguousarray(inside).astype(np.uint8), geometry.crop([s.start for s in box], inside.shape)
    )
