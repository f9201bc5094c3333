"""What the demo says and refuses, on a cohort and a model that are there already."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest

from metricunet.errors import InputError
from metricunet.files.nifti import read_labels, write_nifti
from metricunet.workflows import demo as module
from metricunet.workflows.demo import DemoResult
from tests.support.cohorts import TINY_SETTINGS
from tests.support.command import Command


@pytest.fixture
def made(tiny_cohort: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Phantoms and training take no time: they are the tiny cohort and its run. What was made is listed."""
    steps: list[str] = []

    def make_cohort(folder: Path, *_: object, **others: object) -> None:
        steps.append("cohort")
        if not folder.exists():
            shutil.copytree(tiny_cohort, folder, ignore=shutil.ignore_patterns("prepared"))

    def train(cohort: Path, run: Path, **others: object) -> Path:
        steps.append("run")
        return Path(shutil.copytree(tiny_model.parent, run, dirs_exist_ok=True)) / tiny_model.name

    monkeypatch.setattr(module, "make_cohort", make_cohort)
    monkeypatch.setattr(module, "check_cohort", lambda *_: None)
    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "demo", partial(module.demo, settings=TINY_SETTINGS))
    return steps


def demo(output: Path, *more: str) -> DemoResult:
    return module.demo(output, settings=(*TINY_SETTINGS, *more))


def test_a_demo_that_went_well_ends_with_status_0(made: list[str], tmp_path: Path, metricunet: Command) -> None:
    ended = metricunet("demo", "-o", tmp_path / "demo")
    assert ended.status == 0, ended.err
    assert f"report: {tmp_path / 'demo' / 'report.html'}\n" in ended.out
    again = metricunet("demo", "-o", tmp_path / "demo")
    assert (again.status, again.out) == (0, ended.out)
    assert made == ["cohort", "run", "cohort"]


def test_a_scan_that_cannot_be_segmented_is_named_and_ends_the_demo_with_status_1(
    made: list[str], tmp_path: Path, metricunet: Command
) -> None:
    output = tmp_path / "demo"
    demo(output)
    (output / "cohort" / "imagesTs" / "case_07_0000.nii.gz").write_bytes(b"damaged")
    ended = metricunet("demo", "-o", output)
    assert ended.status == 1
    (line,) = (line for line in ended.err.splitlines() if line.startswith("refused: "))
    assert "case_07_0000.nii.gz" in line
    assert f"report: {output / 'report.html'}\n" in ended.out
    assert [refused.path.name for refused in demo(output).prediction.refused] == ["case_07_0000.nii.gz"]


def test_a_gland_that_was_missed_ends_the_demo_with_status_1(
    made: list[str], tmp_path: Path, metricunet: Command
) -> None:
    output = tmp_path / "demo"
    demo(output)
    scan = output / "cohort" / "imagesTs" / "case_07_0000.nii.gz"
    shutil.copy(output / "cohort" / "imagesTr" / "case_05_0000.nii.gz", scan)  # it holds no gland
    ended = metricunet("demo", "-o", output)
    assert ended.status == 1
    assert "case_07: fail, absent: " in ended.err
    assert "Missed: case_07" in ended.out


def test_a_reference_that_cannot_be_read_ends_the_demo_with_status_1(
    made: list[str], tmp_path: Path, metricunet: Command
) -> None:
    output = tmp_path / "demo"
    demo(output)
    path = output / "cohort" / "labelsTs" / "case_07.nii.gz"
    labels = read_labels(path)
    write_nifti(path, labels.with_array(labels.array * 3))
    ended = metricunet("demo", "-o", output)
    assert ended.status == 1
    assert "case_07: failed, not scored: " in ended.out


@pytest.mark.parametrize("name", ["evaluation/cases.csv", "prediction/case_06.nii.gz"])
def test_what_was_changed_is_kept_with_advice_that_can_be_followed(
    made: list[str], tmp_path: Path, metricunet: Command, name: str
) -> None:
    output = tmp_path / "demo"
    demo(output)
    made.clear()
    (output / name).write_bytes(b"mine")
    ended = metricunet("demo", "-o", output)
    assert ended.status == 2
    assert f"{name}: is there already" in ended.err
    assert ended.err.endswith("; choose another folder, or move it elsewhere and run again\n")
    assert (output / name).read_bytes() == b"mine"
    (output / name).unlink()
    assert metricunet("demo", "-o", output).status == 0


def test_the_scores_of_somebody_else_are_seen_before_any_work(made: list[str], tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "summary.json").write_text("mine")
    with pytest.raises(InputError, match=r"summary\.json: is there already"):
        demo(tmp_path)
    assert made == []


def test_a_model_of_other_settings_is_not_taken_for_that_of_the_demo(made: list[str], tmp_path: Path) -> None:
    demo(tmp_path)
    made.clear()
    before = (tmp_path / "demo.json").read_bytes()
    message = r"run: holds a model of other settings \(segment.epochs was 2, is 3\); choose another folder"
    with pytest.raises(InputError, match=message):
        demo(tmp_path, "segment.epochs=3")
    assert made == []
    assert (tmp_path / "demo.json").read_bytes() == before
