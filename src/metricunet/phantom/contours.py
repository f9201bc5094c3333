"""What planning contours take in, where that is less or more than anatomy calls by the name."""

from __future__ import annotations

import numpy as np

from metricunet.phantom import skeleton
from metricunet.phantom.patient import Patient
from metricunet.phantom.shapes import Ball, Field, Lattice, Point, add_tube, capsule, smooth_min, without

#: A femoral head is the ball with the neck, to the line between the trochanters: so far from the ball's centre
#: along the neck. Contours vary: the two of one real plan (90 and 84 mm from left to right, 66 mm from front to
#: back, 108 mm high) go on through the trochanters into the shaft. Ball and neck are in all of them.
NECK_MM = 33.0
#: Bone farther from the neck's axis is the greater trochanter's tip.
ROUND_NECK_MM = 25.0
#: The lowest level of the ischial tuberosities: there contours of the rectum begin, below the anorectal junction.
TUBEROSITIES_MM = -51.0
#: The anal canal within its sphincter, from the anorectal junction downward.
CANAL: tuple[Ball, ...] = ((0, 34, -22, 10.0), (0, 38, -30, 10.5), (0, 42, -44, 11.0), (0, 47, -62, 10.0))


def contours(patient: Patient, lattice: Lattice, fields: dict[str, Field]) -> dict[str, Field]:
    """Return the signed distances of the contours that differ from the organ of that name.

    Args:
        patient: the man.
        lattice: the points.
        fields: his organs there, as in `Anatomy`.

    Returns:
        `femoral_head_left` and `femoral_head_right`, parts of the femurs, and the `rectum` with the anal canal,
        from the level of the ischial tuberosities upward.
    """
    heads = {
        f"femoral_head_{side}": np.maximum(fields[f"femur_{side}"], _outside_neck(patient, lattice, left))
        for side, left in (("left", True), ("right", False))
    }
    return {**heads, "rectum": _rectum(patient, lattice, fields)}


def _outside_neck(patient: Patient, lattice: Lattice, left: bool) -> Field:
    """Distance to the region that holds the ball and the neck, and nothing else of the femur."""
    sign = 1.0 if left else -1.0

    def at(point: Point) -> np.ndarray:
        ((x, y, z, _),) = patient.turn_leg(((*point, 0.0),), left)
        return np.array(patient.place_point((sign * x, y, z)))

    head, foot = at(skeleton.FEMORAL_HEAD), at(skeleton.FEMUR_TUBES["neck"][-1][:3])
    axis = (foot - head) / np.linalg.norm(foot - head)
    z, y, x = lattice.grids
    along = axis[0] * (x - head[0]) + axis[1] * (y - head[1]) + axis[2] * (z - head[2])
    radius = ROUND_NECK_MM * patient.girth
    near = capsule(lattice, (*head, radius), (*foot, radius))
    return np.asarray(np.maximum(near, along - NECK_MM * patient.girth), dtype=np.float32)


def _rectum(patient: Patient, lattice: Lattice, fields: dict[str, Field]) -> Field:
    back, up = (0.0, 0.0) if patient.floor is None else patient.floor.shift_mm
    canal = lattice.empty()
    add_tube(canal, lattice, [(x, y + back, z + up, r) for x, y, z, r in patient.place_tube(CANAL)])
    lowest = patient.place_point((0.0, 40.0, TUBEROSITIES_MM))[2]
    canal = np.maximum(canal, np.float32(lowest) - lattice.grids[0])
    field = smooth_min(fields["rectum"], canal, 4.0)
    # Where the rectum gives way to an organ, so does its contour.
    others = np.minimum.reduce(
        [fields[name] for name in ("prostate", "seminal_vesicles", "bladder", "penile_bulb")]
    )
    return np.minimum(fields["rectum"], without(field, others, 1.0))
