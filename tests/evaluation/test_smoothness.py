from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from metricunet.errors import InputError
from metricunet.evaluation.measures import BoolArray
from metricunet.evaluation.smoothness import (
    DEFINITIONS,
    SMOOTHNESS_NAMES,
    Smoothness,
    contour_lengths_mm,
    measure_smoothness,
    slice_change,
)
from metricunet.files.nifti import read_nifti
from metricunet.volume import Geometry, Volume

PIXELS_MM = [0.8, 0.9, 1.0, 1.2, 1.4]
NOTHING = Smoothness(None, None, None)


def volume(mask: NDArray[Any], spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Volume:
    return Volume(mask, Geometry.from_parts(mask.shape, spacing_mm, (10.0, -20.0, 30.0)))


def axes_mm(pixel_mm: tuple[float, float], side_mm: float) -> tuple[NDArray[Any], NDArray[Any]]:
    y, x = (np.arange(round(side_mm / p)) * p - side_mm / 2 for p in pixel_mm)
    return y[:, None], x[None]


def discs(pixel_mm: tuple[float, float], radius_mm: float, count: int = 30) -> BoolArray:
    y, x = axes_mm(pixel_mm, 2 * radius_mm + 6)
    places = np.random.default_rng(3).uniform(-1, 1, (count, 2))
    return np.array([np.hypot(y - a, x - b) <= radius_mm for a, b in places])


def ellipsoid(scale: float = 1.0, size: int = 40) -> BoolArray:
    z, y, x = np.meshgrid(*[np.arange(size) - (size - 1) / 2] * 3, indexing="ij", sparse=True)
    return np.asarray((z / 16) ** 2 + (y / 14) ** 2 + (x / 17) ** 2 <= scale**2)


def jagged(mask: BoolArray, share: float = 0.5, seed: int = 0) -> BoolArray:
    """Flip a share of the voxels at the surface, in-plane."""
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    core = padded[:, 1:-1, 1:-1]
    differs = np.zeros_like(mask)
    for row, column in ((0, 1), (2, 1), (1, 0), (1, 2)):
        differs |= core != padded[:, row : row + mask.shape[1], column : column + mask.shape[2]]
    return np.asarray(mask ^ (differs & (np.random.default_rng(seed).random(mask.shape) < share)))


# --- contour length ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pixel_mm", PIXELS_MM)
@pytest.mark.parametrize("radius_mm", [10.0, 20.0, 30.0])
def test_the_contour_of_a_disc_is_its_circumference(pixel_mm: float, radius_mm: float) -> None:
    error = contour_lengths_mm(discs((pixel_mm, pixel_mm), radius_mm), (pixel_mm, pixel_mm)) / (
        2 * math.pi * radius_mm
    )
    assert error == pytest.approx(1, abs=0.02)
    assert error.mean() == pytest.approx(1, abs=0.005)


@pytest.mark.parametrize("pixel_mm", [(0.8, 1.4), (1.4, 0.8), (1.0, 2.0)])
def test_pixels_that_are_not_square(pixel_mm: tuple[float, float]) -> None:
    error = contour_lengths_mm(discs(pixel_mm, 20.0), pixel_mm) / (2 * math.pi * 20)
    assert error == pytest.approx(1, abs=0.02)
    assert error.mean() == pytest.approx(1, abs=0.005)


@pytest.mark.parametrize("pixel_mm", PIXELS_MM)
def test_the_contour_of_a_square_hardly_depends_on_its_angle(pixel_mm: float) -> None:
    y, x = axes_mm((pixel_mm, pixel_mm), 92)
    places = np.random.default_rng(4).uniform(-1, 1, (12, 2))
    for angle in np.linspace(0, math.pi / 2, 25):
        c, s = math.cos(angle), math.sin(angle)
        squares = [
            (abs((y - a) * c + (x - b) * s) <= 30) & (abs((x - b) * c - (y - a) * s) <= 30) for a, b in places
        ]
        missing_mm = 240 - contour_lengths_mm(np.array(squares), (pixel_mm, pixel_mm)).mean()
        # Straight sides are true to 1.5 %; at most half a pixel lacks at each corner. Sides of whole pixels are
        # 60 mm on average only.
        assert -0.015 * 240 - 0.2 * pixel_mm < missing_mm < 0.015 * 240 + 4 * 0.6 * pixel_mm


def test_counting_edges_would_be_a_quarter_too_long() -> None:
    (disc,) = discs((1.0, 1.0), 20.0, count=1)
    edges = sum(np.count_nonzero(np.diff(np.pad(disc, 1), axis=axis)) for axis in (0, 1))
    assert edges / (40 * math.pi) == pytest.approx(4 / math.pi, abs=0.02)


def test_a_wave_round_a_circle() -> None:
    # r(t) = 20 + sin(21 t) mm: waves of 6 mm. Its length by summing the chords of the exact curve.
    t = np.linspace(0, 2 * math.pi, 20001)
    r = 20 + np.sin(21 * t)
    true_mm = np.hypot(np.diff(r * np.cos(t)), np.diff(r * np.sin(t))).sum()
    assert true_mm > 1.2 * 40 * math.pi
    y, x = axes_mm((1.0, 1.0), 50)
    wave = np.hypot(y, x) <= 20 + np.sin(21 * np.arctan2(y, x))
    assert contour_lengths_mm(wave[None], (1.0, 1.0))[0] == pytest.approx(true_mm, rel=0.06)


def plain_loop_length(mask: BoolArray, pixel_mm: tuple[float, float]) -> float:
    """Crofton's formula, one pixel and one direction at a time."""
    steps = [(0, 1), (1, 0), (1, 1), (1, -1), (1, 2), (1, -2), (2, 1), (2, -1)]
    angle = {s: math.atan2(s[0] * pixel_mm[0], s[1] * pixel_mm[1]) for s in steps}
    order = sorted(steps, key=lambda s: angle[s])
    total = 0.0
    for place, step in enumerate(order):
        before, after = angle[order[place - 1]], angle[order[(place + 1) % 8]]
        share = ((after - before) % math.pi) / 2
        crossings = 0
        for row, column in itertools.product(range(-2, mask.shape[0] + 2), range(-2, mask.shape[1] + 2)):
            ends = []
            for i, j in ((row, column), (row + step[0], column + step[1])):
                ends.append(0 <= i < mask.shape[0] and 0 <= j < mask.shape[1] and bool(mask[i, j]))
            crossings += ends[0] != ends[1]
        step_mm = math.hypot(step[0] * pixel_mm[0], step[1] * pixel_mm[1])
        total += 0.5 * share * pixel_mm[0] * pixel_mm[1] / step_mm * crossings
    return total


@settings(max_examples=15, deadline=None)
@given(
    bits=st.lists(st.booleans(), min_size=20, max_size=20),
    pixel_mm=st.tuples(st.sampled_from([0.8, 1.0, 1.7]), st.sampled_from([0.8, 1.0, 1.3])),
)
def test_contour_lengths_against_plain_loops(bits: list[bool], pixel_mm: tuple[float, float]) -> None:
    mask = np.array(bits).reshape(4, 5)
    assert contour_lengths_mm(mask[None], pixel_mm)[0] == pytest.approx(plain_loop_length(mask, pixel_mm))


def test_a_single_pixel_by_hand() -> None:
    # Every direction crosses it twice: Σ share · a / |v|, with shares of 26.57, 22.5 and 18.43 degrees.
    share = {1.0: math.atan(1 / 2), math.sqrt(5): math.pi / 8, math.sqrt(2): math.pi / 4 - math.atan(1 / 2)}
    by_hand = 2 * share[1.0] + 2 * share[math.sqrt(2)] / math.sqrt(2) + 4 * share[math.sqrt(5)] / math.sqrt(5)
    assert contour_lengths_mm(np.ones((1, 1, 1), dtype=bool), (1.0, 1.0))[0] == pytest.approx(by_hand)


def test_empty_slices_and_holes() -> None:
    ring = np.zeros((2, 40, 40), dtype=bool)
    y, x = axes_mm((1.0, 1.0), 40)
    ring[1] = (np.hypot(y, x) <= 18) & (np.hypot(y, x) > 9)
    lengths = contour_lengths_mm(ring, (1.0, 1.0))
    assert lengths[0] == 0
    assert lengths[1] == pytest.approx(2 * math.pi * (18 + 9), rel=0.02)


# --- slice-to-slice change --------------------------------------------------------------------------------------


def test_slice_change_by_hand() -> None:
    mask = np.zeros((6, 1, 4), dtype=bool)
    mask[1, 0, :2] = mask[2, 0, 1:4] = mask[4, 0, 1:4] = True
    # 2 and 3 voxels with 1 in common, then 3 and none, none and 3; the slices before and after do not count.
    assert slice_change(mask) == pytest.approx((3 + 3 + 3) / (5 + 3 + 3))
    assert slice_change(mask[:3]) == pytest.approx(1 - 2 / 5)
    assert slice_change(mask[:2]) is None
    assert slice_change(mask[:1]) is None


def test_a_column_that_jumps_sideways_by_hand() -> None:
    reference = np.zeros((4, 5, 6), dtype=bool)
    reference[:, 1:4, 1:4] = True
    prediction = reference.copy()
    prediction[2] = np.roll(reference[2], 1, axis=1)
    # Slice 2 lies one of three columns aside: Dice 2/3 with the ones before and after, of three pairs.
    result = measure_smoothness(volume(prediction), volume(reference))
    assert result.slice_change_excess_pp == pytest.approx(100 * 2 * (1 / 3) / 3)
    assert result.contour_length_excess_percent == pytest.approx(0)
    assert result.contour_roughness_excess_percent == pytest.approx(0)


def test_ends_that_lie_elsewhere_are_no_roughness() -> None:
    reference = np.zeros((12, 9, 9), dtype=bool)
    reference[1:11, 2:7, 2:7] = True
    for first, last in ((4, 8), (0, 12), (0, 6)):
        prediction = np.zeros_like(reference)
        prediction[first:last, 2:7, 2:7] = True
        result = measure_smoothness(volume(prediction), volume(reference))
        assert result.slice_change_excess_pp == 0
        assert result.contour_roughness_excess_percent == pytest.approx(0)
        assert result.contour_length_excess_percent == pytest.approx(100 * ((last - first) / 10 - 1))


def test_a_longer_gap_is_rougher() -> None:
    reference = np.zeros((11, 9, 9), dtype=bool)
    reference[:, 2:7, 2:7] = True
    excess = []
    for gap in (1, 2, 4):
        prediction = reference.copy()
        prediction[3 : 3 + gap] = False
        found = measure_smoothness(volume(prediction), volume(reference)).slice_change_excess_pp
        assert found is not None
        assert found == pytest.approx(100 / (10 - gap))
        excess.append(found)
    assert excess == sorted(excess)


def test_one_slice_has_no_neighbour() -> None:
    reference, prediction = np.zeros((7, 9, 9), dtype=bool), np.zeros((7, 9, 9), dtype=bool)
    reference[:4, 2:7, 2:7] = prediction[3:4, 2:7, 2:7] = True
    for p, r in ((prediction, reference), (reference, prediction)):
        result = measure_smoothness(volume(p), volume(r))
        assert result.slice_change_excess_pp is None
        assert result.contour_roughness_excess_percent == pytest.approx(0)


# --- all measures -----------------------------------------------------------------------------------------------


def test_the_true_shape_has_no_excess() -> None:
    mask = volume(ellipsoid(), (3.0, 1.0, 1.0))
    result = measure_smoothness(mask, mask)
    assert [result.value(d.name) for d in DEFINITIONS] == [0, 0, 0]
    assert tuple(vars(result)) == SMOOTHNESS_NAMES


def test_jagged_surfaces_exceed_in_all_measures() -> None:
    reference = ellipsoid()
    light, strong = (
        measure_smoothness(volume(jagged(reference, share)), volume(reference)) for share in (0.1, 0.5)
    )
    for name in SMOOTHNESS_NAMES:
        a, b = light.value(name), strong.value(name)
        assert a is not None
        assert b is not None
        assert 0.5 < a < b


def test_only_the_length_depends_on_size() -> None:
    result = measure_smoothness(volume(ellipsoid(0.8)), volume(ellipsoid()))
    assert result.contour_length_excess_percent == pytest.approx(100 * (0.8**2 - 1), abs=3)
    assert result.contour_roughness_excess_percent == pytest.approx(0, abs=1.5)
    assert result.slice_change_excess_pp == pytest.approx(0, abs=3)


def test_each_measure_says_something_of_its_own() -> None:
    reference = np.zeros((20, 40, 40), dtype=bool)
    reference[:, 10:30, 10:30] = True
    # The same jagged outline in every slice, and smooth outlines that jump.
    combed = reference.copy()
    combed[:, 30, 10:30:2] = True
    jumping = reference.copy()
    jumping[::2] = np.roll(reference[::2], 4, axis=2)
    comb, jump = (measure_smoothness(volume(m), volume(reference)) for m in (combed, jumping))
    assert comb.slice_change_excess_pp == pytest.approx(0)
    assert comb.contour_roughness_excess_percent is not None
    assert comb.contour_roughness_excess_percent > 5
    assert jump.slice_change_excess_pp == pytest.approx(20)
    assert jump.contour_roughness_excess_percent == pytest.approx(0)


def test_islands_and_holes_are_contours() -> None:
    reference = ellipsoid()
    island, hole = reference.copy(), reference.copy()
    island[18:22, 1:4, 1:4] = True
    hole[18:22, 18:22, 18:22] = False
    for mask in (island, hole):
        found = measure_smoothness(volume(mask), volume(reference))
        for value in (found.contour_length_excess_percent, found.contour_roughness_excess_percent):
            assert value is not None
            assert value > 0.5


@pytest.mark.parametrize(("p", "r"), [(False, True), (True, False), (False, False)])
def test_empty_masks_have_no_smoothness(p: bool, r: bool) -> None:
    assert measure_smoothness(volume(ellipsoid() & p), volume(ellipsoid() & r)) == NOTHING


def test_masks_at_the_edge_of_the_scan() -> None:
    # The outside is outside: cutting the scan tight round the masks changes nothing.
    reference = ellipsoid()
    prediction = jagged(reference)
    both = prediction | reference
    box = tuple(
        slice(int(np.flatnonzero(both.any(axis=other))[0]), int(np.flatnonzero(both.any(axis=other))[-1]) + 1)
        for other in ((1, 2), (0, 2), (0, 1))
    )
    whole = measure_smoothness(volume(prediction), volume(reference))
    tight = measure_smoothness(volume(prediction[box]), volume(reference[box]))
    assert tight == whole
    full = np.ones((3, 4, 5), dtype=bool)
    assert measure_smoothness(volume(full), volume(full)) == Smoothness(0.0, 0.0, 0.0)


@settings(max_examples=15, deadline=None)
@given(flips=st.tuples(st.booleans(), st.booleans(), st.booleans()), swap=st.booleans(), seed=st.integers(0, 99))
def test_mirrored_and_turned_masks_are_as_smooth(flips: tuple[bool, bool, bool], swap: bool, seed: int) -> None:
    generator = np.random.default_rng(seed)
    p, r = generator.random((2, 5, 6, 7)) < 0.6
    plain = measure_smoothness(volume(p), volume(r))
    turn = tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)
    p, r = p[turn], r[turn]
    if swap:
        p, r = p.transpose(0, 2, 1), r.transpose(0, 2, 1)
    turned = measure_smoothness(volume(p), volume(r))
    for name in SMOOTHNESS_NAMES:
        assert turned.value(name) == pytest.approx(plain.value(name))


