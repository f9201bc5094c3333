"""The difficulty `varied`: what each group draws, its switch, and that labels still are one man's organs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from metricunet.errors import InputError
from metricunet.phantom import (
    STRUCTURES,
    Drawn,
    Variety,
    anatomy,
    draw_phantom,
    imaging,
    make_cohort,
    make_phantom,
    organs,
    skeleton,
)
from metricunet.phantom import variety as v
from metricunet.phantom.appearance import Appearance, draw_appearance
from metricunet.phantom.cohort import CohortPlan, choose
from metricunet.phantom.contours import contours
from metricunet.phantom.make import PART_OF
from metricunet.phantom.patient import Patient, draw_patient
from metricunet.phantom.scanner import Scan, draw_scan
from metricunet.phantom.shapes import Lattice
from metricunet.phantom.varied import extend_scan, lose, reach, vary_appearance, vary_patient, vary_scan
from metricunet.phantom.variety import Joints
from metricunet.volume import Volume
from tests.support.phantoms import structure_fields

SEEDS = range(8)
ALL = Variety()
PELVIS = replace(ALL, beyond=False)
NONE = Variety(**dict.fromkeys(v.GROUPS, False))
GLAND_MM = (-16.0, 18.0)
#: What each group may change in a man, his appearance and his scan.
CHANGES = {
    "floor": {"floor"},
    "base": {"base", "median_lobe_mm", "catheter"},
    "rectum": {"rectum_radius", "rectum_filling", "rectum_level", "press", "balloon", "spacer", "tissues"},
    "gland": {
        "gland_volume_ml",
        "gland_ratio",
        "gland_tilt_rad",
        "gland_taper",
        "lobes",
        "veins",
        "sources",
        "sources_mm",
    },
    "image": {
        "leg_turn_rad",
        "fat_side_mm",
        "fat_front_mm",
        "fat_back_mm",
        "prone",
        "bowel",
        "voltage_kv",
        "tissues",
        "far_muscle_hu",
        "urine_layer_hu",
        "urine_level_mm",
        "hardening_hu",
        "streak_hu",
        "stones_mm",
    }
    | {"seeds_mm", "shape", "spacing_mm", "start_mm", "noise_hu", "sharpness", "blur_mm"},
    "beyond": {"shape", "spacing_mm", "start_mm"},
    "joints": {"joints"},
    # Sources lie in the gland, wherever that is.
    "pelvis": {"scale", "floor", "hip_shift_mm", "sources_mm"},
    "tissues": {"tissues"},
}


@cache
def plain(seed: int) -> Patient:
    return draw_patient(np.random.default_rng(np.random.SeedSequence(seed).spawn(4)[0]))


@cache
def man(seed: int, variety: Variety = ALL) -> Patient:
    return vary_patient(plain(seed), variety, seed)


@cache
def shapes(seed: int) -> anatomy.Anatomy:
    """The middle of the pelvis; a large bladder's top and what lies outside are of no interest."""
    return anatomy.build(man(seed), Lattice.spanning((-80.0, -95.0, -75.0), (80.0, 100.0, 120.0), 3.0))


def appearance(seed: int, variety: Variety = ALL) -> Appearance:
    usual = draw_appearance(np.random.default_rng(seed), "varied", (0.0, 0.0, 0.0), 15.0)
    return vary_appearance(usual, man(seed, variety), variety, seed, 15.0)


def scan(seed: int, variety: Variety = ALL, reaches: bool = True) -> Scan:
    usual = draw_scan(np.random.default_rng(seed), "varied", GLAND_MM, reaches)
    usual = vary_scan(usual, seed, GLAND_MM, reaches) if variety.image else usual
    reached = reach(seed) if variety.beyond else "pelvis"
    return usual if reached == "pelvis" else extend_scan(usual, seed, reached, 1.0, GLAND_MM)


def drawn(seed: int, variety: Variety) -> dict[str, object]:
    """Everything that is drawn, by its name; numbers compare by what they print."""
    parts = man(seed, variety), appearance(seed, variety), scan(seed, variety)
    return {field.name: repr(getattr(part, field.name)) for part in parts for field in fields(part)}


def test_without_any_group_a_varied_phantom_is_the_real_one() -> None:
    bare, real = make_phantom(248, "varied", variety=NONE), make_phantom(248, "real")
    assert bare.image.array.tobytes() == real.image.array.tobytes()
    # Contours are another matter: they do not follow a group.
    same = [name for name in STRUCTURES if name != "rectum" and not name.startswith("femoral")]
    assert (choose(bare.labels, same).array == choose(real.labels, same).array).mean() > 0.9999
    assert not np.isin(real.labels.array, [STRUCTURES[name] for name in PART_OF]).any()
    np.testing.assert_array_equal(bare.image.geometry.affine, real.image.geometry.affine)
    assert real.description.items() <= (bare.description | {"difficulty": "real"}).items()
    assert bare.description["variety"] == []


