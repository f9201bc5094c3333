"""The cases of a study: where training reads, and which cases are scored against which contours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from metricunet.cohort.layout import Case, Cohort, read_cohort
from metricunet.cohort.splits import PATIENTS_NAME, Fold, patients_of, split_for
from metricunet.engine import Engine
from metricunet.errors import InputError
from metricunet.files.atomic import write_text
from metricunet.files.own import OwnFiles
from metricunet.phantom import displace_cohort, make_cohort, reader_path
from metricunet.phantom.cohort import CohortPlan, case_name
from metricunet.phantom.displaced import check_displaced
from metricunet.progress import Progress
from metricunet.study.design import Labels, PhantomRecipe, Study

T = TypeVar("T")

#: The contours that every study has, and those of a reader whom no training has seen.
TRUTH, READER = "truth", "reader"
#: Who contours the training cases where labels are displaced, and who is never seen.
TRAINING_READER, UNSEEN_READER = 1, 2
#: The split of the phantoms, and the record that states its hash.
SPLIT_NAME, SPLIT_RECORD = "splits.json", ".splits-file.json"


@dataclass(frozen=True)
class ScoredCase:
    """A scan to segment, and the contours to hold the result against.

    Attributes:
        name: of the case.
        image: its scan.
        references: whose contours (`truth` first) to label file.
        not_contoured: structures that the references say nothing of.
    """

    name: str
    image: Path
    references: dict[str, Path]
    not_contoured: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudyData:
    """Where the cases lie.

    Attributes:
        cohorts: what training reads to the folder that holds it; None stands for the contours of a user's cohort.
            Scans and test cases are the same in all of them.
        has_test: whether test cases are scored; otherwise the validation cases of each fold.
    """

    cohorts: dict[Labels | None, Path]
    has_test: bool

    @property
    def cohort(self) -> Path:
        """The first of the folders."""
        return next(iter(self.cohorts.values()))


def study_data(
    study: Study, folder: Path, progress: Progress | None = None, engine: Engine | None = None
) -> StudyData:
    """Find the cases of a study, or make them where it is on phantoms.

    Args:
        study: as read.
        folder: of the study, for phantoms: data/, and data-displaced/ with a reader's training labels. What is
            there already is kept.
        progress: called with (done, all) while phantoms are made.
        engine: makes the phantoms; None for this process.

    Raises:
        InputError: a cohort that cannot be read, a test case without contours, or with the name of a training
            case, no case to score, or a folder with phantoms of another recipe, or with a split that somebody
            else wrote.
    """
    if study.cohort is not None:
        found = read_cohort(study.cohort)
        trained = {case.name for case in found.training}
        for case in found.test:
            if case.name in trained:
                raise InputError(
                    f"{case.image}: case {case.name} is in imagesTr and imagesTs, so a study would train on what "
                    "it tests; take it out of one of the two, or rename it where it is another scan"
                )
            if case.label is None:
                raise InputError(
                    f"{case.image}: test case {case.name} has no contours to score it against; add "
                    f"labelsTs/{case.name}.nii.gz, or take the image out of imagesTs"
                )
        if not found.test and "all" in study.folds:
            raise InputError(
                f"{study.path}: fold all validates on no case, and {study.cohort} has no test cases, so nothing "
                "would be scored; use numbered folds, or add imagesTs and labelsTs"
            )
        return StudyData({None: study.cohort}, bool(found.test))
    recipe = study.content.data.phantom
    assert recipe is not None
    kinds = dict.fromkeys(study.labels(arm) for arm in study.arms)
    clean, displaced = folder / "data", folder / "data-displaced"
    splits = [_Split(recipe, clean), *([_Split(recipe, displaced)] if "displaced" in kinds else [])]
    for split in splits:
        split.check()  # before any phantom is made
    if "displaced" in kinds:
        check_displaced(clean, displaced, _cohort_plan(recipe), TRAINING_READER)
    make_cohort(clean, **asdict(_cohort_plan(recipe)), progress=progress, engine=engine)
    if "displaced" in kinds:
        displace_cohort(clean, displaced, TRAINING_READER)
    for split in splits:
        split.write()
    return StudyData({kind: displaced if kind == "displaced" else clean for kind in kinds}, True)


def _cohort_plan(recipe: PhantomRecipe) -> CohortPlan:
    return CohortPlan(
        recipe.n_train + recipe.n_val + (recipe.n_unlabeled or 0),
        seed=recipe.seed,
        difficulty=recipe.difficulty,
        n_test=recipe.n_test,
        n_readers=UNSEEN_READER,
        test_difficulty=recipe.test_difficulty,
        gland_texture_hu=recipe.gland_texture_hu,
    )


def recipe_splits(recipe: PhantomRecipe) -> list[dict[str, list[str]]]:
    """Return splits.json of a recipe: one entry, or one for each replicate.

    Replicates take their contoured cases in turn from the training cases in a random order. When these are used
    up, they are shuffled anew, so that more replicates change none of the earlier ones.
    """
    first, known = recipe.n_train, recipe.n_train + recipe.n_val
    names = [case_name("Tr", number) for number in range(known + (recipe.n_unlabeled or 0))]
    if recipe.contoured is None:
        split = {"train": names[:first], "val": names[first:known]}
        return [split | {"unlabeled": names[known:]} if recipe.n_unlabeled else split]
    splits = []
    for replicate in range(recipe.replicates or 0):
        turn, place = divmod(replicate, first // recipe.contoured)
        # The cases' own seeds come from the same seed, with 0 and 1.
        order = np.random.default_rng(np.random.SeedSequence((recipe.seed, 2, turn))).permutation(first)
        chosen = {int(k) for k in order[place * recipe.contoured : (place + 1) * recipe.contoured]}
        splits.append(
            {
                "train": [name for k, name in enumerate(names) if k in chosen],
                "val": [],
                "unlabeled": [name for k, name in enumerate(names) if k not in chosen],
            }
        )
    return splits


class _Split:
    """splits.json of a folder of phantoms: replaced only while it is as a study wrote it."""

    def __init__(self, recipe: PhantomRecipe, folder: Path) -> None:
        self.own = OwnFiles(folder, SPLIT_RECORD, "study")
        self.path, self.text = folder / SPLIT_NAME, json.dumps(recipe_splits(recipe), indent=2) + "\n"

    def is_there(self) -> bool:
        """Whether the file says what it would say, whoever wrote it."""
        return self.path.is_file() and self.path.read_bytes() == self.text.encode("utf-8")

    def check(self) -> None:
        """Refuse to replace a file that is not a study's, or was changed since."""
        if not self.is_there():
            self.own.check([SPLIT_NAME], advice="move it elsewhere and run again, or choose another folder")

    def write(self) -> None:
        """Write the file where it is missing or says something else."""
        if not self.is_there():
            self.check()
            write_text(self.own.stage(SPLIT_NAME), self.text)
            self.own.commit({})


