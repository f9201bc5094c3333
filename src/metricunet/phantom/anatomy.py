"""A man's pelvis as signed-distance fields on a coarse lattice. Image and labels both derive from these."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from metricunet.phantom import organs, skeleton
from metricunet.phantom.patient import Patient
from metricunet.phantom.shapes import (
    FAR_MM,
    Ball,
    Field,
    Lattice,
    Point,
    Strand,
    Values,
    add_strand,
    add_tube,
    ellipsoid,
    loft,
    smooth_max,
    smooth_min,
    without,
)
from metricunet.phantom.variety import Lost

#: How far up and down the template reaches.
Z_RANGE_MM = (-165.0, 215.0)
#: Trunk without the fat under the skin: height, half width, front, back.
TRUNK_MM = np.array(
    [
        (-80, 160, -66, 92),
        (-40, 163, -68, 94),
        (0, 164, -72, 96),
        (20, 163, -72, 98),
        (50, 158, -76, 102),
        (80, 152, -86, 106),
        (110, 148, -92, 108),
        (140, 146, -95, 107),
        (170, 140, -97, 104),
        (230, 132, -98, 100),
    ],
    dtype=np.float64,
)
#: Share of the fat under the skin at these heights: side, front, back.
FAT_SHARE = np.array(
    [
        (-120, 0.6, 0.5, 0.5),
        (-40, 0.9, 0.6, 0.8),
        (20, 1, 0.75, 1),
        (70, 0.95, 1, 0.95),
        (140, 0.8, 1.1, 0.6),
        (230, 0.8, 1.1, 0.5),
    ]
)
#: One of the two erectile bodies, from the symphysis outward.
PENIS: tuple[Ball, ...] = (
    (5, -44, -42, 6),
    (5, -66, -35, 7),
    (5, -90, -40, 7),
    (5, -106, -54, 7.5),
    (5, -112, -76, 8),
)
#: Both sides, and whether the tables of the left one are mirrored there.
SIDES = (("left", False), ("right", True))
#: One number for each height of a lattice, or one for all.
Column = Values | float
#: One thigh: centre x, y and half axes.
THIGH_MM = (90.0, 6.0, 84.0, 82.0)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Every tissue's signed distance [z, y, x] on one lattice, negative inside.

    Attributes:
        fields: keyed by `body, muscle, soft, hip_left, hip_right, femur_left, femur_right, sacrum, lumbar, disc,
            canal, bowel, bowel_lumen, bowel_gas, bladder, urine, rectum, rectum_lumen, rectum_gas, prostate,
            seminal_vesicles, penile_bulb`, `floor` where the man has a varied one, and `uterus, uterus_cavity,
            vagina, ovaries` in a woman; `spacer`, `balloon, balloon_shaft` and `catheter, catheter_balloon,
            bladder_air` where they were put in. What somebody lacks is empty.
        balloon_hu, spacer_hu: what fills these.
        bowel_hu: what fills the gut at each point.
        heads_mm: centres of the left and the right femoral head.
        table_mm: y of the couch's upper face.
        prone: whether the couch is in front of the patient.
        contours: what is labelled in place of the field of that name, or beside the fields.
    """

    lattice: Lattice
    fields: dict[str, Field]
    bowel_hu: Field
    heads_mm: tuple[Point, Point]
    table_mm: float
    prone: bool = False
    contours: dict[str, Field] = field(default_factory=dict)
    balloon_hu: float = 0.0
    spacer_hu: float = 0.0

    def labelled(self, name: str) -> Field:
        """Return the signed distance of a structure as label maps hold it."""
        return self.contours[name] if name in self.contours else self.fields[name]


