"""Windows that cover a field, and the mean of what is found in them: for numpy's arrays and torch's tensors alike.

A network keeps to windows of the size that it was trained on, for its normalisation depends on the size of its
picture. They overlap by half where the field is larger, and the middle of a window weighs most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = TypeVar("Array", bound=Any)


@dataclass(frozen=True)
class Kind(Generic[Array]):
    """How arrays of a library and a device are made.

    Attributes:
        zeros: makes float32 zeros of a shape.
        of_numpy: takes a float32 array of numpy over.
    """

    zeros: Callable[[tuple[int, ...]], Array]
    of_numpy: Callable[[NDArray[np.float32]], Array]


def window_starts(length: int, window: int) -> list[int]:
    """Return the first places of windows that cover a length, evenly spread, neighbours sharing half or more.

    Args:
        length: length to be covered, not less than the window.
        window: length of a window.
    """
    steps = math.ceil((length - window) / max(1, window // 2))
    return [round(k * (length - window) / steps) for k in range(steps + 1)] if steps else [0]


def over_crops(
    field: Array, crop_voxels: Sequence[int], find: Callable[[Array], Array], kind: Kind[Array]
) -> Array:
    """Return what is found in a field that may be larger than a crop; a field of one crop takes one run.

    Args:
        field: [slice, row, column], no side shorter than the crop's.
        crop_voxels: sides of a crop.
        find: takes a crop of the field, and returns float32 [classes, slice, row, column].
        kind: of the field.
    """
    longer = [length > side for length, side in zip(field.shape, crop_voxels, strict=True)]
    return averaged(field, crop_voxels, longer, find, kind) if any(longer) else find(field)


def averaged(
    field: Array,
    window: Sequence[int],
    rising: Sequence[bool],
    find: Callable[[Array], Array],
    kind: Kind[Array],
) -> Array:
    """Return the weighted mean of what is found in windows that cover a field.

    Args:
        field: [slice, row, column].
        window: sides of a window, no longer than the field's.
        rising: the axes along which the weight of a window's voxels rises towards its middle.
        find: as for `over_crops`, of a window.
        kind: of the field.
    """
    starts = [window_starts(length, side) for length, side in zip(field.shape, window, strict=True)]
    weight = kind.of_numpy(_weights(window, rising))
    total: Array | None = None
    weights = kind.zeros(tuple(field.shape))
    for first in product(*starts):
        place = tuple(slice(n, n + side) for n, side in zip(first, window, strict=True))
        found = find(field[place])
        if total is None:
            total = kind.zeros((len(found), *field.shape))
        total[(slice(None), *place)] += found * weight
        weights[place] += weight
    assert total is not None
    mean: Array = total / weights
    return mean


def _weights(window: Sequence[int], rising: Sequence[bool]) -> NDArray[np.float32]:
    weight = np.ones(tuple(window), dtype=np.float32)
    for axis, side in enumerate(window):
        if rising[axis]:
            rise = np.arange(1, side + 1, dtype=np.float32)
            weight *= np.minimum(rise, rise[::-1]).reshape([-1 if a == axis else 1 for a in range(3)])
    return weight
