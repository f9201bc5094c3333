"""Holes kept, closed, or joined to the outline around them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from scipy import ndimage

from metricunet.files.contours.holes import depths, with_keyholes, without_holes
from metricunet.files.contours.masks import filled, outlines
from metricunet.files.contours.smooth import signed_area
from metricunet.files.contours.surface import level_outlines

Mask = NDArray[np.bool_]
Trace = Callable[[Mask], list[NDArray[np.float64]]]

random_masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=10))
traces = st.sampled_from([outlines, level_outlines])


def rings(size: int = 17) -> Mask:
    """Square rings in each other with a dot in the middle."""
    r, c = np.indices((size, size)) - size // 2
    return np.asarray(np.maximum(abs(r), abs(c)) % 4 < 2)


class TestDepths:
    def test_rings(self) -> None:
        loops = sorted(outlines(rings()), key=lambda loop: -abs(signed_area(loop)))
        assert depths(loops) == [0, 1, 2, 3, 4]

    @settings(deadline=None, max_examples=150)
    @given(random_masks, traces)
    def test_holes_are_what_runs_the_other_way(self, mask: Mask, trace: Trace) -> None:
        loops = trace(mask)
        assert [depth % 2 == 1 for depth in depths(loops)] == [signed_area(loop) < 0 for loop in loops]


class TestWithoutHoles:
    @settings(deadline=None, max_examples=150)
    @given(random_masks)
    def test_fills_what_cannot_be_reached_from_outside(self, mask: Mask) -> None:
        expected = ndimage.binary_fill_holes(np.pad(mask, 1))[1:-1, 1:-1]
        closed = filled(without_holes(level_outlines(mask)), mask.shape)
        # Pixels that touch at a corner are apart here, so what lies between them is open.
        assert np.array_equal(closed, ndimage.binary_fill_holes(np.pad(mask, 1), np.ones((3, 3)))[1:-1, 1:-1])
        assert (closed <= expected).all()

    def test_rings(self) -> None:
        assert filled(without_holes(outlines(rings())), (17, 17)).sum() == 17 * 17


class TestKeyholes:
    @settings(deadline=None, max_examples=300)
    @given(random_masks, traces)
    def test_the_same_area_without_a_loop_in_it(self, mask: Mask, trace: Trace) -> None:
        loops = trace(mask)
        joined = with_keyholes(loops)
        assert np.array_equal(filled(joined, mask.shape), mask)
        # Areas no longer overlap, so readers that add contours up get the mask as well.
        added = np.sum([filled([loop], mask.shape).astype(int) for loop in joined], axis=0)
        assert np.array_equal(added, mask) or not joined
        assert all(signed_area(loop) > 0 for loop in joined)
        assert sum(map(signed_area, joined)) == pytest.approx(sum(map(signed_area, loops)))

    def test_the_line_stays_in_the_area(self) -> None:
        # Above the hole there is a slit, open to the right, and more area above that.
        mask = np.ones((8, 6), dtype=bool)
        mask[2, 1:] = False
        mask[5, 3] = False
        (loop,) = with_keyholes(outlines(mask))
        edges = np.stack([loop, np.roll(loop, -1, axis=0)], axis=1)
        bridges = [edge[:, 0].tolist() for edge in edges if edge[0, 1] == edge[1, 1] and edge[0, 1] % 1 != 0.5]
        assert sorted(map(sorted, bridges)) == [[2.5, 4.5], [2.5, 4.5]]

    def test_by_hand(self) -> None:
        mask = np.ones((5, 5), dtype=bool)
        mask[2, 2] = False
        (loop,) = with_keyholes(outlines(mask))
        # A line down from the upper edge to within the hole's, around it, and back up.
        assert loop.tolist() == [
            *([-0.5, -0.5], [-0.5, 2.25], [1.5, 2.25], [1.5, 1.5], [2.5, 1.5], [2.5, 2.5], [1.5, 2.5]),
            *([1.5, 2.25], [-0.5, 2.25], [-0.5, 4.5], [4.5, 4.5], [4.5, -0.5]),
        ]
