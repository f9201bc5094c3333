"""From class probabilities to one class for each voxel, with the target in one piece."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Pieces:
    """Connected parts of a mask, by faces of voxels: their count, and the voxels outside the largest."""

    count: int
    loose_voxels: int


def likeliest(shares: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the likeliest class of each voxel; the background has what the others leave, and wins ties.

    Args:
        shares: [structures, slice, row, column], of all classes but the background.
    """
    best = 1 - shares.sum(axis=0)
    classes = np.zeros(best.shape, dtype=np.uint8)
    for k, share in enumerate(shares, start=1):
        classes[share > best] = k
        np.maximum(best, share, out=best)
    return classes


def border_probability(shares: NDArray[np.float32], structure: int) -> NDArray[np.float32]:
    """Return a structure's probability against its strongest rival: 0.5 where `likeliest` changes over.

    With one structure this is its probability. Where several meet it is p / (p + the largest other one), so that
    the level 0.5 is the border that the label map has.

    Args:
        shares: [structures, slice, row, column], of all classes but the background.
        structure: its place among them, from 0.
    """
    own = shares[structure]
    rival = 1 - shares.sum(axis=0)
    for k, share in enumerate(shares):
        if k != structure:
            np.maximum(rival, share, out=rival)
    total = own + np.maximum(rival, 0)
    share = np.divide(own, total, out=np.zeros_like(own), where=total > 0)
    return np.asarray(share.clip(0, 1), dtype=np.float32)


def keep_largest_piece(classes: NDArray[np.uint8], target: int) -> Pieces:
    """Clear all pieces of the target but the largest, in place."""
    mask = classes == target
    box = box_of(mask)
    if box is None:
        return Pieces(0, 0)
    pieces, count = ndimage.label(mask[box])
    sizes = np.bincount(pieces.ravel())[1:]
    if count > 1:
        classes[box][(pieces > 0) & (pieces != int(np.argmax(sizes)) + 1)] = 0
    return Pieces(int(count), int(sizes.sum() - sizes.max()))


def box_of(mask: Mask) -> Box | None:
    """Return the smallest box that holds a mask; None for an empty one."""
    found: list[Box | None] = ndimage.find_objects(mask.view(np.uint8))
    return found[0] if found else None
