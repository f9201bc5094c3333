"""The model that has learned nothing finds the middle of any scan, and all its weights take part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.stand_in import write_stand_in
from benchmarks.subject import Subject
from metricunet.files.model import read_card
from metricunet.inference.predictor import Predictor, load_model
from metricunet.training.config import load_config
from metricunet.volume import Geometry, Volume

#: The preset's crop and levels with fewer channels.
NARROW = load_config("small", settings=["locate.base_channels=4", "segment.base_channels=6"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    write_stand_in(path, NARROW)
    return path


def body(centre_mm: tuple[float, float, float], noise: float = 10.0) -> Volume:
    """A body of soft tissue in air, 150 mm high, 240 mm deep and 320 mm wide."""
    geometry = Geometry.from_parts((40, 100, 120), (5, 4, 4), (-200, -200, 30))
    index = np.stack(np.meshgrid(*[np.arange(n) for n in geometry.shape], indexing="ij"), axis=-1)
    x, y, z = np.moveaxis(geometry.to_world(index), -1, 0) - np.reshape(centre_mm, (3, 1, 1, 1))
    inside = ((x / 160) ** 2 + (y / 120) ** 2 < 1) & (abs(z) < 75)
    hu = np.where(inside, 40.0, -1000.0) + np.random.default_rng(0).normal(0, noise, geometry.shape)
    return Volume(hu.astype(np.int16), geometry)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_it_finds_the_middle_of_the_body_and_a_region_there(model: Path, precision: str) -> None:
    centre = (20.0, -15.0, 130.0)
    found = Predictor([model], "cpu", precision, 0).predict(body(centre))  # type: ignore[arg-type]
    assert found.localisation.centre_mm is not None
    assert np.abs(found.localisation.centre_mm - centre).max() < 4
    assert found.localisation.confidence > 0.9
    assert found.labels is not None
    mask = found.labels.array > 0
    # A column as wide as a gland over the height of the crop, in one piece.
    assert mask.sum() * found.labels.geometry.voxel_volume_ml == pytest.approx(np.pi * 2.4**2 * 9.6, rel=0.15)
    middle = found.labels.geometry.to_world(np.argwhere(mask).mean(axis=0))
    assert np.abs(middle - centre).max() < 8
    assert found.removed_ml < 5


def test_precisions_nearly_agree_and_the_image_has_a_say(model: Path) -> None:
    """What the network computes reaches the mask, so that comparing masks compares the arithmetic."""
    scan, other = body((0, 0, 130)), body((0, 0, 130), noise=40.0)
    masks = []
    for image, precision in ((scan, "fp32"), (scan, "bf16"), (other, "fp32")):
        labels = Predictor([model], "cpu", precision, 0).predict(image).labels  # type: ignore[arg-type]
        assert labels is not None
        masks.append(labels.array > 0)
    dice = [2 * (masks[0] & m).sum() / (masks[0].sum() + m.sum()) for m in masks[1:]]
    assert dice[0] > 0.98
    assert not np.array_equal(masks[0], masks[2])


def test_it_says_that_it_is_synthetic_and_is_the_same_every_time(model: Path, tmp_path: Path) -> None:
    again = tmp_path / "model.safetensors"
    write_stand_in(again, NARROW)
    assert again.read_bytes() == model.read_bytes()
    assert read_card(model).synthetic


def test_only_one_channel_is_wired(model: Path) -> None:
    """The other weights are fresh ones, for zeros might be multiplied faster."""
    loaded = load_model(model, torch.device("cpu"))
    for network in (loaded.locate, loaded.segment):
        kernels = [p for name, p in network.named_parameters() if p.dim() >= 4 and "classify" not in name]
        assert all((k[1:] != 0).float().mean() > 0.8 for k in kernels if k.shape[0] > 1)


def test_a_subject_keeps_nothing(subject: Subject) -> None:
    assert subject.model.is_file()
    assert not subject.trained
    assert subject.describe()[1].endswith("fresh weights of preset small, wired to find the middle")
