"""The organs inside the pelvis, each shaped by the patient's numbers: prostate, vesicles, bladder, gut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np

from metricunet.phantom import skeleton
from metricunet.phantom.patient import RECTUM_COURSE_MM, RECTUM_LEVELS_MM, Patient
from metricunet.phantom.shapes import (
    Ball,
    Disc,
    Field,
    Lattice,
    Point,
    Values,
    add_strand,
    add_tube,
    around,
    capsule,
    ellipsoid,
    smooth_max,
    smooth_min,
    without,
)
from metricunet.phantom.variety import LEAST_DEPTH, Floor, Lost

#: The pelvic floor holds the gland's apex, the symphysis its front: growth goes up and back.
APEX_Z_MM = -14.5
FRONT_Y_MM = -19.0
#: The front is deeper than the back by these factors of the half depth.
FRONT_DEPTH, BACK_DEPTH = 1.05, 0.92
GLAND_POWER = 2.25
BLADDER_WALL_MM = 3.2
#: The rectum's wall, slack and stretched wide.
RECTUM_WALL_MM = (3.8, 2.2)
#: Front face of the sacrum and coccyx: height, y.
SACRUM_FRONT_MM = np.array(
    [(-40, 88), (0, 69), (14, 73), (26, 77), (54, 76), (70, 72), (86, 64), (103, 50), (118, 36)], dtype=float
)


@dataclass(frozen=True)
class Gland:
    """Position and size of the prostate: centre, half axes (left-right, front-back, head-foot) in millimetres."""

    centre: Point
    half: Point


@dataclass(frozen=True, eq=False)
class Roughness:
    """The patient's two smooth random fields on one lattice, added to distances to make surfaces irregular."""

    coarse: Field
    fine: Field

    @classmethod
    def of(cls, patient: Patient, lattice: Lattice) -> Roughness:
        """Evaluate a patient's fields on a lattice."""
        return cls(patient.roughness.on(lattice), patient.fine_roughness.on(lattice))


@dataclass(frozen=True, eq=False)
class Bowel:
    """Signed distances of the gut's outside, lumen and gas, and what fills it in HU."""

    outer: Field
    lumen: Field
    gas: Field
    content_hu: Field


@lru_cache(maxsize=8)
def gland(patient: Patient) -> Gland:
    """Size and place the prostate so that its volume is the patient's `gland_volume_ml`."""
    wanted = patient.gland_volume_ml
    depth, height = _ratio(patient)
    width = (wanted * 1000 / (0.56 * depth * height)) ** (1 / 3)
    for _ in range(3):
        trial = _gland_of_width(patient, width)
        reach = 1.6 * max(trial.half)
        low = (trial.centre[0] - reach, trial.centre[1] - reach, trial.centre[2] - reach)
        high = (trial.centre[0] + reach, trial.centre[1] + reach, trial.centre[2] + reach)
        lattice = Lattice.spanning(low, high, 2.0)
        found = volume_ml(_gland_shape(patient, lattice, trial), lattice)
        width *= (wanted / found) ** (1 / 3)
    return _gland_of_width(patient, width)


def volume_ml(field: Field, lattice: Lattice) -> float:
    """Volume of a shape, its surface voxels counted by their share."""
    share = np.clip(0.5 - field / lattice.spacing_mm, 0, 1)
    return float(share.sum(dtype=np.float64) * lattice.spacing_mm**3 / 1000)


def _gland_of_width(patient: Patient, width_mm: float) -> Gland:
    depth, height = _ratio(patient)
    a, b, c = width_mm / 2, width_mm * depth / 2, width_mm * height / 2
    x0, y0, z0 = patient.place_point((0.0, 0.0, 0.0))
    dx, dy, dz = patient.gland_shift
    centre = (x0 + dx, y0 + dy + FRONT_Y_MM + b * FRONT_DEPTH, z0 + dz + APEX_Z_MM + 0.8 * c + 0.2 * 15.0)
    if patient.floor is not None:
        _, _, height = patient.place_point((0.0, *patient.femoral_head[1:]))
        top = height + skeleton.FEMORAL_HEAD_RADIUS_MM * patient.girth
        centre = (centre[0], centre[1], top - patient.floor.apex_mm + c)
    return Gland(centre, (a, b, c))


