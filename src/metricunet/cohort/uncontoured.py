"""Scans that stage 2 can learn from though nobody contoured its target in them.

They come from three places: `imagesUnlabeled`, the training cases in which the target was not contoured
(`metricunet.cohort.contoured`), and the cases that `splits.json` lists as `unlabeled`.
"""

from __future__ import annotations

from dataclasses import replace

from metricunet.cohort.layout import UNLABELED, Case, Cohort
from metricunet.cohort.splits import Split, patients_of
from metricunet.errors import InputError


def uncontoured_cases(cohort: Cohort, split: Split, target: str) -> list[Case]:
    """Return the scans without contours of the target that a training may see, in the order of their names.

    Scans of a patient who is validated or tested on are left out, by `patients.json`.

    Args:
        cohort: the cohort.
        split: the split of the training.
        target: name of the target.

    Raises:
        InputError: a scan of imagesUnlabeled has the name of another case.
    """
    others = {case.name for case in (*cohort.training, *cohort.test)}
    for case in cohort.unlabeled:
        if case.name in others:
            raise InputError(
                f"{case.image}: case {case.name} is in images{UNLABELED} and in imagesTr or imagesTs; rename or "
                "remove one of them"
            )
    everything = tuple(cohort.info.labels)
    hidden, seen = set(split.unlabeled), set(split.train)
    found = [
        *cohort.unlabeled,
        *(replace(c, label=None, not_contoured=everything) for c in cohort.training if c.name in hidden),
        *(c for c in cohort.training if c.name in seen and target in c.not_contoured),
    ]
    unseen = unseen_cases(cohort, split)
    return sorted((c for c in found if c.name not in unseen), key=lambda c: c.name)


def unseen_cases(cohort: Cohort, split: Split) -> frozenset[str]:
    """Return the cases, of all kinds, whose patient is validated or tested on, by `patients.json`."""
    patients = patients_of(cohort.folder)
    unseen = {patients.get(name, name) for name in (*split.val, *(case.name for case in cohort.test))}
    cases = (*cohort.training, *cohort.test, *cohort.unlabeled)
    return frozenset(case.name for case in cases if patients.get(case.name, case.name) in unseen)
