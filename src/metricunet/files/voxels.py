"""Voxels as a file stores them, made the package's own: HU as int16 or float32, labels as uint8 or uint16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricunet.errors import InputError
from metricunet.volume import Geometry, Volume


def scan_volume(path: Path, values: NDArray[Any], geometry: Geometry) -> Volume:
    """Return a scan: int16 where the file holds integers that always fit, float32 otherwise.

    Args:
        path: the file that the voxels come from, for the message.
        values: [slice, row, column], of any type and byte order.
        geometry: their grid.

    Raises:
        InputError: voxels that are no real numbers, NaN or infinite.
    """
    if values.dtype.kind in "iu" and np.can_cast(values.dtype, np.int16):
        return Volume(values.astype(np.int16), geometry)
    if values.dtype.kind not in "iuf":
        raise InputError(f"{path}: voxels of type {values.dtype}; expected integers or real numbers")
    if values.dtype.kind == "f":
        bad = int(values.size - np.count_nonzero(np.isfinite(values)))
        if bad:
            raise InputError(f"{path}: {bad} voxels are NaN or infinite; expected HU everywhere. Fill them first")
    return Volume(values.astype(np.float32), geometry)


def label_volume(path: Path, scan: Volume) -> Volume:
    """Return a label map, read as a scan, as uint8 (uint16 if a label is over 255).

    Raises:
        InputError: values that are negative, over 65535, or no whole numbers.
    """
    array = scan.array
    if array.dtype.kind == "f":
        rounded = np.rint(array)
        worst = float(np.abs(array - rounded).max())
        if worst > 1e-3:
            raise InputError(
                f"{path}: label values are not whole numbers (one is off by {worst:.3g}); "
                "expected integer classes. Resample labels with nearest neighbour, or threshold them"
            )
        array = rounded
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 65535:
        raise InputError(f"{path}: label values range from {low:g} to {high:g}; expected 0 to 65535")
    return scan.with_array(array.astype(np.uint8 if high <= 255 else np.uint16))
