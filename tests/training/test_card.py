"""What a model's card keeps of the training cases, for verdicts to compare with."""

from __future__ import annotations

import numpy as np
import pytest

from metricunet.cohort.prepare import PreparedCase
from metricunet.quality.checks import EXTENTS
from metricunet.training.card import training_ranges
from metricunet.training.config import load_config
from metricunet.volume import Geometry, Volume

CONFIG = load_config("small", settings=["segment.crop_mm=[32, 32, 32]", "segment.box_mm=[48, 48, 48]"])
FINE = Geometry.from_parts((24, 48, 48), (2, 1, 1))


def case(
    radii: tuple[float, float, float], hu: float, noise: float, spacing: float, target: int = 1
) -> PreparedCase:
    """An ellipsoid in the middle of the fine box; what lies beyond the crop is as bright as metal."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in FINE.shape], indexing="ij"), axis=-1)
    place = (index - (np.asarray(FINE.shape) - 1) / 2) * FINE.spacing_mm
    inside = ((place / radii) ** 2).sum(axis=-1) < 1
    values = np.where(inside, hu, 10.0) + np.random.default_rng(0).normal(0, noise, FINE.shape)
    values[(abs(place) > 16).any(axis=-1)] = 3000
    labels = np.where(inside, target, 0).astype(np.uint8)
    facts = {"spacing_mm": [spacing, 0.9, 1.1]}
    facts |= {"volume_ml": 4 / 3 * np.pi * np.prod(radii) / 1000, "target_hu": hu}
    fine = Volume(np.rint(values).astype(np.int16), FINE)
    return PreparedCase("c", fine, fine.with_array(labels), fine, fine.with_array(labels), facts, "")


def test_ranges_of_the_training_cases() -> None:
    empty = case((1, 1, 1), 0, 1, 5.0)
    empty = PreparedCase("e", empty.coarse, empty.coarse_labels, None, None, {"spacing_mm": [5.0, 0.9, 1.1]}, "")
    found = training_ranges(CONFIG, 1, [case((12, 10, 8), 40, 10, 2.0), case((8, 12, 14), 50, 20, 3.0), empty])
    assert found["slice_spacing_mm"] == (2.0, 5.0)
    assert found["pixel_spacing_mm"] == (0.9, 1.1)
    assert found["target_hu"] == (40, 50)
    for quantity, (low, high) in zip(EXTENTS, ((16, 24), (20, 24), (16, 28)), strict=True):
        assert found[quantity] == pytest.approx((low, high), abs=2)
    # Of the crop alone: the bright border of the cached box is no part of it.
    assert found["noise_hu"] == pytest.approx((10, 20), rel=0.1)
    assert found["crop_hu"] == pytest.approx((10, 15), abs=3)


def test_the_extent_is_the_targets() -> None:
    found = training_ranges(CONFIG, 2, [case((12, 10, 8), 40, 10, 2.0)])
    assert not set(EXTENTS) & set(found)
