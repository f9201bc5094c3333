"""Outlines inside outlines: which are holes, and what becomes of them.

Plain geometry in one plane, with the conventions of `masks`. Loops do not cross; two may share a corner.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metricunet.volume import FloatArray


def depths(loops: Sequence[FloatArray]) -> list[int]:
    """Count for each loop the loops that it lies in: 0 for outermost ones, odd for holes."""
    return [sum(holder) for holder in _holders(loops)]


def without_holes(loops: Sequence[FloatArray]) -> list[FloatArray]:
    """Return the outermost loops: holes, and what lies in them, become part of the area."""
    return [loop for loop, depth in zip(loops, depths(loops), strict=True) if depth == 0]


def with_keyholes(loops: Sequence[FloatArray]) -> list[FloatArray]:
    """Join each hole to the loop around it by a line run there and back, so that no loop lies in its area.

    A part that lies in a hole is a loop of its own again. Even-odd filling gives the same as before.
    """
    holders = _holders(loops)
    depth = [sum(holder) for holder in holders]
    joined: list[FloatArray] = []
    for outer in range(len(loops)):
        if depth[outer] % 2 == 1:
            continue
        holes = [k for k in range(len(loops)) if depth[k] == depth[outer] + 1 and holders[k][outer]]
        # From the uppermost hole down: what lies straight above a hole is then part of the outline already.
        ring = loops[outer]
        for k in sorted(holes, key=lambda k: float(loops[k][:, 0].min())):
            ring = _joined(ring, loops[k])
        joined.append(ring)
    return joined


def _holders(loops: Sequence[FloatArray]) -> list[list[bool]]:
    """For each loop k a list that tells which loops it lies in."""
    # The middle of an edge is no point of another loop, even where corners are shared.
    probes = [(loop[0] + loop[1]) / 2 for loop in loops]
    return [[j != k and _contains(loop, probes[k]) for j, loop in enumerate(loops)] for k in range(len(loops))]


def _contains(loop: FloatArray, point: FloatArray) -> bool:
    crossed, _ = _above(loop, point)
    return len(crossed) % 2 == 1


def _above(loop: FloatArray, point: FloatArray) -> tuple[list[int], FloatArray]:
    """Return the edges that lie straight above a point (towards row 0), and the rows at which they do."""
    following = np.roll(loop, -1, axis=0)
    spans = (loop[:, 1] <= point[1]) != (following[:, 1] <= point[1])
    edges = np.flatnonzero(spans)
    begin, end = loop[edges], following[edges]
    rows = begin[:, 0] + (point[1] - begin[:, 1]) / (end[:, 1] - begin[:, 1]) * (end[:, 0] - begin[:, 0])
    above = rows < point[0]
    return edges[above].tolist(), rows[above]


def _joined(ring: FloatArray, hole: FloatArray) -> FloatArray:
    """Join a hole to the outline around it by a line straight up from its uppermost point."""
    top = int(np.argmin(hole[:, 0]))
    following = (top + 1) % len(hole)
    if hole[following, 0] != hole[top, 0] and hole[top - 1, 0] == hole[top, 0]:
        top, following = (top - 1) % len(hole), top
    around = np.roll(hole, -following, axis=0)
    if hole[following, 0] == hole[top, 0]:
        # From within a level edge, so that the line does not run along an edge of pixels above it.
        start = hole[top] + 0.25 * (hole[following] - hole[top])
        around = np.concatenate([start[None], around])
    else:
        start = hole[top]
        around = np.roll(hole, -top, axis=0)
    edges, rows = _above(ring, start)
    nearest = int(np.argmax(rows))
    bridge = np.array([[rows[nearest], start[1]]])
    before, after = ring[: edges[nearest] + 1], ring[edges[nearest] + 1 :]
    return np.concatenate([before, bridge, around, around[:1], bridge, after])
