"""Structures of one case, whatever they were stored in: label map, structure set or segmentation, as masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from metricunet.errors import InputError, argument
from metricunet.evaluation.naming import Naming, counted_names
from metricunet.files.dicom.header import DamagedFileError, read_dicom_file, text_of
from metricunet.files.dicom.series import CtSeries, SeriesSearch, search_series
from metricunet.files.dicom.stack import Allow
from metricunet.files.reviews import is_kept_apart
from metricunet.files.rtstruct.model import RtStructure
from metricunet.files.rtstruct.read import read_rtstruct
from metricunet.files.scan import is_scan, read_scan
from metricunet.files.seg.read import describe_seg, read_seg
from metricunet.volume import Geometry, Volume

ContourKind = Literal["rtstruct", "seg"]
KINDS: dict[str, ContourKind] = {"RTSTRUCT": "rtstruct", "SEG": "seg"}
#: What such files of a prediction are called after the case, and others after anything.
SUFFIXES = (".rtstruct.dcm", ".seg.dcm", ".dcm")


@dataclass(frozen=True)
class ContourFile:
    """A DICOM structure set or segmentation, as far as it says what it is of.

    Attributes:
        path: the file.
        kind: which of the two.
        names: of its structures, in its order.
        frame_uid: frame of reference.
        series_uids: series that it says it was drawn on.
    """

    path: Path
    kind: ContourKind
    names: tuple[str, ...]
    frame_uid: str | None
    series_uids: tuple[str, ...]

    @property
    def stem(self) -> str:
        """The file's name without its ending."""
        return contour_stem(self.path)


def contour_stem(path: Path) -> str:
    """Return the name of a structure set's or segmentation's file without its ending."""
    ending = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")
    return path.name[: len(path.name) - len(ending)] or path.name


def contour_kind(path: Path) -> ContourKind | None:
    """Tell whether a file is a DICOM structure set or segmentation; None for anything else.

    Raises:
        InputError: a DICOM file that cannot be read.
    """
    found = read_dicom_file(path)
    return None if found is None else KINDS.get(text_of(found.dataset, "Modality"))


def contour_files_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the structure sets in a folder and its subfolders, or the segmentations where there is no set.

    Returns:
        The files, and those that might be such files and cannot be read.
    """
    found: dict[ContourKind, list[Path]] = {"rtstruct": [], "seg": []}
    damaged: list[Path] = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(".") and not is_kept_apart(path):
            try:
                kind = contour_kind(path)
            except DamagedFileError:
                damaged.append(path)
            else:
                if kind is not None:
                    found[kind].append(path)
    return found["rtstruct"] or found["seg"], damaged


def read_contour_file(path: Path, kind: ContourKind) -> ContourFile:
    """Read what a structure set or segmentation is of.

    Raises:
        InputError: it cannot be read.
    """
    if kind == "seg":
        described = describe_seg(path)
        return ContourFile(path, kind, described.names, described.frame_uid, described.series_uids)
    read = read_rtstruct(path)
    series = () if read.series_uid is None else (read.series_uid,)
    return ContourFile(path, kind, read.names, read.frame_of_reference_uid, series)


@dataclass(frozen=True, eq=False)
class CaseScan:
    """The scan of one case: a DICOM series, or a file."""

    path: Path
    series: CtSeries | None = None

    def read(self) -> Volume:
        """Read the scan in HU."""
        return read_scan(self.path) if self.series is None else self.series.read()

    def geometry(self) -> Geometry:
        """Return the scan's grid, on which everything is measured."""
        return self.read().geometry if self.series is None else self.series.geometry


