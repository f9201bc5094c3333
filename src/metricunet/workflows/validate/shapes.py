"""Shapes whose areas, volumes and curves are known in closed form, and the share of each pixel that they fill.

Everything is in LPS millimetres. A shape is a sum of parts that do not overlap, less parts that lie within them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from metricunet.volume import FloatArray

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

    @property
    def centroid_mm(self) -> FloatArray:
        """Exact centre of mass: x, y, z."""
        moments = [part.sign * part.volume_ml * np.array(part.centre_mm) for part in self.parts]
        return np.asarray(np.sum(moments, axis=0) / self.volume_ml)

    def area_mm2(self, z: float) -> float:
        """Exact area of the cross-section at a height."""
        return sum(sign * section.area_mm2 for sign, section in self._sections(z))

    def sections_ml(self, z: Sequence[float] | FloatArray, distance_mm: float) -> float:
        """Exact areas of the cross-sections at the slices, times their distance: what contours can hold."""
        return sum(self.area_mm2(float(height)) for height in z) * distance_mm / 1000

    def share(self, z: ArrayLike, y: ArrayLike, x: ArrayLike) -> FloatArray:
        """Exact share of each pixel that lies inside, in the plane of each slice.

        Args:
            z: of the slices.
            y: of the pixels' centres, evenly spaced, in either direction; two or more.
            x: likewise.

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