def _ratio(patient: Patient) -> tuple[float, float]:
    """The gland's depth and height over its width, pressed by the rectum."""
    depth, height = patient.gland_ratio
    if patient.press is None:
        return depth, height
    return max(LEAST_DEPTH, depth * patient.press.flatten), max(LEAST_DEPTH, height * patient.press.flatten**0.4)


def _gland_shape(patient: Patient, lattice: Lattice, where: Gland) -> Field:
    """Superellipsoid: narrower at the apex and in front, flat and slightly grooved at the back."""
    z, y, x = lattice.grids
    (cx, cy, cz), (a, b, c) = where.centre, where.half
    cos, sin = np.cos(patient.gland_tilt_rad), np.sin(patient.gland_tilt_rad)
    v = cos * (y - cy) - sin * (z - cz)
    t = (sin * (y - cy) + cos * (z - cz)) / c
    u = (x - cx) / a
    if patient.lobes is not None:
        t = t - patient.lobes.tip * np.clip(u, -1, 1)
        u = u / (1 + patient.lobes.skew * np.clip(4 * u, -1, 1))
    v = v / np.where(v < 0, b * FRONT_DEPTH, b * BACK_DEPTH)
    groove = 0.10 if patient.press is None else patient.press.groove
    v = v + groove * np.exp(-((u / 0.3) ** 2)) * np.clip(v, 0, 1)
    back_power: Values = np.full_like(v, GLAND_POWER)
    if patient.base is not None:
        t = t - patient.base.slope * (y - cy) / c * np.clip(t, 0, 1)
        back_power = np.where(v > 0, np.float32(patient.base.back_power), back_power)
    taper = 1 + patient.gland_taper * np.clip(t, -1.3, 1.0)
    u = np.abs(u) * (1 + 0.16 * np.clip(-v, 0, 1)) / taper
    v = np.abs(v) / (1 + 0.5 * patient.gland_taper * np.clip(t, -1.3, 1.0))
    up = np.abs(t) ** GLAND_POWER
    if patient.base is not None:
        up = np.where(t > 0, np.abs(t) ** patient.base.power, up)
    rho = (u**GLAND_POWER + v**back_power + up) ** np.float32(1 / GLAND_POWER)
    f = ((rho - 1) * np.float32((a * b * c) ** (1 / 3))).astype(np.float32)
    gradient = np.gradient(f, lattice.spacing_mm)
    slope = np.sqrt(gradient[0] ** 2 + gradient[1] ** 2 + gradient[2] ** 2)
    shape = f / np.maximum(slope, 0.4)
    if patient.median_lobe_mm > 0:
        r = patient.median_lobe_mm if patient.base is None else min(patient.median_lobe_mm, 0.45 * a)
        lobe = ellipsoid(lattice, (cx, cy + 0.1 * b, cz + c - 0.1 * r), (r, 0.9 * r, r))
        shape = smooth_min(shape, lobe, 5.0)
    rough = 0.9 * patient.fine_roughness.on(lattice) + 0.6 * patient.roughness.on(lattice)
    shape = shape + rough
    if patient.base is not None and patient.median_lobe_mm == 0:
        shape = without(shape, _funnel(patient, lattice, where), 0.5, 3.0)
    return np.asarray(shape, dtype=np.float32)


def _funnel(patient: Patient, lattice: Lattice, where: Gland) -> Field:
    """The bladder's neck: wide above the gland's base, closed in the gland."""
    base = patient.base
    assert base is not None
    (cx, cy, cz), (_, b, c) = where.centre, where.half
    y = cy - base.neck_forward * b
    slope = base.slope - float(np.tan(patient.gland_tilt_rad))
    top = cz + c / float(np.cos(patient.gland_tilt_rad)) + slope * (y - cy)
    field = lattice.empty()
    add_tube(
        field, lattice, [(cx, y, top + 1.1 * base.neck_mm, 1.3 * base.neck_mm), (cx, y, top, 0.5 * base.neck_mm)]
    )
    if base.neck_depth_mm > 0:
        tip = (cx, y + 0.1 * base.neck_depth_mm, top - base.neck_depth_mm, 1.5)
        add_tube(field, lattice, [(cx, y, top, 0.5 * base.neck_mm), tip], blend_mm=3.0)
    return field


def bladder_neck(patient: Patient, lattice: Lattice) -> Field:
    """The lowest part of the bladder, which funnels into a varied gland's base."""
    return _funnel(patient, lattice, gland(patient))