@pytest.mark.parametrize(
    ("seed", "difficulty", "counts", "mean_hu"),
    [
        (3, "easy", [4501, 7417, 5881, 495, 9857, 9622, 29289, 27635, 17103, 0], -514.657),
        (8, "easy", [1108, 2378, 1874, 510, 9388, 9680, 11800, 12572, 2539, 369], -647.679),
        (21, "real", [30340, 19956, 41502, 2989, 54643, 55679, 152453, 157701, 95507, 0], -558.411),
    ],
)
def test_other_difficulties_stay_as_they_were(
    seed: int, difficulty: str, counts: list[int], mean_hu: float
) -> None:
    """The numbers are those of recipe version 2, before there was any variety."""
    made = make_phantom(seed, "easy" if difficulty == "easy" else "real")
    found = np.bincount(made.labels.array.ravel(), minlength=len(STRUCTURES) + 1)
    np.testing.assert_allclose(found[1 : len(counts) + 1], counts, rtol=1e-3, atol=2)
    assert made.image.array.mean(dtype=np.float64) == pytest.approx(mean_hu, abs=0.01)


@pytest.mark.parametrize("group", [group for group in v.GROUPS if group != "absent"])
def test_a_switch_changes_its_own_group_alone(group: str) -> None:
    changed: set[str] = set()
    for seed in range(12):
        every, without = (drawn(seed, replace(Variety(), **{group: on})) for on in (True, False))
        changed |= {name for name, value in every.items() if without[name] != value}
    assert changed
    assert changed <= CHANGES[group]


def test_the_same_seed_gives_the_same_bytes() -> None:
    first, again = (make_phantom(265, "varied") for _ in range(2))
    assert first.image.array.tobytes() == again.image.array.tobytes()
    assert first.labels.array.tobytes() == again.labels.array.tobytes()
    assert first.description == again.description
    assert first.description["variety"] == [name for name in v.GROUPS if name != "tissues"]


def test_tissues_drawn_anew_are_those_of_half_of_the_scans_each_for_itself() -> None:
    every = [
        [asdict(appearance(seed, replace(ALL, tissues=anew)).tissues) for anew in (False, True)]
        for seed in range(200)
    ]
    changed = [(usual, anew) for usual, anew in every if usual != anew]
    assert 80 < len(changed) < 120
    shifts = {
        name: np.array([anew[name] - usual[name] for usual, anew in changed])
        for name in ("fat", "muscle", "gland", "bladder_wall", "rectal_wall")
    }
    for name, shift in shifts.items():
        assert np.abs(shift).max() <= 60.001, name
        assert 20 < shift.std() < 35, name
        assert abs(shift.mean()) < 9, name
    assert np.abs(np.corrcoef(list(shifts.values())) - np.eye(5)).max() < 0.35
    assert all(0.7 <= anew["cortical"] / usual["cortical"] <= 1.3 for usual, anew in changed)
    assert not any(anew["stool"] > 150 > usual["stool"] for usual, anew in changed)


def test_glands_have_the_stated_sizes() -> None:
    men = [man(seed) for seed in range(300)]
    volumes = np.array([m.gland_volume_ml for m in men])
    assert np.median(volumes) == pytest.approx(v.VOLUME_MEDIAN_ML, rel=0.12)
    assert v.VOLUME_RANGE_ML[0] <= volumes.min() < 18
    assert 90 < volumes.max() <= v.VOLUME_RANGE_ML[1]
    depth, height = np.array([m.gland_ratio for m in men]).T
    assert v.HEIGHT_OVER_WIDTH[0] <= height.min() < 0.58
    assert 0.8 < height.max() <= v.HEIGHT_OVER_WIDTH[1]
    assert v.DEPTH_OVER_WIDTH[0] <= depth.min()
    assert depth.max() <= v.DEPTH_OVER_WIDTH[1]
    skews = [m.lobes.skew for m in men if m.lobes is not None]
    assert len(skews) == len(men)
    assert -v.SKEW <= min(skews) < -0.08
    assert 0.08 < max(skews) <= v.SKEW


def test_half_of_the_glands_are_covered_by_what_looks_like_them() -> None:
    lobes = [m.lobes for m in map(man, range(200)) if m.lobes is not None]
    close = [one for one in lobes if one.cover_hu is not None]
    assert len(close) / len(lobes) == pytest.approx(v.CLOSE_SHARE, abs=0.1)
    for low, high, drawn_ones in (
        (*v.CLOSE_COVER_MM, [one.cover_mm for one in close]),
        (*v.CLOSE_FAT, [one.fat for one in close]),
        (-2 * v.CLOSE_SD_HU, 2 * v.CLOSE_SD_HU, [one.cover_hu or 0.0 for one in close]),
    ):
        assert low <= min(drawn_ones) < low + 0.2 * (high - low)
        assert high >= max(drawn_ones) > high - 0.2 * (high - low)
    assert {one.fat for one in lobes if one.cover_hu is None} == {1.0}


def test_such_a_cover_has_the_hu_of_the_gland() -> None:
    """Within 3 mm of the gland in front of its middle, where neither floor nor organs lie."""
    seed = next(k for k in range(100, 200) if (one := man(k).lobes) is not None and one.cover_hu is not None)
    one = draw_phantom(seed, "varied", variety=replace(NONE, gland=True))
    assert one.patient.lobes is not None
    image, gland = one.image(), one.labels({"prostate": 1}).array == 1
    z, y, _ = np.argwhere(gland).mean(axis=0).astype(int)
    front = np.zeros_like(gland)
    front[z - 1 : z + 2, :y] = True
    near = ndimage.distance_transform_edt(~gland, sampling=image.spacing_mm) <= 3.0
    more = np.median(image.array[front & near & ~gland]) - np.median(image.array[front & gland])
    assert more == pytest.approx(one.patient.lobes.cover_hu, abs=5)


