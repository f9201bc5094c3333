"""The parts on a tiny scan with tiny networks: what they do, not how fast they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom import Dataset

from metricunet.errors import InputError
from metricunet.files.nifti import read_nifti, write_nifti
from metricunet.inference.predictor import Predictor
from metricunet.phantom.make import Phantom
from metricunet.training.config import TrainConfig, load_config
from metricunet.workflows.bench import metric, predict, train
from metricunet.workflows.bench.metric import TrainingStep, bench_metric, ellipses
from metricunet.workflows.bench.predict import bench_predict
from metricunet.workflows.bench.process import Ended, run_metricunet
from metricunet.workflows.bench.train import bench_train
from metricunet.workflows.bench.untrained import write_untrained
from tests.support.cohorts import TINY_SETTINGS, make_scan, make_tiny_cohort
from tests.support.command import Command
from tests.support.dicom_series import write_series

CPU = torch.device("cpu")
SOLID = ("segment.spatial_dims=3", "segment.block_slices=8", "segment.batch_size=2")


def tiny(preset: str = "small", *settings: str) -> TrainConfig:
    return load_config("small", settings=[*TINY_SETTINGS, *settings])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, metricunet: Command) -> list[list[str]]:
    """Run the command in this process instead of one of its own, with tiny networks; note its words."""
    seen: list[list[str]] = []

    def run(words: Sequence[object]) -> Ended:
        seen.append([str(word) for word in words])
        ended = metricunet(*words)
        assert ended.status in (0, 1), ended.err
        return Ended(ended.status, 100.0, 512.0 + len(seen), ended.err)

    for part in (predict, train):
        monkeypatch.setattr(part, "run_metricunet", run)
    monkeypatch.setattr(predict, "load_config", tiny)
    return seen


@pytest.fixture
def scan(tiny_cohort: Path) -> Path:
    return tiny_cohort / "imagesTr" / "case_00_0000.nii.gz"


def test_predict_a_phantom(calls: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "make_phantom", lambda seed, difficulty: Phantom(*make_scan(0), {}))
    ticks: list[tuple[int, int]] = []
    found = bench_predict(None, None, "small", CPU, repeats=2, progress=lambda *tick: ticks.append(tick))
    assert ticks[-1] == (6, 6)
    assert len(calls) == 2
    assert "nifti,rtstruct" in calls[0]
    assert calls[0][-2:] == ["--reruns", "0"]
    assert found.about["scan"] == "a phantom of difficulty real, 56 x 48 x 30 voxels of 3 x 3 x 4 mm"
    assert "untrained" in found.about["model"]
    rows = json.loads(json.dumps(found.to_json()))["rows"]
    assert rows["whole"]["found"]["median_s"] == 100
    assert 0 < rows["startup"]["found"]["median_s"] < 100
    assert rows["peak"]["found"] == 514 / 1024
    assert rows["locate"]["found"]["n"] == rows["segment"]["found"]["n"] == 2
    assert "on two cores of an AMD EPYC" in found.text()


def test_predict_with_a_users_scan_and_model(calls: list[list[str]], scan: Path, tiny_model: Path) -> None:
    found = bench_predict(scan, tiny_model, "small", CPU, repeats=1)
    assert "nifti" in calls[0]
    assert calls[0][-2:] == ["--reruns", "3"]
    assert found.about["model"] == str(tiny_model)


def test_predict_with_a_3d_model(calls: list[list[str]], scan: Path, tmp_path: Path) -> None:
    model = tmp_path / "solid.safetensors"
    write_untrained(model, tiny("small", *SOLID))
    found = bench_predict(scan, model, "small", CPU, repeats=1)
    assert found.to_json()["rows"]["segment"]["found"]["median_s"] > 0


def test_a_model_that_finds_nothing_is_named(
    calls: list[list[str]], scan: Path, tiny_model: Path, tmp_path: Path
) -> None:
    image = read_nifti(scan)
    air = image.with_array(np.full_like(image.array, -1000))
    air.array[0, 0, 0] = -990  # a scan of one value alone is refused
    write_nifti(tmp_path / "air.nii.gz", air)
    with pytest.raises(InputError, match=r"finds nothing in .*choose another scan or model"):
        bench_predict(tmp_path / "air.nii.gz", tiny_model, "small", CPU)


def test_a_folder_with_several_scans_is_refused(tiny_cohort: Path, tiny_model: Path) -> None:
    with pytest.raises(InputError, match=r"imagesTr: holds 6 scans .*give the path of one file"):
        bench_predict(tiny_cohort / "imagesTr", tiny_model, "small", CPU)


def as_scout(number: int, dataset: Dataset) -> None:
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def test_a_scout_beside_the_scan_is_no_second_one(
    calls: list[list[str]], scan: Path, tiny_model: Path, tmp_path: Path
) -> None:
    volume = read_nifti(scan).canonical()
    write_series(tmp_path / "ct", volume.array.clip(-1000, 2000).astype(np.int16), spacing_mm=volume.spacing_mm)
    scout = write_series(tmp_path / "scout", shape=(1, 40, 40), edit=as_scout)
    scout.files[0].rename(tmp_path / "ct" / "scout.dcm")
    found = bench_predict(tmp_path / "ct", tiny_model, "small", CPU, repeats=1)
    assert "to nifti and rtstruct" in found.rows["whole"].name


def test_an_untrained_model_says_yes_everywhere_and_is_the_same_every_time(scan: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    for path in (one, two):
        write_untrained(path, tiny())
    assert one.read_bytes() == two.read_bytes()
    predictor = Predictor([one], "cpu", reruns=0)
    assert predictor.card.synthetic
    found = predictor.predict(read_nifti(scan))
    assert found.region is not None
    assert found.region.array.all()


@pytest.mark.parametrize("settings", [(), SOLID])
def test_train(calls: list[list[str]], monkeypatch: pytest.MonkeyPatch, settings: Sequence[str]) -> None:
    monkeypatch.setattr(train, "make_cohort", lambda folder, n, **rest: make_tiny_cohort(folder, n))
    monkeypatch.setattr(train, "BLOCK", 2)
    ticks: list[tuple[int, int]] = []
    whole = ("locate.epochs=36", "segment.epochs=72", "locate.updates_per_epoch=100")
    found = bench_train(
        "small", CPU, repeats=2, settings=[*TINY_SETTINGS, *whole, *settings],
        progress=lambda *tick: ticks.append(tick),
    )  # fmt: skip
    assert ticks[-1] == (2, 2)
    assert calls[0][0] == "train"
    rows = found.to_json()["rows"]
    assert rows["locate"]["found"]["n"] == rows["segment"]["found"]["n"] == 2
    # 3600 updates of stage 1 and 1440 of stage 2.
    hours = rows["locate"]["found"]["median_s"] + 0.4 * rows["segment"]["found"]["median_s"]
    assert rows["whole"]["found"] == pytest.approx(hours)
    assert rows["peak"]["found"] == 513 / 1024
    assert "0.33 s on two cores of an AMD EPYC" in found.text()


def test_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: list[tuple[int, int]] = []
    found = bench_metric("small", CPU, pairs=2, settings=TINY_SETTINGS, progress=lambda *tick: ticks.append(tick))
    assert ticks[-1] == (8, 8)
    rows = json.loads(json.dumps(found.to_json()))["rows"]
    assert list(rows) == [f"{k}_{p}" for p in ("bf16", "fp32") for k in ("without", "with", "ratio")]
    assert all(row["found"].get("n", 2) == 2 for row in rows.values())
    monkeypatch.setitem(metric.TARGETS, "small", 0.0)
    assert "target at most 0.00 MISSED" in bench_metric("small", CPU, pairs=1, settings=TINY_SETTINGS).text()


def test_a_step_with_the_loss_trains_its_head_and_one_without_does_not() -> None:
    step = TrainingStep(tiny(), "fp32", CPU)
    before = [p.detach().clone() for p in step.metric.parameters()]
    step(False)
    assert all(torch.equal(a, b) for a, b in zip(before, step.metric.parameters(), strict=True))
    step(True)
    assert not any(torch.equal(a, b) for a, b in zip(before, step.metric.parameters(), strict=True))


def test_ellipses_hold_both_classes() -> None:
    labels = ellipses(4, [32, 24])
    assert labels.shape == (4, 32, 24)
    shares = labels.float().mean(dim=(1, 2))
    assert ((shares > 0.05) & (shares < 0.2)).all()


def test_the_childs_peak_is_not_this_processs() -> None:
    """A forked child inherits its parent's peak; the command must be measured without it."""
    held = np.ones(400 << 17)
    ended = run_metricunet(["--version"])
    assert ended.status == 0
    assert ended.seconds > 0
    assert ended.peak_mib is not None
    assert 5 < ended.peak_mib < held.nbytes / 2**20 / 2


def test_a_childs_error_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metricunet info ended with status 2: error: .*none.safetensors"):
        run_metricunet(["info", tmp_path / "none.safetensors"])
