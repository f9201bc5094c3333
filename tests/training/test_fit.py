"""A training run: what it leaves, that a killed one resumes to the very weights, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.fabric.loggers import CSVLogger

from metricunet.engine import Serial
from metricunet.errors import InputError
from metricunet.files.model import read_card, read_model
from metricunet.training.config import TrainConfig, load_config
from metricunet.training.fit import jitter_mm, train
from tests.support.cohorts import TINY_SETTINGS, edit_json, make_tiny_cohort
from tests.support.command import Command

#: So brief a training that tests can repeat it; either stage's second epoch is long enough to be killed within.
BRIEF = ("locate.epochs=2", "segment.updates_per_epoch=10", "metric.warm_up_updates=4")


def config(*settings: str) -> TrainConfig:
    return load_config("small", settings=[*TINY_SETTINGS, *settings])


def epochs_of(settings: TrainConfig) -> list[tuple[str, str]]:
    """Every epoch of a run as its log names it: stage and number."""
    stages = (("locate", settings.locate.epochs), ("segment", settings.segment.epochs))
    return [(stage, str(epoch)) for stage, epochs in stages for epoch in range(epochs)]


def test_what_a_run_leaves(tiny_model: Path) -> None:
    folder = tiny_model.parent
    assert {"config.yaml", "log.csv", "checkpoints", "model.safetensors", "run.json"} <= {
        p.name for p in folder.iterdir()
    }
    assert load_config("default", folder / "config.yaml") == config()
    with (folder / "log.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [(r["stage"], r["epoch"]) for r in rows] == epochs_of(config())
    assert float(rows[-1]["val_dice"]) > 0.6
    assert {"triplet", "pair", "active_triplets", "spread"} <= set(rows[0])
    record = json.loads((folder / "run.json").read_text())
    assert record["command"] == "train"
    assert record["seed"] == 0
    assert len(record["split"]["train"]) + len(record["split"]["val"]) == 6


def test_the_model_card(tiny_model: Path) -> None:
    card = read_card(tiny_model)
    assert card.synthetic
    assert (card.labels, card.tg263, card.target) == ({"prostate": 1}, {"prostate": "Prostate"}, "prostate")
    assert card.segment.crop_voxels == (16, 32, 32)
    assert 10 < card.ranges["volume_ml"][0] < card.ranges["volume_ml"][1] < 60
    assert card.ranges["slice_spacing_mm"] == (4, 4)
    assert card.validation["crop_dice"] > 0.6
    assert card.validation["localisation_error_mm"] < 10
    assert card.calibration is not None
    assert card.calibration.cases == int(card.validation["cases"])
    assert card.calibration.fit["nll_after"] <= card.calibration.fit["nll_before"]
    # The metric branch is absent at inference, so it costs nothing there.
    assert {k.split(".")[0] for k in read_model(tiny_model)[1]} == {"locate", "segment"}
    assert not any("metric" in k for k in read_model(tiny_model)[1])


@pytest.fixture(scope="module")
def brief_model(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of a brief training that nothing interrupted."""
    return train(tiny_cohort, tmp_path_factory.mktemp("brief") / "run", config=config(*BRIEF), device="cpu")


def test_the_same_seed_gives_the_same_weights(tiny_cohort: Path, brief_model: Path, tmp_path: Path) -> None:
    again = train(tiny_cohort, tmp_path / "run", config=config(*BRIEF), device="cpu")
    one, two = read_model(brief_model)[1], read_model(again)[1]
    assert all(torch.equal(one[k], two[k]) for k in one)


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from metricunet.training.fit import train
from metricunet.training.log import StageProgress
from tests.training import test_fit

config = test_fit.config(*test_fit.BRIEF)

def die(progress, done, val_dice=None):
    if (progress.stage, done) == (sys.argv[3], getattr(config, sys.argv[3]).updates_per_epoch + 6):
        os.kill(os.getpid(), signal.SIGKILL)

