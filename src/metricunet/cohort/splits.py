"""Splits of a cohort into training and validation cases, as nnU-Net writes them; no patient on both sides."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from metricunet.cohort.layout import Cohort
from metricunet.errors import InputError
from metricunet.files.json_file import read_json

Fold = int | Literal["all"]
DEFAULT_FOLDS = 5
#: Cross-validation of fewer would train on a single patient.
FEWEST_PATIENTS = 3
#: The first that exists decides.
SPLITS_NAMES = ("splits.json", "splits_final.json")
PATIENTS_NAME = "patients.json"


@dataclass(frozen=True)
class Split:
    """Names of the cases to train and to validate on.

    Attributes:
        train: cases to train on.
        val: cases to validate on.
        unlabeled: cases whose labels are not to be read, as if nobody had contoured them.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    unlabeled: tuple[str, ...] = ()

    def revealed(self, unseen: Collection[str] = ()) -> Split:
        """Return the split in which labels that were not to be read are read after all.

        Args:
            unseen: cases that no training may see, see `metricunet.cohort.uncontoured.unseen_cases`; they are left
                out.
        """
        return Split((*self.train, *(name for name in self.unlabeled if name not in unseen)), self.val)


def split_for(cohort: Cohort, fold: Fold, seed: int = 0) -> Split:
    """Return the split of one fold.

    `splits.json` of the cohort decides where it exists, and after it `splits_final.json`, as nnU-Net names it.
    Beside `train` and `val` an entry may list cases as `unlabeled`, whose labels are not read then. Otherwise five
    folds (fewer where there are fewer patients) are drawn with `seed`. `all` trains on every case and validates on
    none.

    Raises:
        InputError: unknown fold, a split that names unknown cases or has a patient on both sides, or too few
            patients to leave any out.
    """
    if fold == "all":
        return Split(tuple(case.name for case in cohort.training), ())
    splits, _ = _splits(cohort, seed)
    if not 0 <= fold < len(splits):
        raise InputError(f"fold {fold}: this cohort has folds 0 to {len(splits) - 1}; or use fold all")
    return splits[fold]


def cross_validation_splits(cohort: Cohort, seed: int = 0) -> list[Split]:
    """Return the splits of all folds, of which no two validate on one case; `split_for` says where they are from.

    Raises:
        InputError: as `split_for`; too few patients or folds, a fold that validates on nothing, or a case that two
            folds validate on.
    """
    splits, path = _splits(cohort, seed)
    if path is None:
        patients = len(set(read_patients(cohort).values()))
        if patients < FEWEST_PATIENTS:
            raise InputError(
                f"{cohort.folder}: {patients} patients; cross-validation needs {FEWEST_PATIENTS} or more, so that "
                "each fold trains on two and validates on another. Add cases, or train without validation (fold "
                "all)"
            )
        return splits
    if len(splits) < 2:
        raise InputError(f"{path}: lists {len(splits)} fold; cross-validation needs 2 or more: train fold 0 alone")
    seen: dict[str, int] = {}
    for fold, split in enumerate(splits):
        if not split.val:
            raise InputError(f"{path}: fold {fold} validates on no case (val); cross-validation scores each fold")
        for name in split.val:
            if name in seen:
                raise InputError(
                    f"{path}: folds {seen[name]} and {fold} both validate on case {name[:100]!r}, so it would be "
                    "scored twice; cross-validation needs each case in the val of one fold: train such folds "
                    "singly"
                )
            seen[name] = fold
    return splits


def cases_of_no_fold(cohort: Cohort) -> tuple[tuple[str, ...], Path | None]:
    """Return the training cases that no fold names, as those that came after the folds; and the file of the folds.

    Raises:
        InputError: as `split_for`.
    """
    splits, path = _splits(cohort, seed=0)
    named = {name for split in splits for name in (*split.train, *split.val, *split.unlabeled)}
    return tuple(case.name for case in cohort.training if case.name not in named), path


