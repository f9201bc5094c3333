"""What goes through the doors: five scan geometries, and five analytic shapes in each.

The areas, volumes and curves of the shapes are known in closed form, and so is the share of each pixel that they
fill. Everything is in LPS millimetres. A shape is a sum of parts that do not overlap, less parts within them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metricunet.errors import InputError
from metricunet.files.dicom.series import CtSeries, find_series
from metricunet.files.rtstruct.outlines import Structure
from metricunet.volume import FloatArray, Geometry, Volume
from metricunet.workflows.ct_writer import CtGrid, Storage, write_ct_series

Triple = tuple[float, float, float]
Kind = Literal["ellipsoid", "disc", "box"]

#: Halvings of the interval in which the foot of a perpendicular on an ellipse lies.
HALVINGS = 60
#: Points nearer to an axis than this are moved there; far below any tolerance.
OFF_AXIS_MM = 1e-9


@dataclass(frozen=True)
class Ellipse:
    """An ellipse in a plane, its axes along x and y."""

    centre_mm: tuple[float, float]
    semi_mm: tuple[float, float]

    @property
    def area_mm2(self) -> float:
        """Exact area."""
        return float(np.pi * self.semi_mm[0] * self.semi_mm[1])

    def within_mm2(self, x: FloatArray, y: FloatArray) -> FloatArray:
        """Exact area of the part below each x and below each y: [y, x]."""
        u, v = ((edge - c) / a for edge, c, a in zip((x, y), self.centre_mm, self.semi_mm, strict=True))
        return _disc_below(u[None], v[:, None]) * self.semi_mm[0] * self.semi_mm[1]

    def distance_mm(self, points: FloatArray) -> FloatArray:
        """Distance of points [..., 2] (x, y) from the curve."""
        place = np.abs(points - np.array(self.centre_mm))
        a, b = self.semi_mm
        return _distance_from_ellipse(place[..., 0], place[..., 1], a, b)


@dataclass(frozen=True)
class Rectangle:
    """A rectangle in a plane, its sides along x and y."""

    centre_mm: tuple[float, float]
    semi_mm: tuple[float, float]

    @property
    def area_mm2(self) -> float:
        """Exact area."""
        return 4 * self.semi_mm[0] * self.semi_mm[1]

    def within_mm2(self, x: FloatArray, y: FloatArray) -> FloatArray:
        """Exact area of the part below each x and below each y: [y, x]."""
        width, height = (
            np.clip(edge - c + a, 0, 2 * a)
            for edge, c, a in zip((x, y), self.centre_mm, self.semi_mm, strict=True)
        )
        return np.asarray(height[:, None] * width[None])

    def distance_mm(self, points: FloatArray) -> FloatArray:
        """Distance of points [..., 2] (x, y) from the curve."""
        beyond = np.abs(points - np.array(self.centre_mm)) - np.array(self.semi_mm)
        outside = np.linalg.norm(np.maximum(beyond, 0), axis=-1)
        return np.asarray(outside + np.abs(np.minimum(beyond.max(axis=-1), 0)))


@dataclass(frozen=True)
class Part:
    """One body.

    Attributes:
        kind: `ellipsoid`; `disc`, an elliptic cylinder along z; or `box`.
        centre_mm: x, y, z.
        semi_mm: semi-axes, or half sides, along x, y, z.
        sign: 1, or -1 where it is a hole in the others.
    """

    kind: Kind
    centre_mm: Triple
    semi_mm: Triple
    sign: int = 1

    @property
    def volume_ml(self) -> float:
        """Exact volume, without the sign."""
        factor = {"ellipsoid": 4 / 3 * np.pi, "disc": 2 * np.pi, "box": 8.0}[self.kind]
        return float(factor * np.prod(self.semi_mm) / 1000)

    def section(self, z: float) -> Ellipse | Rectangle | None:
        """Return the exact cross-section at a height; None where there is none."""
        height = abs(z - self.centre_mm[2]) / self.semi_mm[2]
        if height >= 1:
            return None
        centre, semi = (self.centre_mm[0], self.centre_mm[1]), (self.semi_mm[0], self.semi_mm[1])
        if self.kind == "box":
            return Rectangle(centre, semi)
        shrink = float(np.sqrt(1 - height**2)) if self.kind == "ellipsoid" else 1.0
        return Ellipse(centre, (semi[0] * shrink, semi[1] * shrink))


@dataclass(frozen=True)
class Shape:
    """A named sum of parts."""

    name: str
    parts: tuple[Part, ...]

    @property
    def volume_ml(self) -> float:
        """Exact volume of the solid."""
        return sum(part.sign * part.volume_ml for part in self.parts)

    def area_mm2(self, z: float) -> float:
        """Exact area of the cross-section at a height."""
        return sum(sign * section.area_mm2 for sign, section in self._sections(z))

    def sections_ml(self, z: Sequence[float] | FloatArray, distance_mm: float) -> float:
        """Exact areas of the cross-sections at the slices, times their distance: what contours can hold."""
        return sum(self.area_mm2(float(height)) for height in z) * distance_mm / 1000

    def share(self, z: ArrayLike, y: ArrayLike, x: ArrayLike) -> FloatArray:
        """Exact share of each pixel that lies inside, in the plane of each slice.

        Args:
            z: heights of the slices.
            y: coordinates of the pixels' centres, evenly spaced, in either direction; two or more.
            x: coordinates of the pixels' centres along the other axis, in the same way.

        Returns:
            [z, y, x], from 0 to 1.
        """
        heights = np.asarray(z, dtype=np.float64)
        columns, rows = (_edges(np.asarray(v, dtype=np.float64)) for v in (x, y))
        pixel_mm2 = (columns[1] - columns[0]) * (rows[1] - rows[0])
        share = np.zeros((len(heights), len(rows) - 1, len(columns) - 1))
        for plane, height in zip(share, heights, strict=True):
            for sign, section in self._sections(float(height)):
                below = section.within_mm2(columns, rows)
                plane += sign * np.diff(np.diff(below, axis=0), axis=1) / pixel_mm2
        return np.asarray(np.clip(share, 0, 1))

    def distance_mm(self, points: FloatArray, z: float) -> FloatArray:
        """Distance of points [..., 2] (x, y) from the nearest curve of the cross-section at a height.

        Infinite where there is no cross-section.
        """
        found = np.full(points.shape[:-1], np.inf)
        for _, section in self._sections(z):
            found = np.minimum(found, section.distance_mm(points))
        return found

    def _sections(self, z: float) -> list[tuple[int, Ellipse | Rectangle]]:
        sections = [(part.sign, part.section(z)) for part in self.parts]
        return [(sign, section) for sign, section in sections if section is not None]


def _edges(centres: FloatArray) -> FloatArray:
    step = (centres[-1] - centres[0]) / (len(centres) - 1)
    return np.asarray(centres[0] + step * (np.arange(len(centres) + 1) - 0.5))


def _disc_below(u: FloatArray, v: FloatArray) -> FloatArray:
    """Area of the unit disc's part with first coordinate below u and second below v."""
    u, v = np.broadcast_arrays(np.clip(u, -1, 1), np.clip(v, -1, 1))
    below_u, below_v = _segment(u), _segment(v)
    inside = u**2 + v**2 < 1
    # Outside the disc's curve a corner cuts off both segments whole, or none, or one of them.
    both = below_u + below_v - np.pi
    outside = np.where((u >= 0) & (v >= 0), both, np.where(u >= 0, below_v, np.where(v >= 0, below_u, 0.0)))
    return np.asarray(np.where(inside, (below_u + below_v) / 2 + u * v - np.pi / 4, outside))