def test_another_storage_order_is_the_same_grid() -> None:
    reference, prediction = volume(ellipsoid(), (3.0, 0.9, 1.1)), volume(jagged(ellipsoid()), (3.0, 0.9, 1.1))
    affine = prediction.geometry.affine.copy()
    affine[:3, 3] += affine[:3, 2] * (prediction.array.shape[2] - 1)
    affine[:3, 2] *= -1
    flipped = Volume(prediction.array[:, :, ::-1], Geometry(prediction.geometry.shape, affine))
    assert measure_smoothness(flipped, reference) == measure_smoothness(prediction, reference)


def test_another_grid_is_refused() -> None:
    with pytest.raises(InputError, match="its grid is"):
        measure_smoothness(volume(ellipsoid()), volume(ellipsoid(), (1.0, 1.0, 1.1)))


def test_a_real_prostate_made_jagged(shared_data: Path) -> None:
    labels = sorted((shared_data / "anatomy_labels").glob("*.nii.gz"))
    assert labels
    for path in labels:
        scan = read_nifti(path)
        prostate = scan.array == 1
        rough = scan.with_array(jagged(prostate, 0.3))
        found = measure_smoothness(rough, scan.with_array(prostate))
        for name in SMOOTHNESS_NAMES:
            value = found.value(name)
            assert value is not None
            assert value > 2
