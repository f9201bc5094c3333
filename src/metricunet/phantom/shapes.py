"""Signed distances on a coarse lattice: the few primitives from which the phantom's anatomy is built.

The body frame has its origin where a typical prostate's centre lies; x goes to the left, y to the back, z to
the head, in millimetres. Every field is float32 [z, y, x], negative inside. Fields depend on position alone,
never on the lattice, so that a scan's field of view does not change the patient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
#: Any real numbers that stand for distances or positions.
Values = NDArray[np.float32] | NDArray[np.float64]
Box = tuple[slice, slice, slice]
#: (x, y, z) in millimetres.
Point = tuple[float, float, float]
#: (x, y, radius) of one disc of a cross-section.
Disc = tuple[float, float, float]
#: Height z to the chain of discs that makes the cross-section there; all chains have one length.
Strand = Mapping[float, Sequence[Disc]]
#: (x, y, z, radius) of one ball of a tube.
Ball = tuple[float, float, float, float]

#: What a field holds far outside its shape. Distances beyond this are of no interest.
FAR_MM = 30.0


@dataclass(frozen=True, eq=False)
class Lattice:
    """A regular grid of points in the body frame: the coordinates along each axis, in millimetres."""

    z: Field
    y: Field
    x: Field

    @classmethod
    def spanning(cls, low: Point, high: Point, spacing_mm: float) -> Lattice:
        """Return the lattice of whole multiples of the spacing that encloses the box from `low` to `high`."""
        axes = [
            (np.arange(np.floor(a / spacing_mm), np.ceil(b / spacing_mm) + 1) * spacing_mm).astype(np.float32)
            for a, b in zip(low, high, strict=True)
        ]
        return cls(z=axes[2], y=axes[1], x=axes[0])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Points along z, y and x."""
        return len(self.z), len(self.y), len(self.x)

    @property
    def spacing_mm(self) -> float:
        """Distance of neighbouring points."""
        return float(self.x[1] - self.x[0])

    @cached_property
    def grids(self) -> tuple[Field, Field, Field]:
        """The coordinates z [n, 1, 1], y [1, n, 1] and x [1, 1, n], for broadcasting."""
        return self.z[:, None, None], self.y[None, :, None], self.x[None, None, :]

    def empty(self) -> Field:
        """Return a field without a shape."""
        return np.full(self.shape, FAR_MM, dtype=np.float32)

    def box(self, low: Point, high: Point) -> Box:
        """Return the index ranges of the points between two corners; empty ranges where there are none."""
        ranges = [
            slice(int(np.searchsorted(axis, a)), int(np.searchsorted(axis, b, side="right")))
            for axis, a, b in zip((self.x, self.y, self.z), low, high, strict=True)
        ]
        return ranges[2], ranges[1], ranges[0]

    def part(self, box: Box) -> Lattice:
        """Return the lattice of an index box."""
        return Lattice(z=self.z[box[0]], y=self.y[box[1]], x=self.x[box[2]])

    def grown(self, spacing_mm: float) -> Lattice:
        """Return the lattice with one point more on every side."""
        z, y, x = (
            np.concatenate([axis[:1] - spacing_mm, axis, axis[-1:] + spacing_mm]).astype(np.float32)
            for axis in (self.z, self.y, self.x)
        )
        return Lattice(z=z, y=y, x=x)


