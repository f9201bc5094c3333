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
from metricunet.volume import Volume

pytestmark = pytest.mark.skipif(not SHIPPED.is_file(), reason="this tree has no shipped model")

RECIPE = SHIPPED.with_name("base.yaml")
READINGS = Path(__file__).parents[2] / "docs" / "real" / "readings.csv"
#: Where a mask's centre may lie from the mean of two readings.
PLACE_MM = 8.0
#: Its apex lies nearly as far off (docs/real.md); another processor may move it by a slice.
APEX_MM = 9.5


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


def readings(scan: str, column: str) -> float:
    """Return the mean of the two readings of a scan."""
    with READINGS.open(newline="", encoding="utf-8") as handle:
        return float(np.mean([float(row[column]) for row in csv.DictReader(handle) if row["scan"] == scan]))


def box_mm(mask: Volume) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the centre of a mask's voxels, and the lowest and the highest corner of its box, in LPS."""
    points = mask.geometry.to_world(np.argwhere(mask.array))
    half = np.abs(mask.geometry.directions @ np.asarray(mask.spacing_mm) / 2)
    return points.mean(axis=0), points.min(axis=0) - half, points.max(axis=0) + half


def test_it_finds_the_gland_of_a_real_man(model: mu.Model, shared_data: Path) -> None:
    scan = "pelvis_ct_dicom"
    result = model.predict(mu.load_scan(shared_data / scan))
    centre, low, high = box_mm(result.mask())
    assert np.abs(centre - [readings(scan, f"centre_{axis}_mm") for axis in "xyz"]).max() < PLACE_MM
    assert abs(low[2] - readings(scan, "apex_z_mm")) < APEX_MM
    assert abs(high[2] - readings(scan, "base_z_mm")) < PLACE_MM
    assert {"bladder", "rectum", "penile_bulb"} <= set(result.prediction.masks)
    assert result.quality.verdict == "review"


def test_it_finds_the_part_of_a_gland_that_a_scan_shows_and_says_that_it_is_cut(
    model: mu.Model, shared_data: Path
) -> None:
    scan = "example_ct"
    result = model.predict(mu.load_scan(shared_data / "pelvis_ct_nifti" / f"{scan}.nii.gz"))
    centre, _, high = box_mm(result.mask())
    assert np.abs(centre - [readings(scan, f"centre_{axis}_mm") for axis in "xyz"]).max() < PLACE_MM
    assert abs(high[2] - readings(scan, "base_z_mm")) < PLACE_MM
    assert "touches_scan" in {flag.code for flag in result.quality.flags}
    assert result.quality.doubt == "strong"


@pytest.mark.parametrize("scan", ["STS_002_CT", "STS_014_CT", "STS_025_CT", "STS_037_CT", "cort_liver_real_ct"])
def test_it_finds_no_gland_in_another_part_of_the_body(model: mu.Model, shared_data: Path, scan: str) -> None:
    result = model.predict(mu.load_scan(shared_data / "pelvis_ct_petct" / f"{scan}.nii.gz"))
    assert result.is_absent
    assert not result.labels.array.any(), "no other structure is kept either"
