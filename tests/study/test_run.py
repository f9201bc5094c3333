"""A whole study: what it leaves, that it goes on where it was killed, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from metricunet.engine import Serial
from metricunet.errors import InputError
from metricunet.evaluation.summary import CSV_COLUMNS
from metricunet.study.design import load_study
from metricunet.study.report import describe
from metricunet.study.run import StudyResult, _pictured, study
from metricunet.study.runs import RunSpec
from metricunet.study.verdicts import conclude
from tests.study.conftest import SHORT, write_study
from tests.support.cohorts import make_tiny_cohort

Whole = tuple[Path, Path, StudyResult]
RESULTS = (
    "cases.csv", "smoothness.csv", "features.csv", "comparisons.csv", "comparisons.json", "tables.md", "tables.csv"
)  # fmt: skip


def test_what_a_study_leaves(whole_study: Whole, study_cohort: Path) -> None:
    _, output, result = whole_study
    assert {p.name for p in output.iterdir()} == {
        "stage-one", "runs", "figures", "study.yaml", ".study-file.json", "study.json", *RESULTS
    }  # fmt: skip
    with (output / "cases.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == ["arm", "seed", "fold", *CSV_COLUMNS]
    assert [(r["arm"], r["seed"], r["case"]) for r in rows] == [
        (arm, seed, case)
        for arm in ("plain", "metric")
        for seed in ("0", "1")
        for case in ("case_05", "case_06", "case_07", "case_08")
    ]
    missed = next(r for r in rows if r["case"] == "case_08")
    assert (missed["dice"], missed["asd_mm"], missed["sensitivity"]) == ("0.000000", "", "0.000000")
    absent = next(r for r in rows if r["case"] == "case_07")
    assert not any(absent[name] for name in CSV_COLUMNS[2:])
    run = output / "runs" / "metric" / "fold-0" / "seed-1"
    assert {
        "config.yaml",
        "log.csv",
        "checkpoints",
        "model.safetensors",
        "run.json",
        "cases.csv",
        "key.json",
        "smoothness.csv",
        "features.csv",
    } <= {p.name for p in run.iterdir()}
    assert yaml.safe_load((run / "config.yaml").read_text())["seed"] == 1
    assert json.loads((run / "run.json").read_text())["validation"]["crop_dice"] > 0
    record = json.loads((output / "study.json").read_text())
    assert record["command"] == "study"
    assert set(RESULTS) <= set(record["files"])
    assert len(record["runs"]) == 4
    assert yaml.safe_load((output / "study.yaml").read_text())["data"] == {"cohort": str(study_cohort)}
    assert (
        "Stage 1, fold 0, shared by all arms, finds the prostate in 2 of the 3 scored cases that hold it"
        in result.text
    )
    assert result.text == (output / "tables.md").read_text()
    assert not result.failed
    assert not list(output.rglob(".partial-*"))


def test_a_second_call_trains_nothing_and_writes_the_same(copied_study: tuple[Path, Path]) -> None:
    file, output = copied_study
    kept = {p: p.stat().st_mtime_ns for p in output.rglob("*.safetensors")}
    before = {name: (output / name).read_bytes() for name in RESULTS}
    for name in RESULTS:
        (output / name).unlink()
    said: list[str] = []
    study(file, output, device="cpu", say=said.append)
    assert said == ["stage 1, fold 0", "4 of 4 runs were finished before"]
    assert {p: p.stat().st_mtime_ns for p in output.rglob("*.safetensors")} == kept
    assert {name: (output / name).read_bytes() for name in RESULTS} == before


def test_arms_and_seeds_can_be_added_later(
    copied_study: tuple[Path, Path], study_cohort: Path, tmp_path: Path
) -> None:
    file, output = copied_study
    old = (output / "cases.csv").read_text().splitlines()
    arms = {"plain": {"seeds": [0]}, "control": {"settings": {"metric.mode": "control"}, "seeds": [1]}}
    said: list[str] = []
    study(write_study(file, study_cohort, arms=arms), output, device="cpu", say=said.append)
    assert said[1] == "1 of 2 runs were finished before"
    assert said[2].startswith("control, fold 0, seed 1: finished, validation Dice 0.")
    assert said[2].endswith("(2 of 2)")
    new = (output / "cases.csv").read_text().splitlines()
    assert new[:5] == old[:5]
    assert {line.split(",")[0] for line in new[5:]} == {"control"}


KILLED_STUDY = """
import os, signal, sys
from pathlib import Path
from metricunet.study import run, runs
from metricunet.training.log import StageProgress
from tests.study.conftest import TINY_BASE

