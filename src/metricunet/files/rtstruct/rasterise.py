"""Contours of a structure set onto the slices of a grid: which plane falls into which slice, and what is odd."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metricunet.errors import InputError
from metricunet.files.contours.masks import filled
from metricunet.volume import FloatArray, Geometry, Volume

#: Contours nearer to each other than this, across the slices, lie in one plane: as much as one may lie off the
#: image that it was drawn on. Of two planes in one slice only one is kept.
SAME_PLANE_MM = 0.1
#: Two contours of one plane whose outermost points lie no farther apart than this, and which differ by no more
#: than this share of their pixels, are one that occurs twice. A wall is thicker.
TWICE_PIXELS, TWICE_SHARE = 0.1, 0.005
#: Contours farther than this from the plane of their slice were not drawn on it.
OFF_PLANE_MM = 0.1
#: Where no two of three or more planes of contours are nearer than this many slices, slices were skipped in
#: drawing. (Fewer planes, or some that are neighbours, may be separate parts.)
SPARSE_RATIO = 1.5
#: Where all lie off the slices' planes, they were drawn on slices of another scan, which are thicker from here on.
THICKER_RATIO = 1.05
#: The points of one contour may spread across the slices by this many of them, or it is not planar.
SPREAD_SLICES = 0.5
#: Room for rounding at half a slice, and at a pixel.
ROUNDING_SLICES = 1e-6


@dataclass(frozen=True, eq=False)
class _Plane:
    """Contours of one height: it is a fractional slice, points are (row, column)."""

    height: float
    loops: tuple[FloatArray, ...]


def filled_contours(contours: Sequence[FloatArray], geometry: Geometry, at: str) -> tuple[Volume, tuple[str, ...]]:
    """Fill contours on a grid: uint8, 1 where a voxel's centre is inside by the even-odd rule.

    Contours are taken plane by plane, each plane goes into the slice it is nearest to, and where several planes
    fall into one slice the nearest one counts.

    Args:
        contours: [points, 3] in LPS millimetres.
        geometry: grid of the scan.
        at: beginning of each message: the file and the structure.

    Returns:
        The mask, and what was odd, a line each.

    Raises:
        InputError: contours that lie outside the scan, are not parallel to its slices or too sparse for them,
            or contain no voxel's centre.
    """
    notes: list[str] = []
    array = np.zeros(geometry.shape, dtype=np.uint8)
    planes = _planes_by_slice(contours, geometry, at, notes)
    for k, plane in planes.items():
        array[k] = _filled_plane(plane, geometry, k, at, notes)
    if not array.any():
        raise InputError(f"{at} contains no voxel's centre: it lies beside the scan or is too small for it")
    _note_cut_off(planes.values(), geometry, at, notes)
    _note_gaps(array, geometry, at, notes)
    return Volume(array, geometry), tuple(notes)


def nearest_slice(height: float, slices: int) -> int:
    """The slice that a fractional index is nearest to; of two at the same distance the lower one."""
    return int(min(max(np.ceil(height - 0.5 - ROUNDING_SLICES), 0), slices - 1))


def _planes_by_slice(
    contours: Sequence[FloatArray], geometry: Geometry, at: str, notes: list[str]
) -> dict[int, _Plane]:
    """Sort contours into slices: for each slice its nearest plane."""
    slices, spacing = geometry.shape[0], geometry.spacing_mm[0]
    planes = _planes([_placed(points, geometry, at) for points in contours], spacing)
    nearest: dict[int, _Plane] = {}
    for plane in planes:
        k = nearest_slice(plane.height, slices)
        if k not in nearest or abs(plane.height - k) < abs(nearest[k].height - k):
            nearest[k] = plane
    off = max((abs(plane.height - k) * spacing for k, plane in nearest.items()), default=0.0)
    gaps = np.diff([plane.height for plane in planes])
    if len(gaps) > 1:
        empty = max(nearest) - min(nearest) + 1 - len(nearest)
        if gaps.min() > SPARSE_RATIO or (gaps.min() > THICKER_RATIO and off > OFF_PLANE_MM and empty):
            raise InputError(
                f"{at}: its contours lie {gaps.min() * spacing:.2f} mm apart or more, the slices {spacing:.2f} "
                "mm, so slices between them would stay empty; choose the scan that it was drawn on, or "
                "interpolate the contours to every slice first"
            )
    if off > OFF_PLANE_MM:
        notes.append(
            f"{at}: contours lie up to {off:.2f} mm off the slices' planes; each went to its nearest slice"
        )
    if len(planes) > len(nearest):
        notes.append(
            f"{at}: {len(planes)} planes of contours fall into {len(nearest)} slices; the nearest to each counts"
        )
    return nearest


def _placed(points: FloatArray, geometry: Geometry, at: str) -> FloatArray:
    """Return a contour's fractional indices (slice, row, column).

    Raises:
        InputError: if it does not lie in a slice.
    """
    spacing, slices = geometry.spacing_mm[0], geometry.shape[0]
    index = geometry.to_index(points)
    height = float(index[:, 0].mean())
    off = float(np.abs(index[:, 0] - nearest_slice(height, slices)).max())
    spread = float(np.ptp(index[:, 0]))
    z = float(points[:, 2].mean())
    if spread > SPREAD_SLICES + ROUNDING_SLICES:
        raise InputError(
            f"{at}: a contour at z = {z:.2f} mm is not in the plane of a slice: its points spread over "
            f"{spread * spacing:.2f} mm across the slices; export axial contours"
        )
    if off > 0.5 + 2 * ROUNDING_SLICES:
        raise InputError(
            f"{at}: a contour at z = {z:.2f} mm lies up to {off * spacing:.2f} mm from the nearest slice "
            f"of the scan, at most half a slice, {spacing / 2:.2f} mm, is accepted; choose the scan it was "
            "drawn on"
        )
    return index


def _planes(placed: list[FloatArray], spacing_mm: float) -> list[_Plane]:
    placed.sort(key=lambda index: float(index[:, 0].mean()))
    planes: list[_Plane] = []
    for index in placed:
        height, loop = float(index[:, 0].mean()), index[:, 1:]
        if planes and (height - planes[-1].height) * spacing_mm <= SAME_PLANE_MM:
            planes[-1] = _Plane(planes[-1].height, (*planes[-1].loops, loop))
        else:
            planes.append(_Plane(height, (loop,)))
    return planes


def _filled_plane(plane: _Plane, geometry: Geometry, k: int, at: str, notes: list[str]) -> NDArray[np.bool_]:
    shape = geometry.shape[1:]
    z = float(geometry.to_world([k, 0, 0])[2])
    loops = list({_key(loop): loop for loop in plane.loops}.values())
    masks = [filled([loop], shape) for loop in loops] if len(loops) > 1 else []
    kept = _once_each(loops, masks) if masks else [0]
    if len(kept) < len(plane.loops):
        # Filled twice by the even-odd rule it would vanish.
        notes.append(f"{at}: a contour at z = {z:.2f} mm occurs twice; it counts once")
    if masks and _overlap_partly([masks[n] for n in kept]):
        notes.append(
            f"{at}: contours at z = {z:.2f} mm cross each other; where two overlap is outside (even-odd rule)"
        )
    return filled([loops[n] for n in kept], shape)


def _key(loop: FloatArray) -> bytes:
    """The same for two contours of the same points, wherever they begin and whichever way they run."""
    points = np.round(loop, 4)
    return bytes(points[np.lexsort((points[:, 1], points[:, 0]))].tobytes())


def _once_each(loops: Sequence[FloatArray], masks: Sequence[NDArray[np.bool_]]) -> list[int]:
    """Return the numbers of the contours but for those that are an earlier one with other points.

    Programs write a contour a second time with one more point on an edge, or with other decimals.
    """
    ends = np.array([[*loop.min(axis=0), *loop.max(axis=0)] for loop in loops])
    kept: list[int] = []
    for n, mask in enumerate(masks):
        near = np.flatnonzero(np.abs(ends[np.array(kept, dtype=np.intp)] - ends[n]).max(axis=1) <= TWICE_PIXELS)
        most = TWICE_SHARE * np.count_nonzero(mask)
        if not most or not any(np.count_nonzero(masks[kept[k]] != mask) <= most for k in near):
            kept.append(n)
    return kept


def _overlap_partly(masks: list[NDArray[np.bool_]]) -> bool:
    """Tell whether two areas overlap without one lying in the other."""
    boxes = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        boxes.append((rows[0], rows[-1], columns[0], columns[-1]) if len(rows) else None)
    for n, (first, box) in enumerate(zip(masks, boxes, strict=True)):
        for second, other in zip(masks[:n], boxes[:n], strict=True):
            if box is None or other is None:
                continue
            top, bottom = max(box[0], other[0]), min(box[1], other[1])
            left, right = max(box[2], other[2]), min(box[3], other[3])
            if top > bottom or left > right:
                continue
            window = slice(top, bottom + 1), slice(left, right + 1)
            both = int(np.count_nonzero(first[window] & second[window]))
            if both and both < min(np.count_nonzero(first), np.count_nonzero(second)):
                return True
    return False


def _note_cut_off(planes: Iterable[_Plane], geometry: Geometry, at: str, notes: list[str]) -> None:
    """Say so where contours leave the slices, as those that were drawn on a scan with a larger field do."""
    last, spacing = np.array(geometry.shape[1:]) - 1, np.array(geometry.spacing_mm[1:])
    ends = [np.maximum(-loop.min(axis=0), loop.max(axis=0) - last) for plane in planes for loop in plane.loops]
    beyond: FloatArray = np.max(ends, axis=0)  # of the outermost pixels' centres
    if beyond.max() > 1 + ROUNDING_SLICES:  # there may be a centre of a pixel that the scan lacks
        far_mm = float(((beyond - 0.5) * spacing).max())
        notes.append(
            f"{at}: contours reach up to {far_mm:.2f} mm beyond the slices' edges; what lies there is cut off"
        )


def _note_gaps(array: NDArray[np.uint8], geometry: Geometry, at: str, notes: list[str]) -> None:
    used = np.flatnonzero(array.any(axis=(1, 2)))
    empty = sorted(set(range(int(used[0]), int(used[-1]))) - set(used.tolist()))
    if empty:
        z = float(geometry.to_world([empty[0], 0, 0])[2])
        notes.append(
            f"{at}: {len(empty)} of the slices between its ends hold nothing of it, the first at z = {z:.2f} mm"
        )
