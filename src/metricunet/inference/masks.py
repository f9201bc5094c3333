"""What there is to say of a mask: pieces, holes, gaps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from metricunet.stages.classes import Mask, Pieces


@dataclass(frozen=True)
class Holes:
    """Parts of slices that a mask encloses: their count and voxels."""

    count: int
    voxels: int


def pieces_of(mask: Mask) -> Pieces:
    """Count the pieces of a mask."""
    pieces, count = ndimage.label(mask)
    sizes = np.bincount(pieces.ravel())[1:]
    return Pieces(int(count), int(sizes.sum() - sizes.max()) if count else 0)


def holes_of(mask: Mask) -> Holes:
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
    return Holes(int(np.count_nonzero(sizes)), int(sizes.sum()))


def gaps_of(mask: Mask) -> int:
    """Count the slices without a voxel between the first and the last slice of a mask."""
    used = np.flatnonzero(mask.any(axis=(1, 2)))
    return int(used[-1] - used[0] + 1 - len(used)) if len(used) else 0