def test_usual_glands_are_some_32_mm_high() -> None:
    small = [
        m for m in map(man, range(60)) if m.gland_volume_ml < v.TALL_ML and m.press and m.press.flatten > 0.98
    ]
    heights = [2 * organs.gland(m).half[2] for m in small]
    assert len(heights) > 10
    assert min(heights) > 22
    assert max(heights) < 43
    assert np.mean(heights) == pytest.approx(32, abs=2.5)


def test_joints_are_as_stated() -> None:
    found = [man(seed).joints for seed in range(200)]
    for name, (low, high) in (
        ("space_mm", v.JOINT_SPACE_MM),
        ("socket_mm", v.SOCKET_MM),
        ("head", v.HEAD_SIZE[2:]),
        ("rim", v.RIM),
        ("spongy", v.SPONGY),
        ("cortex_mm", v.HIP_CORTEX_MM),
        ("neck_marrow", v.NECK_MARROW),
    ):
        values = np.array([getattr(joints, name) for joints in found])
        assert low <= values.min() < low + 0.3 * (high - low), name
        assert high - 0.3 * (high - low) < values.max() <= high, name
    real = replace(Variety(), joints=False)
    assert man(0, real).joints == Joints()


@pytest.mark.parametrize("space_mm", [2.0, 5.0])
def test_a_joint_is_as_wide_as_it_is_told(space_mm: float) -> None:
    one = replace(plain(1), joints=Joints(space_mm=space_mm, head=1.05))
    x, y, z = one.place_point(skeleton.FEMORAL_HEAD)
    lattice = Lattice.spanning((x - 40.0, y - 40.0, z - 40.0), (x + 40.0, y + 40.0, z + 40.0), 1.0)
    built = anatomy.build(one, lattice)
    away = np.sqrt(sum((grid - at) ** 2 for grid, at in zip(lattice.grids, (z, y, x), strict=True)))
    radius = 1.05 * skeleton.FEMORAL_HEAD_RADIUS_MM * one.girth
    # The socket above the ball: how near bone of the hip comes to it.
    above = np.broadcast_to(lattice.grids[0] > z + 15, away.shape)
    nearest = (away - radius)[(built.fields["hip_left"] < 0) & above].min()
    assert nearest == pytest.approx(space_mm, abs=1.2)
    assert away[(built.fields["femur_left"] < 0) & above].max() == pytest.approx(radius, abs=1.5)


def test_the_rim_of_a_head_is_as_thick_as_it_is_told() -> None:
    def dense(rim: float) -> float:
        """Share of the upper part of a head that is nearly as dense as cortical bone."""
        one = replace(plain(1), joints=Joints(rim=rim))
        x, y, z = one.place_point(skeleton.FEMORAL_HEAD)
        lattice = Lattice.spanning((x - 30.0, y - 30.0, z + 10.0), (x + 30.0, y + 30.0, z + 30.0), 1.0)
        built = anatomy.build(one, lattice)
        look = replace(appearance(1, NONE), joints=one.joints)
        hu = np.zeros(lattice.shape, dtype=np.float32)
        for shape, value in imaging.tissue_layers(built, look):
            hu = np.where(shape < 0, value, hu)
        ball = built.fields["femur_left"] < 0
        return float((hu[ball] > 0.9 * look.tissues.cortical).mean())

    thin, usual = dense(0.3), dense(1.0)
    assert 0.02 < thin < 0.5 * usual


def apex_below_femurs_mm(one: Patient) -> float:
    gland = organs.gland(one)
    top = one.place_point((0.0, *one.femoral_head[1:]))[2] + skeleton.FEMORAL_HEAD_RADIUS_MM * one.girth
    return top - (gland.centre[2] - gland.half[2])


def test_apices_lie_at_the_stated_height_below_the_femurs() -> None:
    usual = replace(Variety(), pelvis=False)
    found = [apex_below_femurs_mm(man(seed, usual)) for seed in range(60)]
    assert np.mean(found) == pytest.approx(71, abs=3)
    assert 4 < np.std(found) < 10
    assert v.APEX_RANGE_MM[0] - 0.1 <= min(found)
    assert max(found) <= v.APEX_RANGE_MM[1] + 0.1


def test_with_a_pelvis_as_high_as_in_life_apices_lie_where_they_lie_in_three_men() -> None:
    found = [apex_below_femurs_mm(man(seed)) for seed in range(60)]
    assert np.mean(found) == pytest.approx(59, abs=2)
    assert 4 < np.std(found) < 9
    # One CT, and two label maps, of which one ends at the apex.
    assert min(found) < 52
    assert max(found) > 70