def build(patient: Patient, lattice: Lattice) -> Anatomy:
    """Evaluate a patient's anatomy on a lattice."""
    rough = organs.Roughness.of(patient, lattice)
    fields = _bones(patient, lattice, rough)
    bone = np.minimum.reduce([fields[k] for k in ("hip_left", "hip_right", "sacrum")])
    lost = patient.lost
    bed = _prostate(patient, lattice, fields)
    gland = bed if lost is None else lattice.empty()
    vesicles = lattice.empty()
    if lost is None or lost.vesicles:
        vesicles = without(organs.seminal_vesicles(patient, lattice, rough), gland, 0.8)
    front = np.minimum(gland, vesicles)
    if patient.spacer is not None:
        gel = organs.spacer(patient, lattice, patient.spacer.thickness_mm)
        fields["spacer"] = without(without(gel, front, 0.5), bone, 4.0)
        front = np.minimum(front, fields["spacer"])
    rectum = without(organs.rectum(patient, lattice, rough), front, 1.0, 3.0)
    rectum = without(rectum, bone, 4.0, 6.0)
    bladder = organs.bladder(patient, lattice)
    if lost is not None:
        bladder, rectum = _without_gland(patient, lattice, lost, bladder, rectum, vesicles, bone, fields)
        whole = bladder
    elif patient.base is None:
        bladder = without(bladder, np.minimum(gland, np.minimum(vesicles, rectum - 0.5)), 1.0)
        bladder = without(bladder, bone, 5.0, 8.0)
        whole = bladder
    else:
        whole = without(bladder, np.minimum(vesicles, rectum - 0.5), 1.0)
        whole = smooth_min(without(whole, bone, 5.0, 8.0), organs.bladder_neck(patient, lattice), 5.0)
        whole = without(whole, np.minimum(vesicles, rectum), 0.4)
        bladder = without(whole, gland, 0.3)
    fields |= {
        "prostate": gland,
        "seminal_vesicles": vesicles,
        "rectum": rectum,
        "bladder": bladder,
        "penile_bulb": lattice.empty() if lost and lost.woman else organs.penile_bulb(patient, lattice),
    }
    fields |= organs.hollows(patient, lattice, rough, whole, rectum)
    if patient.base is not None and lost is None:
        fields["urine"] = organs.urine(patient, lattice, whole, gland)
    _put_in(patient, lattice, fields)
    if patient.floor is not None:
        fields["floor"] = organs.muscular_floor(patient, lattice, patient.floor)
    trunk = _trunk(patient, lattice, with_fat=False)
    muscle = _muscles(patient, lattice, rough, trunk)
    muscle = np.minimum(muscle, organs.pelvic_floor(patient, lattice, bed, rectum))
    if lost is None or not lost.woman:
        muscle = np.minimum(muscle, _genitals(patient, lattice))
    bowel = organs.bowel(patient, lattice)
    inside = smooth_max(bowel.outer, trunk + 11.0, 6.0)
    inside = without(inside, np.minimum(bladder, rectum), 1.5, 4.0)
    if "uterus" in fields:
        inside = without(inside, np.minimum(fields["uterus"], fields["ovaries"]), 1.5, 4.0)
    fields |= {
        "bowel": without(inside, bone, 6.0, 4.0),
        "bowel_lumen": np.maximum(bowel.lumen, inside + 2.5),
        "bowel_gas": np.maximum(bowel.gas, inside + 2.5),
        "soft": _soft(patient, lattice),
    }
    surface = _body(patient, lattice, rough, muscle)
    table = table_mm(patient)
    fields["body"] = smooth_max(surface, beyond_table(patient, lattice), 14.0)
    fields["muscle"] = np.maximum(muscle, fields["body"] + 4.0)
    for name in ("soft", "bowel"):
        fields[name] = np.maximum(fields[name], fields["body"] + 3.0)
    hx, hy, hz = patient.femoral_head
    heads = patient.place_point((hx, hy, hz)), patient.place_point((-hx, hy, hz))
    return Anatomy(
        lattice,
        fields,
        bowel.content_hu,
        heads,
        table,
        patient.prone,
        balloon_hu=patient.balloon.hu if patient.balloon else 0.0,
        spacer_hu=patient.spacer.hu if patient.spacer else 0.0,
    )


