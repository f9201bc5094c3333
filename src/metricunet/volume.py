"""Volume: an array of voxels and where it lies in the patient. The only place that knows about axes.

Patient coordinates are DICOM's: LPS (x to the patient's left, y to the back, z to the head), in millimetres.
An array is indexed [slice, row, column]; the slice axis is the one nearest to head-foot, the row axis the one
nearest to front-back, the column axis the one nearest to left-right. A float64 affine maps that index, taken
at voxel centres, to LPS. The axes' signs are free: a feet-first series simply has another affine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from metricunet.errors import InputError, unlike_limits

FloatArray = NDArray[np.float64]
Shape = tuple[int, int, int]

#: A grid whose numbers are larger is nobody's: 1 km from the patient's origin, or as many voxels along an axis.
FARTHEST_MM, MOST_VOXELS = 1e6, 1_000_000
#: Two geometries, as of an image and its labels, are one grid if no voxel centre, that of the farthest corner
#: included, differs by more than this along an axis. It is about a tenth of the pixels of planning CT, and a third
#: of the smallest that pass for CT's (0.3 mm), so that the nearest voxel is always the one of the same index; and
#: it is twice what an error of 1e-4 in spacing or direction adds up to over 512 voxels of 1 mm.
SAME_GRID_TOLERANCE_MM = 0.1
#: The same for what is resampled where it can be: no more than the rounding of float32 headers.
ROUNDED_GRID_TOLERANCE_MM = 1e-3
#: The largest cosine between two axes that still counts as a right angle (nibabel's headers are float32).
SHEAR_TOLERANCE = 1e-3
#: Two directions are parallel if no voxel of either grid moves by more than this through their difference.
PARALLEL_TOLERANCE_MM = 1e-6
#: Below this width (in source voxels) averaging over a target voxel is plain interpolation.
NARROW_BOX = 1e-3


def voxels_of(sides_mm: Sequence[float], spacing_mm: Sequence[float]) -> Shape:
    """Return how many voxels make up the sides of a box, each rounded to the nearest whole number.

    Args:
        sides_mm: slice, row, column.
        spacing_mm: slice, row, column.
    """
    slices, rows, columns = (round(side / step) for side, step in zip(sides_mm, spacing_mm, strict=True))
    return slices, rows, columns


@dataclass(frozen=True, eq=False)
class Geometry:
    """A grid of voxels: its shape (slices, rows, columns) and the affine from index to LPS millimetres.

    Raises:
        InputError: if the affine is not finite, not invertible, or sheared beyond `SHEAR_TOLERANCE`, or if the
            grid is larger than any patient's.
    """

    shape: Shape
    affine: FloatArray

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise InputError(f"a volume needs three axes of at least one voxel each; got shape {shape}")
        if max(shape) > MOST_VOXELS:
            raise InputError(
                f"a grid of {str(max(shape))[:30]} voxels along an axis, at most {MOST_VOXELS:,} are expected: "
                "its header is damaged"
            )
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise InputError("the affine must be a 4 x 4 matrix of finite numbers")
        if not np.array_equal(affine[3], [0, 0, 0, 1]):
            raise InputError(f"the affine's last row must be 0 0 0 1; got {affine[3].tolist()}")
        if (farthest := float(np.abs(affine).max())) > FARTHEST_MM:
            raise InputError(
                f"the affine holds {farthest:.4g} mm, at most {FARTHEST_MM:,.0f} mm is expected: its header is "
                "damaged; export it again"
            )
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if (spacing <= 0).any() or abs(np.linalg.det(affine[:3, :3] / np.maximum(spacing, 1e-300))) < 1e-6:
            raise InputError("the affine is singular: its axes do not span space, so voxels have no volume")
        directions = affine[:3, :3] / spacing
        cosines = directions.T @ directions - np.eye(3)
        if (worst := float(np.abs(cosines).max())) > SHEAR_TOLERANCE:
            raise InputError(
                f"the affine is sheared: two axes meet at a cosine of {unlike_limits(worst, SHEAR_TOLERANCE)}, "
                f"at most {SHEAR_TOLERANCE} is accepted; resample the image to a rectangular grid first"
            )
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def from_parts(
        cls,
        shape: Sequence[int],
        spacing_mm: Sequence[float],
        origin_mm: Sequence[float] = (0.0, 0.0, 0.0),
        directions: ArrayLike | None = None,
    ) -> Geometry:
        """Build a geometry from its parts.

        Args:
            shape: voxels along slice, row and column.
            spacing_mm: distance of voxel centres along slice, row and column.
            origin_mm: LPS position (x, y, z) of the centre of voxel [0, 0, 0].
            directions: 3 x 3, its columns the unit LPS vectors along slice, row and column. Default: slices
                go to the head, rows to the back, columns to the left.
        """
        affine = np.eye(4)
        axes = CANONICAL_DIRECTIONS if directions is None else np.asarray(directions, dtype=np.float64)
        affine[:3, :3] = axes * np.asarray(spacing_mm, dtype=np.float64)
        affine[:3, 3] = origin_mm
        return cls((int(shape[0]), int(shape[1]), int(shape[2])), affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of voxel centres along slice, row and column."""
        s, r, c = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(s), float(r), float(c)

    @property
    def directions(self) -> FloatArray:
        """3 x 3: the columns are the unit LPS vectors along slice, row and column."""
        return np.asarray(self.affine[:3, :3] / np.asarray(self.spacing_mm), dtype=np.float64)

    @property
    def origin_mm(self) -> FloatArray:
        """LPS position (x, y, z) of the centre of voxel [0, 0, 0]."""
        return self.affine[:3, 3].copy()

    @property
    def centre_mm(self) -> FloatArray:
        """LPS position of the middle of the grid."""
        return self.to_world((np.asarray(self.shape) - 1) / 2)

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3])) / 1000)

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Length of the field along slice, row and column, outer voxel faces included."""
        s, r, c = np.asarray(self.shape) * np.asarray(self.spacing_mm)
        return float(s), float(r), float(c)

    def to_world(self, index: ArrayLike) -> FloatArray:
        """Map indices [..., 3] (slice, row, column; fractions allowed) to LPS millimetres [..., 3]."""
        points = np.asarray(index, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]
        return np.asarray(points, dtype=np.float64)

    def to_index(self, world_mm: ArrayLike) -> FloatArray:
        """Map LPS millimetres [..., 3] to fractional indices [..., 3] (slice, row, column)."""
        shifted = np.asarray(world_mm, dtype=np.float64) - self.affine[:3, 3]
        index = np.linalg.solve(self.affine[:3, :3], shifted.reshape(-1, 3).T).T
        return np.asarray(index.reshape(shifted.shape), dtype=np.float64)

    def __repr__(self) -> str:
        x, y, z = (f"{v:.1f}" for v in self.origin_mm)
        return f"Geometry({self._in_words()}, first at x {x}, y {y}, z {z} mm)"

    def _in_words(self) -> str:
        sizes = " x ".join(map(str, self.shape))
        return f"{sizes} voxels (slice, row, column) of {' x '.join(f'{s:.3g}' for s in self.spacing_mm)} mm"

    def same_grid(self, other: Geometry, tolerance_mm: float = SAME_GRID_TOLERANCE_MM) -> bool:
        """Tell whether both have one shape and no voxel centre differs by more than `tolerance_mm`."""
        return self.gap_mm(other) <= tolerance_mm

    def gap_mm(self, other: Geometry) -> float:
        """Return how far voxels of one index lie apart at most, along any axis; infinite with two shapes."""
        if self.shape != other.shape:
            return float("inf")
        corners = self._corners()  # the difference is linear in the index, so it is largest at one of them
        return float(np.abs(self.to_world(corners) - other.to_world(corners)).max())

    def crop(self, start: Sequence[int], shape: Sequence[int]) -> Geometry:
        """Return the grid of a box whose first voxel is `start`; it may reach beyond this grid."""
        affine = self.affine.copy()
        affine[:3, 3] = self.to_world(start)
        return Geometry((int(shape[0]), int(shape[1]), int(shape[2])), affine)

    def with_spacing(self, spacing_mm: Sequence[float]) -> Geometry:
        """Return the grid of another spacing that covers the same field, with the same middle and axes."""
        shape = np.maximum(1, np.ceil(np.asarray(self.extent_mm) / np.asarray(spacing_mm) - 1e-6)).astype(int)
        return self.box_around(self.centre_mm, shape.tolist(), spacing_mm)

    def box_around(self, centre_mm: ArrayLike, shape: Sequence[int], spacing_mm: Sequence[float]) -> Geometry:
        """Return a grid of this one's axis directions whose middle is the LPS point `centre_mm`."""
        affine = np.eye(4)
        affine[:3, :3] = self.directions * np.asarray(spacing_mm, dtype=np.float64)
        middle = (np.asarray(shape, dtype=np.float64) - 1) / 2
        affine[:3, 3] = np.asarray(centre_mm, dtype=np.float64) - affine[:3, :3] @ middle
        return Geometry((int(shape[0]), int(shape[1]), int(shape[2])), affine)

    def reordered(self, axes: Sequence[int], flips: Sequence[bool]) -> Geometry:
        """Return the grid of an array after `transpose(axes)` and reversing the axes marked in `flips`."""
        affine = self.affine.copy()
        affine[:3, :3] = self.affine[:3, :3][:, list(axes)]
        shape = [self.shape[a] for a in axes]
        for axis, flip in enumerate(flips):
            if flip:
                affine[:3, 3] += affine[:3, axis] * (shape[axis] - 1)
                affine[:3, axis] *= -1
        return Geometry((shape[0], shape[1], shape[2]), affine)

    def axes_to(self, other: Geometry) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
        """Return (axes, flips) that bring this grid's axes nearest to those of `other` (see `reordered`)."""
        axes, flips = match_axes(self.directions, other.directions)
        return axes, flips

    def _corners(self) -> FloatArray:
        last = np.asarray(self.shape, dtype=np.float64) - 1
        return np.stack(np.meshgrid(*[(0.0, n) for n in last], indexing="ij"), axis=-1).reshape(-1, 3)


