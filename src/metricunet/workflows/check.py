"""Checking whatever lies at a path: a cohort, a scan in one file, or DICOM."""

from __future__ import annotations

from pathlib import Path

from metricunet.cohort.case import Problem, check_image, check_scan
from metricunet.cohort.check import check_cohort
from metricunet.errors import InputError
from metricunet.files.dicom.stack import Allow
from metricunet.files.scan import is_scan
from metricunet.inference.inputs import scans_at
from metricunet.progress import Progress


def check(
    path: Path,
    progress: Progress | None = None,
    *,
    allow_gaps: bool = False,
    allow_tilt: bool = False,
) -> list[Problem]:
    """Return every problem at a path, cohort, scan or DICOM folder.

    What `predict` repairs with `allow_gaps` or `allow_tilt` is a warning with them, and an error without.

    Raises:
        InputError: nothing there that could be checked.
    """
    if path.is_dir() and ((path / "dataset.json").is_file() or (path / "imagesTr").is_dir()):
        return check_cohort(path, progress)
    if path.is_file() and is_scan(path):
        return check_scan(path)
    inputs, refused = scans_at(path, Allow(allow_gaps, allow_tilt))
    problems = [Problem(r.series_uid, "error" if r.is_scan else "warning", r.reason) for r in refused]
    for entry in inputs:
        if entry.series is None:
            problems += check_scan(entry.path)
            continue
        series = entry.series
        problems += [Problem(entry.case, "warning", f"{series.folder}: {note}") for note in series.notes]
        try:
            problems += check_image(entry.case, series.read(), entry.place)
        except InputError as error:
            problems.append(Problem(entry.case, "error", str(error)))
    if not inputs and not any(problem.severity == "error" for problem in problems):
        problems.append(Problem("", "error", f"{path}: holds no CT scan that could be segmented"))
    return problems
