"""Smoothness and features of a run: what is written is what the measures say, and finished runs get it later."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from metricunet.cohort.layout import read_cohort
from metricunet.errors import InputError
from metricunet.evaluation.features import VoxelFeatures, measure_features
from metricunet.evaluation.smoothness import measure_smoothness
from metricunet.files.nifti import read_labels, read_nifti
from metricunet.inference.predictor import Predictor
from metricunet.study.beyond import case_features, feature_lines, read_beyond, write_beyond
from metricunet.study.data import spread
from metricunet.study.run import StudyResult, study
from metricunet.study.runs import carry_out, finished
from metricunet.study.score import cut_predictor
from metricunet.study.stage_one import FITTING, read_cut

Whole = tuple[Path, Path, StudyResult]
RUN = Path("runs", "metric", "fold-0", "seed-0")


def predictor_of(output: Path, run: Path = RUN) -> Predictor:
    return cut_predictor(output / run / "model.safetensors", "cpu")


def test_smoothness_is_that_of_whole_scans(whole_study: Whole, study_cohort: Path) -> None:
    """One look at each whole scan; a missed gland, and one that is not there, have a row without values."""
    output = whole_study[1]
    predictor = predictor_of(output)
    rows = read_beyond(output / RUN / "smoothness.csv")
    cases = read_cohort(study_cohort).test
    assert [(r.arm, r.seed, r.fold, r.case, r.structure) for r in rows] == [
        ("metric", 0, 0, case.name, "prostate") for case in cases
    ]
    for row, case in zip(rows, cases, strict=True):
        assert case.label is not None
        labels, truth = predictor.predict(read_nifti(case.image)).labels, read_labels(case.label)
        if labels is None or not labels.array.any() or not truth.array.any():
            assert set(row.values.values()) == {None}
            continue
        expected = measure_smoothness(labels, truth)
        for name, value in row.values.items():
            assert value == pytest.approx(expected.value(name), abs=1e-5)
    assert sum(None not in r.values.values() for r in rows) == 2


def test_features_are_fitted_on_training_cases_and_scored_on_others(whole_study: Whole) -> None:
    output = whole_study[1]
    folder = output / "stage-one" / "fold-0"
    fitting = sorted(p.stem for p in (folder / "fitting").iterdir())
    assert len(fitting) == 4
    predictor = predictor_of(output)
    parts = [case_features(predictor, read_cut(folder, name, FITTING), {"prostate": 1}, None) for name in fitting]
    training = VoxelFeatures.joined([p for p in parts if p is not None])
    rows = read_beyond(output / RUN / "features.csv")
    assert [r.case for r in rows] == ["case_05", "case_06", "case_07", "case_08"]
    for row in rows:
        own = case_features(predictor, read_cut(folder, row.case), {"prostate": 1}, None)
        if own is None:
            assert set(row.values.values()) == {None}
            continue
        found = measure_features(training, own)
        for name, value in row.values.items():
            assert value == pytest.approx(found.value(name), abs=1e-5)
    assert rows[0].values["probe_accuracy"] is not None
    assert rows[2].values["probe_accuracy"] is None  # holds no gland


def test_every_arm_is_measured_at_the_same_voxels(whole_study: Whole) -> None:
    output = whole_study[1]
    cut = read_cut(output / "stage-one" / "fold-0", "case_05")
    found = [
        case_features(predictor_of(output, Path("runs", arm, "fold-0", "seed-0")), cut, {"prostate": 1}, None)
        for arm in ("plain", "metric")
    ]
    a, b = found
    assert a is not None
    assert b is not None
    assert np.array_equal(a.classes, b.classes)
    assert not np.array_equal(a.values, b.values)
    assert np.bincount(a.classes).min() > 20


def test_finished_runs_get_what_they_lack_without_training(
    copied_study: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a version left them that knew neither file."""
    file, output = copied_study
    names = ["smoothness.csv", "features.csv"]
    paths = [p for name in names for p in [output / name, *output.glob(f"runs/*/*/*/{name}")]]
    before = {p: p.read_bytes() for p in paths}
    shutil.rmtree(output / "stage-one" / "fold-0" / "fitting")
    for path in paths:
        path.unlink()
    kept = {p: p.stat().st_mtime_ns for p in output.rglob("runs/*/*/*/*") if p.is_file()}
    monkeypatch.setattr("metricunet.study.runs._train_and_score", lambda *_: pytest.fail("trained again"))
    study(file, output, device="cpu")
    assert {p: p.read_bytes() for p in paths} == before
    assert {p: p.stat().st_mtime_ns for p in kept} == kept


def test_a_run_lacks_nothing_but_what_is_missing(copied_study: tuple[Path, Path]) -> None:
    file, output = copied_study
    job = study(file, output, device="cpu").runs[0].job
    (job.folder / "features.csv").unlink()
    assert finished(job) is None
    smoothness = (job.folder / "smoothness.csv").stat().st_mtime_ns
    assert carry_out(job).error is None
    assert finished(job) is not None
    assert (job.folder / "smoothness.csv").stat().st_mtime_ns == smoothness


def test_without_voxels_to_fit_on_there_are_rows_without_values(whole_study: Whole) -> None:
    output = whole_study[1]
    folder = output / "stage-one" / "fold-0"
    lines = feature_lines(predictor_of(output), folder, [], ["case_05", "case_06"], {"prostate": 1}, None)
    assert [line[0] for line in lines] == ["case_05", "case_06"]
    assert all(set(values.values()) == {None} for _, _, values in lines)
    predictor = predictor_of(output)
    cut = read_cut(folder, "case_05")
    nowhere = replace(cut, found=replace(cut.found, centre_mm=None))
    assert case_features(predictor, nowhere, {"prostate": 1}, None) is None


def test_rows_that_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "features.csv"
    values = {"fisher_ratio": float("inf"), "knn_accuracy": 0.5, "probe_accuracy": None}
    write_beyond(path, "a", 1, "all", [("odd, name", None, values)])
    (row,) = read_beyond(path)
    assert (row.fold, row.case, row.structure) == ("all", "odd, name", None)
    assert row.values == {"fisher_ratio": None, "knn_accuracy": 0.5, "probe_accuracy": None}
    path.write_text("arm,seed\na,1\n")
    with pytest.raises(InputError, match=r"features\.csv: not readable"):
        read_beyond(path)


def test_a_sample_is_spread_over_all() -> None:
    assert spread(range(10), 3) == [0, 3, 6]
    assert spread(range(2), 3) == [0, 1]
    assert spread([], 3) == []