def urine(patient: Patient, lattice: Lattice, whole: Field, gland_field: Field) -> Field:
    """Urine in a varied bladder: a wall all round, and a thinner one towards the gland.

    Args:
        patient: a man with a varied base.
        lattice: the points.
        whole: the bladder as if the gland did not dent it.
        gland_field: the prostate.
    """
    base = patient.base
    assert base is not None
    inner = np.minimum(
        whole + np.float32(base.wall_mm), _funnel(patient, lattice, gland(patient)) + np.float32(0.5)
    )
    inner = np.maximum(inner, whole + np.float32(0.4))
    return np.asarray(np.maximum(inner, np.float32(base.neck_wall_mm) - gland_field), dtype=np.float32)


def drawn_neck(patient: Patient, lattice: Lattice) -> Field:
    """The lowest part of a bladder without a prostate below it: drawn down to the pelvic floor."""
    (cx, cy, cz), (_, _, c) = gland(patient).centre, gland(patient).half
    field = lattice.empty()
    add_tube(field, lattice, [(cx, cy - 3, cz + c + 8, 11.0), (cx, cy - 2, cz - 0.2 * c, 4.0)])
    return field


def female(patient: Patient, lattice: Lattice, lost: Lost) -> dict[str, Field]:
    """A woman's organs.

    Args:
        patient: the woman.
        lattice: the points.
        lost: her uterus and ovaries.

    Returns:
        `uterus`, `uterus_cavity`, `vagina` and `ovaries`.
    """
    (cx, cy, cz), _ = gland(patient).centre, gland(patient).half
    vault = (cx, cy + 24.0, cz + 34.0)
    vagina = lattice.empty()
    add_strand(
        vagina,
        lattice,
        {
            cz - 34.0: ((cx - 8, cy + 10, 4.0), (cx + 8, cy + 10, 4.0)),
            cz - 4.0: ((cx - 13, cy + 15, 4.5), (cx + 13, cy + 15, 4.5)),
            cz + 20.0: ((cx - 15, cy + 20, 5.0), (cx + 15, cy + 20, 5.0)),
            vault[2]: ((cx - 10, vault[1], 5.0), (cx + 10, vault[1], 5.0)),
        },
    )
    uterus, cavity, ovaries = lattice.empty(), lattice.empty(), lattice.empty()
    size, aside = lost.uterus, lost.uterus_aside_mm
    if size > 0:
        neck = (vault[0], vault[1] - 2.0, vault[2] - 4.0)
        if lost.uterus_back:
            middle = (cx + 0.5 * aside, vault[1] + 8.0, vault[2] + 24.0 * size)
            end = (cx + aside, vault[1] + 18.0, vault[2] + 46.0 * size)
        else:
            # Over the bladder's dome, however high that is.
            (_, _, bladder_z), (_, _, bladder_half) = bladder_place(patient)
            dome = max(bladder_z + bladder_half, vault[2])
            middle = (cx + 0.5 * aside, vault[1] - 12.0, 0.6 * vault[2] + 0.4 * dome + 22.0 * size)
            end = (cx + aside, vault[1] - 36.0 * size, max(vault[2] + 34.0 * size, dome + 16.0 * size))
        add_tube(uterus, lattice, [(*neck, 13.0), (*middle, 17.0 * size), (*end, 23.0 * size)], 6.0)
        add_tube(cavity, lattice, [(*middle, 2.5), (*end, 5.0 * size)], 3.0)
        uterus = uterus + np.float32(1.5) * patient.roughness.on(lattice)
    for sign, radius in zip((-1.0, 1.0), lost.ovaries_mm, strict=True):
        if radius > 0:
            centre = (cx + sign * 40.0 + 0.5 * aside, cy + 26.0, cz + 62.0)
            ovaries = np.minimum(ovaries, ellipsoid(lattice, centre, (radius, 0.8 * radius, 1.2 * radius)))
    return {
        "uterus": np.asarray(uterus, dtype=np.float32),
        "uterus_cavity": np.maximum(cavity, uterus + 5.0).astype(np.float32),
        "vagina": vagina,
        "ovaries": np.asarray(ovaries, dtype=np.float32),
    }


