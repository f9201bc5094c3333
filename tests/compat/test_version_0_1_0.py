"""What version 0.1.0 left on disk: models and predictions are read, anything else is refused and stays as it is.

`data` holds what that version wrote before its records stated the hashes of their files: a cohort with its cache,
a model, what it predicts for the two unseen scans, the scores of that, a training that was stopped in its first
stage, and a study that was stopped in its second run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from metricunet.files.model import read_card
from metricunet.files.nifti import read_labels, read_nifti
from metricunet.inference.predictor import Predictor
from tests.support.command import Command

DATA = Path(__file__).parent / "data"
#: When the cohort's files were written: its cache goes by that.
WRITTEN_S = 1_700_000_000


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of all that the version left, as it lay there."""
    folder = tmp_path / "old"
    shutil.copytree(DATA, folder)
    for path in folder.glob("cohort/*/*.nii.gz"):
        os.utime(path, (WRITTEN_S, WRITTEN_S))
    for path in (folder / "study.yaml", folder / "study" / "study.yaml"):
        path.write_text(path.read_text().replace("/data/cohort", str(folder / "cohort")))
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder, and the hash of what is in it."""
    paths = sorted(folder.rglob("*"))
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "" for p in paths}


def test_a_model_gives_the_probabilities_of_then() -> None:
    predictor = Predictor([DATA / "model.safetensors"], "cpu")
    found = predictor.predict(read_nifti(DATA / "cohort" / "imagesTs" / "case_3_0000.nii.gz"))
    assert found.shares is not None
    np.testing.assert_allclose(found.shares[0], np.load(DATA / "probability.npy"), rtol=0, atol=1e-5)


def test_a_model_tells_of_itself(metricunet: Command) -> None:
    ended = metricunet("info", DATA / "model.safetensors")
    assert (ended.status, ended.err) == (0, "")
    for line in ("version: 0.1.0", "target: prostate", "trained_on: synthetic", "format_version: 1"):
        assert line in ended.out.splitlines()
    card = read_card(DATA / "model.safetensors")
    assert card.segment.crop_voxels == (8, 12, 12)
    assert card.calibration is not None
    assert card.calibration.boundary_error_mm == pytest.approx((2.758744, 2.758744))


def test_a_model_predicts_the_masks_of_then(metricunet: Command, tmp_path: Path) -> None:
    scans, out = DATA / "cohort" / "imagesTs", tmp_path / "out"
    ended = metricunet("predict", scans, "-m", DATA / "model.safetensors", "-o", out, "--device", "cpu")
    assert (ended.status, ended.err) == (0, "")
    for case in ("case_3", "case_4"):
        before, after = (read_labels(folder / f"{case}.nii.gz") for folder in (DATA / "prediction", out))
        assert after.geometry.same_grid(before.geometry)
        np.testing.assert_array_equal(after.array, before.array)
        then, now = (json.loads((f / f"{case}.quality.json").read_text()) for f in (DATA / "prediction", out))
        assert now["verdict"] == then["verdict"] == "review"
        assert now["localisation"]["status"] == then["localisation"]["status"]
        volumes = [content["structures"]["prostate"]["volume_ml"] for content in (then, now)]
        assert volumes[0] == pytest.approx(volumes[1], abs=0.05)


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_predictions_are_scored_as_they_were(metricunet: Command, tmp_path: Path) -> None:
    references, out = DATA / "cohort" / "labelsTs", tmp_path / "out"
    ended = metricunet("evaluate", DATA / "prediction", references, "-o", out)
    assert (ended.status, ended.err) == (0, "")
    # Columns have come since, behind those that there were.
    for was, found in zip(*map(lines_of, (DATA / "evaluation" / "cases.csv", out / "cases.csv")), strict=True):
        assert found.startswith(f"{was},")
    then, now = (
        json.loads((folder / "summary.json").read_text())["prostate"] for folder in (DATA / "evaluation", out)
    )
    for measure, values in then.items():
        if isinstance(values, dict):
            assert {k: v for k, v in now[measure].items() if k in values} == pytest.approx(values), measure


def test_a_training_begins_from_the_model(metricunet: Command, old: Path) -> None:
    short = [f"{stage}.{s}" for stage in ("locate", "segment") for s in ("epochs=1", "updates_per_epoch=2")]
    settings = ["--preset", "small", "--config", old / "model.yaml", *[w for s in short for w in ("--set", s)]]
    (old / "cohort" / "prepared").rename(old / "elsewhere")
    out, init = old / "new", old / "model.safetensors"
    ended = metricunet("train", old / "cohort", "-o", out, "--init", init, "--device", "cpu", *settings)
    assert (ended.status, ended.err) == (0, "begins from model (locate and segment: prostate kept)\n")
    card = read_card(out / "model.safetensors")
    assert card.labels == {"prostate": 1}
    assert [(one.name, one.synthetic, one.cases) for one in card.lineage] == [("model", True, ())]


#: A command, its words and where it stops. `OLD` stands for the folder of everything.
REFUSED = {
    "predictions": (
        "predict OLD/cohort/imagesTs -m OLD/model.safetensors -o OLD/prediction",
        "OLD/prediction/run.json: is there already, and it was not written by this program or was changed since",
    ),
    "scores": (
        "evaluate OLD/prediction OLD/cohort/labelsTs -o OLD/evaluation",
        "OLD/evaluation/cases.csv: is there already, and it was not written by this program",
    ),
    "scores among the predictions": (
        "evaluate OLD/evaluation OLD/cohort/labelsTs -o OLD/prediction",
        "no prediction",
    ),
    "a training in its folder": (
        "train OLD/cohort -o OLD/run --preset small --config OLD/run.yaml",
        "OLD/run: is not empty",
    ),
    "a training to go on with": (
        "train OLD/cohort -o OLD/run --resume --preset small --config OLD/run.yaml",
        "OLD/run/log.csv: was changed since this training wrote it, or an earlier version wrote it, whose runs",
    ),
    "a training elsewhere on the cache": (
        "train OLD/cohort -o OLD/new --preset small --config OLD/model.yaml",
        "case_0.npz: a prepared case would be written here, and this file was not written by this version",
    ),
    "a study to go on with": (
        "study OLD/study.yaml -o OLD/study",
        "OLD/study/study.yaml: is there already, and it was not written by this program or was changed since",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_be_replaced_or_gone_on_with_is_refused_as_it_is(
    metricunet: Command, old: Path, what: str
) -> None:
    command, said = (text.replace("OLD", str(old)) for text in REFUSED[what])
    before = contents(old)
    ended = metricunet(*command.split(), *([] if command.startswith("evaluate") else ["--device", "cpu"]))
    *_, error = ended.err.splitlines()
    assert (ended.status, ended.out) == (2, "")
    assert error.startswith("error: ")
    assert said in error
    assert "Traceback" not in ended.err
    assert contents(old) == before


@pytest.mark.parametrize("which", ["checkpoint", "settings"])
def test_a_run_whose_log_is_gone_is_not_gone_on_with_either(metricunet: Command, old: Path, which: str) -> None:
    """Its checkpoint is one of another loop, and its settings are read for what they were."""
    (old / "cohort" / "prepared").rename(old / "elsewhere")
    (old / "run" / "log.csv").unlink()
    said = "locate-last.ckpt: is there already, and it was not written by this program"
    if which == "settings":
        (old / "run" / "checkpoints" / "locate-last.ckpt").unlink()
        said = "cannot resume with other settings (locate.base_channels was 1, is 2; segment.base_channels was 1"
    before = contents(old / "run")
    settings = old / "model.yaml"
    words = ["--resume", "--preset", "small", "--config", settings, "--device", "cpu"]
    ended = metricunet("train", old / "cohort", "-o", old / "run", *words)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert said in ended.err
    assert contents(old / "run") == before


def test_a_study_is_not_gone_on_with_when_its_cache_is_gone(metricunet: Command, old: Path) -> None:
    (old / "cohort" / "prepared").rename(old / "elsewhere")
    before = contents(old / "study")
    ended = metricunet("study", old / "study.yaml", "-o", old / "study", "--device", "cpu")
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert f"error: {old / 'study' / 'study.yaml'}: is there already, and it was not written by this" in ended.err
    assert contents(old / "study") == before


def test_a_study_whose_file_was_moved_away_is_not_begun_among_its_runs(metricunet: Command, old: Path) -> None:
    """Who follows the advice that the refusal gives loses nothing either."""
    (old / "study" / "study.yaml").rename(old / "study-of-then.yaml")
    before = contents(old / "study")
    ended = metricunet("study", old / "study.yaml", "-o", old / "study", "--device", "cpu")
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert f"error: {old / 'study'}: holds other files and no study; choose a new or empty folder" in ended.err
    assert contents(old / "study") == before


def test_predictions_can_be_replaced_on_demand(metricunet: Command, old: Path) -> None:
    command = ["predict", old / "cohort" / "imagesTs", "-m", old / "model.safetensors", "-o", old / "prediction"]
    assert metricunet(*command, "--device", "cpu", "--overwrite").status == 0
    again = metricunet(*command, "--device", "cpu")
    assert (again.status, again.out.count("done before")) == (0, 2)
