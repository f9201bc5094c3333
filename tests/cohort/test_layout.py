"""nnU-Net's layout: what is read, and what is refused with the file and the fault."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from metricunet.cohort.layout import read_cohort, read_dataset_json
from metricunet.errors import InputError
from tests.support.cohorts import edit_json


@pytest.fixture
def cohort(tiny_cohort: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_cohort, tmp_path / "cohort"))


def test_a_cohort(tiny_cohort: Path) -> None:
    cohort = read_cohort(tiny_cohort)
    assert [c.name for c in cohort.training] == [f"case_{k:02d}" for k in range(6)]
    assert [c.name for c in cohort.test] == ["case_06", "case_07"]
    assert cohort.training[0].image.name == "case_00_0000.nii.gz"
    assert cohort.training[0].label is not None
    assert cohort.info.labels == {"prostate": 1}
    assert cohort.info.trained_on == "synthetic"
    assert cohort.info.ignore is None


def test_labels_of_nnunet_v1_and_ignore(cohort: Path) -> None:
    edit_json(cohort / "dataset.json", labels={"0": "background", "1": "prostate", "2": "ignore"})
    info = read_dataset_json(cohort)
    assert (info.labels, info.ignore) == ({"prostate": 1}, 2)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (None, "labels must be an object"),
        ({"background": 0}, "no structure"),
        ({"background": 0, "prostate": [1, 2]}, "region"),
        ({"background": 0, "prostate": 1.5}, "whole number"),
        ({"background": 0, "prostate": True}, "whole number"),
        ({"background": 0, "prostate": 1, "bladder": 1}, "share one value"),
        ({"prostate": 0}, "value 0"),
        ({"background": 1, "prostate": 2}, "value 0"),
    ],
)
def test_bad_labels_in_dataset_json(cohort: Path, labels: object, words: str) -> None:
    edit_json(cohort / "dataset.json", labels=labels)
    with pytest.raises(InputError, match=words):
        read_cohort(cohort)


def test_bad_dataset_json(cohort: Path) -> None:
    edit_json(cohort / "dataset.json", channel_names={"0": "CT", "1": "MR"})
    with pytest.raises(InputError, match="one channel"):
        read_cohort(cohort)
    (cohort / "dataset.json").write_text("[")
    with pytest.raises(InputError, match="not valid JSON"):
        read_cohort(cohort)
    (cohort / "dataset.json").write_text("[]")
    with pytest.raises(InputError, match="JSON object"):
        read_cohort(cohort)
    (cohort / "dataset.json").unlink()
    with pytest.raises(InputError, match=r"no dataset\.json"):
        read_cohort(cohort)
    with pytest.raises(InputError, match="no such folder"):
        read_cohort(cohort / "none")


def test_images_and_labels_must_pair(cohort: Path) -> None:
    (cohort / "labelsTr" / "case_02.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case_02_0000.*without labels"):
        read_cohort(cohort)
    (cohort / "imagesTr" / "case_02_0000.nii.gz").unlink()
    read_cohort(cohort)
    (cohort / "imagesTr" / "case_03_0000.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case_03.*without an image"):
        read_cohort(cohort)


def test_names_need_the_channel(cohort: Path) -> None:
    (cohort / "imagesTr" / "case_02_0000.nii.gz").rename(cohort / "imagesTr" / "case_02.nii.gz")
    with pytest.raises(InputError, match="ends in _0000"):
        read_cohort(cohort)


def test_an_empty_cohort(cohort: Path) -> None:
    shutil.rmtree(cohort / "imagesTr")
    shutil.rmtree(cohort / "labelsTr")
    with pytest.raises(InputError, match="holds no case"):
        read_cohort(cohort)


def test_a_value_of_any_length_makes_a_short_message(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"prostate": "1" * 5000}}))
    with pytest.raises(InputError, match="expected a whole number") as caught:
        read_dataset_json(tmp_path)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))
