"""From a mask, or the probability behind it, to the contours of a structure set: points in LPS millimetres."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from metricunet.errors import InputError
from metricunet.files.contours.holes import with_keyholes, without_holes
from metricunet.files.contours.masks import outlines
from metricunet.files.contours.smooth import cross, signed_area, smoothed, without_idle_points
from metricunet.files.contours.surface import LEVEL, level_outlines
from metricunet.files.dicom.codes import Code
from metricunet.files.dicom.series import CtSeries
from metricunet.volume import (
    ROUNDED_GRID_TOLERANCE_MM,
    SAME_GRID_TOLERANCE_MM,
    FloatArray,
    Geometry,
    Shape,
    Volume,
)

Outline = Literal["surface", "voxel"]
Holes = Literal["keep", "keyhole", "close"]

#: Smoothing may be allowed to move an outline by this much and no more.
LARGEST_SMOOTHING_MM = 0.5
#: A point of a sub-voxel outline is left out where the outline moves by less than this share of a pixel: far
#: less than the distance that outlines keep from pixels' centres, so no voxel changes sides.
IDLE_PIXELS = 1e-3
#: A point of a smoothed outline is left out where the outline moves by less than this.
IDLE_MM = 0.01
#: A probability may overshoot 0 and 1 by rounding.
PROBABILITY_ROUNDING = 1e-3


@dataclass(frozen=True, eq=False)
class Structure:
    """A region to be written.

    Attributes:
        name: its name, of at most 64 characters.
        mask: nonzero is inside, on the scan's own grid, or on a part of it beyond which nothing is inside. It
            decides which voxels belong to the structure.
        colour: red, green, blue from 0 to 255.
        interpreted_type: ORGAN, CTV, AVOIDANCE or the like (RTROIInterpretedType).
        description: goes into ROIDescription.
        probability: 0 to 1 on the same grid, or on a part of it beyond which it is 0; the mask is where it exceeds
            one half, but for what was removed or filled afterwards. With it outlines can run between voxels'
            centres (outline "surface"). Of several classes give p / (p + the largest other), which is one half
            on the border between the two.
        code: what it is, for programs; by default what SNOMED CT calls a structure of its name.
        generation: how it came about (ROIGenerationAlgorithm): AUTOMATIC, SEMIAUTOMATIC or MANUAL; empty where
            nobody knows, and nothing is said then.
    """

    name: str
    mask: Volume
    colour: tuple[int, int, int] = (255, 0, 0)
    interpreted_type: str = "ORGAN"
    description: str = ""
    probability: Volume | None = None
    code: Code | None = None
    generation: str = "AUTOMATIC"

    @property
    def automatic(self) -> bool:
        """Whether a program drew it."""
        return self.generation == "AUTOMATIC"

    @property
    def text(self) -> str:
        """All that its author has said of it, which the character set of a file must hold."""
        code = "" if self.code is None else f"{self.code.value}{self.code.scheme}{self.code.meaning}"
        return f"{self.name}{self.description}{code}"

    def lies_on(self, grid: Geometry) -> bool:
        """Tell whether the mask is on a grid, or on a part of it."""
        return self._start(grid) is not None

    def inside(self, grid: Geometry) -> NDArray[np.bool_]:
        """Return the mask on the whole of a grid that it lies on: bool [slice, row, column]."""
        if self.mask.array.shape == grid.shape:
            return np.asarray(self.mask.array != 0)
        start = self._start(grid)
        assert start is not None  # `lies_on` was asked before
        whole = np.zeros(grid.shape, dtype=bool)
        whole[_box(start, self.mask.array.shape)] = self.mask.array != 0
        return whole

    def _start(self, grid: Geometry) -> Shape | None:
        return _first_voxel(self.mask.geometry, grid, SAME_GRID_TOLERANCE_MM)


@dataclass(frozen=True)
class WrittenStructure:
    """What was written of a structure.

    Attributes:
        name: its name, as it stands in the file.
        number: ROINumber.
        outline: how the outlines were drawn: "voxel" too where there was no probability to draw a surface of.
        slices: number of slices on which there are contours.
        contours: number of contours.
        points: number of points of all contours.
        volume_ml: volume of the contours: their areas times the thickness that each slice stands for.
        mask_volume_ml: volume of the mask's voxels.
        smoothing_change_ml: change of the volume by smoothing; 0 where there was none.
        holes_closed: number of holes that became part of the area.
    """

    name: str
    number: int
    outline: Outline
    slices: int
    contours: int
    points: int
    volume_ml: float
    mask_volume_ml: float
    smoothing_change_ml: float
    holes_closed: int


@dataclass(frozen=True)
class Style:
    """How contours are drawn.

    Raises:
        InputError: an outline or a way with holes that there is not, or smoothing beyond `LARGEST_SMOOTHING_MM`.
    """

    outline: Outline = "surface"
    holes: Holes = "keep"
    smoothing_mm: float = 0.0

    def __post_init__(self) -> None:
        for field, value, known in (
            ("outline", self.outline, get_args(Outline)),
            ("holes", self.holes, get_args(Holes)),
        ):
            if value not in known:
                raise InputError(f"{field} is '{value}', expected one of {', '.join(known)}")
        if not 0 <= self.smoothing_mm <= LARGEST_SMOOTHING_MM:
            raise InputError(
                f"smoothing_mm is {self.smoothing_mm:g}, expected 0 (none) to {LARGEST_SMOOTHING_MM:g}: "
                "the furthest that an outline may move"
            )


@dataclass(frozen=True, eq=False)
class Drawing:
    """The contours of a structure: (slice, [points, 3] in LPS millimetres), and how they came about."""

    contours: tuple[tuple[int, FloatArray], ...]
    outline: Outline
    volume_ml: float
    smoothing_change_ml: float
    holes_closed: int

    @property
    def remarks(self) -> str:
        """What the structure set's reader ought to know, in sentences; empty where the drawing is plain."""
        words = []
        if self.smoothing_change_ml:
            before = self.volume_ml - self.smoothing_change_ml
            change = 100 * self.smoothing_change_ml / before if before else 0.0
            words.append(f"Outline smoothed, volume changed by {change:+.2f} %.")
        if self.holes_closed:
            words.append(f"Holes closed: {self.holes_closed}.")
        return " ".join(words)


