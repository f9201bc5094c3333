"""What to segment: files of one scan, folders of them, or folders of DICOM series, as one list of cases."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metricunet.cohort.case import check_image
from metricunet.cohort.layout import CHANNEL_SUFFIX
from metricunet.errors import InputError, argument
from metricunet.files import slicer
from metricunet.files.dicom.series import STRICT, CtSeries, SeriesSearch, find_series, search_series
from metricunet.files.dicom.stack import Allow
from metricunet.files.own import FILES, read_sealed
from metricunet.files.record import sha256
from metricunet.files.reviews import QUALITY_SUFFIX, is_kept_apart
from metricunet.files.scan import case_name, is_scan, read_scan, scan_files
from metricunet.volume import Volume


@dataclass(frozen=True, eq=False)
class ScanInput:
    """One scan to segment. `series` is set where it is DICOM.

    Attributes:
        case: name of its outputs.
        path: the file (NIfTI, NRRD or MetaImage), or the folder of the series.
        series: the DICOM series; None for a file.
    """

    case: str
    path: Path
    series: CtSeries | None

    def read(self) -> Volume:
        """Read the scan in HU.

        Raises:
            InputError: unreadable, or not in Hounsfield units.
        """
        volume = read_scan(self.path) if self.series is None else self.series.read()
        for problem in check_image(self.case, volume, self.place):
            if problem.severity == "error":
                raise InputError(problem.message)
        return volume

    @property
    def place(self) -> str:
        """What messages call it: its file; or its folder and its series, for a folder may hold many of them."""
        if self.series is None:
            return str(self.path)
        return f"{self.series.folder}: series {self.series.series_uid}"

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for each fault of the scan that is repaired in reading it; a reason to look at the result."""
        return () if self.series is None else self.series.notes

    @property
    def patient_sex(self) -> str:
        """The patient's sex as the header of a series states it; empty where nothing states it."""
        return "" if self.series is None else self.series.patient_sex

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that it consists of.

        Raises:
            InputError: a header that cannot be read, or data that are missing.
        """
        # A file of many frames stands for each of its slices.
        return scan_files(self.path) if self.series is None else tuple(dict.fromkeys(self.series.files))

    def sha256(self) -> str:
        """Hash the contents of its files."""
        return sha256(self.files)

    def location(self, folder: Path) -> dict[str, str]:
        """Return where the scan lies, for a record in a folder: `path`, and `relative` to the folder.

        The path is that of the file, or of the folder that holds all files of the series. A folder that is moved
        together with its scans still finds them by the relative path.
        """
        path = self.path.resolve()
        if self.series is not None:
            path = Path(os.path.commonpath([file.resolve().parent for file in self.files]))
        try:
            relative = os.path.relpath(path, folder.resolve())
        except ValueError:  # on another drive
            relative = ""
        return {"path": str(path), "relative": relative}


@dataclass(frozen=True)
class Refused:
    """Something that cannot be segmented, and why.

    Attributes:
        path: where it was looked for.
        reason: one line.
        is_scan: False for a localizer and the like, which is no failure.
        series_uid: of a DICOM series.
        error: what stopped it, where nobody foresaw it; None for what was refused.
    """

    path: Path
    reason: str
    is_scan: bool = True
    series_uid: str = ""
    error: Exception | None = None


def check_models(models: Sequence[Path], reruns: int) -> None:
    """Refuse, before any work, what no scan can be segmented with.

    Args:
        models: the model files.
        reruns: how often stage 2 may run again.

    Raises:
        InputError: no model, or a negative number.
    """
    if not models:
        raise InputError(f"{argument('models')}: no model file is given; expected one, or several to be averaged")
    if reruns < 0:
        raise InputError(f"{argument('reruns')} must be 0 or more; got {reruns}")


def find_inputs(
    paths: Sequence[Path], series_uid: str | None = None, *, allow: Allow = STRICT, draw: bool = False
) -> tuple[list[ScanInput], list[Refused]]:
    """List the scans at the paths, and what was refused.

    Args:
        paths: files of one scan (NIfTI, NRRD, MetaImage), folders of them, or folders of DICOM files.
        series_uid: take this DICOM series alone, which each path must hold.
        allow: faults of DICOM series that are repaired rather than refused.
        draw: refuse what a structure set or segmentation cannot refer to. A file of one scan is refused where
            there are DICOM series beside it.

    Raises:
        InputError: a path does not exist or holds nothing to segment, the series is not there, two scans
            would get one name, or nothing is left that can be segmented.
    """
    inputs: list[ScanInput] = []
    refused: list[Refused] = []
    for path in paths:
        found, not_taken = scans_at(path, allow)
        usable = [entry.series.series_uid for entry in found if entry.series]
        if series_uid is not None:
            only_files = bool(found) and not usable and not any(r.series_uid for r in not_taken)
            found = [entry for entry in found if entry.series and entry.series.series_uid == series_uid]
            not_taken = [r for r in not_taken if r.series_uid == series_uid]
            if not found and not not_taken:
                if only_files:
                    raise InputError(
                        f"{path}: holds no DICOM series, and {argument('series')} names one; leave it out"
                    )
                here = ", ".join(usable) or "none"
                raise InputError(f"{path}: no series {series_uid}; usable series here: {here}")
        for entry in found:
            try:
                if draw and entry.series is not None:
                    entry.series.check_planes()
                inputs.append(entry)
            except InputError as error:
                refused.append(Refused(path, str(error)))
        refused += not_taken
    if draw and any(entry.series for entry in inputs):
        plain = [entry for entry in inputs if entry.series is None]
        inputs = [entry for entry in inputs if entry.series is not None]
        refused += [
            Refused(entry.path, f"{entry.path}: is no DICOM series that a structure set could refer to")
            for entry in plain
        ]
    names: dict[str, Path] = {}
    for entry in inputs:
        if entry.case in names:
            raise InputError(
                f"{entry.path}: case {entry.case} is there twice (see {names[entry.case]}); outputs would "
                "overwrite each other, so predict them into two folders"
            )
        names[entry.case] = entry.path
    if not inputs:
        raise nothing_left(refused)
    return inputs, refused


def nothing_left(refused: Sequence[Refused]) -> InputError:
    """Return the error where nothing can be segmented: one reason, of a scan if any, and how many more."""
    if not refused:
        return InputError("nothing to segment")
    first = min(refused, key=lambda entry: not entry.is_scan)
    error = InputError(first.reason + (f" ({len(refused) - 1} more were refused)" if len(refused) > 1 else ""))
    error.__cause__ = first.error
    return error


def scans_at(path: Path, allow: Allow = STRICT) -> tuple[list[ScanInput], list[Refused]]:
    """List the scans at one path, and what else is there, whether or not any can be segmented.

    A folder may hold files of one scan, DICOM, or both. Masks that this program left there are no scans, nor are
    segmentations of 3D Slicer.

    Raises:
        InputError: no such path, one that cannot be read, or nothing there that could be a scan.
    """
    try:
        return _scans_at(path, allow)
    except OSError as error:
        raise InputError(
            f"{error.filename or path}: cannot be read ({error.strerror or error}); check its name and permissions"
        ) from error


def _scans_at(path: Path, allow: Allow) -> tuple[list[ScanInput], list[Refused]]:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_file() and is_scan(path):
        return [_of_file(path)], []
    if not path.is_dir():
        return _of_search(path, find_series(path, allow))
    files = sorted(p for p in path.iterdir() if _may_be_scan(p) and not p.name.startswith("."))
    own = {p for p in files if is_output(p)}
    files = [p for p in files if p not in own]
    search = search_series(path, allow)
    if not search.series:
        if files:
            return [_of_file(p) for p in files], [r for r in _of_search(path, search)[1] if r.is_scan]
        if not search.refused:
            raise InputError(f"{path}: holds no CT scan; {_what_is_there(path, bool(own))}")
    found, refused = _of_search(path, search)
    for file in files:
        # Beside DICOM lie masks as often as scans: what is no CT is left out.
        try:
            entry = _of_file(file)
            entry.read()
            found.append(entry)
        except InputError as error:
            refused.append(Refused(file, str(error), is_scan=False))
    return found, refused


def _may_be_scan(path: Path) -> bool:
    """Tell by its name whether a path is a file of one scan, and no segmentation of 3D Slicer."""
    return is_scan(path) and not slicer.is_segmentation(path) and path.is_file()


def is_output(path: Path) -> bool:
    """Tell whether a file is the mask or the probabilities that a prediction or a review left, changed or not."""
    if is_kept_apart(path):
        return True
    verdict = read_sealed(path.with_name(f"{case_name(path)}{QUALITY_SUFFIX}"))
    return verdict is not None and path.name in verdict[FILES]


def _of_file(path: Path) -> ScanInput:
    return ScanInput(case_name(path).removesuffix(CHANNEL_SUFFIX), path, None)


def _of_search(path: Path, search: SeriesSearch) -> tuple[list[ScanInput], list[Refused]]:
    found = [ScanInput(series.case, path, series) for series in search.series]
    return found, [Refused(path, r.reason, r.is_scan, r.series_uid, r.error) for r in search.refused]


def _what_is_there(path: Path, own: bool) -> str:
    """Say what a folder holds in place of scans, and what to do."""
    if own:
        return "only masks that this program made; give the folder of the scans"
    below = next((p for p in sorted(path.rglob("*")) if _may_be_scan(p)), None)
    if below is not None:
        return f"but files of scans lie in folders below it, such as {below}; name these files or their folders"
    return "give a file of a scan, or the folder of a DICOM series"
