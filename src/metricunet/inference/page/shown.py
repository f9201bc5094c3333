"""Scans and masks as browsers show them: turned, cut to what matters, reduced where they are too large.

The browser's arrays run to the patient's right, front and head, the first fastest: the order in which NIfTI files
are shown. Here they are indexed [slice, row, column] with the same directions, the last fastest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metricunet.quality.prediction import Prediction
from metricunet.stages.classes import Box
from metricunet.volume import Geometry, Shape, Volume

#: A page shows the scan this far around the structures.
AROUND_MM = 30.0
HU_LIMITS = np.iinfo(np.int16)

Numbers = NDArray[np.uint8]
HuArray = NDArray[np.int16]


@dataclass(frozen=True)
class Field:
    """A box of the scan, in voxels [slice, row, column] of the browser's order."""

    start: Shape
    shape: Shape

    @property
    def slices(self) -> Box:
        """The box as slices of an array."""
        s, r, c = (slice(first, first + n) for first, n in zip(self.start, self.shape, strict=True))
        return s, r, c


@dataclass(frozen=True, eq=False)
class Excerpt:
    """What a page shows of a scan, in the browser's order.

    Attributes:
        hu: whole HU.
        numbers: of each voxel the number of its structure, which is the structure's place in the card from 1; 0
            for none.
        geometry: of both, as the page shows them.
        start: the excerpt's first voxel in the scan.
        factors: how many of the scan's voxels one of the excerpt's stands for, along each axis.
        scan_shape: of the whole scan.
    """

    hu: HuArray
    numbers: Numbers
    geometry: Geometry
    start: Shape
    scan_shape: Shape
    factors: Shape = (1, 1, 1)

    def reduced(self, factors: Shape) -> Excerpt:
        """Return the excerpt on a coarser grid.

        HU are means. A voxel belongs to a structure of which at least half of it is.

        Args:
            factors: how many voxels become one, along each axis.
        """
        hu = np.rint(_means(self.hu, factors)).astype(np.int16)
        numbers = np.zeros(hu.shape, dtype=np.uint8)
        for number in np.flatnonzero(np.bincount(self.numbers.ravel()))[1:]:
            numbers[_means(self.numbers == number, factors) >= 0.5] = number
        affine = self.geometry.affine.copy()
        affine[:3, 3] = self.geometry.to_world((np.asarray(factors) - 1) / 2)
        affine[:3, :3] *= factors
        geometry = Geometry(_three(hu.shape), affine)
        return Excerpt(hu, numbers, geometry, self.start, self.scan_shape, factors)


def excerpt_of(scan: Volume, prediction: Prediction) -> Excerpt | None:
    """Return what a page shows of a scan, as far as `AROUND_MM` around its structures; None where there are none.

    Args:
        scan: HU.
        prediction: made of it.
    """
    if prediction.labels is None or not prediction.masks:
        return None
    shown, labels = as_shown(scan), as_shown(prediction.labels)
    # The boxes of masks are counted from the feet, the front and the right.
    boxes = [mask.box for mask in prediction.masks.values()]
    low = [min(box[axis].start for box in boxes) for axis in range(3)]
    high = [max(box[axis].stop for box in boxes) for axis in range(3)]
    shape = shown.geometry.shape
    for axis in (1, 2):
        low[axis], high[axis] = shape[axis] - high[axis], shape[axis] - low[axis]
    field = around(
        (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2])), shown.geometry, AROUND_MM
    )
    table = np.zeros(max(*prediction.card.labels.values(), 0) + 1, dtype=np.uint8)
    for number, value in enumerate(prediction.card.labels.values(), start=1):
        table[value] = number
    return Excerpt(
        hu=whole_hu(shown.array[field.slices]),
        numbers=table[labels.array[field.slices]],
        geometry=shown.geometry.crop(field.start, field.shape),
        start=field.start,
        scan_shape=shape,
    )


def as_shown(volume: Volume) -> Volume:
    """Return the view whose axes run to the head, the front and the right."""
    return volume.canonical().reordered((0, 1, 2), (False, True, True))


def around(box: Box, grid: Geometry, margin_mm: float) -> Field:
    """Return the field around a box, as far as the grid goes.

    Args:
        box: in voxels of the grid.
        grid: that the field is part of.
        margin_mm: the field reaches at least so far on each side.
    """
    start, stop = [], []
    for part, step, n in zip(box, grid.spacing_mm, grid.shape, strict=True):
        margin = int(np.ceil(margin_mm / step))
        start.append(max(0, part.start - margin))
        stop.append(min(n, part.stop + margin))
    return Field(_three(start), _three([b - a for a, b in zip(start, stop, strict=True)]))


def whole_hu(array: NDArray[np.generic]) -> HuArray:
    """Return HU as whole numbers of 16 bits."""
    if array.dtype == np.int16:
        return np.ascontiguousarray(array)
    return np.asarray(np.clip(np.rint(array), HU_LIMITS.min, HU_LIMITS.max), dtype=np.int16)


def _means(array: NDArray[np.generic], factors: Shape) -> NDArray[np.float32]:
    """Return the means over blocks of voxels; what is beyond the edge is as the edge."""
    short = [(0, -n % factor) for n, factor in zip(array.shape, factors, strict=True)]
    whole = np.pad(array, short, mode="edge") if any(after for _, after in short) else array
    (s, r, c), (fs, fr, fc) = whole.shape, factors
    blocks = whole.reshape(s // fs, fs, r // fr, fr, c // fc, fc)
    return np.asarray(blocks.mean(axis=(1, 3, 5), dtype=np.float32))


def _three(values: Sequence[int]) -> Shape:
    return values[0], values[1], values[2]
