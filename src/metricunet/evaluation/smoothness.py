"""Smoothness: how much rougher a predicted mask is than the true shape, each measure with one stated definition.

P is the set of predicted voxels, R the true shape, both on one grid. A true shape changes from slice to slice and
has an outline of some length; only what a prediction has beyond that is roughness. So every measure is an excess
of P over R: 0 is as smooth as the true shape, positive rougher, negative smoother (a mask can be too smooth, too).
None of them says whether P lies in the right place; that is what `measures` is for.

**Contour length** is Crofton's: the length of a curve is half the measure of the straight lines that cross it,
each counted as often as it crosses (Santaló, Integral Geometry and Geometric Probability, 1976, I.3). The lines
are those through pixel centres in eight directions, (row, column) steps of (0, 1), (1, 0), (1, ±1), (1, ±2) and
(2, ±1); a crossing is a pair of pixels one step apart of which one is inside. With steps of length |v| in mm and
pixels of area a, lines of one direction lie a / |v| apart, so that

    length = 1/2 Σ over directions of (angle that the direction stands for) · a / |v| · (crossings),

where a direction stands for half the angle to each of its two neighbours. Lines work with pixels of any shape, and
counting voxel edges instead would make a disc 27 % too long. The outside of the scan is outside the mask.

Against the analytic circumference, square pixels of 0.8 to 1.4 mm: discs of 10 mm radius and more within 2 %, and
0.4 % on average; straight sides between -1.5 % and +1.4 %, depending on their angle (pixels of 0.8 x 1.4 mm: -3.2
and +4.8 %); each right corner comes out short by less than half a pixel. Detail near the pixel's size counts in
part: waves of 6 mm and 1 mm amplitude round a circle come out 3 to 6 % short, discs of 3 mm radius 1 to 3 %, and a
single pixel as 0.6 times the circle of its area.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metricunet.evaluation.measures import BoolArray, Definition, align, crop_to_content
from metricunet.volume import FloatArray, Volume

#: Steps (rows, columns) along the lines that cross a contour.
STEPS: tuple[tuple[int, int], ...] = ((0, 1), (1, 2), (1, 1), (2, 1), (1, 0), (2, -1), (1, -1), (1, -2))

DEFINITIONS: tuple[Definition, ...] = (
    Definition(
        "slice_change_excess_pp",
        "Excess slice-to-slice change",
        "pp",
        0.0,
        "1 - Dice of neighbouring slices, averaged over the head-foot range of the mask with their sizes as "
        "weights: Σ |M_k Δ M_k+1| / Σ (|M_k| + |M_k+1|); of M = P minus that of M = R, in percentage points. "
        "Either side of a gap changes altogether.",
    ),
    Definition(
        "contour_length_excess_percent",
        "Excess contour length",
        "%",
        0.0,
        "Length of the contours of P in all slices, over that of R, minus 1. A larger or an additional region is "
        "longer, a smaller one shorter.",
    ),
    Definition(
        "contour_roughness_excess_percent",
        "Excess contour roughness",
        "%",
        0.0,
        "Length of the contours of P in all slices, over that of circles with the area that P has in each slice; "
        "this over the same of R, minus 1. Unlike the excess contour length it does not depend on size.",
    ),
)

SMOOTHNESS_NAMES: tuple[str, ...] = tuple(definition.name for definition in DEFINITIONS)


@dataclass(frozen=True)
class Smoothness:
    """How much rougher a predicted structure is than the true shape; None where a measure has no value.

    All are None where P or R is empty. The slice-to-slice change is None, too, where P or R lies in one slice.
    """

    slice_change_excess_pp: float | None
    contour_length_excess_percent: float | None
    contour_roughness_excess_percent: float | None

    def value(self, name: str) -> float | None:
        """Return the measure with a name of `SMOOTHNESS_NAMES`."""
        found: float | None = getattr(self, name)
        return found


def measure_smoothness(prediction: Volume, reference: Volume) -> Smoothness:
    """Measure how much rougher a predicted mask is than the true shape; what is not 0 is inside.

    The masks may be stored in different axis orders and directions, as long as the voxels are the same.

    Raises:
        InputError: if the two grids do not hold the same voxels.
    """
    prediction, reference = crop_to_content(align(prediction, reference), reference)
    p, r = prediction.array != 0, reference.array != 0
    if not p.any() or not r.any():
        return Smoothness(None, None, None)
    pixel_mm = reference.spacing_mm[1:]
    length_p, length_r = (contour_lengths_mm(mask, pixel_mm) for mask in (p, r))
    circles_p, circles_r = (_circle_lengths_mm(mask, pixel_mm) for mask in (p, r))
    change_p, change_r = slice_change(p), slice_change(r)
    length_ratio = float(length_p.sum() / length_r.sum())
    size_ratio = float(circles_p.sum() / circles_r.sum())
    return Smoothness(
        slice_change_excess_pp=None if change_p is None or change_r is None else 100 * (change_p - change_r),
        contour_length_excess_percent=100 * (length_ratio - 1),
        contour_roughness_excess_percent=100 * (length_ratio / size_ratio - 1),
    )


def contour_lengths_mm(mask: BoolArray, pixel_mm: tuple[float, float]) -> FloatArray:
    """Return the length of the contours in each slice, holes and islands included, by Crofton's formula.

    Args:
        mask: [slice, row, column].
        pixel_mm: distance of pixel centres along row and column axis.

    Returns:
        [slice], 0 where a slice is empty.
    """
    reach = max(max(abs(row), abs(column)) for row, column in STEPS)
    padded = np.pad(mask, ((0, 0), (reach, reach), (reach, reach)))
    steps_mm = [(row * pixel_mm[0], column * pixel_mm[1]) for row, column in STEPS]
    # Ascending from 0 to below pi, and once round.
    angles = np.array([math.atan2(*step) % math.pi for step in steps_mm])
    shares = (np.roll(angles, -1) - np.roll(angles, 1)) % math.pi / 2
    lengths_mm = np.zeros(len(mask))
    for (row, column), step_mm, share in zip(STEPS, steps_mm, shares, strict=True):
        line_distance_mm = pixel_mm[0] * pixel_mm[1] / math.hypot(*step_mm)
        lengths_mm += share * line_distance_mm / 2 * _crossings(padded, row, column)
    return lengths_mm


def slice_change(mask: BoolArray) -> float | None:
    """Return how much of a mask changes from slice to slice, 0 to 1, as `DEFINITIONS` has it.

    Weights, because the few voxels of the tips change almost altogether, in the true shape too, and would drown
    the rest in a plain mean. Each mask in a range of its own, because over common slices a smooth but shorter mask
    would seem rough: it tapers where the other does not yet. What is left of size: slices of the same thickness
    change more in a smaller mask; ellipsoids of 10 to 40 slices by 1 to 3 percentage points if 20 % smaller.

    Args:
        mask: [slice, row, column].

    Returns:
        None with fewer than two slices in the range.
    """
    sizes = np.count_nonzero(mask, axis=(1, 2))
    used = np.flatnonzero(sizes)
    if len(used) < 2:
        return None
    # The first step of the range from nothing, and its last to nothing, are no change within the structure.
    inside = mask[used[0] : used[-1] + 1]
    common = np.count_nonzero(inside[:-1] & inside[1:])
    return 1 - 2 * int(common) / int(2 * sizes.sum() - sizes[used[0]] - sizes[used[-1]])


def _circle_lengths_mm(mask: BoolArray, pixel_mm: tuple[float, float]) -> FloatArray:
    """Return the circumference of a circle with the mask's area in each slice [slice]."""
    areas_mm2 = np.count_nonzero(mask, axis=(1, 2)) * pixel_mm[0] * pixel_mm[1]
    return np.asarray(2 * np.sqrt(math.pi * areas_mm2), dtype=np.float64)


def _crossings(padded: BoolArray, row: int, column: int) -> NDArray[np.int64]:
    """Count the pairs of pixels one step apart of which one is inside [slice]; the step's row is not negative."""
    rows, columns = padded.shape[1:]
    ahead = padded[:, row:, max(column, 0) : columns + min(column, 0)]
    behind = padded[:, : rows - row, max(-column, 0) : columns + min(-column, 0)]
    return np.asarray(np.count_nonzero(ahead != behind, axis=(1, 2)), dtype=np.int64)
