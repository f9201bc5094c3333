"""Outlines of masks, and masks of outlines. Plain geometry in one plane of pixels; knows nothing of files.

Points are (row, column) in pixels: a pixel's centre has whole coordinates, its corners lie half a pixel off.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from metricunet.volume import FloatArray

#: Coordinates are rounded to this many decimals (of a pixel) before they are filled, so that a point that is
#: meant to lie on a pixel's centre lies there exactly, whatever an affine and its inverse have done to it.
DECIMALS = 6
#: Crossings of edges with rows that are worked out at once.
AT_ONCE = 1 << 20


def outlines(mask: NDArray[np.bool_]) -> list[FloatArray]:
    """Trace the edges between the pixels that are in a mask and those that are not.

    Args:
        mask: [rows, columns].

    Returns:
        Closed loops [points, 2], the first point not repeated, with a point at each turn alone. Each loop is a
        simple polygon: it neither crosses nor touches itself, though two loops may share a corner. Holes are
        loops of their own, and run the other way round. Filling all loops by the even-odd rule gives `mask`.
    """
    corners, along_row, along_column = _turns(np.asarray(mask, dtype=bool))
    loops: list[FloatArray] = []
    unvisited = np.ones(len(corners), dtype=bool)
    keys = corners[:, 0] * (mask.shape[1] + 1) + corners[:, 1]
    for start in range(len(corners)):
        if not unvisited[start]:
            continue
        path: list[int] = []
        position: dict[int, int] = {}
        node, turn_to_column = start, False
        while unvisited[node]:
            unvisited[node] = False
            key = int(keys[node])
            if key in position:
                # The path is back at a corner where two pixels touch: what lies between is a loop of its own.
                first = position[key]
                loops.append(_oriented(corners[path[first:]], mask))
                for cut in path[first:]:
                    del position[int(keys[cut])]
                del path[first:]
            position[key] = len(path)
            path.append(node)
            node = int(along_column[node] if turn_to_column else along_row[node])
            turn_to_column = not turn_to_column
        loops.append(_oriented(corners[path], mask))
    return loops


def filled(loops: Sequence[FloatArray], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill loops by the even-odd rule: a pixel is in if its centre lies inside an odd number of windings.

    A centre exactly on an outline is in where the inside lies towards higher rows or columns, so two areas
    that share a border share no pixel.

    Args:
        loops: closed polygons [points, 2] in any order and direction; a last point equal to the first is
            allowed, and so are keyholes (a hole joined to its outline by a doubled line).
        shape: rows, columns. What lies outside is cut off.
    """
    rows, columns = shape
    begins: list[FloatArray] = [
        np.asarray(np.round(loop, DECIMALS), dtype=np.float64) for loop in loops if len(loop) > 2
    ]
    if not begins:
        return np.zeros(shape, dtype=bool)
    begin = np.concatenate(begins)
    end = np.concatenate([np.roll(loop, -1, axis=0) for loop in begins])
    # Every edge crosses the centre lines of the rows from `low` up to, but not including, `high`.
    low = np.clip(np.ceil(np.minimum(begin[:, 0], end[:, 0])), 0, rows).astype(np.int64)
    high = np.clip(np.ceil(np.maximum(begin[:, 0], end[:, 0])), 0, rows).astype(np.int64)
    top, bottom = int(low.min()), int(high.max())
    # Only the box that the loops reach is counted.
    left = int(np.clip(np.ceil(begin[:, 1].min()), 0, columns))
    right = int(np.clip(np.ceil(begin[:, 1].max()), 0, columns))
    height, width = bottom - top, right - left + 1
    crossings = np.zeros(height * width, dtype=np.int64)
    for part in _parts(high - low):
        crossed, column = _crossings(begin[part], end[part], low[part], high[part])
        first_right = np.clip(np.ceil(column), left, right).astype(np.int64)
        crossings += np.bincount((crossed - top) * width + first_right - left, minlength=len(crossings))
    result = np.zeros(shape, dtype=bool)
    inside = np.cumsum(crossings.reshape(height, width), axis=1) % 2 == 1
    result[top:bottom, left : left + width] = inside[:, : columns - left]
    return result


def _parts(counts: NDArray[np.int64]) -> list[slice]:
    """Cut edges into parts of about `AT_ONCE` crossings, however many rows the edges of a wild contour span."""
    part = np.cumsum(counts) // AT_ONCE
    bounds = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(counts)]
    return [slice(begin, end) for begin, end in pairwise(bounds)]


def _crossings(
    begin: FloatArray, end: FloatArray, low: NDArray[np.int64], high: NDArray[np.int64]
) -> tuple[NDArray[np.int64], FloatArray]:
    """Return the rows whose centre lines the edges cross, and the columns at which they do."""
    count = high - low
    edge = np.repeat(np.arange(len(begin)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + low[edge]
    # From the upper end to the lower, so that an edge run both ways (a keyhole) crosses at the same place.
    downward = (begin[:, 0] <= end[:, 0])[:, None]
    top, bottom = np.where(downward, begin, end)[edge], np.where(downward, end, begin)[edge]
    share = (row - top[:, 0]) / (bottom[:, 0] - top[:, 0])
    return row, np.round(top[:, 1] + share * (bottom[:, 1] - top[:, 1]), DECIMALS)


def _turns(
    mask: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Find the corners at which outlines turn, and how straight runs join them.

    Returns:
        Corners [n, 2], where (r, c) is the upper left corner of pixel (r, c), and for each the one at the
        other end of its run along the row and of its run along the column. A corner where two pixels touch is
        there twice, once for each of the two turns.
    """
    padded = np.pad(mask, 1).astype(np.int8)
    upper_left, upper_right = padded[:-1, :-1], padded[:-1, 1:]
    lower_left, lower_right = padded[1:, :-1], padded[1:, 1:]
    total = upper_left + upper_right + lower_left + lower_right
    touching = (total == 2) & (upper_left == lower_right)
    turning = (total % 2 == 1) | touching
    corners = np.repeat(np.argwhere(turning), 1 + touching[turning], axis=0)
    # Of the two copies of a touching corner the first ends the runs from the left and from above, the second
    # begins those to the right and downwards (lexsort is stable).
    along_row = _pair(np.arange(len(corners)))
    along_column = _pair(np.lexsort((corners[:, 0], corners[:, 1])))
    return corners, along_row, along_column


def _pair(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join first with second, third with fourth and so on, in the given order."""
    partner = np.empty_like(order)
    partner[order[0::2]], partner[order[1::2]] = order[1::2], order[0::2]
    return partner


def _oriented(loop: NDArray[np.int64], mask: NDArray[np.bool_]) -> FloatArray:
    """Let a loop begin at its uppermost left corner; outer ones go right from there, holes go down."""
    start = int(np.lexsort((loop[:, 1], loop[:, 0]))[0])
    loop = np.roll(loop, -start, axis=0)
    row, column = (int(value) for value in loop[0])
    goes_right = bool(loop[1, 0] == row)
    if bool(mask[row, column]) != goes_right:
        loop = np.concatenate([loop[:1], loop[:0:-1]])
    return np.asarray(loop - 0.5, dtype=np.float64)
