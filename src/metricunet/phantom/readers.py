"""Clinicians' disagreement: the prostate as one of several readers would have contoured it.

A reader's contour is the true surface moved along its normal by a smooth random distance. Five things add up,
each a smooth function of position alone, so that a contour does not change with the scan's pixels:

- a habit of the reader, the same in every case: one draws generously, the next tightly, and each has ways of his
  own at the apex and at the base;
- a size error of this case;
- an error that varies over the surface, alike over 10 to 15 mm;
- an error that varies from slice to slice, since contours are drawn slice by slice;
- the choice of the lowest and the highest slice, on which real readers differ most.

Within a slice the hand is smooth: small dents of the true outline are lost. Nobody draws into what any scan shows
plainly: bone, urine, the rectum's content. The strengths are our choice, set so that two readers reach a Dice of
about 0.89, as clinicians do on one planning CT (0.85 to 0.92).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metricunet.phantom import organs
from metricunet.phantom.anatomy import Anatomy
from metricunet.phantom.patient import Patient
from metricunet.phantom.shapes import Field, Lattice, Waves, without

#: All lengths below hold for a gland of this volume, and grow with this power of the volume: somewhat slower than
#: the gland itself, so that large glands are agreed on a little better, as in life.
USUAL_GLAND_ML = 35.0
GROWTH = 1 / 4
#: Standard deviations of the outward displacement over the surface, from slice to slice, and of the whole case.
SURFACE_SD_MM = 0.9
SLICE_SD_MM = 0.65
SIZE_SD_MM = 0.15
#: Wavelengths of the error over the surface: points about 12 mm apart still err half alike.
SURFACE_WAVES_MM = (26.0, 52.0)
#: Wavelengths of the slicewise error, along the body and within the slice.
SLICE_WAVES_MM = (9.0, 16.0)
SLICE_WAVES_ACROSS_MM = (35.0, 70.0)
#: Standard deviation of where the apex and the base are put, along the body; and the most that it comes to.
END_SD_MM = 1.3
END_MOST_MM = 4.0
#: A reader's habits: the least and the most of the size, and the standard deviation of each end.
HABIT_SIZE_MM = (0.1, 0.3)
HABIT_END_SD_MM = 0.6
#: The hand does not follow dents smaller than about this within a slice.
HAND_MM = 2.5
#: How near a contour comes to bone, urine and the rectum's content.
KEEP_OFF_MM = 0.3
#: Marks the stream of random numbers of all readers' habits.
HABIT_STREAM = 0x7EADE5


@dataclass(frozen=True)
class Habit:
    """What one reader does in every case: outward displacement, and shift of apex and base along z, in mm."""

    size_mm: float
    apex_mm: float
    base_mm: float


@dataclass(frozen=True, eq=False)
class Reading:
    """How one reader contours one case.

    Attributes:
        size_mm: outward displacement of the whole surface.
        apex_mm, base_mm: shift of the gland's lower and upper end towards the head.
        surface: smooth field over the surface, of standard deviation 1.
        slicewise: field that changes from slice to slice, of standard deviation 1.
    """

    size_mm: float
    apex_mm: float
    base_mm: float
    surface: Waves
    slicewise: Waves


def habit(reader: int) -> Habit:
    """Return the habits of a reader, 1 or higher. Odd ones draw generously, even ones tightly."""
    rng = np.random.default_rng(np.random.SeedSequence((HABIT_STREAM, reader)))
    sign = 1.0 if reader % 2 else -1.0
    apex, base = HABIT_END_SD_MM * np.clip(rng.standard_normal(2), -1.5, 1.5)
    return Habit(sign * float(rng.uniform(*HABIT_SIZE_MM)), float(apex), float(base))


def draw_reading(case_seed: int, reader: int) -> Reading:
    """Draw how a reader contours a case. The same two numbers give the same contour, in any cohort."""
    rng = np.random.default_rng(np.random.SeedSequence(case_seed, spawn_key=(4, reader)))
    usual = habit(reader)
    size, apex, base = np.clip(rng.standard_normal(3), -2.2, 2.2)
    return Reading(
        size_mm=usual.size_mm + SIZE_SD_MM * float(size),
        apex_mm=usual.apex_mm + END_SD_MM * float(apex),
        base_mm=usual.base_mm + END_SD_MM * float(base),
        surface=Waves.draw(rng, SURFACE_WAVES_MM, 16),
        slicewise=_slicewise(rng),
    )


def contour(shapes: Anatomy, patient: Patient, reading: Reading) -> Field:
    """Return the distance to the prostate's surface as a reader contours it, on the anatomy's lattice."""
    from scipy import ndimage

    where = organs.gland(patient)
    grown = (patient.gland_volume_ml / USUAL_GLAND_ML) ** GROWTH
    (x, y, z), (rx, ry, rz) = where.centre, where.half
    lattice = shapes.lattice
    low = (x - 1.35 * rx - 12, y - 1.35 * ry - 12, z - 1.35 * rz - 16)
    box = lattice.box(low, (2 * x - low[0], 2 * y - low[1], 2 * z - low[2]))
    part = lattice.part(box)
    field = lattice.empty()
    if 0 in part.shape:
        return field
    truth = shapes.fields["prostate"][box]
    hand = HAND_MM / lattice.spacing_mm
    smooth = ndimage.gaussian_filter(truth, (0.0, hand, hand), mode="nearest")
    # Smoothing pulls a convex outline in by some 0.15 mm, which offsets what random displacement adds to a volume.
    ends = _end_shift(part, z, rz, grown * reading.apex_mm, grown * reading.base_mm)
    moved = _shifted(smooth, part, ends)
    outward = reading.size_mm + SURFACE_SD_MM * reading.surface.on(part) + SLICE_SD_MM * reading.slicewise.on(part)
    moved -= np.asarray(grown * outward, dtype=np.float32)
    plain = [shapes.fields[name][box] for name in ("urine", "rectum_lumen", "hip_left", "hip_right", "sacrum")]
    field[box] = without(moved, np.minimum.reduce(plain), KEEP_OFF_MM)
    return field


def _slicewise(rng: np.random.Generator) -> Waves:
    """Waves that are short along the body and long within the slice."""
    count = 14
    along = 2 * np.pi / rng.uniform(*SLICE_WAVES_MM, count) * rng.choice([-1.0, 1.0], count)
    across = 2 * np.pi / rng.uniform(*SLICE_WAVES_ACROSS_MM, count)
    angle = rng.uniform(0, 2 * np.pi, count)
    vectors = np.stack([across * np.cos(angle), across * np.sin(angle), along], axis=1)
    return Waves(vectors, rng.uniform(0, 2 * np.pi, count))


def _end_shift(part: Lattice, centre_mm: float, half_mm: float, apex_mm: float, base_mm: float) -> Field:
    """How far each height's section moves towards the head: all at an end, nothing in the middle of the gland."""
    most = min(END_MOST_MM, 0.45 * half_mm)
    apex, base = (float(np.clip(v, -most, most)) for v in (apex_mm, base_mm))
    place = np.clip((part.z - np.float32(centre_mm)) / np.float32(half_mm), -1, 1)
    share = place * place * (3 - 2 * np.abs(place))
    return np.asarray(share * np.where(place < 0, apex, base), dtype=np.float32)


def _shifted(field: Field, part: Lattice, shift_mm: Field) -> Field:
    """Move each height's section by its shift, interpolating between the planes."""
    place = np.clip((part.z - shift_mm - part.z[0]) / part.spacing_mm, 0, len(part.z) - 1.001)
    index: NDArray[np.int64] = place.astype(np.int64)
    share = (place - index).astype(np.float32)[:, None, None]
    above = np.minimum(index + 1, len(part.z) - 1)
    return np.asarray(field[index] * (1 - share) + field[above] * share, dtype=np.float32)
