"""Checking a cohort before anyone trains on it: every problem found, not only the first."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from metricunet.cohort.case import Problem, check_case
from metricunet.cohort.layout import UNLABELED, Case, Cohort, read_cohort
from metricunet.cohort.splits import PATIENTS_NAME, cases_of_no_fold, patients_of, split_for
from metricunet.errors import InputError
from metricunet.progress import Progress
from metricunet.volume import Volume


def check_cohort(folder: Path, progress: Progress | None = None) -> list[Problem]:
    """Open every file of a cohort and return all problems, in the order of the cases.

    Raises:
        InputError: if the layout itself cannot be read.
    """
    cohort = read_cohort(folder)
    problems = list(_whole(cohort))
    try:
        patients = patients_of(folder)
    except InputError:
        patients = {}  # it is among the problems
    problems += _trained_and_tested(cohort, patients)
    cases = (*cohort.training, *cohort.test, *cohort.unlabeled)
    copies = _Copies(patients)
    for done, case in enumerate(cases, start=1):
        problems += check_case(case, cohort.info, copies)
        if progress is not None:
            progress(done, len(cases))
    return problems


def _whole(cohort: Cohort) -> Iterator[Problem]:
    try:
        split_for(cohort, 0)
        left, path = cases_of_no_fold(cohort)
    except InputError as error:
        yield Problem("", "error", str(error))
    else:
        if left:
            shown = ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
            message = (
                f"{path}: no fold names {shown}, so no training of a fold sees them; add them to its lists, or "
                "take the file away, so that folds are drawn anew"
            )
            yield Problem("", "warning", message)
    names = {case.name for case in cohort.training}
    for case in cohort.test:
        if case.name in names:
            yield Problem(case.name, "error", f"{case.image}: case {case.name} is in imagesTr and imagesTs")
    names |= {case.name for case in cohort.test}
    for case in cohort.unlabeled:
        if case.name in names:
            message = f"{case.image}: case {case.name} is in images{UNLABELED} and in imagesTr or imagesTs"
            yield Problem(case.name, "error", message)


def _trained_and_tested(cohort: Cohort, patients: Mapping[str, str]) -> Iterator[Problem]:
    """Name test cases whose patient the training sees in another case."""
    trained = {patients[case.name]: case.name for case in cohort.training if case.name in patients}
    for case in cohort.test:
        other = trained.get(patients[case.name]) if case.name in patients else None
        if other is not None and other != case.name:
            message = (
                f"{case.image}: its patient {patients[case.name]!r:.100} is that of training case {other}, too "
                f"({PATIENTS_NAME}), so its scores say nothing of new patients; move one of the two"
            )
            yield Problem(case.name, "warning", message)


class _Copies:
    """Finds scans that are there twice: as two patients they may come onto both sides of a fold.

    Args:
        patients: case to patient, as far as it is stated.
    """

    def __init__(self, patients: Mapping[str, str]) -> None:
        self._patients = patients
        self._first: dict[bytes, Case] = {}

    def __call__(self, case: Case, image: Volume) -> Iterator[str]:
        """Compare a scan with those before, voxel by voxel, in whatever type and order of axes they are stored."""
        digest = hashlib.sha256(str(image.canonical().array.shape).encode())
        for plane in image.canonical().array:
            digest.update(np.ascontiguousarray(plane, dtype=np.float32).tobytes())
        first = self._first.setdefault(digest.digest(), case)
        stated = self._patients.get(case.name)
        if first.name != case.name and (stated is None or stated != self._patients.get(first.name)):
            yield (
                f"{case.image}: is the very scan of case {first.name}, {first.image}, to the voxel; take one of "
                f"the two away, or give both one patient in {PATIENTS_NAME}, so that no fold parts them"
            )
