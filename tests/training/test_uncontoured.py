"""A training that learns from scans without contours: what it uses, what it leaves out, and that it resumes."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from metricunet.errors import InputError
from metricunet.files.model import read_card, read_model
from metricunet.files.nifti import write_nifti
from metricunet.files.record import sha256
from metricunet.inference.models import MODEL_NAME
from metricunet.training import loop
from metricunet.training.config import TrainConfig, load_config
from metricunet.training.fit import train
from tests.support.cohorts import (
    ORGANS_SETTINGS,
    TINY_SETTINGS,
    make_organs_cohort,
    make_organs_scan,
    make_scan,
    make_tiny_cohort,
)

SETTINGS = (
    *TINY_SETTINGS,
    "locate.epochs=2",
    "segment.updates_per_epoch=8",
    "teacher.share=0.5",
    "teacher.threshold=0.5",
    "teacher.background_threshold=0.5",
    "metric.bank=64",
    "metric.bank_new=4",
    "metric.background=clusters",
    "metric.weight_as=gradient_share",
)


def config(*settings: str) -> TrainConfig:
    return load_config("small", settings=[*SETTINGS, *settings])


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three contoured scans, two without contours, and one of those without anything to find."""
    folder = make_tiny_cohort(tmp_path_factory.mktemp("few") / "cohort", 3)
    for k in (10, 11):
        write_nifti(folder / "imagesUnlabeled" / f"case_{k}_0000.nii.gz", make_scan(k)[0])
    air = make_scan(12)[0]
    nothing = air.with_array(np.full(air.array.shape, -1000, dtype=np.int16))
    nothing.array[0, 0, 0] = 0
    write_nifti(folder / "imagesUnlabeled" / "case_12_0000.nii.gz", nothing)
    return folder


@pytest.fixture(scope="module")
def run(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run") / "run"
    train(cohort, output, config=config(), device="cpu")
    return output


def test_what_it_learns_from_and_leaves_out(cohort: Path, run: Path) -> None:
    told = json.loads((run / "uncontoured.json").read_text())
    assert told["used"] == ["case_10", "case_11"]
    assert list(told["left_out"]) == ["case_12"]
    assert "no candidate" in told["left_out"]["case_12"]
    with (run / "log.csv").open(newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["stage"] == "segment"]
    assert all(float(row["confident_voxels"]) > 0.5 and float(row["bank_filled"]) > 0 for row in rows)
    # Nobody may validate on a scan that this model has seen, contoured or not.
    assert {sha256([path]) for path in (cohort / "imagesUnlabeled").iterdir()} < {
        *read_card(run / MODEL_NAME).cases
    }
    # Neither teacher nor bank is in the model.
    assert {name.split(".")[0] for name in read_model(run / "model.safetensors")[1]} == {"locate", "segment"}
    assert not any("teacher" in name or "metric" in name for name in read_model(run / "model.safetensors")[1])


def test_a_stopped_training_resumes_to_the_weights_of_an_unbroken_one(
    cohort: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Bank, clusters, teacher and the measured gradients go on where they were."""
    output = tmp_path / "run"
    real, calls = loop.train_updates, []

    def stopped(state, *rest):
        calls.append(state.module.stage)
        if calls.count("segment") == 2:
            raise KeyboardInterrupt
        return real(state, *rest)

    monkeypatch.setattr(loop, "train_updates", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(cohort, output, config=config(), device="cpu")
    monkeypatch.setattr(loop, "train_updates", real)
    with caplog.at_level(logging.WARNING):
        train(cohort, output, config=config(), device="cpu", resume=True)
    assert "1 of 3 scans without contours are left out, for stage 1 finds nothing in them: case_12" in caplog.text
    ours, theirs = read_model(output / "model.safetensors")[1], read_model(run / "model.safetensors")[1]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    checkpoints = [
        torch.load(folder / "checkpoints" / "segment-last.ckpt", weights_only=True)["module"]
        for folder in (output, run)
    ]
    assert any("bank.embeddings" in name for name in checkpoints[1])
    assert all(torch.equal(checkpoints[0][name], checkpoints[1][name]) for name in checkpoints[1])


def test_other_scans_are_another_training(cohort: Path, run: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "cohort", tmp_path / "run"
    shutil.copytree(cohort, folder)
    shutil.copytree(run, output)
    (folder / "imagesUnlabeled" / "case_11_0000.nii.gz").unlink()
    with pytest.raises(InputError, match="data_sha256 was"):
        train(folder, output, config=config(), device="cpu", resume=True)


def test_a_cohort_without_such_scans(tiny_cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"teacher\.share is 0\.5, but there is no scan without contours of prostate"
    ):
        train(tiny_cohort, tmp_path / "run", config=config(), device="cpu")
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").glob("*.csv"))


def test_the_averaged_weights_are_what_is_written(cohort: Path, run: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    train(cohort, output, config=config("teacher.final=teacher"), fold="all", device="cpu")
    kept = torch.load(output / "checkpoints" / "segment-last.ckpt", weights_only=True)["module"]
    written = read_model(output / "model.safetensors")[1]
    for name, value in written.items():
        if name.startswith("segment."):
            rest = name.removeprefix("segment.")
            assert torch.equal(value, kept[f"teacher.network.{rest}"])
            assert "weight" not in rest or not torch.equal(value, kept[f"network.{rest}"])


def test_a_training_with_an_organs_network(tmp_path: Path) -> None:
    """Scans without contours are stage 2's alone, whose classes lack the organs; sides may change places."""
    folder, output = make_organs_cohort(tmp_path / "cohort", 3), tmp_path / "run"
    for k in (10, 11):
        write_nifti(folder / "imagesUnlabeled" / f"case_{k}_0000.nii.gz", make_organs_scan(k)[0])
    settings = config(*ORGANS_SETTINGS, "organs.updates_per_epoch=2")
    train(folder, output, config=settings, device="cpu")
    assert json.loads((output / "uncontoured.json").read_text())["used"]
    assert {name.split(".")[0] for name in read_model(output / MODEL_NAME)[1]} == {"locate", "segment", "organs"}