def _segment(u: FloatArray) -> FloatArray:
    """Area of the unit disc below u."""
    return np.asarray(u * np.sqrt(1 - u**2) + np.arcsin(u) + np.pi / 2)


def _distance_from_ellipse(x: FloatArray, y: FloatArray, a: float, b: float) -> FloatArray:
    """Distance of points of the first quadrant from an ellipse about the origin.

    The foot (a² x / (t + a²), b² y / (t + b²)) lies on the ellipse for one t above -min(a, b)², found by bisection
    (Eberly, Distance from a point to an ellipse, 2013).
    """
    if a < b:
        return _distance_from_ellipse(y, x, b, a)
    p, q = np.maximum(x, OFF_AXIS_MM) / b, np.maximum(y, OFF_AXIS_MM) / b
    ratio = a / b
    low, high = q - 1, np.hypot(ratio * p, q) - 1
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = (ratio * p / (middle + ratio**2)) ** 2 + (q / (middle + 1)) ** 2 > 1
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    t = (low + high) / 2
    return np.asarray(b * np.hypot(p - ratio**2 * p / (t + ratio**2), q - q / (t + 1)))


#: Side of the field, and length of the scan.
FIELD_MM, LENGTH_MM = 80.0, 66.0
AIR_HU, FAT_HU, TARGET_HU = -1000.0, -100.0, 100.0
#: Radius of the body of fat.
BODY_MM = 39.0
#: A voxel belongs to a shape where more than this share of it does.
HALF = 0.5
ISLAND = "island"


