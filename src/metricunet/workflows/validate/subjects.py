"""What goes through the doors: five scan geometries, and five analytic shapes in each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metricunet.errors import InputError
from metricunet.files.dicom.series import CtSeries, find_series
from metricunet.files.rtstruct.outlines import Structure
from metricunet.volume import FloatArray, Geometry, Volume
from metricunet.workflows.ct_writer import CtGrid, Storage, write_ct_series
from metricunet.workflows.validate.shapes import Part, Shape, Triple

#: Side of the field, and length of the scan.
FIELD_MM, LENGTH_MM = 80.0, 66.0
AIR_HU, FAT_HU, TARGET_HU = -1000.0, -100.0, 100.0
#: Radius of the body of fat.
BODY_MM = 39.0
#: A voxel belongs to a shape where more than this share of it does.
HALF = 0.5
ISLAND = "island"


@dataclass(frozen=True)
class Plan:
    """One scan geometry.

    Attributes:
        name: a letter.
        slice_mm: distance of slices.
        row_mm: distance of rows.
        column_mm: distance of columns.
        position: of the patient; decides the directions of rows and columns.
        storage: of HU.
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
PLANS: tuple[Plan, ...] = (
    Plan("A", 1.0, 0.8, 1.1, "HFS", Storage()),
    Plan("B", 2.0, 1.4, 0.9, "HFP", Storage(intercept=0.0, signed=True)),
    Plan("C", 2.5, 0.9765625, 1.25, "FFS", Storage(slope=2.0, intercept=-1000.0)),
    Plan("D", 3.0, 1.0, 1.3, "FFP", Storage(slope=0.5, intercept=-1024.0)),
    Plan("E", 5.0, 1.2, 0.8, "HFS", Storage()),
)


@dataclass(frozen=True, eq=False)
class Site:
    """A geometry on disk, read back by the package.

    Attributes:
        plan: what was meant.
        folder: for files of this geometry.
        series: what the package makes of the series in `folder`/ct.
    """

    plan: Plan
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


def make_site(plan: Plan, folder: Path) -> Site:
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
        description=f"metricunet validate {plan.name}",
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
