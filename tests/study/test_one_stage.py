"""Arms of one stage: a network segments the whole scan, and its mask is scored wherever it lies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from metricunet.cohort.layout import read_cohort
from metricunet.errors import InputError
from metricunet.evaluation.measures import measure
from metricunet.evaluation.summary import CaseRow, cases_csv
from metricunet.files.nifti import read_labels, read_nifti
from metricunet.stages.classes import keep_largest_piece
from metricunet.stages.locate import coarse_probabilities, locate_spec
from metricunet.study.conclusions import conclude
from metricunet.study.data import ScoredCase
from metricunet.study.one_stage import segment_whole_scan, train_one_stage
from metricunet.study.run import StudyResult, study
from metricunet.study.sections import describe
from metricunet.study.stage_one import read_located, trained_in
from metricunet.training import fit
from metricunet.training.config import load_config
from metricunet.training.fit import open_run
from tests.study.conftest import write_study
from tests.support.cohorts import TINY_SETTINGS

Made = tuple[Path, Path, StudyResult]
WHOLE: dict[str, Any] = {"stages": 1, "settings": {"locate": {"spacing_mm": [4, 4, 4], "epochs": 3}}}


@pytest.fixture(scope="module")
def one_stage(study_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("one-stage")
    arms = {"whole": WHOLE, "cropped": {}}
    file = write_study(folder / "study.yaml", study_cohort, arms=arms, seeds=[0])
    return file, folder / "out", study(file, folder / "out", device="cpu")


def test_its_rows_are_those_of_whole_scans(one_stage: Made, study_cohort: Path) -> None:
    output = one_stage[1]
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


def test_what_a_study_says_of_it(one_stage: Made) -> None:
    file, output, result = one_stage
    assert not result.failed
    plan = conclude(output).plan
    assert describe(plan.arms["whole"], plan.stages("whole"))[0] == "U-Net, 3D, one stage at 4 mm"
    smoothness = (output / "smoothness.csv").read_text().splitlines()
    assert sum(line.startswith("whole,") for line in smoothness) == 4
    features = [line for line in (output / "features.csv").read_text().splitlines() if line.startswith("whole,")]
    assert len(features) == 4
    assert all(line.endswith(",,,") for line in features)
    again = study(file, output, device="cpu", engine=lambda jobs: pytest.fail(str(jobs)) if jobs else [])
    assert again.text == result.text


def test_a_run_of_two_stages_is_not_taken_for_one(one_stage: Made, tmp_path: Path) -> None:
    file, output, _ = one_stage
    content = yaml.safe_load(file.read_text())
    content["arms"] = {"cropped": {"stages": 1}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="stages was 2, is 1"):
        study(tmp_path / "study.yaml", output, device="cpu")


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


def test_a_mask_far_from_the_target_counts(one_stage: Made, study_cohort: Path) -> None:
    folder = one_stage[1] / "runs" / "whole" / "fold-0" / "seed-0"
    config = load_config("default", folder / "config.yaml")
    run = open_run(study_cohort, folder, config, 0, resume=True, device="cpu")
    located = replace(read_located(folder, run), network=Corner())  # type: ignore[arg-type]
    case = read_cohort(study_cohort).test[0]
    assert case.label is not None
    scored = segment_whole_scan(run, located, ScoredCase(case.name, case.image, {"truth": case.label}))
    (row,) = scored.rows("truth")
    assert row.measures.dice == 0
    assert row.measures.sensitivity == 0
    assert (row.measures.hd95_mm or 0) > 40
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
    located = train_one_stage(replace(run, resume=True), tmp_path / "run")
    case = read_cohort(study_cohort).test[0]
    assert case.label is not None
    silent = replace(located, network=Silent())  # type: ignore[arg-type]
    scored = segment_whole_scan(run, silent, ScoredCase(case.name, case.image, {"truth": case.label}))
    (row,) = scored.rows("truth")
    assert row.measures.outcome == "missed"
