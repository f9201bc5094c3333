"""Slices that do not make an even axial stack, brought onto a grid that does, each from where it truly lies.

Along the normal of the slices values are interpolated linearly between the two slices on either side of a point,
and within each slice linearly between its pixels. So a linear ramp comes out exactly, wherever slices lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from metricunet.hu import PADDING_HU
from metricunet.volume import FloatArray, Geometry


@dataclass(frozen=True, eq=False)
class GapFilling:
    """Axial slices at uneven heights, or with some missing, onto an even grid of the same rows and columns.

    Attributes:
        geometry: the even grid, from the first slice to the last.
        nodes: positions of the slices on that grid, as fractional indices of its slice axis, rising from 0.
    """

    geometry: Geometry
    nodes: FloatArray

    def onto_grid(self, array: NDArray[Any]) -> NDArray[Any]:
        """Interpolate [slices, rows, columns] onto the grid. Slices that lie on it are copied."""
        result = np.empty(self.geometry.shape, dtype=array.dtype)
        for k in range(len(result)):
            lower, weight = _between(self.nodes, float(k))
            if weight == 0:
                result[k] = array[lower]
            else:
                result[k] = _as(array.dtype, (1 - weight) * array[lower] + weight * array[lower + 1])
        return result

    def on_slices(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return for each slice the nearest of an array on the grid: [slices, rows, columns]."""
        nearest = np.clip(np.rint(self.nodes).astype(int), 0, len(array) - 1)
        return np.asarray(array[nearest])


@dataclass(frozen=True, eq=False)
class Untilting:
    """Slices that lean, or that are shifted against each other evenly, onto an axial grid that holds them all.

    Attributes:
        geometry: the axial grid.
        positions_mm: LPS position of pixel [0, 0] of each slice, rising along the normal: [slices, 3].
        rows_run: unit vector along increasing columns.
        columns_run: unit vector along increasing rows.
        pixel_spacing_mm: between rows, then between columns.
        reach_mm: how far beyond the first and last slice their values are continued: half a slice distance.
    """

    geometry: Geometry
    positions_mm: FloatArray
    rows_run: FloatArray
    columns_run: FloatArray
    pixel_spacing_mm: tuple[float, float]
    reach_mm: float

    def onto_grid(self, array: NDArray[Any]) -> NDArray[Any]:
        """Interpolate [slices, rows, columns] onto the grid; air where there is no slice."""
        normal: FloatArray = np.cross(self.rows_run, self.columns_run)
        heights = self.positions_mm @ normal
        if heights[-1] < heights[0]:
            normal, heights = -normal, -heights
        result = np.empty(self.geometry.shape, dtype=array.dtype)
        indices = np.stack(np.meshgrid(*map(np.arange, self.geometry.shape[1:]), indexing="ij"), axis=-1)
        for k in range(len(result)):
            index = np.concatenate([np.full((*indices.shape[:2], 1), float(k)), indices], axis=-1)
            points = self.geometry.to_world(index)
            height = points @ normal
            upper = np.clip(np.searchsorted(heights, height), 1, len(heights) - 1)
            gap = heights[upper] - heights[upper - 1]
            weight = np.clip((height - heights[upper - 1]) / gap, 0, 1)
            low, inside_low = self._sampled(array, upper - 1, points)
            high, inside_high = self._sampled(array, upper, points)
            plane = (1 - weight) * low + weight * high
            # A slice that does not count need not reach so far.
            inside = (inside_low | (weight == 1)) & (inside_high | (weight == 0))
            inside &= (height >= heights[0] - self.reach_mm) & (height <= heights[-1] + self.reach_mm)
            result[k] = _as(array.dtype, np.where(inside, plane, PADDING_HU))
        return result

    def _sampled(
        self, array: NDArray[Any], slices: NDArray[np.intp], points: FloatArray
    ) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Read at the foot of each point on its slice, and tell whether that lies on the slice."""
        from_corner = points - self.positions_mm[slices]
        row = from_corner @ self.columns_run / self.pixel_spacing_mm[0]
        column = from_corner @ self.rows_run / self.pixel_spacing_mm[1]
        values = ndimage.map_coordinates(
            array, [slices, row, column], output=np.float64, order=1, mode="nearest", prefilter=False
        )
        rows, columns = array.shape[1:]
        edge = 0.5 + 1e-6
        inside = (row >= -edge) & (row <= rows - 1 + edge) & (column >= -edge) & (column <= columns - 1 + edge)
        return values, inside


def _between(nodes: FloatArray, k: float) -> tuple[int, float]:
    """The slice at or below a place on the grid, and the share of the next one in it."""
    lower = int(np.clip(np.searchsorted(nodes, k, side="right") - 1, 0, len(nodes) - 1))
    if lower == len(nodes) - 1:
        return lower, 0.0
    return lower, float(np.clip((k - nodes[lower]) / (nodes[lower + 1] - nodes[lower]), 0, 1))


def _as(dtype: np.dtype[Any], values: FloatArray) -> NDArray[Any]:
    return (np.rint(values) if np.issubdtype(dtype, np.integer) else values).astype(dtype)
