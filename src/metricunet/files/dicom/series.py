"""DICOM CT in: strict intake of series. What is not certainly one gap-free axial scan is refused, and named.

A volume's slices run from the feet to the head, whatever the order of files, instance numbers or the
patient's position on the table. Rows and columns stay as they are stored, so their axes may point either way.
"""

from __future__ import annotations

import errno
import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.uid import UID

from metricunet.errors import InputError, argument, told
from metricunet.files.dicom.consistency import check_one_scan
from metricunet.files.dicom.copies import once_each
from metricunet.files.dicom.frames import split_frames
from metricunet.files.dicom.header import (
    DamagedFileError,
    DicomFile,
    read_dicom_file,
    read_full_header,
    text_as_stored,
    text_of,
)
from metricunet.files.dicom.pixels import read_hu
from metricunet.files.dicom.resample import GapFilling, Untilting
from metricunet.files.dicom.slice import (
    NotCtSliceError,
    SliceHeader,
    check_kind,
    is_localizer,
    normal_of,
    read_slice,
)
from metricunet.files.dicom.stack import LARGEST_TILT_DEGREES, Allow, stack_slices
from metricunet.files.voxels import check_size
from metricunet.progress import Progress
from metricunet.volume import FloatArray, Geometry, Volume

FEWEST_SLICES = 3
#: What macOS puts into archives beside the files themselves.
MAC_FOLDER = "__MACOSX"
#: Nothing is repaired.
STRICT = Allow()