def check_probability(structure: Structure, series: CtSeries, at: str) -> None:
    """Refuse a probability that is none, or not that of the mask.

    Raises:
        InputError: another grid, a part that does not hold the mask, values beyond 0 to 1, or most of the mask
            below one half.
    """
    field = structure.probability
    if field is None:
        return
    # A mask's grid counts with its tolerance; outlines run between voxels, so their field must lie more exactly.
    start = _first_voxel(field.geometry, series.geometry, ROUNDED_GRID_TOLERANCE_MM)
    if start is None:
        raise InputError(f"{at}: its probability is not on the grid of series {series.series_uid}")
    low, high = float(field.array.min()), float(field.array.max())
    if not (low >= -PROBABILITY_ROUNDING and high <= 1 + PROBABILITY_ROUNDING):
        raise InputError(f"{at}: its probability runs from {low:g} to {high:g}, expected 0 to 1")
    mask = structure.inside(series.geometry)[_box(start, field.array.shape)]
    if np.count_nonzero(mask) != np.count_nonzero(structure.mask.array):
        raise InputError(f"{at}: its probability covers a part of its mask alone; give that of all of it")
    inside = field.array[mask]
    if (inside < LEVEL).mean() > 0.5:
        raise InputError(
            f"{at}: its probability is below {LEVEL:g} in most of its mask; give the one that it was made from"
        )


def _first_voxel(part: Geometry, whole: Geometry, tolerance_mm: float) -> Shape | None:
    """Return where a part of a grid begins; None for what is no part of it."""
    s, r, c = (int(v) for v in np.rint(whole.to_index(part.origin_mm)))
    inside = all(
        first >= 0 and first + n <= total
        for first, n, total in zip((s, r, c), part.shape, whole.shape, strict=True)
    )
    same = inside and part.same_grid(whole.crop((s, r, c), part.shape), tolerance_mm)
    return (s, r, c) if same else None


def _box(start: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(first, first + n) for first, n in zip(start, shape, strict=True))


