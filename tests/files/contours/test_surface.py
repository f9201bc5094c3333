"""Sub-pixel outlines: on analytic curves, faithful to the mask, simple, and the same from every side."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from scipy.spatial import KDTree

from metricunet.files.contours.masks import filled
from metricunet.files.contours.smooth import cross, signed_area
from metricunet.files.contours.surface import CLEARANCE, level_outlines

Field = NDArray[np.float64]

fields = arrays(float, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.floats(0, 1, width=32))


def share_inside(centre: tuple[float, float], semi: tuple[float, float], shape: tuple[int, int]) -> Field:
    """The share of each pixel that lies in an ellipse, from 15 x 15 points in each."""
    n = 15
    offsets = (np.arange(n) + 0.5) / n - 0.5
    r = (np.arange(shape[0])[:, None] + offsets).ravel()
    c = (np.arange(shape[1])[:, None] + offsets).ravel()
    inside = ((r[:, None] - centre[0]) / semi[0]) ** 2 + ((c[None] - centre[1]) / semi[1]) ** 2 < 1
    return np.asarray(inside.reshape(shape[0], n, shape[1], n).mean(axis=(1, 3)))


def along(loop: Field, parts: int = 8) -> Field:
    """Points all along a loop, not at its corners alone."""
    edges = np.roll(loop, -1, axis=0) - loop
    return np.concatenate([loop + edges * n / parts for n in range(parts)])


def canonical(loops: list[Field]) -> list[list[tuple[float, ...]]]:
    """Loops as sets of points, in an order of their own."""
    return sorted(sorted(tuple(np.round(point, 9)) for point in loop) for loop in loops)


class TestAccuracy:
    @settings(deadline=None, max_examples=25)
    @given(
        offset=st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5)),
        semi=st.tuples(st.floats(8, 24), st.floats(8, 24)),
    )
    def test_on_the_analytic_curve_of_a_partial_volume_field(
        self, offset: tuple[float, float], semi: tuple[float, float]
    ) -> None:
        centre = (26 + offset[0], 26 + offset[1])
        field = share_inside(centre, semi, (53, 53))
        (loop,) = level_outlines(field > 0.5, field)
        angle = np.linspace(0, 2 * np.pi, 8001)
        curve = np.stack([centre[0] + semi[0] * np.sin(angle), centre[1] + semi[1] * np.cos(angle)], axis=1)
        distance = KDTree(curve).query(along(loop))[0]
        assert distance.mean() < 0.1
        assert distance.max() < 0.3

    def test_exact_where_the_field_is_linear(self) -> None:
        r, c = np.indices((9, 12), dtype=float)
        field = np.clip(0.5 + (3.3 - (0.6 * r + 0.4 * c)) / 20, 0, 1)
        (loop,) = level_outlines(field > 0.5, field)
        inner = loop[(loop > 0).all(axis=1)]
        assert len(inner) > 5
        assert np.abs(inner @ [0.6, 0.4] - 3.3).max() < 1e-12

    def test_by_hand(self) -> None:
        field = np.array([[0, 0, 0], [0, 0.8, 0.2], [0, 0, 0]])
        (loop,) = level_outlines(field > 0.5, field)
        # 0.8 - 0.5 over 0.8 - 0 of the way to neighbours of 0; half the way to that of 0.2.
        assert loop.tolist() == [[1 - 0.375, 1], [1, 1.5], [1.375, 1], [1, 1 - 0.375]]

    def test_halfway_without_a_field(self) -> None:
        (loop,) = level_outlines(np.array([[False, False], [False, True]]))
        assert loop.tolist() == [[0.5, 1], [1, 1.5], [1.5, 1], [1, 0.5]]


class TestTopology:
    @settings(deadline=None, max_examples=300)
    @given(fields, st.booleans())
    def test_any_field_gives_its_mask_back_in_simple_loops(self, field: Field, against: bool) -> None:
        # A mask that contradicts its field is drawn faithfully too.
        mask = (field > 0.5) ^ (against & (field > 0.9))
        loops = level_outlines(mask, field)
        assert np.array_equal(filled(loops, field.shape), mask)
        if loops:
            assert not cross(loops)
            points = np.concatenate(loops)
            assert len(np.unique(points, axis=0)) == len(points)
            assert (np.abs(points - np.round(points)).max(axis=1) >= CLEARANCE - 1e-12).all()

    @settings(deadline=None, max_examples=100)
    @given(fields)
    def test_outer_loops_and_holes_run_opposite_ways(self, field: Field) -> None:
        mask = field > 0.5
        loops = level_outlines(mask, field)
        for loop in loops:
            row, column = loop[0]
            below = mask[min(int(np.floor(row + 1)), mask.shape[0] - 1), round(column)] if row % 1 else None
            if below is not None:
                assert below == (signed_area(loop) > 0)

    @settings(deadline=None, max_examples=100)
    @given(fields)
    def test_the_same_from_every_side(self, field: Field) -> None:
        mask = field > 0.5
        loops = level_outlines(mask, field)
        last_row, last_column = np.array(field.shape) - 1
        mirrored = level_outlines(mask[::-1], field[::-1])
        assert canonical([np.stack([last_row - p[:, 0], p[:, 1]], axis=1) for p in mirrored]) == canonical(loops)
        turned = level_outlines(mask.T[::-1], field.T[::-1])
        back = [np.stack([p[:, 1], last_column - p[:, 0]], axis=1) for p in turned]
        assert canonical(back) == canonical(loops)

    @pytest.mark.parametrize(("inside", "outside", "count"), [(0.9, 0.3, 1), (0.6, 0.1, 2), (0.75, 0.25, 2)])
    def test_saddles(self, inside: float, outside: float, count: int) -> None:
        # The value at the saddle is (ad - bc) / (a + d - b - c) for corners a, d inside and b, c outside.
        field = np.array([[inside, outside], [outside, inside]])
        assert len(level_outlines(field > 0.5, field)) == count
        assert len(level_outlines(field.T[::-1] > 0.5, field.T[::-1])) == count

    def test_a_hole(self) -> None:
        mask = np.ones((5, 5), dtype=bool)
        mask[2, 2] = False
        outer, hole = sorted(level_outlines(mask), key=len, reverse=True)
        # Each corner loses a triangle of 1/8; the hole is a diamond of 1/2.
        assert signed_area(outer) == 25 - 4 / 8
        assert signed_area(hole) == -0.5

    def test_nothing_to_trace(self) -> None:
        assert level_outlines(np.zeros((3, 4), dtype=bool), np.full((3, 4), 0.7)) == []