def prostate(patient: Patient, lattice: Lattice) -> Field:
    """Distance to the prostate's surface."""
    where = gland(patient)
    reach = [1.35 * h + 34.0 for h in where.half]
    return _within(
        lattice, where.centre, (reach[0], reach[1], reach[2]), lambda part: _gland_shape(patient, part, where)
    )


def _within(lattice: Lattice, centre: Point, reach: Point, shape: Callable[[Lattice], Field]) -> Field:
    """Evaluate a shape in a box around it alone.

    A point more on every side lets the shape take gradients that do not depend on where the lattice ends.
    """
    (x, y, z), (rx, ry, rz) = centre, reach
    field = lattice.empty()
    box = lattice.box((x - rx, y - ry, z - rz), (x + rx, y + ry, z + rz))
    part = lattice.part(box)
    if 0 not in part.shape:
        inner = (slice(1, -1),) * 3
        field[box] = np.minimum(shape(part.grown(lattice.spacing_mm))[inner], field[box])
    return field


def seminal_vesicles(patient: Patient, lattice: Lattice, rough: Roughness) -> Field:
    """Two lobed bags behind the bladder that meet the gland's base in the midline."""
    where = gland(patient)
    (cx, cy, cz), (_, b, c) = where.centre, where.half
    field = lattice.empty()
    for side, sign in enumerate((-1.0, 1.0)):
        course: list[Ball] = [
            (cx + 3 * sign, cy + 0.62 * b, cz + 0.80 * c, 4.5),
            (cx + 12 * sign, cy + 0.74 * b, cz + c + 3, 6.3),
            (cx + 22 * sign, cy + 0.82 * b + 2, cz + c + 7, 6.6),
            (cx + 31 * sign, cy + 0.82 * b + 8, cz + c + 8, 4.8),
        ]
        if patient.base is not None:
            thick, long = patient.base.vesicle_thickness[side], patient.base.vesicle_length[side]
            x0, y0, z0, _ = course[0]
            rise, base_mm = patient.base.vesicle_rise_mm, patient.base.slope * (y0 - cy)
            course = [
                (
                    x0 + long * (x - x0),
                    y0 + long * (y - y0),
                    z0 + base_mm + long * (z - z0) + share * rise,
                    r * thick,
                )
                for share, (x, y, z, r) in zip((0.0, 0.3, 0.7, 1.0), course, strict=True)
            ]
        add_tube(field, lattice, course, blend_mm=4.0)
    return np.asarray(field + rough.fine, dtype=np.float32)


def bladder_place(patient: Patient) -> tuple[Point, Point]:
    """Return the bladder's centre and half axes."""
    where = gland(patient)
    fullness = patient.bladder_volume_ml / 50.0
    a = min(31.0 * fullness**0.21 * patient.bladder_ratio[0], 48.0)
    b = 33.0 * fullness**0.21 * patient.bladder_ratio[1]
    c = patient.bladder_volume_ml * 1000 / (4.5 * a * b)
    seat = 0.72 if patient.base is None else patient.base.seat
    base = where.centre[2] + seat * where.half[2]
    x0, y0, _ = patient.place_point((0.0, -17.0, 30.0))
    sx, sy, _ = patient.bladder_shift
    return (x0 + sx, y0 + sy - 0.15 * b, base + 0.94 * c), (a, b, c)


def bladder(patient: Patient, lattice: Lattice) -> Field:
    """Urine and wall: flat when nearly empty, rising as it fills, standing on the prostate's base."""
    where = gland(patient)
    centre, (a, b, c) = bladder_place(patient)

    def shape(part: Lattice) -> Field:
        z, y, x = part.grids
        u, v, w = (x - centre[0]) / a, (y - centre[1]) / b, (z - centre[2]) / c
        # Wider above than below, and leaning forward over the pubic bones as it fills.
        u = u / (1 + 0.14 * np.clip(w, -1, 1))
        v = (v + 0.12 * np.clip(w, -1, 1)) / (1 + 0.12 * np.clip(w, -1, 1))
        power = 2.3
        rho = (np.abs(u) ** power + np.abs(v) ** power + np.abs(w) ** power) ** np.float32(1 / power)
        f = ((rho - 1) * min(a, b, c)).astype(np.float32)
        gradient = np.gradient(f, part.spacing_mm)
        slope = np.sqrt(gradient[0] ** 2 + gradient[1] ** 2 + gradient[2] ** 2)
        field = f / np.maximum(slope, 0.25) + 1.8 * patient.roughness.on(part)
        if patient.base is not None:
            # A bladder that hangs low reaches neither under the vesicles nor below the gland's middle.
            behind, low = where.centre[1] + 0.5 * where.half[1], where.centre[2] + where.half[2] + 7.0
            field = np.maximum(field, np.minimum(y - np.float32(behind), np.float32(low) - z))
            field = smooth_max(field, np.float32(where.centre[2] + 0.15 * where.half[2]) - z, 6.0)
        return np.asarray(field, dtype=np.float32)

    return _within(lattice, centre, (a + 34, b + 34, c + 34), shape)


