"""Results that are kept apart from a study's folder: what they are, and that the study goes on from them alone."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metricunet.cohort.layout import image_path, label_path
from metricunet.errors import InputError
from metricunet.files.nifti import write_nifti
from metricunet.study import folds, kept, run, runs
from metricunet.study.folds import FoldSpec, read_prepared
from metricunet.study.run import StudyResult, study
from tests.study.conftest import SHORT, write_study
from tests.study.test_run import RESULTS
from tests.support.cohorts import edit_json, make_scan, make_tiny_cohort
from tests.support.command import Command

pytestmark = pytest.mark.usefixtures("no_pictures")

ARMS = {"plain": {"settings": SHORT}, "metric": {"settings": {**SHORT, "metric": {"mode": "online"}}}}
STAGE_ONE = [
    f"stage-one/fold-{fold}/{name}"
    for fold in (0, 1)
    for name in ("checkpoints/state.json", "locate.safetensors", "prepared.json")
]
OF_RUNS = [
    f"runs/{arm}/fold-{fold}/seed-0/{name}"
    for arm in ARMS
    for fold in (0, 1)
    for name in ("cases.csv", "features.csv", "key.json", "run.json", "smoothness.csv")
]


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names(folder)}


def write(path: Path, cohort: Path, **changes: Any) -> Path:
    """The study file of two arms in two folds."""
    return write_study(path, cohort, **({"arms": ARMS, "seeds": [0], "folds": [0, 1]} | changes))


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a cohort/, of study.yaml, and of that study, finished, in out/ and in kept/. Not to be changed.

    Each fold is scored on a case of its own that the other does not know.
    """
    folder = tmp_path_factory.mktemp("kept")
    cohort = make_tiny_cohort(folder / "cohort", 5)
    cases = [f"case_{k:02d}" for k in range(5)]
    splits = [{"train": cases[:3], "val": [val]} for val in cases[3:]]
    (cohort / "splits.json").write_text(json.dumps(splits))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "draw_figures", lambda *_: None)
        study(write(folder / "study.yaml", cohort), folder / "out", device="cpu", keep=folder / "kept")
    return folder


@pytest.fixture
def elsewhere(whole: Path, tmp_path: Path) -> Path:
    """Another machine: a folder with cohort/ and kept/ as they were copied there, and the study file."""
    for name in ("cohort", "kept"):
        shutil.copytree(whole / name, tmp_path / name, ignore=shutil.ignore_patterns("prepared"))
    write(tmp_path / "study.yaml", tmp_path / "cohort")
    return tmp_path


def go_on(folder: Path, say: Callable[[str], None] = lambda _: None) -> StudyResult:
    return study(folder / "study.yaml", folder / "out", device="cpu", keep=folder / "kept", say=say)


