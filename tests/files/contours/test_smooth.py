"""Fewer points and smoother outlines, never farther from what they were than stated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from metricunet.files.contours.masks import outlines
from metricunet.files.contours.smooth import LARGEST_AREA_CHANGE, cross, signed_area, smoothed, without_idle_points
from metricunet.files.contours.surface import level_outlines

Loop = NDArray[np.float64]


def along(loop: Loop, step: float = 0.02) -> Loop:
    edges = np.roll(loop, -1, axis=0) - loop
    parts = np.maximum(1, np.ceil(np.linalg.norm(edges, axis=1) / step)).astype(int)
    return np.concatenate([p + e * np.arange(n)[:, None] / n for p, e, n in zip(loop, edges, parts, strict=True)])


def farthest(first: Loop, second: Loop) -> float:
    """Hausdorff distance of two outlines, to about 0.01."""
    one, two = along(first), along(second)
    return float(max(KDTree(one).query(two)[0].max(), KDTree(two).query(one)[0].max()))


def blobs(seed: int, size: int = 40) -> NDArray[np.bool_]:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), 2.5)
    return np.asarray(noise > np.quantile(noise, 0.6))


def turning(loop: Loop) -> float:
    """The sum of all turns, in full turns: 1 for a convex outline, more the more it wavers."""
    step = np.roll(loop, -1, axis=0) - loop
    angle = np.arctan2(step[:, 0], step[:, 1])
    return float(np.abs((np.diff(angle, append=angle[:1]) + np.pi) % (2 * np.pi) - np.pi).sum() / (2 * np.pi))


class TestSmoothed:
    @settings(deadline=None, max_examples=25)
    @given(seed=st.integers(0, 2**32 - 1), limit=st.floats(0.05, 0.5), fine=st.booleans())
    def test_bounds(self, seed: int, limit: float, fine: bool) -> None:
        mask = blobs(seed)
        loops = level_outlines(mask) if fine else outlines(mask)
        result = smoothed(loops, 1.0, limit)
        assert len(result) == len(loops)
        for before, after in zip(loops, result, strict=True):
            assert farthest(before, after) <= limit + 0.02
            assert signed_area(after) == pytest.approx(signed_area(before), rel=LARGEST_AREA_CHANGE + 1e-9)
        if fine:
            assert not cross(result)

    def test_a_staircase_becomes_round_and_keeps_its_area(self) -> None:
        r, c = np.indices((60, 60))
        disc = np.hypot(r - 29.3, c - 29.6) < 20.2
        (steps,) = outlines(disc)
        (smooth,) = smoothed([steps], 1.0, 0.5)
        assert turning(steps) > 15
        assert turning(smooth) < 5
        assert signed_area(smooth) == pytest.approx(signed_area(steps), rel=2e-3)
        off = np.abs(np.hypot(*(along(smooth) - [29.3, 29.6]).T) - 20.2)
        assert off.mean() < np.abs(np.hypot(*(along(steps) - [29.3, 29.6]).T) - 20.2).mean() / 1.5

    def test_a_circle_does_not_shrink(self) -> None:
        angle = np.linspace(0, 2 * np.pi, 300, endpoint=False)
        circle = 15 * np.stack([np.sin(angle), np.cos(angle)], axis=1)
        (smooth,) = smoothed([circle], 1.0, 0.5)
        assert np.abs(np.hypot(*smooth.T) - 15).max() < 0.01

    @settings(deadline=None, max_examples=15)
    @given(seed=st.integers(0, 2**32 - 1))
    def test_outlines_nearer_than_the_limit_do_not_cross(self, seed: int) -> None:
        # Noise on pixels smaller than the limit: without care nearly every slice would have a crossing.
        mask = np.random.default_rng(seed).random((24, 24)) < 0.5
        loops = [loop * 0.4 for loop in level_outlines(mask)]
        assert not cross(smoothed(loops, 0.8, 0.5))

    def test_thin_walls_do_not_cross(self) -> None:
        mask = np.zeros((20, 20), dtype=bool)
        mask[3:17, 3:17] = True
        mask[4:16, 4:16] = False
        mask[5:15, 5:15] = True
        loops = outlines(mask)
        result = smoothed(loops, 2.0, 0.5)
        assert not cross(result)
        assert farthest(result[0], loops[0]) > 0.1


class TestIdlePoints:
    @settings(deadline=None, max_examples=50)
    @given(seed=st.integers(0, 2**32 - 1), tolerance=st.floats(1e-4, 0.4))
    def test_the_outline_moves_by_no_more(self, seed: int, tolerance: float) -> None:
        for loop in level_outlines(blobs(seed, 24)):
            thin = without_idle_points(loop, tolerance)
            assert 3 <= len(thin) <= len(loop)
            assert farthest(loop, thin) <= tolerance + 0.02
            assert {tuple(p) for p in thin} <= {tuple(p) for p in loop}

    def test_points_on_a_line_go(self) -> None:
        square = np.array([[0, 0], [0, 1], [0, 3.5], [0, 4], [4, 4], [4, 1], [4, 0], [2, 0]])
        assert without_idle_points(square, 1e-6).tolist() == [[0, 0], [0, 4], [4, 4], [4, 0]]

    def test_a_triangle_stays(self) -> None:
        triangle = np.array([[0.0, 0], [0, 1], [0.1, 0.5]])
        assert without_idle_points(triangle, 5.0).tolist() == triangle.tolist()


class TestCross:
    SQUARE = np.array([[0.0, 0], [0, 4], [4, 4], [4, 0]])

    def test_apart_inside_and_alone(self) -> None:
        assert not cross([self.SQUARE])
        assert not cross([self.SQUARE, self.SQUARE + 5])
        assert not cross([self.SQUARE, self.SQUARE / 4 + 1])

    def test_crossing_touching_and_bow_tie(self) -> None:
        assert cross([self.SQUARE, self.SQUARE + 2])
        assert cross([self.SQUARE, self.SQUARE + 4])
        assert cross([self.SQUARE[[0, 2, 1, 3]]])

    def test_many_edges_are_compared_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("metricunet.files.contours.smooth.CHUNK", 7)
        loops = level_outlines(blobs(3))
        assert not cross(loops)
        assert cross([*loops, loops[0] + 0.3])
