"""Cohorts with something unusual in them: trained on to the end, or refused in one line before any work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from metricunet.cohort.layout import image_path, label_path
from metricunet.cohort.splits import Fold
from metricunet.errors import InputError
from metricunet.files.model import read_card
from metricunet.files.nifti import read_labels, read_nifti, write_nifti
from metricunet.training.config import TrainConfig, load_config
from metricunet.training.fit import open_run, train
from metricunet.volume import Geometry, Volume
from tests.support.cohorts import TINY_SETTINGS, edit_json, make_tiny_cohort

SHORT = ("locate.epochs=1", "locate.updates_per_epoch=2", "segment.epochs=1", "segment.updates_per_epoch=2")


def config(*settings: str) -> TrainConfig:
    return load_config("small", settings=[*TINY_SETTINGS, *SHORT, *settings])


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Three cases, all with a gland."""
    return make_tiny_cohort(tmp_path / "cohort", 3)


def refused(cohort: Path, fold: Fold, said: str, *settings: str) -> None:
    run = cohort.parent / "run"
    with pytest.raises(InputError) as caught:
        train(cohort, run, config=config(*settings), fold=fold, device="cpu")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not run.exists()


def test_a_structure_in_capitals_is_named_as_it_is_spelt(cohort: Path) -> None:
    edit_json(cohort / "dataset.json", labels={"background": 0, "Prostate": 1})
    refused(cohort, 0, "setting target is 'prostate'; it must be one of Prostate, as dataset.json spells them")


def test_where_a_target_would_lie_is_not_known_of_a_cohort(cohort: Path) -> None:
    refused(cohort, 0, "setting locate.aim_where_absent is true, but where", "locate.aim_where_absent=true")


def test_no_gland_anywhere(tmp_path: Path) -> None:
    refused(
        make_tiny_cohort(tmp_path / "cohort", 3, absent=[0, 1, 2]), 0, "0 of 2 training cases contain prostate"
    )


def test_no_gland_to_validate_on(tmp_path: Path) -> None:
    cohort = make_tiny_cohort(tmp_path / "cohort", 3, absent=[0])
    (cohort / "splits.json").write_text(json.dumps([{"train": ["case_01", "case_02"], "val": ["case_00"]}]))
    refused(cohort, 0, "no validation case contains prostate; choose another fold")


def test_one_case_alone(tmp_path: Path) -> None:
    cohort = make_tiny_cohort(tmp_path / "cohort", 1)
    refused(cohort, "all", "1 of 1 training cases contain prostate; at least 2 are needed")


def test_two_cases_are_too_few_to_leave_one_out(tmp_path: Path) -> None:
    cohort = make_tiny_cohort(tmp_path / "cohort", 2)
    refused(cohort, 0, "1 of 1 training cases contain prostate; at least 2 are needed. Train without validation")


def test_a_scan_within_the_body_whose_gas_is_finer_than_the_coarse_grid(tmp_path: Path) -> None:
    """Its file holds HU, as `check` says; on the grid of stage 1 nothing is as light as air."""
    cohort = make_tiny_cohort(tmp_path / "cohort", 3)
    path = image_path(cohort, "case_00")
    image = read_nifti(path)
    array = np.maximum(image.array, -200)
    array[2, 2, 2] = -900
    write_nifti(path, image.with_array(array))
    for _ in range(2):  # from its file, and from the cache
        run = open_run(cohort, tmp_path / "run", config(), "all", resume=False, device="cpu")
        assert run.train[0].coarse.array.min() > -500


def test_an_ignore_label_and_values_with_a_gap(cohort: Path) -> None:
    """The gland is 3 and nothing is known where 7 stands: neither counts for anything else."""
    edit_json(cohort / "dataset.json", labels={"background": 0, "prostate": 3, "ignore": 7})
    for k in range(3):
        path = label_path(cohort, f"case_{k:02d}", "Tr")
        labels = read_labels(path)
        array = labels.array * 3
        array[:6] = 7
        write_nifti(path, labels.with_array(array.astype(np.uint8)))
    card = read_card(train(cohort, cohort.parent / "run", config=config(), fold="all", device="cpu"))
    assert card.labels == {"prostate": 3}
    assert card.segment.network["classes"] == 2


def test_one_scan_of_thick_slices(cohort: Path) -> None:
    for path, read in ((image_path, read_nifti), (label_path, read_labels)):
        file = path(cohort, "case_01", "Tr")
        volume = read(file)
        affine = volume.geometry.affine.copy()
        affine[:3, 0] *= 5
        array = np.ascontiguousarray(volume.array[::5])
        write_nifti(file, Volume(array, Geometry(array.shape, affine)))
    card = read_card(train(cohort, cohort.parent / "run", config=config(), fold="all", device="cpu"))
    assert any(low <= 20 <= high + 1e-3 for low, high in card.ranges.values()), card.ranges