@dataclass(frozen=True)
class ScanPlan:
    """One scan geometry.

    Attributes:
        name: a letter.
        slice_mm: distance of slices.
        row_mm: distance of rows.
        column_mm: distance of columns.
        position: position of the patient; it decides the directions of rows and columns.
        storage: how HU are stored.
    """

    name: str
    slice_mm: float
    row_mm: float
    column_mm: float
    position: str
    storage: Storage

    @cached_property
    def grid(self) -> CtGrid:
        """The grid, in DICOM's terms."""
        shape = (_odd(LENGTH_MM / self.slice_mm), _odd(FIELD_MM / self.row_mm), _odd(FIELD_MM / self.column_mm))
        return CtGrid(shape, (self.row_mm, self.column_mm), self.slice_mm, (-21.375, 34.25, -212.6), self.position)

    @cached_property
    def middle_mm(self) -> FloatArray:
        """LPS middle of the grid."""
        return np.array([axis.mean() for axis in self.grid.axes_mm()[::-1]])

    @property
    def title(self) -> str:
        """The geometry, in figures: distances of rows, columns and slices, and the patient's position."""
        return f"{self.row_mm:.4g} x {self.column_mm:.4g} x {self.slice_mm:.4g} mm, {self.position}"

    @property
    def smaller_pixel_mm(self) -> float:
        """The lesser of both distances in the slice."""
        return min(self.row_mm, self.column_mm)

    def share(self, shape: Shape) -> FloatArray:
        """The exact share of each voxel's slice that lies inside a shape: [slice, row, column]."""
        return shape.share(*self.grid.axes_mm())

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """An ellipsoid, a shell with a hole, two lobes that touch, a disc, and an island of one voxel.

        None lies in the middle in any direction, so that no mirror image is like it.
        """

        def part(kind: str, centre: Triple, semi: Triple, sign: int = 1) -> Part:
            x, y, z = self.middle_mm + np.array(centre)
            return Part(kind, (float(x), float(y), float(z)), semi, sign)  # type: ignore[arg-type]

        k, r, c = (n // 3 for n in self.grid.shape)
        x, y, z = (self.grid.place_mm(k, r, c) - self.middle_mm).tolist()
        voxel = (self.column_mm / 2, self.row_mm / 2, self.slice_mm / 2)
        return (
            self.target,
            Shape(
                "shell with a hole",
                (
                    part("ellipsoid", (1.3, -0.9, 1.6 * self.slice_mm), (26, 23, 20)),
                    part("ellipsoid", (2.6, 1.1, 1.7 * self.slice_mm), (14, 12, 11), -1),
                ),
            ),
            Shape(
                "touching lobes",
                (
                    part("ellipsoid", (-12.8, 0.6, -1.2 * self.slice_mm), (13, 16, 19)),
                    part("ellipsoid", (14.2, 0.6, -1.2 * self.slice_mm), (14, 12, 17)),
                ),
            ),
            # Thicker than one slice, thinner than two, a little off a slice's plane: it lies on that slice alone.
            Shape("thin disc", (part("disc", (-1.7, 2.2, 1.2 * self.slice_mm), (27, 24, 0.55 * self.slice_mm)),)),
            Shape(ISLAND, (part("box", (x, y, z), voxel),)),
        )

    @cached_property
    def target(self) -> Shape:
        """The ellipsoid alone."""
        x, y, z = (float(v) for v in self.middle_mm + np.array([3.3, -2.1, 1.3 * self.slice_mm]))
        return Shape("ellipsoid", (Part("ellipsoid", (x, y, z), (23, 19, 21)),))

    @cached_property
    def hu(self) -> NDArray[np.float64]:
        """The scan as stored: the ellipsoid in fat in air, and a pattern of a few HU that no flip leaves alone."""
        _, y, x = self.grid.axes_mm()
        body = np.hypot((y - self.middle_mm[1])[:, None], (x - self.middle_mm[0])[None]) < BODY_MM
        k, r, c = np.indices(self.grid.shape)
        fat = FAT_HU + (k * 97 + r * 31 + c * 7) % 9 - 4
        hu = np.where(body, fat + (TARGET_HU - FAT_HU) * self.share(self.target), AIR_HU + (k + 2 * r + 3 * c) % 5)
        return self.storage.hu(self.storage.stored(hu))


def _odd(count: float) -> int:
    return 2 * int(count / 2) + 1


#: Pixels of 0.8 to 1.4 mm, none square, slices of 1 to 5 mm, all in-plane signs, HU stored in several ways.
PLANS: tuple[ScanPlan, ...] = (
    ScanPlan("A", 1.0, 0.8, 1.1, "HFS", Storage()),
    ScanPlan("B", 2.0, 1.4, 0.9, "HFP", Storage(intercept=0.0, signed=True)),
    ScanPlan("C", 2.5, 0.9765625, 1.25, "FFS", Storage(slope=2.0, intercept=-1000.0)),
    ScanPlan("D", 3.0, 1.0, 1.3, "FFP", Storage(slope=0.5, intercept=-1024.0)),
    ScanPlan("E", 5.0, 1.2, 0.8, "HFS", Storage()),
)


@dataclass(frozen=True, eq=False)
class Site:
    """A geometry on disk, read back by the package.

    Attributes:
        plan: the geometry that was to be written.
        folder: folder for files of this geometry.
        series: what the package makes of the series in `folder`/ct.
    """

    plan: ScanPlan
    folder: Path
    series: CtSeries

    @cached_property
    def structures(self) -> tuple[Structure, ...]:
        """The shapes as masks on the series' grid, each with the field that it was made from."""
        return tuple(self.structure(shape) for shape in self.plan.shapes)

    def structure(self, shape: Shape, name: str = "") -> Structure:
        """Return a shape as a mask and its field."""
        share = self.plan.share(shape).astype(np.float32)
        geometry = self.geometry
        return Structure(name or shape.name, Volume(share > HALF, geometry), probability=Volume(share, geometry))

    @property
    def geometry(self) -> Geometry:
        """The series' grid, as read."""
        return self.series.geometry

    def each(self) -> Iterator[tuple[Shape, Structure]]:
        """Each shape with its structure."""
        return zip(self.plan.shapes, self.structures, strict=True)

    def at(self, shape: Shape | str) -> str:
        """Name a measurement."""
        return f"{self.plan.name}, {shape if isinstance(shape, str) else shape.name}"


def make_site(plan: ScanPlan, folder: Path) -> Site:
    """Write a geometry's series and read it back.

    Raises:
        InputError: the series is refused.
    """
    write_ct_series(
        folder / "ct",
        plan.hu,
        plan.grid,
        storage=plan.storage,
        patient=f"VALIDATE-{plan.name}",
        description=f"metricunet commission {plan.name}",
    )
    return Site(plan, folder, the_series(folder / "ct"))


def the_series(folder: Path) -> CtSeries:
    """Find the one series in a folder.

    Raises:
        InputError: it is refused, or there are several.
    """
    search = find_series(folder)
    for refused in search.refused:
        raise InputError(refused.reason)
    if len(search.series) != 1:
        raise InputError(f"{folder}: holds {len(search.series)} series, expected the one that was written there")
    return search.series[0]