def test_bones_are_as_high_as_in_life_and_stay_as_wide() -> None:
    high, usual = man(3), man(3, replace(Variety(), pelvis=False))
    assert high.scale[:2] == usual.scale[:2]
    ratios = [man(seed).scale[2] / plain(seed).scale[2] for seed in range(200)]
    assert np.mean(ratios) == pytest.approx(0.88, abs=0.02)
    assert min(ratios) >= 0.76 - 1e-9
    assert max(ratios) <= 1.0 + 1e-9
    # Top of the femoral heads to the lower end of the ischium, which is 94 and 96 mm in two men.
    built = shapes(3)
    bone = np.argwhere(np.minimum(built.fields["hip_left"], built.fields["hip_right"]) < 0)
    ischium = built.lattice.z[bone[:, 0].min()]
    top = high.place_point((0.0, *high.femoral_head[1:]))[2] + skeleton.FEMORAL_HEAD_RADIUS_MM * high.girth
    assert 88 < top - ischium < 108


def test_without_a_floor_of_its_own_the_gland_goes_with_the_bones() -> None:
    bare = replace(Variety(), floor=False)
    assert man(5, bare).floor is None
    assert man(5, bare).scale == man(5).scale


def upper_face_slope(one: Patient) -> float:
    """How much higher the gland's upper face lies in the midline for each millimetre further back."""
    where = organs.gland(one)
    (cx, cy, cz), (_, b, c) = where.centre, where.half
    lattice = Lattice.spanning((cx - 1.0, cy - b - 4, cz - 2 * c), (cx + 1.0, cy + b + 4, cz + 2 * c), 1.0)
    inside = (organs.prostate(one, lattice) < 0)[:, :, 1]
    rows = [k for k in np.flatnonzero(inside.any(axis=0)) if abs(lattice.y[k] - cy) < 0.5 * b]
    tops = [lattice.z[np.flatnonzero(inside[:, k])[-1]] for k in rows]
    return float(np.polyfit(lattice.y[rows], tops, 1)[0])


def test_the_gland_rises_to_the_back_as_in_four_men() -> None:
    men = [m for m in map(man, range(60)) if m.median_lobe_mm == 0 and m.base and m.base.neck_depth_mm < 2]
    slopes = [upper_face_slope(m) for m in men]
    assert len(slopes) > 10
    assert 0.1 < np.mean(slopes) < 0.5  # 0.14, 0.22, 0.29 and 0.63
    assert max(slopes) > 0.35


