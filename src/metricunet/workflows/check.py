"""Checking whatever lies at a path: a cohort, a scan in one file, or DICOM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from metricunet.cohort.case import Problem, check_scan
from metricunet.cohort.check import check_cohort
from metricunet.errors import InputError
from metricunet.files.dicom import find_series
from metricunet.files.scan import is_scan


def check(path: Path, progress: Callable[[int, int], None] | None = None) -> list[Problem]:
    """Return every problem at a path, cohort, scan or DICOM folder.

    Raises:
        InputError: nothing there that could be checked.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_file() and is_scan(path):
        return check_scan(path)
    if (path / "dataset.json").is_file() or (path / "imagesTr").is_dir():
        return check_cohort(path, progress)
    search = find_series(path)
    problems = [Problem(refused.series_uid, "error", refused.reason) for refused in search.refused]
    for series in search.series:
        try:
            series.read()
        except InputError as error:
            problems.append(Problem(series.case, "error", str(error)))
    return problems
