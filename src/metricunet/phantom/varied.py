"""Draws what the difficulty `varied` adds, and sets it into a man, his appearance and his scan."""

from __future__ import annotations

from dataclasses import asdict, fields, replace

import numpy as np

from metricunet.phantom import skeleton
from metricunet.phantom import variety as v
from metricunet.phantom.appearance import Appearance, Tissues
from metricunet.phantom.organs import gland
from metricunet.phantom.patient import RECTUM_LEVELS_MM, Patient
from metricunet.phantom.scanner import BLUR_MM, Scan, scan_range
from metricunet.phantom.shapes import Ball, Point
from metricunet.phantom.variety import (
    Balloon,
    Base,
    Catheter,
    Floor,
    Joints,
    Lobes,
    Lost,
    Press,
    Spacer,
    Variety,
    evenly_in_log,
    generator,
    normal,
    uniform,
)
from metricunet.phantom.whole_body import Build

#: About the longest varied scan of the pelvis alone or of another part of the body, in slices: thin slices are
#: more frequent than in `real` and should cost no more.
MOST_SLICES = 150
#: Shift of the means that any scanner, voltage or patient brings.
TISSUE_SD_HU = {
    "fat": 8.0,
    "muscle": 5.0,
    "gland": 6.0,
    "sheath": 6.0,
    "vesicles": 6.0,
    "bladder_wall": 5.0,
    "urine": 6.0,
    "rectal_wall": 5.0,
    "stool": 25.0,
}
BONE = ("cortical", "spongy", "marrow")
SOFT_TISSUES = tuple(field.name for field in fields(Tissues) if field.name not in BONE)


def vary_patient(patient: Patient, variety: Variety, seed: int) -> Patient:
    """Return the man with the anatomy of the groups that are on.

    Args:
        patient: a man as `real` draws him.
        variety: which groups are on.
        seed: of the phantom.
    """
    changes: dict[str, object] = {}
    if variety.floor:
        bulb = uniform(generator(seed, "floor", 1), v.BULB_SIZE)
        changes["floor"] = replace(_floor(generator(seed, "floor")), bulb=bulb)
    if variety.base:
        rng = generator(seed, "base")
        changes["base"] = _with_upper_face(_base(rng), generator(seed, "base", 2))
        lobe, radius = rng.random(), uniform(rng, v.MEDIAN_LOBE_MM)
        changes["median_lobe_mm"] = radius if lobe < v.MEDIAN_LOBE_SHARE else 0.0
        rng = generator(seed, "base", 1)
        have, catheter = (
            rng.random(),
            Catheter(uniform(rng, v.CATHETER_BALLOON_MM), uniform(rng, v.CATHETER_AIR_MM)),
        )
        changes["catheter"] = catheter if have < v.CATHETER_SHARE else None
    if variety.rectum:
        changes |= _rectum(generator(seed, "rectum"))
        changes |= _kept_off(generator(seed, "rectum", 1), changes)
    if variety.gland:
        changes |= _gland(generator(seed, "gland"), generator(seed, "gland", 2))
        rng = generator(seed, "gland", 1)
        if rng.random() < v.SOURCES_SHARE:
            changes["sources"] = _sources(rng)
    if variety.image:
        rng = generator(seed, "image", 2)
        changes["leg_turn_rad"] = tuple(float(np.radians(uniform(rng, v.LEG_TURN_DEG))) for _ in range(2))
        changes |= _habitus(generator(seed, "image", 3), patient)
        if swallowed_medium(seed):
            rng = generator(seed, "image", 5)
            hu = uniform(rng, v.BOWEL_MEDIUM_HU)
            changes["bowel"] = tuple(
                replace(loop, content_hu=hu * uniform(rng, (0.7, 1.3))) if rng.random() < 0.8 else loop
                for loop in patient.bowel
            )
    if variety.joints:
        changes["joints"] = _joints(generator(seed, "joints"))
    if variety.pelvis:
        rng = generator(seed, "pelvis")
        height, above_mm = normal(rng, *v.PELVIS_HEIGHT), normal(rng, *v.APEX_ABOVE_SYMPHYSIS_MM)
        x, y, z = patient.scale
        changes["scale"] = (x, y, z * height)
        back, up = (normal(rng, *shift) for shift in v.HIP_SHIFT_MM)
        changes["hip_shift_mm"] = (0.0, back, up)
        floor = changes.get("floor")
        if isinstance(floor, Floor):
            # Lower edge of the symphysis, and then the apex, below the top of the femoral heads.
            lowest = min(skeleton.HIP_STRANDS["pubic body"])
            symphysis_mm = z * height * (skeleton.FEMORAL_HEAD[2] + up - lowest)
            symphysis_mm += skeleton.FEMORAL_HEAD_RADIUS_MM * patient.girth
            changes["floor"] = replace(floor, apex_mm=symphysis_mm - above_mm)
    return replace(patient, **changes)  # type: ignore[arg-type]


