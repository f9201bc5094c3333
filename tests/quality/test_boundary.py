"""The expected boundary error: shapes whose answer is known, and that what is expected is what happens."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr

from metricunet.files.model import Calibration
from metricunet.quality.boundary import (
    NEAR_MM,
    BoundaryConfidence,
    ClassField,
    boundary_confidence,
    boundary_error,
    mean_read_on,
    near,
    surface_area_mm2,
)
from metricunet.volume import CANONICAL_DIRECTIONS, Geometry, Volume

SPACING = (2.0, 1.0, 1.0)
#: Mean distance of a normal variable from its middle, in standard deviations.
MEAN_DISTANCE = math.sqrt(2 / math.pi)


def distance_from(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Distance of each voxel from the middle of the grid in mm, an odd place between the voxels."""
    axes = [(np.arange(n) - (n - 1) / 2 - 0.31) * step for n, step in zip(shape, spacing_mm, strict=True)]
    s, r, c = np.meshgrid(*axes, indexing="ij")
    return np.asarray(np.sqrt(s**2 + r**2 + c**2))


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (2.0, 1.0, 1.0), (3.0, 0.8, 0.8)])
@pytest.mark.parametrize("sigma_mm", [1.0, 2.0, 3.0])
def test_a_sphere_whose_radius_is_uncertain(sigma_mm: float, spacing_mm: tuple[float, float, float]) -> None:
    """Its boundary is off by sigma * sqrt(2 / pi) on average; a sphere's two sides even out up to (sigma / R)²."""
    radius_mm = 20.0
    shape = tuple(round(70 / step) for step in spacing_mm)
    distance = distance_from((shape[0], shape[1], shape[2]), spacing_mm)
    probability = ndtr((radius_mm - distance) / sigma_mm)
    found = boundary_error(probability.astype(np.float32), distance < radius_mm, spacing_mm)
    # The mean of |(R + x)^3 - R^3| / (3 R^2), exactly.
    wanted = sigma_mm * MEAN_DISTANCE * (1 + 2 * (sigma_mm / radius_mm) ** 2 / 3)
    assert found.case_mm == pytest.approx(wanted, rel=0.03)
    # In the middle slice the surface stands upright, so the slice says the same; near the poles it says more.
    middle = shape[0] // 2
    assert found.slices_mm[middle] == pytest.approx(sigma_mm * MEAN_DISTANCE, rel=0.04)
    used = np.flatnonzero(~np.isnan(found.slices_mm))
    assert found.slices_mm[used[0]] > 1.5 * found.slices_mm[middle]


def test_a_cylinder_slice_by_slice() -> None:
    """Each slice has an uncertainty of its own, and says so."""
    sigma_mm = np.linspace(0.8, 3, 12)[:, None, None]
    distance = distance_from((12, 80, 80), (1e-9, 1.0, 1.0))
    found = boundary_error(ndtr((18 - distance) / sigma_mm), distance < 18, SPACING)
    np.testing.assert_allclose(found.slices_mm, sigma_mm[:, 0, 0] * MEAN_DISTANCE, rtol=0.03)


def test_against_a_true_mask_it_is_the_width_of_the_strip() -> None:
    """Concentric discs of 20 and 23 mm: (23² - 20²) π / (2 π 20) in each slice."""
    distance = distance_from((6, 70, 70), (1e-9, 1.0, 1.0))
    found = boundary_error(distance < 23, distance < 20, SPACING)
    np.testing.assert_allclose(found.slices_mm, (23**2 - 20**2) / 40, rtol=0.03)
    same = boundary_error(distance < 20, distance < 20, SPACING)
    assert (same.case_mm, same.slices_mm.max()) == (0, 0)


def test_what_is_expected_is_what_happens_on_average() -> None:
    """Boundaries that are drawn as the probability says are off, on average, by what was expected.

    The whole boundary moves at once, so the errors of its voxels hang together as much as they can.
    """
    radius_mm, sigma_mm = 15.0, 2.0
    distance = distance_from((30, 56, 56), SPACING)
    mask = distance < radius_mm
    expected = boundary_error(ndtr((radius_mm - distance) / sigma_mm), mask, SPACING)
    levels = ndtr((radius_mm - distance) / sigma_mm)
    drawn = [boundary_error(levels > u, mask, SPACING) for u in (np.arange(200) + 0.5) / 200]
    assert np.mean([d.case_mm for d in drawn]) == pytest.approx(expected.case_mm, rel=0.01)
    with np.errstate(invalid="ignore"):
        means = np.mean([d.slices_mm for d in drawn], axis=0)
    np.testing.assert_allclose(means, expected.slices_mm, rtol=0.02)


