"""Phantoms that take no time, to test where they go and not what they show; and shapes without a scanner."""

from __future__ import annotations

import numpy as np

from metricunet.phantom import Phantom, Variety, anatomy
from metricunet.phantom.make import LATTICE_HIGH_MM, LATTICE_LOW_MM
from metricunet.phantom.patient import Patient
from metricunet.phantom.shapes import Lattice
from metricunet.volume import Geometry, Volume


def quick_phantom(
    seed: int,
    difficulty: str = "real",
    reaches_prostate: bool = True,
    n_readers: int = 0,
    variety: Variety | None = None,
    gland_texture_hu: float = 0.0,
) -> Phantom:
    """Return a block in a field of noise, with as many readers as asked for."""
    draw = np.random.default_rng(seed)
    geometry = Geometry.from_parts((4, 6, 6), (3, 2, 2), (0, 0, 0))
    labels = np.zeros(geometry.shape, dtype=np.uint8)
    labels[1:3, 2:4, 2:4] = reaches_prostate
    readings = [np.roll(labels, number + 1, axis=1) for number in range(n_readers)]
    return Phantom(
        Volume(draw.integers(-1000, 100, geometry.shape).astype(np.int16), geometry),
        Volume(labels, geometry),
        {"seed": seed, "reaches_prostate": reaches_prostate},
        tuple(Volume(reading, geometry) for reading in readings),
    )


def structure_fields(patient: Patient, spacing_mm: float = 3.0) -> anatomy.Anatomy:
    """Evaluate a whole patient on a lattice of its own, without a scanner."""
    low, high = anatomy.Z_RANGE_MM
    lattice = Lattice.spanning((*LATTICE_LOW_MM, low), (*LATTICE_HIGH_MM, high), spacing_mm)
    return anatomy.build(patient, lattice)