def _joints(rng: np.random.Generator) -> Joints:
    return Joints(
        space_mm=uniform(rng, v.JOINT_SPACE_MM),
        socket_mm=uniform(rng, v.SOCKET_MM),
        head=normal(rng, *v.HEAD_SIZE),
        rim=uniform(rng, v.RIM),
        spongy=uniform(rng, v.SPONGY),
        cortex_mm=uniform(rng, v.HIP_CORTEX_MM),
        neck_marrow=uniform(rng, v.NECK_MARROW),
    )


def swallowed_medium(seed: int) -> bool:
    """Return whether the gut holds contrast medium."""
    return bool(generator(seed, "image", 4).random() < v.BOWEL_MEDIUM_SHARE)


def _habitus(rng: np.random.Generator, patient: Patient) -> dict[str, object]:
    """Thin or obese, and the side on which he lies."""
    at, prone, thin, obese = rng.random(), rng.random(), uniform(rng, v.THIN), uniform(rng, v.OBESE)
    times = thin if at < v.THIN_SHARE else obese if at < v.THIN_SHARE + v.OBESE_SHARE else 1.0
    names = ("fat_side_mm", "fat_front_mm", "fat_back_mm")
    fat = {
        name: min(most, times * getattr(patient, name)) for name, most in zip(names, v.MOST_FAT_MM, strict=True)
    }
    return {**fat, "prone": bool(prone < v.PRONE_SHARE)}


def _floor(rng: np.random.Generator) -> Floor:
    forth, up = v.FLOOR_SHIFT_MM
    return Floor(
        apex_mm=normal(rng, *v.APEX_BELOW_FEMURS_MM, *v.APEX_RANGE_MM),
        bulk=uniform(rng, v.FLOOR_BULK),
        shift_mm=(uniform(rng, (-forth, forth)), uniform(rng, (-up, up))),
        levator_mm=uniform(rng, v.LEVATOR_MM),
        obturator_mm=uniform(rng, v.OBTURATOR_MM),
    )


def _base(rng: np.random.Generator) -> Base:
    size = uniform(rng, v.VESICLE_THICKNESS)
    return Base(
        power=uniform(rng, v.BASE_POWER),
        neck_mm=uniform(rng, v.NECK_RADIUS_MM),
        neck_depth_mm=uniform(rng, v.NECK_DEPTH_MM),
        neck_forward=uniform(rng, (0.0, 0.4)),
        wall_mm=uniform(rng, v.WALL_MM),
        neck_wall_mm=uniform(rng, (1.0, 3.5)),
        seat=uniform(rng, v.BLADDER_SEAT),
        vesicle_thickness=(size * uniform(rng, (0.85, 1.0)), size * uniform(rng, (0.85, 1.0))),
        vesicle_length=(uniform(rng, v.VESICLE_LENGTH), uniform(rng, v.VESICLE_LENGTH)),
        vesicle_rise_mm=uniform(rng, (-5.0, 9.0)),
    )


def _with_upper_face(base: Base, rng: np.random.Generator) -> Base:
    return replace(base, slope=normal(rng, *v.BASE_SLOPE), back_power=uniform(rng, v.BACK_POWER))