@dataclass(frozen=True, eq=False)
class CtSeries:
    """One checked CT series: its headers are read, its pixels are not yet.

    `files`, `sop_uids`, `positions_mm` and `slices` are in the order of the slices, feet to head. They are the
    slices of `geometry`, unless `resampling` says otherwise. Slices that are frames of one file share its path and
    its SOPInstanceUID, and have their number in `frames`.
    """

    folder: Path
    files: tuple[Path, ...]
    #: The grid that the scan is read on: even, and axial.
    geometry: Geometry
    series_uid: str
    study_uid: str
    frame_of_reference_uid: str
    sop_uids: tuple[str, ...]
    #: LPS position of the centre of pixel [0, 0] of each slice, as its file states it: [slices, 3].
    positions_mm: FloatArray
    #: Every element of the first slice's file but its pixels.
    header: pydicom.Dataset
    slices: tuple[SliceHeader, ...]
    #: How slices that are missing, uneven or tilted come onto the grid, where that was allowed.
    resampling: GapFilling | Untilting | None = None
    #: A sentence for each fault that was repaired so.
    notes: tuple[str, ...] = ()

    @property
    def case(self) -> str:
        """A name for files and tables that tells nothing of the patient."""
        return hashlib.sha256(self.series_uid.encode()).hexdigest()[:12]

    @property
    def scanner(self) -> dict[str, str]:
        """What took the scan: `manufacturer`, `model` and `kernel`, empty where the header says nothing."""
        made, model = (text_as_stored(self.header, word) for word in ("Manufacturer", "ManufacturerModelName"))
        return {"manufacturer": made, "model": model, "kernel": self.slices[0].kernel}

    @property
    def patient_sex(self) -> str:
        """The patient's sex as the header states it, in capitals: `M`, `F` or `O`; empty where it says nothing."""
        return text_as_stored(self.header, "PatientSex").strip().upper()

    @property
    def frames(self) -> tuple[int | None, ...]:
        """For each slice its frame in a multi-frame file, from 1; None for a file of its own."""
        return tuple(s.frame for s in self.slices)

    @property
    def thickness_mm(self) -> FloatArray:
        """What each slice stands for: half the distance to the one below and half that to the one above."""
        normal = self.geometry.directions[:, 0]
        gaps = np.abs(np.diff(self.positions_mm @ normal))
        if self.resampling is None:
            return np.full(len(self.slices), self.geometry.spacing_mm[0])
        return np.asarray((np.r_[gaps[0], gaps] + np.r_[gaps, gaps[-1]]) / 2, dtype=np.float64)

    def read(self) -> Volume:
        """Decode the scan in Hounsfield units: int16 where it is whole numbers that fit, else float32.

        Raises:
            InputError: a slice whose pixels are damaged, named; more voxels than are read.
        """
        hu = read_hu(self.slices)
        if self.resampling is None:
            return Volume(hu, self.geometry)
        # Slices that lie close together here and there make the whole grid as fine as they are.
        check_size(
            f"{self.folder}: on the even grid that series {self.series_uid} would be resampled to",
            self.geometry.shape,
            hu.dtype,
            advice="export a reconstruction with even axial slices, or one acquisition alone",
        )
        return Volume(self.resampling.onto_grid(hu), self.geometry)

    def on_slices(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return what an array on the series' grid holds on its true slices: [slices, rows, columns].

        Raises:
            InputError: the slices are tilted, so that none lies in a plane of the grid.
        """
        self.check_planes()
        return self.resampling.on_slices(array) if isinstance(self.resampling, GapFilling) else array

    def check_planes(self) -> None:
        """Refuse a series whose slices are tilted: what is drawn on the axial grid lies on none of its images.

        Raises:
            InputError: naming the series.
        """
        if isinstance(self.resampling, Untilting):
            raise InputError(
                f"{self.folder}: the slices of series {self.series_uid} are tilted and were resampled, so a "
                f"structure set or segmentation has no images to refer to; use {argument('formats', ['nifti'])}"
            )


@dataclass(frozen=True)
class RefusedSeries:
    """A series that is no scan to segment, and why: one line that names the file and the slice at fault.

    Attributes:
        series_uid: SeriesInstanceUID; empty where it is not known.
        description: SeriesDescription.
        folder: folder of its first file.
        file_count: number of its files.
        reason: what is wrong with it, in one line.
        is_scan: False for what is not at fault, but no CT scan either: localizers, reports, another modality.
        files: those of its files that can be read.
        error: the exception that stopped the reading, where it was not an expected one.
    """

    series_uid: str
    description: str
    folder: Path
    file_count: int
    reason: str
    is_scan: bool = True
    files: tuple[Path, ...] = ()
    error: Exception | None = None


@dataclass(frozen=True)
class SeriesSearch:
    """What a folder holds: series to use, series that are refused, and the structure sets beside them."""

    series: tuple[CtSeries, ...]
    refused: tuple[RefusedSeries, ...]
    structure_sets: tuple[Path, ...] = ()


@dataclass(frozen=True)
class _Damaged:
    """A file or folder that cannot be read. The series is empty where it is not known."""

    folder: Path
    series_uid: str
    reason: str
    #: False for what is no image at all.
    is_scan: bool = True
    error: Exception | None = None


def find_series(path: Path, allow: Allow = STRICT) -> SeriesSearch:
    """Find the CT series in a folder and its subfolders, or the one series that a single file belongs to.

    Images are grouped by SeriesInstanceUID. Files that are not DICOM, and DICOM objects that accompany a scan
    (structure sets, doses, plans, reports, DICOMDIR), are passed over. Images that cannot be used, and a scanner's
    raw data, are listed. So is an overview image (scout) in the series of the slices that it lies across, and the
    slices are read. Links are followed, each file counts once, and so does a slice that was exported twice.
    Whatever goes wrong with a series, foreseen or not, costs no other.

    Args:
        path: a folder, or a file. A DICOMDIR stands for the folder that it lies in.
        allow: faults that are repaired rather than refused; none by default.

    Raises:
        InputError: no such path, no DICOM image there, or a single file that is none.
    """
    found = search_series(path, allow)
    if not found.series and not found.refused:
        raise InputError(f"{path}: holds no DICOM images; give the folder of a CT series")
    return found


def search_series(path: Path, allow: Allow = STRICT, progress: Progress | None = None) -> SeriesSearch:
    """Find what `find_series` finds, and the structure sets beside it; there may be no image.

    Args:
        path: a folder, or a file.
        allow: faults that are repaired rather than refused; none by default.
        progress: called with the files read and the files in all.

    Raises:
        InputError: no such path, or a single file that is no CT image.
    """
    with warnings.catch_warnings():
        # pydicom warns of odd but harmless values (a UID with a letter in it); what matters is checked here.
        warnings.simplefilter("ignore")
        return _search_series(path, allow, progress)


def _search_series(path: Path, allow: Allow, progress: Progress | None) -> SeriesSearch:
    damaged: list[_Damaged] = []
    sets: list[Path] = []
    chosen = read_dicom_file(path) if path.is_file() else None
    if chosen is not None and chosen.is_directory:
        path = path.absolute().parent
    if path.is_file():
        if chosen is None:
            raise InputError(f"{path}: is not a DICOM file; give a DICOM CT slice, its folder, or a NIfTI file")
        if not chosen.is_image:
            modality = text_of(chosen.dataset, "Modality") or "unknown"
            raise InputError(f"{path}: is a DICOM object of modality {modality}, expected a CT image")
        images = _read_images(sorted(p for p in path.parent.iterdir() if p.is_file()), damaged, sets, progress)
        images = [file for file in images if file.series_uid == chosen.series_uid]
        damaged = [d for d in damaged if d.series_uid in ("", chosen.series_uid)]
    elif path.is_dir():
        images = _read_images(_files_below(path, damaged), damaged, sets, progress)
    else:
        raise InputError(f"{path}: no such file or folder")

    groups: dict[str, list[DicomFile]] = {}
    for file in images:
        groups.setdefault(file.series_uid, []).append(file)
    series: list[CtSeries] = []
    refused: list[RefusedSeries] = []
    said: set[str] = set()
    images.clear()  # a group's headers are let go when its series is made: a clinic's tree holds many
    for uid in list(groups):
        files = groups.pop(uid)
        folder, paths = files[0].path.parent, tuple(file.path for file in files)
        description = str(files[0].dataset.get("SeriesDescription", "") or "")
        try:
            _check_undamaged(uid, files, damaged)
            slices, overviews = _without_overviews(files)
            series.append(_series(uid, slices, allow))
        except InputError as error:
            reason = str(error)
            refused.append(RefusedSeries(uid, description, folder, len(files), reason, _is_scan(files), paths))
            said.add(reason)
        except Exception as error:  # whatever it is, it costs this series alone
            reason = f"{folder}: {told(error)}"
            refused.append(RefusedSeries(uid, description, folder, len(files), reason, True, paths, error))
        else:
            for file in overviews:
                reason = (
                    f"{file.location}: ImageType says LOCALIZER, and the image lies across the slices of its "
                    "series: an overview image, which is left out"
                )
                refused.append(RefusedSeries(uid, description, file.path.parent, 1, reason, False, (file.path,)))
    for lost in damaged:
        if lost.reason not in said:
            folder, is_scan = lost.folder, lost.is_scan
            refused.append(RefusedSeries(lost.series_uid, "", folder, 1, lost.reason, is_scan, error=lost.error))
    return SeriesSearch(tuple(series), tuple(refused), tuple(sets))


def _files_below(folder: Path, damaged: list[_Damaged]) -> list[Path]:
    def fail(error: OSError) -> None:
        reason = f"{error.filename}: cannot be read ({error.strerror}); check its permissions"
        if Path(error.filename) == folder:
            raise InputError(reason) from error
        damaged.append(_Damaged(Path(error.filename), "", reason))

    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        # A link may lead back to where it lies, or to a folder or file that is found without it.
        folders[:] = [
            name for name in sorted(folders) if name != MAC_FOLDER and _is_new(Path(parent) / name, seen)
        ]
        found += [
            path
            for name in sorted(names)
            if _is_file(path := Path(parent) / name, damaged) and _is_new(path, seen)
        ]
    return found


def _is_file(path: Path, damaged: list[_Damaged]) -> bool:
    """Tell whether a name that was listed is a file; one that cannot be asked is damaged, one of each folder."""
    try:
        return S_ISREG(path.stat().st_mode)
    except OSError as error:
        # A link to nothing or to itself is no file. Else a folder may be listed and not entered, or a disk fails.
        foreseen = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
        if not foreseen and not any((d.folder, d.series_uid) == (path.parent, "") for d in damaged):
            reason = f"{path}: cannot be read ({error.strerror}); check its permissions and those of its folder"
            damaged.append(_Damaged(path.parent, "", reason))
        return False


def _is_new(path: Path, seen: set[tuple[int, int]]) -> bool:
    try:
        status = path.stat()
    except OSError:
        return True  # whoever opens it says what is wrong
    identity = status.st_dev, status.st_ino
    new = identity not in seen
    seen.add(identity)
    return new


def _read_images(
    paths: Sequence[Path], damaged: list[_Damaged], sets: list[Path], progress: Progress | None
) -> list[DicomFile]:
    """Return the images; add to the lists what is damaged (one file of each series in each folder), and sets."""
    images: list[DicomFile] = []
    for done, path in enumerate(paths, start=1):
        if progress is not None:
            progress(done, len(paths))
        try:
            file = read_dicom_file(path)
        except Exception as error:  # whatever it is, it costs its own series alone, or those in this folder
            known = isinstance(error, DamagedFileError)
            uid = error.series_uid if isinstance(error, DamagedFileError) else ""
            if not any((d.folder, d.series_uid) == (path.parent, uid) for d in damaged):
                reason = str(error) if known else f"{path}: {told(error)}"
                damaged.append(_Damaged(path.parent, uid, reason, error=None if known else error))
        else:
            if file is not None and file.is_image:
                images.append(file)
            elif file is not None and file.dataset.get("Modality") == "RTSTRUCT":
                sets.append(path)
            elif file is not None and file.dataset.get("Modality") == "CT":
                kind = UID(text_of(file.dataset, "SOPClassUID")).name or "an object of an unknown kind"
                damaged.append(_Damaged(path.parent, file.series_uid, f"{path}: is {kind}, no image", False))
    return images


def _check_undamaged(uid: str, files: Sequence[DicomFile], damaged: Sequence[_Damaged]) -> None:
    # A damaged file may be the first or last slice, where no gap would betray that it is missing. Where it is not
    # known of which series, it may be one of any in its folder.
    folders = {file.path.parent for file in files}
    for lost in damaged:
        if not lost.is_scan:
            continue
        if lost.series_uid == uid if lost.series_uid else lost.folder in folders:
            raise InputError(lost.reason)


def _is_scan(files: Sequence[DicomFile]) -> bool:
    """Tell whether any of the files is, or may be, a slice of a CT scan."""
    for file in files:
        try:
            check_kind(file)
        except NotCtSliceError:
            continue
        except InputError:
            pass
        return True
    return False


def _without_overviews(files: Sequence[DicomFile]) -> tuple[list[DicomFile], list[DicomFile]]:
    """Part the files of a series from its overview images (scouts), which some scanners put there.

    One that lies across the slices can be none of them. One in their direction may be a slice that is marked
    wrongly, so it stays, to be refused with all.
    """
    marked = [file for file in files if is_localizer(file)]
    others = [normal_of(file) for file in files if not is_localizer(file)]
    normals = [normal for normal in others if normal is not None]
    if not marked or not normals:
        return list(files), []
    limit = np.cos(np.radians(LARGEST_TILT_DEGREES))
    overviews = [
        file
        for file in marked
        if (own := normal_of(file)) is not None and np.abs(np.array(normals) @ own).max() < limit
    ]
    return [file for file in files if not any(file is overview for overview in overviews)], overviews


def _check_count(first: Path, count: int) -> None:
    if count < FEWEST_SLICES:
        raise InputError(
            f"{first}: belongs to a {['', 'one', 'two'][count]}-slice series, at least {FEWEST_SLICES} slices are "
            "expected; export the whole scan"
        )


def _series(uid: str, files: Sequence[DicomFile], allow: Allow) -> CtSeries:
    if not uid:
        raise InputError(f"{files[0].path}: SeriesInstanceUID is missing; export the series again from its source")
    for file in files:
        check_kind(file)
    frames = [frame for file in files for frame in split_frames(file)]
    _check_count(files[0].path, len(frames))
    slices = once_each([read_slice(frame) for frame in frames])
    _check_count(files[0].path, len(slices))  # of three files two may be copies
    check_one_scan(slices)
    stack = stack_slices(slices, allow)
    first = stack.slices[0]
    return CtSeries(
        folder=first.path.parent,
        files=tuple(s.path for s in stack.slices),
        geometry=stack.geometry,
        series_uid=uid,
        study_uid=first.study_uid,
        frame_of_reference_uid=first.frame_of_reference_uid,
        sop_uids=tuple(s.sop_uid for s in stack.slices),
        positions_mm=np.array([s.position_mm for s in stack.slices]),
        header=read_full_header(first.path),
        slices=stack.slices,
        resampling=stack.resampling,
        notes=stack.notes,
    )