def _planes(field: Volume, series: CtSeries) -> Callable[[int], NDArray[np.float32]]:
    """Return what gives the probability on the whole of a slice, by the slice's number in the series."""
    start = _first_voxel(field.geometry, series.geometry, ROUNDED_GRID_TOLERANCE_MM)
    assert start is not None  # `check_probability` has seen to it
    grid_slice = series.on_slices(np.arange(series.geometry.shape[0]))

    def plane(k: int) -> NDArray[np.float32]:
        whole_plane = np.zeros(series.geometry.shape[1:], dtype=np.float32)
        whole_plane[_box(start[1:], field.array.shape[1:])] = field.array[grid_slice[k] - start[0]]
        return whole_plane

    return plane


def drawn(structure: Structure, series: CtSeries, style: Style) -> Drawing:
    """Draw a structure slice by slice, each in the very plane that the slice's file states."""
    field = structure.probability if style.outline == "surface" else None
    plane_of = None if field is None else _planes(field, series)
    inside = series.on_slices(structure.inside(series.geometry))
    spacing = np.asarray(series.geometry.spacing_mm[1:])
    pixels_ml = series.thickness_mm * spacing.prod() / 1000
    contours: list[tuple[int, FloatArray]] = []
    volume_ml = smoothing_change_ml = 0.0
    closed = 0
    for k in np.flatnonzero(inside.any(axis=(1, 2))).tolist():
        loops = _loops(inside[k], None if plane_of is None else plane_of(k))
        if style.smoothing_mm > 0:
            before = _area(loops)
            loops = _smoothed(loops, spacing, style.smoothing_mm)
            smoothing_change_ml += (_area(loops) - before) * pixels_ml[k]
        if style.holes == "close":
            holes = sum(signed_area(loop) < 0 for loop in loops)
            if holes:
                loops = without_holes(loops)
                closed += holes
        volume_ml += _area(loops) * pixels_ml[k]
        if style.holes == "keyhole" and any(signed_area(loop) < 0 for loop in loops):
            loops = with_keyholes(loops)
        for loop in loops:
            contours.append((k, series.positions_mm[k] + loop @ series.geometry.affine[:3, 1:3].T))
    return Drawing(
        contours=tuple(contours),
        outline="voxel" if field is None else "surface",
        volume_ml=volume_ml,
        smoothing_change_ml=smoothing_change_ml,
        holes_closed=closed,
    )


def written(structure: Structure, number: int, drawing: Drawing) -> WrittenStructure:
    """Summarise what was written."""
    return WrittenStructure(
        name=structure.name.strip(),
        number=number,
        outline=drawing.outline,
        slices=len({k for k, _ in drawing.contours}),
        contours=len(drawing.contours),
        points=sum(len(points) for _, points in drawing.contours),
        volume_ml=drawing.volume_ml,
        mask_volume_ml=float(np.count_nonzero(structure.mask.array) * structure.mask.geometry.voxel_volume_ml),
        smoothing_change_ml=drawing.smoothing_change_ml,
        holes_closed=drawing.holes_closed,
    )


def _loops(inside: NDArray[np.bool_], field: NDArray[np.floating] | None) -> list[FloatArray]:
    """Outlines of one slice in pixels; along pixels' edges without a field, else where it is one half."""
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    # The pixels around the region tell where between centres its outline runs.
    top, left = max(0, int(rows[0]) - 1), max(0, int(columns[0]) - 1)
    box = slice(top, int(rows[-1]) + 2), slice(left, int(columns[-1]) + 2)
    if field is None:
        loops = outlines(inside[box])
    else:
        values = np.clip(np.asarray(field[box], dtype=np.float64), 0, 1)
        loops = [without_idle_points(loop, IDLE_PIXELS) for loop in level_outlines(inside[box], values)]
    return [loop + np.array([top, left]) for loop in loops]


def _smoothed(loops: Sequence[FloatArray], spacing_mm: FloatArray, limit_mm: float) -> list[FloatArray]:
    """Smooth over the length of a pixel; what is left out of points afterwards is part of the limit."""
    idle_mm = min(IDLE_MM, limit_mm / 2)
    smooth = smoothed([loop * spacing_mm for loop in loops], float(spacing_mm.max()), limit_mm - idle_mm)
    thinned = [without_idle_points(loop, idle_mm) for loop in smooth]
    return [loop / spacing_mm for loop in (smooth if cross(thinned) else thinned)]


def _area(loops: Sequence[FloatArray]) -> float:
    return sum(signed_area(loop) for loop in loops)