where, seen = sys.argv[3], []

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def in_an_epoch(progress, done, val_dice=None):
    if progress.stage == where and done == TINY_BASE[where]["updates_per_epoch"] + 6:
        seen.append(where)
        if len(seen) == (1 if where == "locate" else 2):
            die()

StageProgress.show = in_an_epoch
if where == "rows":
    runs.write_table = lambda *table: die()
run.study(Path(sys.argv[1]), Path(sys.argv[2]), device="cpu")
"""


@pytest.mark.usefixtures("no_pictures")
def test_a_study_killed_and_moved_again_and_again_ends_with_the_same_tables(
    whole_study: Whole, tmp_path: Path
) -> None:
    """Kill the process in stage 1, in the second run's training, and when that is scored but not written."""
    file, whole, _ = whole_study
    output = tmp_path / "out"
    path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    finished = []
    for where in ("locate", "segment", "rows"):
        command = [sys.executable, "-c", KILLED_STUDY, str(file), str(output), where]
        ended = subprocess.run(command, env=environment, capture_output=True, check=False)
        assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
        assert not (output / "tables.md").exists()
        finished.append(len(list(output.glob("runs/*/*/*/cases.csv"))))
        output = output.rename(tmp_path / f"moved-after-{where}")
    assert finished == [0, 1, 1]
    study(file, output, device="cpu")
    for name in RESULTS:
        assert (output / name).read_bytes() == (whole / name).read_bytes(), name


def test_cross_validation_scores_each_case_once(tmp_path: Path) -> None:
    cohort = make_tiny_cohort(tmp_path / "cohort", 6)
    splits = [
        {"train": [f"case_{k:02d}" for k in range(6) if k % 2 != fold], "val": [f"case_{k:02d}" for k in val]}
        for fold, val in enumerate(((0, 2, 4), (1, 3, 5)))
    ]
    (cohort / "splits.json").write_text(json.dumps(splits))
    arms = {"plain": {"settings": SHORT}}
    file = write_study(tmp_path / "s.yaml", cohort, folds=[0, 1], seeds=[0], arms=arms)
    result = study(file, tmp_path / "out", device="cpu")
    rows = (tmp_path / "out" / "cases.csv").read_text().splitlines()[1:]
    assert [",".join(row.split(",")[:4]) for row in rows] == [
        "plain,0,0,case_00", "plain,0,0,case_02", "plain,0,0,case_04",
        "plain,0,1,case_01", "plain,0,1,case_03", "plain,0,1,case_05",
    ]  # fmt: skip
    assert "Scored on the validation cases of each fold" in result.text
    assert "The 2 folds are taken together" in result.text
    assert "| plain | 0 | 6 |" in result.text


def test_what_is_refused_before_anything_is_made(study_cohort: Path, tmp_path: Path) -> None:
    file, output = write_study(tmp_path / "s.yaml", study_cohort), tmp_path / "out"

    def refused(message: str, place: Path = output, device: str = "cpu") -> None:
        with pytest.raises(InputError, match=message) as error:
            study(file, place, device=device)
        assert "\n" not in str(error.value)

    refused("device must be", device="tpu")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    refused("holds other files and no study", tmp_path / "mine")
    refused("is a file; expected a folder for the study", file)
    write_study(file, study_cohort, folds=[7])
    refused("folds: fold 7: this cohort has folds 0 to 4")
    write_study(file, study_cohort, arms={"good": {}, "bad": {"settings": {"segment.slices": 4}}})
    refused(r"arm bad: setting segment\.slices is 4; expected an odd number")
    write_study(file, tmp_path / "nowhere")
    refused("no such folder")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert not (output / "runs").exists()
    assert not (output / "stage-one").exists()


