"""Areas, volumes, shares and distances in closed form, against counting points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial import KDTree

from metricunet.workflows.commission.subjects import PLANS, Ellipse, Part, Rectangle, ScanPlan, Shape

Field = NDArray[np.float64]


def inside(part: Part, x: Field, y: Field, z: Field) -> NDArray[np.bool_]:
    """Points in a part, by its inequality."""
    u, v, w = ((axis - c) / a for axis, c, a in zip((x, y, z), part.centre_mm, part.semi_mm, strict=True))
    if part.kind == "ellipsoid":
        return np.asarray(u**2 + v**2 + w**2 < 1)
    if part.kind == "disc":
        return np.asarray((u**2 + v**2 < 1) & (abs(w) < 1))
    return np.asarray((abs(u) < 1) & (abs(v) < 1) & (abs(w) < 1))


def counted(shape: Shape, x: Field, y: Field, z: Field) -> Field:
    return np.asarray(sum(part.sign * inside(part, x, y, z).astype(float) for part in shape.parts))


def centroid_z_mm(shape: Shape) -> float:
    moments = [part.sign * part.volume_ml * part.centre_mm[2] for part in shape.parts]
    return sum(moments) / shape.volume_ml


def finer(centres: Field, n: int) -> Field:
    step = centres[1] - centres[0]
    return np.asarray((centres[:, None] + step * ((np.arange(n) + 0.5) / n - 0.5)).ravel())


@pytest.mark.parametrize("plan", [PLANS[1], PLANS[4]], ids=lambda plan: plan.name)
@pytest.mark.parametrize("n_shape", range(5))
def test_share_of_pixels_by_supersampling(plan: ScanPlan, n_shape: int) -> None:
    shape, n = plan.shapes[n_shape], 15
    z, y, x = plan.grid.axes_mm()
    share = plan.share(shape)
    assert share.shape == plan.grid.shape
    assert 0 <= share.min() <= share.max() <= 1
    for k in range(0, len(z), 3):
        points = counted(shape, finer(x, n)[None], finer(y, n)[:, None], np.array(z[k]))
        brute = points.reshape(len(y), n, len(x), n).mean(axis=(1, 3))
        # A line through n x n points leaves about one row of them in doubt.
        assert np.abs(brute - share[k]).max() < 0.7 / n
        assert share[k].sum() * plan.row_mm * plan.column_mm == pytest.approx(shape.area_mm2(z[k]), abs=1e-6)


@pytest.mark.parametrize("n_shape", range(5))
def test_volume_and_centroid_of_the_solid_by_thin_slices(n_shape: int) -> None:
    shape = PLANS[4].shapes[n_shape]
    low = min(part.centre_mm[2] - part.semi_mm[2] for part in shape.parts)
    high = max(part.centre_mm[2] + part.semi_mm[2] for part in shape.parts)
    z = low + (np.arange(20_000) + 0.5) * (high - low) / 20_000
    assert shape.sections_ml(z, (high - low) / 20_000) == pytest.approx(shape.volume_ml, rel=1e-6)
    areas = np.array([shape.area_mm2(height) for height in z[::10]])
    assert np.average(z[::10], weights=areas) == pytest.approx(centroid_z_mm(shape), abs=0.01)


def test_volumes_by_hand() -> None:
    def volume(kind: str) -> float:
        return Part(kind, (1, 2, 3), (10, 20, 30)).volume_ml  # type: ignore[arg-type]

    assert volume("ellipsoid") == pytest.approx(4 / 3 * np.pi * 6)
    assert volume("disc") == pytest.approx(np.pi * 10 * 20 * 60 / 1000)
    assert volume("box") == pytest.approx(48)


@settings(deadline=None, max_examples=30)
@given(
    semi=st.tuples(st.floats(0.3, 40), st.floats(0.3, 40)),
    centre=st.tuples(st.floats(-5, 5), st.floats(-5, 5)),
    seed=st.integers(0, 99),
)
def test_distance_from_an_ellipse_by_many_points(
    semi: tuple[float, float], centre: tuple[float, float], seed: int
) -> None:
    angle = np.linspace(0, 2 * np.pi, 20_001)
    curve = np.stack([centre[0] + semi[0] * np.cos(angle), centre[1] + semi[1] * np.sin(angle)], axis=1)
    points = np.random.default_rng(seed).uniform(-60, 60, (200, 2))
    points[:20] = curve[:20]
    points[20:30, 0], points[30:40, 1], points[40] = centre[0], centre[1], centre
    assert np.abs(Ellipse(centre, semi).distance_mm(points) - KDTree(curve).query(points)[0]).max() < 0.01


def test_distance_from_a_rectangle_by_hand() -> None:
    found = Rectangle((1, 1), (2, 1)).distance_mm(np.array([[1.0, 1], [2.5, 1], [3, 5], [6, 6], [4, 1]]))
    assert found.tolist() == pytest.approx([1, 0.5, 3, 5, 1])


def test_shapes_are_what_they_are_called() -> None:
    for plan in PLANS:
        shell, lobes, disc, island = plan.shapes[1:]
        outer, hole = shell.parts
        points = np.random.default_rng(0).normal(size=(500, 3))
        surface = hole.centre_mm + points / np.linalg.norm(points, axis=1)[:, None] * hole.semi_mm
        assert inside(outer, *surface.T).all()
        left, right = lobes.parts
        assert right.centre_mm[0] - left.centre_mm[0] == pytest.approx(left.semi_mm[0] + right.semi_mm[0])
        assert left.centre_mm[1:] == right.centre_mm[1:]
        share = plan.share(disc)
        assert np.flatnonzero(share.any(axis=(1, 2))).tolist() == [plan.grid.shape[0] // 2 + 1]
        assert disc.volume_ml * 1000 / disc.area_mm2(centroid_z_mm(disc)) == pytest.approx(1.1 * plan.slice_mm)
        assert np.count_nonzero(plan.share(island) > 1e-6) == 1
        assert plan.share(island).max() == pytest.approx(1)


def test_no_shape_is_its_own_mirror_image_in_the_grid() -> None:
    for plan in PLANS:
        for shape in plan.shapes:
            mask = plan.share(shape) > 0.5
            for axis in range(3):
                assert not np.array_equal(np.flip(mask, axis), mask), (plan.name, shape.name, axis)


def test_geometries_are_those_that_were_promised() -> None:
    pixels = [mm for plan in PLANS for mm in (plan.row_mm, plan.column_mm)]
    assert (min(pixels), max(pixels)) == (0.8, 1.4)
    assert all(plan.row_mm != plan.column_mm for plan in PLANS)
    assert (min(p.slice_mm for p in PLANS), max(p.slice_mm for p in PLANS)) == (1, 5)
    assert {plan.position for plan in PLANS} == {"HFS", "HFP", "FFS", "FFP"}
