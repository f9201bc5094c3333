"""Where stage 2 looks: around the located centre; elsewhere or farther where the target reaches its crop's edge.

Arrays and boxes here have the canonical axes: their first voxels lie at the feet, the front and the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricunet.stages.segment import View
from metricunet.volume import FloatArray, Geometry

#: How often a case is run again, at most. One move and a growth of each axis are within it.
MOST_RERUNS = 3
#: A crop grows to this many times its side, once along each axis: to 144 x 192 x 192 mm by default, more than any
#: gland. What still touches its faces then is no gland.
GROWTH = 1.5
#: A crop moves only if that brings it this much nearer to the target's middle; else it grows.
SMALLEST_MOVE_MM = 4.0

#: The faces of a box along each axis: at its first voxel, and at its last.
FACES = (("feet", "head"), ("front", "back"), ("right", "left"))

Touched = tuple[tuple[bool, bool], ...]


@dataclass(frozen=True)
class Crop:
    """One look of stage 2, as it is recorded.

    Attributes:
        centre_mm: LPS middle of the field.
        sides_mm: of the field inside the scan: head-foot, front-back, left-right.
        touched: the inner faces that the target reaches, by their names in `FACES`.
        volume_ml: of the target.
        used: whether the mask is this one's.
    """

    centre_mm: tuple[float, float, float]
    sides_mm: tuple[float, float, float]
    touched: tuple[str, ...]
    volume_ml: float
    used: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary."""
        return {
            "centre_mm": [round(v, 1) for v in self.centre_mm],
            "sides_mm": [round(v, 1) for v in self.sides_mm],
            "touched": list(self.touched),
            "volume_ml": round(self.volume_ml, 2),
            "used": self.used,
        }


def reached_faces(mask: NDArray[np.bool_]) -> Touched:
    """Tell for each axis whether a mask reaches the first and the last voxels of its box."""
    return tuple((bool(mask.take(0, axis).any()), bool(mask.take(-1, axis).any())) for axis in range(3))


def inner_faces(reached: Touched, start: Sequence[int], shape: Sequence[int], field: Sequence[int]) -> Touched:
    """Keep of a box's reached faces those that are not also the edge of the scan.

    Args:
        reached: see `reached_faces`.
        start: the box's first voxel in the scan.
        shape: the box's sides.
        field: the scan's sides.
    """
    return tuple(
        (low and start[axis] > 0, high and start[axis] + shape[axis] < field[axis])
        for axis, (low, high) in enumerate(reached)
    )


def outer_faces(reached: Touched, start: Sequence[int], shape: Sequence[int], field: Sequence[int]) -> Touched:
    """Keep of a box's reached faces those that are the edge of the scan. Arguments as of `inner_faces`."""
    return tuple(
        (low and start[axis] == 0, high and start[axis] + shape[axis] == field[axis])
        for axis, (low, high) in enumerate(reached)
    )


def face_names(touched: Touched) -> tuple[str, ...]:
    """Return the names of the faces that are marked."""
    return tuple(
        name
        for names, marks in zip(FACES, touched, strict=True)
        for name, marked in zip(names, marks, strict=True)
        if marked
    )


def next_view(view: View, touched: Touched, centroid: FloatArray, geometry: Geometry) -> View | None:
    """Choose where to look next, if the target reaches inner faces of the field.

    Along an axis with one face reached the field moves to the target's centroid; along one with both reached, or
    where that move would be small or away from the face, it grows.

    Args:
        view: where stage 2 looked.
        touched: the inner faces that the target reaches.
        centroid: of the target, as an index of the scan.
        geometry: of the scan.

    Returns:
        None where nothing is touched, or nothing is left to try.
    """
    middle, growth = geometry.to_index(view.centre_mm), list(view.growth)
    for axis, (low, high) in enumerate(touched):
        if not (low or high):
            continue
        move_mm = (float(centroid[axis]) - middle[axis]) * geometry.spacing_mm[axis]
        if low != high and (move_mm if high else -move_mm) >= SMALLEST_MOVE_MM:
            middle[axis] = centroid[axis]
        else:
            growth[axis] = GROWTH
    following = View(geometry.to_world(middle), (growth[0], growth[1], growth[2]))
    same = np.allclose(following.centre_mm, view.centre_mm) and following.growth == view.growth
    return None if same else following