def _splits(cohort: Cohort, seed: int) -> tuple[list[Split], Path | None]:
    """Return the splits of all folds, and the file that they were read from; None where they were drawn."""
    names = tuple(case.name for case in cohort.training)
    patients = read_patients(cohort)
    path = next((p for name in SPLITS_NAMES if (p := cohort.folder / name).is_file()), None)
    splits = _draw(cohort.folder, names, patients, seed) if path is None else _read(path, names, patients)
    return splits, path


def read_patients(cohort: Cohort) -> dict[str, str]:
    """Map each training case to its patient: `patients.json` where it exists, else each case is its own."""
    names = [case.name for case in cohort.training]
    path = cohort.folder / PATIENTS_NAME
    if not path.is_file():
        return {name: name for name in names}
    content = patients_of(cohort.folder)
    missing = [name for name in names if name not in content]
    if missing:
        raise InputError(f"{path}: case {missing[0]} has no patient ({len(missing)} in all); add them")
    return {name: content[name] for name in names}


def patients_of(folder: Path) -> dict[str, str]:
    """Return what patients.json says, case to patient; nothing where there is none.

    Raises:
        InputError: not such a file.
    """
    path = folder / PATIENTS_NAME
    if not path.is_file():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object of case to patient; found {type(content).__name__}")
    for case, patient in content.items():
        # One word for nobody knows who would make one patient of many.
        if isinstance(patient, bool) or not isinstance(patient, str | int) or not str(patient).strip():
            raise InputError(
                f"{path}: case {case[:100]!r} has the patient {patient!r:.100}; expected a name or number; where "
                "nobody knows the patient, give the case one of its own"
            )
    return {str(case): str(patient) for case, patient in content.items()}


def _draw(folder: Path, names: Sequence[str], patients: dict[str, str], seed: int) -> list[Split]:
    groups = sorted(set(patients.values()))
    if len(groups) < 2:
        raise InputError(
            f"{folder}: {len(groups)} patient; at least 2 are needed to leave one out for validation. Add cases, "
            "or train without validation (fold all)"
        )
    random.Random(seed).shuffle(groups)
    folds = min(DEFAULT_FOLDS, len(groups))
    side = {group: k % folds for k, group in enumerate(groups)}
    return [
        Split(
            tuple(n for n in names if side[patients[n]] != k),
            tuple(n for n in names if side[patients[n]] == k),
        )
        for k in range(folds)
    ]


def _read(path: Path, names: Sequence[str], patients: dict[str, str]) -> list[Split]:
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise InputError(f'{path}: expected a list of {{"train": [...], "val": [...]}}')
    splits = []
    for k, entry in enumerate(content):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(s), list) for s in ("train", "val")):
            raise InputError(f"{path}: fold {k} needs the lists train and val")
        rest = entry.get("unlabeled", [])
        if not isinstance(rest, list):
            raise InputError(f"{path}: fold {k}: unlabeled is to be a list of cases; found {rest!r:.100}")
        train, val, unlabeled = (tuple(str(n) for n in part) for part in (entry["train"], entry["val"], rest))
        for name in (*train, *val, *unlabeled):
            if name not in names:
                raise InputError(f"{path}: fold {k} names case {name[:100]!r}, which is no training case")
        for part, listed in {"train": train, "val": val, "unlabeled": unlabeled}.items():
            if twice := next((name for name in listed if listed.count(name) > 1), None):
                raise InputError(f"{path}: fold {k} names case {twice[:100]!r} twice in {part}")
        if both := {*train, *val} & {*unlabeled}:
            raise InputError(f"{path}: fold {k} has case {min(both)[:100]!r} with labels and without (unlabeled)")
        shared = {patients[n] for n in train} & {patients[n] for n in val}
        if shared:
            raise InputError(f"{path}: fold {k} has patient {min(shared)[:100]!r} in both train and val")
        if not train:
            raise InputError(f"{path}: fold {k} has no training case")
        splits.append(Split(train, val, unlabeled))
    return splits