class SeriesFinder:
    """Finds the CT series that contours were drawn on.

    Args:
        path: the folder that holds them, or a file of one.
        search: what is there.
    """

    def __init__(self, path: Path, search: SeriesSearch) -> None:
        self.path, self.search = path, search

    @classmethod
    def at(cls, path: Path) -> SeriesFinder | None:
        """Look for series at a path; None where scans lie there as files of one scan each.

        Raises:
            InputError: no such path, or nothing there that can be used.
        """
        files = [path] if path.is_file() else list(path.iterdir()) if path.is_dir() else []
        has_files = any(is_scan(file) and not file.name.startswith(".") for file in files)
        if has_files and path.is_file():
            return None
        search = search_series(path, Allow(offered=False))
        if search.series:
            return cls(path, search)
        if has_files:
            return None
        refused = [r for r in search.refused if r.is_scan] or list(search.refused)
        why = f": {refused[0].reason}" if refused else "; give the folder of the series that was contoured"
        raise InputError(f"{path}: holds no CT series that can be used{why}")

    def of_case(self, case: str) -> CtSeries | None:
        """Return the series whose case has this name; of a single series that one."""
        series = self.search.series
        named = [one for one in series if one.case == case]
        return next(iter(named), series[0] if len(series) == 1 else None)

    def of_file(self, file: ContourFile) -> CtSeries:
        """Return the series that a file was drawn on: the one that it names, else that of its frame of reference.

        A single series is returned as it is: whether the file fits is seen where its contours are read.

        Raises:
            InputError: none of several is the one.
        """
        series = self.search.series
        if len(series) == 1:
            return series[0]
        named = [one for one in series if one.series_uid in file.series_uids]
        near = named or [one for one in series if one.frame_of_reference_uid == file.frame_uid]
        if len(near) == 1:
            return near[0]
        stated = f"series {', '.join(file.series_uids)}" if file.series_uids else "no series"
        raise InputError(
            f"{file.path}: names {stated} and frame of reference {file.frame_uid or 'none'}, and "
            f"{len(near) or 'none'} of the {len(series)} CT series in {self.path} fits that; add the scan that it "
            f"was drawn on, or give that one alone by {argument('scan')}"
        )

    def of_files(self, files: Sequence[ContourFile]) -> CtSeries:
        """Return the one series that files were drawn on; see `of_file`.

        Args:
            files: at least one.

        Raises:
            InputError: they were drawn on several, or one of them on none of these.
        """
        first, *others = [(file, self.of_file(file)) for file in files]
        for file, series in others:
            if series is not first[1]:
                raise InputError(
                    f"{file.path}: was drawn on series {series.series_uid}, but {first[0].path} on series "
                    f"{first[1].series_uid}; compare contours of one scan"
                )
        return first[1]


class Side(ABC):
    """One side of one case: its structures as masks.

    Attributes:
        name: what to call it in messages.
        notes: sentences on what was odd in what was read.
        ignored: where nobody contoured anything, so that nothing counts; None where there is no such mark.
    """

    name: str
    notes: list[str]
    ignored: NDArray[np.bool_] | None = None

    @abstractmethod
    def mask(self, structure: str) -> Volume | None:
        """Return the mask of a structure; None where this side says nothing of it.

        Args:
            structure: what `Naming.structure_of` calls it.

        Raises:
            InputError: it is there twice, or cannot be used.
        """


class LabelSide(Side):
    """A label map.

    Args:
        name: what to call it in messages.
        volume: the label map, on the grid that is measured on.
        labels: structure's name to its value.
        naming: which names are one.
        not_contoured: names of structures of which it says nothing.
    """

    def __init__(
        self,
        name: str,
        volume: Volume,
        labels: Mapping[str, int],
        naming: Naming,
        not_contoured: Collection[str] = (),
    ) -> None:
        self.name, self.volume, self.labels, self.naming = name, volume, labels, naming
        self.not_contoured, self.notes = not_contoured, []

    def mask(self, structure: str) -> Volume | None:
        """Return where the label map has the structure's value."""
        own = [name for name in self.labels if self.naming.structure_of(name) == structure]
        own = [name for name in own if name not in self.not_contoured]
        if not own:
            return None
        if len(own) > 1:
            raise InputError(f"{self.name}: {' and '.join(own)} are one structure by their names; {_ONE_OF_THEM}")
        return self.volume.with_array(self.volume.array == self.labels[own[0]])


