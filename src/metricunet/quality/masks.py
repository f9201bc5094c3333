"""What a mask is like: its pieces, holes and gaps, and the faces of its box that it reaches.

Arrays and boxes have the canonical axes: their first voxels lie at the feet, the front and the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from metricunet.stages.classes import Mask, Pieces

#: The faces of a box along each axis: at its first voxel, and at its last.
FACES = (("feet", "head"), ("front", "back"), ("right", "left"))

#: For each axis, whether the face at the first voxel is meant, and the one at the last.
Touched = tuple[tuple[bool, bool], ...]


@dataclass(frozen=True)
class HoleCount:
    """Parts of slices that a mask encloses: their count and voxels."""

    count: int
    voxels: int


def pieces_of(mask: Mask) -> Pieces:
    """Count the pieces of a mask."""
    pieces, count = ndimage.label(mask)
    sizes = np.bincount(pieces.ravel())[1:]
    return Pieces(int(count), int(sizes.sum() - sizes.max()) if count else 0)


def holes_of(mask: Mask) -> HoleCount:
    """Count the holes of a mask, slice by slice: what its contours would enclose as holes.

    Background that reaches the slice's edge, or touches such background by a face, is no hole.
    """
    within_slice = np.zeros((3, 3, 3), dtype=bool)
    within_slice[1] = ndimage.generate_binary_structure(2, 1)
    outside = np.pad(~mask, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    parts, count = ndimage.label(outside, within_slice)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    # The padding is one part of each slice, together with all that touches it.
    sizes[np.unique(parts[:, 0, 0])] = 0
    return HoleCount(int(np.count_nonzero(sizes)), int(sizes.sum()))


def gaps_of(mask: Mask) -> int:
    """Count the slices without a voxel between the first and the last slice of a mask."""
    used = np.flatnonzero(mask.any(axis=(1, 2)))
    return int(used[-1] - used[0] + 1 - len(used)) if len(used) else 0


def reached_faces(mask: Mask) -> Touched:
    """Tell for each axis whether a mask reaches the first and the last voxels of its box."""
    return tuple((bool(mask.take(0, axis).any()), bool(mask.take(-1, axis).any())) for axis in range(3))


def inner_faces(reached: Touched, start: Sequence[int], shape: Sequence[int], field: Sequence[int]) -> Touched:
    """Keep of a box's reached faces those that are not also the edge of the scan.

    Args:
        reached: see `reached_faces`.
        start: the box's first voxel in the scan.
        shape: the box's sides.
        field: the scan's sides.
    """
    return tuple(
        (low and start[axis] > 0, high and start[axis] + shape[axis] < field[axis])
        for axis, (low, high) in enumerate(reached)
    )


def outer_faces(reached: Touched, start: Sequence[int], shape: Sequence[int], field: Sequence[int]) -> Touched:
    """Keep of a box's reached faces those that are the edge of the scan. Takes the arguments of `inner_faces`."""
    return tuple(
        (low and start[axis] == 0, high and start[axis] + shape[axis] == field[axis])
        for axis, (low, high) in enumerate(reached)
    )


def face_names(touched: Touched) -> tuple[str, ...]:
    """Return the names of the faces that are marked."""
    return tuple(
        name
        for names, marks in zip(FACES, touched, strict=True)
        for name, marked in zip(names, marks, strict=True)
        if marked
    )
