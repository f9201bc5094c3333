"""Which cases a study trains on and scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from metricunet.cohort.contoured import CONTOURED_NAME, contoured_content
from metricunet.cohort.layout import read_cohort
from metricunet.cohort.splits import split_for
from metricunet.errors import InputError
from metricunet.study.data import (
    StudyData,
    fitting_cases,
    patients_seen,
    recipe_splits,
    scored_cases,
    spread,
    study_data,
)
from metricunet.study.design import PhantomRecipe, load_study
from tests.study.conftest import write_study
from tests.support.cohorts import edit_json, make_tiny_cohort


def test_phantoms_are_split_as_the_recipe_says(tmp_path: Path, quick_phantoms: None) -> None:
    recipe = {"n_train": 2, "n_val": 1, "n_test": 1, "seed": 5, "difficulty": "easy"}
    study = load_study(write_study(tmp_path / "s.yaml", tmp_path, data={"phantom": recipe}))
    seen: list[tuple[int, int]] = []
    data = study_data(study, tmp_path / "out", lambda done, total: seen.append((done, total)))
    assert seen[-1] == (4, 4)
    split = split_for(read_cohort(data.cohort), 0)
    assert (split.train, split.val) == (("phantom_0000", "phantom_0001"), ("phantom_0002",))
    (case,) = scored_cases(data, 0)
    assert case.name == "phantom_ts0000"
    assert case.references == {
        "truth": data.cohort / "labelsTs" / "phantom_ts0000.nii.gz",
        "reader": data.cohort / "reader2Ts" / "phantom_ts0000.nii.gz",
    }
    assert all(path.is_file() for path in case.references.values())
    # What is there is kept; another recipe is not mixed into it.
    made = {p: p.stat().st_mtime_ns for p in data.cohort.rglob("*.nii.gz")}
    assert study_data(study, tmp_path / "out") == data
    assert {p: p.stat().st_mtime_ns for p in data.cohort.rglob("*.nii.gz")} == made
    # A second kind of labels is of the same scans, in the same split, and scored alike.
    arms = {"clean": {}, "displaced": {"labels": "displaced"}}
    both = study_data(
        load_study(write_study(tmp_path / "u.yaml", tmp_path, data={"phantom": recipe}, arms=arms)),
        tmp_path / "out",
    )
    assert list(both.cohorts) == ["clean", "displaced"]
    first, second = (read_cohort(folder) for folder in both.cohorts.values())
    assert split_for(first, 0) == split_for(second, 0) == split
    for one, two in zip(first.training, second.training, strict=True):
        assert one.image.samefile(two.image)
        assert one.label is not None
        assert two.label is not None
        drawn = first.folder / "reader1Tr" / one.label.name
        assert two.label.read_bytes() == drawn.read_bytes() != one.label.read_bytes()
    assert scored_cases(both, 0) == scored_cases(data, 0)
    other = load_study(write_study(tmp_path / "t.yaml", tmp_path, data={"phantom": recipe | {"seed": 6}}))
    with pytest.raises(InputError, match="made with seed 5, not 6"):
        study_data(other, tmp_path / "out")
    # The split is the study's to replace while it is as it wrote it.
    _check_split(data.cohort / "splits.json", tmp_path)


def test_further_phantoms_are_unlabeled_and_change_no_other(tmp_path: Path, quick_phantoms: None) -> None:
    recipe = {"n_train": 2, "n_val": 1, "n_test": 1, "seed": 5}
    plans = {"plain": recipe, "more": recipe | {"n_unlabeled": 2}}
    cohorts = {}
    for name, plan in plans.items():
        study = load_study(write_study(tmp_path / f"{name}.yaml", tmp_path, data={"phantom": plan}))
        cohorts[name] = study_data(study, tmp_path / name).cohort
    split = split_for(read_cohort(cohorts["more"]), 0)
    assert split.unlabeled == ("phantom_0003", "phantom_0004")
    assert split.train == split_for(read_cohort(cohorts["plain"]), 0).train
    assert split.revealed().train == ("phantom_0000", "phantom_0001", "phantom_0003", "phantom_0004")
    for file in cohorts["plain"].rglob("*.nii.gz"):
        twin = cohorts["more"] / file.relative_to(cohorts["plain"])
        assert twin.read_bytes() == file.read_bytes()


def test_each_replicate_has_contoured_cases_of_its_own(tmp_path: Path, quick_phantoms: None) -> None:
    recipe = {"n_train": 7, "n_test": 1, "seed": 5, "contoured": 2, "replicates": 5, "labels": "displaced"}
    study = load_study(write_study(tmp_path / "s.yaml", tmp_path, data={"phantom": recipe}))
    data = study_data(study, tmp_path / "out")
    cohort = read_cohort(data.cohort)
    splits = [split_for(cohort, fold) for fold in study.folds]
    names = tuple(f"phantom_{k:04d}" for k in range(7))
    for split in splits:
        assert (len(split.train), split.val) == (2, ())
        assert tuple(sorted(split.train + split.unlabeled)) == names
        assert split.train == tuple(sorted(split.train))
        assert sorted(split.revealed().train) == list(names)
    # Three replicates share no case; then the cases are shuffled anew.
    assert len({name for split in splits[:3] for name in split.train}) == 6
    assert not set(splits[3].train) & set(splits[4].train)
    order = np.random.default_rng(np.random.SeedSequence((5, 2, 0))).permutation(7)
    assert splits[1].train == tuple(sorted(names[k] for k in order[2:4]))
    assert [case.name for case in scored_cases(data, 0)] == [case.name for case in scored_cases(data, 4)]


def test_more_replicates_change_none_of_the_earlier_ones_and_the_seed_does() -> None:
    def splits(**changes: int) -> list[dict[str, list[str]]]:
        recipe = {"n_train": 60, "n_test": 1, "seed": 7, "contoured": 5, "replicates": 10} | changes
        return recipe_splits(PhantomRecipe.model_validate(recipe))

    assert splits(replicates=30)[:10] == splits()
    assert len({name for split in splits() for name in split["train"]}) == 50
    assert splits(seed=8) != splits()


def test_test_phantoms_of_another_difficulty(tmp_path: Path, quick_phantoms: None) -> None:
    recipe = {"n_train": 2, "n_test": 1, "test_difficulty": "varied"}
    study = load_study(write_study(tmp_path / "s.yaml", tmp_path, data={"phantom": recipe}))
    data = study_data(study, tmp_path / "out")
    assert json.loads((data.cohort / "phantoms.json").read_text())["recipe"]["test_difficulty"] == "varied"
    assert split_for(read_cohort(data.cohort), 0).val == ()


def _check_split(split: Path, tmp_path: Path) -> None:
    def with_split(n_train: int, n_val: int) -> None:
        recipe = {"n_train": n_train, "n_val": n_val, "n_test": 1, "seed": 5, "difficulty": "easy"}
        study_data(
            load_study(write_study(tmp_path / "v.yaml", tmp_path, data={"phantom": recipe})), tmp_path / "out"
        )

    with_split(2, 2)
    first = split.read_bytes()
    with_split(3, 1)
    assert json.loads(first)[0]["train"] == ["phantom_0000", "phantom_0001"]
    assert json.loads(split.read_text())[0]["val"] == ["phantom_0003"]
    split.write_text("mine")
    with pytest.raises(InputError, match=r"splits\.json: is there already, .*move it elsewhere") as error:
        with_split(2, 2)
    assert "\n" not in str(error.value)
    assert split.read_text() == "mine"
    split.unlink()
    with_split(2, 2)
    assert split.read_bytes() == first
    (split.parent / ".splits-file.json").unlink()  # as an earlier version left it: good while it need not change
    with_split(2, 2)
    with pytest.raises(InputError, match=r"splits\.json: is there already"):
        with_split(3, 1)


def test_cases_to_fit_probes_on_say_what_nobody_contoured(tmp_path: Path) -> None:
    """Else what nobody drew would be background to the probes."""
    cohort = make_tiny_cohort(tmp_path / "cohort", 4)
    edit_json(cohort / "dataset.json", labels={"background": 0, "prostate": 1, "bladder": 2})
    drawn = {f"case_{k:02d}": ["prostate", "bladder"][: 1 if k == 2 else 2] for k in range(4)}
    (cohort / CONTOURED_NAME).write_text(json.dumps(contoured_content(drawn)))
    data = study_data(load_study(write_study(tmp_path / "s.yaml", cohort)), tmp_path / "out")
    found = {case.name: case for fold in range(4) for case in fitting_cases(data, fold, 12)}
    assert {name: case.not_contoured for name, case in found.items()} == {
        name: ("bladder",) if name == "case_02" else () for name in drawn
    }


def test_without_test_cases_each_fold_scores_those_it_leaves_out(tmp_path: Path) -> None:
    cohort = make_tiny_cohort(tmp_path / "cohort", 4)
    data = study_data(load_study(write_study(tmp_path / "s.yaml", cohort)), tmp_path / "out")
    scored = [case.name for fold in range(4) for case in scored_cases(data, fold)]
    assert sorted(scored) == ["case_00", "case_01", "case_02", "case_03"]
    with pytest.raises(InputError, match="fold all validates on no case"):
        study_data(load_study(write_study(tmp_path / "t.yaml", cohort, folds=["all"])), tmp_path / "out")


def test_a_test_case_without_contours_is_refused(tmp_path: Path) -> None:
    cohort = make_tiny_cohort(tmp_path / "cohort", 3, 2)
    (cohort / "labelsTs" / "case_04.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case_04_0000.*no contours.*add labelsTs/case_04"):
        study_data(load_study(write_study(tmp_path / "s.yaml", cohort)), tmp_path / "out")


def test_a_sample_is_spread_over_all() -> None:
    assert spread(range(10), 3) == [0, 3, 6]
    assert spread(range(2), 3) == [0, 1]
    assert spread([], 3) == []


def test_a_test_case_with_the_name_of_a_training_case_is_refused(tmp_path: Path) -> None:
    cohort = make_tiny_cohort(tmp_path / "cohort", 2, 1)
    study = load_study(write_study(tmp_path / "s.yaml", cohort))
    assert study_data(study, tmp_path / "out").has_test
    for kind, name in (("images", "case_{}_0000.nii.gz"), ("labels", "case_{}.nii.gz")):
        (cohort / f"{kind}Ts" / name.format("02")).rename(cohort / f"{kind}Ts" / name.format("01"))
    with pytest.raises(InputError, match=r"imagesTs.*case case_01 is in imagesTr and imagesTs, so a study would"):
        study_data(study, tmp_path / "out")


def test_test_cases_of_patients_whom_trainings_see_are_named(tmp_path: Path) -> None:
    cohort = make_tiny_cohort(tmp_path / "cohort", 2, 2)
    data = StudyData({None: cohort}, has_test=True)
    assert patients_seen(data) is None
    people = {"case_00": "A", "case_01": "B", "case_02": "C", "case_03": "B"}
    (cohort / "patients.json").write_text(json.dumps(people))
    assert (patients_seen(data) or "").startswith("1 of the 2 test cases (case_03) are of patients of whom other")
    (cohort / "patients.json").write_text(json.dumps(people | {"case_03": "D"}))
    assert patients_seen(data) is None
    (cohort / "patients.json").write_text(json.dumps({"case_00": "A", "case_01": "B"}))  # of nobody else
    assert patients_seen(data) is None
