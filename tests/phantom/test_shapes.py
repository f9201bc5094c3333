"""Signed distances against shapes whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricunet.phantom.organs import volume_ml
from metricunet.phantom.shapes import (
    FAR_MM,
    Lattice,
    Waves,
    add_strand,
    add_tube,
    capsule,
    ellipsoid,
    smooth_min,
    without,
)


@pytest.fixture(scope="module")
def lattice() -> Lattice:
    return Lattice.spanning((-40.0, -36.0, -32.0), (40.0, 36.0, 32.0), 2.0)


def coordinates(lattice: Lattice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    z, y, x = np.meshgrid(lattice.z, lattice.y, lattice.x, indexing="ij")
    return x, y, z


def test_lattice_encloses_its_box_on_whole_multiples() -> None:
    lattice = Lattice.spanning((-7.0, 1.0, 0.0), (8.0, 2.0, 6.0), 3.0)
    assert lattice.x.tolist() == [-9, -6, -3, 0, 3, 6, 9]
    assert lattice.y.tolist() == [0, 3]
    assert lattice.z.tolist() == [0, 3, 6]
    assert lattice.shape == (3, 2, 7)


def test_a_sphere_has_exact_distances(lattice: Lattice) -> None:
    x, y, z = coordinates(lattice)
    expected = np.sqrt((x - 3) ** 2 + (y + 2) ** 2 + z**2) - 15
    found = ellipsoid(lattice, (3, -2, 0), (15, 15, 15))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_an_ellipsoid_has_the_volume_of_the_formula(lattice: Lattice) -> None:
    found = volume_ml(ellipsoid(lattice, (0, 0, 0), (30, 20, 12)), lattice)
    assert found == pytest.approx(4 / 3 * np.pi * 30 * 20 * 12 / 1000, rel=0.01)


@settings(max_examples=25, deadline=None)
@given(
    ends=st.lists(st.tuples(*[st.floats(-15, 15)] * 3), min_size=2, max_size=2),
    radius=st.floats(2, 10),
)
def test_a_capsule_is_the_distance_to_its_axis(ends: list[tuple[float, float, float]], radius: float) -> None:
    lattice = Lattice.spanning((-20.0, -20.0, -20.0), (20.0, 20.0, 20.0), 8.0)
    a, b = ends
    x, y, z = coordinates(lattice)
    points = np.stack([x, y, z], axis=-1)
    axis = np.array(a) + np.linspace(0, 1, 2001)[:, None] * (np.array(b) - np.array(a))
    nearest = np.linalg.norm(points[..., None, :] - axis, axis=-1).min(axis=-1)
    np.testing.assert_allclose(capsule(lattice, (*a, radius), (*b, radius)), nearest - radius, atol=0.05)


def test_a_strand_of_growing_discs_is_a_frustum(lattice: Lattice) -> None:
    field = lattice.empty()
    add_strand(field, lattice, {-20.0: ((0, 0, 10),), 20.0: ((4, 0, 20),)})
    assert volume_ml(field, lattice) == pytest.approx(np.pi * 40 / 3 * (100 + 200 + 400) / 1000, rel=0.02)


def test_a_strand_joins_its_discs_to_a_stadium(lattice: Lattice) -> None:
    field = lattice.empty()
    add_strand(field, lattice, {-10.0: ((-12, 0, 6), (12, 0, 6)), 10.0: ((-12, 0, 6), (12, 0, 6))})
    assert volume_ml(field, lattice) == pytest.approx((24 * 12 + np.pi * 36) * 20 / 1000, rel=0.02)


def test_shapes_do_not_depend_on_the_lattice_around_them() -> None:
    wide = Lattice.spanning((-60.0, -60.0, -60.0), (60.0, 60.0, 60.0), 3.0)
    near = Lattice.spanning((-12.0, -12.0, -12.0), (12.0, 12.0, 12.0), 3.0)
    box = wide.box((-12.0, -12.0, -12.0), (12.0, 12.0, 12.0))
    waves = Waves.draw(np.random.default_rng(1), (20, 50))
    for make in (
        lambda at: add_tube(at[1], at[0], [(-30, 0, 0, 8), (0, 5, 3, 6), (30, 0, 0, 9)], blend_mm=4),
        lambda at: add_strand(at[1], at[0], {-40.0: ((0, 0, 9),), 40.0: ((9, 9, 12),)}),
        lambda at: at[1].__iadd__(waves.on(at[0])),
    ):
        fields = [(lattice, lattice.empty()) for lattice in (wide, near)]
        for at in fields:
            make(at)
        np.testing.assert_allclose(fields[0][1][box], fields[1][1], atol=1e-4)


def test_what_lies_outside_the_lattice_leaves_it_empty(lattice: Lattice) -> None:
    field = lattice.empty()
    add_tube(field, lattice, [(300, 0, 0, 8), (330, 0, 0, 8)])
    add_strand(field, lattice, {500.0: ((0, 0, 9),), 540.0: ((0, 0, 9),)})
    assert (field == FAR_MM).all()


def test_smooth_union_only_ever_adds(lattice: Lattice) -> None:
    a = ellipsoid(lattice, (-10, 0, 0), (12, 12, 12))
    b = ellipsoid(lattice, (10, 0, 0), (12, 12, 12))
    union, blended = np.minimum(a, b), smooth_min(a, b, 8.0)
    assert (blended <= union + 1e-6).all()
    assert float((union - blended).max()) == pytest.approx(2.0, abs=0.01)  # a quarter of the width, at the crease
    np.testing.assert_array_equal(blended[np.abs(a - b) >= 8], union[np.abs(a - b) >= 8])


def test_a_shape_that_yields_keeps_its_distance(lattice: Lattice) -> None:
    other = ellipsoid(lattice, (8, 0, 0), (14, 14, 14))
    rest = without(ellipsoid(lattice, (-8, 0, 0), (14, 14, 14)), other, 3.0)
    assert (other[rest < 0] > 3.0).all()
    assert (rest < 0).any()


def test_waves_agree_with_themselves_and_have_unit_size() -> None:
    waves = Waves.draw(np.random.default_rng(4), (10, 30), 12)
    lattice = Lattice.spanning((-150.0, -150.0, -150.0), (150.0, 150.0, 150.0), 5.0)
    on = waves.on(lattice)
    x, y, z = coordinates(lattice)
    np.testing.assert_allclose(on[::7, ::7, ::7], waves.at(np.stack([x, y, z], -1)[::7, ::7, ::7]), atol=2e-4)
    assert abs(float(on.mean())) < 0.05
    assert float(on.std()) == pytest.approx(1.0, abs=0.05)