#: Columns: slice, row, column of the canonical array, towards head, back and left.
CANONICAL_DIRECTIONS: FloatArray = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])


def match_axes(directions: FloatArray, wanted: FloatArray) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Find the permutation and the flips of axes that bring `directions` nearest to `wanted`.

    Both are 3 x 3 with unit vectors as columns. Result column k is column axes[k] of `directions`, reversed
    where flips[k].
    """
    cosines = directions.T @ wanted
    best: tuple[int, int, int] = (0, 1, 2)
    best_score = -1.0
    for axes in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        score = float(sum(abs(cosines[a, k]) for k, a in enumerate(axes)))
        if score > best_score + 1e-9:
            best, best_score = axes, score
    flips = tuple(bool(cosines[a, k] < 0) for k, a in enumerate(best))
    return best, (flips[0], flips[1], flips[2])


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels [slice, row, column] and their geometry."""

    array: NDArray[Any]
    geometry: Geometry

    def __post_init__(self) -> None:
        if self.array.shape != self.geometry.shape:
            raise InputError(f"array of shape {self.array.shape} on a grid of shape {self.geometry.shape}")

    def __repr__(self) -> str:
        return f"Volume({self.geometry._in_words()}, {self.array.dtype})"

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of voxel centres along slice, row and column."""
        return self.geometry.spacing_mm

    def with_array(self, array: NDArray[Any]) -> Volume:
        """Return other values on the same grid."""
        return Volume(array, self.geometry)

    def reordered(self, axes: Sequence[int], flips: Sequence[bool]) -> Volume:
        """Permute and reverse axes without touching a voxel's place in the patient. A view, not a copy."""
        array = self.array.transpose(tuple(axes))
        array = array[tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)]
        return Volume(array, self.geometry.reordered(axes, flips))

    def canonical(self) -> Volume:
        """Return the view whose axes run to the head, the back and the left, as nearly as they can."""
        return self.reordered(*match_axes(self.geometry.directions, CANONICAL_DIRECTIONS))

    def reordered_like(self, geometry: Geometry) -> Volume:
        """Return the view on the very grid `geometry`, undoing a permutation and flips.

        The result lies where `geometry` does, also where the two differ by less than `SAME_GRID_TOLERANCE_MM`.

        Raises:
            InputError: if the two grids are not the same voxels in another order.
        """
        view = self.reordered(*self.geometry.axes_to(geometry))
        if not view.geometry.same_grid(geometry):
            raise InputError("the two grids do not hold the same voxels, so one cannot be reordered to the other")
        return Volume(view.array, geometry)

    def crop(self, start: Sequence[int], shape: Sequence[int], fill: float = 0) -> Volume:
        """Cut the box that begins at voxel `start`. What lies outside the volume is `fill`."""
        geometry = self.geometry.crop(start, shape)
        inside, target = _overlap(start, geometry.shape, self.geometry.shape)
        if all(t.stop - t.start == n for t, n in zip(target, geometry.shape, strict=True)):
            return Volume(self.array[inside].copy(), geometry)
        array = np.full(geometry.shape, fill, dtype=self.array.dtype)
        array[target] = self.array[inside]
        return Volume(array, geometry)

    def paste(self, patch: NDArray[Any], start: Sequence[int]) -> Volume:
        """Return a copy with `patch` written at voxel `start`: the inverse of `crop`. Overhang is dropped."""
        array = self.array.copy()
        shape: Shape = (patch.shape[0], patch.shape[1], patch.shape[2])
        inside, source = _overlap(start, shape, self.geometry.shape)
        array[inside] = patch[source]
        return Volume(array, self.geometry)

    def resample(self, geometry: Geometry, fill: float = 0.0) -> Volume:
        """Read this volume on another grid. Returns float32 (float64 from float64).

        A target voxel holds the mean over its own extent of the linear interpolant (along each axis on which
        it is larger than a source voxel), or the linear interpolant at its centre (where it is not). Both
        reproduce linear ramps exactly and move nothing. Where a target centre lies outside the volume's outer
        voxel faces it holds `fill`; in the outermost half voxel the border value is continued.
        """
        axes, flips = self.geometry.axes_to(geometry)
        source = self.reordered(axes, flips)
        if _parallel(source.geometry, geometry):
            return Volume(_resample_parallel(source, geometry, fill), geometry)
        return Volume(_resample_oblique(source, geometry, fill), geometry)


