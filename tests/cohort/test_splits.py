"""Splits: every case validated once, no patient on both sides, and splits.json obeyed or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from metricunet.cohort.layout import read_cohort
from metricunet.cohort.splits import split_for
from metricunet.errors import InputError


@pytest.fixture
def folder(tiny_cohort: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_cohort, tmp_path / "cohort"))


def test_each_case_is_validated_once(tiny_cohort: Path) -> None:
    cohort = read_cohort(tiny_cohort)
    splits = [split_for(cohort, k) for k in range(5)]
    names = sorted(c.name for c in cohort.training)
    assert sorted(name for s in splits for name in s.val) == names
    assert all(sorted(s.train + s.val) == names for s in splits)
    assert split_for(cohort, 0) == split_for(cohort, 0)
    assert split_for(cohort, 0, seed=1) != split_for(cohort, 0, seed=2)
    assert split_for(cohort, "all").val == ()
    with pytest.raises(InputError, match="folds 0 to 4"):
        split_for(cohort, 5)


def test_no_patient_is_on_both_sides(folder: Path) -> None:
    patients = {f"case_{k:02d}": f"patient_{k // 2}" for k in range(6)}
    (folder / "patients.json").write_text(json.dumps(patients))
    cohort = read_cohort(folder)
    for k in range(3):
        split = split_for(cohort, k)
        assert not {patients[n] for n in split.train} & {patients[n] for n in split.val}
        assert len(split.val) == 2
    bad = [{"train": ["case_00"], "val": ["case_01"]}]
    (folder / "splits.json").write_text(json.dumps(bad))
    with pytest.raises(InputError, match="patient 'patient_0' in both"):
        split_for(cohort, 0)


def test_splits_json_decides(folder: Path) -> None:
    (folder / "splits.json").write_text(json.dumps([{"train": ["case_01", "case_02"], "val": ["case_04"]}]))
    split = split_for(read_cohort(folder), 0)
    assert (split.train, split.val) == (("case_01", "case_02"), ("case_04",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON"),
        ("{}", "expected a list"),
        ('[{"train": ["case_00"]}]', "needs the lists"),
        ('[{"train": ["case_00"], "val": ["other"]}]', "names case 'other'"),
        ('[{"train": ["case_01", "case_01"], "val": ["case_00"]}]', "names case 'case_01' twice in train"),
        ('[{"train": ["case_01"], "val": ["case_00", "case_00"]}]', "names case 'case_00' twice in val"),
        ('[{"train": [], "val": ["case_00"]}]', "no training case"),
        ('[{"train": ["case_00"], "val": ["case_00"]}]', "in both"),
    ],
)
def test_bad_splits_json(folder: Path, content: str, words: str) -> None:
    (folder / "splits.json").write_text(content)
    with pytest.raises(InputError, match=words):
        split_for(read_cohort(folder), 0)


def test_patients_must_be_complete_and_more_than_one(folder: Path) -> None:
    (folder / "patients.json").write_text('{"case_00": "a"}')
    with pytest.raises(InputError, match="case_01 has no patient"):
        split_for(read_cohort(folder), 0)
    (folder / "patients.json").write_text(json.dumps({f"case_{k:02d}": "one" for k in range(6)}))
    with pytest.raises(InputError, match="at least 2"):
        split_for(read_cohort(folder), 0)
    assert len(split_for(read_cohort(folder), "all").train) == 6


def test_nnunets_own_name_is_read_and_ours_wins(folder: Path) -> None:
    names = [f"case_{k:02d}" for k in range(6)]
    (folder / "splits_final.json").write_text(json.dumps([{"train": names[2:], "val": names[:2]}]))
    assert split_for(read_cohort(folder), 0).val == ("case_00", "case_01")
    (folder / "splits.json").write_text(json.dumps([{"train": names[:4], "val": names[4:]}]))
    assert split_for(read_cohort(folder), 0).val == ("case_04", "case_05")


@pytest.mark.parametrize("patient", [None, "", " ", True, ["p1"], 1.5])
def test_a_patient_whom_nobody_names_is_not_the_one_of_others(folder: Path, patient: object) -> None:
    patients: dict[str, object] = {f"case_{k:02d}": k for k in range(6)}
    (folder / "patients.json").write_text(json.dumps(patients))
    assert len(split_for(read_cohort(folder), 0).val) >= 1
    (folder / "patients.json").write_text(json.dumps(patients | {"case_02": patient}))
    with pytest.raises(InputError, match=r"patients\.json: case 'case_02' has the patient .*; expected a name"):
        split_for(read_cohort(folder), 0)
