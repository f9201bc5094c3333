"""The rest of the body, schematic: abdomen, chest, head, arms and legs around the pelvis of `anatomy`.

Large organs at the usual positions, on a coarser lattice, in the template's frame continued upward and downward.
They are there so that a scan does not end at the fifth lumbar vertebra, not to look like anybody's. Only the
femurs are labelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from metricunet.phantom.anatomy import FAT_SHARE, SIDES, TRUNK_MM, beyond_table, superellipse
from metricunet.phantom.appearance import Appearance
from metricunet.phantom.patient import Patient
from metricunet.phantom.shapes import (
    Ball,
    Field,
    Lattice,
    Point,
    Values,
    add_tube,
    ellipsoid,
    smooth_max,
    smooth_min,
)

#: The pelvis of `anatomy` ends at these template heights, and its image goes over into this one's within so much.
PELVIS_MM = (-150.0, 200.0)
BLEND_MM = 14.0
LATTICE_MM = 6.0
LOW_MM, HIGH_MM = (-318.0, -234.0), (318.0, 186.0)
#: Crown and soles.
CROWN_MM, SOLES_MM = 902.0, -862.0
#: The trunk above the pelvis, as in `TRUNK_MM`, and the neck; and the share of the fat under its skin.
UPPER_TRUNK_MM = np.array(
    [
        (290, 134, -98, 98),
        (360, 142, -99, 99),
        (430, 150, -103, 103),
        (490, 152, -101, 104),
        (540, 150, -90, 104),
        (575, 148, -74, 100),
        (600, 128, -62, 94),
        (622, 84, -54, 86),
        (645, 61, -50, 76),
        (690, 57, -52, 66),
        (722, 57, -58, 62),
    ],
    dtype=np.float64,
)
UPPER_FAT = np.array([(330, 0.7, 0.8, 0.45), (430, 0.45, 0.35, 0.4), (570, 0.3, 0.2, 0.3), (640, 0.12, 0.08, 0.1)])
#: One leg from the thigh to the ankle: height, centre x and y, half axes.
LEG_MM = np.array(
    [
        (-150, 82, 8, 74, 76),
        (-240, 82, 6, 70, 70),
        (-330, 82, 2, 60, 62),
        (-395, 82, 0, 57, 60),
        (-450, 82, 8, 52, 57),
        (-530, 81, 16, 54, 60),
        (-640, 80, 18, 42, 47),
        (-750, 79, 18, 31, 36),
        (-800, 79, 18, 33, 42),
    ],
    dtype=np.float64,
)
#: Middle of the vertebral bodies, and their radius: height, y, radius.
SPINE_MM = np.array(
    [
        (196, 6, 18),
        (230, 1, 18),
        (300, 8, 18),
        (340, 17, 17),
        (400, 31, 16),
        (460, 42, 15),
        (520, 46, 14),
        (570, 40, 13),
        (610, 28, 12),
        (660, 14, 10),
        (700, 8, 9),
        (738, 6, 9),
    ],
    dtype=np.float64,
)
#: Length of a vertebra with its disc, lowest and highest.
VERTEBRA_MM = (37.0, 17.0)
#: Template heights along the spine, and how many vertebrae lie below each: the same in every part of a scan.
_SPINE_HEIGHTS_MM = np.arange(100.0, 781.0)
_VERTEBRAE_BELOW = np.cumsum(
    1 / np.interp(_SPINE_HEIGHTS_MM, [200, 340, 600, 720], [VERTEBRA_MM[0], 27.0, 21.0, VERTEBRA_MM[1]])
)
#: The femur from where the pelvis ends, tibia, fibula and foot; one side.
LEG_BONES: dict[str, tuple[Ball, ...]] = {
    "femur": (
        (113, -2, -105, 14),
        (106, -6, -165, 13.5),
        (96, -8, -280, 13),
        (87, -3, -355, 17),
        (84, 2, -388, 24),
    ),
    "condyles": ((66, 6, -392, 19), (102, 6, -392, 19)),
    "patella": ((84, -45, -378, 13), (84, -45, -392, 12)),
    "tibia": ((70, 6, -424, 18), (98, 6, -424, 18)),
    "tibial shaft": ((84, 6, -424, 22), (80, -2, -470, 15), (77, 4, -620, 11), (76, 14, -775, 14)),
    "fibula": ((109, 24, -438, 8), (106, 28, -600, 6), (100, 24, -790, 8)),
    "heel": ((78, 20, -795, 14), (80, 50, -826, 17)),
    "foot": ((78, 10, -800, 14), (76, -50, -826, 12), (72, -100, -840, 9)),
    "outer foot": ((84, 10, -810, 11), (98, -50, -838, 9), (98, -90, -842, 7)),
}
#: Shoulder girdle, one side.
SHOULDER_BONES: dict[str, tuple[Ball, ...]] = {
    "clavicle": ((14, -58, 598, 7), (70, -52, 608, 6), (120, -20, 618, 6), (158, 8, 612, 7)),
    "scapula": ((150, 28, 592, 10), (118, 66, 560, 5), (98, 78, 470, 4)),
    "scapula's edge": ((118, 66, 560, 5), (76, 84, 580, 4), (98, 78, 470, 4)),
    "humeral head": ((172, 6, 586, 23), (184, 4, 560, 15)),
}
#: Face and jaw.
FACE_BONES: dict[str, tuple[Ball, ...]] = {
    "jaw": ((46, -22, 752, 6), (43, -38, 722, 7), (22, -92, 712, 7), (0, -102, 714, 8)),
    "cheek": ((56, -30, 775, 5), (42, -78, 775, 9), (22, -86, 752, 8)),
    "skull base": ((10, -10, 752, 10), (48, 2, 752, 11)),
}


@dataclass(frozen=True)
class Build:
    """What is drawn of one body outside the pelvis.

    Attributes:
        arms: `beside` the body or `above` the head.
        liver, stomach, spleen, kidney: size of these organs against the usual.
        stomach_gas: share of the stomach's depth that is gas.
        loops: courses of the gut, each with its HU and the share of gas.
        breasts_mm: radius of the breasts; 0 for none.
        shift_mm: of the abdominal organs, upward.
    """

    arms: str
    liver: float
    stomach: float
    spleen: float
    kidney: float
    stomach_gas: float
    loops: tuple[tuple[tuple[Ball, ...], float, float], ...]
    breasts_mm: float
    shift_mm: float


@dataclass(frozen=True, eq=False)
class Tissue:
    """One shape with its HU, on the lattice around it."""

    lattice: Lattice
    shape: Field
    hu: Field | float


@dataclass(frozen=True, eq=False)
class WholeBody:
    """The body outside the pelvis.

    Attributes:
        tissues: in the order in which they are painted.
        arms: those that lie beside the pelvis too, painted over it as well.
        contours: what is labelled outside the pelvis.
        pelvis_mm: the heights between which the pelvis is that of `anatomy`.
    """

    tissues: tuple[Tissue, ...]
    arms: tuple[Tissue, ...]
    contours: dict[str, Tissue]
    pelvis_mm: tuple[float, float]

    def pelvis_share(self, z_mm: float) -> float:
        """Return how much of the image at a height is the pelvis of `anatomy`: 1 within it, 0 far from it."""
        low, high = self.pelvis_mm
        return float(np.clip(min(z_mm - low, high - z_mm) / BLEND_MM + 0.5, 0, 1))


def pelvis_range_mm(patient: Patient) -> tuple[float, float]:
    """Return the lowest and highest z of this man at which his pelvis is that of `anatomy`."""
    return PELVIS_MM[0] * patient.scale[2], PELVIS_MM[1] * patient.scale[2]


def build(patient: Patient, drawn: Build, appearance: Appearance, low_mm: Point, high_mm: Point) -> WholeBody:
    """Evaluate the body between two corners of the body frame."""
    low = (max(low_mm[0], LOW_MM[0]), max(low_mm[1], LOW_MM[1]), low_mm[2])
    high = (min(high_mm[0], HIGH_MM[0]), min(high_mm[1], HIGH_MM[1]), high_mm[2])
    return _Maker(patient, drawn, appearance, Lattice.spanning(low, high, LATTICE_MM)).make()


class _Maker:
    """Collects the tissues of one body."""

    def __init__(self, patient: Patient, drawn: Build, appearance: Appearance, lattice: Lattice) -> None:
        self.patient, self.drawn, self.appearance, self.lattice = patient, drawn, appearance, lattice
        self.tissues: list[Tissue] = []
        self.texture = appearance.texture.on(lattice)

    def make(self) -> WholeBody:
        t, p = self.appearance.tissues, self.patient
        inner, outer = self._outline(False), self._outline(True)
        outer = smooth_min(outer, inner - 3.0, 6.0)
        skin = smooth_max(outer, beyond_table(p, self.lattice), 14.0)
        self._whole(skin, t.skin)
        self._whole(skin + 3.0, (t.fat + 6 * self.texture).astype(np.float32))
        muscle = np.float32(t.muscle) - 30 * np.clip(0.8 * self.texture - 0.6, 0, 2)
        self._whole(np.maximum(inner, skin + 4.0), muscle.astype(np.float32))
        self._legs(inner)
        cavity = self._cavity(inner)
        self._abdomen(cavity)
        self._chest(cavity)
        self._spine()
        self._head()
        contours = self._leg_bones()
        count = len(self.tissues)
        self._arms()
        return WholeBody(tuple(self.tissues), tuple(self.tissues[count:]), contours, pelvis_range_mm(p))

    # Places and shapes

    def at(self, point: Point) -> Point:
        """Move a template point; what bends the pelvis fades with the distance from it."""
        x, y, z = point
        near = float(np.clip(z, *PELVIS_MM))
        placed = np.array(self.patient.place_point((x, y, near)))
        usual = np.array((x, y, near)) * self.patient.scale
        moved = (x, y, z) * np.asarray(self.patient.scale) + (placed - usual) * np.exp(-abs(z - near) / 120)
        return float(moved[0]), float(moved[1]), float(moved[2])

    def tube(self, balls: Sequence[Ball], mirror: bool = False) -> list[Ball]:
        """Move a tube."""
        girth = self.patient.girth
        return [(*self.at((-x if mirror else x, y, z)), r * girth) for x, y, z, r in balls]

    def part(self, low: Point, high: Point) -> Lattice:
        """The part of the lattice between two corners."""
        return self.lattice.part(self.lattice.box(low, high))

    def paint(self, lattice: Lattice, shape: Values, hu: Field | float) -> None:
        """Add a tissue, if the lattice reaches it."""
        if min(lattice.shape) >= 2 and (shape < LATTICE_MM).any():
            self.tissues.append(Tissue(lattice, np.asarray(shape, dtype=np.float32), hu))

    def _whole(self, shape: Values, hu: Field | float) -> None:
        self.paint(self.lattice, shape, hu)

    def organ(self, centre: Point, radii: Point, margin: float = 14.0) -> tuple[Lattice, Field]:
        """An ellipsoid at a template point, with the lattice around it."""
        girth = self.patient.girth
        x, y, z = self.at(centre)
        a, b, c = radii[0] * girth, radii[1] * girth, radii[2] * self.patient.scale[2]
        lattice = self.part(
            (x - a - margin, y - b - margin, z - c - margin), (x + a + margin, y + b + margin, z + c + margin)
        )
        return lattice, ellipsoid(lattice, (x, y, z), (a, b, c)) if 0 not in lattice.shape else lattice.empty()

    def tubes(
        self, courses: Sequence[Sequence[Ball]], blend: float = 0.0, margin: float = 14.0
    ) -> tuple[Lattice, Field]:
        """Tubes through template balls, with the lattice around them."""
        placed = [self.tube(course) for course in courses]
        table = np.array([ball for course in placed for ball in course])
        reach = table[:, 3].max() + margin
        low, high = table[:, :3].min(axis=0) - reach, table[:, :3].max(axis=0) + reach
        lattice = self.part((low[0], low[1], low[2]), (high[0], high[1], high[2]))
        field = lattice.empty()
        if 0 not in lattice.shape:
            for course in placed:
                add_tube(field, lattice, course, blend)
        return lattice, field

    def within(self, lattice: Lattice, field: Field) -> Field:
        """The part of a field of the whole lattice on a part of the lattice."""
        index = tuple(
            slice(int(np.searchsorted(axis, part[0])), int(np.searchsorted(axis, part[0])) + len(part))
            if len(part)
            else slice(0, 0)
            for axis, part in zip(
                (self.lattice.z, self.lattice.y, self.lattice.x), (lattice.z, lattice.y, lattice.x), strict=True
            )
        )
        found: Field = field[index]
        return found

    # Outlines

    def _outline(self, with_fat: bool) -> Field:
        """Skin or muscle: trunk and neck, head, legs."""
        p, lattice = self.patient, self.lattice
        sx, sy, sz = p.scale
        table = np.concatenate([TRUNK_MM, UPPER_TRUNK_MM])
        z = lattice.z / sz
        a, front, back = (np.interp(z, table[:, 0], table[:, k] * s) for k, s in ((1, sx), (2, sy), (3, sy)))
        if with_fat:
            shares = np.concatenate([FAT_SHARE[:-1], UPPER_FAT])
            side, fore, aft = (np.interp(z, shares[:, 0], shares[:, k]) for k in (1, 2, 3))
            a = a + side * p.fat_side_mm
            front, back = front - fore * p.fat_front_mm, back + aft * p.fat_back_mm
        x0 = np.array([self.at((0.0, 10.0, float(v)))[0] for v in z])
        trunk = superellipse(lattice, x0, (front + back) / 2, a, (back - front) / 2, 2.3)
        top = 726.0 * sz
        trunk = np.maximum(trunk, lattice.grids[0] - np.float32(top))
        field = self._add_head(trunk)
        # The legs take over where the trunk of the template ends.
        legs = lattice.empty()
        low = lattice.z < PELVIS_MM[0] * sz + 40
        if low.any():
            part = Lattice(z=lattice.z[low], y=lattice.y, x=lattice.x)
            heights = part.z / sz
            cx, cy, ax, ay = (np.interp(heights, LEG_MM[::-1, 0], LEG_MM[::-1, k]) for k in (1, 2, 3, 4))
            thigh = np.clip((heights + 420) / 270, 0, 1)
            if with_fat:
                ax = ax * sx + 0.7 * p.fat_side_mm * thigh
                ay = ay * sy + 0.55 * (0.5 * p.fat_front_mm + 0.7 * p.fat_back_mm) * thigh
            else:
                ax, ay = 0.92 * ax * sx - 2, 0.92 * ay * sy - 2
            both = part.empty()
            for sign in (-1.0, 1.0):
                axis = np.array(
                    [
                        self.at((sign * float(v), float(w), float(h)))
                        for v, w, h in zip(cx, cy, heights, strict=True)
                    ]
                )
                x0 = axis[:, 0] + sign * 0.25 * p.fat_side_mm * thigh
                both = np.minimum(both, superellipse(part, x0, axis[:, 1], ax, ay, 2.1))
            both = np.maximum(both, np.float32(-812 * sz) - part.grids[0])
            if with_fat:
                for _, mirror in SIDES:
                    add_tube(
                        both,
                        part,
                        self.tube(((78, 40, -815, 30), (80, -20, -822, 28), (86, -80, -838, 22)), mirror),
                        12.0,
                    )
            legs[low] = both
        trunk_ends = np.float32(PELVIS_MM[0] * sz + 8) - lattice.grids[0]
        return np.asarray(np.minimum(np.maximum(field, trunk_ends), legs), dtype=np.float32)

    def _add_head(self, field: Field) -> Field:
        for centre, radii in (
            ((0, -8, 802), (76, 97, 98)),
            ((0, -62, 752), (58, 52, 58)),
            ((0, -112, 762), (13, 12, 20)),
        ):
            lattice, head = self.organ(centre, radii, 30.0)
            if head.size:
                index = self.lattice.box(
                    (lattice.x[0] - 1, lattice.y[0] - 1, lattice.z[0] - 1),
                    (lattice.x[-1] + 1, lattice.y[-1] + 1, lattice.z[-1] + 1),
                )
                field[index] = smooth_min(field[index], head, 14.0)
        if self.drawn.breasts_mm > 0:
            r = self.drawn.breasts_mm
            for sign in (-1.0, 1.0):
                lattice, breast = self.organ(
                    (78 * sign, -102 - 0.2 * self.patient.fat_front_mm, 468), (r, 0.8 * r, r), 30.0
                )
                if breast.size:
                    index = self.lattice.box(
                        (lattice.x[0] - 1, lattice.y[0] - 1, lattice.z[0] - 1),
                        (lattice.x[-1] + 1, lattice.y[-1] + 1, lattice.z[-1] + 1),
                    )
                    field[index] = smooth_min(field[index], breast, 10.0)
        return field

    def _cavity(self, inner: Field) -> Field:
        """Inside of the trunk's muscles, in front of those along the spine."""
        z, y, _ = self.lattice.grids
        sy, sz = self.patient.scale[1:]
        back = np.interp(self.lattice.z / sz, [200, 300, 360, 400], [52, 54, 74, 92])[:, None, None] * sy
        field = smooth_max(inner + 12.0, (y - back).astype(np.float32), 12.0)
        return np.asarray(np.maximum(field, np.float32(PELVIS_MM[1] * sz - 60) - z), dtype=np.float32)

    # Trunk

    def _legs(self, inner: Field) -> None:
        """Planes of fat between the muscles of the thigh and the calf."""
        low = self.lattice.z < PELVIS_MM[0] * self.patient.scale[2] + BLEND_MM
        if not low.any():
            return
        part = Lattice(z=self.lattice.z[low], y=self.lattice.y, x=self.lattice.x)
        planes = np.abs(self.texture[low]) * 12 - 1.0
        self.paint(part, np.maximum(planes, inner[low] + 12.0), self.appearance.tissues.fat + 25.0)

    def _abdomen(self, cavity: Field) -> None:
        t, d = self.appearance.tissues, self.drawn
        up, much = d.shift_mm, max(0.0, t.soft - t.muscle + 8.0)
        z = self.lattice.grids[0]
        sz = self.patient.scale[2]
        belly = np.maximum(cavity, z - np.float32(440 * sz))
        self._whole(belly, (t.fat + 8 + 8 * self.texture).astype(np.float32))
        for _, mirror in SIDES:
            sign = -1.0 if mirror else 1.0
            psoas = [(sign * x, y, h, r) for x, y, h, r in ((44, 8, 190, 19), (38, 10, 240, 17), (26, 18, 305, 9))]
            self.paint(*self.tubes([psoas]), t.muscle)
            for k, hu, (rx, ry, rz), shift in (
                (0, t.muscle - 18 + 1.1 * much, (29, 27, 56), (0.0, 0.0)),
                (1, t.fat + 20, (13, 12, 26), (-17.0, -6.0)),
            ):
                height = (286.0 if mirror else 300.0) + up
                centre = (sign * (64 + shift[0]), 40 + shift[1], height)
                lattice, kidney = self.organ(centre, (rx * d.kidney, ry * d.kidney, rz * d.kidney))
                self.paint(lattice, kidney + (self.within(lattice, self.texture) if k == 0 else 0.0), float(hu))
        self._gut(cavity)
        for (lattice, shape), hu in (
            (
                self._union(((-70, -6, 338 + up), (78, 84, 98)), ((-8, -48, 372 + up), (74, 38, 44)), d.liver),
                t.muscle + 4 + 0.5 * much,
            ),
            (
                self.organ((104, 44, 366 + up), (28 * d.spleen, 42 * d.spleen, 52 * d.spleen)),
                t.muscle - 4 + 0.8 * much,
            ),
            (
                self.tubes([[(-34, -18, 286 + up, 15), (10, -24, 308 + up, 11), (84, 26, 338 + up, 11)]]),
                t.muscle - 12 + 0.5 * much,
            ),
            (self.organ((-52, -58, 276 + up), (16, 17, 30)), 12.0),
        ):
            if shape.size:
                self.paint(lattice, np.maximum(shape, self.within(lattice, cavity) + 2.0), float(hu))
        s = d.stomach
        lattice, stomach = self.tubes(
            [
                [
                    (62, 12, 398 + up, 34 * s),
                    (66, -36, 350 + up, 32 * s),
                    (30, -62, 305 + up, 22 * s),
                    (-28, -52, 296 + up, 13),
                ]
            ],
            8.0,
        )
        if stomach.size:
            stomach = np.maximum(stomach, self.within(lattice, cavity) + 2.0)
            self.paint(lattice, stomach, t.bowel_wall)
            self.paint(lattice, stomach + 4.0, t.bowel_wall - 18)
            up_mm = self.patient.upward
            level = up_mm * self.at((0, -30, 350))[1] + 34 * s * (2 * d.stomach_gas - 1)
            gas = np.maximum(stomach + 4.0, up_mm * lattice.grids[1] - np.float32(level))
            self.paint(lattice, gas, -980.0)
        vessels = {
            "aorta": (
                (8, -22, 190, 9),
                (9, -20, 240, 9.5),
                (8, -14, 300, 10),
                (8, -2, 350, 11),
                (12, 8, 420, 12),
                (18, 14, 500, 12),
                (18, 8, 556, 12),
                (8, -14, 572, 13),
                (-8, -36, 545, 15),
                (0, -38, 490, 15),
            ),
            "cava": ((-13, -13, 185, 11), (-18, -12, 260, 11), (-24, -10, 330, 12), (-26, -18, 425, 13)),
        }
        for course in vessels.values():
            self.paint(*self.tubes([course]), t.soft)

    def _union(
        self, first: tuple[Point, Point], second: tuple[Point, Point], size: float
    ) -> tuple[Lattice, Field]:
        """Two ellipsoids that melt into each other."""
        girth, sz = self.patient.girth, self.patient.scale[2]
        ellipsoids = [
            (self.at(centre), (radii[0] * girth * size, radii[1] * girth * size, radii[2] * sz * size))
            for centre, radii in (first, second)
        ]
        corners = np.array([[np.subtract(c, r) - 14, np.add(c, r) + 14] for c, r in ellipsoids])
        low, high = corners[:, 0].min(axis=0), corners[:, 1].max(axis=0)
        lattice = self.part((low[0], low[1], low[2]), (high[0], high[1], high[2]))
        if 0 in lattice.shape:
            return lattice, lattice.empty()
        a, b = (ellipsoid(lattice, centre, radii) for centre, radii in ellipsoids)
        return lattice, smooth_min(a, b, 16.0)

    def _gut(self, cavity: Field) -> None:
        """Loops of gut with gas to the front of each piece."""
        wall = self.appearance.tissues.bowel_wall
        for course, hu, gas in self.drawn.loops:
            lattice, outer = self.tubes([course], 3.0)
            if not outer.size:
                continue
            outer = np.maximum(outer, self.within(lattice, cavity) + 1.0)
            self.paint(lattice, outer, wall)
            self.paint(lattice, outer + 2.5, hu)
            if gas <= 0:
                continue
            for a, b in pairwise(course):
                part, piece = self.tubes([[a, b]], 0.0, 8.0)
                if piece.size:
                    (_, ya, _, ra), (_, yb, _, rb) = self.tube([a, b])
                    up = self.patient.upward
                    level = up * (ya + yb) / 2 + (2 * gas - 1) * (ra + rb) / 2
                    piece = np.maximum(piece + 2.5, self.within(part, cavity) + 3.5)
                    self.paint(part, np.maximum(piece, up * part.grids[1] - np.float32(level)), -960.0)

    def _chest(self, cavity: Field) -> None:
        t, lattice = self.appearance.tissues, self.lattice
        sx, sy, sz = self.patient.scale
        z, y, x = lattice.grids
        if lattice.z[-1] > 340 * sz:
            up = self.drawn.shift_mm
            chest = np.maximum(cavity + 5.0, np.maximum(np.float32(345 * sz) - z, z - np.float32(606 * sz)))
            # The apices lie within the first ribs.
            inlet = (
                np.hypot((np.abs(x) - 48 * sx) / 52, (y - 18 * sy) / 62) * 50
                - np.interp(lattice.z / sz, [540, 575, 606], [90, 50, 22])[:, None, None]
            )
            chest = smooth_max(chest, inlet.astype(np.float32), 14.0)
            for centre, radii in (((-72, -4, 340 + up), (84, 92, 100)), ((74, -4, 326 + up), (80, 90, 98))):
                _, dome = self.organ(centre, radii, 40.0)
                part = self.organ(centre, radii, 40.0)[0]
                if dome.size:
                    index = lattice.box(
                        (part.x[0] - 1, part.y[0] - 1, part.z[0] - 1),
                        (part.x[-1] + 1, part.y[-1] + 1, part.z[-1] + 1),
                    )
                    chest[index] = np.maximum(chest[index], 4.0 - dome)
            middle = np.hypot(x / (30 * sx), (y + 6) / (84 * sy)) * 30 * sx - 30 * sx
            heart = self.organ((22, -42, 442 + up), (60, 46, 58), 40.0)
            self._whole(
                np.maximum(
                    middle,
                    np.maximum(cavity + 2.0, np.maximum(np.float32(380 * sz) - z, z - np.float32(610 * sz))),
                ),
                t.fat + 20,
            )
            self._whole(chest, (-845 + 35 * self.texture).astype(np.float32))
            part, shape = heart
            if shape.size:
                self.paint(part, shape - 5.0, t.fat + 15)
            self.paint(
                *self.tubes([[(0, -10, 410, 27), (0, 4, 480, 26), (0, -4, 540, 30), (0, -8, 590, 26)]]), t.fat + 25
            )
            if shape.size:
                self.paint(part, shape, (t.muscle + t.soft) / 2)
                for centre, radii in (
                    ((40, -32, 440 + up), (24, 20, 30)),
                    ((-8, -58, 445 + up), (24, 18, 32)),
                    ((4, -14, 462 + up), (30, 16, 22)),
                ):
                    self.paint(*self.organ(centre, radii), t.soft)
            vessels = [
                (8, 8, 345, 11),
                (12, 10, 420, 12),
                (18, 14, 500, 12),
                (18, 8, 556, 12),
                (8, -14, 572, 13),
                (-8, -36, 545, 15),
                (0, -38, 490, 15),
            ]
            self.paint(
                *self.tubes(
                    [
                        vessels,
                        [(-24, -34, 470, 10), (-22, -30, 560, 9), (-20, -30, 600, 7)],
                        [(10, -30, 500, 13), (26, -4, 508, 9)],
                    ]
                ),
                t.soft,
            )
            for sign in (-1.0, 1.0):
                hilum = (20 * sign, -4, 505, 8)
                for end in (
                    (70 * sign, -40, 540, 2.5),
                    (84 * sign, 20, 500, 2.5),
                    (72 * sign, 50, 450, 2.5),
                    (60 * sign, 10, 560, 2.5),
                ):
                    self.paint(*self.tubes([[hilum, end]]), t.soft - 15)
            airway: list[list[Ball]] = [
                [(0, -8, 690, 8), (0, 2, 640, 8), (0, 8, 560, 8), (0, 12, 525, 8)],
                [(0, 12, 525, 7), (40, 10, 500, 5)],
                [(0, 12, 525, 7), (-36, 10, 505, 5.5)],
            ]
            self.paint(*self.tubes(airway), -985.0)
            self._ribs()

    def _ribs(self) -> None:
        """Twelve pairs, from the spine round and down to the front; breastbone, shoulder girdle."""
        t = self.appearance.tissues
        table = np.concatenate([TRUNK_MM, UPPER_TRUNK_MM])
        courses: list[list[Ball]] = []
        for k in range(12):
            height = 606.0 - k * 24.5
            reach = (2.2, 2.5, 2.6, 2.65, 2.65, 2.6, 2.5, 2.4, 2.25, 2.0, 1.5, 1.1)[k]
            drop = 20 + 60 * min(1.0, k / 5)
            for sign in (-1.0, 1.0):
                course: list[Ball] = []
                for angle in np.linspace(0.22, reach, 9):
                    z = height - drop * angle / 2.6
                    a, front, back = (float(np.interp(z, table[:, 0], table[:, c])) for c in (1, 2, 3))
                    narrow = min(1.0, 0.62 + 0.14 * k)
                    x = (a - 9) * np.sin(angle) * narrow
                    y = (front + back) / 2 + (back - front - 18) / 2 * np.cos(angle) * min(1.0, 0.8 + 0.07 * k)
                    course.append((sign * float(x), float(y), float(z), 5.2))
                courses.append(course)
        for course in courses:
            lattice, rib = self.tubes([course], 0.0, 12.0)
            self.paint(lattice, rib, 0.55 * t.cortical)
        self._bone([[(0, -50, 592, 10), (0, -74, 540, 9), (0, -88, 470, 8), (0, -90, 440, 5)]], 2.5)
        for balls in SHOULDER_BONES.values():
            for _, mirror in SIDES:
                self._bone([[(-x if mirror else x, y, z, r) for x, y, z, r in balls]], 2.5)

    def _bone(self, courses: Sequence[Sequence[Ball]], cortex_mm: float, marrow: float | None = None) -> None:
        t = self.appearance.tissues
        lattice, bone = self.tubes(courses, 6.0)
        self.paint(lattice, bone, t.cortical)
        self.paint(lattice, bone + cortex_mm, t.spongy if marrow is None else marrow)

    def _spine(self) -> None:
        t, p = self.appearance.tissues, self.patient
        erectors = [
            [
                (sign * 32, y, z, r)
                for z, y, r in (
                    (190, 74, 22),
                    (300, 76, 22),
                    (400, 88, 17),
                    (520, 92, 14),
                    (610, 78, 14),
                    (700, 50, 13),
                )
            ]
            for sign in (-1.0, 1.0)
        ]
        self.paint(*self.tubes(erectors), t.muscle)
        bodies = [(0.0, float(y), float(z), float(r) * 0.97) for z, y, r in SPINE_MM]
        wide = [[(sign * 0.35 * r, y, z, r) for _, y, z, r in bodies] for sign in (-1.0, 1.0)]
        arch = [(0.0, y + r + 16, z, 15.0 if z < 600 else 12.0) for _, y, z, r in bodies[:-1]]
        spines = [(0.0, y + r + 36, z - 12, 4.0) for _, y, z, r in bodies[:-1]]
        canal = [(0.0, y + r + 11, z, 8.0) for _, y, z, r in bodies] + [(0.0, 12.0, 770.0, 8.0)]
        lattice, field = self.tubes([*wide, arch], 4.0)
        if not field.size:
            return
        _, sharp = self.tubes([spines])
        # Every vertebra ends in a disc, its spine in a gap.
        turns = np.interp(lattice.z / p.scale[2], _SPINE_HEIGHTS_MM, _VERTEBRAE_BELOW)
        disc = np.clip(1.6 - 6 * np.abs(turns - np.round(turns)), 0, 1)[:, None, None]
        bone = 0.6 * t.cortical * (1 - disc) + 95 * disc
        spongy = 0.72 * t.spongy * (1 - disc) + 80 * disc
        self.paint(lattice, field, np.broadcast_to(bone, lattice.shape).astype(np.float32))
        self.paint(lattice, field + 3.0, np.broadcast_to(spongy, lattice.shape).astype(np.float32))
        part, sharp = self.tubes([spines])
        self.paint(part, sharp, 0.5 * t.cortical)
        self.paint(*self.tubes([canal]), 20.0)

    def _head(self) -> None:
        t = self.appearance.tissues
        lattice, skull = self.organ((0, -4, 806), (70, 90, 90), 24.0)
        if not skull.size or (skull < 0).sum() == 0:
            self._neck()
            return
        base = self.at((0, 0, 757))[2]
        front = lattice.grids[2] * 0
        skull = smooth_max(
            skull,
            np.asarray(base - lattice.grids[0] + 0.28 * (lattice.grids[1] + 20) * -1 + front, dtype=np.float32),
            14.0,
        )
        self.paint(lattice, skull, t.cortical)
        self.paint(lattice, skull + 7.0, 37.0)
        for sign in (-1.0, 1.0):
            self.paint(
                *self.tubes([[(10 * sign, -34, 812, 6), (14 * sign, 10, 822, 6), (22 * sign, 30, 808, 5)]]), 8.0
            )
        for balls in FACE_BONES.values():
            for _, mirror in SIDES:
                self._bone([[(-x if mirror else x, y, z, r) for x, y, z, r in balls]], 3.0)
        self.paint(*self.tubes([[(-18, -98, 733, 7), (0, -102, 733, 7), (18, -98, 733, 7)]]), 1400.0)
        for sign in (-1.0, 1.0):
            self.paint(*self.organ((30 * sign, -80, 788), (12, 13, 12)), 14.0)
            self.paint(*self.organ((30 * sign, -72, 762), (12, 14, 14)), -960.0)
        self.paint(
            *self.tubes([[(0, -84, 770, 10), (0, -50, 762, 9), (0, -30, 740, 8), (0, -22, 700, 8)]]), -980.0
        )
        self._neck()

    def _neck(self) -> None:
        t = self.appearance.tissues
        for sign in (-1.0, 1.0):
            self.paint(
                *self.tubes([[(18 * sign, -40, 600, 5), (30 * sign, -30, 660, 4.5), (32 * sign, -18, 740, 4)]]),
                t.soft,
            )
            self.paint(*self.organ((18 * sign, -30, 640), (10, 12, 22)), t.soft + 40)

    # Limbs

    def _leg_bones(self) -> dict[str, Tissue]:
        """Bones of both legs; the femurs' contours."""
        t = self.appearance.tissues
        contours: dict[str, Tissue] = {}
        if self.lattice.z[0] > PELVIS_MM[0] * self.patient.scale[2] + BLEND_MM:
            return contours
        for side, mirror in SIDES:
            for name, balls in LEG_BONES.items():
                course = [(-x if mirror else x, y, z, r) for x, y, z, r in balls]
                shaft = name in ("femur", "tibial shaft", "fibula")
                self._bone([course], 4.5 if shaft else 2.0, t.marrow if shaft else None)
            courses = [
                [(-x if mirror else x, y, z, r) for x, y, z, r in LEG_BONES[name]]
                for name in ("femur", "condyles")
            ]
            lattice, femur = self.tubes(courses, 6.0)
            if min(lattice.shape) >= 2:
                contours[f"femur_{side}"] = Tissue(lattice, femur, 0.0)
        return contours

    def _arms(self) -> None:
        t, p = self.appearance.tissues, self.patient
        for _, mirror in SIDES:
            sign = -1.0 if mirror else 1.0
            soft: list[Ball] = [(172, 4, 582, 44)]
            if self.drawn.arms == "beside":
                out = 192 + 0.75 * p.fat_side_mm
                bones = [
                    [(174, 6, 586, 20), (186, 10, 545, 12), (out + 30, 22, 300, 11), (out + 30, 22, 280, 15)],
                    [(out + 24, 20, 272, 8), (out + 14, -20, 30, 8)],
                    [(out + 42, 18, 272, 8), (out + 36, -26, 30, 9)],
                    [(out + 22, -26, 20, 9), (out + 14, -34, -50, 6), (out + 8, -30, -110, 5)],
                ]
                soft += [
                    (out, 10, 500, 46),
                    (out + 30, 20, 300, 38),
                    (out + 32, 14, 240, 38),
                    (out + 24, -20, 40, 24),
                    (out + 16, -32, -40, 20),
                    (out + 10, -30, -110, 12),
                ]
            else:
                bones = [
                    [(172, 4, 590, 20), (168, -6, 640, 12), (150, -40, 880, 12)],
                    [(146, -46, 890, 9), (20, -40, 930, 8)],
                    [(150, -54, 900, 9), (24, -56, 940, 8)],
                ]
                soft += [(172, -6, 640, 48), (152, -40, 880, 36), (120, -46, 905, 36), (20, -46, 935, 26)]
            skin = [(sign * x, y, z, r) for x, y, z, r in soft]
            lattice, arm = self.tubes([skin], 8.0)
            if not arm.size:
                continue
            self.paint(lattice, arm, t.skin)
            self.paint(lattice, arm + 2.5, t.fat)
            self.paint(lattice, arm + 3.0 + 0.25 * p.fat_side_mm, t.muscle)
            for balls in bones:
                self._bone([[(sign * x, y, z, r) for x, y, z, r in balls]], 3.5, t.marrow)
