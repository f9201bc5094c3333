"""Scans without contours: where they lie, who may learn from them, and what is prepared of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from metricunet.cohort.check import check_cohort
from metricunet.cohort.layout import Cohort, read_cohort
from metricunet.cohort.prepare import OrgansSettings, PrepareSettings, prepare, prepare_located
from metricunet.cohort.splits import Split, split_for
from metricunet.cohort.uncontoured import uncontoured_cases, unseen_cases
from metricunet.errors import InputError
from metricunet.files.json_file import read_json
from metricunet.stages.locate import localise
from metricunet.structures import IGNORE_CLASS
from tests.support.cohorts import make_organs_cohort, make_tiny_cohort, write_dataset_json

SETTINGS = PrepareSettings("prostate", (6.0, 6.0, 6.0), (4.0, 2.0, 2.0), (80.0, 96.0, 96.0))


def unlabel(folder: Path, *names: str) -> None:
    """Move cases out of imagesTr, and drop their labels."""
    (folder / "imagesUnlabeled").mkdir(exist_ok=True)
    for name in names:
        shutil.move(folder / "imagesTr" / f"{name}_0000.nii.gz", folder / "imagesUnlabeled")
        (folder / "labelsTr" / f"{name}.nii.gz").unlink()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cohort = make_tiny_cohort(tmp_path / "cohort", 5, 1)
    unlabel(cohort, "case_03", "case_04")
    return cohort


def names(cohort: Cohort, split: Split) -> list[str]:
    return [case.name for case in uncontoured_cases(cohort, split, "prostate")]


def test_they_are_found_and_checked_and_are_no_training_cases(folder: Path) -> None:
    cohort = read_cohort(folder)
    assert [case.name for case in cohort.training] == ["case_00", "case_01", "case_02"]
    assert [(c.name, c.label, c.not_contoured) for c in cohort.unlabeled] == [
        ("case_03", None, ("prostate",)),
        ("case_04", None, ("prostate",)),
    ]
    assert check_cohort(folder) == []
    (folder / "imagesUnlabeled" / "case_03_0000.nii.gz").write_bytes(b"no scan")
    (problem,) = check_cohort(folder)
    assert (problem.case, problem.severity) == ("case_03", "error")


def test_a_name_that_occurs_twice_is_an_error(folder: Path) -> None:
    for name in ("case_00", "case_05"):
        source = next(folder.glob(f"images*/{name}_0000.nii.gz"))
        shutil.copy(source, folder / "imagesUnlabeled")
        problems = [str(p) for p in check_cohort(folder)]
        assert any(f"case {name} is in imagesUnlabeled and in imagesTr or imagesTs" in p for p in problems)
        with pytest.raises(InputError, match=f"case {name} is in imagesUnlabeled and in imagesTr or imagesTs"):
            uncontoured_cases(read_cohort(folder), Split(("case_00",), ()), "prostate")
        (folder / "imagesUnlabeled" / f"{name}_0000.nii.gz").unlink()


@pytest.mark.parametrize("structures", ["[]", '["prostate"]'])
def test_of_a_scan_without_labels_nothing_counts_as_contoured(folder: Path, structures: str) -> None:
    (folder / "contoured.json").write_text(f'{{"case_03": {structures}}}')
    assert [case.not_contoured for case in read_cohort(folder).unlabeled] == [("prostate",)] * 2


def test_labels_beside_scans_without_labels_are_an_error(folder: Path) -> None:
    (folder / "labelsUnlabeled").mkdir()
    shutil.copy(folder / "labelsTr" / "case_00.nii.gz", folder / "labelsUnlabeled" / "case_03.nii.gz")
    with pytest.raises(InputError, match="labels of a scan in imagesUnlabeled; move the two to labelsTr"):
        read_cohort(folder)


def test_patients_who_are_validated_or_tested_on_are_left_out(folder: Path) -> None:
    cohort, split = read_cohort(folder), Split(("case_00", "case_01"), ("case_02",))
    assert names(cohort, split) == ["case_03", "case_04"]
    patients = {f"case_{k:02d}": f"p{k}" for k in range(6)}
    (folder / "patients.json").write_text(json.dumps(patients | {"case_03": "p2"}))
    assert names(cohort, split) == ["case_04"]
    (folder / "patients.json").write_text(json.dumps(patients | {"case_03": "p0", "case_04": "p5"}))
    assert names(cohort, split) == ["case_03"]


def test_labels_that_are_read_after_all_are_of_no_patient_who_is_validated_or_tested_on(folder: Path) -> None:
    entry = {"train": ["case_00"], "val": ["case_01"], "unlabeled": ["case_02"]}
    (folder / "splits.json").write_text(json.dumps([entry]))
    patients = {f"case_{k:02d}": f"p{k}" for k in range(6)}
    for patient, train in (("p2", ("case_00", "case_02")), ("p1", ("case_00",)), ("p5", ("case_00",))):
        (folder / "patients.json").write_text(json.dumps(patients | {"case_02": patient}))
        cohort = read_cohort(folder)
        split = split_for(cohort, 0)
        assert split.revealed(unseen_cases(cohort, split)) == Split(train, ("case_01",))


def test_a_split_may_hide_labels(folder: Path) -> None:
    entry = {"train": ["case_00"], "val": [], "unlabeled": ["case_01", "case_02"]}
    (folder / "splits.json").write_text(json.dumps([entry]))
    cohort = read_cohort(folder)
    split = split_for(cohort, 0)
    assert split == Split(("case_00",), (), ("case_01", "case_02"))
    assert names(cohort, split) == ["case_01", "case_02", "case_03", "case_04"]
    assert all(case.label is None for case in uncontoured_cases(cohort, split, "prostate"))


@pytest.mark.parametrize(
    ("unlabeled", "words"),
    [
        (["case_00"], "fold 0 has case 'case_00' with labels and without"),
        (["case_09"], "fold 0 names case 'case_09', which is no training case"),
        ("case_01", "fold 0: unlabeled is to be a list of cases"),
    ],
)
def test_splits_that_hide_what_they_cannot(folder: Path, unlabeled: object, words: str) -> None:
    (folder / "splits.json").write_text(json.dumps([{"train": ["case_00"], "val": [], "unlabeled": unlabeled}]))
    with pytest.raises(InputError, match=words):
        split_for(read_cohort(folder), 0)


def test_training_cases_without_contours_of_the_target_are_among_them(tmp_path: Path) -> None:
    folder = make_tiny_cohort(tmp_path / "cohort", 4, absent=[2, 3])
    write_dataset_json(folder, {"prostate": 1, "bladder": 2}, 4, "", "synthetic")
    contoured = {"case_01": ["prostate"], "case_02": ["bladder"], "case_03": ["bladder"]}
    (folder / "contoured.json").write_text(json.dumps(contoured))
    cohort = read_cohort(folder)
    found = uncontoured_cases(cohort, Split(("case_00", "case_01", "case_02"), ("case_03",)), "prostate")
    assert [(case.name, case.label is None) for case in found] == [("case_02", False)]


def test_what_is_prepared(folder: Path, tmp_path: Path) -> None:
    cohort, cache = read_cohort(folder), tmp_path / "cache"
    (case, _) = cohort.unlabeled
    (before,) = prepare([case], cohort.info, SETTINGS, cache)
    assert before.fine is None
    assert before.unknown == (1,)
    assert (before.coarse_labels.array == IGNORE_CLASS).all()
    # The target is bright: a stage 1 that finds it finds its middle.
    share = before.coarse.with_array((before.coarse.array > 0).astype(np.float32))
    found = localise(share)
    located = prepare_located(case, before, cohort.info, SETTINGS, found, cache)
    assert located.fine is not None
    assert located.fine_labels is not None
    assert (located.fine_labels.array == IGNORE_CLASS).all()
    inside = np.argwhere(located.fine.array > 0)
    middle = (np.array(located.fine.array.shape) - 1) / 2
    assert np.abs(inside.mean(axis=0) - middle).max() < 1.5
    first, last = located.facts["located_slices"]
    assert abs(first - inside[:, 0].min()) <= 2
    assert abs(last - inside[:, 0].max()) <= 2
    assert "volume_ml" not in located.facts
    again = prepare_located(case, before, cohort.info, SETTINGS, found, cache)
    assert np.array_equal(again.fine.array, located.fine.array)
    assert again.facts == located.facts


def test_another_place_is_another_box(folder: Path, tmp_path: Path) -> None:
    cohort, cache = read_cohort(folder), tmp_path / "cache"
    case = cohort.unlabeled[0]
    (before,) = prepare([case], cohort.info, SETTINGS, cache)
    boxes = []
    for threshold in (0, -200):
        share = before.coarse.with_array((before.coarse.array > threshold).astype(np.float32))
        found = localise(share)
        boxes.append(prepare_located(case, before, cohort.info, SETTINGS, found, cache).fine)
    assert boxes[0] is not None
    assert boxes[1] is not None
    assert not np.allclose(boxes[0].geometry.affine, boxes[1].geometry.affine)


def test_contours_of_other_structures_stay(tmp_path: Path) -> None:
    """The target counts as not contoured, what is labelled as something else stays, background may be anything."""
    folder = make_tiny_cohort(tmp_path / "cohort", 1)
    write_dataset_json(folder, {"bladder": 1, "prostate": 2}, 1, "", "synthetic")
    (folder / "contoured.json").write_text(json.dumps({"case_00": ["bladder"]}))
    cohort, cache = read_cohort(folder), tmp_path / "cache"
    (before,) = prepare(cohort.training, cohort.info, SETTINGS, cache)
    found = localise(before.coarse.with_array((before.coarse.array > 0).astype(np.float32)))
    located = prepare_located(cohort.training[0], before, cohort.info, SETTINGS, found, cache)
    assert located.fine_labels is not None
    assert set(np.unique(located.fine_labels.array)) == {1, IGNORE_CLASS}
    assert read_json(folder / "contoured.json") == {"case_00": ["bladder"]}


def test_organs_are_background_of_stage_2_and_have_no_box(tmp_path: Path) -> None:
    """What the organs' network segments is certainly nothing of stage 2's, and classes are the two stages'."""
    folder = make_organs_cohort(tmp_path / "cohort", 1, absent=[0])
    (folder / "contoured.json").write_text(json.dumps({"case_00": ["side_left", "side_right", "bowl"]}))
    cohort, cache = read_cohort(folder), tmp_path / "cache"
    organs = OrgansSettings(("side_left", "side_right"), (4.0, 4.0, 4.0), (120.0, 100.0, 160.0))
    settings = replace(SETTINGS, organs=organs)
    (before,) = prepare(cohort.training, cohort.info, settings, cache)
    found = localise(before.coarse.with_array((before.coarse.array > 200).astype(np.float32)))
    for _ in range(2):  # written to the cache, and read from it
        located = prepare_located(cohort.training[0], before, cohort.info, settings, found, cache)
        box = located.box("fine")
        assert box is not None
        assert box.unknown == (1,)
        assert set(np.unique(box.labels.array)) == {0, 2, IGNORE_CLASS}
        assert (box.labels.array[box.hu.array > 200] == 0).all()  # the organs
        fat = (box.hu.array > -150) & (box.hu.array < -60)
        assert (box.labels.array[fat] == IGNORE_CLASS).mean() > 0.9
        assert located.box("organs") is None
        assert located.organs_classes == (2, 3)
