"""The grid's own arithmetic, and the measures on spheres with a known answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from metricunet.evaluation.measures import measure
from metricunet.volume import FloatArray, Geometry, Volume
from metricunet.workflows.commission.checks import VOXELS, CommissionCheck, Measurement
from metricunet.workflows.commission.subjects import Site

#: Spheres of this radius, on voxels of this side, shifted along left-right by each of these.
RADIUS_MM, VOXEL_MM = 20.0, 0.5
SHIFTS_MM = (2.0, 5.0, 10.0)
DICE_TOLERANCE = 0.002
#: Voxels' faces are steps and no sphere: a mean may be off by half a voxel, a percentile by a whole one.
ASD_TOLERANCE_MM, HD95_TOLERANCE_MM = VOXEL_MM / 2, VOXEL_MM
RAMP = np.array([3.0, -2.0, 5.0])
#: A turn of the grid that scans are read on, and its spacing.
TURN_DEGREES, COARSE_MM = 11.0, (2.0, 1.0, 1.0)


def volumes(sites: Sequence[Site]) -> Iterator[CommissionCheck]:
    """Resampling, cropping and pasting."""
    group = "Resampling and crop"
    ramps, centres, amounts, crops = [], [], [], []
    for site in sites:
        geometry = site.geometry
        grid = np.stack(np.meshgrid(*[np.arange(n) for n in geometry.shape], indexing="ij"), axis=-1)
        ramp = Volume(geometry.to_world(grid) @ RAMP, geometry)
        for name, target in (("straight", geometry.with_spacing(COARSE_MM)), ("turned", _turned(geometry))):
            ramps.append(Measurement(site.at(name), _ramp_error(ramp, target)))
        share = Volume(site.plan.share(site.plan.target), geometry)
        target = geometry.with_spacing(COARSE_MM)
        read = share.resample(target)
        place = np.stack(np.meshgrid(*[np.arange(n) for n in target.shape], indexing="ij"), axis=-1)
        centre = np.average(target.to_world(place).reshape(-1, 3), axis=0, weights=read.array.ravel())
        # What the slices sample, not the solid: its own centroid on the scan's grid is the one to keep.
        own = np.average(geometry.to_world(grid).reshape(-1, 3), axis=0, weights=share.array.ravel())
        centres.append(Measurement(site.plan.name, float(np.linalg.norm(centre - own))))
        before, after = (v.array.sum() * v.geometry.voxel_volume_ml for v in (share, read))
        amounts.append(Measurement(site.plan.name, 100 * float(after / before - 1)))
        crops.append(Measurement(site.plan.name, _crop_error(site.series.read())))
    yield CommissionCheck(group, "A linear ramp on other grids", "error", ramps, 0.001, "mm")
    yield CommissionCheck(group, "Centre of an ellipsoid at 1 x 1 x 2 mm", "moved by", centres, 0.05, "mm")
    yield CommissionCheck(group, "Its volume there", "change", amounts, 0.5, "%")
    yield CommissionCheck(group, "A crop pasted back where it was", VOXELS, crops)


def spheres(sites: Sequence[Site]) -> Iterator[CommissionCheck]:
    """Dice and surface distances of spheres that are apart by a known shift."""
    group = "Measures"
    found: dict[str, list[Measurement]] = {"dice": [], "asd": [], "hd95": []}
    first = _ball(0.0)
    for shift in SHIFTS_MM:
        result = measure(_ball(shift), first)
        dice, asd, hd95 = known_answers(RADIUS_MM, shift)
        where = f"{shift:g} mm apart"
        for name, value, known in (
            ("dice", result.dice, dice),
            ("asd", result.asd_mm, asd),
            ("hd95", result.hd95_mm, hd95),
        ):
            off = float("nan") if value is None else value - known
            found[name].append(Measurement(where, off, {"known": known}))
    yield CommissionCheck(group, "Dice of shifted spheres", "error", found["dice"], DICE_TOLERANCE)
    yield CommissionCheck(group, "ASD of shifted spheres", "error", found["asd"], ASD_TOLERANCE_MM, "mm")
    yield CommissionCheck(group, "HD95 of shifted spheres", "error", found["hd95"], HD95_TOLERANCE_MM, "mm")


def known_answers(radius_mm: float, shift_mm: float) -> tuple[float, float, float]:
    """Dice, ASD and HD95 of two spheres of one radius whose centres are less than a diameter apart.

    A lens has a closed form. Seen from the other centre, a surface point whose direction makes an angle with the
    shift of cosine u is sqrt(r² + d² - 2 r d u) away; u is evenly spread over a sphere.
    """
    ratio = shift_mm / radius_mm
    dice = 1 - 3 * ratio / 4 + ratio**3 / 16
    u = (np.arange(200_000) + 0.5) / 100_000 - 1
    distance = np.abs(np.sqrt(radius_mm**2 + shift_mm**2 - 2 * radius_mm * shift_mm * u) - radius_mm)
    return float(dice), float(distance.mean()), float(np.quantile(distance, 0.95))


def _ball(shift_mm: float) -> Volume:
    half = RADIUS_MM + 2
    counts = [
        round(2 * half / VOXEL_MM),
        round(2 * half / VOXEL_MM),
        round((2 * half + max(SHIFTS_MM)) / VOXEL_MM),
    ]
    z, y, x = (VOXEL_MM * (np.arange(n) + 0.5) - half for n in counts)
    inside: NDArray[np.bool_] = z[:, None, None] ** 2 + y[:, None] ** 2 + (x - shift_mm) ** 2 < RADIUS_MM**2
    shape = (counts[0], counts[1], counts[2])
    return Volume(inside, Geometry.from_parts(shape, (VOXEL_MM,) * 3))


def _turned(geometry: Geometry) -> Geometry:
    """A grid of another spacing, turned about all three axes within the scan."""
    angle = np.radians(TURN_DEGREES)
    c, s = np.cos(angle), np.sin(angle)
    turn = np.eye(3)
    for first, second in ((0, 1), (1, 2), (2, 0)):
        step = np.eye(3)
        step[first, first] = step[second, second] = c
        step[first, second], step[second, first] = -s, s
        turn = step @ turn
    plain = geometry.with_spacing(COARSE_MM)
    affine = plain.affine.copy()
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = geometry.centre_mm - affine[:3, :3] @ ((np.array(plain.shape) - 1) / 2)
    return Geometry(plain.shape, affine)


def _ramp_error(ramp: Volume, target: Geometry) -> float:
    """Largest error in the millimetres of the steepest axis, away from the scan's rim."""
    read = ramp.resample(target).array
    place = np.stack(np.meshgrid(*[np.arange(n) for n in target.shape], indexing="ij"), axis=-1)
    world = target.to_world(place)
    index = ramp.geometry.to_index(world)
    reach = np.abs(ramp.geometry.directions.T @ target.directions) @ np.array(target.spacing_mm)
    rim = 1 + reach / np.array(ramp.geometry.spacing_mm)
    inner = ((index >= rim) & (index <= np.array(ramp.geometry.shape) - 1 - rim)).all(axis=-1)
    if not inner.any():
        return float("nan")
    error: FloatArray = np.abs(read - world @ RAMP)[inner]
    return float(error.max() / np.abs(RAMP).max())


def _crop_error(scan: Volume) -> float:
    """Voxels that a crop, reaching beyond the scan, has elsewhere or loses on its way back."""
    start = (2, -3, 5)
    part = scan.crop(start, [n - 4 for n in scan.array.shape], fill=-3000)
    inside = part.array != -3000
    index = np.argwhere(inside)
    there = np.rint(scan.geometry.to_index(part.geometry.to_world(index))).astype(int)
    wrong = np.count_nonzero(scan.array[tuple(there.T)] != part.array[inside])
    empty = scan.with_array(np.full_like(scan.array, -3000))
    back = empty.paste(part.array, start).array
    kept = back != -3000
    return float(wrong + np.count_nonzero(back[kept] != scan.array[kept]) + abs(int(kept.sum()) - len(index)))
