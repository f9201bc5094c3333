"""From probabilities to one class for each voxel, the target in one piece."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def likeliest(shares: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the likeliest class of each voxel; the background has what the others leave, and wins ties."""
    best = 1 - shares.sum(axis=0)
    classes = np.zeros(best.shape, dtype=np.uint8)
    for k, share in enumerate(shares, start=1):
        classes[share > best] = k
        np.maximum(best, share, out=best)
    return classes


def keep_largest_piece(classes: NDArray[np.uint8], target: int) -> int:
    """Clear all pieces of the target but the largest, in place; return how many voxels that were."""
    mask = classes == target
    (found,) = ndimage.find_objects(mask.view(np.uint8)) or [None]
    if found is None:
        return 0
    pieces, count = ndimage.label(mask[found])
    sizes = np.bincount(pieces.ravel())[1:]
    if count > 1:
        classes[found][(pieces > 0) & (pieces != int(np.argmax(sizes)) + 1)] = 0
    return int(sizes.sum() - sizes.max())
