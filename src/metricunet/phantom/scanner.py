"""The scanner: field of view, spacing, scan range and couch, as varied as on real machines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from metricunet.phantom.anatomy import Z_RANGE_MM
from metricunet.phantom.shapes import Point
from metricunet.volume import Geometry

Difficulty = Literal["easy", "real", "varied"]
#: Full width over which the scanner's usual kernel blurs an edge, pixels apart.
BLUR_MM = 1.5
#: A scan that reaches the gland covers this much on either side; one that does not misses it by as much.
MARGIN_MM = 8.0
#: The longest scan, in slices, of thin slices on a full matrix.
MOST_SLICES = 180


@dataclass(frozen=True)
class Couch:
    """The couch's cross-section.

    Attributes:
        flat: whether the top is flat, as in radiotherapy, rather than curved, as in diagnostics.
        half_width_mm: half width of the top.
        thickness_mm: distance from the upper to the lower face.
        shell_hu, core_hu: HU of the skin and of the filling.
    """

    flat: bool
    half_width_mm: float
    thickness_mm: float
    shell_hu: float
    core_hu: float


@dataclass(frozen=True)
class Scan:
    """One acquisition: the grid, in the phantom's body frame, and how the image looks.

    Attributes:
        shape: slices, rows, columns.
        spacing_mm: between slices, rows and columns.
        start_mm: body frame position (x, y, z) of the centre of voxel [0, 0, 0].
        world_shift_mm: the scanner's LPS position of the body frame's origin.
        noise_hu: standard deviation of the noise at the middle of the pelvis.
        sharpness: width of the noise grain against the usual.
        couch: what lies under the patient.
        couch_shift_mm: the couch's middle, left-right.
        blur_mm: full width over which the kernel blurs an edge, pixels apart.
    """

    shape: tuple[int, int, int]
    spacing_mm: Point
    start_mm: Point
    world_shift_mm: Point
    noise_hu: float
    sharpness: float
    couch: Couch
    couch_shift_mm: float
    blur_mm: float = BLUR_MM

    @property
    def geometry(self) -> Geometry:
        """The grid in LPS: slices to the head, rows to the back, columns to the left."""
        origin = [a + b for a, b in zip(self.start_mm, self.world_shift_mm, strict=True)]
        return Geometry.from_parts(self.shape, self.spacing_mm, origin)

    @property
    def end_mm(self) -> Point:
        """Body frame position of the centre of the last voxel."""
        slices, rows, columns = self.shape
        dz, dy, dx = self.spacing_mm
        x, y, z = self.start_mm
        return x + (columns - 1) * dx, y + (rows - 1) * dy, z + (slices - 1) * dz


def draw_scan(
    rng: np.random.Generator, difficulty: Difficulty, gland_mm: tuple[float, float], reaches_prostate: bool
) -> Scan:
    """Draw one acquisition.

    Args:
        rng: source of chance.
        difficulty: `easy` scans are coarse and quiet, all others are as on clinical scanners.
        gland_mm: lowest and highest z of the prostate.
        reaches_prostate: whether the scan covers the gland whole, or misses it entirely.
    """
    if difficulty == "easy":
        side = int(rng.choice([128, 144, 160, 176, 192]))
        pixel = round(float(rng.uniform(385, 430)) / side, 3)
        thickness = float(rng.choice([3.0, 4.0, 5.0]))
        noise = float(rng.uniform(6, 10))
    else:
        side = 512
        pixel = float(rng.choice([0.8, 0.859375, 0.9765625, 0.9765625, 1.0, 1.171875, 1.2695, 1.3671875]))
        thickness = float(
            rng.choice(
                [1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 3.0, 5.0], p=[0.06, 0.07, 0.07, 0.15, 0.2, 0.15, 0.15, 0.15]
            )
        )
        noise = 15.0 * float(np.clip(np.exp(0.1 * rng.standard_normal()), 0.8, 1.25)) * (2.5 / thickness) ** 0.2
    low, high = scan_range(rng, gland_mm, reaches_prostate, most_mm=thickness * MOST_SLICES)
    slices = max(2, int((high - low) / thickness) + 1)
    extent = (side - 1) * pixel
    start = (
        float(rng.normal(0, 6)) - extent / 2,
        float(rng.normal(12, 8)) - extent / 2,
        low,
    )
    world = (float(rng.normal(0, 8)), float(rng.uniform(-220, 40)), float(np.round(rng.uniform(-1100, 300), 1)))
    flat = bool(rng.random() < 0.6)
    couch = Couch(
        flat=flat,
        half_width_mm=float(rng.uniform(200, 265)) if flat else float(rng.uniform(195, 225)),
        thickness_mm=float(rng.uniform(35, 60)) if flat else float(rng.uniform(22, 34)),
        shell_hu=float(rng.uniform(-450, -50)) if flat else float(rng.uniform(-150, 150)),
        core_hu=float(rng.uniform(-960, -880)),
    )
    return Scan(
        shape=(slices, side, side),
        spacing_mm=(thickness, pixel, pixel),
        start_mm=start,
        world_shift_mm=world,
        noise_hu=noise,
        sharpness=float(np.clip(rng.normal(1.0, 0.05), 0.9, 1.1)),
        couch=couch,
        couch_shift_mm=float(rng.normal(0, 8)),
    )


def scan_range(
    rng: np.random.Generator, gland_mm: tuple[float, float], reaches: bool, most_mm: float
) -> tuple[float, float]:
    """Draw the lowest and the highest slice centre of a scan of at most `most_mm`."""
    bottom, top = gland_mm
    lowest, highest = Z_RANGE_MM
    if reaches:
        low = float(rng.uniform(max(lowest + 5, bottom - 110), bottom - MARGIN_MM))
        high = float(rng.uniform(top + 40, highest - 10))
        if high - low > most_mm:
            # Keep the gland, give up what lies above.
            low = max(low, top + MARGIN_MM - most_mm)
            high = low + most_mm
        return low, max(high, top + MARGIN_MM)
    if rng.random() < 0.75:
        low = float(rng.uniform(top + MARGIN_MM, top + 80))
        high = float(rng.uniform(low + 60, highest - 5)) if low + 60 < highest - 5 else highest - 5
    else:
        high = float(rng.uniform(bottom - 40, bottom - MARGIN_MM))
        low = float(rng.uniform(lowest + 5, max(lowest + 6, high - 50)))
    return low, min(high, low + most_mm)