def _rectum(rng: np.random.Generator) -> dict[str, object]:
    """Radius, content and pressure on the gland; the course stays the man's own."""
    kind = str(rng.choice(list(v.RECTUM_SHARE), p=list(v.RECTUM_SHARE.values())))
    widest = uniform(rng, v.RECTUM_RADIUS_MM[kind])
    gas = float(rng.random()) < (0.85 if kind == "great" else 0.5)
    filling = "empty" if kind == "empty" else "gas" if gas else "stool"
    # Distension spares the sphincter; it is greatest at the gland or above it.
    peak = uniform(rng, (0.0, 35.0))
    profile = np.interp(RECTUM_LEVELS_MM, [-30, -18, peak - 6, peak + 22, 80], [0.12, 0.45, 1.0, 0.95, 0.6])
    lumps = np.convolve(rng.standard_normal(len(profile) + 2), [0.25, 0.5, 0.25], mode="valid")
    radius = np.clip(8.0 + (widest - 8.0) * profile * (1 + 0.15 * lumps), 7.5, v.RECTUM_RADIUS_MM["great"][1])
    beside = float(np.interp(4.0, RECTUM_LEVELS_MM, radius))
    force = uniform(rng, (0.3, 1.0)) * (1.0 if filling == "gas" else 0.5)
    flatten = 1 - 0.42 * force * float(np.clip((beside - 17) / 17, 0, 1))
    groove = uniform(rng, v.GROOVE) + 0.12 * (1 - flatten) / 0.42
    return {
        "rectum_radius": radius,
        "rectum_filling": filling,
        "rectum_level": uniform(rng, (0.45, 1.0)),
        "press": Press(flatten, groove, uniform(rng, v.WEDGE)),
    }


def _kept_off(rng: np.random.Generator, rectum: dict[str, object]) -> dict[str, object]:
    """A balloon in the rectum, or gel before it."""
    at, air, dense = rng.random(3)
    radius, half = uniform(rng, v.BALLOON_RADIUS_MM), uniform(rng, v.BALLOON_HALF_MM)
    water, thickness = uniform(rng, (-5.0, 30.0)), uniform(rng, v.SPACER_MM)
    gel = uniform(rng, v.SPACER_DENSE_HU if dense < v.SPACER_DENSE_SHARE else v.SPACER_HU)
    if at < v.BALLOON_SHARE:
        profile = np.interp(
            RECTUM_LEVELS_MM, [-30, -20, 12 - 0.8 * half, 12, 12 + half, 50], [0, 0.1, 0.85, 1, 0.8, 0.2]
        )
        press = rectum["press"]
        assert isinstance(press, Press)
        flatten = 1 - 0.35 * float(np.clip((radius - 16) / 14, 0, 1))
        return {
            "rectum_radius": 9.0 + (radius - 9.0) * profile,
            "rectum_filling": "gas" if air < v.BALLOON_AIR_SHARE else "stool",
            "balloon": Balloon(half, -985.0 if air < v.BALLOON_AIR_SHARE else water),
            "press": Press(flatten, press.groove, 0.3 * press.wedge),
        }
    if at < v.BALLOON_SHARE + v.SPACER_SHARE:
        return {"spacer": Spacer(thickness, gel)}
    return {}


def _sources(rng: np.random.Generator) -> tuple[Point, ...]:
    """Rows of sources along the body, most of them near the gland's surface."""
    points = rng.standard_normal((int(rng.integers(*v.SOURCES)), 3))
    points *= rng.uniform(0.35, 0.85, (len(points), 1)) ** 0.5 / np.linalg.norm(points, axis=1, keepdims=True)
    return tuple((float(x), float(y), float(z)) for x, y, z in points)


