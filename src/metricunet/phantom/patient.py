"""One random man: the numbers that make a phantom's anatomy, drawn from a seed.

Ranges are our choice, set to usual adult anatomy: the gland's volume is log-normal with a median of 35 mL, a
bladder holds 40 to 420 mL, one rectum in three is distended.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metricunet.phantom import skeleton
from metricunet.phantom.shapes import Ball, Point, Strand, Waves
from metricunet.phantom.variety import (
    USUAL_JOINTS,
    Balloon,
    Base,
    Catheter,
    Floor,
    Joints,
    Lobes,
    Lost,
    Press,
    Spacer,
)

GLAND_MEDIAN_ML = 35.0
GLAND_LOG_SD = 0.45
GLAND_RANGE_ML = (15.0, 110.0)


@dataclass(frozen=True, eq=False)
class Patient:
    """The parameters of one man's pelvis. Lengths in millimetres, in the body frame of `shapes`.

    Attributes:
        scale: size of the frame along x, y and z against the template.
        lean: shift of x and y for each millimetre of z: the pelvis does not lie quite straight.
        turn_rad: rotation about the long axis.
        bends: smooth displacement along x, y and z.
        muscle_bulk: radius of the muscles against the template.
        fat_side_mm, fat_front_mm, fat_back_mm: thickness of the fat under the skin at the hips.
        gland_volume_ml: volume of the prostate.
        gland_ratio: front-back and head-foot extent of the gland against its width.
        gland_shift: shift of the prostate from its usual position.
        gland_tilt_rad: apex forward, about the left-right axis.
        gland_taper: how much wider the base is than the apex.
        median_lobe_mm: radius of a lobe that bulges into the bladder; 0 for none.
        bladder_volume_ml: urine and wall.
        bladder_shift: shift of the bladder from its usual position.
        bladder_ratio: random share of the fullness that goes into width, depth and height.
        rectum_radius: radius of the rectum at the heights `RECTUM_LEVELS_MM`, wall included.
        rectum_sway: left-right and front-back wandering of the rectum's course at these heights.
        rectum_filling: `gas`, `stool` or `empty`.
        rectum_level: share of the lumen's depth that gas takes, the rest being stool below it.
        roughness: smooth field that makes each organ's surface its own.
        fine_roughness: the same, of shorter wavelength.
        bowel: tubes of gut, each a course of balls, with the HU of its content and the share of gas.
        vessels: small tubes in the pelvic fat.
        table_gap_mm: how much the couch flattens the back.
        floor, base, press, lobes: what the difficulty `varied` adds; None as in `real`.
        catheter, balloon, spacer: what was put into bladder and rectum, and between rectum and gland.
        sources: brachytherapy's sources in the gland, as shares of its half axes.
        lost: what is there in place of the prostate; None where that is there.
        prone: whether the patient lies on his belly: gas rises to the back, and the couch is in front.
        leg_turn_rad: how far the left and the right leg are turned outward in the hip.
        joints: the hips' joints.
        hip_shift_mm: of hips and legs from their usual place, in the template.
    """

    scale: Point
    lean: tuple[float, float]
    turn_rad: float
    bends: tuple[Waves, Waves, Waves]
    bend_mm: float
    muscle_bulk: float
    fat_side_mm: float
    fat_front_mm: float
    fat_back_mm: float
    gland_volume_ml: float
    gland_ratio: tuple[float, float]
    gland_shift: Point
    gland_tilt_rad: float
    gland_taper: float
    median_lobe_mm: float
    bladder_volume_ml: float
    bladder_shift: Point
    bladder_ratio: Point
    rectum_radius: NDArray[np.float64]
    rectum_sway: NDArray[np.float64]
    rectum_filling: str
    rectum_level: float
    roughness: Waves
    fine_roughness: Waves
    bowel: tuple[Loop, ...]
    vessels: tuple[tuple[Ball, ...], ...]
    table_gap_mm: float
    floor: Floor | None = None
    base: Base | None = None
    press: Press | None = None
    lobes: Lobes | None = None
    catheter: Catheter | None = None
    balloon: Balloon | None = None
    spacer: Spacer | None = None
    sources: tuple[Point, ...] = ()
    lost: Lost | None = None
    prone: bool = False
    leg_turn_rad: tuple[float, float] = (0.0, 0.0)
    joints: Joints = USUAL_JOINTS
    hip_shift_mm: Point = (0.0, 0.0, 0.0)

    def place(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Move template points [n, 3] to where this man has them: scaled, turned, leaning and bent."""
        moved = points * np.asarray(self.scale)
        c, s = np.cos(self.turn_rad), np.sin(self.turn_rad)
        x, y, z = moved[:, 0], moved[:, 1], moved[:, 2]
        turned = np.stack([c * x - s * y + self.lean[0] * z, s * x + c * y + self.lean[1] * z, z], axis=1)
        return np.asarray(turned + self.bend_mm * np.stack([w.at(points) for w in self.bends], axis=1))

    def place_point(self, point: Point) -> Point:
        """Move one template point."""
        x, y, z = self.place(np.array([point], dtype=np.float64))[0]
        return float(x), float(y), float(z)

    def place_tube(self, balls: tuple[Ball, ...], thickness: float = 1.0) -> list[Ball]:
        """Move a tube's balls; radii grow with the frame times `thickness`."""
        table = np.array(balls, dtype=np.float64)
        centres = self.place(table[:, :3])
        radii = table[:, 3] * self.girth * thickness
        return [(float(x), float(y), float(z), float(r)) for (x, y, z), r in zip(centres, radii, strict=True)]

    def place_strand(self, strand: Strand, mirror: bool = False, thickness: float = 1.0) -> Strand:
        """Move a strand's discs; its levels stay level, so they move along z together."""
        sign = -1.0 if mirror else 1.0
        heights = np.array(list(strand), dtype=np.float64)
        table = np.array([list(chain) for chain in strand.values()], dtype=np.float64)
        table[..., 0] *= sign
        points = np.concatenate(
            [table[..., :2], np.broadcast_to(heights[:, None, None], (*table.shape[:2], 1))], axis=-1
        )
        placed = self.place(points.reshape(-1, 3)).reshape(points.shape)
        rise = float((placed[..., 2] - points[..., 2] * self.scale[2]).mean())
        radii = table[..., 2] * self.girth * thickness
        return {
            float(z * self.scale[2] + rise): tuple(
                (float(x), float(y), float(r)) for (x, y, _), r in zip(chain, rs, strict=True)
            )
            for z, chain, rs in zip(heights, placed, radii, strict=True)
        }

    @property
    def femoral_head(self) -> Point:
        """Centre of the left femoral head in the template."""
        (x, y, z), (dx, dy, dz) = skeleton.FEMORAL_HEAD, self.hip_shift_mm
        return x + dx, y + dy, z + dz

    def turn_leg(self, balls: tuple[Ball, ...], left: bool) -> tuple[Ball, ...]:
        """Shift a femur's balls, tables of the left side, and turn them about the upright axis of the hip."""
        angle, (dx, dy, dz) = self.leg_turn_rad[0 if left else 1], self.hip_shift_mm
        if angle == 0 and self.hip_shift_mm == (0.0, 0.0, 0.0):
            return balls
        c, s = float(np.cos(angle)), float(np.sin(angle))
        hx, hy, _ = skeleton.FEMORAL_HEAD
        return tuple(
            (hx + dx + c * (x - hx) - s * (y - hy), hy + dy + s * (x - hx) + c * (y - hy), z + dz, r)
            for x, y, z, r in balls
        )

    @property
    def upward(self) -> float:
        """1 where gas rises to the front, -1 where it rises to the back."""
        return -1.0 if self.prone else 1.0

    @property
    def girth(self) -> float:
        """Size of cross-sections against the template."""
        return float(np.sqrt(self.scale[0] * self.scale[1]))


