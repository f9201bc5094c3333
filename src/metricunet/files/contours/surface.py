"""Outlines finer than a pixel: where a field, linear between pixel centres, passes through one half.

Plain geometry in one plane, with the conventions of `masks`: points are (row, column) in pixels, a pixel's
centre has whole coordinates, outer loops run from their uppermost point to the right, holes the other way.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from metricunet.volume import FloatArray

LEVEL = 0.5
#: No point of an outline lies nearer to a pixel's centre than this share of the way to the next one. It keeps
#: every centre clearly on its side when coordinates are rounded, and every loop larger than a speck.
CLEARANCE = 0.01


def level_outlines(inside: NDArray[np.bool_], field: FloatArray | None = None) -> list[FloatArray]:
    """Trace the curve that parts the pixels inside from those outside (marching squares).

    Between two neighbouring centres of which one is inside, the curve passes where the field, taken as linear,
    is one half. Which centres are inside is decided by `inside` alone, so filling the loops by the even-odd
    rule gives `inside` back, whatever the field is. Where the two contradict each other, the field's distance
    from one half counts and not its sign. Beyond the image the field is 0.

    In a cell with two centres inside at opposite corners, the value at the saddle of the bilinear interpolant
    decides whether they are joined (Nielson and Hamann, IEEE Visualization 1991); at a tie they are not.

    Args:
        inside: [rows, columns].
        field: [rows, columns], values from 0 to 1. Default: as far from one half everywhere, so that the curve
            passes halfway between centres.

    Returns:
        Closed loops [points, 2], the first point not repeated. Each has its points on the lines between
        neighbouring centres; no loop crosses or touches itself or another.
    """
    mask = np.pad(np.asarray(inside, dtype=bool), 1)
    if not mask.any():
        return []
    if field is None:
        distance = np.full(mask.shape, LEVEL)
    else:
        distance = np.pad(np.abs(np.asarray(field, dtype=np.float64) - LEVEL), 1, constant_values=LEVEL)
    points, along_rows = _crossings(mask, distance)
    following = _following(mask, distance, along_rows)
    loops: list[FloatArray] = []
    unvisited = following >= 0
    for start in np.flatnonzero(unvisited).tolist():
        if not unvisited[start]:
            continue
        path: list[int] = []
        node = start
        while unvisited[node]:
            unvisited[node] = False
            path.append(node)
            node = int(following[node])
        loop = points[path] - 1.0
        loops.append(np.roll(loop, -int(np.lexsort((loop[:, 1], loop[:, 0]))[0]), axis=0))
    return loops


def _crossings(mask: NDArray[np.bool_], distance: FloatArray) -> tuple[FloatArray, int]:
    """Place a point on every line between neighbouring centres.

    Returns:
        Points [lines, 2], and the number of lines along rows, which come first. The line from (r, c) to the
        right, or downwards, is number r * columns + c of its kind.
    """
    rows, columns = mask.shape
    r, c = np.indices(mask.shape, dtype=np.float64)
    across, down = np.full(mask.shape, 0.5), np.full(mask.shape, 0.5)
    across[:, :-1] = _share(distance[:, :-1], distance[:, 1:])
    down[:-1] = _share(distance[:-1], distance[1:])
    points = np.concatenate([np.stack([r, c + across], axis=-1), np.stack([r + down, c], axis=-1)])
    return points.reshape(-1, 2), rows * columns


def _share(first: FloatArray, second: FloatArray) -> FloatArray:
    total = first + second
    share = np.divide(first, total, out=np.full(first.shape, 0.5), where=total > 0)
    return np.asarray(np.clip(share, CLEARANCE, 1 - CLEARANCE))


def _following(mask: NDArray[np.bool_], distance: FloatArray, along_rows: int) -> NDArray[np.int64]:
    """For the point of each line the one that comes next, the inside on the right; -1 where no curve passes."""
    columns = mask.shape[1]
    corners = [mask[:-1, :-1], mask[:-1, 1:], mask[1:, 1:], mask[1:, :-1]]
    code = np.zeros(corners[0].shape, dtype=np.int64)
    for k, corner in enumerate(corners):
        code |= corner.astype(np.int64) << k
    far = [distance[:-1, :-1], distance[:-1, 1:], distance[1:, 1:], distance[1:, :-1]]
    main, other = far[0] * far[2], far[1] * far[3]
    # Inside at corners 0 and 2, or at 1 and 3: joined where the saddle's value is inside.
    joined = np.where(code == 0b0101, main > other, other > main)

    following = np.full(2 * along_rows, -1, dtype=np.int64)
    for pattern in range(1, 15):
        r, c = np.nonzero(code == pattern)
        if len(r) == 0:
            continue
        cell = r * columns + c
        # Sides of the cell and its corners are numbered clockwise; corner k lies between sides k - 1 and k.
        line = [cell, along_rows + cell + 1, cell + columns, along_rows + cell]
        is_in = [bool(pattern >> k & 1) for k in range(4)]
        # A run of corners inside begins behind side `first` and ends before side `last`, clockwise.
        firsts = [(k - 1) % 4 for k in range(4) if is_in[k] and not is_in[k - 1]]
        lasts = [k for k in range(4) if is_in[k] and not is_in[(k + 1) % 4]]
        if len(firsts) == 1:
            following[line[lasts[0]]] = line[firsts[0]]
            continue
        together = joined[r, c]
        for last in lasts:
            before, ahead = line[(last - 1) % 4], line[(last + 1) % 4]
            following[line[last]] = np.where(together, ahead, before)
    return following