def _gland(rng: np.random.Generator, of_cover: np.random.Generator) -> dict[str, object]:
    volume = float(np.exp(np.log(v.VOLUME_MEDIAN_ML) + v.VOLUME_LOG_SD * rng.standard_normal()))
    volume = float(np.clip(volume, *v.VOLUME_RANGE_ML))
    depth = normal(rng, 0.80, 0.08, *v.DEPTH_OVER_WIDTH)
    # A gland that grows has nowhere to go but up: larger ones are taller, and small ones are lower.
    height = normal(rng, *v.HEIGHT_MM, *v.HEIGHT_RANGE_MM) * max(1.0, volume / v.TALL_ML) ** 0.45
    height = max(v.LEAST_HEIGHT_MM, height * min(1.0, volume / v.SMALL_ML) ** 0.25)
    width = float(np.sqrt(volume * 1000 / (0.56 * depth * height)))
    return {
        "gland_volume_ml": volume,
        "gland_ratio": (depth, float(np.clip(height / width, *v.HEIGHT_OVER_WIDTH))),
        "gland_tilt_rad": normal(rng, 0.15, 0.15, -0.2, 0.5),
        "gland_taper": normal(rng, 0.16, 0.08, 0.0, 0.34),
        "lobes": _covered(
            Lobes(
                skew=normal(rng, 0.0, 0.06, -v.SKEW, v.SKEW),
                tip=normal(rng, 0.0, 0.07, -0.15, 0.15),
                veins_mm=uniform(rng, v.VEINS_MM),
                veins_reach=uniform(rng, (0.6, 1.1)),
                cover_mm=uniform(rng, v.COVER_MM),
            ),
            of_cover,
        ),
    }


def _covered(lobes: Lobes, rng: np.random.Generator) -> Lobes:
    """Let what covers the gland look as the gland does, in some men."""
    at, cover, fat = rng.random(), uniform(rng, v.CLOSE_COVER_MM), uniform(rng, v.CLOSE_FAT)
    more = v.CLOSE_SD_HU * float(np.clip(rng.standard_normal(), -2, 2))
    return replace(lobes, cover_mm=cover, cover_hu=more, fat=fat) if at < v.CLOSE_SHARE else lobes


def vary_appearance(
    appearance: Appearance, patient: Patient, variety: Variety, seed: int, half_mm: float
) -> Appearance:
    """Return the appearance with other tissue means, contrast medium, stones and markers, and the gland's veins.

    Args:
        appearance: as `real` draws it.
        patient: the man.
        variety: which groups are on.
        seed: of the phantom.
        half_mm: the smallest half axis of the gland; stones and markers lie within.
    """
    appearance = replace(appearance, veins=patient.lobes, joints=patient.joints)
    if variety.image:
        appearance = _vary_look(appearance, seed, half_mm)
    if variety.rectum:
        appearance = replace(appearance, tissues=_alike(generator(seed, "rectum", 2), appearance.tissues, patient))
    if variety.tissues:
        appearance = replace(appearance, tissues=_anew(generator(seed, "tissues"), appearance.tissues))
    if patient.sources:
        where = gland(patient)
        sources = np.asarray(where.centre) + np.asarray(patient.sources) * where.half
        appearance = replace(appearance, sources_mm=tuple((float(x), float(y), float(z)) for x, y, z in sources))
    if patient.lost is not None:
        clips = tuple((x, y, z, 1.1, 2600.0) for x, y, z in patient.lost.clips_mm)
        appearance = replace(appearance, stones_mm=clips, seeds_mm=())
    return appearance


def _vary_look(appearance: Appearance, seed: int, half_mm: float) -> Appearance:
    rng = generator(seed, "image")
    voltage = int(generator(seed, "image", 6).choice(list(v.VOLTAGE_SHARE), p=list(v.VOLTAGE_SHARE.values())))
    tissues = _tissues(rng, appearance.tissues, voltage)
    medium, dense, layered, level = (
        rng.random(),
        evenly_in_log(rng, v.MEDIUM_HU),
        rng.random(),
        rng.uniform(-12, 8),
    )
    dense *= v.VOLTAGE_IODINE[voltage]
    with_medium = medium < v.MEDIUM_SHARE
    if with_medium and layered < 0.4:
        tissues = replace(tissues, urine=tissues.urine + dense)
    spots = appearance.gland_mm + half_mm * rng.uniform(-1, 1, (v.MOST_STONES + v.MOST_MARKERS, 3)) * 0.55
    stones = int(rng.integers(1, v.MOST_STONES + 1)) if rng.random() < v.STONES_SHARE else 0
    markers = int(rng.integers(1, v.MOST_MARKERS + 1)) if rng.random() < v.MARKERS_SHARE else 0
    return replace(
        appearance,
        tissues=_rectal_medium(generator(seed, "image", 7), tissues),
        voltage_kv=voltage,
        far_muscle_hu=uniform(generator(seed, "image", 8), v.FAR_MUSCLE_HU),
        urine_layer_hu=dense if with_medium and layered >= 0.4 else 0.0,
        urine_level_mm=float(level),
        hardening_hu=float(rng.uniform(0, 12)),
        streak_hu=float(rng.uniform(1, 8)),
        stones_mm=tuple(
            (float(x), float(y), float(z), float(rng.uniform(0.6, 2.8)), float(rng.uniform(150, 900)))
            for x, y, z in spots[:stones]
        ),
        seeds_mm=tuple((float(x), float(y), float(z)) for x, y, z in spots[v.MOST_STONES :][:markers]),
    )


