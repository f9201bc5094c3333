"""A fault in one run, or in stage 1 of one fold, costs that alone, and is made good by calling the study again."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from metricunet.errors import InputError
from metricunet.study import folds, run, runs, scoring
from metricunet.study.folds import FoldSpec
from metricunet.study.run import study
from metricunet.study.runs import RunSpec
from tests.study.conftest import SHORT, write_study
from tests.support.cohorts import make_tiny_cohort
from tests.support.command import Command, Ended

#: The run that fails, of the tiny study's four.
FAILING = "plain, fold 0, seed 1"
FOLDER = Path("runs", "plain", "fold-0", "seed-1")
#: The one after it.
NEXT = Path("runs", "metric", "fold-0", "seed-0")
JOINED = ("cases.csv", "smoothness.csv", "features.csv")
ODD = RuntimeError("something odd\nover two lines")

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def trained_study(copied_study: tuple[Path, Path]) -> tuple[Path, Path]:
    """The tiny study with two runs that are trained and not scored: its file and its folder."""
    file, output = copied_study
    for folder in (FOLDER, NEXT):
        for name in JOINED:
            (output / folder / name).unlink()
    return file, output


def tables(output: Path) -> dict[str, bytes]:
    """The tables of each run."""
    found = [path for name in JOINED for path in output.glob(f"runs/*/*/*/{name}")]
    return {str(path.relative_to(output)): path.read_bytes() for path in found}


def without(path: Path, arm: str, seed: int) -> list[dict[str, str]]:
    """The rows of a joined table, without those of a run."""
    with path.open(newline="") as handle:
        return [row for row in csv.DictReader(handle) if (row["arm"], int(row["seed"])) != (arm, seed)]


def failing_in(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, at_call: int = 1, fault: BaseException = ODD
) -> None:
    """Let a function raise in the failing run alone, when it is called there for the given time."""
    real, at, calls = getattr(module, name), "", 0

    def noted(spec: RunSpec) -> Any:
        nonlocal at
        at = spec.title
        return looked_up(spec)

    def faulty(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += at == FAILING
        if at == FAILING and calls == at_call:
            raise fault
        return real(*arguments, **options)

    looked_up = runs.finished
    monkeypatch.setattr(runs, "finished", noted)  # what a run begins with
    monkeypatch.setattr(module, name, faulty)


def called(metricunet: Command, file: Path, output: Path) -> Ended:
    return metricunet("study", file, "-o", output, "--device", "cpu")


#: Step to where it is called from, and which of the calls in a run fails.
STEPS: dict[str, tuple[Any, str, int]] = {
    "opening the training": (runs, "open_run", 1),
    "stage 1 of the fold": (runs, "shared_stage_one", 1),
    "training": (runs, "train_segment", 1),
    "its key": (runs, "write_json", 1),
    "loading the model": (runs, "cut_predictor", 1),
    "a cut": (runs, "read_cut", 3),
    "segmenting": (runs, "segment_cut", 2),
    "overlap": (scoring, "measure", 4),
    "smoothness": (scoring, "measure_smoothness", 2),
    "its record": (runs, "write_sealed", 1),
    "rows of cases": (runs, "write_table", 1),
    "rows of smoothness": (runs, "write_table", 2),
    "rows of features": (runs, "write_table", 3),
    "features of a training case": (scoring, "case_features", 2),
    "features of a scored case": (scoring, "case_features", 6),
    "probes": (scoring, "fit_probes", 1),
}
#: In these the run has yet to be trained, and what it was trained to is put in place when the fault is gone.
UNTRAINED = ("opening the training", "stage 1 of the fold", "training", "its key")


@pytest.mark.parametrize("step", STEPS)
def test_a_fault_in_a_run_costs_that_run_alone(
    metricunet: Command,
    whole_study: tuple[Path, Path, Any],
    trained_study: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    file, output = trained_study
    whole = whole_study[1]
    if step in UNTRAINED:
        (output / FOLDER).rename(tmp_path / "trained")
    with monkeypatch.context() as patch:
        failing_in(patch, *STEPS[step])
        ended = called(metricunet, file, output)
    assert ended.status == 1
    failures = [line for line in ended.err.splitlines() if "fail" in line]
    assert failures
    assert all(FAILING in line and "something odd over two lines" in line for line in failures)
    assert "Traceback" not in ended.err
    record = json.loads((output / "study.json").read_text())["runs"]
    assert [(r["arm"], r["seed"]) for r in record if r["error"]] == [("plain", 1)]
    assert "something odd" in next(r["error"] for r in record if r["error"])
    assert f"Failed, and not in the tables: {FAILING}: " in (output / "tables.md").read_text()
    expected = tables(whole)
    found = tables(output)
    assert found.items() <= expected.items()  # what the run wrote before is right, too
    assert {name for name in expected if name not in found} <= {str(FOLDER / name) for name in JOINED}
    for name in JOINED:
        assert without(output / name, "plain", 1) == without(output / name, "", 0)
        assert without(output / name, "plain", 1) == without(whole / name, "plain", 1)
    if step in UNTRAINED:
        shutil.rmtree(output / FOLDER, ignore_errors=True)
        (tmp_path / "trained").rename(output / FOLDER)
    assert called(metricunet, file, output).status == 0
    assert tables(output) == expected
    for name in (*JOINED, "tables.md", "tables.csv"):
        assert (output / name).read_bytes() == (whole / name).read_bytes()


def test_a_fault_after_the_last_file_of_a_run_costs_nothing(
    metricunet: Command,
    whole_study: tuple[Path, Path, Any],
    trained_study: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file, output = trained_study
    with monkeypatch.context() as patch:
        failing_in(patch, runs, "read_card", 2)
        ended = called(metricunet, file, output)
    assert ended.status == 0
    assert "something odd over two lines" in ended.err
    assert f"{FAILING}: failed here, and is finished all the same: it counts" in ended.out + ended.err
    assert tables(output) == tables(whole_study[1])


FAULTS = {
    "a user's": (InputError("case_06: odd"), "case_06: odd"),
    "memory": (MemoryError(), "not enough memory for it on this machine; use a smaller batch"),
    "memory of a device": (
        torch.OutOfMemoryError("CUDA out of memory.\n1 GiB"),
        "not enough memory for it on this machine (CUDA out of memory. 1 GiB); use",
    ),
    "a disk": (OSError(28, "No space left on device"), "No space left on device"),
    "a key": (KeyError("dice"), "dice"),
    "depth": (RecursionError("too deep"), "too deep"),
    "an assertion": (AssertionError(), "AssertionError"),
    "no text": (ValueError(), "ValueError"),
    "an end": (StopIteration(), "StopIteration"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_of_any_kind_is_told_in_one_line(
    metricunet: Command, trained_study: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    file, output = trained_study
    fault, words = FAULTS[kind]
    failing_in(monkeypatch, runs, "segment_cut", 2, fault)
    ended = called(metricunet, file, output)
    assert ended.status == 1
    told = [line for line in ended.err.splitlines() if FAILING in line]
    assert told
    assert all(words in line for line in told)
    record = json.loads((output / "study.json").read_text())["runs"]
    assert [words in (r["error"] or "") for r in record] == [False, True, False, False]
    assert len(tables(output)) == 9


def test_what_stops_the_program_is_no_fault_of_a_run(
    trained_study: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, output = trained_study
    failing_in(monkeypatch, runs, "segment_cut", 2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        study(file, output, device="cpu")
    assert len(tables(output)) == 6  # of the two runs that were finished


@pytest.fixture(scope="session")
def two_folds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A study of one arm in two folds, finished: its file and its folder. Not to be changed."""
    folder = tmp_path_factory.mktemp("two-folds")
    cohort = make_tiny_cohort(folder / "cohort", 6)
    cases = [f"case_{k:02d}" for k in range(6)]
    splits = [{"train": [c for c in cases if c not in val], "val": val} for val in (cases[:3], cases[3:])]
    (cohort / "splits.json").write_text(json.dumps(splits))
    arms = {"plain": {"settings": SHORT}}
    file = write_study(folder / "study.yaml", cohort, folds=[0, 1], seeds=[0], arms=arms)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "draw_figures", lambda *_: None)
        patch.setattr(run, "draw_examples", lambda *_: None)
        study(file, folder / "out", device="cpu")
    return file, folder / "out"


