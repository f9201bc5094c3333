"""The measures of a scan, on images whose answer is known: flat tissues, white and smoothed noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from metricunet.volume import Geometry, Volume
from tests.support.scripts import docs_script

measure_scan = docs_script("make_phantom_table").measure_scan

VALUES = {"prostate": 7, "bladder": 2, "rectum": 3}
SHAPE = (44, 120, 120)
GRID = Geometry.from_parts(SHAPE, (2.0, 1.0, 1.0))


def ball(z: float, y: float, x: float, radius_mm: float) -> np.ndarray:
    k, j, i = np.indices(SHAPE)
    return np.asarray((2.0 * (k - z)) ** 2 + (j - y) ** 2 + (i - x) ** 2 < radius_mm**2)


def scan(noise: np.ndarray | float = 0.0) -> tuple[Volume, Volume]:
    hu = np.full(SHAPE, -93.0)
    labels = np.zeros(SHAPE, dtype=np.uint8)
    hu[:, :20] = 51.0  # muscle
    gland, bladder, rectum = ball(15, 60, 60, 20), ball(28, 55, 60, 30), ball(15, 92, 60, 14)
    bladder, rectum = bladder & ~gland, rectum & ~gland
    hu[ball(15, 60, 60, 26)] = 33.0
    for mask, wall, inner in ((bladder, 36.0, 10.0), (rectum, 42.0, -1000.0)):
        hu[mask] = wall
        deep = ndimage.distance_transform_edt(mask, GRID.spacing_mm) > 5.5
        hu[deep] = inner
    hu[gland] = 41.0
    for name, mask in (("bladder", bladder), ("rectum", rectum), ("prostate", gland)):
        labels[mask] = VALUES[name]
    return Volume((hu + noise).astype(np.float32), GRID), Volume(labels, GRID)


def test_flat_tissues_are_found_as_they_were_painted() -> None:
    found = measure_scan(*scan(), VALUES)
    for name, expected in (
        ("gland", 41.0),
        ("around gland", 33.0),
        ("rectal wall", 42.0),
        ("bladder wall", 36.0),
        ("urine", 10.0),
    ):
        assert found[name] == pytest.approx(expected, abs=1e-3), name
    assert found["fat"] == pytest.approx(-93, abs=1.0)
    assert found["muscle"] == pytest.approx(51, abs=1.0)
    assert found["noise"] == pytest.approx(0.0, abs=1e-3)


def test_white_noise_and_a_trend_give_its_strength_and_no_grain() -> None:
    rng = np.random.default_rng(0)
    trend = 0.02 * (np.indices(SHAPE)[2] - 60.0) ** 2 + 0.5 * np.indices(SHAPE)[1]
    found = measure_scan(*scan(12 * rng.standard_normal(SHAPE) + trend), VALUES)
    assert found["noise"] == pytest.approx(12, rel=0.03)
    for step in (1, 2, 3):
        assert found[f"grain {step}"] == pytest.approx(0.0, abs=0.03)


def test_smoothed_noise_has_the_grain_of_its_kernel() -> None:
    """Noise smoothed by (1 2 1) / 4 along both axes has an autocorrelation of 4/6 and 1/6 along either."""
    kernel = np.array([1.0, 2.0, 1.0]) / 4
    noise = np.random.default_rng(1).standard_normal(SHAPE)
    for axis in (1, 2):
        noise = ndimage.convolve1d(noise, kernel, axis=axis)
    found = measure_scan(*scan(40 * noise), VALUES)
    for step, expected in ((1, 4 / 6), (2, 1 / 6), (3, 0.0)):
        assert found[f"grain {step}"] == pytest.approx(expected, abs=0.06)


def test_what_a_scan_does_not_show_is_left_out() -> None:
    image, labels = scan()
    found = measure_scan(image, labels.with_array(np.zeros(SHAPE, dtype=np.uint8)), VALUES)
    assert set(found) == {"fat", "muscle"}
