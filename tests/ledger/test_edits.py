"""What was changed of a mask, counted by hand on boxes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricunet.ledger.edits import HALVES, THIRDS, Edit, edit_of
from metricunet.volume import Geometry, Volume

SPACING_MM = (3.0, 2.0, 1.0)
VOXEL_ML = 0.006


def mask(*boxes: tuple[slice, slice, slice]) -> Volume:
    """Boxes in 24 slices from foot to head, 20 rows from front to back, 20 columns from right to left."""
    array = np.zeros((24, 20, 20), dtype=bool)
    for box in boxes:
        array[box] = True
    return Volume(array, Geometry.from_parts(array.shape, SPACING_MM))


BODY = np.s_[6:18, 4:12, 4:12]


def test_a_layer_added_at_the_head_and_one_removed_at_the_left() -> None:
    # One slice more at the head's end: 8 x 8 voxels.
    edit = edit_of(mask(BODY), mask(BODY, np.s_[18:19, 4:12, 4:12]))
    n, more = 12 * 64, 64
    assert edit.dice == pytest.approx(2 * n / (2 * n + more))
    # The new slice's contour: 8 edges of 1 mm and 8 of 2 mm on either side.
    assert edit.added_path_length_mm == pytest.approx(2 * 8 * 1.0 + 2 * 8 * 2.0)
    assert (edit.added_ml, edit.removed_ml) == (pytest.approx(64 * VOXEL_ML), 0)
    assert edit.shift_head_mm == pytest.approx(-1.5)
    assert edit.volume_ratio == pytest.approx(n / (n + more))
    assert (edit.foot_ml, edit.middle_ml) == (0, 0)
    assert edit.head_ml == pytest.approx(edit.added_ml)
    for half in HALVES:
        assert getattr(edit, f"{half}_ml") == pytest.approx(edit.added_ml / 2)
    # The last column to the left is taken away, in the lower half of the slices.
    edit = edit_of(mask(BODY), mask(np.s_[6:18, 4:12, 4:11], np.s_[12:18, 4:12, 4:12]))
    assert edit.removed_ml == pytest.approx(6 * 8 * VOXEL_ML)
    assert (edit.right_ml, edit.head_ml) == (0, 0)
    assert edit.left_ml == pytest.approx(edit.removed_ml)
    assert (edit.foot_ml, edit.middle_ml) == (pytest.approx(4 * 8 * VOXEL_ML), pytest.approx(2 * 8 * VOXEL_ML))
    assert edit.shift_left_mm is not None
    assert edit.shift_left_mm > 0


def test_a_voxel_between_two_parts_counts_to_both() -> None:
    body = np.s_[6:16, 4:12, 4:12]  # ten slices: the edges of the thirds are at 9 1/3 and 12 2/3
    edit = edit_of(mask(body, np.s_[9:10, 12:13, 4:5]), mask(body))
    assert edit.foot_ml == pytest.approx(VOXEL_ML / 3)
    assert edit.middle_ml == pytest.approx(VOXEL_ML * 2 / 3)
    assert (edit.back_ml, edit.front_ml) == (pytest.approx(VOXEL_ML), 0)  # behind the box: the nearer half


def test_what_is_unchanged_erased_or_drawn_anew() -> None:
    same = edit_of(mask(BODY), mask(BODY))
    assert same == Edit(1.0, 0.0, 0.0, 0.0, 0.0, 1.0, same.reviewed_ml, same.reviewed_ml, 0.0, 0.0)
    erased = edit_of(mask(BODY), mask())
    assert (erased.dice, erased.added_path_length_mm, erased.volume_ratio) == (0.0, None, None)
    assert (erased.removed_ml, erased.reviewed_ml) == (pytest.approx(erased.automatic_ml), 0.0)
    drawn = edit_of(mask(), mask(BODY))
    assert (drawn.dice, drawn.volume_ratio) == (0.0, 0.0)
    assert drawn.added_path_length_mm == pytest.approx(12 * 48)
    nothing = edit_of(mask(), mask())
    assert (nothing.dice, nothing.added_ml) == (None, 0.0)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.permutations((0, 1, 2)), st.tuples(*[st.booleans()] * 3))
def test_the_parts_add_up_however_the_array_is_stored(
    seed: int, axes: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> None:
    rng = np.random.default_rng(seed)
    before, after = (
        Volume(rng.random((5, 6, 7)) < 0.4, Geometry.from_parts((5, 6, 7), SPACING_MM)) for _ in range(2)
    )
    edit = edit_of(before, after)
    changed = edit.added_ml + edit.removed_ml
    for parts in (THIRDS, HALVES[:2], HALVES[2:]):
        assert sum(getattr(edit, f"{part}_ml") for part in parts) == pytest.approx(changed)
    turned = edit_of(before.reordered(axes, flips), after.reordered(axes, flips))
    assert vars(turned) == {name: pytest.approx(value, abs=1e-9) for name, value in vars(edit).items()}