#: Step to where it is called from, and files of the fold that are yet to be made.
FOLD_STEPS: dict[str, tuple[str, str]] = {
    "opening the training": ("open_run", ""),
    "training stage 1": ("train_locate", "locate.safetensors"),
    "keeping stage 1": ("save", "locate.safetensors"),
    "reading stage 1": ("read_located", ""),
    "reading a scan": ("read_case", "*/*.npz"),
    "locating": ("localise", "cuts/*.npz"),
    "cutting a training case": ("make_cut", "fitting/*.npz"),
    "keeping a cut": ("_store", "cuts/case_04.npz"),
}


@pytest.mark.parametrize("step", FOLD_STEPS)
def test_a_fault_in_stage_1_of_a_fold_costs_that_fold_alone(
    metricunet: Command,
    two_folds: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    file, whole = two_folds
    output = Path(shutil.copytree(whole, tmp_path / "out"))
    name, files = FOLD_STEPS[step]
    fold = output / "stage-one" / "fold-1"
    kept = Path(shutil.copytree(fold, tmp_path / "fold-1"))
    for path in fold.glob(files) if files else ():
        path.unlink()
    for table in output.glob("runs/*/*/*/*.csv"):
        if table.name in JOINED:
            table.unlink()
    prepare, real, at = folds.prepare_fold, getattr(folds, name), None

    def noted(spec: FoldSpec, bar: Callable[..., Any]) -> Any:
        nonlocal at
        at = spec.fold
        return prepare(spec, bar)

    def faulty(*arguments: Any, **options: Any) -> Any:
        if at == 1:
            raise ODD
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(run, "prepare_fold", noted)
        patch.setattr(folds, name, faulty)
        patch.setattr(runs, "train_segment", lambda *_: pytest.fail("trained without a stage 1"))
        ended = called(metricunet, file, output)
    assert ended.status == 1
    assert any("plain, fold 1, seed 0" in line and "stage 1: " in line for line in ended.err.splitlines())
    record = json.loads((output / "study.json").read_text())["runs"]
    assert [(r["fold"], r["error"] is None) for r in record] == [(0, True), (1, False)]
    assert "stage 1: " in record[1]["error"]
    assert "something odd over two lines" in record[1]["error"]
    expected = tables(whole)
    assert tables(output) == {path: content for path, content in expected.items() if "fold-0" in path}
    for table in JOINED:
        rows = [row for row in without(whole / table, "", 0) if row["fold"] == "0"]
        assert without(output / table, "", 0) == rows
    shutil.rmtree(fold)
    kept.rename(fold)
    assert called(metricunet, file, output).status == 0
    for table in (*JOINED, "tables.md"):
        assert (output / table).read_bytes() == (whole / table).read_bytes()


def test_a_study_without_any_stage_1_says_why(
    metricunet: Command, two_folds: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, whole = two_folds
    output = Path(shutil.copytree(whole, tmp_path / "out"))
    before = tables(output)
    content = yaml.safe_load((output / "study.yaml").read_text())

    def faulty(*_: Any, **__: Any) -> None:
        raise ODD

    monkeypatch.setattr(folds, "open_run", faulty)
    ended = called(metricunet, file, output)
    assert (ended.status, ended.out) == (2, "")
    assert (
        ended.err.splitlines()[-1]
        == "error: stage 1: an unexpected RuntimeError stopped it: something odd over two lines"
    )
    assert tables(output) == before
    assert yaml.safe_load((output / "study.yaml").read_text()) == content


@pytest.mark.parametrize("damage", [lambda model: model[:500], lambda model: b"", lambda model: b"no model"])
def test_a_damaged_model_of_a_finished_run_costs_that_run_alone(
    copied_study: tuple[Path, Path], metricunet: Command, damage: Callable[[bytes], bytes]
) -> None:
    file, output = copied_study
    model = output / FOLDER / "model.safetensors"
    model.write_bytes(damage(model.read_bytes()))
    before = model.read_bytes(), tables(output)
    ended = metricunet("study", file, "-o", output, "--device", "cpu")
    assert ended.status == 1
    assert FAILING in ended.out + ended.err
    assert "Traceback" not in ended.err
    assert (model.read_bytes(), tables(output)) == before
    for name in JOINED:
        assert without(output / name, "plain", 0) != []
        with (output / name).open(newline="") as handle:
            assert not [row for row in csv.DictReader(handle) if (row["arm"], row["seed"]) == ("plain", "1")]


def test_pictures_that_cannot_be_drawn_cost_no_table(
    copied_study: tuple[Path, Path], metricunet: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, output = copied_study

    def broken(*_: object) -> None:
        raise InputError("a model is damaged")

    monkeypatch.setattr(run, "draw_examples", broken)
    monkeypatch.setattr(run, "_pictured", lambda *_: object())
    ended = metricunet("study", file, "-o", output, "--device", "cpu")
    assert ended.status == 0
    assert "No examples are drawn: a model is damaged." in (output / "tables.md").read_text()