@given(st.tuples(*[st.floats(10, 24)] * 3), st.sampled_from([(1.0, 1.0, 1.0), (2.5, 0.9, 0.9)]))
def test_the_area_of_ellipsoids(radii_mm: tuple[float, float, float], spacing_mm: tuple[float, ...]) -> None:
    """Against Thomsen's formula, right within 1.1 %; the flattest of these come out 5.3 % short by themselves."""
    axes = [
        (np.arange(-math.ceil(a / step) - 1, math.ceil(a / step) + 2) + 0.23) * step / a
        for a, step in zip(radii_mm, spacing_mm, strict=True)
    ]
    s, r, c = np.meshgrid(*axes, indexing="ij")
    mask = s**2 + r**2 + c**2 < 1
    a, b, e = (radius**1.6075 for radius in radii_mm)
    wanted = 4 * math.pi * ((a * b + a * e + b * e) / 3) ** (1 / 1.6075)
    step_s, step_r, step_c = spacing_mm
    assert surface_area_mm2(mask, (step_s, step_r, step_c)) == pytest.approx(wanted, rel=0.08)


def test_near_keeps_the_margin_and_stays_in_the_array() -> None:
    mask = np.zeros((20, 40, 40), dtype=bool)
    mask[2, 20:22, 30] = True
    assert near(mask, SPACING) == (slice(0, 8), slice(10, 32), slice(20, 41))
    assert mask[near(mask, SPACING)].sum() == mask.sum()


def calibration(scale: float, low: float, high: float) -> Calibration:
    return Calibration(1.0, scale, (low, high), 3, {"nll_before": 0.2, "nll_after": 0.1})


def ball(geometry: Geometry, sigma_mm: float = 2.0) -> tuple[ClassField, Volume]:
    """A ball of 18 mm about (35, 36, -260) whose radius is uncertain: both classes, and the mask."""
    axes = np.meshgrid(*[np.arange(n) for n in geometry.shape], indexing="ij")
    places = geometry.to_world(np.stack(axes, axis=-1).reshape(-1, 3)).reshape(*geometry.shape, 3)
    distance = np.linalg.norm(places - (35, 36, -260), axis=-1)
    inside = ndtr((18 - distance) / sigma_mm).astype(np.float32)
    return ClassField(np.stack([1 - inside, inside]), geometry), Volume(distance < 18, geometry)


STAGE_GRID = Geometry.from_parts((40, 60, 60), SPACING, (5.3, 6.2, -299.1))


def confidence(
    *calibrations: Calibration | None, scan: Geometry = STAGE_GRID, sigma_mm: float = 2.0
) -> BoundaryConfidence:
    field = ball(STAGE_GRID, sigma_mm)[0]
    found = boundary_confidence([field] * len(calibrations), calibrations, 1, ball(scan)[1])
    assert found is not None
    return found


def test_the_scales_and_ranges_of_the_models() -> None:
    plain, scaled = confidence(None), confidence(calibration(1.5, 0.5, 2.0))
    assert plain.case_mm == pytest.approx(2 * MEAN_DISTANCE, rel=0.05)
    assert scaled.case_mm == pytest.approx(1.5 * plain.case_mm)
    assert [mm for _, mm in scaled.slices] == pytest.approx([1.5 * mm for _, mm in plain.slices])
    both = confidence(calibration(1.5, 0.5, 2.0), calibration(0.5, 0.7, 3.0))
    assert both.case_mm == pytest.approx(plain.case_mm)
    assert both.validation_mm == (0.5, 3.0)
    assert (scaled.high, both.high, plain.high) == (True, False, False)
    # One model that nobody calibrated, and the whole is not calibrated.
    mixed = confidence(calibration(1.5, 0.5, 2.0), None)
    assert (mixed.validation_mm, mixed.case_mm) == (None, plain.case_mm)


def test_the_part_of_quality_json() -> None:
    content = confidence(calibration(1.0, 0.5, 2.0)).to_json()
    assert content["calibrated"]
    assert content["expected_error_mm"] == pytest.approx(1.6, abs=0.1)
    assert content["validation_mm"] == [0.5, 2.0]
    places = [entry["z_mm"] for entry in content["slices"]]
    assert len(places) == 18
    np.testing.assert_allclose(np.diff(places), 2)
    assert (places[0] + places[-1]) / 2 == pytest.approx(-260, abs=1.1)
    bare = confidence(None).to_json()
    assert (bare["calibrated"], bare["validation_mm"]) == (False, None)