@dataclass(frozen=True, eq=False)
class Waves:
    """A smooth random field of position: a sum of plane waves, of mean 0 and standard deviation 1.

    Attributes:
        vectors: [waves, 3] wave vectors (x, y, z) in radians per millimetre.
        phases: [waves] in radians.
    """

    vectors: NDArray[np.float64]
    phases: NDArray[np.float64]

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        wavelength_mm: tuple[float, float],
        count: int = 10,
        across: Point = (0.0, 0.0, 0.0),
    ) -> Waves:
        """Draw waves with wavelengths between the two given.

        Their directions are random, or scatter around `across`: the longer that vector, the less they scatter.
        """
        directions = rng.standard_normal((count, 3)) + np.asarray(across)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        lengths = rng.uniform(*wavelength_mm, (count, 1))
        return cls(directions * (2 * np.pi / lengths), rng.uniform(0, 2 * np.pi, count))

    def at(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Evaluate at points [..., 3] (x, y, z)."""
        total = np.cos(points @ self.vectors.T + self.phases).sum(axis=-1)
        return np.asarray(total * np.sqrt(2 / len(self.phases)))

    def on(self, lattice: Lattice) -> Field:
        """Evaluate on a lattice. A plane wave is a product over the axes, so this costs a few multiplications."""
        total = np.zeros(lattice.shape, dtype=np.float32)
        wave = np.empty_like(total)
        z, y, x = (axis.astype(np.float64) for axis in (lattice.z, lattice.y, lattice.x))
        for (kx, ky, kz), phase in zip(self.vectors, self.phases, strict=True):
            plane, line = kz * z[:, None] + ky * y + phase, kx * x
            for turn in (np.cos, np.sin):
                # cos(a + b) = cos a cos b - sin a sin b
                sign = 1.0 if turn is np.cos else -1.0
                np.multiply(
                    (sign * turn(plane)).astype(np.float32)[..., None], turn(line).astype(np.float32), out=wave
                )
                total += wave
        total *= np.float32(np.sqrt(2 / len(self.phases)))
        return total


def smooth_min(a: Values, b: Values, width_mm: float) -> Field:
    """Union of two shapes with the crease between them filled over `width_mm` (quadratic blend)."""
    blend = np.maximum(np.float32(width_mm) - np.abs(a - b), 0)
    return np.asarray(np.minimum(a, b) - blend * blend / np.float32(4 * width_mm), dtype=np.float32)


def smooth_max(a: Values, b: Values, width_mm: float) -> Field:
    """Intersection of two shapes with a rounded edge."""
    return -smooth_min(-a, -b, width_mm)


def without(shape: Values, other: Values, gap_mm: float, round_mm: float = 0.0) -> Field:
    """Return `shape` where it keeps `gap_mm` away from `other`: the one yields to the other."""
    keep_off = np.float32(gap_mm) - other
    if round_mm > 0:
        return smooth_max(shape, keep_off, round_mm)
    return np.asarray(np.maximum(shape, keep_off), dtype=np.float32)


def levels(strand: Strand, z_mm: Field) -> tuple[NDArray[np.float32], float, float]:
    """Interpolate a strand's discs at heights [n].

    Returns:
        Discs [chain, 3, n], and the lowest and highest level.
    """
    heights = np.array(sorted(strand), dtype=np.float64)
    table = np.array([strand[float(h)] for h in heights], dtype=np.float64)
    discs = np.stack(
        [
            np.stack([np.interp(z_mm, heights, table[:, link, part]) for part in range(3)])
            for link in range(table.shape[1])
        ]
    )
    return discs.astype(np.float32), float(heights[0]), float(heights[-1])


def loft(lattice: Lattice, strand: Strand) -> tuple[Box, Field]:
    """Evaluate a lofted shape in the box around it; an empty box where the lattice does not reach it.

    At each height the cross-section is a chain of discs joined by their outer tangents; between the levels
    the discs move linearly. The distance is measured within the plane, and to the flat ends.
    """
    xs, ys, rs = zip(*(disc for chain in strand.values() for disc in chain), strict=True)
    reach = max(rs) + FAR_MM / 2
    box = lattice.box(
        (min(xs) - reach, min(ys) - reach, min(strand) - FAR_MM / 2),
        (max(xs) + reach, max(ys) + reach, max(strand) + FAR_MM / 2),
    )
    part = lattice.part(box)
    if 0 in part.shape:
        return box, np.empty(part.shape, dtype=np.float32)
    discs, low, high = levels(strand, part.z)
    z, y, x = part.grids
    chain = discs[..., None, None]
    if len(chain) == 1:
        shape = np.hypot(x - chain[0, 0], y - chain[0, 1]) - chain[0, 2]
    else:
        links = (_tapered(x, y, a, b) for a, b in pairwise(chain))
        shape = next(links)
        for link in links:
            shape = np.minimum(shape, link)
    return box, np.maximum(shape, np.maximum(low - z, z - high))


def add_strand(field: Field, lattice: Lattice, strand: Strand, blend_mm: float = 0.0) -> None:
    """Unite a lofted shape with `field`, in place."""
    box, shape = loft(lattice, strand)
    if shape.size:
        _unite(field, box, shape, blend_mm)


def add_tube(field: Field, lattice: Lattice, balls: Sequence[Ball], blend_mm: float = 0.0) -> None:
    """Unite a tube through balls (x, y, z, radius) with `field`, in place."""
    for a, b in pairwise(balls):
        reach = max(a[3], b[3]) + FAR_MM / 2
        box = lattice.box(*around(a, b, reach))
        part = lattice.part(box)
        if 0 not in part.shape:
            _unite(field, box, capsule(part, a, b), blend_mm)


def around(a: Ball, b: Ball, reach_mm: float) -> tuple[Point, Point]:
    """Return the corners of the box that reaches `reach_mm` beyond two balls' centres."""
    low, high = np.minimum(a[:3], b[:3]) - reach_mm, np.maximum(a[:3], b[:3]) + reach_mm
    return (float(low[0]), float(low[1]), float(low[2])), (float(high[0]), float(high[1]), float(high[2]))


def capsule(lattice: Lattice, a: Ball, b: Ball) -> Field:
    """Distance to the hull of two balls (its sides measured at right angles to the axis)."""
    z, y, x = lattice.grids
    along = np.array([b[k] - a[k] for k in range(3)], dtype=np.float32)
    length2 = max(float(along @ along), 1e-6)
    t = ((x - a[0]) * along[0] + (y - a[1]) * along[1] + (z - a[2]) * along[2]) / np.float32(length2)
    t = np.clip(t, 0, 1)
    dx, dy, dz = x - a[0] - t * along[0], y - a[1] - t * along[1], z - a[2] - t * along[2]
    radius = a[3] + t * np.float32(b[3] - a[3])
    return np.asarray(np.sqrt(dx * dx + dy * dy + dz * dz) - radius, dtype=np.float32)


def ellipsoid(lattice: Lattice, centre: Point, radii: Point) -> Field:
    """First-order distance to an ellipsoid: value over gradient of its implicit function."""
    z, y, x = lattice.grids
    u, v, w = (x - centre[0]) / radii[0], (y - centre[1]) / radii[1], (z - centre[2]) / radii[2]
    rho = np.sqrt(u * u + v * v + w * w)
    slope = np.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2 + (w / radii[2]) ** 2)
    return np.asarray(rho * (rho - 1) / np.maximum(slope, 1e-6), dtype=np.float32)


def _tapered(x: Field, y: Field, a: Field, b: Field) -> Field:
    ux, uy = b[0] - a[0], b[1] - a[1]
    length2 = np.maximum(ux * ux + uy * uy, np.float32(1e-3))
    t = np.clip(((x - a[0]) * ux + (y - a[1]) * uy) / length2, 0, 1)
    dx, dy = x - a[0] - t * ux, y - a[1] - t * uy
    return np.asarray(np.sqrt(dx * dx + dy * dy) - (a[2] + t * (b[2] - a[2])), dtype=np.float32)


def _unite(field: Field, box: Box, shape: Field, blend_mm: float) -> None:
    old = field[box]
    field[box] = smooth_min(old, shape, blend_mm) if blend_mm > 0 else np.minimum(old, shape)
