"""Artificial hips: their parts as shapes, in some of the `real` patients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metricunet.phantom import skeleton
from metricunet.phantom.patient import Patient
from metricunet.phantom.scanner import Difficulty
from metricunet.phantom.shapes import Field, Lattice, Point, add_tube, ellipsoid, smooth_max

#: Share of the real patients with an artificial hip, and of these with two. Our choice: rare, but there in any
#: cohort of some size.
IMPLANT_SHARE = 0.06
BILATERAL_SHARE = 1 / 3
#: The shell fixed in the pelvis, and the bone's side of the joint that is sawn off with the head.
SHELL_MM = 3.5
NECK_BONE_MM = 21.0
TITANIUM_HU, COBALT_HU, LINER_HU, SCAR_HU = 9000.0, 16000.0, -85.0, 38.0


@dataclass(frozen=True)
class Implant:
    """One artificial hip, lengths in millimetres.

    Attributes:
        left: whether it is the left hip.
        head_mm: radius of the ball.
        cup_mm: outer radius of the shell in the pelvis.
        stem_mm: length of the stem in the shaft.
        stem_radius_mm: radius of the stem's upper end; its tip has half of it.
    """

    left: bool
    head_mm: float
    cup_mm: float
    stem_mm: float
    stem_radius_mm: float


@dataclass(frozen=True, eq=False)
class ImplantParts:
    """Signed distances of an implant's parts on one lattice, in the order in which they are painted.

    Attributes:
        scar: soft tissue in place of the bone that was taken out.
        liner: plastic between shell and ball.
        titanium: shell and stem.
        cobalt: ball and neck.
    """

    scar: Field
    liner: Field
    titanium: Field
    cobalt: Field


def draw_implants(
    rng: np.random.Generator, difficulty: Difficulty, share: float = IMPLANT_SHARE
) -> tuple[Implant, ...]:
    """Draw a patient's implants: none in nearly all, one, or one on each side.

    Args:
        rng: source of chance.
        difficulty: `easy` has none.
        share: of the patients with one or two.
    """
    have, both, right = rng.random(3)
    if difficulty == "easy" or have >= share:
        return ()
    sides = (True, False) if both < BILATERAL_SHARE else (bool(right < 0.5),)
    return tuple(
        Implant(
            left=left,
            head_mm=float(rng.choice([14.0, 16.0, 18.0])),
            cup_mm=float(rng.uniform(24.5, 28.0)),
            stem_mm=float(rng.uniform(105, 145)),
            stem_radius_mm=float(rng.uniform(7.5, 9.5)),
        )
        for left in sides
    )


def implant_parts(implant: Implant, patient: Patient, lattice: Lattice) -> ImplantParts:
    """Evaluate an implant, set into the patient's own hip."""
    sign = 1.0 if implant.left else -1.0

    def at(x: float, y: float, z: float) -> Point:
        ((x, y, z, _),) = patient.turn_leg(((x, y, z, 0.0),), implant.left)
        return patient.place_point((sign * x, y, z))

    hx, hy, hz = skeleton.FEMORAL_HEAD
    head = at(hx, hy, hz)
    ball = ellipsoid(lattice, head, (implant.head_mm,) * 3)
    cup = ellipsoid(lattice, head, (implant.cup_mm,) * 3)
    z, y, x = lattice.grids
    ox, oy, oz = skeleton.SOCKET_OPENING
    beyond = (sign * ox * (x - head[0]) + oy * (y - head[1]) + oz * (z - head[2])).astype(np.float32)
    shell = np.maximum(np.maximum(cup, -(cup + SHELL_MM)), beyond - 2.0)
    collar = at(111, 0, 11)
    scar = lattice.empty()
    add_tube(scar, lattice, [(*head, NECK_BONE_MM + 4), (*collar, NECK_BONE_MM - 4)])
    stem = lattice.empty()
    r = implant.stem_radius_mm
    low = np.interp(2 - implant.stem_mm, [-165, -105, -48, -22], [106, 113, 121, 126])
    courses = [
        (*collar, r + 2.5),
        (*at(124, 7, -12), r + 1.0),
        (*at(121, 6, -48), r - 1.0),
        (*at(float(low), -3, 2 - implant.stem_mm), r / 2),
    ]
    add_tube(stem, lattice, courses, blend_mm=3.0)
    neck = lattice.empty()
    add_tube(neck, lattice, [(*head, 6.5), (*collar, 7.0)])
    return ImplantParts(
        scar=smooth_max(scar, -stem, 1.0),
        liner=np.maximum(cup + SHELL_MM, beyond - 5.0),
        titanium=np.minimum(shell, stem).astype(np.float32),
        cobalt=np.minimum(ball, neck),
    )