def _anew(rng: np.random.Generator, tissues: Tissues) -> Tissues:
    """Draw the mean of each tissue anew, in some scans; what holds contrast medium keeps it."""
    at = rng.random()
    shifts = {name: v.ANEW_SD_HU * float(np.clip(rng.standard_normal(), -2, 2)) for name in SOFT_TISSUES}
    factors = {name: uniform(rng, v.ANEW_BONE) for name in BONE}
    if at >= v.ANEW_SHARE:
        return tissues
    means = asdict(tissues)
    new = {name: means[name] + shift for name, shift in shifts.items()}
    return replace(tissues, **new, **{name: means[name] * factor for name, factor in factors.items()})


def _alike(rng: np.random.Generator, tissues: Tissues, patient: Patient) -> Tissues:
    """Let a rectum without gas look as its wall does, in some; a balloon and contrast medium stay as they are."""
    at, more = rng.random(), v.ALIKE_SD_HU * float(np.clip(rng.standard_normal(), -2, 2))
    dense = tissues.stool > min(v.RECTAL_MEDIUM_HU)
    if at > v.ALIKE_SHARE or dense or patient.rectum_filling == "gas" or patient.balloon is not None:
        return tissues
    return replace(tissues, stool=tissues.rectal_wall + more)


def _rectal_medium(rng: np.random.Generator, tissues: Tissues) -> Tissues:
    at, more = rng.random(), uniform(rng, v.RECTAL_MEDIUM_HU)
    return replace(tissues, stool=tissues.stool + more) if at < v.RECTAL_MEDIUM_SHARE else tissues


def _tissues(rng: np.random.Generator, tissues: Tissues, voltage: int) -> Tissues:
    moved = {
        name: getattr(tissues, name) + sd * float(np.clip(rng.standard_normal(), -2, 2))
        for name, sd in TISSUE_SD_HU.items()
    }
    have, much, share = rng.random(), uniform(rng, v.ENHANCED_HU), rng.uniform(0.1, 0.4)
    medium = v.VOLTAGE_IODINE[voltage] * much if have < v.ENHANCED_SHARE else 0.0
    moved["fat"] += v.VOLTAGE_FAT_HU[voltage]
    for name, less in v.LOWER_HU.items():
        moved[name] -= less
    for name, takes in (("gland", share), ("muscle", 0.08), ("sheath", 0.6 * share), ("rectal_wall", share)):
        moved[name] += takes * medium
    # The voltage changes bone more than anything else; bones differ by themselves.
    bone = v.VOLTAGE_BONE[voltage] * uniform(rng, (0.88, 1.12))
    return replace(
        tissues,
        **moved,
        soft=tissues.soft + medium,
        cortical=tissues.cortical * bone,
        spongy=tissues.spongy * bone,
    )


