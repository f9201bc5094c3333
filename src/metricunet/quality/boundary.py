"""How far the boundary of a mask is expected to be off, in millimetres, from the probability it was cut from.

Where a probability is calibrated, a voxel is wrong as often as it says: with probability p outside the mask M, and
1 - p inside. The expectation of a sum is the sum of expectations, however the errors hang together, so

    expected area on the wrong side = Σ |p - M| · pixel area,

and spread along the contour this is the mean width of the strip between the contour and the true one:

    expected error of a slice = Σ |p - M| · pixel area / length of the contour.

Along a normal of the boundary this is ∫ |p(x) - [x < 0]| dx: a profile that falls from 1 to 0 is the distribution
of where the boundary lies, and the integral the mean of its distance from the contour. For the case the same is
taken in space: the volume on the wrong side over the area of the surface, which is to the average surface distance
what a strip's width is to the distance of its edges. A slice's error is measured in the slice, so where the
surface leans it is larger than the distance in space.

With the true mask in place of p the same sums are the true error. Their ratio over the validation cases, stored in
the model, scales what is expected: see `metricunet.training.calibrate`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricunet.evaluation.smoothness import contour_lengths_mm
from metricunet.files.model import Calibration
from metricunet.quality.temperature import tempered
from metricunet.stages.classes import keep_largest_piece
from metricunet.volume import ROUNDED_GRID_TOLERANCE_MM, FloatArray, Geometry, Volume

#: What lies further than this outside the box of a mask says nothing of its boundary.
NEAR_MM = 10.0


@dataclass(frozen=True, eq=False)
class BoundaryError:
    """How far the boundary of a mask is off, expected or true.

    Attributes:
        slices_mm: mean width of the strip on the wrong side of the contour [slice]; NaN where the mask is empty.
        case_mm: volume on the wrong side over the area of the mask's surface.
    """

    slices_mm: FloatArray
    case_mm: float


@dataclass(frozen=True, eq=False)
class ClassField:
    """Probabilities of all classes on stage 2's own grid.

    Attributes:
        array: float32 [classes, slice, row, column], background included.
        geometry: of the grid.
    """

    array: NDArray[np.float32]
    geometry: Geometry

    def read_on(self, geometry: Geometry) -> NDArray[np.float32]:
        """Return them on another grid; what lies outside is background [classes, *space]."""
        if geometry.same_grid(self.geometry, ROUNDED_GRID_TOLERANCE_MM):
            return self.array
        parts = [Volume(a, self.geometry).resample(geometry, fill=float(k == 0)) for k, a in enumerate(self.array)]
        return np.stack([part.array for part in parts])


def mean_read_on(fields: Sequence[ClassField], geometry: Geometry) -> NDArray[np.float32]:
    """Return the mean over models of what they make of a grid, each where it looked [classes, *space].

    Where a model's field ends before another's it says nothing, and not that there is background. What lies
    outside all fields is background.

    Args:
        fields: what each model makes of its part of the scan; grids may differ.
        geometry: of the grid.
    """
    read = [field.read_on(geometry) for field in fields]
    looked = looked_on([field.geometry for field in fields], geometry)
    mean = np.asarray(np.mean(read, axis=0), dtype=np.float32)
    if looked is not None:
        mean[1:] *= len(fields) / looked
        mean[0] = 1 - mean[1:].sum(axis=0)
    return mean


def looked_on(grids: Sequence[Geometry], geometry: Geometry) -> NDArray[np.float32] | None:
    """Return how many of several fields each voxel of a grid lies in, at least 1; None if all lie alike."""
    if all(grid.same_grid(grids[0], ROUNDED_GRID_TOLERANCE_MM) for grid in grids[1:]):
        return None
    ones = (Volume(np.ones(grid.shape, dtype=np.float32), grid).resample(geometry).array for grid in grids)
    return np.maximum(sum(ones), np.float32(1))


@dataclass(frozen=True, eq=False)
class BoundaryConfidence:
    """What is said of the boundary of a segmented target.

    Attributes:
        probability: calibrated, of the target, on stage 2's own grid.
        case_mm: expected error of the case.
        slices: LPS z of the middle of each of the scan's slices with a mask, and its expected error in mm; from
            foot to head.
        validation_mm: smallest and largest expected error of the validation cases; None: not calibrated.
    """

    probability: Volume
    case_mm: float
    slices: tuple[tuple[float, float], ...]
    validation_mm: tuple[float, float] | None

    @property
    def high(self) -> bool:
        """Whether more error is expected than in any validation case."""
        return self.validation_mm is not None and self.case_mm > self.validation_mm[1]

    def to_json(self) -> dict[str, Any]:
        """Return the part of a case's quality.json."""
        return {
            "calibrated": self.validation_mm is not None,
            "expected_error_mm": round(self.case_mm, 2),
            "validation_mm": None if self.validation_mm is None else [round(v, 2) for v in self.validation_mm],
            "slices": [{"z_mm": round(z, 2), "expected_error_mm": round(mm, 2)} for z, mm in self.slices],
        }


