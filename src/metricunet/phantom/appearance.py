"""How one patient's tissues look in CT: mean HU, texture, contrast medium, markers, stones, artefacts.

The means are set so that finished scans, blurred and noisy, show what a real planning scan shows: gland 41.5 HU,
tissue around it 36.2, rectal wall 42.4, bladder wall 35.8, urine 10, fat -93, muscle 50.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from metricunet.phantom.scanner import Difficulty
from metricunet.phantom.shapes import Point, Waves
from metricunet.phantom.variety import USUAL_JOINTS, Joints, Lobes

#: What `real` adds to the usual HU, so that the means over many finished scans are the measured ones.
REAL_SHIFT_HU = {
    "fat": 3.0,
    "muscle": 2.0,
    "gland": -1.2,
    "sheath": 3.0,
    "bladder_wall": 1.0,
    "urine": 1.2,
    "rectal_wall": 3.0,
}
#: Wavelengths of a texture that the gland alone has.
GLAND_TEXTURE_MM = (6.5, 9.0)
#: How much more the gland stands out in easy scans.
EASY_CONTRAST_HU = 27.0


@dataclass(frozen=True)
class Tissues:
    """HU of each tissue of one patient."""

    fat: float
    muscle: float
    gland: float
    sheath: float
    vesicles: float
    bladder_wall: float
    urine: float
    rectal_wall: float
    stool: float
    soft: float
    bowel_wall: float
    skin: float
    cortical: float
    spongy: float
    marrow: float


@dataclass(frozen=True, eq=False)
class Appearance:
    """What decides how the image of one patient looks, apart from its noise.

    Attributes:
        tissues: mean HU of each tissue.
        texture: smooth random field of about 25 mm, for fat and muscle.
        fine: smooth random field of about 10 mm.
        grain: smooth random field of about 8 mm, for spongy bone.
        fibres: bundles of the left and the right gluteal muscle.
        gland_mm: centre of the prostate, body frame.
        hardening_hu: depth of the dark band between the hips.
        streak_hu: strength of the streaks between the hips.
        seeds_mm: gold markers in the gland, body frame.
        stones_mm: calcifications in the gland (x, y, z, radius, HU).
        sources_mm: sources of brachytherapy, body frame.
        voltage_kv: of the tube.
        veins: the veins before the gland and what covers it elsewhere; None for a cover as dense as the gland.
        urine_layer_hu: what contrast medium adds to the urine that lies at the back.
        urine_level_mm: where that layer begins, behind the gland's centre.
        gland_texture: smooth random field of 6.5 to 9 mm that the gland alone has; None for a gland whose texture
            is that of what surrounds it.
        gland_texture_hu: its standard deviation.
        joints: how thick the rim of the femoral heads is, and how dense heads and necks are inside.
        far_muscle_hu: what the muscle of buttocks and thighs has more than that of the pelvis.
    """

    tissues: Tissues
    texture: Waves
    fine: Waves
    grain: Waves
    fibres: tuple[Waves, Waves]
    gland_mm: Point
    hardening_hu: float
    streak_hu: float
    seeds_mm: tuple[Point, ...]
    stones_mm: tuple[tuple[float, float, float, float, float], ...]
    sources_mm: tuple[Point, ...] = ()
    voltage_kv: int = 120
    veins: Lobes | None = None
    urine_layer_hu: float = 0.0
    urine_level_mm: float = 0.0
    gland_texture: Waves | None = None
    gland_texture_hu: float = 0.0
    joints: Joints = USUAL_JOINTS
    far_muscle_hu: float = 0.0


def with_gland_texture(appearance: Appearance, seed: int, texture_hu: float) -> Appearance:
    """Give the gland a texture of its own around the same mean HU; nothing else about the patient changes.

    Its waves are short against the gland, so their mean over it is near 0. They are long against the noise, whose
    grain is about a millimetre, and not much shorter than two planes of the lattice that carries them.

    Args:
        appearance: how he looks without it.
        seed: seed of the phantom.
        texture_hu: standard deviation of the texture.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(8,)))
    waves = Waves.draw(rng, GLAND_TEXTURE_MM, 24)
    return replace(appearance, gland_texture=waves, gland_texture_hu=texture_hu)


def draw_appearance(
    rng: np.random.Generator, difficulty: Difficulty, centre_mm: Point, half_mm: float
) -> Appearance:
    """Draw the appearance of one patient's scan; the gland's centre and half width place markers and stones."""
    bright = EASY_CONTRAST_HU if difficulty == "easy" else 0.0

    def about(mean: float, sd: float) -> float:
        return float(mean + sd * np.clip(rng.standard_normal(), -2, 2))

    common = about(0.0, 1.5)
    enhanced = about(95.0, 25.0) if rng.random() < 0.15 else 0.0
    tissues = Tissues(
        fat=about(-99.5, 2.5),
        muscle=about(53.0, 1.5) + common,
        gland=about(42.8, 1.2) + common + bright,
        sheath=about(38.5, 1.2) + common,
        vesicles=about(36.0, 2.0) + common,
        bladder_wall=about(42.0, 1.5) + common,
        urine=about(10.5, 1.5),
        rectal_wall=about(48.0, 1.2) + common,
        stool=about(35.0, 12.0),
        soft=about(42.0, 3.0) + common + enhanced,
        bowel_wall=about(42.0, 3.0) + common,
        skin=about(10.0, 8.0),
        cortical=about(930.0, 80.0),
        spongy=about(180.0, 40.0),
        marrow=about(-30.0, 30.0),
    )
    if difficulty != "easy":
        tissues = replace(tissues, **{name: getattr(tissues, name) + hu for name, hu in REAL_SHIFT_HU.items()})
    spots = centre_mm + 0.55 * half_mm * rng.uniform(-1, 1, (8, 3))
    marked = rng.random() < 0.15
    count = int(rng.integers(1, 6)) if rng.random() < 0.35 else 0
    stones = tuple(
        (float(x), float(y), float(z), float(rng.uniform(0.8, 2.2)), float(rng.uniform(200, 700)))
        for x, y, z in spots[3 : 3 + count]
    )
    return Appearance(
        tissues=tissues,
        texture=Waves.draw(rng, (18, 60), 10),
        fine=Waves.draw(rng, (7, 16), 11),
        grain=Waves.draw(rng, (6.5, 11), 11),
        fibres=(
            Waves.draw(rng, (7, 12), 8, across=(1.6, 4.0, 0.6)),
            Waves.draw(rng, (7, 12), 8, across=(-1.6, 4.0, 0.6)),
        ),
        gland_mm=centre_mm,
        hardening_hu=float(rng.uniform(0, 7)),
        streak_hu=float(rng.uniform(1, 4)),
        seeds_mm=tuple((float(x), float(y), float(z)) for x, y, z in spots[:3]) if marked else (),
        stones_mm=stones,
    )