def vary_scan(scan: Scan, seed: int, gland_mm: tuple[float, float], reaches_prostate: bool) -> Scan:
    """Return the scan on another grid, with other noise and kernel, some of them cut.

    Args:
        scan: as `real` draws it; couch and place in the room stay.
        seed: of the phantom.
        gland_mm: lowest and highest z of the prostate.
        reaches_prostate: whether the scan shows the gland, or none of it.
    """
    rng = generator(seed, "image", 1)
    thickness = float(rng.choice(v.SLICE_MM, p=v.SLICE_SHARE))
    pixel = round(evenly_in_log(rng, v.PIXEL_MM), 4)
    kernel = evenly_in_log(rng, v.KERNEL)
    noise = evenly_in_log(rng, v.NOISE_HU)
    low, high = scan_range(rng, gland_mm, reaches_prostate, thickness * MOST_SLICES)
    cut, at, end = rng.random(), uniform(rng, v.CUT_GLAND_AT), rng.random()
    if reaches_prostate and cut < v.CUT_GLAND_SHARE:
        edge = gland_mm[0] + at * (gland_mm[1] - gland_mm[0])
        low, high = (edge, max(high, edge + 60)) if end < 0.5 else (min(low, edge - 60), edge)
        low, high = (
            (low, min(high, low + thickness * MOST_SLICES))
            if end < 0.5
            else (
                max(low, high - thickness * MOST_SLICES),
                high,
            )
        )
    rows, columns = scan.shape[1:]
    x, y = (
        -(columns - 1) * pixel / 2 + float(rng.normal(0, 6)),
        -(rows - 1) * pixel / 2 + float(rng.normal(12, 8)),
    )
    aside, edge, side = rng.random(), uniform(rng, v.CUT_SIDE_MM), rng.random()
    if aside < v.CUT_SIDE_SHARE:
        ends = (x, edge) if side < 0.5 else (-edge, x + (columns - 1) * pixel)
        x, columns = ends[0], int((ends[1] - ends[0]) / pixel) + 1
    return replace(
        scan,
        shape=(max(2, int((high - low) / thickness) + 1), rows, columns),
        spacing_mm=(thickness, pixel, pixel),
        start_mm=(x, y, low),
        noise_hu=noise,
        sharpness=kernel,
        blur_mm=BLUR_MM * kernel,
    )


def lose(seed: int) -> str:
    """Draw what a scan without a prostate shows: `woman`, `prostatectomy`, a part of the body, or `missed`."""
    rng = generator(seed, "absent")
    kind = str(
        rng.choice([*v.ABSENT_SHARE, "missed"], p=[*v.ABSENT_SHARE.values(), 1 - sum(v.ABSENT_SHARE.values())])
    )
    part = str(rng.choice(list(v.PART_SHARE), p=list(v.PART_SHARE.values())))
    return part if kind == "part" else kind


def without_gland(patient: Patient, seed: int, woman: bool) -> Patient:
    """Return a woman, or the man after prostatectomy.

    Args:
        patient: a man, with all groups.
        seed: of the phantom.
        woman: which of the two.
    """
    rng = generator(seed, "absent", 1)
    changes: dict[str, object] = {
        "gland_volume_ml": v.BED_ML,
        "gland_ratio": (0.8, 0.7),
        "median_lobe_mm": 0.0,
        "lobes": None,
        "catheter": None,
        "spacer": None,
        "sources": (),
        "press": None if patient.press is None else replace(patient.press, flatten=1.0),
    }
    if not woman:
        count = int(rng.integers(*v.CLIPS, endpoint=True))
        sides = rng.choice([-1.0, 1.0], count)
        deep = rng.random(count) < 0.6
        clips = np.stack(
            [
                sides * np.where(deep, rng.uniform(4, 24, count), rng.uniform(34, 52, count)),
                np.where(deep, rng.uniform(-8, 26, count), rng.uniform(-30, 24, count)),
                np.where(deep, rng.uniform(-12, 34, count), rng.uniform(15, 85, count)),
            ],
            axis=1,
        )
        spots = tuple(patient.place_point((float(x), float(y), float(z))) for x, y, z in clips)
        lost = Lost(woman=False, vesicles=rng.random() < v.VESICLES_LEFT_SHARE, clips_mm=spots)
        return replace(patient, **changes, lost=lost)  # type: ignore[arg-type]
    some, back, aside, size = rng.random(), rng.random(), uniform(rng, (-18.0, 18.0)), uniform(rng, v.UTERUS_SIZE)
    ovaries = [
        float(np.where(rng.random() < 0.2, 0.0, rng.uniform(8, 14)))
        * (2.0 if rng.random() < v.CYST_SHARE / 2 else 1)
        for _ in range(2)
    ]
    scale = patient.scale
    wide = uniform(rng, (1.02, 1.08))
    return replace(
        patient,
        **changes,  # type: ignore[arg-type]
        scale=(scale[0] * wide, scale[1], scale[2] * 0.96),
        muscle_bulk=patient.muscle_bulk * 0.96,
        fat_side_mm=patient.fat_side_mm * 1.3 + 4,
        fat_back_mm=patient.fat_back_mm * 1.2 + 3,
        lost=Lost(
            woman=True,
            uterus=0.0 if some < v.NO_UTERUS_SHARE else size,
            uterus_back=back < v.RETROVERTED_SHARE,
            uterus_aside_mm=aside,
            ovaries_mm=(ovaries[0], ovaries[1]),
        ),
    )