StageProgress.show = die
train(Path(sys.argv[1]), Path(sys.argv[2]), config=config, device="cpu")
"""


@pytest.mark.parametrize("stage", ["locate", "segment"])
def test_a_killed_run_resumes_to_the_weights_of_an_unbroken_one(
    tiny_cohort: Path, brief_model: Path, tmp_path: Path, stage: str
) -> None:
    """Kill the process with no warning in the middle of an epoch of either stage, then resume."""
    output = tmp_path / "run"
    path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "-c", KILLED_RUN, str(tiny_cohort), str(output), stage]
    ended = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert not (output / "model.safetensors").exists()
    with pytest.raises(InputError, match=r"metric\.weight was 0\.1, is 0\.5"):
        train(tiny_cohort, output, config=config(*BRIEF, "metric.weight=0.5"), device="cpu", resume=True)
    resumed = train(tiny_cohort, output, config=config(*BRIEF), device="cpu", resume=True)
    one, two = read_model(brief_model)[1], read_model(resumed)[1]
    assert all(torch.equal(one[k], two[k]) for k in one)
    with (output / "log.csv").open(newline="") as handle:
        rows = [(r["stage"], r["epoch"]) for r in csv.DictReader(handle)]
    assert rows == epochs_of(config(*BRIEF))


def test_a_stage_1_that_finds_nothing_ends_the_training(
    tiny_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a training that ended by calling everything background."""
    monkeypatch.setattr("metricunet.stages.locate.SMALLEST_CANDIDATE_ML", 1e6)
    short = config("locate.epochs=1", "locate.updates_per_epoch=1")
    with pytest.raises(InputError, match=r"finds the prostate in none of the \d validation cases"):
        train(tiny_cohort, tmp_path / "run", config=short, device="cpu")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_beginning_from_a_model(tiny_cohort: Path, tiny_model: Path, tmp_path: Path) -> None:
    short = config(
        "locate.epochs=1", "locate.updates_per_epoch=1", "segment.epochs=1", "segment.updates_per_epoch=1",
        "locate.learning_rate=1e-9", "segment.learning_rate=1e-9",
    )  # fmt: skip
    tuned = train(tiny_cohort, tmp_path / "run", config=short, init=tiny_model, device="cpu")
    one, two = read_model(tiny_model)[1], read_model(tuned)[1]
    assert torch.allclose(one["segment.classify.weight"], two["segment.classify.weight"], atol=1e-6)
    with pytest.raises(InputError, match="base_channels 4, this training 6"):
        train(
            tiny_cohort,
            tmp_path / "other",
            config=config("segment.base_channels=6"),
            init=tiny_model,
            device="cpu",
        )
    assert not (tmp_path / "other").exists()


def test_without_validation_the_last_weights_count(tiny_cohort: Path, tmp_path: Path) -> None:
    short = config(
        "locate.epochs=1", "locate.updates_per_epoch=2", "segment.epochs=1", "segment.updates_per_epoch=2",
        "metric.weight=0",
    )  # fmt: skip
    model = train(tiny_cohort, tmp_path / "run", config=short, fold="all", device="cpu")
    assert read_card(model).validation == {}


