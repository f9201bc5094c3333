"""Masks: pieces, holes, gaps and faces, on arrays whose answer is counted by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from metricunet.quality.masks import (
    HoleCount,
    face_names,
    gaps_of,
    holes_of,
    inner_faces,
    outer_faces,
    pieces_of,
    reached_faces,
)
from metricunet.stages.classes import Pieces

MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, max_side=7))


def test_pieces_hang_together_by_faces() -> None:
    mask = np.zeros((1, 4, 9), dtype=bool)
    assert pieces_of(mask) == Pieces(0, 0)
    mask[0, 0, :4] = True
    assert pieces_of(mask) == Pieces(1, 0)
    mask[0, 2, :2] = mask[0, 3, 2] = True  # by a corner only
    assert pieces_of(mask) == Pieces(3, 3)


def test_holes_are_what_a_slice_encloses() -> None:
    ring = np.zeros((3, 7, 7), dtype=bool)
    ring[:, 1:6, 1:6] = True
    ring[:, 2:4, 2:4] = False  # a tunnel along the slices: 4 voxels in each
    assert holes_of(ring) == HoleCount(3, 12)
    ring[1, 3, 3:] = False  # open to the side on one slice
    assert holes_of(ring) == HoleCount(2, 8)
    assert holes_of(np.ones((2, 3, 3), dtype=bool)) == HoleCount(0, 0)
    assert holes_of(np.zeros((2, 3, 3), dtype=bool)) == HoleCount(0, 0)


@given(MASKS)
def test_holes_agree_with_filling_slice_by_slice(mask: np.ndarray) -> None:
    filled = np.stack([ndimage.binary_fill_holes(plane) for plane in mask])
    assert holes_of(mask).voxels == int((filled & ~mask).sum())
    count = sum(ndimage.label(f & ~m)[1] for f, m in zip(filled, mask, strict=True))
    assert holes_of(mask).count == count


def test_gaps_between_the_first_and_the_last_slice() -> None:
    mask = np.zeros((8, 2, 2), dtype=bool)
    assert gaps_of(mask) == 0
    mask[[1, 2, 5, 7], 0, 0] = True
    assert gaps_of(mask) == 3


def test_faces_of_a_mask_in_its_box() -> None:
    mask = np.zeros((4, 5, 6), dtype=bool)
    mask[0, 2, 3] = mask[2, 4, 3] = mask[2, 2, 5] = True
    reached = reached_faces(mask)
    assert face_names(reached) == ("feet", "back", "left")
    # The box begins at the scan's first slice and ends at its last column: those are no inner faces.
    assert face_names(inner_faces(reached, (0, 3, 10), mask.shape, (9, 20, 16))) == ("back",)
    assert face_names(outer_faces(reached, (0, 3, 10), mask.shape, (9, 20, 16))) == ("feet", "left")
    assert face_names(reached_faces(mask[1:3, 1:4, 1:5])) == ()