class StructureSetSide(Side):
    """A structure set on the scan that it was drawn on.

    Args:
        path: the file.
        series: the scan.
        naming: which names are one.
        predicted: whether it is the side that is judged.

    Raises:
        InputError: it cannot be read, or was not drawn on this scan.
    """

    def __init__(self, path: Path, series: CtSeries, naming: Naming, predicted: bool) -> None:
        self.name, self.series, self.naming = str(path), series, naming
        self.read = read_rtstruct(path, series)
        self.counted = counted_names(self.read.names, naming, predicted)
        self.notes = [note for note in self.read.warnings if ": ROI '" not in note]

    def mask(self, structure: str) -> Volume | None:
        """Fill the structure's contours; None where there are none."""
        own = [s for s in self.read.structures if self.naming.structure_of(s.name) == structure]
        own = [s for s in own if s.name in self.counted]
        drawn = [s for s in own if s.contours or s.fault]
        if not drawn:
            return None
        if len(drawn) > 1:
            rois = " and ".join(_roi(s) for s in drawn)
            raise InputError(f"{self.name}: {rois} are both drawn and are one structure; {_ONE_OF_THEM}")
        found = self.read.filled(drawn[0], self.series.geometry)
        if found.status == "unusable":
            raise InputError(found.reason)
        own_notes = [note for note in self.read.warnings if f": ROI '{drawn[0].name}':" in note]
        self.notes += [*own_notes, *found.notes]
        return found.mask


class SegmentationSide(Side):
    """A segmentation on the scan that it was made on.

    Args:
        path: the file.
        series: the scan.
        naming: which names are one.
        structures: those that are asked for.
        predicted: whether it is the side that is judged.

    Raises:
        InputError: it cannot be read, or was not made on this scan.
    """

    def __init__(
        self, path: Path, series: CtSeries, naming: Naming, structures: Collection[str], predicted: bool
    ) -> None:
        self.name, self.naming, self.notes = str(path), naming, []
        names = counted_names(describe_seg(path).names, naming, predicted)
        wanted = [name for name in names if naming.structure_of(name) in structures]
        self.masks = read_seg(path, series, wanted)

    def mask(self, structure: str) -> Volume | None:
        """Return the structure's segment, which may be empty; None where there is none."""
        own = [name for name in self.masks if self.naming.structure_of(name) == structure]
        if len(own) > 1:
            segments = " and ".join(f"'{name}'" for name in own)
            raise InputError(f"{self.name}: segments {segments} are one structure by their names; {_ONE_OF_THEM}")
        return self.masks[own[0]] if own else None


_ONE_OF_THEM = "rename one of the two, or map its name to another structure in the names file"


def open_side(
    file: ContourFile, series: CtSeries, naming: Naming, structures: Collection[str], *, predicted: bool
) -> Side:
    """Open a structure set or segmentation on its scan.

    Args:
        file: it.
        series: the scan.
        naming: which names are one.
        structures: those that are asked for, as `Naming.structure_of` calls them.
        predicted: whether it is the side that is judged.

    Raises:
        InputError: it cannot be read, or does not fit the scan.
    """
    if file.kind == "rtstruct":
        return StructureSetSide(file.path, series, naming, predicted)
    return SegmentationSide(file.path, series, naming, structures, predicted)


def spelled(values: Sequence[str]) -> dict[str, int]:
    """Return those of a names file's spellings that are values of a label map, each as its own name."""
    return {text: int(text) for text in values if text.isascii() and text.isdecimal() and int(text) > 0}


def _roi(structure: RtStructure) -> str:
    return f"ROI {'without a number' if structure.number is None else structure.number} '{structure.name}'"