def rectum(patient: Patient, lattice: Lattice, rough: Roughness) -> Field:
    """The rectum, wall included, from the anorectal junction to the rectosigmoid. It gives way to the gland."""
    field = lattice.empty()
    add_strand(field, lattice, rectum_strand(patient))
    return np.asarray(field + np.float32(0.7) * rough.fine, dtype=np.float32)


def rectum_strand(patient: Patient) -> dict[float, tuple[Disc, ...]]:
    """The rectum's cross-sections: pushed back by the gland, held in front of the sacrum."""
    where = gland(patient)
    (_, cy, cz), (_, b, c) = where.centre, where.half
    strand: dict[float, tuple[Disc, ...]] = {}
    for z, y, r, (dx, dy) in zip(
        RECTUM_LEVELS_MM, RECTUM_COURSE_MM, patient.rectum_radius, patient.rectum_sway, strict=True
    ):
        px, py, pz = patient.place_point((float(dx), float(y + dy), float(z)))
        height = (pz - cz) / c
        face = cy + BACK_DEPTH * b * np.sqrt(max(0.0, 1 - min(abs(height), 1.0) ** 2))
        if patient.spacer is not None:
            face += patient.spacer.thickness_mm * float(np.exp(-((height / 1.1) ** 4)))
        wall = patient.place_point((0.0, float(np.interp(z, *SACRUM_FRONT_MM.T)), float(z)))[1] - 7.0
        if abs(height) < 1.25:
            py = max(py, face + 0.9 * r) if r > 12 else max(face + r - 1.0, min(py, face + r + 5.0))
        radius = min(r, max(8.0, (wall - face) / 2 + 2))
        py = min(py, wall - radius)
        if patient.press is None:
            strand[pz] = ((px - 0.12 * radius, py, 0.94 * radius), (px + 0.12 * radius, py, 0.94 * radius))
        else:
            wedge = patient.press.wedge * float(np.interp(z, [2.0, 26.0], [1.0, 0.0]))
            strand[pz] = _wedge(px, py, radius, wedge)
    return strand


def _wedge(x: float, y: float, radius: float, wedge: float) -> tuple[Disc, ...]:
    """A cross-section from round (0) to a teardrop (1), wide in front and narrow where the levator holds it."""
    side, forth, back = (0.12 + 0.3 * wedge) * radius, 0.25 * wedge * radius, 0.72 * wedge * radius
    corner, tip = (0.94 - 0.36 * wedge) * radius, (0.94 - 0.62 * wedge) * radius
    left, right = (x - side, y - forth, corner), (x + side, y - forth, corner)
    return (x, y, (0.94 - 0.2 * wedge) * radius), left, (x, y + back, tip), right, left


def hollows(
    patient: Patient, lattice: Lattice, rough: Roughness, bladder_field: Field, rectum_field: Field
) -> dict[str, Field]:
    """Urine, the rectum's lumen, and the gas that floats in front of its content."""
    y = lattice.grids[1]
    strand = rectum_strand(patient)
    heights = np.array(sorted(strand))
    centre = np.interp(lattice.z, heights, [strand[h][0][1] for h in heights])[:, None, None]
    radius = np.interp(lattice.z, heights, [strand[h][0][2] for h in heights])[:, None, None]
    closed = np.interp(lattice.z, heights[[0, 1, 2, 3]], [7.0, 5.0, 1.5, 0.0])[:, None, None]
    slack = np.interp(radius, [11.0, 28.0], RECTUM_WALL_MM)
    wall = slack + closed + (5.0 if patient.rectum_filling == "empty" else 0.0)
    lumen = (rectum_field + wall).astype(np.float32)
    up = patient.upward
    level = up * centre - radius + 2 * radius * patient.rectum_level
    flat = (up * y - level).astype(np.float32)
    if patient.rectum_filling == "gas":
        gas = np.maximum(lumen, flat)
    elif patient.rectum_filling == "stool":
        # Bubbles: the crests of a smooth field inside the stool.
        bubbles = (0.95 - rough.fine) * 4.0
        gas = np.maximum(lumen + 2.0, bubbles + 2.0)
    else:
        gas = np.maximum(lumen, flat + 4.0)
    thickness = BLADDER_WALL_MM * (1.25 - 0.25 * min(1.0, patient.bladder_volume_ml / 200))
    return {
        "urine": np.asarray(bladder_field + thickness, dtype=np.float32),
        "rectum_lumen": lumen,
        "rectum_gas": np.asarray(gas, dtype=np.float32),
    }