def test_a_fold_that_would_score_nothing_is_refused_before_any_work(tmp_path: Path) -> None:
    cohort = make_tiny_cohort(tmp_path / "cohort", 4)
    names = [f"case_{k:02d}" for k in range(4)]
    splits = [{"train": names[:3], "val": names[3:]}, {"train": names, "val": []}]
    (cohort / "splits.json").write_text(json.dumps(splits))
    file = write_study(tmp_path / "s.yaml", cohort, folds=[0, 1])
    with pytest.raises(InputError, match=r"folds: fold 1 validates on no case \(val\).*no test cases") as error:
        study(file, tmp_path / "out", device="cpu")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "stage-one").exists()


def test_examples_are_of_a_seed_that_is_in_the_comparison(tmp_path: Path) -> None:
    """A seed is left out where one of its folds failed, though all arms came to an end in another."""
    pair = {"baseline": "plain", "method": "metric"}
    plan = load_study(write_study(tmp_path / "s.yaml", tmp_path, folds=[0, 1], primary=pair))
    runs = [(arm, fold, seed) for arm in pair.values() for fold in (0, 1) for seed in (0, 1)]
    runs.remove(("metric", 1, 0))
    models = {one: tmp_path / f"{'-'.join(map(str, one))}.safetensors" for one in runs}
    for path in (tmp_path / "locate.safetensors", *models.values()):
        path.touch()
    (tmp_path / "cuts").mkdir()
    whole: list[Any] = [
        SimpleNamespace(
            arm=arm, fold=fold, seed=seed, model=model, stage_one=tmp_path, case_names=(), fitting=(),
            config=SimpleNamespace(precision="fp32"), prepared=SimpleNamespace(labels={}, ignore=None),
        )
        for (arm, fold, seed), model in models.items()
    ]  # fmt: skip
    dice: Any = SimpleNamespace(comparison=SimpleNamespace(seeds=(1,)))
    pictured = _pictured(plan, whole, "cpu", False, dice)
    assert pictured is not None
    assert pictured.seed == 1
    first = _pictured(plan, whole, "cpu", False, None)
    assert first is not None
    assert first.seed == 0
    # Results that were brought here are without models, or without the cuts of their fold.
    models["plain", 0, 0].unlink()
    second = _pictured(plan, whole, "cpu", False, None)
    assert second is not None
    assert list(second.models.values()) == [models["plain", 0, 1], models["metric", 0, 1]]
    (tmp_path / "cuts").rmdir()
    assert _pictured(plan, whole, "cpu", False, None) is None


def test_a_changed_scan_is_noticed(copied_study: tuple[Path, Path], study_cohort: Path, tmp_path: Path) -> None:
    """The scored cases' files are hashed, so a result on another scan of the same name cannot slip in."""
    file, output = copied_study
    cohort = Path(shutil.copytree(study_cohort, tmp_path / "cohort"))
    for one, other in (("images", "_0000"), ("labels", "")):
        shutil.copy(cohort / f"{one}Ts/case_05{other}.nii.gz", cohort / f"{one}Ts/case_06{other}.nii.gz")
    with pytest.raises(InputError, match=r"begun with other settings or cases.*other scored cases"):
        study(write_study(file, cohort), output, device="cpu")


class NothingToRun(Serial):
    def each(self, tasks: Any, *more: Any, **named: Any) -> Any:
        assert not isinstance(tasks[0], RunSpec), tasks
        return super().each(tasks, *more, **named)


def test_what_a_study_says_of_an_arm_of_one_stage(one_stage_study: Whole) -> None:
    file, output, result = one_stage_study
    assert not result.failed
    plan = conclude(output).plan
    assert describe(plan.arms["whole"], plan.stages("whole"))[0] == "U-Net, 3D, one stage at 4 mm"
    smoothness = (output / "smoothness.csv").read_text().splitlines()
    assert sum(line.startswith("whole,") for line in smoothness) == 4
    features = [line for line in (output / "features.csv").read_text().splitlines() if line.startswith("whole,")]
    assert len(features) == 4
    assert all(line.endswith(",,,") for line in features)
    again = study(file, output, device="cpu", engine=NothingToRun())
    assert again.text == result.text


def test_a_run_of_two_stages_is_not_taken_for_one(one_stage_study: Whole, tmp_path: Path) -> None:
    file, output, _ = one_stage_study
    content = yaml.safe_load(file.read_text())
    content["arms"] = {"cropped": {"stages": 1}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="stages was 2, is 1"):
        study(tmp_path / "study.yaml", output, device="cpu")