def test_necks_of_femurs_are_fatty_and_heads_are_not() -> None:
    def mean_hu(share: float) -> tuple[float, float]:
        """Mean HU in the middle of the left head and in the neck."""
        one = replace(plain(1), joints=Joints(neck_marrow=share))
        (hx, hy, hz), foot = one.femoral_head, skeleton.FEMUR_TUBES["neck"][-1][:3]
        head, end = np.array(one.place_point((hx, hy, hz))), np.array(one.place_point(foot))
        neck = head + 30 * (end - head) / np.linalg.norm(end - head)
        low, high = np.minimum(head, neck) - 12, np.maximum(head, neck) + 12
        lattice = Lattice.spanning(tuple(map(float, low)), tuple(map(float, high)), 2.0)
        look = replace(appearance(1, NONE), joints=one.joints)
        hu = np.zeros(lattice.shape, dtype=np.float32)
        for shape, values in imaging.tissue_layers(anatomy.build(one, lattice), look):
            hu = np.where(shape < 0, values, hu)
        z, y, x = lattice.grids
        near = [np.sqrt((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) < 7 for a, b, c in (head, neck)]
        return float(hu[near[0]].mean()), float(hu[near[1]].mean())

    usual, fatty = mean_hu(0.0), mean_hu(0.8)
    assert fatty[0] == pytest.approx(usual[0], rel=0.1)
    assert fatty[1] < 0.5 * usual[1]


def test_half_of_the_rectums_without_gas_look_as_their_wall() -> None:
    looks = [(appearance(seed).tissues, man(seed)) for seed in range(200)]
    apart = [abs(t.stool - t.rectal_wall) for t, m in looks if m.rectum_filling != "gas" and not m.balloon]
    assert 0.35 < np.mean(np.array(apart) <= 10.1) < 0.75


def test_rectums_go_from_empty_to_greatly_distended_and_press_the_gland() -> None:
    men = [man(seed) for seed in range(200)]
    widest = np.array([m.rectum_radius.max() for m in men])
    assert widest.min() < 10
    assert 40 < widest.max() <= v.RECTUM_RADIUS_MM["great"][1]
    assert {m.rectum_filling for m in men} == {"gas", "stool", "empty"}
    flat = np.array([m.press.flatten for m in men if m.press is not None])
    assert (flat[widest < 14] == 1).all()
    assert flat[widest > 36].mean() < 0.8
    pressed = [organs.gland(men[k]).half for k in np.argsort(flat)[:4]]
    ratios = [half[1] / half[0] for half in pressed]
    assert min(ratios) < 0.56
    assert min(ratios) >= v.LEAST_DEPTH - 1e-6


def test_scans_have_the_stated_noise_slices_and_cuts() -> None:
    scans = [scan(seed, PELVIS) for seed in range(400)]
    noise = [s.noise_hu for s in scans]
    assert v.NOISE_HU[0] <= min(noise) < 6
    assert 35 < max(noise) <= v.NOISE_HU[1]
    assert {s.spacing_mm[0] for s in scans} == set(v.SLICE_MM)
    assert min(s.blur_mm for s in scans) < 1.0
    assert max(s.blur_mm for s in scans) > 2.5
    whole = [s.start_mm[2] < GLAND_MM[0] and s.end_mm[2] > GLAND_MM[1] for s in scans]
    assert 1 - np.mean(whole) == pytest.approx(v.CUT_GLAND_SHARE, abs=0.04)
    starts = sum(s.start_mm[2] > GLAND_MM[0] for s in scans)
    assert 5 < starts < 400 - sum(whole) - 5
    aside = [s.shape[2] < s.shape[1] for s in scans]
    assert np.mean(aside) == pytest.approx(v.CUT_SIDE_SHARE, abs=0.05)
    for one in scans:
        assert one.start_mm[0] <= -v.CUT_SIDE_MM[0]
        assert one.end_mm[0] >= v.CUT_SIDE_MM[0] - one.spacing_mm[2]
        assert GLAND_MM[0] < one.end_mm[2]
        assert one.start_mm[2] < GLAND_MM[1]


def test_scans_that_miss_the_gland_show_none_of_it() -> None:
    for seed in range(100):
        one = scan(seed, PELVIS, reaches=False)
        assert one.end_mm[2] < GLAND_MM[0] or one.start_mm[2] > GLAND_MM[1]


def test_images_have_medium_stones_markers_and_turned_legs_at_times() -> None:
    looks = [appearance(seed) for seed in range(200)]
    bright = [a.urine_layer_hu > 100 or a.tissues.urine > 100 for a in looks]
    assert np.mean(bright) == pytest.approx(v.MEDIUM_SHARE, abs=0.07)
    assert any(a.urine_layer_hu > 0 for a in looks)
    assert max(len(a.stones_mm) for a in looks) > 8
    assert np.mean([bool(a.seeds_mm) for a in looks]) == pytest.approx(v.MARKERS_SHARE, abs=0.08)
    turns = np.degrees([man(seed).leg_turn_rad for seed in range(200)])
    assert v.LEG_TURN_DEG[0] <= turns.min() < -8
    assert 16 < turns.max() <= v.LEG_TURN_DEG[1]


def test_a_leg_turned_outward_brings_its_trochanter_back() -> None:
    def behind(turn: float) -> float:
        found = structure_fields(replace(plain(1), leg_turn_rad=(np.radians(turn), 0.0)), 4.0)
        index = np.argwhere(found.fields["femur_left"] < 0)
        outermost = index[index[:, 2] >= index[:, 2].max() - 2]
        return float(found.lattice.y[outermost[:, 1]].mean())

    assert behind(20.0) > behind(0.0) + 6


@pytest.mark.parametrize("seed", SEEDS)
def test_the_gland_is_one_piece_between_bladder_and_floor(seed: int) -> None:
    found = shapes(seed)
    z, y, x = (found.lattice.z, found.lattice.y, found.lattice.x)
    gland = found.fields["prostate"] < 0
    assert ndimage.label(gland)[1] == 1
    pieces = ndimage.label(found.fields["bladder"] < 0)[0]
    assert np.bincount(pieces.ravel())[1:].max() > 0.9 * (pieces > 0).sum()
    index = np.argwhere(gland)
    centre = index.mean(axis=0)
    bladder = np.argwhere(found.fields["bladder"] < 0)
    assert z[bladder[:, 0]].mean() > np.interp(centre[0], range(len(z)), z) + 8
    # Straight below the apex there is muscle, and the bladder rests upon the base.
    low = index[index[:, 0] == index[:, 0].min()].mean(axis=0).round().astype(int)
    below = (low[0] - 2, low[1], low[2])
    assert found.fields["floor"][below] < 0
    assert (found.fields["bladder"][gland]).min() < 4.0
    assert abs(x[low[2]]) < 20
    assert -40 < y[low[1]] < 40


@pytest.mark.parametrize("seed", SEEDS)
def test_no_two_varied_organs_share_a_place(seed: int) -> None:
    found = shapes(seed).fields
    solid = ("prostate", "seminal_vesicles", "bladder", "rectum", "hip_left", "hip_right", "femur_left", "sacrum")
    count = sum((found[name] < 0).astype(int) for name in solid)
    assert int(count.max()) == 1
    assert not ((found["penile_bulb"] < 0) & (found["prostate"] < 0)).any()
    for hollow, whole in (("urine", "bladder"), ("rectum_lumen", "rectum"), ("rectum_gas", "rectum_lumen")):
        assert (found[whole][found[hollow] < 0] < 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_varied_glands_are_as_large_as_they_were_meant_to_be(seed: int) -> None:
    _, _, volume = anatomy.gland_extent(man(seed))
    assert volume == pytest.approx(man(seed).gland_volume_ml, rel=0.06)


@pytest.mark.parametrize("seed", range(3))
def test_femoral_heads_are_ball_and_neck_in_one_piece(seed: int) -> None:
    found = structure_fields(man(seed), 4.0)
    drawn = contours(man(seed), found.lattice, found.fields)
    for side in ("left", "right"):
        head = drawn[f"femoral_head_{side}"] < 0
        assert np.bincount(ndimage.label(head)[0].ravel())[1:].max() > 0.99 * head.sum()
        assert (found.fields[f"femur_{side}"][head] < 0).all()
        assert 45 < head.sum() * 0.064 < 130
        extents = [4 * np.ptp(np.flatnonzero(head.any(axis=axes))) for axes in ((1, 2), (0, 2), (0, 1))]
        assert all(34 < extent < 90 for extent in extents)


def test_a_femur_labelled_without_its_head_is_whole() -> None:
    drawn = draw_phantom(265, "varied")
    alone, both = (
        drawn.labels(values) for values in ({"femur_left": 1}, {"femur_left": 1, "femoral_head_left": 2})
    )
    whole, head = alone.array == 1, both.array == 2
    assert head.any()
    assert ((both.array > 0) == whole).all()
    chosen = choose(drawn.labels(), ("femur_left",)).array == 1
    assert (chosen == whole).mean() > 0.9999
    chosen = choose(drawn.labels(), ("femoral_head_left", "femur_left")).array
    assert ((chosen == 1) == head).mean() > 0.9999
    assert ((chosen == 2) == (whole & ~head)).mean() > 0.9999


def test_the_rectum_begins_at_the_ischial_tuberosities() -> None:
    for seed in range(3):
        found = draw_phantom(seed, "varied")
        tissue, contour = found.shapes.fields["rectum"] < 0, found.shapes.labelled("rectum") < 0
        z = found.shapes.lattice.z
        hips = np.minimum(found.shapes.fields["hip_left"], found.shapes.fields["hip_right"]) < 0
        lowest = {name: z[mask.any(axis=(1, 2))][0] for name, mask in (("bone", hips), ("contour", contour))}
        assert contour[tissue].all()
        assert abs(lowest["bone"] - lowest["contour"]) < 10
        assert np.bincount(ndimage.label(contour)[0].ravel())[1:].max() > 0.99 * contour.sum()
        for other in ("prostate", "bladder", "penile_bulb"):
            assert not (contour & (found.shapes.fields[other] < 0)).any()


def test_a_cut_scan_says_so() -> None:
    # Whether a scan is cut does not depend on where the gland lies.
    scans = {seed: scan(seed) for seed in range(60) if reach(seed) == "pelvis"}
    cut = [k for k, s in scans.items() if s.start_mm[2] > GLAND_MM[0] or s.end_mm[2] < GLAND_MM[1]]
    seed = min(cut, key=lambda k: scans[k].shape[0])
    made = make_phantom(seed, "varied")
    assert made.description["gland"] == "cut"
    inside = (made.labels.array == STRUCTURES["prostate"]).any(axis=(1, 2))
    assert inside[0] or inside[-1]
    assert not inside.all()


def test_men_are_thin_obese_and_prone_as_often_as_stated() -> None:
    pairs = [(plain(seed), man(seed)) for seed in range(400)]
    times = np.array([varied.fat_front_mm / usual.fat_front_mm for usual, varied in pairs])
    assert np.mean(times < 0.61) == pytest.approx(v.THIN_SHARE, abs=0.06)
    assert 0.05 < np.mean(times > 1.01) < v.OBESE_SHARE + 0.06
    assert max(varied.fat_front_mm for _, varied in pairs) <= v.MOST_FAT_MM[1]
    assert np.mean([varied.prone for _, varied in pairs]) == pytest.approx(v.PRONE_SHARE, abs=0.03)
    voltages = [appearance(seed).voltage_kv for seed in range(200)]
    for voltage, share in v.VOLTAGE_SHARE.items():
        assert np.mean([kv == voltage for kv in voltages]) == pytest.approx(share, abs=0.12)


def test_gas_rises_to_the_back_of_a_man_who_lies_prone() -> None:
    one = replace(man(1), rectum_filling="gas", rectum_level=0.5, balloon=None, base=None)
    lattice = Lattice.spanning((-60.0, 0.0, 0.0), (60.0, 100.0, 60.0), 4.0)
    mean = {}
    for prone in (False, True):
        found = anatomy.build(replace(one, prone=prone), lattice)
        for name in ("rectum_gas", "rectum_lumen"):
            mean[name, prone] = np.argwhere(found.fields[name] < 0)[:, 1].mean()
        y = lattice.y[(found.fields["body"] < 0).any(axis=(0, 2))]
        assert prone or y.max() <= found.table_mm
    assert mean["rectum_gas", False] < mean["rectum_lumen", False]
    assert mean["rectum_gas", True] > mean["rectum_lumen", True]


def test_devices_are_as_frequent_as_stated() -> None:
    men = [man(seed) for seed in range(800)]
    for name, share in (
        ("catheter", v.CATHETER_SHARE),
        ("balloon", v.BALLOON_SHARE),
        ("spacer", v.SPACER_SHARE),
        ("sources", v.SOURCES_SHARE),
    ):
        assert np.mean([bool(getattr(one, name)) for one in men]) == pytest.approx(share, abs=0.03)
    assert all(v.SOURCES[0] <= len(one.sources) < v.SOURCES[1] for one in men if one.sources)


@cache
def with_device(name: str) -> anatomy.Anatomy:
    """The middle of the pelvis of the first man who has it."""
    return shapes(next(seed for seed in range(300) if getattr(man(seed), name)))


def test_devices_lie_where_they_belong() -> None:
    held = with_device("balloon")
    assert (held.fields["rectum"][held.fields["balloon"] < 0] < 0).all()
    assert (held.fields["balloon"] < 0).sum() * 0.027 > 15
    held = with_device("spacer")
    gel = held.fields["spacer"] < 0
    assert 3 < gel.sum() * 0.027 < 45
    for other in ("prostate", "rectum", "seminal_vesicles"):
        assert not (gel & (held.fields[other] < 0)).any()
    held = with_device("catheter")
    tube = held.fields["catheter"] < 0
    assert (tube & (held.fields["prostate"] < 0)).any()
    assert (held.fields["bladder"][held.fields["catheter_balloon"] < 0] < 0).all()


@cache
def kind(wanted: str, draw: Callable[[int], str]) -> int:
    """The first seed for which this is drawn."""
    return next(seed for seed in range(500) if draw(seed) == wanted)


def outside(seed: int, reaches: bool = True) -> tuple[Drawn, Volume, Volume]:
    """What is drawn, and its image and labels at 6 mm."""
    found = draw_phantom(seed, "varied", reaches)
    slices, rows, columns = (
        max(2, int(n * mm / 6)) for n, mm in zip(found.scan.shape, found.scan.spacing_mm, strict=True)
    )
    coarse = replace(found.scan, shape=(slices, rows, columns), spacing_mm=(6.0, 6.0, 6.0), noise_hu=5.0)
    return found, found.image(coarse), found.labels(scan=coarse)


def test_scans_go_on_as_far_and_as_often_as_stated() -> None:
    reached = [reach(seed) for seed in range(1500)]
    for name, share in v.BEYOND_SHARE.items():
        assert np.mean([r == name for r in reached]) == pytest.approx(share, abs=0.03)
    for name, slices in v.BEYOND_SLICES.items():
        seeds = [seed for seed in range(300) if reached[seed] == name]
        scans = [extend_scan(scan(seed, PELVIS), seed, name, 1.0, GLAND_MM) for seed in seeds]
        assert max(s.shape[0] for s in scans) <= slices + 1
        tops = [s.end_mm[2] for s in scans if s.end_mm[2] > 216]
        assert len(tops) > len(seeds) / 2
        assert v.BEYOND_TOP_MM[name][0] - 6 <= min(tops)
        assert max(tops) <= v.BEYOND_TOP_MM[name][1]


def test_a_tall_body_takes_more_of_the_thickest_slices() -> None:
    seeds = [seed for seed in range(300) if reach(seed) == "body"]
    scans = [extend_scan(scan(seed, PELVIS), seed, "body", 1.15, GLAND_MM) for seed in seeds]
    longer = [s for s in scans if s.shape[0] > v.BEYOND_SLICES["body"] + 1]
    assert 0 < len(longer) < len(scans)
    assert {s.spacing_mm[0] for s in longer} == {max(v.SLICE_MM)}


def test_a_scan_that_ends_below_the_gland_does_not_claim_to_go_on_upward() -> None:
    # Whether it does so does not depend on where the gland lies.
    below = {
        reach(seed): seed
        for seed in range(1500)
        if lose(seed) == "missed"
        and reach(seed) != "pelvis"
        and scan(seed, PELVIS, reaches=False).end_mm[2] < GLAND_MM[0]
    }
    assert below.keys() == v.BEYOND_SHARE.keys()
    for reached, seed in below.items():
        found = draw_phantom(seed, "varied", reaches_prostate=False)
        assert found.scan.end_mm[2] < found.gland_mm[0][2]
        assert found.description["reach"] == ("legs" if reached == "body" else "pelvis")
    above = kind("chest", reach)
    assert draw_phantom(above, "varied").description["reach"] == "chest"


def test_a_body_has_lungs_above_and_femurs_below_its_pelvis() -> None:
    whole = (
        s for s in range(500) if reach(s) == "body" and scan(s).start_mm[2] < -200 and scan(s).end_mm[2] > 700
    )
    found, image, labels = outside(next(whole))
    # In the template's heights; this body is as much lower as its pelvis is.
    z = (found.scan.start_mm[2] + 6.0 * np.arange(image.array.shape[0])) / found.patient.scale[2]
    middle = np.abs(found.scan.start_mm[0] + 6.0 * np.arange(image.array.shape[2])) < 120
    lungs = image.array[(z > 480) & (z < 540)][..., middle]
    assert 0.1 < ((lungs > -930) & (lungs < -700)).mean() < 0.5
    assert (image.array[(z > 730) & (z < 800)] > 500).any()
    for name, value in STRUCTURES.items():
        held = z[(labels.array == value).any(axis=(1, 2))]
        assert len(held)
        assert held.max() < 216
        if not name.startswith("femur"):
            assert held.min() > -150
    # From one lattice to the next femurs go on.
    femur = (labels.array == STRUCTURES["femur_left"]).sum(axis=(1, 2))
    assert (femur[(z > -195) & (z < -60)] > 4).all()


def test_the_end_slices_beyond_the_pelvis_are_whole_and_a_part_has_the_vertebrae_of_the_whole() -> None:
    found = draw_phantom(kind("chest", reach), "varied")
    # Thick slices, of which half would be air if the body ended at the middle of the last.
    rows, columns = (int(n * s / 3) for n, s in zip(found.scan.shape[1:], found.scan.spacing_mm[1:], strict=True))
    slices = int(found.scan.shape[0] * found.scan.spacing_mm[0] / 5)
    whole = replace(found.scan, shape=(slices, rows, columns), spacing_mm=(5.0, 3.0, 3.0), noise_hu=0.1)
    x, y, z = whole.start_mm
    upper = replace(whole, start_mm=(x, y, z + 5.0 * (slices - 16)), shape=(12, rows, columns))
    image, part = (found.image(one).array.astype(float) for one in (whole, upper))
    inside = slice(slices - 16, slices - 4)
    bone = image[inside] > 150
    assert bone.sum() > 1000
    assert np.mean(np.abs(part - image[inside])[bone] < 30) > 0.97
    assert np.mean(np.abs(part - image[inside])[-1] < 30) > 0.97


def test_scans_without_a_prostate_show_what_is_stated() -> None:
    kinds = [lose(seed) for seed in range(1500)]
    for name in ("woman", "prostatectomy"):
        assert np.mean([k == name for k in kinds]) == pytest.approx(v.ABSENT_SHARE[name], abs=0.04)
    assert np.mean([k in v.PART_SHARE for k in kinds]) == pytest.approx(v.ABSENT_SHARE["part"], abs=0.04)


@pytest.mark.parametrize("who", ["woman", "prostatectomy"])
def test_nothing_of_a_prostate_is_left(who: str) -> None:
    found, _, labels = outside(kind(who, lose), reaches=False)
    assert found.description["absent"] == who
    assert found.description["gland_volume_ml"] == found.description["calcifications"] == 0
    clips = found.description.get("clips")
    assert clips is None if who == "woman" else v.CLIPS[0] <= clips == len(found.appearance.stones_mm)
    held = {name for name, value in STRUCTURES.items() if (labels.array == value).any()}
    assert {"bladder", "rectum", "femoral_head_left"} <= held
    assert not held & {"prostate", *(("seminal_vesicles", "penile_bulb") if who == "woman" else ())}
    bladder = found.shapes.fields["bladder"] < 0
    assert np.bincount(ndimage.label(bladder)[0].ravel())[1:].max() > 0.95 * bladder.sum()
    solid = [
        found.shapes.fields[name] < 0
        for name in ("bladder", "rectum", "uterus", "ovaries", "hip_left", "sacrum", "seminal_vesicles")
        if name in found.shapes.fields
    ]
    assert int(np.sum(solid, axis=0).max()) == 1
    lowest = found.shapes.lattice.z[bladder.any(axis=(1, 2))][0]
    assert lowest < found.appearance.gland_mm[2] + 12


@pytest.mark.parametrize("part", v.PART_SHARE)
def test_other_parts_of_the_body_hold_nothing_of_the_pelvis(part: str) -> None:
    found, image, labels = outside(kind(part, lose), reaches=False)
    assert found.description["absent"] == found.description["reach"] == part
    allowed = {"legs": ("femur_left", "femur_right"), "abdomen": ("hip_left", "hip_right", "sacrum")}.get(part, ())
    assert {n for n, value in STRUCTURES.items() if (labels.array == value).any()} <= {*allowed}
    assert (image.array > 250).sum() > 20
    assert ((image.array > 0) & (image.array < 100)).mean() > 0.02


def test_scans_with_a_prostate_do_not_ask_who_has_none() -> None:
    every, without = (
        draw_phantom(265, "varied", variety=variety) for variety in (ALL, replace(ALL, absent=False))
    )
    assert every.labels().array.tobytes() == without.labels().array.tobytes()


def test_a_variety_is_for_varied_phantoms_alone() -> None:
    with pytest.raises(InputError, match="varied"):
        make_phantom(0, "real", variety=Variety())
    with pytest.raises(InputError, match="varied"):
        CohortPlan(1, variety=NONE)


@pytest.mark.usefixtures("quick_phantoms")
def test_a_cohort_states_its_variety_and_goes_on_with_the_same_alone(tmp_path: Path) -> None:
    few = replace(Variety(), floor=False)
    assert CohortPlan(1, difficulty="varied", variety=few).recipe["variety"] == [
        "base",
        "rectum",
        "gland",
        "image",
        "beyond",
        "absent",
        "joints",
        "pelvis",
    ]
    assert "variety" not in CohortPlan(1).recipe
    make_cohort(tmp_path / "cohort", 1, difficulty="varied", variety=few)
    with pytest.raises(InputError, match="variety"):
        make_cohort(tmp_path / "cohort", 2, difficulty="varied")
    assert make_cohort(tmp_path / "cohort", 2, difficulty="varied", variety=few) == [
        "phantom_0000",
        "phantom_0001",
    ]
