"""The measures of contour review, against counts by hand and plain loops."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from metricunet.errors import InputError
from metricunet.evaluation.measures import (
    ALL_DEFINITIONS,
    CONTOUR_NAMES,
    MEASURE_NAMES,
    Measures,
    added_path_length_mm,
    measure,
)
from metricunet.volume import Geometry, Volume

SPACING_MM = (3.0, 2.0, 0.5)
Mask = NDArray[np.bool_]


def volume(mask: Mask, spacing_mm: tuple[float, float, float] = SPACING_MM) -> Volume:
    return Volume(mask, Geometry.from_parts(mask.shape, spacing_mm, (10.0, -20.0, 30.0)))


def block(slices: slice, rows: slice, columns: slice) -> Mask:
    mask = np.zeros((6, 9, 12), dtype=bool)
    mask[slices, rows, columns] = True
    return mask


def edges(plane: Mask, spacing_mm: tuple[float, float, float]) -> Iterator[tuple[tuple[float, float], float]]:
    """Midpoint in mm and length of every voxel edge between inside and outside."""
    rows, columns = plane.shape

    def inside(r: int, c: int) -> bool:
        return 0 <= r < rows and 0 <= c < columns and bool(plane[r, c])

    for r in range(rows):
        for c in range(columns):
            for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                if inside(r, c) and not inside(r + down, c + right):
                    middle = (r + down / 2) * spacing_mm[1], (c + right / 2) * spacing_mm[2]
                    yield middle, spacing_mm[2] if down else spacing_mm[1]


def by_plain_loop(p: Mask, r: Mask, spacing_mm: tuple[float, float, float], tolerance_mm: float) -> float:
    total_mm = 0.0
    for of_p, of_r in zip(p, r, strict=True):
        there = [middle for middle, _ in edges(of_p, spacing_mm)]
        for middle, length_mm in edges(of_r, spacing_mm):
            if not any(math.dist(middle, other) <= tolerance_mm + 1e-6 for other in there):
                total_mm += length_mm
    return total_mm


class TestAddedPathLength:
    def test_a_block_that_lacks_a_column(self) -> None:
        """In each of two slices the right side (2 voxels of 2 mm) and two ends of 0.5 mm are missing."""
        reference = block(slice(1, 3), slice(2, 4), slice(3, 8))
        prediction = block(slice(1, 3), slice(2, 4), slice(3, 7))
        found = added_path_length_mm(volume(prediction), volume(reference))
        assert found == 2 * (2 * 2.0 + 2 * 0.5)

    def test_what_is_drawn_too_much_adds_nothing_where_the_contour_is_there(self) -> None:
        """It has to be drawn again where it runs elsewhere: along the reference's right side."""
        reference = block(slice(1, 3), slice(2, 4), slice(3, 7))
        prediction = block(slice(1, 3), slice(2, 4), slice(3, 8))
        assert added_path_length_mm(volume(prediction), volume(reference)) == 2 * 2 * 2.0

    def test_a_slice_that_was_not_drawn_counts_whole(self) -> None:
        reference = block(slice(1, 4), slice(2, 5), slice(3, 7))
        prediction = block(slice(1, 3), slice(2, 5), slice(3, 7))
        around_mm = 2 * (3 * 2.0 + 4 * 0.5)
        for tolerance_mm in (0.0, 5.0, 500.0):  # no contour of another slice stands in for it
            assert added_path_length_mm(volume(prediction), volume(reference), tolerance_mm) == around_mm
        assert added_path_length_mm(volume(np.zeros_like(reference)), volume(reference)) == 3 * around_mm
        # One slice more is not drawn again, it is deleted.
        assert added_path_length_mm(volume(reference), volume(prediction)) == 0

    def test_the_tolerance_forgives_what_lies_within_it(self) -> None:
        reference = block(slice(2, 3), slice(2, 6), slice(3, 9))
        prediction = np.roll(reference, 1, axis=1)  # by 2 mm
        # Both long sides have moved by 2 mm; on the short sides the outermost edge is 2 mm from its neighbour.
        assert added_path_length_mm(volume(prediction), volume(reference), 1.99) > 0
        assert added_path_length_mm(volume(prediction), volume(reference), 2.0) == 0

    def test_a_hole_is_contour_and_so_is_the_edge_of_the_scan(self) -> None:
        ring = np.ones((1, 5, 5), dtype=bool)
        ring[0, 2, 2] = False
        whole = np.ones((1, 5, 5), dtype=bool)
        assert added_path_length_mm(volume(whole), volume(ring)) == 2 * 2.0 + 2 * 0.5
        assert added_path_length_mm(volume(np.zeros_like(whole)), volume(whole)) == 2 * 5 * 2.0 + 2 * 5 * 0.5

    def test_another_grid_is_refused(self) -> None:
        mask = block(slice(1, 3), slice(2, 4), slice(3, 7))
        with pytest.raises(InputError, match="its grid is not that of its reference"):
            added_path_length_mm(volume(mask, (3.0, 2.0, 0.6)), volume(mask))

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_a_plain_loop_counts_the_same(self, data: st.DataObject) -> None:
        shape = data.draw(st.sampled_from([(2, 3, 4), (1, 5, 4), (3, 3, 3)]))
        bits = st.lists(st.booleans(), min_size=math.prod(shape), max_size=math.prod(shape))
        p, r = (np.array(data.draw(bits), dtype=bool).reshape(shape) for _ in range(2))
        spacing_mm = data.draw(st.sampled_from([(1.0, 1.0, 1.0), (3.0, 0.9, 0.7), (0.8, 2.0, 1.3)]))
        tolerance_mm = data.draw(st.sampled_from([0.0, 0.5, 1.0, 2.2]))
        found = added_path_length_mm(volume(p, spacing_mm), volume(r, spacing_mm), tolerance_mm)
        assert found == pytest.approx(by_plain_loop(p, r, spacing_mm, tolerance_mm))
        # However the scan is stored, slices are those across head-foot.
        turned = [volume(m, spacing_mm).reordered((2, 0, 1), (True, False, True)) for m in (p, r)]
        assert added_path_length_mm(*turned, tolerance_mm) == pytest.approx(found)


