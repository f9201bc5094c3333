"""Where stage 2 looks: around the located centre; elsewhere or farther where the target reaches its crop's edge.

Indices have the canonical axes: first voxels lie at the feet, the front and the right.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from metricunet.quality.masks import Touched
from metricunet.stages.segment import View
from metricunet.volume import FloatArray, Geometry

#: How often a case is run again, at most. One move and a growth of each axis are within it.
MOST_RERUNS = 3
#: A crop grows to this many times its side, once along each axis: to 144 x 192 x 192 mm by default, more than any
#: gland. What still touches its faces then is no gland.
GROWTH = 1.5
#: A crop moves only if that brings it this much nearer to the target's middle; else it grows.
SMALLEST_MOVE_MM = 4.0


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
    following = replace(view, centre_mm=geometry.to_world(middle), growth=(growth[0], growth[1], growth[2]))
    same = np.allclose(following.centre_mm, view.centre_mm) and following.growth == view.growth
    return None if same else following
