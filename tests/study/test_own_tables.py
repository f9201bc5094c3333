"""A study replaces only what it wrote, and one run never costs another its result."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metricunet.errors import InputError
from metricunet.files.own import read_sealed
from metricunet.study import run as run_module
from metricunet.study import runs
from metricunet.study.folds import FoldSpec, PreparedFold
from metricunet.study.run import STUDY_RECORD, study
from metricunet.study.runs import Pipeline, TwoStages
from metricunet.study.scoring import ScoredCut
from tests.study.conftest import SHORT, write_study
from tests.study.test_run import RESULTS
from tests.support.cohorts import make_tiny_cohort


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", [*RESULTS, "figures/arms.png", STUDY_RECORD])
def test_a_table_that_somebody_changed_is_theirs(copied_study: tuple[Path, Path], name: str) -> None:
    file, output = copied_study
    with (output / name).open("ab") as handle:
        handle.write(b"\n\n")
    if name == STUDY_RECORD:
        (output / name).write_text(json.dumps(json.loads((output / name).read_text()) | {"version": "mine"}))
    before = contents(output)
    with pytest.raises(InputError, match="was changed since") as error:
        study(file, output, device="cpu")
    assert "\n" not in str(error.value)
    assert "move it elsewhere" in str(error.value)
    assert contents(output) == before


def test_results_of_somebody_else_are_never_replaced(study_cohort: Path, tmp_path: Path) -> None:
    """The study file itself lies in the output folder, beside tables of its writer."""
    output = tmp_path / "thesis"
    output.mkdir()
    file = write_study(output / "study.yaml", study_cohort)
    (output / "cases.csv").write_text("mine\n")
    before = contents(output)
    with pytest.raises(InputError, match=r"cases\.csv: is there already, and it was not written by this program"):
        study(file, output, device="cpu")
    assert contents(output) == before


def test_a_study_file_in_the_output_folder_stays_as_it_was_written(study_cohort: Path, tmp_path: Path) -> None:
    file = write_study(tmp_path / "study.yaml", study_cohort, arms={"plain": {"settings": SHORT, "seeds": [0]}})
    file.write_text(f"# What I want to know\n{file.read_text()}")
    before = file.read_bytes()
    run = tmp_path / "runs" / "plain" / "fold-0" / "seed-0"
    run.mkdir(parents=True)
    (run / "log.csv").write_text("mine\n")
    with pytest.raises(InputError, match=r"all 1 runs failed.*holds log\.csv, and nothing that says"):
        study(file, tmp_path, device="cpu")
    assert contents(run) == {"log.csv": b"mine\n"}
    assert read_sealed(tmp_path / STUDY_RECORD) is not None
    (run / "log.csv").unlink()
    assert not study(file, tmp_path, device="cpu").failed
    assert file.read_bytes() == before


def test_the_copy_of_the_study_file_is_replaced_unless_somebody_changed_it(
    copied_study: tuple[Path, Path], study_cohort: Path
) -> None:
    file, output = copied_study
    write_study(file, study_cohort, arms={"plain": {"seeds": [0]}})
    study(file, output, device="cpu")
    assert "metric" not in (output / "study.yaml").read_text().split("seeds")[0].split("arms")[1]
    (output / "study.yaml").write_text(f"# mine\n{(output / 'study.yaml').read_text()}")
    before = contents(output)
    with pytest.raises(InputError, match=r"study\.yaml: is there already, and it was not written by this program"):
        study(write_study(file, study_cohort), output, device="cpu")
    assert contents(output) == before


def test_a_study_into_its_cohort_or_above_it_is_refused(study_cohort: Path, tmp_path: Path) -> None:
    cohort = Path(shutil.copytree(study_cohort, tmp_path / "data" / "cohort"))
    file = write_study(tmp_path / "s.yaml", cohort)
    before = contents(tmp_path)
    for output in (cohort, cohort.parent, cohort / "imagesTr"):
        with pytest.raises(InputError, match="holds other files and no study"):
            study(file, output, device="cpu")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("where", "step"),
    [
        (TwoStages, "train"),
        (ScoredCut, "overlap"),
        (ScoredCut, "smoothness"),
        (runs, "write_table"),
        (runs, "run_facts"),
    ],
)
def test_a_fault_of_any_kind_in_one_run_leaves_the_others_their_results(
    copied_study: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, where: Any, step: str
) -> None:
    file, output = copied_study
    whole = contents(output)
    broken = output / "runs" / "plain" / "fold-0" / "seed-1"
    for name in ("cases.csv", "smoothness.csv", "features.csv"):
        (broken / name).unlink()
        (output / "runs" / "metric" / "fold-0" / "seed-0" / name).unlink()
    train_and_score, sound = runs._train_and_score, getattr(where, step)

    def raising(*words: object, **named: object) -> None:
        raise KeyError("two\nlines")

    def faulty(pipeline: Pipeline) -> None:
        if pipeline.spec.folder == broken:
            monkeypatch.setattr(where, step, raising)
        try:
            train_and_score(pipeline)
        finally:
            monkeypatch.setattr(where, step, sound)

    monkeypatch.setattr(runs, "_train_and_score", faulty)
    result = study(file, output, device="cpu")
    assert [(run.spec.folder, run.error) for run in result.failed] == [
        (broken, "an unexpected KeyError stopped it: 'two\\nlines'")
    ]
    assert "Failed, and not in the tables: plain, fold 0, seed 1: an unexpected KeyError" in result.text
    rows = (output / "cases.csv").read_text().splitlines()
    assert rows == [row for row in whole["cases.csv"].decode().splitlines() if not row.startswith("plain,1,")]
    record = read_sealed(output / STUDY_RECORD)
    assert record is not None
    assert [run["error"] is None for run in record["runs"]] == [True, False, True, True]
    monkeypatch.undo()
    assert not study(file, output, device="cpu").failed
    assert {name: (output / name).read_bytes() for name in RESULTS} == {name: whole[name] for name in RESULTS}


def test_a_fault_in_one_stage_1_leaves_the_runs_of_other_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = make_tiny_cohort(tmp_path / "cohort", 6)
    arms = {"plain": {"settings": SHORT}}
    file = write_study(tmp_path / "s.yaml", cohort, folds=[0, 1], seeds=[0], arms=arms)
    prepare = run_module.prepare_fold

    def faulty(spec: FoldSpec, bar: object) -> PreparedFold:
        if spec.fold == 0:
            raise ZeroDivisionError("by chance")
        return prepare(spec, bar)  # type: ignore[arg-type]

    monkeypatch.setattr(run_module, "prepare_fold", faulty)
    result = study(file, tmp_path / "out", device="cpu")
    assert [(run.spec.fold, run.error) for run in result.failed] == [
        (0, "stage 1: an unexpected ZeroDivisionError stopped it: by chance")
    ]
    assert "| plain | 0 | " in result.text
    monkeypatch.setattr(run_module, "prepare_fold", lambda spec, bar: faulty(replace(spec, fold=0), bar))
    with pytest.raises(InputError, match="stage 1: an unexpected ZeroDivisionError stopped it: by chance"):
        study(file, tmp_path / "other", device="cpu")