def _put_in(patient: Patient, lattice: Lattice, fields: dict[str, Field]) -> None:
    """Add balloon and catheter to the fields."""
    if patient.balloon is not None:
        lumen = fields["rectum_lumen"]
        fields["balloon"], fields["balloon_shaft"] = organs.balloon(
            patient, lattice, patient.balloon.half_mm, lumen
        )
    if patient.catheter is not None:
        tube, balloon = organs.catheter(patient, lattice, patient.catheter.balloon_mm)
        fields["catheter"], fields["catheter_balloon"] = tube, np.maximum(balloon, fields["bladder"] + 1.5)
        (_, y, _), (_, half, _) = organs.bladder_place(patient)
        up = patient.upward
        air = up * lattice.grids[1] - np.float32(up * y - half + patient.catheter.air_mm)
        fields["bladder_air"] = np.maximum(fields["urine"] + 0.5, air).astype(np.float32)


def _without_gland(
    patient: Patient,
    lattice: Lattice,
    lost: Lost,
    bladder: Field,
    rectum: Field,
    vesicles: Field,
    bone: Field,
    fields: dict[str, Field],
) -> tuple[Field, Field]:
    """Bladder and rectum of somebody who has no prostate; adds a woman's organs to the fields."""
    organs_of_woman = vesicles
    if lost.woman:
        female = organs.female(patient, lattice, lost)
        solid = np.minimum(female["uterus"], female["vagina"])
        female["ovaries"] = without(without(female["ovaries"], solid, 1.0), bone, 6.0)
        for name in ("uterus", "vagina"):
            female[name] = without(female[name], bone, 4.0, 4.0)
        fields |= female
        rectum = without(rectum, solid, 1.0, 3.0)
        organs_of_woman = np.minimum(solid, female["ovaries"])
    bladder = smooth_min(bladder, organs.drawn_neck(patient, lattice), 8.0)
    bladder = without(bladder, np.minimum(organs_of_woman, rectum - 0.5), 1.0)
    return without(bladder, bone, 5.0, 8.0), rectum


def gland_extent(patient: Patient) -> tuple[Point, Point, float]:
    """Lowest and highest corner of the prostate in the body frame, and its volume in mL, on a fine lattice."""
    where = organs.gland(patient)
    reach = 1.6 * max(where.half)
    x, y, z = where.centre
    lattice = Lattice.spanning((x - reach, y - reach, z - reach), (x + reach, y + reach, z + reach), 1.5)
    field = _prostate(patient, lattice, _bones(patient, lattice, organs.Roughness.of(patient, lattice)))
    inside = field < 0
    spans = [
        axis[np.flatnonzero(inside.any(axis=others))]
        for axis, others in ((lattice.x, (0, 1)), (lattice.y, (0, 2)), (lattice.z, (1, 2)))
    ]
    low, high = [float(span[0]) - 0.75 for span in spans], [float(span[-1]) + 0.75 for span in spans]
    return (low[0], low[1], low[2]), (high[0], high[1], high[2]), organs.volume_ml(field, lattice)


def _prostate(patient: Patient, lattice: Lattice, bones: dict[str, Field]) -> Field:
    """The prostate, where need be flattened by the pubic bones."""
    hips = np.minimum(bones["hip_left"], bones["hip_right"])
    return without(organs.prostate(patient, lattice), hips, 2.5, 3.0)


def _placed(patient: Patient, balls: tuple[Ball, ...], mirror: bool) -> list[Ball]:
    """One side's tube."""
    return patient.place_tube(tuple((-x, y, z, r) for x, y, z, r in balls) if mirror else balls)