@pytest.mark.parametrize(
    ("spacing_mm", "shape"), [((1.0, 0.7, 0.7), (60, 80, 80)), ((3.0, 0.98, 0.98), (24, 60, 60))]
)
def test_the_grid_of_the_scan_changes_nothing(
    spacing_mm: tuple[float, float, float], shape: tuple[int, int, int]
) -> None:
    """What is expected of a sharp boundary would grow if its probability were read between voxels."""
    scan = Geometry.from_parts(shape, spacing_mm, (8.1, 7.7, -292.4))
    here, there = confidence(None, sigma_mm=0.7), confidence(None, scan=scan, sigma_mm=0.7)
    assert there.case_mm == here.case_mm
    heights, errors = np.array(there.slices).T
    np.testing.assert_allclose(np.diff(heights), spacing_mm[0])
    assert len(heights) == pytest.approx(36 / spacing_mm[0], abs=1)
    upright = np.abs(heights + 260) < 9
    np.testing.assert_allclose(errors[upright], np.interp(heights, *np.array(here.slices).T)[upright])


def test_slices_that_lean_have_the_height_of_the_scans_middle_whatever_part_was_segmented() -> None:
    turn = np.array([[1, 0, 0], [0, np.cos(0.3), -np.sin(0.3)], [0, np.sin(0.3), np.cos(0.3)]])
    directions = turn @ CANONICAL_DIRECTIONS
    # The ball lies at index 20, 25, 25, the middle at 19.5, 44.5, 29.5.
    origin = np.array([35, 36, -260]) - directions @ np.multiply((20, 25, 25), SPACING)
    scan = Geometry.from_parts((40, 90, 60), SPACING, origin.tolist(), directions)
    field, mask = ball(scan)
    used = np.flatnonzero(mask.array.any(axis=(1, 2)))
    heights = scan.to_world([(k, 44.5, 29.5) for k in used])[:, 2]
    for part in (mask, mask.crop((5, 2, 1), (32, 50, 52))):
        found = boundary_confidence([field], [None], 1, part, scan)
        assert found is not None
        np.testing.assert_allclose([z for z, _ in found.slices], heights)


def test_models_on_other_grids_are_read_on_the_first() -> None:
    other = Geometry.from_parts((50, 70, 64), (1.5, 0.9, 0.9), (7, 5, -297))
    one, two = ball(STAGE_GRID)[0], ball(other)[0]
    both = boundary_confidence([one, two], [None, None], 1, ball(STAGE_GRID)[1])
    assert both is not None
    assert both.probability.geometry is STAGE_GRID
    assert both.case_mm == pytest.approx(confidence(None).case_mm, rel=0.03)


def test_a_temperature_makes_more_of_the_same_probability() -> None:
    """Of a logistic profile the mean distance grows as the temperature."""
    warm = replace(calibration(1.0, 0.5, 2.0), temperature=2.0)
    assert confidence(warm).case_mm == pytest.approx(2 * confidence(None).case_mm, rel=0.15)


def test_what_lies_far_from_the_mask_counts_for_nothing() -> None:
    geometry = Geometry.from_parts((30, 60, 60), SPACING)
    mask = np.zeros((30, 60, 60), dtype=bool)
    mask[10:20, 10:30, 10:30] = True
    probability = mask.astype(np.float32)
    probability[:, :, 30 + round(NEAR_MM) :] = 0.4
    field = ClassField(np.stack([1 - probability, probability]), geometry)
    found = boundary_confidence([field], [None], 1, Volume(mask, geometry))
    assert found is not None
    assert found.case_mm == 0
    assert boundary_confidence([field], [None], 1, Volume(np.zeros_like(mask), geometry)) is None


def test_a_model_says_nothing_of_what_it_has_not_looked_at() -> None:
    """Two fields, the one longer than the other: beyond the shorter one the longer one's word counts alone."""
    grid = Geometry.from_parts((10, 4, 4), (2, 2, 2), (0, 0, 0))
    long = ClassField(np.stack([np.full(grid.shape, 0.2, np.float32), np.full(grid.shape, 0.8, np.float32)]), grid)
    part = grid.crop((0, 0, 0), (6, 4, 4))
    short = ClassField(
        np.stack([np.full(part.shape, 0.6, np.float32), np.full(part.shape, 0.4, np.float32)]), part
    )
    mean = mean_read_on([long, short], grid)
    np.testing.assert_allclose(mean[1, :6], 0.6, atol=1e-6)
    np.testing.assert_allclose(mean[1, 6:], 0.8, atol=1e-6)
    np.testing.assert_allclose(mean.sum(axis=0), 1, atol=1e-6)
    # Where none has looked is background; models that looked at the same have their plain mean.
    beyond = Geometry.from_parts((4, 4, 4), (2, 2, 2), (0, 0, 40))
    assert (mean_read_on([long, short], beyond)[0] == 1).all()
    np.testing.assert_array_equal(mean_read_on([long, long], grid), long.array)
