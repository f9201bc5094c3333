"""Checking a cohort before anyone trains on it: every problem found, not only the first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from metricunet.cohort.case import Problem, check_case
from metricunet.cohort.layout import UNLABELED, Cohort, read_cohort
from metricunet.cohort.splits import split_for
from metricunet.errors import InputError
from metricunet.progress import Progress


def check_cohort(folder: Path, progress: Progress | None = None) -> list[Problem]:
    """Open every file of a cohort and return all problems, in the order of the cases.

    Raises:
        InputError: if the layout itself cannot be read.
    """
    cohort = read_cohort(folder)
    problems = list(_whole(cohort))
    cases = (*cohort.training, *cohort.test, *cohort.unlabeled)
    for done, case in enumerate(cases, start=1):
        problems += check_case(case, cohort.info)
        if progress is not None:
            progress(done, len(cases))
    return problems


def _whole(cohort: Cohort) -> Iterator[Problem]:
    try:
        split_for(cohort, 0)
    except InputError as error:
        yield Problem("", "error", str(error))
    names = {case.name for case in cohort.training}
    for case in cohort.test:
        if case.name in names:
            yield Problem(case.name, "error", f"{case.image}: case {case.name} is in imagesTr and imagesTs")
    names |= {case.name for case in cohort.test}
    for case in cohort.unlabeled:
        if case.name in names:
            message = f"{case.image}: case {case.name} is in images{UNLABELED} and in imagesTr or imagesTs"
            yield Problem(case.name, "error", message)