def _bones(patient: Patient, lattice: Lattice, rough: organs.Roughness) -> dict[str, Field]:
    grain = rough.fine * np.float32(0.4) + rough.coarse * np.float32(0.5)
    fields: dict[str, Field] = {}
    joints, space_mm = lattice.empty(), patient.joints.space_mm
    for side, mirror in SIDES:
        sign = -1.0 if mirror else 1.0
        hx, hy, hz = patient.femoral_head
        head = patient.place_point((sign * hx, hy, hz))
        radius = skeleton.FEMORAL_HEAD_RADIUS_MM * patient.girth * patient.joints.head
        ball = ellipsoid(lattice, head, (radius, radius, radius))
        joints = np.minimum(joints, ball)
        femur = ball.copy()
        for balls in skeleton.FEMUR_TUBES.values():
            turned = patient.turn_leg(balls, left=not mirror)
            add_tube(femur, lattice, _placed(patient, turned, mirror), blend_mm=7.0)
        hip = lattice.empty()
        for strand in skeleton.HIP_STRANDS.values():
            add_strand(hip, lattice, patient.place_strand(strand, mirror), blend_mm=5.0)
        for balls in skeleton.HIP_TUBES.values():
            add_tube(hip, lattice, _placed(patient, balls, mirror), blend_mm=6.0)
        hip = smooth_min(hip, _socket(patient, lattice, head, ball, sign), 8.0)
        hip = without(hip + grain, ball, space_mm)
        middle = _midline(patient, lattice)
        hip = np.maximum(hip, np.float32(skeleton.SYMPHYSIS_HALF_WIDTH_MM) - np.float32(sign) * middle)
        fields[f"hip_{side}"] = hip
        fields[f"femur_{side}"] = without(femur + np.float32(0.6) * grain, hip, 1.5)
    for name, tables in (
        ("sacrum", skeleton.SACRUM_STRANDS),
        ("lumbar", skeleton.LUMBAR_STRANDS),
        ("disc", skeleton.DISC_STRANDS),
        ("canal", skeleton.CANAL_STRANDS),
    ):
        field = lattice.empty()
        for strand in tables.values():
            for _, mirror in SIDES:
                add_strand(field, lattice, patient.place_strand(strand, mirror), blend_mm=3.0)
        fields[name] = field
    # Cartilage and capsule fill the hip joint.
    fields["disc"] = np.minimum(fields["disc"], joints - (space_mm + 1.0))
    hips = np.minimum(fields["hip_left"], fields["hip_right"])
    fields["sacrum"] = without(fields["sacrum"] + grain, hips, 2.0)
    fields["lumbar"] = without(fields["lumbar"] + grain, np.minimum(fields["sacrum"], hips), 2.0)
    return fields


def _midline(patient: Patient, lattice: Lattice) -> Field:
    """Signed left-right distance from the symphysis' plane."""
    x0 = patient.place_point((0.0, -44.0, 0.0))[0]
    return np.asarray(np.broadcast_to(lattice.grids[2] - np.float32(x0), lattice.shape), dtype=np.float32)


def _socket(patient: Patient, lattice: Lattice, head: Point, ball: Field, sign: float) -> Field:
    half = patient.joints.socket_mm / 2
    shell = np.abs(ball - patient.joints.space_mm - half) - half
    ox, oy, oz = skeleton.SOCKET_OPENING
    z, y, x = lattice.grids
    beyond = sign * ox * (x - head[0]) + oy * (y - head[1]) + oz * (z - head[2]) - skeleton.SOCKET_CUT_MM
    return smooth_max(shell, beyond.astype(np.float32), 4.0)


def _muscles(patient: Patient, lattice: Lattice, rough: organs.Roughness, trunk: Field) -> Field:
    """Muscles swollen until they nearly touch, with a plane of fat left between neighbours."""
    nearest, second = lattice.empty(), lattice.empty()
    for name, strand in skeleton.MUSCLE_STRANDS.items():
        swell = skeleton.MUSCLE_SWELL_MM.get(name, skeleton.USUAL_SWELL_MM) * patient.muscle_bulk**4
        beside_gland = patient.floor is not None and name == "obturator internus"
        course = _beside_gland(strand) if beside_gland else strand
        for _, mirror in SIDES:
            box, one = loft(lattice, patient.place_strand(course, mirror, patient.muscle_bulk))
            if one.size == 0:
                continue
            one = one - np.float32(swell)
            if patient.floor is not None and beside_gland:
                low = np.clip((28 - lattice.part(box).grids[0] / patient.scale[2]) / 24, 0, 1)
                one = one - (patient.floor.obturator_mm * low).astype(np.float32)
            second[box] = np.minimum(second[box], np.maximum(nearest[box], one))
            nearest[box] = np.minimum(nearest[box], one)
    planes = (skeleton.FAT_PLANE_MM + nearest - second) / 2
    field = np.maximum(nearest, planes) + np.float32(0.6) * rough.fine + np.float32(0.8) * rough.coarse
    whole = np.minimum(np.maximum(field, trunk), _abdominal_wall(lattice, trunk))
    return np.asarray(whole, dtype=np.float32)