def spacer(patient: Patient, lattice: Lattice, thickness_mm: float) -> Field:
    """Gel between gland and rectum, thickest in the midline."""
    (cx, cy, cz), (a, b, c) = gland(patient).centre, gland(patient).half
    centre = (cx, cy + BACK_DEPTH * b + 0.3 * thickness_mm, cz + 0.15 * c)
    field = ellipsoid(lattice, centre, (min(0.9 * a, 24.0), 0.8 * thickness_mm, c + 3.0))
    return np.asarray(field + patient.roughness.on(lattice), dtype=np.float32)


def balloon(patient: Patient, lattice: Lattice, half_mm: float, lumen: Field) -> tuple[Field, Field]:
    """A balloon that fills the rectum's lumen behind the gland, and its shaft through the anal canal."""
    middle = patient.place_point((0.0, 38.0, 12.0))
    z = lattice.grids[0]
    body = smooth_max(lumen + 0.5, np.broadcast_to(np.abs(z - middle[2]) - half_mm, lattice.shape), 12.0)
    shaft = lattice.empty()
    way = ((0, 38, 8, 4.5), (0, 34, -22, 4.5), (0, 42, -44, 4.5), (0, 52, -90, 4.5))
    add_tube(shaft, lattice, [(x, y, h, 4.5) for x, y, h, _ in patient.place_tube(way)])
    return body, shaft


def catheter(patient: Patient, lattice: Lattice, balloon_mm: float) -> tuple[Field, Field]:
    """A urinary catheter's tube, from the penis to the bladder, and its balloon above the gland's base."""
    (cx, cy, cz), (_, _, c) = gland(patient).centre, gland(patient).half
    low = [
        (0, -4, -40, 3),
        (0, -34, -44, 3),
        (0, -66, -36, 3),
        (0, -90, -41, 3),
        (0, -106, -55, 3),
        (0, -112, -80, 3),
    ]
    centre = (cx, cy - 4.0, cz + c + 0.8 * balloon_mm)
    course: list[Ball] = [(*centre, 3.2), (cx, cy - 2, cz, 3.2), (cx, cy - 2, cz - c - 3, 3.2)]
    course += [
        (x, y, z, 3.2)
        for x, y, z, _ in patient.place_tube(tuple((float(x), float(y), float(z), float(r)) for x, y, z, r in low))
    ]
    tube = lattice.empty()
    add_tube(tube, lattice, course)
    return tube, ellipsoid(lattice, centre, (balloon_mm,) * 3)


def penile_bulb(patient: Patient, lattice: Lattice) -> Field:
    """The bulb, in the midline below the apex."""
    where = gland(patient)
    x0, y0, z0 = patient.place_point((0.0, -2.0, -42.0))
    x1, y1, z1 = patient.place_point((0.0, -22.0, -46.0))
    top = where.centre[2] - where.half[2] - 9.0
    drop = min(0.0, top - 9.0 - z0)
    field = lattice.empty()
    size = 1.0 if patient.floor is None else patient.floor.bulb
    x1, y1, z1 = (a + size * (b - a) for a, b in zip((x0, y0, z0), (x1, y1, z1), strict=True))
    add_tube(field, lattice, [(x0, y0, z0 + drop, 9.0 * size), (x1, y1, z1 + drop, 8.0 * size)])
    return field


