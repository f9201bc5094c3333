"""nnU-Net's layout: what is read, and what is refused with the file and the fault."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from metricunet.cohort.importing import import_cohort
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


@pytest.mark.parametrize("name", ["case_02.nii", "case_02.nrrd", "case_02.mha"])
def test_two_label_maps_of_one_case_are_named(cohort: Path, name: str) -> None:
    shutil.copy(cohort / "labelsTr" / "case_02.nii.gz", cohort / "labelsTr" / name)
    with pytest.raises(InputError, match="labels of case case_02 occur twice; see also") as caught:
        read_cohort(cohort)
    assert "case_02.nii.gz" in str(caught.value)
    assert name in str(caught.value)


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


class TestAsPeopleWriteIt:
    """dataset.json and folders of nnU-Net v1 and v2, of the decathlon, and of people."""

    @pytest.mark.parametrize(
        "changes",
        [
            {"labels": {"background": "0", "prostate": "1"}},
            {"labels": {"Background": 0, "prostate": 1}},
            {"labels": {"0": "background", "1": "prostate"}},
            {"channel_names": ["CT"]},
            {"channel_names": None, "modality": {"0": "CT"}},
            {"channel_names": {"0": "noNorm"}},
        ],
    )
    def test_is_read(self, cohort: Path, changes: dict[str, object]) -> None:
        edit_json(cohort / "dataset.json", **changes)
        found = read_cohort(cohort)
        assert (found.info.labels, len(found.training)) == ({"prostate": 1}, 6)

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
    def test_windows_encodings(self, cohort: Path, encoding: str) -> None:
        path = cohort / "dataset.json"
        path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
        assert read_cohort(cohort).info.labels == {"prostate": 1}

    @pytest.mark.parametrize("labels", [{"0": 0, "1": 1}, {"0": "0", "1": "1"}, {"air": 0, "prostate": 1}])
    def test_a_background_of_another_name_is_named(self, cohort: Path, labels: dict[str, object]) -> None:
        edit_json(cohort / "dataset.json", labels=labels)
        with pytest.raises(InputError, match=r'value 0 is the background.s.* Write "background": 0') as caught:
            read_cohort(cohort)
        assert "\n" not in str(caught.value)

    def test_images_without_a_channel(self, cohort: Path) -> None:
        for path in (cohort / "imagesTr").iterdir():
            path.rename(path.with_name(path.name.replace("_0000", "")))
        with pytest.raises(InputError, match=r"ends in _0000 .*metricunet import") as caught:
            read_cohort(cohort)
        assert "\n" not in str(caught.value)

    def test_appledouble_files_are_passed_over(self, cohort: Path) -> None:
        for path in [*(cohort / "imagesTr").iterdir(), *(cohort / "labelsTr").iterdir(), cohort / "dataset.json"]:
            (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7" + bytes(200))
        assert len(read_cohort(cohort).training) == 6


class TestCasesThatAreListed:
    """The key `dataset`, by which nnU-Net finds training cases elsewhere."""

    @pytest.fixture
    def listed(self, cohort: Path) -> Path:
        (cohort / "elsewhere").mkdir()
        entries = {}
        for k in range(6):
            (cohort / f"imagesTr/case_{k:02d}_0000.nii.gz").rename(cohort / f"elsewhere/scan{k}.nii.gz")
            (cohort / f"labelsTr/case_{k:02d}.nii.gz").rename(cohort / f"elsewhere/map{k}.nii.gz")
            entries[f"c{k}"] = {"images": [f"elsewhere/scan{k}.nii.gz"], "label": f"elsewhere/map{k}.nii.gz"}
        shutil.rmtree(cohort / "labelsTr")
        edit_json(cohort / "dataset.json", dataset=entries)
        return cohort

    def test_are_the_training_cases(self, listed: Path) -> None:
        found = read_cohort(listed)
        assert [c.name for c in found.training] == [f"c{k}" for k in range(6)]
        assert found.training[3].image == listed / "elsewhere/scan3.nii.gz"
        assert found.training[3].label == listed / "elsewhere/map3.nii.gz"
        assert [c.name for c in found.test] == ["case_06", "case_07"]

    def test_are_imported_and_a_missing_one_is_left_out(self, listed: Path, tmp_path: Path) -> None:
        (listed / "elsewhere/map2.nii.gz").unlink()
        names = tmp_path / "names.yaml"
        names.write_text("prostate: [prostate]")
        done = import_cohort([listed], tmp_path / "new", names=names)
        assert len(read_cohort(tmp_path / "new").training) == 5
        assert any("lists for case" in line for line in done.refused)

    @pytest.mark.parametrize(
        ("entry", "words"),
        [
            ({"images": ["a.nii.gz"]}, "needs"),
            ("a.nii.gz", "needs"),
            ({"images": ["a.nii.gz", "b.nii.gz"], "label": "c.nii.gz"}, "has 2 images; expected one"),
            ({"images": ["a.nii.gz"], "label": "c.nii.gz"}, "no such file"),
            ({"images": ["dataset.json"], "label": "c.nii.gz"}, "neither NIfTI"),
        ],
    )
    def test_are_refused_in_one_line(self, listed: Path, entry: object, words: str) -> None:
        edit_json(listed / "dataset.json", dataset={"c0": entry})
        with pytest.raises(InputError, match=words) as caught:
            read_cohort(listed)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", ["../c0", "", ".c", "a/b"])
    def test_names_stay_in_their_folder(self, listed: Path, name: str) -> None:
        edit_json(listed / "dataset.json", dataset={name: {"images": ["a.nii.gz"], "label": "b.nii.gz"}})
        with pytest.raises(InputError, match="cannot be a case's name"):
            read_cohort(listed)
