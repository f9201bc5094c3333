"""A study on bright ellipsoids that takes seconds: two arms, two seeds, four test cases."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from metricunet.cohort.layout import image_path, label_path
from metricunet.files.nifti import write_nifti
from metricunet.study import run
from metricunet.study.run import StudyResult, study
from tests.support.cohorts import make_scan, make_tiny_cohort

TINY_BASE: dict[str, Any] = {
    "locate": {
        "base_channels": 4,
        "levels": 3,
        "patch_voxels": [16, 16, 16],
        "spacing_mm": [6, 6, 6],
        "epochs": 2,
        "updates_per_epoch": 60,
        "learning_rate": 0.01,
    },
    "segment": {
        "base_channels": 4,
        "levels": 3,
        "spacing_mm": [4, 2, 2],
        "crop_mm": [48, 48, 48],
        "box_mm": [64, 64, 64],
        "batch_size": 4,
        "epochs": 2,
        "updates_per_epoch": 12,
        "learning_rate": 0.01,
    },
    "metric": {"mode": "none", "voxels": 64, "warm_up_updates": 4},
}

#: For an arm whose scores do not matter.
SHORT: dict[str, Any] = {"segment": {"epochs": 1, "updates_per_epoch": 3}}


def make_study_cohort(folder: Path) -> Path:
    """Five training cases, and as test cases two sound ones, an empty one, and one whose gland cannot be seen."""
    make_tiny_cohort(folder, 5, 3, absent=[7])
    write_nifti(image_path(folder, "case_08", "Ts"), make_scan(8, with_target=False)[0])
    write_nifti(label_path(folder, "case_08", "Ts"), make_scan(8)[1])
    return folder


def write_study(path: Path, cohort: Path, **changes: Any) -> Path:
    """Write a study file; a change of None leaves a key out."""
    content: dict[str, Any] = {
        "name": "tiny",
        "data": {"cohort": str(cohort)},
        "base": {"preset": "small", "settings": TINY_BASE},
        "arms": {"plain": {}, "metric": {"settings": {"metric": {"mode": "online"}}}},
        "seeds": [0, 1],
    } | changes
    path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}, sort_keys=False))
    return path


@pytest.fixture(scope="session")
def study_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cohort of the tiny study. Not to be changed."""
    return make_study_cohort(tmp_path_factory.mktemp("study") / "cohort")


@pytest.fixture(scope="session")
def whole_study(study_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, StudyResult]:
    """The tiny study, run in one go: its file, its folder and its result. Not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    file = write_study(folder / "study.yaml", study_cohort)
    return file, folder / "out", study(file, folder / "out", device="cpu")


@pytest.fixture
def copied_study(whole_study: tuple[Path, Path, StudyResult], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the finished tiny study, to be changed: its file and its folder."""
    file, output, _ = whole_study
    shutil.copytree(output, tmp_path / "out")
    return Path(shutil.copy(file, tmp_path / "study.yaml")), tmp_path / "out"


@pytest.fixture(scope="session")
def one_stage_study(
    study_cohort: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, StudyResult]:
    """A study of an arm of one stage beside one of two: its file, its folder and its result. Not to be changed."""
    folder = tmp_path_factory.mktemp("one-stage")
    arms = {"whole": {"stages": 1, "settings": {"locate": {"spacing_mm": [4, 4, 4], "epochs": 3}}}, "cropped": {}}
    file = write_study(folder / "study.yaml", study_cohort, arms=arms, seeds=[0])
    return file, folder / "out", study(file, folder / "out", device="cpu")


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies draw nothing: their pictures take long, and are of the joined tables alone."""
    monkeypatch.setattr(run, "draw_figures", lambda *_: None)
    monkeypatch.setattr(run, "draw_examples", lambda *_: None)