def resample_labels(labels: Volume, geometry: Geometry) -> Volume:
    """Read an integer label map on another grid: the class with the largest share of each target voxel.

    Of classes with equal shares the lowest is taken. Outside the volume the class is 0. Returns the dtype of the
    input.
    """
    values = [int(v) for v in np.unique(labels.array) if v != 0]
    result = np.zeros(geometry.shape, dtype=labels.array.dtype)
    if len(values) > 1:
        best = labels.with_array(labels.array == 0).resample(geometry, fill=1.0).array
    else:  # against the background alone, the largest share is more than half
        best = np.full(geometry.shape, 0.5, dtype=np.float32)
    for value in values:
        share = labels.with_array(labels.array == value).resample(geometry).array
        better = share > best
        result[better] = value
        best = np.maximum(best, share)
    return Volume(result, geometry)


def _overlap(
    start: Sequence[int], shape: Sequence[int], field: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the slices of the part of the box that lies in the field, in the field and in the box."""
    in_field, in_box = [], []
    for s, n, total in zip(start, shape, field, strict=True):
        low, high = max(0, int(s)), min(int(total), int(s) + int(n))
        high = max(low, high)
        in_field.append(slice(low, high))
        in_box.append(slice(low - int(s), high - int(s)) if high > low else slice(0, 0))
    return tuple(in_field), tuple(in_box)


def _parallel(source: Geometry, target: Geometry) -> bool:
    turned = np.abs(source.directions - target.directions).max(axis=0)
    return bool((turned * np.maximum(source.extent_mm, target.extent_mm)).max() <= PARALLEL_TOLERANCE_MM)


def _hat_integral(u: FloatArray) -> FloatArray:
    """Integral of the hat function max(0, 1 - |t|) from -infinity to u."""
    v = np.clip(u, -1.0, 1.0)
    return np.where(v < 0, 0.5 * (v + 1) ** 2, 1 - 0.5 * (1 - v) ** 2)


def _weights(
    centres: FloatArray, box: float, length: int
) -> tuple[FloatArray, NDArray[np.bool_], tuple[int, int]]:
    """Weights [targets, sources used] of one axis.

    Args:
        centres: target voxel centres in source voxels.
        box: extent of a target voxel in source voxels; 0 for plain interpolation.
        length: number of source voxels.

    Returns:
        The weights, whether each target centre lies in the field, and the range of the sources used.
    """
    inside = (centres >= -0.5 - 1e-9) & (centres <= length - 0.5 + 1e-9)
    if not inside.any():
        return np.zeros((len(centres), 1)), inside, (0, 1)
    reach = 1 + box / 2
    first = int(np.floor(centres[inside].min() - reach))
    last = int(np.ceil(centres[inside].max() + reach))
    offsets = centres[:, None] - np.arange(first, last + 1)[None, :]
    if box > NARROW_BOX:
        spread = (_hat_integral(offsets + box / 2) - _hat_integral(offsets - box / 2)) / box
    else:
        spread = np.maximum(0.0, 1 - np.abs(offsets))
    # Continue the border values outward: what falls on a voxel outside counts for the nearest one inside.
    columns = np.clip(np.arange(first, last + 1), 0, length - 1)
    low, high = int(columns[0]), int(columns[-1]) + 1
    weights = np.zeros((len(centres), high - low))
    for share, column in zip(spread.T, columns - low, strict=True):
        weights[:, column] += share
    weights[~inside] = 0
    return weights, inside, (low, high)


def _box_widths(source: Geometry, target: Geometry) -> FloatArray:
    """Extent of a target voxel along each source axis, in source voxels; 0 where it is the smaller one."""
    reach = np.abs(source.directions.T @ target.directions) @ np.asarray(target.spacing_mm)
    ratio = reach / np.asarray(source.spacing_mm)
    return np.where(ratio > 1 + 1e-6, ratio, 0.0)


def _resample_parallel(source: Volume, target: Geometry, fill: float) -> NDArray[Any]:
    dtype = np.float64 if source.array.dtype == np.float64 else np.float32
    origin = source.geometry.to_index(target.origin_mm)
    step = np.asarray(target.spacing_mm) / np.asarray(source.spacing_mm)
    boxes = _box_widths(source.geometry, target)
    weights, inside, ranges = [], [], []
    for axis in range(3):
        centres = origin[axis] + step[axis] * np.arange(target.shape[axis])
        w, within, used = _weights(centres, float(boxes[axis]), source.array.shape[axis])
        weights.append(w.astype(dtype))
        inside.append(within)
        ranges.append(slice(*used))
    used_part = source.array[tuple(ranges)]
    # One source slice at a time, so that no float copy of a whole scan ever exists.
    plane = np.empty((used_part.shape[0], target.shape[1], target.shape[2]), dtype=dtype)
    for k in range(used_part.shape[0]):
        plane[k] = weights[1] @ used_part[k].astype(dtype) @ weights[2].T
    result = (weights[0] @ plane.reshape(len(plane), -1)).reshape(target.shape)
    outside = ~(inside[0][:, None, None] & inside[1][:, None] & inside[2])
    result[outside] = fill
    return np.asarray(result, dtype=dtype)


def _resample_oblique(source: Volume, target: Geometry, fill: float) -> NDArray[Any]:
    dtype = np.float64 if source.array.dtype == np.float64 else np.float32
    array: NDArray[Any] = source.array.astype(dtype)
    for axis, box in enumerate(_box_widths(source.geometry, target)):
        if box > 0:
            weights, _, _ = _weights(np.arange(array.shape[axis], dtype=np.float64), float(box), array.shape[axis])
            spread = weights.astype(dtype)
            array = np.moveaxis(np.matmul(np.moveaxis(array, axis, -1), spread.T), -1, axis)
    matrix = np.linalg.solve(source.geometry.affine[:3, :3], target.affine[:3, :3])
    offset = source.geometry.to_index(target.origin_mm)
    result = ndimage.affine_transform(array, matrix, offset, target.shape, order=1, mode="nearest", output=dtype)
    grid = np.meshgrid(*[np.arange(n) for n in target.shape], indexing="ij", sparse=True)
    for axis in range(3):
        centres = offset[axis] + sum(matrix[axis, k] * grid[k] for k in range(3))
        result[(centres < -0.5) | (centres > array.shape[axis] - 0.5)] = fill
    return np.asarray(result, dtype=dtype)
