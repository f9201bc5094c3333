"""contoured.json: what was not contoured is not absent, from the layout to the prepared case."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from metricunet.cohort.case import read_case
from metricunet.cohort.check import check_cohort
from metricunet.cohort.contoured import CONTOURED_NAME, contoured_content, read_not_contoured
from metricunet.cohort.layout import read_cohort
from metricunet.cohort.prepare import PrepareSettings, cohort_sha256, prepare
from metricunet.errors import InputError
from tests.support.cohorts import edit_json


@pytest.fixture
def cohort(tiny_cohort: Path, tmp_path: Path) -> Path:
    """Three cases of two structures, of which nobody has the second; case_05 has neither."""
    folder = tmp_path / "cohort"
    for name in ("case_00", "case_01", "case_05"):
        for part in (f"imagesTr/{name}_0000.nii.gz", f"labelsTr/{name}.nii.gz"):
            (folder / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(tiny_cohort / part, folder / part)
    shutil.copyfile(tiny_cohort / "dataset.json", folder / "dataset.json")
    edit_json(folder / "dataset.json", labels={"background": 0, "prostate": 1, "bladder": 2})
    return folder


def write_contoured(folder: Path, contoured: Mapping[str, Sequence[str]]) -> None:
    (folder / CONTOURED_NAME).write_text(json.dumps(contoured_content(contoured)))


def test_without_the_file_all_was_contoured(cohort: Path) -> None:
    assert [case.not_contoured for case in read_cohort(cohort).training] == [(), (), ()]


def test_what_a_case_does_not_list_was_not_contoured(cohort: Path) -> None:
    write_contoured(cohort, {"case_00": ["bladder", "prostate"], "case_01": ["prostate"], "case_05": []})
    found = {case.name: case.not_contoured for case in read_cohort(cohort).training}
    assert found == {"case_00": (), "case_01": ("bladder",), "case_05": ("prostate", "bladder")}
    write_contoured(cohort, {"case_01": ["prostate"]})
    assert [case.not_contoured for case in read_cohort(cohort).training] == [(), ("bladder",), ()]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "not valid JSON"),
        ("[]", "expected an object of case to structures; found list"),
        ('{"case_00": "prostate"}', "case case_00 needs a list of structures"),
        ('{"case_00": [1]}', "case case_00 needs a list of structures"),
        (
            '{"case_00": ["prostata"]}',
            "case case_00 names structure 'prostata'; dataset.json has prostate, bladder",
        ),
        ('{"case_77": ["prostate"]}', "names case 'case_77', which neither imagesTr nor imagesTs holds"),
    ],
)
def test_a_file_that_cannot_be_right_is_refused(cohort: Path, content: str, words: str) -> None:
    (cohort / "contoured.json").write_text(content)
    with pytest.raises(InputError, match=words) as caught:
        read_cohort(cohort)
    assert str(caught.value).startswith(str(cohort / "contoured.json"))


def test_labels_that_hold_what_was_not_contoured_are_refused(cohort: Path) -> None:
    write_contoured(cohort, {"case_00": ["bladder"]})
    content = read_cohort(cohort)
    with pytest.raises(InputError, match=r"case_00.nii.gz: holds prostate, which contoured.json does not list"):
        read_case(content.training[0], content.info)


def test_check_tells_absent_from_not_contoured(cohort: Path) -> None:
    write_contoured(cohort, {"case_00": ["prostate"], "case_01": ["prostate"], "case_05": ["prostate"]})
    problems = [p for p in check_cohort(cohort) if p.case == "case_05"]
    assert [p.severity for p in problems] == ["warning", "warning"]
    assert "prostate is absent; the case counts as one without prostate" in problems[0].message
    assert "bladder is not contoured (contoured.json): neither learned nor scored" in problems[1].message


def test_prepared_cases_carry_it_and_the_hash_of_the_data_changes(cohort: Path, tmp_path: Path) -> None:
    settings = PrepareSettings("prostate", (6, 6, 6), (4, 2, 2), (80, 96, 96))
    hashes = []
    for structures in (["prostate", "bladder"], ["prostate"], ["prostate", "bladder"]):
        write_contoured(cohort, {"case_00": structures})
        content = read_cohort(cohort)
        cases = prepare(content.training, content.info, settings, tmp_path / "cache")
        assert [case.unknown for case in cases] == [() if "bladder" in structures else (2,), (), ()]
        hashes.append(cohort_sha256(cases))
    assert hashes[0] == hashes[2] != hashes[1]
    (cohort / "contoured.json").unlink()
    content = read_cohort(cohort)
    assert cohort_sha256(prepare(content.training, content.info, settings, tmp_path / "cache")) == hashes[0]


def test_only_what_is_missing_is_returned(tmp_path: Path) -> None:
    (tmp_path / "contoured.json").write_text(json.dumps({"a": ["y", "x"], "b": ["y"]}))
    assert read_not_contoured(tmp_path, ["x", "y"]) == {"b": ("x",)}
    assert read_not_contoured(tmp_path / "elsewhere", ["x"]) == {}
