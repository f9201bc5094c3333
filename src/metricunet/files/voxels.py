"""Voxels as a file stores them, made the package's own: HU as int16 or float32, labels as uint8 or uint16."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricunet.errors import InputError, unlike_limits
from metricunet.volume import CANONICAL_DIRECTIONS, FloatArray, Geometry, Shape, Volume, match_axes

#: A scan may take this much memory: 1024 slices of 512 x 512 in float32, twice as many in int16. A header may
#: announce any size, and a packed file of a few MB may hold it.
MOST_BYTES = 1 << 30
#: No scanner's field is longer than this; a header that says so would have whole rooms resampled.
LONGEST_FIELD_MM = 5000.0
#: No scan is smaller than this all ways; a header that says so is in metres.
SHORTEST_FIELD_MM = 1.0
#: Voxels are converted in pieces of about this many bytes, so that no second copy of a scan ever exists.
PIECE_BYTES = 1 << 20

Scaling = Callable[[NDArray[Any]], NDArray[Any]]


def check_size(
    path: Path | str,
    shape: Shape,
    stored: np.dtype[Any],
    scaled: bool = False,
    advice: str = "crop the scan, or correct its header",
) -> None:
    """Refuse, before any voxel is read, what is no scan by its header or would not fit in memory.

    Args:
        path: path of the file, for the message.
        shape: number of voxels of the scan along each axis.
        stored: type of a voxel in the file.
        scaled: whether stored values are multiplied.
        advice: what to do about a scan that is too large.

    Raises:
        InputError: voxels that are no real numbers, or too many of them.
    """
    if stored.kind not in "iuf":
        raise InputError(f"{path}: voxels of type {stored}; expected integers or real numbers")
    needed = math.prod(shape) * held_type(stored, scaled).itemsize
    if needed > MOST_BYTES:
        raise InputError(
            f"{path}: {' x '.join(map(str, shape))} voxels take {needed / 2**30:.1f} GiB, at most "
            f"{MOST_BYTES / 2**30:g} GiB is read; {advice}"
        )


def check_field(path: Path | str, geometry: Geometry) -> None:
    """Refuse a grid that is far larger than any scanner's field, or smaller than anything that is scanned.

    Raises:
        InputError: naming its size.
    """
    if max(geometry.extent_mm) < SHORTEST_FIELD_MM:
        size = " x ".join(unlike_limits(side, SHORTEST_FIELD_MM) for side in geometry.extent_mm)
        raise InputError(
            f"{path}: its field is {size} mm, at least {SHORTEST_FIELD_MM:g} mm is expected; correct the spacing "
            "in its header (it is in millimetres, not metres)"
        )
    if max(geometry.extent_mm) > LONGEST_FIELD_MM:
        size = " x ".join(unlike_limits(side, LONGEST_FIELD_MM, digits=4) for side in geometry.extent_mm)
        raise InputError(
            f"{path}: its field is {size} mm, at most {LONGEST_FIELD_MM:g} mm each way is expected; "
            "correct the spacing in its header (it is in millimetres)"
        )


def axes_and_grid(path: Path | str, shape: Shape, affine: FloatArray) -> tuple[tuple[int, int, int], Geometry]:
    """Return the permutation of a file's axes to [slice, row, column], and its grid after it.

    Args:
        path: for the message.
        shape: voxels along the file's axes.
        affine: from an index in their order to LPS millimetres.

    Raises:
        InputError: no grid of right angles, or one of a size that no scanner has.
    """
    try:
        geometry = Geometry(shape, affine)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    check_field(path, geometry)
    axes, _ = match_axes(geometry.directions, CANONICAL_DIRECTIONS)
    return axes, geometry.reordered(axes, (False, False, False))


def held_type(stored: np.dtype[Any], scaled: bool = False) -> np.dtype[Any]:
    """The type in which a scan is held: int16 where the file holds integers that always fit, else float32."""
    fits = stored.kind in "iu" and not scaled and np.can_cast(stored, np.int16)
    return np.dtype(np.int16 if fits else np.float32)


def gather(
    pieces: Iterable[bytes | bytearray], shape: Shape, stored: np.dtype[Any], scale: Scaling | None = None
) -> tuple[NDArray[Any], int]:
    """Put the voxels of a file together, piece by piece.

    Args:
        pieces: the bytes of the voxels; no more of them are taken than needed.
        shape: voxels along the file's axes, the fastest first.
        stored: type of a voxel in the file, byte order included.
        scale: applied to stored values.

    Returns:
        The voxels [fastest axis, ..., slowest axis], and how many bytes there were: fewer than needed where the
        file is too short, more where it holds more.
    """
    wanted = math.prod(shape) * stored.itemsize
    array = np.empty(shape, dtype=held_type(stored, scale is not None), order="F")
    flat = array.reshape(-1, order="F")
    found, filled, left = 0, 0, b""
    for piece in pieces:
        found += len(piece)
        piece = left + piece if left else piece
        count = min(len(piece) // stored.itemsize, len(flat) - filled)
        values = np.frombuffer(piece, dtype=stored, count=count)
        with np.errstate(over="ignore", invalid="ignore"):  # what does not fit becomes infinite, and is refused
            flat[filled : filled + count] = values if scale is None else scale(values)
        filled, left = filled + count, bytes(piece[count * stored.itemsize :])
        if found > wanted:
            break
    return array, found


def scan_volume(path: Path | str, values: NDArray[Any], geometry: Geometry) -> Volume:
    """Return a scan: int16 where the file holds integers that always fit, float32 otherwise.

    Args:
        path: the file that the voxels come from, or what to call them, for the message.
        values: [slice, row, column], of a type of `held_type`.
        geometry: their grid.

    Raises:
        InputError: voxels that are NaN or infinite.
    """
    if values.dtype.kind == "f":
        bad = sum(int(plane.size - np.count_nonzero(np.isfinite(plane))) for plane in values)
        if bad:
            raise InputError(f"{path}: {bad} voxels are NaN or infinite; expected HU everywhere. Fill them first")
    return Volume(values, geometry)


def label_volume(path: Path | str, scan: Volume) -> Volume:
    """Return a label map, read as a scan, as uint8 (uint16 if a label is over 255).

    Raises:
        InputError: values that are negative, over 65535, or no whole numbers.
    """
    array = scan.array
    if array.dtype.kind == "f":
        if not all(np.isfinite(plane).all() for plane in array):
            raise InputError(
                f"{path}: label values are NaN or infinite; expected integer classes. Fill them first"
            )
        worst = max(float(np.abs(plane - np.rint(plane)).max()) for plane in array)
        if worst > 1e-3:
            raise InputError(
                f"{path}: label values are not whole numbers (one is off by {worst:.3g}); "
                "expected integer classes. Resample labels with nearest neighbour, or threshold them"
            )
    low, high = float(array.min()), float(array.max())
    if round(low) < 0 or round(high) > 65535:
        raise InputError(f"{path}: label values range from {low:g} to {high:g}; expected 0 to 65535")
    labels = np.empty_like(array, dtype=np.uint8 if round(high) <= 255 else np.uint16)
    for plane, result in zip(array, labels, strict=True):
        result[...] = np.rint(plane)
    return scan.with_array(labels)