def test_a_logger_of_lightning_is_told_the_numbers_of_both_stages(tiny_cohort: Path, tmp_path: Path) -> None:
    short = config(
        "locate.epochs=2", "locate.updates_per_epoch=2", "segment.epochs=1", "segment.updates_per_epoch=2",
        "metric.weight=0",
    )  # fmt: skip
    logger = CSVLogger(tmp_path / "logged", name="run", version="one")
    train(tiny_cohort, tmp_path / "run", config=short, fold="all", device="cpu", loggers=[logger])
    logger.finalize("success")
    with (tmp_path / "logged" / "run" / "one" / "metrics.csv").open(newline="") as handle:
        logged = list(csv.DictReader(handle))
    with (tmp_path / "run" / "log.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["stage"] for row in rows] == ["locate", "locate", "segment"]
    told = [float(row[f"{wanted['stage']}/loss"]) for row, wanted in zip(logged, rows, strict=True)]
    assert [f"{loss:.5g}" for loss in told] == [row["loss"] for row in rows]


def test_folders_that_are_in_use(tiny_cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        train(tiny_cohort, tmp_path / "run", config=config())
    with pytest.raises(InputError, match="no run to resume"):
        train(tiny_cohort, tmp_path / "run", config=config(), resume=True)
    with pytest.raises(InputError, match="is a file"):
        train(tiny_cohort, tmp_path / "run" / "thesis.txt", config=config())


def test_cohorts_that_cannot_work_fail_before_anything_is_written(tmp_path: Path) -> None:
    cohort = make_tiny_cohort(tmp_path / "cohort", 4, absent=[0, 1, 2])
    with pytest.raises(InputError, match=r"\d of \d training cases contain prostate"):
        train(cohort, tmp_path / "run", config=config(), fold="all")
    with pytest.raises(InputError, match="target is 'bladder'; it must be one of prostate"):
        train(cohort, tmp_path / "run", config=config("target=bladder"))
    with pytest.raises(InputError, match="fold 9"):
        train(cohort, tmp_path / "run", config=config(), fold=9)
    assert not (tmp_path / "run").exists()


def test_scans_that_are_no_ct(tiny_cohort: Path, tmp_path: Path) -> None:
    from metricunet.files.nifti import read_nifti, write_nifti

    cohort = Path(shutil.copytree(tiny_cohort, tmp_path / "cohort"))
    path = cohort / "imagesTr" / "case_01_0000.nii.gz"
    volume = read_nifti(path)
    write_nifti(path, volume.with_array((volume.array + 1024).astype(np.int16)))
    with pytest.raises(InputError, match=r"case_01_0000\.nii\.gz: the lowest value is -15, so these are no"):
        train(cohort, tmp_path / "run", config=config())


def test_several_structures(tmp_path: Path) -> None:
    """A second structure, of one side: learned too, and images are not mirrored."""
    cohort = make_tiny_cohort(tmp_path / "cohort", 3)
    edit_json(cohort / "dataset.json", labels={"background": 0, "prostate": 1, "femur_left": 2})
    short = config(
        "locate.epochs=1", "locate.updates_per_epoch=2", "segment.epochs=1", "segment.updates_per_epoch=2"
    )
    card = read_card(train(cohort, tmp_path / "run", config=short, device="cpu"))
    assert card.segment.network["classes"] == 3
    assert card.tg263["femur_left"] == "Femur_L"


def test_jitter_is_the_localisers_error_but_not_less_than_asked() -> None:
    errors = np.array([[6.0, 1.0, 0.0], [-8.0, 1.0, 0.0]])
    assert jitter_mm(errors, 3.0) == pytest.approx((50**0.5, 3.0, 3.0))
    assert jitter_mm(np.zeros((0, 3)), 2.0) == (2.0, 2.0, 2.0)


def test_the_offline_baseline_trains(tiny_cohort: Path, tmp_path: Path) -> None:
    settings = ("metric.mode=offline", "metric.patch_voxels=16", "metric.patch_tuples=100")
    short = ("locate.epochs=1", "locate.updates_per_epoch=2", "segment.epochs=1", "segment.updates_per_epoch=3")
    model = train(tiny_cohort, tmp_path / "run", config=config(*settings, *short), device="cpu")
    with (model.parent / "log.csv").open(newline="") as handle:
        row = list(csv.DictReader(handle))[-1]
    assert float(row["triplet"]) > 0
    assert not any("metric" in k for k in read_model(model)[1])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("metric.taps=[9]", "decoder maps 0 to 1"),
        ("segment.slices=4", "odd number"),
        ("segment.crop_mm=[64, 60, 64]", "30 voxels in the slice; .* multiple of 4"),
        ("segment.crop_mm=[96, 64, 64]", "enlarge the box"),
        ("segment.spacing_mm=[4, 2, 70]", r"spacing_mm is 70"),
        ("locate.patch_voxels=[16, 18, 16]", "multiple of 4"),
    ],
)
def test_settings_that_do_not_fit_each_other_fail_before_any_work(
    tiny_cohort: Path, tmp_path: Path, setting: str, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        train(tiny_cohort, tmp_path / "run", config=config(setting), device="cpu")
    assert not (tmp_path / "run").exists()


def test_helpers_that_would_do_nothing_are_refused(tiny_cohort: Path, tmp_path: Path, metricunet: Command) -> None:
    with pytest.raises(InputError, match=r"workers says how many .* of phantoms; leave it out with the cohort"):
        train(tiny_cohort, tmp_path / "run", config=config(), workers=8)
    with pytest.raises(InputError, match=r"engine trains the folds of fold='each', or .* and fold 0$"):
        train(tiny_cohort, tmp_path / "run", config=config(), engine=Serial())
    for words, said in (("--workers 8", "--workers says"), ("--engine ray", "--engine trains the folds of")):
        ended = metricunet("train", tiny_cohort, "-o", tmp_path / "run", *words.split())
        assert (ended.status, ended.err.count("\n")) == (2, 1)
        assert ended.err.startswith(f"error: {said}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fold", ["3", "all"])
def test_phantoms_have_no_fold_to_choose(tmp_path: Path, metricunet: Command, fold: str) -> None:
    ended = metricunet("train", "--phantoms", "easy", "--fold", fold, "-o", tmp_path / "run")
    assert ended.status == 2
    assert f"--fold {fold}: is of a cohort; phantoms that are made beside a training have no folds" in ended.err
    assert not (tmp_path / "run").exists()