def _beside_gland(strand: Strand) -> Strand:
    """The muscle of the side wall as varied men have it: nearer to the apex in front, thinner beside the base."""
    return {
        z: tuple(
            (x - 4.0 if z <= 4 and k < 2 else x, y, r * 2 / 3 if 28 <= z <= 42 else r)
            for k, (x, y, r) in enumerate(chain)
        )
        for z, chain in strand.items()
    }


def _abdominal_wall(lattice: Lattice, trunk: Field) -> Field:
    """The straight muscles beside the midline, and from the iliac crest upward the oblique ones at the sides."""
    z, y, x = lattice.grids
    straight = (
        _step((60 - np.abs(x)) / 10) * _step((z - 2) / 10) * _step((-40 - y) / 10) * _step((np.abs(x) - 1) / 4)
    )
    oblique = _step((z - 100 + 0.3 * np.abs(y + 40)) / 30) * _step((45 - y) / 15) * _step((np.abs(x) - 66) / 12)
    half = np.maximum(np.float32(7.5) * straight, np.float32(10.0) * oblique) - np.float32(3.0)
    return np.asarray(np.abs(trunk + 6.0) - half, dtype=np.float32)


def _step(t: Values) -> Field:
    """Smooth step from 0 at t = 0 to 1 at t = 1."""
    c: Field = np.clip(t, 0, 1).astype(np.float32)
    return c * c * (3 - 2 * c)


def _genitals(patient: Patient, lattice: Lattice) -> Field:
    """Erectile bodies and testes."""
    field = lattice.empty()
    for sign, (_, mirror) in zip((1.0, -1.0), SIDES, strict=True):
        add_tube(field, lattice, _placed(patient, PENIS, mirror), blend_mm=3.0)
        testis = patient.place_point((17 * sign, -88.0, -84.0))
        field = np.minimum(field, ellipsoid(lattice, testis, (12, 14, 20)))
    return field


def _soft(patient: Patient, lattice: Lattice) -> Field:
    field = lattice.empty()
    woman = patient.lost is not None and patient.lost.woman
    for name, balls in skeleton.SOFT_TUBES.items():
        if woman and name in ("spermatic cord", "crus"):
            continue
        for _, mirror in SIDES:
            add_tube(field, lattice, _placed(patient, balls, mirror), blend_mm=2.0)
    for balls in patient.vessels:
        add_tube(field, lattice, patient.place_tube(balls))
    z, y, x = lattice.grids
    x0, _, _ = patient.place_point((0.0, 120.0, 0.0))
    # The buttocks touch at the midline: a sheet of skin that runs in from the back.
    cleft = np.maximum(np.abs(x - x0 - 0.02 * z) - 1.3, np.maximum(100 + 0.35 * z - y, z - 42))
    return np.asarray(np.minimum(field, cleft), dtype=np.float32)


def _trunk(patient: Patient, lattice: Lattice, with_fat: bool) -> Field:
    """Superellipse at each height; first-order distance."""
    sx, sy, sz = patient.scale
    heights = TRUNK_MM[:, 0] * sz
    a, front, back = (np.interp(lattice.z, heights, TRUNK_MM[:, k] * s) for k, s in ((1, sx), (2, sy), (3, sy)))
    if with_fat:
        shares = [np.interp(lattice.z, FAT_SHARE[:, 0] * sz, FAT_SHARE[:, k]) for k in (1, 2, 3)]
        a = a + shares[0] * patient.fat_side_mm
        front = front - shares[1] * patient.fat_front_mm
        back = back + shares[2] * patient.fat_back_mm
    x0 = np.array([patient.place_point((0.0, 10.0, float(z)))[0] for z in lattice.z / sz])
    half = (back - front) / 2
    return superellipse(lattice, x0, (front + back) / 2, a, half, 2.3)


