"""Outlines of masks along pixel edges, and masks of outlines by the even-odd rule."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from matplotlib.path import Path as Polygon
from numpy.typing import NDArray
from scipy import ndimage

from metricunet.files.contours.masks import filled, outlines


def mask_of(*rows: str) -> NDArray[np.bool_]:
    return np.array([[c == "#" for c in row] for row in rows])


def signed_area(loop: NDArray[np.float64]) -> float:
    """Shoelace formula; positive where rows turn into columns."""
    r, c = loop.T
    return float(np.sum(c * np.roll(r, -1) - np.roll(c, -1) * r) / 2)


def check_simple(loop: NDArray[np.float64]) -> None:
    """Each loop turns at every point, by a right angle, and visits no place twice."""
    steps = np.roll(loop, -1, axis=0) - loop
    assert ((steps != 0).sum(axis=1) == 1).all()
    along_rows = steps[:, 0] != 0
    assert (along_rows != np.roll(along_rows, 1)).all()
    visited: set[tuple[float, float]] = set()
    for point, step in zip(loop, steps, strict=True):
        length = int(np.abs(step).sum())
        for n in range(length):
            place = tuple(point + step / length * n)
            assert place not in visited
            visited.add(place)


random_masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9))


class TestOutlines:
    def test_one_pixel(self) -> None:
        (loop,) = outlines(mask_of("...", ".#.", "..."))
        assert loop.tolist() == [[0.5, 0.5], [0.5, 1.5], [1.5, 1.5], [1.5, 0.5]]

    def test_straight_runs_have_no_points_between(self) -> None:
        (loop,) = outlines(np.ones((4, 7), dtype=bool))
        assert loop.tolist() == [[-0.5, -0.5], [-0.5, 6.5], [3.5, 6.5], [3.5, -0.5]]

    def test_a_hole_is_a_loop_of_its_own_the_other_way_round(self) -> None:
        outer, hole = outlines(mask_of("####", "#..#", "####"))
        assert signed_area(outer) == 12
        assert signed_area(hole) == -2

    @pytest.mark.parametrize("rows", [("#.", ".#"), (".#", "#.")])
    def test_pixels_that_touch_at_a_corner_are_two_loops(self, rows: tuple[str, ...]) -> None:
        loops = outlines(mask_of(*rows))
        assert sorted(len(loop) for loop in loops) == [4, 4]

    def test_a_ring_that_touches_itself_at_a_corner(self) -> None:
        # The ends of the ring meet at one corner: its hole is open to the outside only through that corner.
        mask = mask_of(".##", "#.#", "###")
        loops = outlines(mask)
        for loop in loops:
            check_simple(loop)
        assert sum(map(signed_area, loops)) == mask.sum()
        assert np.array_equal(filled(loops, mask.shape), mask)

    def test_nothing_to_trace(self) -> None:
        assert outlines(np.zeros((3, 4), dtype=bool)) == []

    @settings(deadline=None, max_examples=300)
    @given(random_masks)
    def test_any_mask_comes_back(self, mask: NDArray[np.bool_]) -> None:
        loops = outlines(mask)
        assert np.array_equal(filled(loops, mask.shape), mask)
        for loop in loops:
            check_simple(loop)
        # Holes run the other way round, so the winding number is the mask as well.
        assert sum(map(signed_area, loops)) == mask.sum()

    @settings(deadline=None, max_examples=30)
    @given(st.integers(0, 2**32 - 1), st.floats(0.5, 4.0))
    def test_blobs_come_back(self, seed: int, smoothing: float) -> None:
        noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(60, 50)), smoothing)
        mask = noise > np.quantile(noise, 0.6)
        loops = outlines(mask)
        assert np.array_equal(filled(loops, mask.shape), mask)
        # As many outer loops as there are regions, as many holes as regions outside: corners split both.
        assert sum(area > 0 for area in map(signed_area, loops)) >= ndimage.label(mask, np.ones((3, 3)))[1]


class TestFilled:
    def test_square_between_centres(self) -> None:
        square = np.array([[0.6, 0.6], [0.6, 3.4], [2.4, 3.4], [2.4, 0.6]])
        assert np.array_equal(filled([square], (4, 5)), mask_of(".....", ".###.", ".###.", "....."))

    def test_an_outline_through_centres_takes_the_upper_left_border(self) -> None:
        square = np.array([[1.0, 1.0], [1.0, 3.0], [3.0, 3.0], [3.0, 1.0]])
        assert np.array_equal(filled([square], (5, 5)), mask_of(".....", ".##..", ".##..", ".....", "....."))

    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.integers(1, 11), min_size=2, max_size=6, unique=True))
    def test_areas_that_share_a_border_share_no_pixel(self, cuts: list[int]) -> None:
        edges = [0, *sorted(cuts), 12]
        strips = [np.array([[0, a], [0, b], [8, b + 1], [8, a + 1]]) for a, b in pairwise(edges)]
        total = sum(filled([strip.astype(float)], (9, 14)).astype(int) for strip in strips)
        whole = np.array([[0, 0], [0, 12], [8, 13], [8, 1]], dtype=float)
        assert np.array_equal(total, filled([whole], (9, 14)).astype(int))

    @settings(deadline=None, max_examples=100)
    @given(
        arrays(
            float,
            st.tuples(st.integers(3, 8), st.just(2)),
            # Off the centres by a third, so that no rule for points on the outline decides.
            elements=st.integers(-6, 45).map(lambda n: n / 3 + 0.111),
        )
    )
    def test_agrees_with_counting_crossings_on_any_polygon(self, loop: NDArray[np.float64]) -> None:
        shape = (12, 13)
        centres = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 2)
        corner = loop[None] - centres[:, None]
        following = np.roll(corner, -1, axis=1)
        # Where a centre lies on an outline (by rounding) the two need not agree.
        cross = corner[..., 0] * following[..., 1] - corner[..., 1] * following[..., 0]
        clear = (np.abs(cross) > 1e-3).all(axis=1)
        # Even-odd by the number of crossings of a ray towards lower columns.
        above, below = corner[..., 0] > 0, following[..., 0] > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            at = corner[..., 1] - corner[..., 0] * (following[..., 1] - corner[..., 1]) / (
                following[..., 0] - corner[..., 0]
            )
        odd = ((above != below) & (at < 0)).sum(axis=1) % 2 == 1
        ours = filled([loop], shape).ravel()
        assert np.array_equal(ours[clear], odd[clear])

    def test_agrees_with_matplotlib_on_a_star(self) -> None:
        angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        radius = np.where(np.arange(24) % 2, 9.3, 21.7)
        star = np.stack([30.13 + radius * np.sin(angle), 28.71 + radius * np.cos(angle)], axis=1)
        centres = np.stack(np.meshgrid(np.arange(60), np.arange(60), indexing="ij"), axis=-1).reshape(-1, 2)
        expected = Polygon(star).contains_points(centres).reshape(60, 60)
        assert np.array_equal(filled([star], (60, 60)), expected)

    def test_direction_order_start_and_closing_point_do_not_matter(self) -> None:
        outer = np.array([[0.5, 0.5], [0.5, 6.5], [6.5, 6.5], [6.5, 0.5]])
        hole = np.array([[2.5, 2.5], [2.5, 4.5], [4.5, 4.5], [4.5, 2.5]])
        wanted = filled([outer, hole], (8, 8))
        assert wanted.sum() == 36 - 4
        for loops in ([hole, outer], [outer[::-1], hole], [np.roll(outer, 2, axis=0), hole[::-1]]):
            assert np.array_equal(filled(loops, (8, 8)), wanted)
        closed = [np.concatenate([loop, loop[:1]]) for loop in (outer, hole)]
        assert np.array_equal(filled(closed, (8, 8)), wanted)

    @pytest.mark.parametrize("along", [0.5, 3.0, 3.3])
    def test_keyhole(self, along: float) -> None:
        """A hole joined to the outline by a line run there and back; also one through pixel centres."""
        outer = [[0.5, 0.5], [0.5, 6.5], [6.5, 6.5], [6.5, 0.5], [along, 0.5]]
        hole = [[along, 2.5], [4.5, 2.5], [4.5, 4.5], [2.5, 4.5], [2.5, 2.5], [along, 2.5]]
        keyhole = np.array([*outer, *hole, [along, 0.5]])
        separate = [np.array(outer[:4]), np.array([[2.5, 2.5], [2.5, 4.5], [4.5, 4.5], [4.5, 2.5]])]
        assert np.array_equal(filled([keyhole], (8, 8)), filled(separate, (8, 8)))

    def test_what_lies_outside_is_cut_off(self) -> None:
        wide = np.array([[-5.0, -7.0], [-5.0, 90.0], [1.5, 90.0], [1.5, -7.0]])
        assert np.array_equal(filled([wide], (4, 3)), mask_of("###", "###", "...", "..."))
        for shift in ((-50, 0), (50, 0), (0, -200), (0, 200)):
            assert not filled([wide + np.array(shift)], (4, 3)).any()

    def test_nothing_to_fill(self) -> None:
        assert not filled([], (3, 4)).any()
        assert not filled([np.array([[0.0, 0.0], [2.0, 2.0]])], (3, 4)).any()

    def test_rounding_of_coordinates_does_not_move_a_border(self) -> None:
        square = np.array([[1.0, 1.0], [1.0, 3.0], [3.0, 3.0], [3.0, 1.0]])
        noise = np.random.default_rng(1).uniform(-1e-8, 1e-8, square.shape)
        assert np.array_equal(filled([square + noise], (5, 5)), filled([square], (5, 5)))