def part_scan(scan: Scan, seed: int, part: str, patient: Patient) -> Scan:
    """Return the scan of another part of the body: head, shoulder, chest, abdomen or legs.

    Args:
        scan: of the pelvis.
        seed: of the phantom.
        part: as `lose` draws it.
        patient: whose body it is.
    """
    rng = generator(seed, "absent", 2)
    lowest, highest = v.PART_MM[part]
    low, high = (uniform(rng, bounds) * patient.scale[2] for bounds in (lowest, highest))
    scan = on_range(scan, low, high, MOST_SLICES, wide=False)
    near, one_side, left = rng.random() < 0.7, rng.random() < 0.5, rng.random() < 0.5
    field = {"head": 250.0, "shoulder": 240.0, "legs": 220.0 if one_side else 420.0}.get(part)
    if field is None or not near:
        return scan
    centre = {"head": (0.0, -10.0), "shoulder": (130.0, 5.0), "legs": (80.0 if one_side else 0.0, 5.0)}[part]
    rows = max(scan.shape[1:])
    pixel = field / rows
    x, y = centre[0] * (1 if left else -1), centre[1]
    return replace(
        scan,
        shape=(scan.shape[0], rows, rows),
        spacing_mm=(scan.spacing_mm[0], pixel, pixel),
        start_mm=(x - (rows - 1) * pixel / 2, y - (rows - 1) * pixel / 2, scan.start_mm[2]),
    )


def reach(seed: int) -> str:
    """Draw how far the scan goes: `pelvis`, `abdomen`, `chest` or `body`."""
    at = float(generator(seed, "beyond").random())
    for name, share in v.BEYOND_SHARE.items():
        if at < share:
            return name
        at -= share
    return "pelvis"


def extend_scan(scan: Scan, seed: int, reached: str, stretch: float, gland_mm: tuple[float, float]) -> Scan:
    """Return the scan that goes on from the pelvis as far as was drawn, with thicker slices where it is long.

    Args:
        scan: of the pelvis; an end that lies in the gland stays.
        seed: of the phantom.
        reached: as `reach` draws it, not `pelvis`.
        stretch: length of the body against the template.
        gland_mm: lowest and highest z of the prostate.
    """
    rng = generator(seed, "beyond", 1)
    top, feet = uniform(rng, v.BEYOND_TOP_MM[reached]), rng.random() < 0.5
    bottom = uniform(rng, v.BEYOND_BOTTOM_MM["feet" if feet else "thighs"])
    low, high = scan.start_mm[2], scan.end_mm[2]
    if high > gland_mm[1] or low > gland_mm[0]:
        high = max(high, top * stretch)
    if reached == "body" and low < gland_mm[0]:
        low = min(low, bottom * stretch)
    return on_range(scan, low, high, v.BEYOND_SLICES[reached], wide=reached == "body")


def reach_shown(of_pelvis: Scan, extended: Scan, reached: str) -> str:
    """Return how far a scan goes in fact, after `extend_scan`.

    One that ends below or in the gland does not go on upward: it shows the pelvis alone, or goes on downward over
    the legs.

    Args:
        of_pelvis: the scan before.
        extended: the scan after.
        reached: as `reach` drew it.
    """
    slice_mm = of_pelvis.spacing_mm[0]  # less is rounding
    if extended.end_mm[2] > of_pelvis.end_mm[2] + slice_mm:
        return reached
    return "legs" if extended.start_mm[2] < of_pelvis.start_mm[2] - slice_mm else "pelvis"


