"""Outlines with fewer points, and smoother ones that stay within a stated distance of what they were.

Plain geometry in one plane. Units are those of the points; nothing here knows pixels or files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from metricunet.volume import FloatArray

#: Smoothing gives way, by halves, until a loop's area changes by no more than this share.
LARGEST_AREA_CHANGE = 0.05
#: Smoothing works on points at most this share of its width apart.
STEP = 0.5
#: Samples of the curve for each width, where the mean is taken.
FINE_SAMPLES = 10
#: How often smoothing is halved before it is given up.
HALVINGS = 6
#: Pairs of edges that are compared at once.
CHUNK = 1 << 20


def signed_area(loop: FloatArray) -> float:
    """Area by the shoelace formula, positive where the loop turns from columns to rows (an outer loop)."""
    first, second = (loop - loop[0]).T
    return float(np.sum(second * np.roll(first, -1) - np.roll(second, -1) * first) / 2)


def without_idle_points(loop: FloatArray, tolerance: float) -> FloatArray:
    """Drop the points that lie within `tolerance` of the line between those that stay (Douglas and Peucker).

    The first point stays, and at least three points do.
    """
    far = int(np.argmax(np.linalg.norm(loop - loop[0], axis=1)))
    closed = np.concatenate([loop, loop[:1]])
    keep = np.zeros(len(closed), dtype=bool)
    keep[[0, far]] = True
    spans = [(0, far), (far, len(loop))]
    while spans:
        begin, end = spans.pop()
        if end - begin < 2:
            continue
        off = _distances(closed[begin + 1 : end], closed[begin], closed[end])
        middle = begin + 1 + int(np.argmax(off))
        if off[middle - begin - 1] > tolerance:
            keep[middle] = True
            spans += [(begin, middle), (middle, end)]
    kept = closed[:-1][keep[:-1]]
    return kept if len(kept) >= 3 else loop


def smoothed(loops: Sequence[FloatArray], width: float, limit: float) -> list[FloatArray]:
    """Smooth the outlines of one plane without moving any part of them by more than `limit`.

    A curve is convolved along its length with twice a Gaussian less the Gaussian of itself: that takes out
    what is short against `width` (its standard deviation) and, unlike the Gaussian alone, does not shrink
    what is long. Displacements beyond `limit` are cut to it. A loop whose area would change by more than
    `LARGEST_AREA_CHANGE` is displaced less. If loops would cross themselves or each other, displacements are
    halved until they do not; where `HALVINGS` do not suffice, the loops stay as they were.

    Args:
        loops: simple polygons [points, 2] that do not cross.
        width: standard deviation of the Gaussian, as a length.
        limit: largest displacement, as a length. Each point of each edge keeps within it.

    Returns:
        As many loops in the same order and direction, with more points.
    """
    dense = [_with_points(loop, STEP * width) for loop in loops]
    moves = [_gentle(loop, _displacements(loop, width, limit)) for loop in dense]
    for n in range(HALVINGS):
        moved = [loop + 0.5**n * move for loop, move in zip(dense, moves, strict=True)]
        if not cross(moved):
            return moved
    return list(loops)


def cross(loops: Sequence[FloatArray]) -> bool:
    """Tell whether any two edges that are not neighbours in a loop have a point in common."""
    begin = np.concatenate(loops)
    end = np.concatenate([np.roll(loop, -1, axis=0) for loop in loops])
    sizes = [len(loop) for loop in loops]
    following = np.concatenate(
        [start + np.roll(np.arange(n), -1) for start, n in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True)]
    )
    # Sorted by their lowest first coordinate, edges can only meet those that begin before they end.
    low, high = np.minimum(begin, end), np.maximum(begin, end)
    order = np.argsort(low[:, 0], kind="stable")
    partners = np.searchsorted(low[order, 0], high[order, 0], side="right") - np.arange(len(order)) - 1
    ends = np.cumsum(partners)
    start = 0
    while start < len(order):
        stop = max(start + 1, int(np.searchsorted(ends, (ends[start - 1] if start else 0) + CHUNK)))
        count = partners[start:stop]
        first = np.repeat(np.arange(start, stop), count)
        second = first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)
        i, j = order[first], order[second]
        near = (low[i, 1] <= high[j, 1]) & (low[j, 1] <= high[i, 1])
        near &= (following[i] != j) & (following[j] != i)
        i, j = i[near], j[near]
        if _meet(begin[i], end[i], begin[j], end[j]).any():
            return True
        start = stop
    return False


def _meet(a: FloatArray, b: FloatArray, c: FloatArray, d: FloatArray) -> NDArray[np.bool_]:
    """For edges a-b and c-d whose boxes overlap: whether they have a point in common."""
    sides_of_cd = _turn(a, b, c) * _turn(a, b, d)
    sides_of_ab = _turn(c, d, a) * _turn(c, d, b)
    return np.asarray((sides_of_cd <= 0) & (sides_of_ab <= 0))


def _turn(a: FloatArray, b: FloatArray, c: FloatArray) -> FloatArray:
    return np.sign((b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0]))


def _distances(points: FloatArray, begin: FloatArray, end: FloatArray) -> FloatArray:
    """Distances of points from the stretch between two others."""
    along = end - begin
    length = float(along @ along)
    share = np.clip((points - begin) @ along / length, 0, 1) if length > 0 else np.zeros(len(points))
    return np.asarray(np.linalg.norm(points - begin - share[:, None] * along, axis=1))


def _with_points(loop: FloatArray, step: float) -> FloatArray:
    """Put points on long edges, so that none is longer than `step`."""
    edges = np.roll(loop, -1, axis=0) - loop
    parts = np.maximum(1, np.ceil(np.linalg.norm(edges, axis=1) / step)).astype(int)
    edge = np.repeat(np.arange(len(loop)), parts)
    share = (np.arange(len(edge)) - np.repeat(np.cumsum(parts) - parts, parts)) / parts[edge]
    return np.asarray(loop[edge] + share[:, None] * edges[edge])


def _gentle(loop: FloatArray, move: FloatArray) -> FloatArray:
    """Halve displacements until the area changes by at most `LARGEST_AREA_CHANGE`."""
    area = signed_area(loop)
    for n in range(HALVINGS):
        gentle = 0.5**n * move
        if abs(signed_area(loop + gentle) - area) <= LARGEST_AREA_CHANGE * abs(area):
            return np.asarray(gentle)
    return np.zeros_like(move)


def _displacements(loop: FloatArray, width: float, limit: float) -> FloatArray:
    closed = np.concatenate([loop, loop[:1]])
    at = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    length = at[-1]
    count = max(16, int(np.ceil(length / width * FINE_SAMPLES)))
    fine = np.linspace(0, length, count, endpoint=False)
    samples = np.stack([np.interp(fine, at, closed[:, k]) for k in range(2)], axis=1)
    frequency = 2 * np.pi * np.fft.rfftfreq(count, length / count)
    gaussian = np.exp(-((width * frequency) ** 2) / 2)[:, None]
    mean = np.fft.irfft(np.fft.rfft(samples, axis=0) * gaussian * (2 - gaussian), n=count, axis=0)
    around = np.append(fine, length)
    smooth = [np.interp(at[:-1], around, np.append(mean[:, k], mean[0, k])) for k in range(2)]
    move = np.stack(smooth, axis=1) - loop
    size = np.linalg.norm(move, axis=1, keepdims=True)
    return np.asarray(move * np.minimum(1, limit / np.maximum(size, 1e-300)))