def references_of(study: Study) -> tuple[str, ...]:
    """Return whose contours the cases of a study are scored against; only phantoms have an unseen reader."""
    return (TRUTH,) if study.cohort is not None else (TRUTH, READER)


def scored_cases(data: StudyData, fold: Fold) -> tuple[ScoredCase, ...]:
    """List the cases that are scored in a fold."""
    cohort = read_cohort(data.cohort)
    if data.has_test:
        return tuple(_scored(case, data) for case in cohort.test)
    return tuple(_scored(case, data) for case in _named(cohort, split_for(cohort, fold).val))


def patients_seen(data: StudyData) -> str | None:
    """Say which test cases are of patients whom trainings see in another scan; None where none is known to be."""
    cohort, patients = read_cohort(data.cohort), patients_of(data.cohort)
    trained = {patients[case.name] for case in cohort.training if case.name in patients}
    known = [case.name for case in cohort.test if patients.get(case.name) in trained]
    if not known:
        return None
    shown = ", ".join(known[:3]) + (f" and {len(known) - 3} more" if len(known) > 3 else "")
    return (
        f"{len(known)} of the {len(cohort.test)} test cases ({shown}) are of patients of whom other scans are "
        f"training cases ({PATIENTS_NAME}), so their scores say nothing of new patients"
    )


def fitting_cases(data: StudyData, fold: Fold, most: int) -> tuple[ScoredCase, ...]:
    """List training cases of a fold with their true shapes, evenly spread over all of them.

    Probes of features are fitted on them, in every arm on the same contours: the true ones, where arms train on a
    reader's.

    Args:
        data: of the study.
        fold: whose training cases.
        most: how many at most.
    """
    cohort = read_cohort(data.cohorts.get("clean", data.cohort))
    cases = _named(cohort, split_for(cohort, fold).train)
    return tuple(
        ScoredCase(c.name, c.image, {TRUTH: _true_shape(c)}, c.not_contoured) for c in spread(cases, most)
    )


def spread(items: Sequence[T], most: int) -> list[T]:
    """Return at most so many of the items, evenly spread over them."""
    count = min(most, len(items))
    return [items[k * len(items) // count] for k in range(count)]


def _true_shape(case: Case) -> Path:
    """Return the true shape of a training case; its label is that of a reader where the truth lies beside it."""
    assert case.label is not None
    truth = case.label.parent.parent / "truthTr" / case.label.name
    return truth if truth.is_file() else case.label


def _named(cohort: Cohort, names: tuple[str, ...]) -> list[Case]:
    by_name = {case.name: case for case in cohort.training}
    return [by_name[name] for name in names]


def _scored(case: Case, data: StudyData) -> ScoredCase:
    assert case.label is not None
    references = {TRUTH: case.label}
    if None not in data.cohorts:
        references[READER] = reader_path(data.cohort, case.name, UNSEEN_READER, "Ts")
    return ScoredCase(case.name, case.image, references, case.not_contoured)
