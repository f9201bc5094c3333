"""DICOM CT in: strict intake of series. What is not certainly one gap-free axial scan is refused, and named.

A volume's slices run from the feet to the head, whatever the order of files, instance numbers or the
patient's position on the table. Rows and columns stay as they are stored, so their axes may point either way.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low

import numpy as np
import pydicom

from metricunet.errors import InputError
from metricunet.files.dicom_header import (
    DicomFile,
    SliceHeader,
    check_kind,
    read_dicom_file,
    read_full_header,
    read_slice,
)
from metricunet.files.dicom_pixels import read_hu
from metricunet.volume import SHEAR_TOLERANCE, FloatArray, Geometry, Volume

Progress = Callable[[int, int], None]

FEWEST_SLICES = 3
#: The slice normal, and the rows and columns, may lie off the patient's axes by this much.
AXIAL_TOLERANCE_DEGREES = 1.0
#: A slice may lie this far from its place on the even grid: rounding of positions in the files, not more.
POSITION_TOLERANCE_MM = 0.05
#: Two slices nearer to each other than this lie at one position.
DUPLICATE_TOLERANCE_MM = 0.05
#: A gap of more than this many slice distances means that slices are missing, not that spacing is uneven.
MISSING_SLICE_RATIO = 1.5
#: Direction cosines of one series differ by rounding only.
SAME_DIRECTION_TOLERANCE = 1e-4
SAME_PIXEL_SPACING_TOLERANCE_MM = 1e-4
#: Room for rounding in the tolerances above.
ROUNDING_MM = 1e-6


@dataclass(frozen=True, eq=False)
class CtSeries:
    """One checked CT series: its headers are read, its pixels are not yet.

    `files`, `sop_uids` and `positions_mm` are in the order of the volume's slices, feet to head.
    """

    folder: Path
    files: tuple[Path, ...]
    geometry: Geometry
    series_uid: str
    study_uid: str
    frame_of_reference_uid: str
    sop_uids: tuple[str, ...]
    #: LPS position of the centre of pixel [0, 0] of each slice, as its file states it: [slices, 3].
    positions_mm: FloatArray
    #: Every element of the first slice but its pixels.
    header: pydicom.Dataset
    slices: tuple[SliceHeader, ...]

    @property
    def case(self) -> str:
        """A name for files and tables that tells nothing of the patient."""
        return hashlib.sha256(self.series_uid.encode()).hexdigest()[:12]

    def read(self) -> Volume:
        """Decode the scan in Hounsfield units: int16 where it is whole numbers that fit, else float32.

        Raises:
            InputError: a slice whose pixels are damaged, named.
        """
        return Volume(read_hu(self.slices), self.geometry)


@dataclass(frozen=True)
class RefusedSeries:
    """A series that is no scan to segment, and why: one line that names the file and the slice at fault."""

    series_uid: str
    description: str
    folder: Path
    file_count: int
    reason: str
    #: Its images; none where nothing but damaged files was found.
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class SeriesSearch:
    """What a folder holds: series to use, series that are refused, and the structure sets beside them."""

    series: tuple[CtSeries, ...]
    refused: tuple[RefusedSeries, ...]
    structure_sets: tuple[Path, ...] = ()


def find_series(path: Path) -> SeriesSearch:
    """Find the CT series in a folder and its subfolders, or the one series that a single file belongs to.

    Images are grouped by SeriesInstanceUID. Files that are not DICOM, and DICOM objects that accompany a scan
    (structure sets, doses, plans, reports, DICOMDIR), are passed over.

    Raises:
        InputError: no such path, no DICOM image there, or a DICOM file whose header is damaged or unreadable.
    """
    found = search_series(path)
    if not found.series and not found.refused:
        raise InputError(f"{path}: holds no DICOM images; give the folder of a CT series")
    return found


def search_series(path: Path, progress: Progress | None = None) -> SeriesSearch:
    """Find what `find_series` finds, and the structure sets; there may be no image.

    Args:
        path: a folder, or a file of the series.
        progress: called with the files read and the files in all.

    Raises:
        InputError: no such path, or a single file that is no CT image.
    """
    with warnings.catch_warnings():
        # pydicom warns of odd but harmless values (a UID with a letter in it); what matters is checked here.
        warnings.simplefilter("ignore")
        return _search_series(path, progress)


def _search_series(path: Path, progress: Progress | None) -> SeriesSearch:
    if path.is_file():
        chosen = read_dicom_file(path)
        if chosen is None:
            raise InputError(f"{path}: is not a DICOM file; give a DICOM CT slice, its folder, or a NIfTI file")
        if not chosen.is_image:
            modality = chosen.dataset.get("Modality", "") or "unknown"
            raise InputError(f"{path}: is a DICOM object of modality {modality}, expected a CT image")
        images, sets, damaged = _read_files(sorted(p for p in path.parent.iterdir() if p.is_file()), progress)
        images = [file for file in images if file.series_uid == chosen.series_uid]
    elif path.is_dir():
        images, sets, damaged = _read_files(_files_below(path), progress)
    else:
        raise InputError(f"{path}: no such file or folder")
    groups: dict[str, list[DicomFile]] = {}
    for file in images:
        groups.setdefault(file.series_uid, []).append(file)
    used = {file.path.parent for file in images}
    images.clear()  # a group's headers are let go when the series is made: a clinic's tree holds many
    series: list[CtSeries] = []
    refused: list[RefusedSeries] = []
    for uid in list(groups):
        files = groups.pop(uid)
        try:
            _check_undamaged(files, damaged)
            series.append(_series(uid, files))
        except InputError as error:
            description = str(files[0].dataset.get("SeriesDescription", "") or "")
            refused.append(
                RefusedSeries(
                    uid,
                    description,
                    files[0].path.parent,
                    len(files),
                    str(error),
                    tuple(file.path for file in files),
                )
            )
    for folder in damaged.keys() - used:
        refused.append(RefusedSeries("", "", folder, 1, damaged[folder]))
    return SeriesSearch(tuple(series), tuple(refused), tuple(sets))


def _files_below(folder: Path) -> list[Path]:
    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions") from error

    found = []
    for parent, folders, names in os.walk(folder, onerror=fail):
        folders.sort()
        found += [Path(parent) / name for name in sorted(names)]
    return [path for path in found if path.is_file()]


def _read_files(
    paths: Sequence[Path], progress: Progress | None
) -> tuple[list[DicomFile], list[Path], dict[Path, str]]:
    """Return images, structure sets, and for each folder that holds a damaged file what is wrong with one."""
    images: list[DicomFile] = []
    sets: list[Path] = []
    damaged: dict[Path, str] = {}
    for done, path in enumerate(paths, start=1):
        if progress is not None:
            progress(done, len(paths))
        try:
            file = read_dicom_file(path)
        except InputError as error:
            damaged.setdefault(path.parent, str(error))
        else:
            if file is not None and file.is_image:
                images.append(file)
            elif file is not None and file.dataset.get("Modality") == "RTSTRUCT":
                sets.append(path)
    return images, sets, damaged


def _check_undamaged(files: Sequence[DicomFile], damaged: dict[Path, str]) -> None:
    # A damaged file may be the first or last slice, where no gap would betray that it is missing.
    for folder in dict.fromkeys(file.path.parent for file in files):
        if folder in damaged:
            raise InputError(damaged[folder])


def _series(uid: str, files: Sequence[DicomFile]) -> CtSeries:
    if not uid:
        raise InputError(f"{files[0].path}: SeriesInstanceUID is missing; export the series again from its source")
    for file in files:
        check_kind(file)
    if len(files) < FEWEST_SLICES:
        count = {1: "one-slice", 2: "two-slice"}[len(files)]
        raise InputError(
            f"{files[0].path}: belongs to a {count} series, at least {FEWEST_SLICES} slices are expected; "
            "export the whole scan"
        )
    slices = [read_slice(file) for file in files]
    _check_one_scan(slices)
    normal = _axial_normal(slices[0])
    slices.sort(key=lambda s: (float(s.position_mm @ normal), str(s.path)))
    geometry = _stack(slices, normal)
    return CtSeries(
        folder=slices[0].path.parent,
        files=tuple(s.path for s in slices),
        geometry=geometry,
        series_uid=uid,
        study_uid=slices[0].study_uid,
        frame_of_reference_uid=slices[0].frame_of_reference_uid,
        sop_uids=tuple(s.sop_uid for s in slices),
        positions_mm=np.array([s.position_mm for s in slices]),
        header=read_full_header(slices[0].path),
        slices=tuple(slices),
    )


def _check_one_scan(slices: Sequence[SliceHeader]) -> None:
    """Refuse slices that cannot all belong to one scan, naming one that differs from most."""
    advice = "separate the two scans into series of their own"
    _check_same(slices, "PatientID", lambda s: s.patient_id, None, advice)
    _check_same(slices, "StudyInstanceUID", lambda s: s.study_uid, lambda s: s.study_uid, advice)
    _check_same(
        slices,
        "FrameOfReferenceUID",
        lambda s: s.frame_of_reference_uid,
        lambda s: s.frame_of_reference_uid,
        advice,
    )
    _check_same(
        slices,
        "the matrix (rows x columns)",
        lambda s: (s.rows, s.columns),
        lambda s: f"{s.rows} x {s.columns}",
        advice,
    )
    _check_same(
        slices,
        "PixelSpacing",
        lambda s: tuple(np.rint(np.asarray(s.pixel_spacing_mm) / SAME_PIXEL_SPACING_TOLERANCE_MM).tolist()),
        lambda s: f"{s.pixel_spacing_mm[0]:g} x {s.pixel_spacing_mm[1]:g} mm",
        advice,
        lambda a, b: np.allclose(
            a.pixel_spacing_mm, b.pixel_spacing_mm, rtol=0, atol=SAME_PIXEL_SPACING_TOLERANCE_MM
        ),
    )
    _check_same(
        slices,
        "ImageOrientationPatient",
        lambda s: tuple(np.rint(s.orientation / SAME_DIRECTION_TOLERANCE).ravel().tolist()),
        lambda s: "\\".join(f"{value:.6g}" for value in s.orientation.ravel()),
        advice,
        lambda a, b: np.allclose(a.orientation, b.orientation, rtol=0, atol=SAME_DIRECTION_TOLERANCE),
    )
    _check_same(
        slices,
        "the pixel format (BitsAllocated, BitsStored, PixelRepresentation)",
        lambda s: s.bits,
        lambda s: str(s.bits),
        "export the series again",
    )
    by_uid: dict[str, SliceHeader] = {}
    for s in slices:
        twin = by_uid.setdefault(s.sop_uid, s)
        if twin is not s:
            raise InputError(f"{s.place}: is the same image as {twin.path}; keep one copy of each slice")


def _check_same(
    slices: Sequence[SliceHeader],
    field: str,
    key: Callable[[SliceHeader], Hashable],
    shown: Callable[[SliceHeader], str] | None,
    advice: str,
    same: Callable[[SliceHeader, SliceHeader], bool] | None = None,
) -> None:
    usual = Counter(map(key, slices)).most_common(1)[0][0]
    model = next(s for s in slices if key(s) == usual)
    for s in slices:
        if key(s) != usual and not (same is not None and same(s, model)):
            found = f"is {shown(s)}, but {shown(model)}" if shown is not None else "differs from that"
            raise InputError(f"{s.place}: {field} {found} in {model.path.name} and most others; {advice}")


def _axial_normal(header: SliceHeader) -> FloatArray:
    """The unit normal of the slices, towards the head.

    Raises:
        InputError: if the slices are not axial, or rows and columns do not follow the patient's axes.
    """
    rows_run, columns_run = header.orientation
    normal: FloatArray = np.cross(rows_run, columns_run)
    normal /= np.linalg.norm(normal)
    tilt = _degrees(normal[2])
    if tilt > AXIAL_TOLERANCE_DEGREES:
        raise InputError(
            f"{header.place}: ImageOrientationPatient tilts the slices by {tilt:.1f} degrees from axial, "
            f"at most {AXIAL_TOLERANCE_DEGREES:g} is accepted (gantry tilt, or a sagittal, coronal or oblique "
            "reformat); export an axial reconstruction"
        )
    turn = max(_degrees(rows_run[0]), _degrees(columns_run[1]))
    if turn > AXIAL_TOLERANCE_DEGREES:
        raise InputError(
            f"{header.place}: ImageOrientationPatient turns the image by {turn:.1f} degrees in its plane, "
            f"at most {AXIAL_TOLERANCE_DEGREES:g} is accepted; export slices whose rows run left-right "
            "and whose columns run front-back"
        )
    return normal if normal[2] > 0 else -normal


def _degrees(cosine: float) -> float:
    return float(np.degrees(np.arccos(min(1.0, abs(float(cosine))))))


def _stack(slices: Sequence[SliceHeader], normal: FloatArray) -> Geometry:
    """Check that sorted slices lie evenly above each other, and return their grid.

    Raises:
        InputError: a slice that is missing, doubled, unevenly spaced, or shifted within its plane.
    """
    positions = np.array([s.position_mm for s in slices])
    heights = positions @ normal
    gaps = np.diff(heights)
    typical = median_low(gaps.tolist())
    step_mm = float((heights[-1] - heights[0]) / (len(slices) - 1))
    tolerance = POSITION_TOLERANCE_MM + ROUNDING_MM
    even = f"differences up to {POSITION_TOLERANCE_MM} mm are accepted; export a reconstruction with even spacing"

    for k in np.flatnonzero(gaps <= DUPLICATE_TOLERANCE_MM).tolist():
        raise InputError(
            f"{slices[k + 1].place}: lies at the position of {slices[k].path.name}; "
            "two acquisitions or phases share this series, export one of them"
        )
    for k in np.flatnonzero(gaps > MISSING_SLICE_RATIO * typical).tolist():
        missing = max(1, round(gaps[k] / typical) - 1)
        raise InputError(
            f"{_place(slices, k)}: the next slice, {slices[k + 1].path.name}, lies {gaps[k]:.2f} mm further on, "
            f"expected {typical:.2f} mm: {missing} {'slice is' if missing == 1 else 'slices are'} missing; "
            "export the whole series"
        )
    for k in np.flatnonzero(np.abs(gaps - step_mm) > tolerance).tolist():
        raise InputError(
            f"{_place(slices, k)}: the next slice, {slices[k + 1].path.name}, lies {gaps[k]:.2f} mm further on, "
            f"the mean distance is {step_mm:.2f} mm and {even}"
        )
    affine = _affine(slices, normal, step_mm)
    shifts = positions - (affine[:3, 3] + np.arange(len(slices))[:, None] * affine[:3, 0])
    along = shifts @ normal
    across = np.linalg.norm(shifts - along[:, None] * normal, axis=1)
    for k in np.flatnonzero(np.abs(along) > tolerance).tolist():
        raise InputError(
            f"{_place(slices, k)}: lies {abs(along[k]):.2f} mm off its place on an even grid of {step_mm:.3f} mm, "
            f"{even}"
        )
    for k in np.flatnonzero(across > tolerance).tolist():
        raise InputError(
            f"{_place(slices, k)}: is shifted by {across[k]:.2f} mm within its plane, at most "
            f"{POSITION_TOLERANCE_MM} mm is accepted (a sheared stack, as from a tilted gantry); "
            "export an axial reconstruction"
        )
    return Geometry((len(slices), slices[0].rows, slices[0].columns), affine)


def _place(slices: Sequence[SliceHeader], k: int) -> str:
    return f"{slices[k].place} (slice {k + 1} of {len(slices)})"


def _affine(slices: Sequence[SliceHeader], normal: FloatArray, step_mm: float) -> FloatArray:
    first = slices[0]
    rows_run, columns_run = first.orientation
    row_spacing, column_spacing = first.pixel_spacing_mm
    step = (slices[-1].position_mm - first.position_mm) / (len(slices) - 1)
    leaning = float(np.linalg.norm(step - step_mm * normal))
    affine = np.eye(4)
    # A lean within the volume's own tolerance is kept, so that both ends are exact. More can only be the
    # rounding of a short stack (or is refused by the check of positions): there the normal is the truth.
    affine[:3, 0] = step if leaning <= 0.5 * SHEAR_TOLERANCE * step_mm else step_mm * normal
    # PixelSpacing is the distance between rows, then between columns; a column runs along increasing rows.
    affine[:3, 1] = columns_run * row_spacing
    affine[:3, 2] = rows_run * column_spacing
    affine[:3, 3] = first.position_mm
    return affine
