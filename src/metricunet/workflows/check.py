"""Checking whatever lies at a path: a cohort, a scan in one file, or DICOM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from metricunet.cohort.case import Problem, check_image, check_scan
from metricunet.cohort.check import check_cohort
from metricunet.errors import InputError
from metricunet.files.dicom.series import find_series
from metricunet.files.dicom.stack import Allow
from metricunet.files.scan import is_scan


def check(
    path: Path,
    progress: Callable[[int, int], None] | None = None,
    *,
    allow_gaps: bool = False,
    allow_tilt: bool = False,
) -> list[Problem]:
    """Return every problem at a path, cohort, scan or DICOM folder.

    What `predict` repairs with `allow_gaps` or `allow_tilt` is a warning with them, and an error without.

    Raises:
        InputError: nothing there that could be checked.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_file() and is_scan(path):
        return check_scan(path)
    if (path / "dataset.json").is_file() or (path / "imagesTr").is_dir():
        return check_cohort(path, progress)
    search = find_series(path, Allow(allow_gaps, allow_tilt))
    problems = [Problem(r.series_uid, "error" if r.is_scan else "warning", r.reason) for r in search.refused]
    for series in search.series:
        problems += [Problem(series.case, "warning", f"{series.folder}: {note}") for note in series.notes]
        try:
            problems += check_image(series.case, series.read(), series.folder)
        except InputError as error:
            problems.append(Problem(series.case, "error", str(error)))
    return problems