@dataclass(frozen=True)
class Loop:
    """One tube of gut.

    Attributes:
        course: balls from end to end, outer radius.
        content_hu: what fills it.
        gas: share of the lumen's depth that is gas, in front of the content; 0 for none.
        wall_mm: thickness of its wall.
    """

    course: tuple[Ball, ...]
    content_hu: float
    gas: float
    wall_mm: float = 2.5


#: Heights at which the rectum's radius and course are drawn, anorectal junction to rectosigmoid.
RECTUM_LEVELS_MM = np.array([-30.0, -22.0, -14.0, -4.0, 8.0, 20.0, 32.0, 44.0, 56.0, 68.0, 80.0])
#: Where the rectum's centre usually lies, front-back, at those heights.
RECTUM_COURSE_MM = np.array([37.0, 33.0, 32.0, 33.0, 38.0, 44.0, 49.0, 53.0, 54.0, 50.0, 40.0])


def draw_patient(rng: np.random.Generator) -> Patient:
    """Draw one man. Every call takes the same number of draws for the same features, in a fixed order."""
    size = _normal(rng, 1.0, 0.045, 0.9, 1.1)
    scale = tuple(
        size * _normal(rng, mean, sd, mean - 2 * sd, mean + 2 * sd)
        for mean, sd in ((1.012, 0.03), (1.0, 0.045), (1.0, 0.03))
    )
    stoutness = float(rng.beta(2.0, 2.6))
    fat = [float(low + stoutness * span * rng.uniform(0.75, 1.25)) for low, span in ((8, 34), (12, 58), (10, 40))]
    volume = float(np.clip(GLAND_MEDIAN_ML * np.exp(GLAND_LOG_SD * rng.standard_normal()), *GLAND_RANGE_ML))
    filling = str(rng.choice(["gas", "stool", "empty"], p=[0.4, 0.4, 0.2]))
    radius, sway = _rectum(rng, filling)
    bladder = float(np.exp(rng.uniform(np.log(40.0), np.log(420.0))))
    return Patient(
        scale=(float(scale[0]), float(scale[1]), float(scale[2])),
        lean=(_normal(rng, 0, 0.02, -0.05, 0.05), _normal(rng, 0, 0.065, -0.13, 0.13)),
        turn_rad=_normal(rng, 0, 0.045, -0.1, 0.1),
        bends=(Waves.draw(rng, (150, 350)), Waves.draw(rng, (150, 350)), Waves.draw(rng, (150, 350))),
        bend_mm=2.2,
        muscle_bulk=_normal(rng, 1.0, 0.06, 0.86, 1.1),
        fat_side_mm=fat[0],
        fat_front_mm=fat[1],
        fat_back_mm=fat[2],
        gland_volume_ml=volume,
        gland_ratio=(_normal(rng, 0.83, 0.07, 0.68, 0.97), _normal(rng, 0.73, 0.08, 0.56, 0.92)),
        gland_shift=(_normal(rng, 0, 1.5, -4, 4), _normal(rng, 1.0, 3.0, -1.5, 8), _normal(rng, 0, 6.0, -12, 12)),
        gland_tilt_rad=_normal(rng, 0.12, 0.12, -0.15, 0.4),
        gland_taper=_normal(rng, 0.14, 0.06, 0.0, 0.28),
        median_lobe_mm=float(rng.uniform(6, 11)) if rng.random() < 0.2 else 0.0,
        bladder_volume_ml=bladder,
        bladder_shift=(_normal(rng, 0, 4, -9, 9), _normal(rng, 0, 3, -6, 6), 0.0),
        bladder_ratio=(_normal(rng, 1, 0.06, 0.88, 1.12), _normal(rng, 1, 0.06, 0.88, 1.12), 1.0),
        rectum_radius=radius,
        rectum_sway=sway,
        rectum_filling=filling,
        rectum_level=float(rng.uniform(0.55, 1.0)),
        roughness=Waves.draw(rng, (30, 80), 11),
        fine_roughness=Waves.draw(rng, (14, 34), 11),
        bowel=_bowel(rng, bladder),
        vessels=_vessels(rng),
        table_gap_mm=float(rng.uniform(4, 14)),
    )


