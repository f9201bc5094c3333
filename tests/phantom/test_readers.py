"""Readers: how far they disagree, where, and what they leave alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from metricunet.errors import InputError
from metricunet.phantom import STRUCTURES, anatomy, make_phantom, organs
from metricunet.phantom.anatomy import Anatomy
from metricunet.phantom.patient import Patient, draw_patient
from metricunet.phantom.readers import contour, draw_reading, habit
from metricunet.phantom.shapes import Field, Lattice

#: Fresh seeds: the strengths were set on 0 to 99.
SEEDS = range(500, 524)
SPACING_MM = 3.0
FINE_MM = 1.0


@cache
def man(seed: int) -> Patient:
    return draw_patient(np.random.default_rng(np.random.SeedSequence(seed).spawn(4)[0]))


@cache
def shapes(seed: int, margin_mm: float = 20.0) -> Anatomy:
    """The anatomy in a box around the gland."""
    where = organs.gland(man(seed))
    reach = [1.4 * h + margin_mm for h in where.half]
    low = [c - r for c, r in zip(where.centre, reach, strict=True)]
    high = [c + r for c, r in zip(where.centre, reach, strict=True)]
    return anatomy.build(
        man(seed), Lattice.spanning((low[0], low[1], low[2]), (high[0], high[1], high[2]), SPACING_MM)
    )


@cache
def drawn(seed: int, reader: int) -> Field:
    return contour(shapes(seed), man(seed), draw_reading(seed, reader))


@cache
def mask(seed: int, reader: int) -> np.ndarray:
    """The inside on a fine lattice; reader 0 is the truth."""
    field = shapes(seed).fields["prostate"] if reader == 0 else drawn(seed, reader)
    return np.asarray(ndimage.zoom(field, SPACING_MM / FINE_MM, order=1) < 0)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_two_readers_agree_as_clinicians_do() -> None:
    found = np.array([dice(mask(seed, 1), mask(seed, 2)) for seed in SEEDS])
    assert 0.875 < found.mean() < 0.905
    low, high = np.percentile(found, [5, 95])
    assert low > 0.835
    assert high < 0.93


def test_large_and_small_glands_are_disagreed_on_alike() -> None:
    by_size = sorted(SEEDS, key=lambda seed: man(seed).gland_volume_ml)
    for part in (by_size[:8], by_size[-8:]):
        assert 0.86 < np.mean([dice(mask(seed, 1), mask(seed, 2)) for seed in part]) < 0.92


def test_the_truth_lies_between_the_readers() -> None:
    for reader in (1, 2):
        assert 0.905 < np.mean([dice(mask(seed, reader), mask(seed, 0)) for seed in SEEDS]) < 0.94
    change = {
        reader: np.mean([mask(seed, reader).sum() / mask(seed, 0).sum() - 1 for seed in SEEDS])
        for reader in (1, 2)
    }
    assert change[1] - change[2] > 0.02  # the odd reader draws generously, the even one tightly
    assert abs(change[1] + change[2]) / 2 < 0.03


def test_readers_keep_their_habits() -> None:
    assert [habit(reader).size_mm > 0 for reader in range(1, 7)] == [True, False] * 3
    assert habit(3) == habit(3)
    assert habit(1) != habit(3)
    with_habit = np.mean([draw_reading(seed, 3).size_mm for seed in range(400)])
    assert with_habit == pytest.approx(habit(3).size_mm, abs=0.03)


def test_they_disagree_most_on_the_first_and_the_last_slices() -> None:
    inner, outer = [], []
    for seed in SEEDS:
        a, b, truth = mask(seed, 1), mask(seed, 2), mask(seed, 0)
        held = np.flatnonzero(truth.any(axis=(1, 2)))
        fifth = max(2, len(held) // 5)
        ends = np.r_[held[:fifth], held[-fifth:]]
        outer.append(dice(a[ends], b[ends]))
        inner.append(dice(a[held[2 * fifth : -2 * fifth]], b[held[2 * fifth : -2 * fifth]]))
    assert np.mean(inner) > 0.9
    assert np.mean(outer) < np.mean(inner) - 0.08
    highest = [np.ptp([np.flatnonzero(mask(s, r).any(axis=(1, 2)))[-1] for r in (1, 2)]) for s in SEEDS]
    assert 1.0 < np.mean(highest) * FINE_MM < 4.0  # about a slice
    assert max(highest) * FINE_MM < 10.0


def test_the_displacement_is_smooth_along_the_surface() -> None:
    """Neighbours within a slice err alike, points 12 mm apart about half as much, far ones hardly."""
    near: list[list[float]] = [[], [], []]
    for seed in SEEDS:
        reading = replace(draw_reading(seed, 1), size_mm=0.0, apex_mm=0.0, base_mm=0.0)
        truth = shapes(seed).fields["prostate"]
        moved = contour(shapes(seed), man(seed), reading) - ndimage.gaussian_filter(truth, (0, 2.5 / 3, 2.5 / 3))
        lattice = shapes(seed).lattice
        k, j, i = np.nonzero(np.abs(truth) < 1.5)
        place = np.stack([lattice.z[k], lattice.y[j], lattice.x[i]], axis=1)
        value = moved[k, j, i]
        gap = np.linalg.norm(place[:, None] - place[None], axis=-1)
        level = place[:, None, 0] == place[None, :, 0]
        product = np.outer(value, value) / np.mean(value**2)
        for found, (low, high) in zip(near, ((2, 4), (11, 13), (30, 50)), strict=True):
            found.append(float(product[level & (gap > low) & (gap < high)].mean()))
    close, middle, far = (np.mean(found) for found in near)
    assert close > 0.85
    assert 0.25 < middle < 0.7
    assert far < 0.15


@pytest.mark.parametrize("seed", list(SEEDS)[:8])
def test_nobody_draws_into_bone_urine_or_stool(seed: int) -> None:
    fields = shapes(seed).fields
    for reader in (1, 2):
        inside = drawn(seed, reader) < 0
        for name in ("urine", "rectum_lumen", "hip_left", "hip_right", "sacrum"):
            assert (fields[name][inside] > 0).all(), name


@pytest.mark.parametrize("seed", list(SEEDS)[:8])
def test_a_contour_is_one_piece_without_holes(seed: int) -> None:
    for reader in (1, 2):
        _, pieces = ndimage.label(mask(seed, reader), np.ones((3, 3, 3)))
        _, around = ndimage.label(~mask(seed, reader))
        assert (pieces, around) == (1, 1)


def test_a_contour_does_not_depend_on_the_field_of_view() -> None:
    narrow, wide = shapes(500), shapes(500, 32.0)
    axes = (narrow.lattice.x, narrow.lattice.y, narrow.lattice.z)
    low, high = ([float(axis[end]) for axis in axes] for end in (0, -1))
    box = wide.lattice.box((low[0], low[1], low[2]), (high[0], high[1], high[2]))
    other = contour(wide, man(500), draw_reading(500, 1))[box]
    assert np.array_equal(drawn(500, 1) < 0, other < 0)


def test_a_scan_carries_its_readers_and_is_otherwise_the_same() -> None:
    without, one, two = (make_phantom(3, "easy", n_readers=n) for n in (0, 1, 2))
    assert without.readings == ()
    for made in (one, two):
        np.testing.assert_array_equal(made.image.array, without.image.array)
        np.testing.assert_array_equal(made.labels.array, without.labels.array)
    np.testing.assert_array_equal(one.readings[0].array, two.readings[0].array)
    assert (two.readings[0].array != two.readings[1].array).any()
    value = STRUCTURES["prostate"]
    for reading in two.readings:
        assert reading.geometry.same_grid(without.labels.geometry)
        assert reading.array.dtype == np.uint8
        neither = (reading.array != value) & (without.labels.array != value)
        np.testing.assert_array_equal(reading.array[neither], without.labels.array[neither])
        assert not np.isin(reading.array[without.labels.array == value], [2, 3, 4]).any()


def test_where_the_scan_has_no_gland_nobody_draws_one() -> None:
    made = make_phantom(2, "easy", reaches_prostate=False, n_readers=2)
    assert len(made.readings) == 2
    for reading in made.readings:
        np.testing.assert_array_equal(reading.array, made.labels.array)


def test_a_negative_number_of_readers_is_refused() -> None:
    with pytest.raises(InputError, match="n_readers must be 0 or more; got -1"):
        make_phantom(0, "easy", n_readers=-1)