class TestMeasures:
    def test_a_shift_has_the_signs_of_the_patients_axes(self) -> None:
        reference = block(slice(2, 4), slice(3, 6), slice(4, 8))
        for axis, name, step_mm in ((0, "head", 3.0), (1, "back", 2.0), (2, "left", 0.5)):
            for steps in (-1, 2):
                result = measure(volume(np.roll(reference, steps, axis=axis)), volume(reference), 2.0)
                shifts = {n: result.value(f"shift_{n}_mm") for n in ("left", "back", "head")}
                expected = dict.fromkeys(shifts, 0.0) | {name: steps * step_mm}
                assert shifts == expected
                assert result.volume_ratio == 1

    @pytest.mark.parametrize(
        ("axes", "flips"),
        [((0, 1, 2), (True, True, False)), ((2, 1, 0), (False, True, True)), ((1, 2, 0), (True, False, True))],
    )
    def test_how_a_scan_is_stored_changes_nothing(self, axes: tuple[int, ...], flips: tuple[bool, ...]) -> None:
        generator = np.random.default_rng(3)
        p, r = (volume(generator.random((6, 9, 12)) < 0.4) for _ in range(2))
        expected = measure(p, r, 0.5)
        found = measure(p.reordered(axes, flips), r.reordered(axes, flips), 0.5)
        for name in (*MEASURE_NAMES, *CONTOUR_NAMES):
            assert found.value(name) == pytest.approx(expected.value(name), abs=1e-9), name
        assert measure(p.reordered(axes, flips), r, 0.5) == expected

    def test_an_oblique_grid_shifts_along_the_patients_axes(self) -> None:
        angle = math.radians(10)
        turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
        mask = block(slice(2, 4), slice(3, 6), slice(4, 8))
        straight = Geometry.from_parts(mask.shape, SPACING_MM)
        turned = Geometry.from_parts(mask.shape, SPACING_MM, directions=turn @ straight.directions)
        result = measure(Volume(np.roll(mask, 2, axis=2), turned), Volume(mask, turned), 2.0)
        assert result.shift_left_mm == pytest.approx(math.cos(angle))
        assert result.shift_back_mm == pytest.approx(math.sin(angle))
        assert result.shift_head_mm == 0

    def test_equal_masks_are_perfect(self) -> None:
        mask = volume(block(slice(2, 4), slice(3, 6), slice(4, 8)))
        result = measure(mask, mask, 0.0)
        assert [result.value(d.name) for d in ALL_DEFINITIONS] == [d.best for d in ALL_DEFINITIONS]
        assert not any(math.copysign(1, result.value(d.name) or 0.0) < 0 for d in ALL_DEFINITIONS)

    def test_what_is_empty(self) -> None:
        there, nothing = block(slice(2, 3), slice(3, 5), slice(4, 8)), np.zeros((6, 9, 12), dtype=bool)
        missed = measure(volume(nothing), volume(there), 1.5)
        assert missed.outcome == "missed"
        assert [missed.value(name) for name in CONTOUR_NAMES] == [2 * (4 + 2), 0, None, None, None, 0]
        invented = measure(volume(there), volume(nothing), 1.5)
        assert invented.outcome == "false_positive"
        assert [invented.value(name) for name in CONTOUR_NAMES] == [None, 0, None, None, None, None]
        assert (missed.tolerance_mm, invented.tolerance_mm) == (1.5, 1.5)
        absent = measure(volume(nothing), volume(nothing), 1.5)
        assert absent == Measures(*[None] * 7)

    def test_they_are_measured_only_where_a_tolerance_is_given(self) -> None:
        p, r = (volume(block(slice(2, 4), slice(k, 6), slice(4, 8))) for k in (2, 3))
        plain, all_of_them = measure(p, r), measure(p, r, 1.0)
        assert {plain.value(name) for name in CONTOUR_NAMES} == {None}
        assert [plain.value(n) for n in MEASURE_NAMES] == [all_of_them.value(n) for n in MEASURE_NAMES]
        assert all_of_them.volume_ratio == 4 / 3

    def test_surface_dice_at_the_common_tolerance_is_the_common_one(self) -> None:
        p, r = (volume(block(slice(2, 4), slice(k, 6), slice(4, 8))) for k in (1, 3))
        result = measure(p, r, 2.0)
        assert result.surface_dice == result.surface_dice_2mm
        assert measure(p, r, 0.0).surface_dice < result.surface_dice < measure(p, r, 4.0).surface_dice == 1  # type: ignore[operator]

    @pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning:monai")
    @pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
    @pytest.mark.parametrize("axis", [0, 1, 2])
    @pytest.mark.parametrize("tolerance_mm", [0.5, 1.5, 2.5, 4.5])
    def test_surface_dice_agrees_with_monai(self, axis: int, tolerance_mm: float) -> None:
        """On flat sides: MONAI cuts the edges and corners of voxels, so it can be near and no more."""
        torch = pytest.importorskip("torch")
        metrics = pytest.importorskip("monai.metrics")
        spacing_mm = (2.0, 1.0, 1.0)
        r = np.zeros((34, 60, 60), dtype=bool)
        r[4:30, 6:54, 6:54] = True
        p = np.roll(r, 2, axis=axis)
        ours = measure(volume(p, spacing_mm), volume(r, spacing_mm), tolerance_mm).surface_dice
        one_hot = [torch.tensor(np.stack([~m, m])[None].astype(np.float32)) for m in (p, r)]
        theirs = metrics.compute_surface_dice(
            *one_hot, class_thresholds=[tolerance_mm], spacing=spacing_mm, use_subvoxels=True
        )
        assert ours == pytest.approx(float(theirs), abs=0.03)
