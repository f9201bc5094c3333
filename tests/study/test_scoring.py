"""Scoring: the masks of models on cuts and on whole scans, and what is measured in them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metricunet.cohort.layout import read_cohort
from metricunet.errors import InputError
from metricunet.evaluation.features import VoxelFeatures, fit_probes
from metricunet.evaluation.measures import Measures, measure
from metricunet.evaluation.smoothness import measure_smoothness
from metricunet.evaluation.summary import CaseRow, cases_csv
from metricunet.files.nifti import read_labels, read_nifti, write_nifti
from metricunet.inference.predictor import Predictor
from metricunet.stages.classes import keep_largest_piece
from metricunet.stages.forward import coarse_probabilities
from metricunet.stages.locate import Localisation, locate_spec
from metricunet.study.data import ScoredCase
from metricunet.study.folds import FITTING, Cut, read_cut, read_located, trained_in
from metricunet.study.results import FEATURES, SMOOTHNESS, read_table
from metricunet.study.run import StudyResult
from metricunet.study.scoring import (
    case_features,
    cut_predictor,
    score_features,
    segment_cut,
    segment_whole_scan,
)
from metricunet.training import fit
from metricunet.training.config import load_config
from metricunet.training.fit import open_run
from metricunet.volume import Geometry, Volume
from tests.support.cohorts import TINY_SETTINGS

Whole = tuple[Path, Path, StudyResult]
RUN = Path("runs", "metric", "fold-0", "seed-0")


def predictor_of(output: Path, run: Path = RUN) -> Predictor:
    return cut_predictor(output / run / "model.safetensors", "cpu", "auto")


def test_smoothness_is_that_of_whole_scans(whole_study: Whole, study_cohort: Path) -> None:
    """One look at each whole scan; a missed gland, and one that is not there, have a row without values."""
    output = whole_study[1]
    predictor = predictor_of(output)
    rows = read_table(output / RUN, SMOOTHNESS)
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
    rows = read_table(output / RUN, FEATURES)
    assert [r.case for r in rows] == ["case_05", "case_06", "case_07", "case_08"]
    for row in rows:
        own = case_features(predictor, read_cut(folder, row.case), {"prostate": 1}, None)
        if own is None:
            assert set(row.values.values()) == {None}
            continue
        found = fit_probes(training).measure(own)
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


def test_without_voxels_to_fit_on_there_are_rows_without_values(whole_study: Whole) -> None:
    output = whole_study[1]
    folder = output / "stage-one" / "fold-0"
    lines = score_features(predictor_of(output), folder, [], ["case_05", "case_06"], {"prostate": 1}, None)
    assert [line[0] for line in lines] == ["case_05", "case_06"]
    assert all(set(values.values()) == {None} for _, _, values in lines)
    predictor = predictor_of(output)
    cut = read_cut(folder, "case_05")
    nowhere = replace(cut, found=replace(cut.found, centre_mm=None))
    assert case_features(predictor, nowhere, {"prostate": 1}, None) is None


GRID = Geometry.from_parts((6, 10, 10), (3.0, 1.0, 1.0))


def test_what_was_not_contoured_is_not_measured() -> None:
    labels = np.zeros(GRID.shape, dtype=np.uint8)
    labels[2:4, 2:5, 2:5] = 1
    found = labels.copy()
    found[2:4, 6:9, 6:9] = 2
    predictor: Any = SimpleNamespace(segment=lambda image, located: SimpleNamespace(labels=Volume(found, GRID)))
    where = Localisation("found", 1.0, "", np.zeros(3), 1.0)
    dice = []
    for unknown in ((), ("bladder",)):
        cut = Cut("a", Volume(labels, GRID), {"truth": Volume(labels, GRID)}, where, "", unknown)
        scored = segment_cut(predictor, cut, {"prostate": 1, "bladder": 2}, None)
        prostate, bladder = scored.overlap("truth")
        assert (prostate.case, prostate.structure, bladder.structure) == ("a", "prostate", "bladder")
        assert prostate.values["dice"] == 1
        dice.append(bladder.values["dice"])
    assert dice == [0.0, None]
    prostate, bladder = scored.smoothness()
    assert (prostate.structure, bladder.structure) == ("prostate", "bladder")
    assert prostate.values["contour_length_excess_percent"] == 0
    assert set(bladder.values.values()) == {None}


def test_rows_of_one_stage_are_those_of_whole_scans(one_stage_study: Whole, study_cohort: Path) -> None:
    output = one_stage_study[1]
    folder = output / "runs" / "whole" / "fold-0" / "seed-0"
    config = load_config("default", folder / "config.yaml")
    run = open_run(study_cohort, folder, config, 0, resume=True, device="cpu")
    network = read_located(folder, run).network
    spec = locate_spec(config.locate, 2)
    rows = []
    for case in read_cohort(study_cohort).test:
        assert case.label is not None
        image, reference = read_nifti(case.image).canonical(), read_labels(case.label).canonical()
        share = coarse_probabilities(network, spec, image)[1].resample(image.geometry).array
        classes = (share > 0.5).astype(np.uint8)
        keep_largest_piece(classes, 1)
        rows.append(CaseRow(case.name, "prostate", measure(image.with_array(classes), reference)))
    assert max(row.measures.dice or 0 for row in rows) > 0.7  # it has learned something
    expected = [f"whole,0,0,{line}" for line in cases_csv(rows).splitlines()[1:]]
    assert (folder / "cases.csv").read_text().splitlines()[1:] == expected


class Corner(nn.Module):
    """Sees the target in the first voxels of every scan."""

    divisor = 1

    def __init__(self) -> None:
        super().__init__()
        self.somewhere = nn.Parameter(torch.zeros(1))  # a network is where its parameters are

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.stack([torch.zeros_like(x[:, 0]), torch.full_like(x[:, 0], -9.0)], dim=1)
        logits[:, 1, :8, :8, :8] = 9.0
        return logits


def test_a_mask_far_from_the_target_counts(one_stage_study: Whole, study_cohort: Path) -> None:
    folder = one_stage_study[1] / "runs" / "whole" / "fold-0" / "seed-0"
    config = load_config("default", folder / "config.yaml")
    run = open_run(study_cohort, folder, config, 0, resume=True, device="cpu")
    located = replace(read_located(folder, run), network=Corner())  # type: ignore[arg-type]
    case = read_cohort(study_cohort).test[0]
    assert case.label is not None
    scored = segment_whole_scan(run, located, ScoredCase(case.name, case.image, {"truth": case.label}))
    (measured,) = scored.overlap("truth")
    assert measured.values["dice"] == 0
    assert measured.values["sensitivity"] == 0
    assert (measured.values["hd95_mm"] or 0) > 40
    assert 8**3 * 0.8 < scored.values.sum() * 4 * 3 * 3 / 4**3 < 8**3 * 1.2


class Silent(Corner):
    """Sees no target anywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(x[:, 0]), torch.full_like(x[:, 0], -9.0)], dim=1)


