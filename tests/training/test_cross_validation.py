"""Cross-validation: every fold in a run of its own, every case scored once, and one model of them all."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metricunet.engine import Serial
from metricunet.errors import InputError, WorkerDied
from metricunet.files.claim import CLAIM_NAME, claimed
from metricunet.inference.models import chosen_models, models_at
from metricunet.training import cross_validation
from metricunet.training.config import TrainConfig, load_config
from metricunet.training.cross_validation import CrossValidation, cross_validate
from tests.support.cohorts import TINY_SETTINGS, edit_json
from tests.support.command import Command

CONFIG = load_config("small", settings=TINY_SETTINGS)
#: Case 5 holds no target; case 2 is in no fold's validation.
VALIDATED = (["case_00", "case_05"], ["case_01", "case_03"], ["case_04"])
Trained = list[tuple[int, bool]]


def write_splits(cohort: Path, *validated: list[str], names: range = range(6)) -> None:
    cases = [f"case_{k:02d}" for k in names]
    splits = [{"train": [c for c in cases if c not in val], "val": val} for val in validated]
    (cohort / "splits.json").write_text(json.dumps(splits))


@pytest.fixture
def cohort(tiny_cohort: Path, tmp_path: Path) -> Path:
    """The tiny cohort with three folds."""
    copy = Path(shutil.copytree(tiny_cohort, tmp_path / "cohort"))
    write_splits(copy, *VALIDATED)
    return copy


@pytest.fixture
def trained(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """Folds take no time to train: all get one model. Their numbers are listed, and whether they were resumed."""
    told: Trained = []

    def train(cohort: Path, folder: Path, *, fold: int, resume: bool, **others: object) -> Path:
        told.append((fold, resume))
        shutil.copytree(tiny_model.parent, folder, dirs_exist_ok=True)
        return folder / tiny_model.name

    monkeypatch.setattr(cross_validation, "train", train)
    return told


def run(cohort: Path, output: Path, config: TrainConfig = CONFIG, **others: object) -> CrossValidation:
    return cross_validate(cohort, output, config=config, device="cpu", **others)  # type: ignore[arg-type]


def scored(output: Path) -> list[str]:
    with (output / "cases.csv").open(newline="") as handle:
        return [row["case"] for row in csv.DictReader(handle)]


def test_every_case_is_scored_once_and_all_folds_together_are_a_model(
    cohort: Path, trained: Trained, tmp_path: Path, metricunet: Command
) -> None:
    output = tmp_path / "run"
    words = [word for setting in TINY_SETTINGS for word in ("--set", setting)]
    ended = metricunet(
        "train", cohort, "-o", output, "--preset", "small", "--device", "cpu", "--fold", "each", *words
    )
    assert ended.status == 0, ended.err
    assert trained == [(0, False), (1, False), (2, False)]
    assert scored(output) == ["case_00", "case_01", "case_03", "case_04", "case_05"]
    assert "not scored, for no fold is validated on them: 1 cases (case_02)" in ended.out
    summary = json.loads((output / "summary.json").read_text())
    assert summary["prostate"]["dice"]["n"] == 4
    assert summary["prostate"]["true_absent"] == 1
    for fold, validated in enumerate(VALIDATED):
        found = {p.name for p in (output / f"fold-{fold}" / "validation").glob("*.quality.json")}
        assert found == {f"{case}.quality.json" for case in validated}
    record = json.loads((output / "run.json").read_text())
    assert (record["command"], record["arguments"]["fold"]) == ("train", "each")
    assert record["folds"]["1"]["validated_on"] == ["case_01", "case_03"]
    assert {"cases.csv", "summary.json", "report.html", "evaluate.json", "folds.json"} <= {
        p.name for p in output.iterdir()
    }
    scan = cohort / "imagesTs" / "case_06_0000.nii.gz"
    ended = metricunet("predict", scan, "-o", tmp_path / "out", "-m", output, "--device", "cpu")
    assert ended.status == 0, ended.err
    used = json.loads((tmp_path / "out" / "run.json").read_text())["arguments"]["models"]
    assert used == [str(output / f"fold-{fold}" / "model.safetensors") for fold in range(3)]


def test_a_fold_that_fails_does_not_lose_the_others_and_is_tried_again(
    cohort: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, train = tmp_path / "run", cross_validation.train

    def fails(cohort: Path, folder: Path, *, fold: int, **others: object) -> Path:
        if fold == 1:
            raise InputError("stage locate diverged")
        return train(cohort, folder, fold=fold, **others)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(cross_validation, "train", fails)
        result = run(cohort, output)
    assert [(fold.spec.fold, fold.error) for fold in result.failed] == [(1, "stage locate diverged")]
    assert result.incomplete
    assert scored(output) == ["case_00", "case_04", "case_05"]
    with pytest.raises(InputError, match="fold 1 of its 3 has no model; finish the cross-validation"):
        models_at(output)
    trained.clear()
    said: list[str] = []
    again = run(cohort, output, resume=True, say=said.append)
    assert not again.incomplete
    assert trained == [(1, False)]
    assert len(scored(output)) == 5
    assert any(line.startswith("fold 1: finished") for line in said)


def test_without_a_single_fold_there_is_nothing_to_score(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*words: object, **others: object) -> Path:
        raise MemoryError

    monkeypatch.setattr(cross_validation, "train", fails)
    with pytest.raises(InputError, match="no fold could be trained; fold 0: there is not enough memory"):
        run(cohort, tmp_path / "run")


def test_a_fold_that_another_process_trains_is_left_to_it(cohort: Path, trained: Trained, tmp_path: Path) -> None:
    output = tmp_path / "run"
    run(cohort, output)
    (output / "fold-1" / "model.safetensors").unlink()
    (output / "fold-1" / "run.json").unlink()
    trained.clear()
    said: list[str] = []
    held = claimed(output / f".fold-1{CLAIM_NAME}", "a fold")
    held.__enter__()

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("waiting: "):  # the other process ends, without having finished
            held.__exit__(None, None, None)

    result = run(cohort, output, resume=True, say=say)
    assert trained == [(1, True)]
    assert [fold.spec.fold for fold in result.folds if fold.error is None] == [0, 1, 2]
    assert [line[:8] for line in said if line.startswith(("waiting", "fold 1: f"))] == ["waiting:", "fold 1: "]
    assert not list(output.rglob("*.claim.json"))


class Backwards(Serial):
    """Does tasks from the last to the first, sends all there and back, and loses the worker of one."""

    def each(self, tasks: Any, make: Any, needs: Any, *, claim: Any = None, watch: Any = None) -> Any:
        worker = pickle.loads(pickle.dumps(make))()
        for task in reversed(tasks):
            with claim(task):
                if task.fold == 0:
                    yield task, WorkerDied("its worker died twice")
                    continue
                sent = pickle.loads(pickle.dumps(task))
                yield task, pickle.loads(pickle.dumps(worker.do(sent, lambda *_: None)))


def test_an_engine_trains_the_folds_from_what_can_be_pickled(
    cohort: Path, trained: Trained, tmp_path: Path
) -> None:
    result = run(cohort, tmp_path / "run", engine=Backwards())
    assert trained == [(2, False), (1, False)]
    assert [fold.error for fold in result.folds] == ["its worker died twice", None, None]
    assert scored(tmp_path / "run") == ["case_01", "case_03", "case_04"]


def test_a_case_that_cannot_be_segmented_costs_no_other(
    cohort: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = cross_validation.predict

    def loses_one(images: tuple[Path, ...], *others: object, **more: object) -> object:
        broken = tmp_path / "case_03_0000.nii.gz"
        broken.write_bytes(b"nothing")
        return predict([broken if "case_03" in p.name else p for p in images], *others, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(cross_validation, "predict", loses_one)
    result = run(cohort, tmp_path / "run")
    assert result.incomplete
    assert not result.failed
    assert any("case_03" in line for line in cross_validation.lines_of(result) if line.startswith("fold 1: "))
    assert result.evaluation.unpredicted == ("case_03", "case_05")


def a_fold_of_nothing(cohort: Path) -> None:
    write_splits(cohort, ["case_00"], [])


def one_fold(cohort: Path) -> None:
    write_splits(cohort, ["case_00"])


def a_case_twice(cohort: Path) -> None:
    write_splits(cohort, ["case_00", "case_01"], ["case_01"])


def two_patients(cohort: Path) -> None:
    (cohort / "splits.json").unlink()
    (cohort / "patients.json").write_text(json.dumps({f"case_{k:02d}": f"p{k % 2}" for k in range(6)}))


def files_elsewhere(cohort: Path) -> None:
    entries = {
        name: {"images": [f"imagesTr/{name}_0000.nii.gz"], "label": f"labelsTr/{name}.nii.gz"}
        for name in (f"case_{k:02d}" for k in range(6))
    }
    (cohort / "labelsTr" / "case_00.nii.gz").rename(cohort / "map.nii.gz")
    entries["case_00"]["label"] = "map.nii.gz"
    edit_json(cohort / "dataset.json", dataset=entries)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            files_elsewhere,
            r"case case_00 has the files .*map\.nii\.gz; fold='each' .* make such a cohort of this one",
        ),
        (a_fold_of_nothing, r"splits\.json: fold 1 validates on no case"),
        (one_fold, r"splits\.json: lists 1 fold; cross-validation needs 2 or more"),
        (a_case_twice, r"folds 0 and 1 both validate on case 'case_01'"),
        (two_patients, r"2 patients; cross-validation needs 3 or more"),
    ],
)
def test_folds_that_cannot_be_are_refused_before_any_work(
    cohort: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    change(cohort)
    with pytest.raises(InputError, match=message):
        run(cohort, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unseen_cases_may_have_the_names_of_training_cases(cohort: Path, trained: Trained, tmp_path: Path) -> None:
    for kind, name in (("images", "case_00_0000.nii.gz"), ("labels", "case_00.nii.gz")):
        shutil.copy(cohort / f"{kind}Tr" / name, cohort / f"{kind}Ts" / name)
    run(cohort, tmp_path / "run")
    assert scored(tmp_path / "run") == ["case_00", "case_01", "case_03", "case_04", "case_05"]


def test_with_fewer_patients_than_folds_each_patient_is_a_fold(
    cohort: Path, trained: Trained, tmp_path: Path
) -> None:
    (cohort / "splits.json").unlink()
    (cohort / "patients.json").write_text(json.dumps({f"case_{k:02d}": f"p{k % 3}" for k in range(6)}))
    result = run(cohort, tmp_path / "run")
    assert len(result.folds) == 3
    assert len(scored(tmp_path / "run")) == 6


def test_a_folder_is_kept_for_what_was_begun_in_it(cohort: Path, trained: Trained, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(InputError, match=r"holds no cross-validation to resume .*; start one there, without"):
        run(cohort, output, resume=True)
    output.mkdir()
    (output / "notes.txt").touch()
    # Neither refusal sends to the other.
    with pytest.raises(InputError, match="holds no cross-validation; choose a new or empty folder"):
        run(cohort, output)
    with pytest.raises(InputError, match="start one in a new or empty folder, without"):
        run(cohort, output, resume=True)
    (output / "notes.txt").unlink()
    run(cohort, output)
    with pytest.raises(InputError, match="is not empty; resume the cross-validation in it, or take part"):
        run(cohort, output)
    other = load_config("small", settings=[*TINY_SETTINGS, "segment.epochs=3"])
    with pytest.raises(InputError, match=r"cannot resume with other settings \(segment.epochs was 2, is 3\)"):
        run(cohort, output, other, resume=True)
    write_splits(cohort, *VALIDATED[:2])
    with pytest.raises(InputError, match="the cohort's folds are others"):
        run(cohort, output, resume=True)
    edit_json(output / "folds.json", config=None)
    with pytest.raises(InputError, match=r"folds\.json: damaged .*start anew"):
        run(cohort, output, resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(InputError, match="is not empty"):
        run(cohort, tmp_path / "mine")


def test_a_cohort_whose_labels_were_corrected_meanwhile_is_not_gone_on_with(
    cohort: Path, trained: Trained, tmp_path: Path
) -> None:
    """Folds that are finished have learned the labels of before."""
    output = tmp_path / "run"
    run(cohort, output)
    edit_json(output / "fold-1" / "run.json", seed=1)  # so it counts as not finished
    trained.clear()
    shutil.copy(cohort / "labelsTr" / "case_00.nii.gz", cohort / "labelsTr" / "case_02.nii.gz")
    with pytest.raises(InputError, match="labels or scans of the cohort were changed since"):
        run(cohort, output, resume=True)
    assert trained == []
    begun = json.loads((output / "folds.json").read_text())
    del begun["data_sha256"]  # as an earlier version left it
    (output / "folds.json").write_text(json.dumps(begun))
    run(cohort, output, resume=True)
    assert trained == [(1, True)]


def test_processes_of_torchrun_are_refused_before_they_train_two_folds_as_one(
    cohort: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="torchrun has started 2 processes for one training"):
        run(cohort, tmp_path / "run")
    assert trained == []
    assert not (tmp_path / "run").exists()


def test_phantoms_have_no_folds(tmp_path: Path, metricunet: Command) -> None:
    ended = metricunet("train", "--phantoms", "easy", "--fold", "each", "-o", tmp_path / "run")
    assert ended.status == 2
    assert "--fold each: takes a cohort" in ended.err


def test_the_model_of_a_folder(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen_models([tiny_model.parent]) == (tiny_model,)
    monkeypatch.setenv("METRICUNET_MODEL", str(tiny_model.parent))
    assert chosen_models() == (tiny_model,)
    with pytest.raises(InputError, match=r"is a folder and holds no model\.safetensors"):
        models_at(tmp_path)
    (tmp_path / "folds.json").write_text("{}")
    with pytest.raises(InputError, match=r"folds\.json: does not say which folds there are"):
        models_at(tmp_path)


@pytest.mark.parametrize("name", ["cases.csv", "report.html"])
def test_scores_that_somebody_changed_are_seen_before_a_fold_is_trained(
    cohort: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metricunet: Command, name: str
) -> None:
    output, train = tmp_path / "run", cross_validation.train

    def fails(cohort: Path, folder: Path, *, fold: int, **others: object) -> Path:
        if fold == 1:
            raise InputError("stage locate diverged")
        return train(cohort, folder, fold=fold, **others)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(cross_validation, "train", fails)
        run(cohort, output)
    trained.clear()
    (output / name).write_text("saved by a spreadsheet")
    words = [word for setting in TINY_SETTINGS for word in ("--set", setting)]
    command = ("train", cohort, "-o", output, "--preset", "small", "--device", "cpu", "--fold", "each", *words)
    ended = metricunet(*command, "--resume")
    assert ended.status == 2
    assert f"{name}: is there already" in ended.err
    assert ended.err.endswith("; choose another folder, or move it elsewhere and run again\n")
    assert trained == []
    (output / name).rename(tmp_path / name)
    assert metricunet(*command, "--resume").status == 0
    assert trained == [(1, False)]


def test_a_mask_that_somebody_corrected_is_kept_with_advice_that_can_be_followed(
    cohort: Path, trained: Trained, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    run(cohort, output)
    mask = output / "fold-0" / "validation" / "case_00.nii.gz"
    mask.write_bytes(b"mine")
    (failed,) = run(cohort, output, resume=True).failed
    assert failed.error is not None
    assert failed.error.endswith("; choose another folder, or move it elsewhere and run again")
    assert mask.read_bytes() == b"mine"


def test_processes_that_make_phantoms_have_nothing_to_do(
    cohort: Path, trained: Trained, tmp_path: Path, metricunet: Command
) -> None:
    ended = metricunet("train", cohort, "--fold", "each", "--workers", 8, "-o", tmp_path / "run")
    assert ended.status == 2
    assert ended.err == (
        "error: --workers says how many processes make the synthetic scans of --phantoms; leave it out with the "
        f"cohort {cohort}\n"
    )
    assert trained == []
