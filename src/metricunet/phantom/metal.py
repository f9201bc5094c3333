"""What metal does to a CT image: dark bands between implants, streaks and noise that fan out from them.

The artefact is made where it arises, in the projections. Rays through each slice are followed through the body
and the metal; a beam of four energies and a limited number of photons gives what the detector reads; its
difference from what a beam of one energy and without noise would read is reconstructed by filtered
backprojection, and added to the image. Parallel beam, one slice at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metricunet.phantom.anatomy import Anatomy
from metricunet.phantom.implants import COBALT_HU, LINER_HU, SCAR_HU, TITANIUM_HU, Implant, implant_parts
from metricunet.phantom.patient import Patient
from metricunet.phantom.shapes import Field, Lattice

#: A shape and what fills it, in HU.
Layer = tuple[Field, Field | float]
#: A beam of 120 kV behind its filters: share of each energy (50, 70, 90, 110 keV), and the linear attenuation per
#: mm there of water, titanium and cobalt-chromium, rounded from the tables of NIST (XCOM).
SPECTRUM = np.array([0.28, 0.36, 0.24, 0.12])
WATER = np.array([0.0227, 0.0193, 0.0177, 0.0165])
TITANIUM = np.array([0.546, 0.243, 0.144, 0.107])
COBALT = np.array([1.60, 0.68, 0.39, 0.27])
#: Photons of one reading without a patient, and the electronics' noise in photons. Readings below the floor are
#: set to it, as scanners do.
PHOTONS = 3e5
ELECTRONIC_NOISE = 10.0
FLOOR = 8.0
#: The artefact's own grid: within the slice, between slices; and directions of projection.
PIXEL_MM = 2.5
SLICE_MM = 5.0
VIEWS = 240
#: How much of the artefact a scanner leaves: 1 without any correction for metal.
STRENGTH = (0.15, 0.5)
#: Metal is projected in points this far apart.
POINT_MM = 1.25


@dataclass(frozen=True, eq=False)
class Metal:
    """A patient's implants in the image.

    Attributes:
        layers: the parts of the implants, to be painted over the tissues.
        lattice: points at which the artefact is known.
        artefact: what to add to the image, in HU on that lattice; 0 on its outside.
    """

    layers: tuple[Layer, ...]
    lattice: Lattice
    artefact: Field


def implanted(
    implants: tuple[Implant, ...], patient: Patient, shapes: Anatomy, rng: np.random.Generator
) -> Metal | None:
    """Set implants into a patient and work out what they do to his scan; None where the scan holds no metal.

    A scanner that corrects for metal leaves some of the artefact; `rng` draws how much, and the photons' noise.
    """
    strength = float(rng.uniform(*STRENGTH))
    if not implants:
        return None
    lattice = shapes.lattice
    parts = [implant_parts(implant, patient, lattice) for implant in implants]
    scar, liner, titanium, cobalt = (
        np.minimum.reduce([getattr(part, name) for part in parts])
        for name in ("scar", "liner", "titanium", "cobalt")
    )
    layers: tuple[Layer, ...] = ((scar, SCAR_HU), (liner, LINER_HU), (titanium, TITANIUM_HU), (cobalt, COBALT_HU))
    if not (np.minimum(titanium, cobalt) < 0).any():
        return None
    inner, artefact = _artefact(lattice, shapes.fields["body"], titanium, cobalt, rng)
    artefact *= np.float32(strength)
    return Metal(layers, inner, artefact)


def _artefact(
    lattice: Lattice, body: Field, titanium: Field, cobalt: Field, rng: np.random.Generator
) -> tuple[Lattice, Field]:
    """The uncorrected artefact in HU, and the lattice on which it is given."""
    heights = _heights(lattice, np.minimum(titanium, cobalt))
    half = float(np.hypot(np.abs(lattice.x).max(), np.abs(lattice.y).max())) + 4 * PIXEL_MM
    bins = 2 * int(half / PIXEL_MM) + 1
    angles = np.arange(VIEWS) * np.pi / VIEWS
    readings = np.zeros((VIEWS, bins, len(heights)), dtype=np.float32)
    for k, z in enumerate(heights[1:-1], start=1):
        through = _ellipse_paths(lattice, _plane(body, lattice, z), angles, bins)
        metal = [_paths(lattice, _plane(field, lattice, z), angles, bins) for field in (titanium, cobalt)]
        readings[..., k] = _misread(through, metal[0], metal[1], rng)
    image = _backproject(_filtered(readings), angles, lattice)
    image *= np.float32(1000 / float(SPECTRUM @ WATER))
    inner = Lattice(
        z=heights,
        y=np.arange(lattice.y[0], lattice.y[-1], PIXEL_MM, dtype=np.float32),
        x=np.arange(lattice.x[0], lattice.x[-1], PIXEL_MM, dtype=np.float32),
    )
    return inner, image


def _heights(lattice: Lattice, metal: Field) -> Field:
    """Heights of the slices with metal, one more beyond each end."""
    held = lattice.z[(metal < 0).any(axis=(1, 2))]
    count = max(1, round(float(held[-1] - held[0]) / SLICE_MM) + 1)
    first = (float(held[0]) + float(held[-1]) - (count - 1) * SLICE_MM) / 2
    return (first + SLICE_MM * np.arange(-1, count + 1)).astype(np.float32)


def _plane(field: Field, lattice: Lattice, z_mm: float) -> Field:
    place = float(np.clip((z_mm - lattice.z[0]) / lattice.spacing_mm, 0, len(lattice.z) - 1.001))
    k = int(place)
    return np.asarray(field[k] + np.float32(place - k) * (field[k + 1] - field[k]), dtype=np.float32)


def _paths(lattice: Lattice, plane: Field, angles: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """Length in mm that each ray [view, bin] runs inside a shape given by its distances [y, x]."""
    from scipy import ndimage

    total = np.zeros((len(angles), bins))
    rows, columns = np.nonzero(plane < lattice.spacing_mm)
    if len(rows) == 0:
        return total
    r0, c0 = max(0, rows.min() - 1), max(0, columns.min() - 1)
    part = plane[r0 : rows.max() + 2, c0 : columns.max() + 2]
    times = lattice.spacing_mm / POINT_MM
    y = np.arange(0, part.shape[0] - 1, 1 / times)
    x = np.arange(0, part.shape[1] - 1, 1 / times)
    fine = ndimage.map_coordinates(part, np.meshgrid(y, x, indexing="ij"), order=1)
    inside = np.clip(0.5 - fine / POINT_MM, 0, 1)
    i, j = np.nonzero(inside)
    weight = inside[i, j] * POINT_MM**2 / PIXEL_MM
    y_mm = lattice.y[r0] + lattice.spacing_mm * y[i]
    x_mm = lattice.x[c0] + lattice.spacing_mm * x[j]
    for view, angle in enumerate(angles):
        place = (x_mm * np.cos(angle) + y_mm * np.sin(angle)) / PIXEL_MM + bins // 2
        low = np.floor(place).astype(np.int64)
        share = place - low
        total[view] = np.bincount(low, weight * (1 - share), bins) + np.bincount(low + 1, weight * share, bins)
    return total


def _ellipse_paths(lattice: Lattice, plane: Field, angles: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """Length in mm that each ray [view, bin] runs inside the ellipse as wide and as deep as the body."""
    inside = plane < 0
    if not inside.any():
        return np.zeros((len(angles), bins))
    y, x = lattice.y[inside.any(axis=1)], lattice.x[inside.any(axis=0)]
    a, b = max(1.0, float(x[-1] - x[0]) / 2), max(1.0, float(y[-1] - y[0]) / 2)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    offset = float(x[-1] + x[0]) / 2 * cos + float(y[-1] + y[0]) / 2 * sin
    t = (np.arange(bins) - bins // 2) * PIXEL_MM - offset
    reach2 = (a * cos) ** 2 + (b * sin) ** 2
    return np.asarray(2 * a * b * np.sqrt(np.maximum(reach2 - t * t, 0)) / reach2)


def _misread(
    body: NDArray[np.float64],
    titanium: NDArray[np.float64],
    cobalt: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """What the detector reads too much or too little, in the unit of attenuation times length."""
    water = body[..., None] * WATER
    metal = titanium[..., None] * TITANIUM + cobalt[..., None] * COBALT
    passed = (SPECTRUM * np.exp(-water - metal)).sum(axis=-1)
    count = PHOTONS * passed
    noise = rng.standard_normal(body.shape) * np.sqrt(count + ELECTRONIC_NOISE**2)
    # Noise of rays without metal is in the image already.
    seen = np.where(metal.sum(axis=-1) > 1e-3, count + noise, count)
    read = -np.log(np.maximum(seen, FLOOR) / PHOTONS)
    usual = -np.log((SPECTRUM * np.exp(-water)).sum(axis=-1))
    # What metal of this thickness would read in a beam of one energy. Any such multiple of the metal's own shape
    # reconstructs to the metal alone, so its size matters only for the metal's inside, which is saturated anyway.
    return np.asarray(read - usual - titanium * TITANIUM[2] - cobalt * COBALT[2] / 2)


def _filtered(readings: Field) -> Field:
    """Filter projections [view, bin, slice] by the ramp, softened as for soft tissue."""
    from scipy import fft

    bins = readings.shape[1]
    size = fft.next_fast_len(2 * bins, real=True)
    frequency = np.fft.rfftfreq(size, PIXEL_MM)
    ramp = frequency * (0.5 + 0.5 * np.cos(2 * np.pi * frequency * PIXEL_MM))
    spectrum = fft.rfft(readings, size, axis=1, workers=1) * ramp[:, None].astype(np.float32)
    return np.asarray(fft.irfft(spectrum, size, axis=1, workers=1)[:, :bins], dtype=np.float32)


def _backproject(filtered: Field, angles: NDArray[np.float64], lattice: Lattice) -> Field:
    """Smear filtered projections [view, bin, slice] back; [slice, y, x], fading out at the border."""
    y = np.arange(lattice.y[0], lattice.y[-1], PIXEL_MM)
    x = np.arange(lattice.x[0], lattice.x[-1], PIXEL_MM)
    _, bins, slices = filtered.shape
    total = np.zeros((len(y) * len(x), slices), dtype=np.float32)
    for projection, angle in zip(filtered, angles, strict=True):
        place = ((x * np.cos(angle))[None, :] + (y * np.sin(angle))[:, None]).ravel() / PIXEL_MM + bins // 2
        low = place.astype(np.int64)
        share = (place - low).astype(np.float32)[:, None]
        step = np.diff(projection, axis=0, append=0)
        total += projection[low] + share * step[low]
    image = total.reshape(len(y), len(x), slices).transpose(2, 0, 1) * np.float32(np.pi / len(angles))
    fade = [np.clip(np.minimum(np.arange(len(v)), np.arange(len(v))[::-1]) / 8, 0, 1) for v in (y, x)]
    return np.asarray(image * np.outer(*fade), dtype=np.float32)