def test_a_network_that_finds_nothing_misses_every_target(
    study_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config("default", settings=[*TINY_SETTINGS, "locate.epochs=1", "locate.updates_per_epoch=1"])
    run = open_run(study_cohort, tmp_path / "run", config, 0, resume=False, device="cpu")
    monkeypatch.setattr(fit, "localisation_errors_mm", lambda *arguments: np.zeros((0, 3)))
    with pytest.raises(InputError, match="finds the prostate in none"):
        trained_in(tmp_path / "run", run)
    located = trained_in(tmp_path / "run", replace(run, resume=True), may_find_nothing=True)
    case = read_cohort(study_cohort).test[0]
    assert case.label is not None
    silent = replace(located, network=Silent())  # type: ignore[arg-type]
    scored = segment_whole_scan(run, silent, ScoredCase(case.name, case.image, {"truth": case.label}))
    (measured,) = scored.overlap("truth")
    assert Measures(**measured.values).outcome == "missed"


def test_one_stage_scores_a_structure_whose_value_needs_two_bytes(
    one_stage_study: Whole, study_cohort: Path, tmp_path: Path
) -> None:
    folder = one_stage_study[1] / "runs" / "whole" / "fold-0" / "seed-0"
    config = load_config("default", folder / "config.yaml")
    run = open_run(study_cohort, folder, config, 0, resume=True, device="cpu")
    located = read_located(folder, run)
    case = read_cohort(study_cohort).test[0]
    assert case.label is not None
    labels = read_labels(case.label)
    write_nifti(tmp_path / "labels.nii.gz", labels.with_array(labels.array.astype(np.uint16) * 1000))
    expected = segment_whole_scan(run, located, ScoredCase(case.name, case.image, {"truth": case.label}))
    high = replace(run, info=replace(run.info, labels={"prostate": 1000}))
    scored = segment_whole_scan(
        high, located, ScoredCase(case.name, case.image, {"truth": tmp_path / "labels.nii.gz"})
    )
    assert scored.overlap("truth") == expected.overlap("truth")
    assert set(np.unique(scored.values).tolist()) == {0, 1000}