def boundary_confidence(
    fields: Sequence[ClassField],
    calibrations: Sequence[Calibration | None],
    target: int,
    mask: Volume,
    scan: Geometry | None = None,
) -> BoundaryConfidence | None:
    """Return what is expected of the boundary of a target; None where it is empty.

    All is measured on the first field's grid, as it was when the calibration was fitted: read on another grid a
    probability is blurred between its voxels, and would expect more error.

    Args:
        fields: what each of the averaged models makes of the scan; grids with the axes of the mask's.
        calibrations: of the models, in their order; where one has none the result is not calibrated.
        target: class of the target.
        mask: of the target, as it was segmented, on the scan's grid or a part of it.
        scan: the grid of which the mask's is a part; None where they are one.
    """
    grid = fields[0].geometry
    temperatures = [1.0 if c is None else c.temperature for c in calibrations]
    honest = [
        ClassField(tempered(field.array, temperature), field.geometry)
        for field, temperature in zip(fields, temperatures, strict=True)
    ]
    probability = Volume(mean_read_on(honest, grid)[target], grid)
    classes = mean_read_on(fields, grid).argmax(axis=0).astype(np.uint8)
    keep_largest_piece(classes, target)
    fine = classes == target
    if not fine.any() or not mask.array.any():
        return None
    part = near(fine, grid.spacing_mm)
    error = boundary_error(probability.array[part], fine[part], grid.spacing_mm)
    fitted = [c for c in calibrations if c is not None]
    whole = len(fitted) == len(calibrations)
    scale = float(np.mean([c.mm_scale for c in fitted])) if whole else 1.0
    seen = [c.boundary_error_mm for c in fitted]
    validation = (min(low for low, _ in seen), max(high for _, high in seen)) if whole else None
    slices = [(z_mm, mm * scale) for z_mm, mm in _on_slices(error, part[0].start, grid, mask, scan)]
    return BoundaryConfidence(probability, error.case_mm * scale, tuple(slices), validation)


def _on_slices(
    error: BoundaryError, first: int, grid: Geometry, mask: Volume, scan: Geometry | None
) -> list[tuple[float, float]]:
    """Return LPS z and error of a mask's slices, read between those of stage 2; beyond them that of the last.

    In a slice that leans z is not everywhere the same. It is told for the slice's middle, where whoever looks for
    the slice finds it without knowing which part of it was segmented.
    """
    used = np.flatnonzero(~np.isnan(error.slices_mm))
    middle = mask.geometry.to_index((mask.geometry if scan is None else scan).centre_mm)
    found = []
    for k in np.flatnonzero(mask.array.any(axis=(1, 2))):
        place_mm = mask.geometry.to_world((k, middle[1], middle[2]))
        index = grid.to_index(place_mm)[0] - first
        found.append((float(place_mm[2]), float(np.interp(index, used, error.slices_mm[used]))))
    return sorted(found)


def boundary_error(
    inside: NDArray[Any], mask: NDArray[np.bool_], spacing_mm: tuple[float, float, float]
) -> BoundaryError:
    """Return how far the boundary of a mask is off.

    Args:
        inside: calibrated probability [slice, row, column]: the expected error; or the true mask: the true one.
        mask: the mask, not empty.
        spacing_mm: slice, row, column.
    """
    wrong_mm2 = np.abs(inside - mask.astype(np.float32)).sum(axis=(1, 2), dtype=np.float64)
    wrong_mm2 *= spacing_mm[1] * spacing_mm[2]
    lengths_mm = contour_lengths_mm(mask, spacing_mm[1:])
    widths_mm = np.divide(wrong_mm2, lengths_mm, out=np.full(len(mask), np.nan), where=lengths_mm > 0)
    return BoundaryError(widths_mm, float(wrong_mm2.sum() * spacing_mm[0] / surface_area_mm2(mask, spacing_mm)))


def surface_area_mm2(mask: NDArray[np.bool_], spacing_mm: tuple[float, float, float]) -> float:
    """Return the area of a mask's surface, by the lines along the three axes that cross it (Cauchy, Crofton).

    The faces of voxels across an axis are the shadows of the surface along it, and the mean shadow over all
    directions is half the area. Three directions stand for all: exact for a sphere, and for any surface that faces
    every way alike; an ellipsoid of 1 : 1.5 : 2 comes out 1 % short, one of 1 : 2.4 : 2.4 5 %, a box along the
    axes a third.

    Args:
        mask: [slice, row, column].
        spacing_mm: slice, row, column.
    """
    padded = np.pad(mask, 1)
    voxel_mm3 = math.prod(spacing_mm)
    shadows = [
        np.count_nonzero(np.diff(padded, axis=axis)) * voxel_mm3 / step for axis, step in enumerate(spacing_mm)
    ]
    return 2 / 3 * float(sum(shadows))


def near(mask: NDArray[np.bool_], spacing_mm: Sequence[float]) -> tuple[slice, slice, slice]:
    """Return the part of an array that holds a mask and `NEAR_MM` around it.

    Args:
        mask: [slice, row, column], not empty.
        spacing_mm: slice, row, column.
    """
    parts = []
    for axis, step in enumerate(spacing_mm):
        used = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = math.ceil(NEAR_MM / step)
        parts.append(slice(max(0, int(used[0]) - margin), int(used[-1]) + margin + 1))
    return parts[0], parts[1], parts[2]