def _normal(rng: np.random.Generator, mean: float, sd: float, low: float, high: float) -> float:
    return float(np.clip(rng.normal(mean, sd), low, high))


def _rectum(rng: np.random.Generator, filling: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Radii at the rectum's levels, and its sway there [levels, 2]."""
    wide = rng.uniform(24, 34) if rng.random() < 0.35 else rng.uniform(13, 24)
    widest = {"gas": wide, "stool": rng.uniform(13, 22), "empty": rng.uniform(8.5, 11.5)}[filling]
    profile = np.interp(RECTUM_LEVELS_MM, [-30, -18, 5, 30, 60, 80], [0.2, 0.45, 0.95, 1.0, 0.85, 0.7])
    lumps = np.convolve(rng.standard_normal(len(profile) + 2), [0.25, 0.5, 0.25], mode="valid")
    radius = 8.5 + (widest - 8.5) * profile * (1 + 0.22 * lumps)
    sway = np.stack(
        [np.convolve(rng.standard_normal(len(profile) + 2), [0.3, 0.4, 0.3], mode="valid") for _ in range(2)],
        axis=1,
    )
    sway *= np.array([6.0, 2.0]) * np.clip((RECTUM_LEVELS_MM[:, None] + 20) / 50, 0.1, 1)
    return np.clip(radius, 8.0, 34.0), sway


def _bowel(rng: np.random.Generator, bladder_ml: float) -> tuple[Loop, ...]:
    """The sigmoid and descending colon, the caecum, and loops of small bowel above the bladder."""
    tagged = rng.random() < 0.2  # oral contrast
    # Gut lies on the bladder's dome, whose height goes with its volume.
    floor = 14.0 + 20.0 * (bladder_ml / 50.0) ** 0.58
    r = float(rng.uniform(10, 17))
    peak = float(rng.uniform(floor + 10, floor + 60))
    side = float(rng.uniform(-50, 20))
    sigmoid: list[Ball] = [
        (0.0, 40.0, 80.0, r),
        (side * 0.5, 18.0, 88.0 + 0.2 * peak, r * rng.uniform(0.8, 1.3)),
        (side, -18.0, peak + 12, r * rng.uniform(0.8, 1.3)),
        (side * 0.3 + 25, -38.0 + rng.uniform(-15, 10), peak, r),
        (62.0, -36.0, 104.0, r * 0.9),
        (86.0, -28.0, 140.0, r * rng.uniform(0.9, 1.3)),
        (96.0, -10.0, 185.0, r * 1.1),
        (98.0, 0.0, 235.0, r * 1.1),
    ]
    loops = [Loop(tuple(sigmoid), _content(rng, tagged), float(rng.choice([0.0, 0.5, 0.8, 0.95])), 3.0)]
    caecum = float(rng.uniform(18, 30))
    loops.append(
        Loop(
            (
                (-76.0, -34.0, float(rng.uniform(85, 110)), caecum * 0.7),
                (-84.0, -34.0, 130.0, caecum),
                (-90.0, -22.0, 175.0, caecum),
                (-92.0, -10.0, 235.0, caecum),
            ),
            _content(rng, tagged),
            float(rng.choice([0.0, 0.3, 0.6])),
            3.0,
        )
    )
    for number in range(int(rng.integers(13, 19))):
        deep = number < 4  # the first few hang into the pelvis
        height = rng.uniform(floor + 8, floor + 45) if deep else rng.uniform(floor + 20, 210)
        point = np.array([rng.uniform(-45, 45) if deep else rng.uniform(-75, 75), rng.uniform(-70, 10), height])
        heading = rng.standard_normal(3)
        radius = float(rng.uniform(8, 13))
        course: list[Ball] = []
        for _ in range(int(rng.integers(5, 9))):
            course.append(
                (float(point[0]), float(point[1]), float(point[2]), radius * float(rng.uniform(0.8, 1.15)))
            )
            heading = 0.75 * heading / np.linalg.norm(heading) + 0.6 * rng.standard_normal(3)
            point = point + 22 * heading / np.linalg.norm(heading)
            wide = 45.0 if point[2] < 80 else 85.0
            low, high = (
                np.array([-wide, -80, floor + 0.6 * radius]),
                np.array([wide, 22 if point[2] < 90 else 0, 235]),
            )
            heading = np.where((point < low) | (point > high), -heading, heading)
            point = np.clip(point, low, high)
        loops.append(Loop(tuple(course), _content(rng, tagged), float(rng.choice([0, 0, 0, 0.4, 0.8]))))
    return tuple(loops)


def _vessels(rng: np.random.Generator) -> tuple[tuple[Ball, ...], ...]:
    """Small vessels that wander through the fat around bladder, prostate and rectum."""
    tubes = []
    for _ in range(int(rng.integers(34, 46))):
        side = rng.choice([-1.0, 1.0])
        point = np.array([side * rng.uniform(8, 40), rng.uniform(-20, 66), rng.uniform(-5, 85)])
        heading = rng.standard_normal(3)
        radius = float(rng.uniform(0.9, 2.0))
        course: list[Ball] = []
        for _ in range(4):
            course.append((float(point[0]), float(point[1]), float(point[2]), radius))
            heading = heading / np.linalg.norm(heading) + 0.7 * rng.standard_normal(3)
            point = point + 9 * heading / np.linalg.norm(heading)
        tubes.append(tuple(course))
    return tuple(tubes)


def _content(rng: np.random.Generator, tagged: bool) -> float:
    if tagged and rng.random() < 0.6:
        return float(rng.uniform(150, 600))
    return float(rng.uniform(5, 45))