def pelvic_floor(patient: Patient, lattice: Lattice, gland_field: Field, rectum_field: Field) -> Field:
    """Levator ani as a sheet that hugs prostate and rectum and flares upward, anal and urethral sphincters."""
    z, y, _ = lattice.grids
    where = gland(patient)
    (cx, cy, cz), (_, _, c) = where.centre, where.half
    canal = lattice.empty()
    low: list[Ball] = [
        (*patient.place_point((0, 37, -28)), 11.0),
        (*patient.place_point((0, 42, -44)), 11.5),
        (*patient.place_point((0, 47, -60)), 10.0),
    ]
    add_tube(canal, lattice, low)
    together = smooth_min(gland_field, smooth_min(rectum_field, canal, 6.0), 14.0)
    flare = 1.7 + np.clip((z - cz - 2) * 0.35, 0, 9)
    sheet = np.abs(together - flare) - (2.0 if patient.floor is None else patient.floor.levator_mm / 2)
    pubis = patient.place_point((0.0, -26.0, 0.0))[1]
    limits = np.maximum(np.maximum(z - (cz + 18), cz - c - 16 - z), pubis - y)
    sheet = smooth_max(sheet.astype(np.float32), limits.astype(np.float32), 3.0)
    urethra = lattice.empty()
    add_tube(urethra, lattice, [(cx, cy - 2, cz - c, 6.5), (*patient.place_point((0, -3, -40)), 6.0)])
    return np.minimum(np.minimum(sheet, canal), urethra)


def muscular_floor(patient: Patient, lattice: Lattice, floor: Floor) -> Field:
    """Sphincter, puborectalis, perineal body, transverse muscles and bulb as one mass, hung on the bones."""
    (cx, cy, cz), (_, _, c) = gland(patient).centre, gland(patient).half
    back, up = floor.shift_mm
    field = lattice.empty()
    mass = {
        z + up: tuple((x, y + back, r) for x, y, r in discs)
        for z, discs in patient.place_strand(skeleton.FLOOR_STRAND, thickness=floor.bulk).items()
    }
    add_strand(field, lattice, mass)
    for balls in skeleton.FLOOR_TUBES.values():
        for sign in (-1.0, 1.0):
            tube = patient.place_tube(tuple((sign * x, y, z, r) for x, y, z, r in balls), floor.bulk)
            add_tube(field, lattice, tube, blend_mm=7.0)
    # The sphincter rises from the floor to wherever the apex is.
    root = patient.place_point((0.0, 2.0, -26.0))
    sphincter: list[Ball] = [
        (cx, cy - 2, cz - 0.85 * c, 9.0 * floor.bulk),
        (root[0], root[1] + back, min(root[2] + up, cz - c), 13.0 * floor.bulk),
    ]
    add_tube(field, lattice, sphincter, blend_mm=10.0)
    return np.asarray(field + np.float32(0.8) * patient.fine_roughness.on(lattice), dtype=np.float32)


def bowel(patient: Patient, lattice: Lattice) -> Bowel:
    """Sigmoid, caecum and small bowel; the first loop starts where the rectum ends."""
    outer, lumen, gas = lattice.empty(), lattice.empty(), lattice.empty()
    content = np.full(lattice.shape, 25.0, dtype=np.float32)
    strand = rectum_strand(patient)
    top = max(strand)
    x0, y0, r0 = strand[top][0]
    loops = list(patient.bowel)
    start: Ball = (x0, y0, top - 4.0, r0)
    first = loops[0].course
    loops[0] = replace(loops[0], course=(start, *first[1:]))
    for loop in loops:
        for a, b in pairwise(loop.course):
            reach = max(a[3], b[3]) + 12.0
            box = lattice.box(*around(a, b, reach))
            part = lattice.part(box)
            if 0 in part.shape:
                continue
            tube = capsule(part, a, b) + 1.2 * patient.fine_roughness.on(part)
            nearer = tube < outer[box]
            content[box] = np.where(nearer, loop.content_hu, content[box])
            outer[box] = np.minimum(outer[box], tube)
            inner = tube + loop.wall_mm
            lumen[box] = np.minimum(lumen[box], inner)
            if loop.gas > 0:
                # Gas rises to the front of each piece of gut, or to the back of one who lies prone.
                up = patient.upward
                level = np.float32(up * (a[1] + b[1]) / 2 + (2 * loop.gas - 1) * (a[3] + b[3]) / 2)
                gas[box] = np.minimum(gas[box], np.maximum(inner, up * part.grids[1] - level))
    return Bowel(outer, lumen, gas, content)