def assert_same_results(folder: Path, whole: Path) -> None:
    for name in RESULTS:
        assert (folder / "out" / name).read_bytes() == (whole / "out" / name).read_bytes(), name


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is trained, and nothing cut."""
    for module, name in ((folds, "train_locate"), (folds, "make_cut"), (runs, "train_segment")):
        monkeypatch.setattr(module, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))


def test_what_is_kept_is_small_and_what_a_study_goes_on_from(whole: Path) -> None:
    assert names(whole / "kept") == sorted([".study-file.json", "study.yaml", *STAGE_ONE, *OF_RUNS])
    assert all((whole / "kept" / n).read_bytes() == (whole / "out" / n).read_bytes() for n in STAGE_ONE + OF_RUNS)


@pytest.mark.usefixtures("no_training")
def test_a_study_ends_with_the_same_tables_from_what_is_kept_alone(whole: Path, elsewhere: Path) -> None:
    before = contents(elsewhere / "kept")
    said: list[str] = []
    assert not go_on(elsewhere, said.append).failed
    assert_same_results(elsewhere, whole)
    assert said[0] == f"runs taken up from {elsewhere / 'kept'}: 4"
    assert said[-1] == "4 of 4 runs were finished before"
    assert contents(elsewhere / "kept") == before
    assert not [path for path in names(elsewhere / "out") if path.endswith(".claim.json")]
    said.clear()
    go_on(elsewhere, said.append)  # from its own folder, with nothing left to take up
    assert not any("taken up" in line for line in said)
    assert_same_results(elsewhere, whole)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("stage_one", [True, False])
def test_a_copy_of_what_is_kept_is_a_study_s_folder(whole: Path, elsewhere: Path, stage_one: bool) -> None:
    """Stage 1 is not needed where all runs are finished; version control may leave it out as it is no text."""
    (elsewhere / "kept").rename(elsewhere / "out")
    for path in elsewhere.glob("out/stage-one/*/locate.safetensors"):
        if not stage_one:
            path.unlink()
    study(elsewhere / "study.yaml", elsewhere / "out", device="cpu")
    assert_same_results(elsewhere, whole)


@pytest.mark.parametrize("of_fold_1", ["stage-one", "runs", ""])
def test_what_is_not_kept_is_trained_and_kept_beside_the_rest(
    whole: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, of_fold_1: str
) -> None:
    """Of the second fold stage 1 is kept, or a finished run of the two, or nothing."""
    for path in elsewhere.glob("kept/*/**/fold-1"):
        if of_fold_1 == "" or not path.is_relative_to(elsewhere / "kept" / of_fold_1):
            shutil.rmtree(path)
    if of_fold_1 == "runs":
        shutil.copytree(whole / "kept/stage-one/fold-1", elsewhere / "kept/stage-one/fold-1")
        shutil.rmtree(elsewhere / "kept/runs/plain/fold-1")
    prepared: list[Any] = []
    train = folds.train_locate

    def noted(training: Any, **options: Any) -> Any:
        prepared.append(training.folder.name)
        return train(training, **options)

    monkeypatch.setattr(folds, "train_locate", noted)
    assert not go_on(elsewhere).failed
    assert prepared == ([] if of_fold_1 else ["fold-1"])
    assert_same_results(elsewhere, whole)
    for name in STAGE_ONE + OF_RUNS:
        if Path(name).name not in ("run.json", "locate.safetensors"):
            assert (elsewhere / "kept" / name).read_bytes() == (whole / "kept" / name).read_bytes(), name


def test_another_scored_scan_costs_its_fold_alone(metricunet: Command, whole: Path, elsewhere: Path) -> None:
    """The first fold is scored on a scan that has changed: nothing of it is mixed with anything of the second."""
    write_nifti(image_path(elsewhere / "cohort", "case_03", "Tr"), make_scan(9)[0])
    before = contents(elsewhere / "kept")
    words = ("study", elsewhere / "study.yaml", "-o", elsewhere / "out", "--device", "cpu")
    ended = metricunet(*words, "--keep", elsewhere / "kept")
    assert ended.status == 1
    failed = [line for line in ended.err.splitlines() if line.startswith("failed: ")]
    assert [line.split(":")[1].strip() for line in failed] == ["plain, fold 0, seed 0", "metric, fold 0, seed 0"]
    assert all(
        f"{elsewhere / 'out/stage-one/fold-0/prepared.json'}: the runs of this fold were carried out on other "
        f"scored cases than {elsewhere / 'cohort'} holds on this machine; results must not be mixed" in line
        for line in failed
    )
    with (whole / "out" / "cases.csv").open(newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["fold"] == "1"]
    with (elsewhere / "out" / "cases.csv").open(newline="") as handle:
        assert list(csv.DictReader(handle)) == rows
    assert contents(elsewhere / "kept") == before


def test_another_training_scan_costs_all_folds_that_have_it(elsewhere: Path) -> None:
    image, labels = make_scan(9)
    write_nifti(image_path(elsewhere / "cohort", "case_00", "Tr"), image)
    write_nifti(label_path(elsewhere / "cohort", "case_00", "Tr"), labels)
    with pytest.raises(InputError, match=r"fold-0: .*the training or validation cases are others"):
        go_on(elsewhere)


@pytest.mark.usefixtures("no_training")
def test_other_test_cases_than_finished_folds_had_stop_a_study_before_it_trains_the_next(
    copied_study: tuple[Path, Path], study_cohort: Path, tmp_path: Path
) -> None:
    """All folds are scored on them: hours later none could stand beside those that were finished elsewhere."""
    file, output = copied_study
    study(file, output, device="cpu", keep=tmp_path / "kept")
    cohort = Path(shutil.copytree(study_cohort, tmp_path / "cohort"))
    write_nifti(image_path(cohort, "case_05", "Ts"), make_scan(9)[0])
    write_study(file, cohort, folds=[0, 1])
    before = contents(tmp_path / "kept/runs")
    with pytest.raises(
        InputError, match=r"fold-0.prepared\.json: .*other scored cases than .*cohort holds"
    ) as error:
        study(file, tmp_path / "kept", device="cpu")
    assert "\n" not in str(error.value)
    assert contents(tmp_path / "kept/runs") == before


def test_the_record_of_a_fold_names_the_cases_of_its_kept_runs_whatever_is_scored_later(
    copied_study: tuple[Path, Path], study_cohort: Path, tmp_path: Path
) -> None:
    """Else a machine that has the very cases would be told that it has others."""
    file, output = copied_study
    study(file, output, device="cpu", keep=tmp_path / "kept")
    before = contents(tmp_path / "kept")
    cohort = Path(shutil.copytree(study_cohort, tmp_path / "cohort"))
    for one, other in (("images", "_0000"), ("labels", "")):
        shutil.copy(cohort / f"{one}Ts/case_05{other}.nii.gz", cohort / f"{one}Ts/case_06{other}.nii.gz")
    write_study(file, cohort)
    said: list[str] = []
    with pytest.raises(InputError, match="other scored cases"):
        study(file, output, device="cpu", keep=tmp_path / "kept", say=said.append)
    assert contents(tmp_path / "kept") == before
    record = tmp_path / "kept/stage-one/fold-0/prepared.json"
    assert [line for line in said if line.startswith(f"{record}: says something else than ")]


def test_a_record_of_a_fold_that_somebody_changed_is_not_believed(whole: Path, elsewhere: Path) -> None:
    edited = elsewhere / "kept/stage-one/fold-0/prepared.json"
    edit_json(edited, off_mm=[0.0])
    text = edited.read_text()
    said: list[str] = []
    assert read_prepared(edited.parent) is None
    assert not go_on(elsewhere, said.append).failed
    assert_same_results(elsewhere, whole)
    assert read_prepared(elsewhere / "out/stage-one/fold-0") == read_prepared(whole / "out/stage-one/fold-0")
    assert edited.read_text() == text
    assert [line for line in said if line.startswith(f"{edited}: says something else than ")]


def test_tables_of_a_model_that_is_gone_are_not_filled_up(
    whole: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere / "kept").rename(elsewhere / "out")
    half = elsewhere / "out/runs/metric/fold-0/seed-0"
    (half / "smoothness.csv").unlink()
    before = contents(half)
    monkeypatch.setattr(runs, "train_segment", lambda *_: pytest.fail("trained once more"))
    result = study(elsewhere / "study.yaml", elsewhere / "out", device="cpu")
    assert [(failed.spec.folder, failed.error) for failed in result.failed] == [
        (
            half,
            f"{half}: holds part of the tables of a run whose model is gone (smoothness.csv is not there); delete "
            f"{half} and run the study again",
        )
    ]
    assert contents(half) == before
    rows = (whole / "out" / "cases.csv").read_text().splitlines()
    expected = [row for row in rows if not row.startswith("metric,0,0,")]
    assert (elsewhere / "out" / "cases.csv").read_text().splitlines() == expected
    monkeypatch.undo()
    shutil.rmtree(half)
    assert not study(elsewhere / "study.yaml", elsewhere / "out", device="cpu").failed
    assert (elsewhere / "out" / "cases.csv").read_text().splitlines() == rows


def test_a_run_of_which_not_all_tables_are_kept_is_not_taken_up(whole: Path, elsewhere: Path) -> None:
    (elsewhere / "kept/runs/metric/fold-0/seed-0/smoothness.csv").unlink()
    said: list[str] = []
    assert not go_on(elsewhere, said.append).failed
    assert f"runs taken up from {elsewhere / 'kept'}: 3" in said
    assert_same_results(elsewhere, whole)
    assert (elsewhere / "out/runs/metric/fold-0/seed-0/model.safetensors").is_file()
    assert names(elsewhere / "kept") == names(whole / "kept")


def test_a_study_that_is_stopped_has_kept_what_was_finished(
    whole: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(elsewhere / "kept")
    train, calls = runs.train_segment, 0

    def stopped(*words: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return train(*words)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "train_segment", stopped)
        with pytest.raises(KeyboardInterrupt):
            go_on(elsewhere)
    first = [name for name in OF_RUNS if name.startswith("runs/plain/fold-0/")]
    assert names(elsewhere / "kept") == sorted([".study-file.json", "study.yaml", *STAGE_ONE, *first])
    shutil.rmtree(elsewhere / "out")
    monkeypatch.setattr(folds, "train_locate", lambda *_, **__: pytest.fail("stage 1 is kept"))
    go_on(elsewhere)
    assert_same_results(elsewhere, whole)


def test_a_run_that_was_begun_here_is_taken_up_where_it_is_kept_finished(
    whole: Path, elsewhere: Path, no_training: None
) -> None:
    shutil.copytree(whole / "out", elsewhere / "out")
    begun = elsewhere / "out/runs/plain/fold-0/seed-0"
    for name in ("cases.csv", "smoothness.csv", "features.csv", "run.json", "model.safetensors"):
        (begun / name).unlink()
    assert not go_on(elsewhere).failed
    assert_same_results(elsewhere, whole)
    assert (begun / "checkpoints").is_dir()


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("name", ["runs/plain/fold-0/seed-0/cases.csv", "stage-one/fold-1/checkpoints/state.json"])
def test_other_results_than_are_kept_are_refused_before_any_work(whole: Path, elsewhere: Path, name: str) -> None:
    shutil.copytree(whole / "out", elsewhere / "out")
    (elsewhere / "out" / name).write_text("other\n")
    before = contents(elsewhere / "kept"), contents(elsewhere / "out" / "runs")
    with pytest.raises(InputError, match=f"kept/{name}: says something else than .*must not be mixed") as error:
        go_on(elsewhere)
    assert "\n" not in str(error.value)
    assert (contents(elsewhere / "kept"), contents(elsewhere / "out" / "runs")) == before


@pytest.mark.usefixtures("no_training")
def test_what_a_process_left_that_was_killed_while_it_kept_a_run_is_not_mixed_with_another_training(
    whole: Path, elsewhere: Path
) -> None:
    """Its key is what it keeps last; the run was carried out once more elsewhere, and not to the very same end."""
    shutil.copytree(whole / "out", elsewhere / "out")
    run = elsewhere / "kept/runs/metric/fold-0/seed-0"
    (run / "key.json").unlink()
    (run / "cases.csv").unlink()
    for name in ("features.csv", "run.json"):
        (run / name).write_text("of the other training\n")
    assert not go_on(elsewhere).failed
    assert contents(elsewhere / "kept") == contents(whole / "kept")


@pytest.mark.usefixtures("no_training")
def test_a_run_that_is_kept_in_part_is_not_filled_up_from_another_training(whole: Path, elsewhere: Path) -> None:
    shutil.copytree(whole / "out", elsewhere / "out")
    run = elsewhere / "kept/runs/metric/fold-0/seed-0"
    (run / "smoothness.csv").unlink()
    (run / "cases.csv").write_text("of the other training\n")
    before = contents(elsewhere / "kept")
    said: list[str] = []
    assert not go_on(elsewhere, said.append).failed
    assert [line for line in said if line.startswith(f"{run / 'cases.csv'}: says something else than ")]
    assert contents(elsewhere / "kept") == before


def test_a_folder_of_another_study_is_refused(elsewhere: Path) -> None:
    before = contents(elsewhere)
    write(elsewhere / "study.yaml", elsewhere / "cohort", name="other", seeds=[0, 1])
    with pytest.raises(InputError, match=r"kept/study\.yaml: results of another study.*\(other name, seeds\)"):
        go_on(elsewhere)
    assert not (elsewhere / "out").exists()
    write(elsewhere / "study.yaml", elsewhere / "cohort")
    assert contents(elsewhere) == before


def test_a_folder_that_is_no_place_for_results_is_refused(elsewhere: Path) -> None:
    file, output = elsewhere / "study.yaml", elsewhere / "out"
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine" / "thesis.txt").write_text("precious")
    for folder, message in (
        (elsewhere / "mine", "mine: holds other files and no results of a study"),
        (file, r"study\.yaml: is a file; expected a folder to keep results in"),
        (output, "keep=.*out'?: must lie apart from the study's folder"),
        (output / "kept", "must lie apart from the study's folder"),
        (elsewhere, "must lie apart from the study's folder"),
    ):
        with pytest.raises(InputError, match=message):
            study(file, output, device="cpu", keep=folder)
    assert not output.exists()
    assert names(elsewhere / "mine") == ["thesis.txt"]


@pytest.mark.usefixtures("no_training")
def test_what_cannot_be_kept_costs_no_run_and_is_tried_again_at_the_end(
    whole: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole / "out", elsewhere / "out")
    shutil.rmtree(elsewhere / "kept")
    copy, full = kept._copy, True

    def faulty(source: Path, target: Path) -> None:
        if full and "plain" in source.parts:
            raise InputError(f"{target}: the disk is full")
        copy(source, target)

    monkeypatch.setattr(kept, "_copy", faulty)
    said: list[str] = []
    with pytest.raises(InputError, match="the disk is full"):
        go_on(elsewhere, said.append)
    assert len([line for line in said if line.startswith("not kept yet: ")]) == 2
    assert_same_results(elsewhere, whole)
    assert names(elsewhere / "kept/runs") == [name for name in names(whole / "kept/runs") if "metric" in name]
    full = False
    go_on(elsewhere)
    assert names(elsewhere / "kept") == names(whole / "kept")


def test_arms_of_one_stage_are_kept_too(
    one_stage_study: tuple[Path, Path, StudyResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, output, result = one_stage_study
    shutil.copytree(output, tmp_path / "first")
    study(file, tmp_path / "first", device="cpu", keep=tmp_path / "kept")
    assert not list(tmp_path.glob("kept/runs/**/*.safetensors"))
    for module, name in ((folds, "train_locate"), (folds, "make_cut"), (runs, "train_segment")):
        monkeypatch.setattr(module, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))
    again = study(file, tmp_path / "second", device="cpu", keep=tmp_path / "kept")
    assert again.text == result.text
    assert (tmp_path / "second/cases.csv").read_bytes() == (output / "cases.csv").read_bytes()


def test_stage_1_is_where_it_was_cut_with_it(
    whole: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fold with its cuts is looked at as ever, and a damaged cut made anew, though its runs are finished."""
    shutil.copytree(whole / "out", elsewhere / "out")
    cut = elsewhere / "out/stage-one/fold-0/cuts/case_03.npz"
    cut.write_bytes(b"")
    finished: list[bool] = []
    prepare = run.prepare_fold

    def noted(spec: FoldSpec, bar: Any) -> Any:
        finished.append(spec.finished)
        return prepare(spec, bar)

    monkeypatch.setattr(run, "prepare_fold", noted)
    go_on(elsewhere)
    assert finished == [True, True]
    assert cut.stat().st_size > 0