def superellipse(lattice: Lattice, x0: Column, y0: Column, a: Column, b: Column, power: float) -> Field:
    """Lofted superellipse: centre and half axes for each height."""
    columns = [np.asarray(v, dtype=np.float32).reshape(-1, 1, 1) for v in (x0, y0, a, b)]
    _, y, x = lattice.grids
    u, v = np.abs(x - columns[0]) / columns[2], np.abs(y - columns[1]) / columns[3]
    total = u**power + v**power
    rho = total ** np.float32(1 / power)
    slope = np.sqrt((u ** (power - 1) / columns[2]) ** 2 + (v ** (power - 1) / columns[3]) ** 2)
    slope *= np.maximum(rho, 1e-3) ** np.float32(1 - power)
    return np.asarray((rho - 1) / np.maximum(slope, 1e-4), dtype=np.float32)


def _body(patient: Patient, lattice: Lattice, rough: organs.Roughness, muscle: Field) -> Field:
    """Skin surface: the trunk above, two thighs below, and never less than a few millimetres over muscle."""
    trunk = _trunk(patient, lattice, with_fat=True)
    _, sy, sz = patient.scale
    cx, cy, ax, ay = THIGH_MM
    drop = np.clip((-40 - lattice.z / sz) / 110, 0, 1)
    thighs = lattice.empty()
    for sign in (-1.0, 1.0):
        x0 = patient.place_point((sign * cx, cy, -60.0))[0] + sign * 0.25 * patient.fat_side_mm - sign * 10 * drop
        side = ax * patient.scale[0] + 0.7 * patient.fat_side_mm - 12 * drop
        depth = ay * sy + 0.55 * (patient.fat_front_mm * 0.5 + patient.fat_back_mm * 0.7) - 8 * drop
        thighs = np.minimum(thighs, superellipse(lattice, x0, cy + 4, side, depth, 2.15))
    share = _step((-28 - lattice.z / sz) / 45)[:, None, None]
    outline = trunk + share * (thighs - trunk)
    outline = smooth_min(outline, np.maximum(muscle, -FAR_MM) - 7.0, 12.0)
    if patient.lost is not None and patient.lost.woman:
        return np.asarray(outline + np.float32(1.2) * rough.coarse, dtype=np.float32)
    scrotum = ellipsoid(lattice, patient.place_point((0, -84.0, -78.0)), (36, 28, 40))
    outline = smooth_min(outline, scrotum, 14.0)
    shaft = ((0.0, -70.0, -36.0, 17.0), (0.0, -104.0, -50.0, 17.0), (0.0, -112.0, -78.0, 16.0))
    add_tube(outline, lattice, patient.place_tube(shaft), blend_mm=12.0)
    return np.asarray(outline + np.float32(1.2) * rough.coarse, dtype=np.float32)


def beyond_table(patient: Patient, lattice: Lattice) -> Field:
    """How far points lie within the couch, which flattens the patient."""
    y = lattice.grids[1]
    table = table_mm(patient)
    return np.broadcast_to(table - y if patient.prone else y - table, lattice.shape)


def reach_mm(patient: Patient) -> tuple[float, float, float]:
    """Return how far the body goes to a side, and its front and back in the body frame."""
    sx, sy, _ = patient.scale
    half = float(TRUNK_MM[:, 1].max()) * sx + patient.fat_side_mm + 14.0
    front = float(TRUNK_MM[:, 2].min()) * sy - 1.1 * patient.fat_front_mm - 10.0
    back = float(TRUNK_MM[:, 3].max()) * sy + patient.fat_back_mm + 10.0
    return half, front, back


def table_mm(patient: Patient) -> float:
    """Where the couch stops the back."""
    _, sy, _ = patient.scale
    if patient.prone:
        return float(TRUNK_MM[:, 2].min()) * sy - 0.75 * patient.fat_front_mm
    back = float(TRUNK_MM[:, 3].max()) * sy + 0.9 * patient.fat_back_mm
    return max(back - patient.table_gap_mm, float(TRUNK_MM[:, 3].max()) * sy + 8.0)