def on_range(scan: Scan, low_mm: float, high_mm: float, most: int, wide: bool) -> Scan:
    """Return the scan between two heights, for a whole body with a wide field.

    Where it would have more slices than `most` they become thicker, as thin as will do. What even the thickest of
    `SLICE_MM` do not cover in so many, such as the whole of a tall man, has more of these.
    """
    thickness, row, column = scan.spacing_mm
    if (high_mm - low_mm) / thickness > most:
        thickness = min((t for t in v.SLICE_MM if (high_mm - low_mm) / t <= most), default=max(v.SLICE_MM))
    rows, columns = scan.shape[1:]
    x, y, _ = scan.start_mm
    pixel = max(column, v.WIDE_FIELD_MM / rows) if wide and rows == columns else column
    middle_x, middle_y = x + (columns - 1) * column / 2, y + (rows - 1) * row / 2
    return replace(
        scan,
        shape=(max(2, int((high_mm - low_mm) / thickness) + 1), rows, columns),
        spacing_mm=(thickness, pixel, pixel),
        start_mm=(middle_x - (columns - 1) * pixel / 2, middle_y - (rows - 1) * pixel / 2, low_mm),
    )


def draw_build(seed: int, reached: str, variety: Variety, woman: bool = False) -> Build:
    """Draw the body outside the pelvis.

    Args:
        seed: of the phantom.
        reached: how far the scan goes.
        variety: which groups are on.
        woman: whether there are breasts.
    """
    rng = generator(seed, "beyond", 2)
    beside = rng.random() < v.ARMS_BESIDE_SHARE.get(reached, 0.5)
    up = uniform(rng, (-15.0, 15.0))
    dense = uniform(rng, v.BOWEL_MEDIUM_HU)
    high = dense if variety.image and swallowed_medium(seed) else 60.0
    loops: list[tuple[tuple[Ball, ...], float, float]] = []
    radius = uniform(rng, (14.0, 24.0))
    colon = (
        ((-94, -8, 225), (-98, -4, 258 + up)),
        ((-98, -4, 258 + up), (-60, -58, 262 + up), (0, -72, 240 + up), (66, -56, 282 + up), (98, 6, 334 + up)),
        ((98, 6, 334 + up), (104, 20, 290), (98, 0, 225)),
    )
    for course in colon:
        balls = tuple((float(x), float(y), float(z), radius * uniform(rng, (0.75, 1.2))) for x, y, z in course)
        loops.append((balls, float(rng.uniform(0.1 * high, high)), float(rng.choice([0.0, 0.5, 0.8, 0.95]))))
    for _ in range(int(rng.integers(9, 15))):
        point, heading = (
            np.array([*rng.uniform((-80, -70), (80, -5)), rng.uniform(205, 280)]),
            rng.standard_normal(3),
        )
        size = uniform(rng, (9.0, 14.0))
        course_mm: list[Ball] = []
        for _ in range(5):
            course_mm.append((float(point[0]), float(point[1]), float(point[2]), size))
            heading = 0.7 * heading / np.linalg.norm(heading) + 0.6 * rng.standard_normal(3)
            point = np.clip(point + 22 * heading / np.linalg.norm(heading), (-85, -78, 200), (85, 5, 300))
        loops.append(
            (tuple(course_mm), float(rng.uniform(0.1 * high, high)), float(rng.choice([0.0, 0.0, 0.0, 0.5, 0.9])))
        )
    return Build(
        arms="beside" if beside else "above",
        liver=uniform(rng, (0.88, 1.08)),
        stomach=uniform(rng, (0.6, 1.15)),
        spleen=uniform(rng, (0.75, 1.25)),
        kidney=uniform(rng, (0.85, 1.15)),
        stomach_gas=uniform(rng, (0.0, 0.9)),
        loops=tuple(loops),
        breasts_mm=uniform(rng, (34.0, 62.0)) if woman else 0.0,
        shift_mm=up,
    )
