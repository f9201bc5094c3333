"""The model that comes with the package: on scans as nobody trained on, and on real ones where they are at hand.

What the real scans show is in docs/real.md; here they only guard against a model that was exchanged for a worse.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

import metricunet as mu
from metricunet.files.model import read_card
from metricunet.inference.models import SHIPPED
from metricunet.phantom import draw_phantom
from metricunet.training.config import load_config
from metricunet.training.stream import PhantomStream

pytestmark = pytest.mark.skipif(not SHIPPED.is_file(), reason="this tree has no shipped model")

RECIPE = SHIPPED.with_name("base.yaml")
READINGS = Path(__file__).parents[2] / "docs" / "real" / "readings.csv"
#: Where a mask's centre may lie from the mean of two readings.
PLACE_MM = 8.0


@pytest.fixture(scope="module")
def model() -> mu.Model:
    with pytest.warns(UserWarning, match="synthetic scans only"):
        return mu.load_model()


def test_it_is_the_model_of_its_recipe() -> None:
    card, config = read_card(SHIPPED), load_config(file=RECIPE)
    stream = PhantomStream(config, 1)
    assert card.data_sha256 == stream.sha256
    assert (card.seed, card.license, card.intended_use) == (config.seed, config.license, config.intended_use)
    assert card.labels == stream.info.labels
    assert card.organs_structures == config.organs.structures
    assert SHIPPED.stat().st_size < 12e6
    assert card.synthetic
    assert card.held_back


def test_it_segments_a_phantom_that_no_training_saw(model: mu.Model) -> None:
    drawn = draw_phantom(20_261_129, "varied")
    truth = drawn.labels({"prostate": 1}).array == 1
    found = model.predict(drawn.image()).mask().array
    assert truth.any()
    assert 2 * (truth & found).sum() / (truth.sum() + found.sum()) > 0.7


def test_it_finds_the_gland_of_a_real_man(model: mu.Model, shared_data: Path) -> None:
    result = model.predict(mu.load_scan(shared_data / "pelvis_ct_dicom"))
    with READINGS.open(newline="", encoding="utf-8") as handle:
        readings = [row for row in csv.DictReader(handle) if row["scan"] == "pelvis_ct_dicom"]
    expected = np.mean([[float(row[f"centre_{axis}_mm"]) for axis in "xyz"] for row in readings], axis=0)
    mask = result.mask()
    centre = mask.geometry.to_world(np.argwhere(mask.array)).mean(axis=0)
    assert np.abs(centre - expected).max() < PLACE_MM
    assert {"bladder", "rectum", "penile_bulb"} <= set(result.prediction.masks)
    assert result.quality.verdict == "review"


@pytest.mark.parametrize("scan", ["STS_002_CT", "STS_014_CT", "STS_025_CT", "STS_037_CT", "cort_liver_real_ct"])
def test_it_finds_no_gland_in_another_part_of_the_body(model: mu.Model, shared_data: Path, scan: str) -> None:
    assert model.predict(mu.load_scan(shared_data / "pelvis_ct_petct" / f"{scan}.nii.gz")).is_absent
