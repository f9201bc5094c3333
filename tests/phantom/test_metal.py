"""Artificial hips: how often, where, and what they do to the image."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from metricunet.phantom import STRUCTURES, Phantom, anatomy, make_phantom, metal
from metricunet.phantom.implants import BILATERAL_SHARE, IMPLANT_SHARE, Implant, draw_implants, implant_parts
from metricunet.phantom.patient import Patient, draw_patient
from metricunet.phantom.shapes import Lattice
from tests.support.phantoms import structure_fields

#: Real patients with two artificial hips, and with one on the left.
BOTH, LEFT = 21, 68


@cache
def phantom(seed: int) -> Phantom:
    return make_phantom(seed, "real")


def man(seed: int) -> Patient:
    return draw_patient(np.random.default_rng(np.random.SeedSequence(seed).spawn(4)[0]))


def metal_voxels(made: Phantom, left: bool) -> int:
    """Saturated voxels on one side of the gland."""
    x = np.argwhere(made.labels.array == STRUCTURES["prostate"])[:, 2].mean()
    columns = np.arange(made.image.array.shape[2]) > x + 20 if left else np.arange(512) < x - 20
    return int((made.image.array[..., columns] == 3071).sum())


def test_implants_are_as_rare_as_stated_and_easy_patients_have_none() -> None:
    drawn = [draw_implants(np.random.default_rng(seed), "real") for seed in range(6000)]
    some = [implants for implants in drawn if implants]
    assert len(some) / len(drawn) == pytest.approx(IMPLANT_SHARE, rel=0.2)
    assert np.mean([len(implants) == 2 for implants in some]) == pytest.approx(BILATERAL_SHARE, abs=0.08)
    alone = [implants[0].left for implants in some if len(implants) == 1]
    assert np.mean(alone) == pytest.approx(0.5, abs=0.1)
    assert not any(draw_implants(np.random.default_rng(seed), "easy") for seed in range(500))


def test_the_description_tells_and_the_metal_is_there() -> None:
    assert phantom(BOTH).description["hip_implants"] == ["left", "right"]
    assert phantom(LEFT).description["hip_implants"] == ["left"]
    assert min(metal_voxels(phantom(BOTH), left) for left in (True, False)) > 1000
    assert metal_voxels(phantom(LEFT), True) > 1000
    assert metal_voxels(phantom(LEFT), False) == 0


def test_an_implant_sits_in_the_patients_hip_and_shaft() -> None:
    implant = Implant(left=True, head_mm=16, cup_mm=26, stem_mm=120, stem_radius_mm=8.5)
    for seed in (1, 4, 7):
        body = structure_fields(man(seed), 3.0)
        parts = implant_parts(implant, man(seed), body.lattice)
        inside = np.minimum(parts.titanium, parts.cobalt) < 0
        heights = body.lattice.z[inside.any(axis=(1, 2))]
        assert heights[-1] == pytest.approx(body.heads_mm[0][2] + implant.cup_mm, abs=4)
        assert heights[0] == pytest.approx(body.heads_mm[0][2] - 31 - implant.stem_mm, abs=16)
        assert body.lattice.x[np.nonzero(inside)[2]].min() > 30
        # The stem runs within the bone of the shaft.
        low = body.lattice.z < -30
        stem, femur = inside[low], body.fields["femur_left"][low]
        assert (femur[stem] < 0).mean() > 0.97
        assert (body.fields["prostate"][inside] > 25).all()


def slab(*discs: tuple[float, float, float]) -> tuple[Lattice, np.ndarray, np.ndarray]:
    """A water cylinder of 150 mm radius, and upright metal rods (x, y, radius) in it."""
    lattice = Lattice.spanning((-165, -165, -15), (165, 165, 15), 3.0)
    _, y, x = lattice.grids
    body = np.broadcast_to(np.hypot(x, y) - 150, lattice.shape).astype(np.float32)
    rods = np.minimum.reduce([np.hypot(x - a, y - b) - r for a, b, r in discs])
    return lattice, body, np.broadcast_to(rods, lattice.shape).astype(np.float32)


def around(found: tuple[Lattice, np.ndarray], x: float, y: float, reach: float = 8.0) -> np.ndarray:
    lattice, image = found
    return np.asarray(image[3][np.ix_(np.abs(lattice.y - y) < reach, np.abs(lattice.x - x) < reach)])


def test_between_two_rods_it_is_dark_and_elsewhere_hardly_changed() -> None:
    lattice, body, rods = slab((-90, 0, 12), (90, 0, 12))
    nothing = np.full_like(rods, 30.0)
    found = metal._artefact(lattice, body, rods, nothing, np.random.default_rng(0))
    assert around(found, 0, 0).mean() < -60
    assert abs(around(found, 0, 80).mean()) < 25
    assert abs(around(found, 0, -80).mean()) < 25
    # Dark beyond the rods on their line as well, and bright beside them.
    assert around(found, 125, 0).mean() < -60
    # One rod alone leaves no band in the middle.
    single = metal._artefact(lattice, body, slab((90, 0, 12))[2], nothing, np.random.default_rng(0))
    assert abs(around(single, 0, 0).mean()) < 0.5 * abs(around(found, 0, 0).mean())


def test_denser_and_thicker_metal_does_more() -> None:
    thin, thick = ((-90.0, 0.0, r) for r in (3, 12))
    found = {}
    for name, rod in (("thin", thin), ("thick", thick)):
        lattice, body, rods = slab(rod, (90.0, 0.0, rod[2]))
        nothing = np.full_like(rods, 30.0)
        for metals, fields in (("titanium", (rods, nothing)), ("cobalt", (nothing, rods))):
            first, second = (metal._artefact(lattice, body, *fields, np.random.default_rng(k)) for k in (0, 1))
            noise = around((first[0], first[1] - second[1]), 0, 60, 25.0).std()
            found[name, metals] = around(first, 0, 0).mean(), noise
    for other in (("thick", "titanium"), ("thin", "cobalt")):
        assert found[other][0] < 1.5 * found["thin", "titanium"][0] < 0  # darker
        assert found[other][1] > 1.5 * found["thin", "titanium"][1] > 0  # noisier
    assert found["thick", "cobalt"][0] < 1.3 * found["thick", "titanium"][0]


def test_paths_through_a_rod_are_its_chords() -> None:
    lattice, _, rods = slab((40, 20, 15))
    angles = np.array([0.0, np.pi / 5, np.pi / 2])
    paths = metal._paths(lattice, rods[3], angles, 201)
    for path, angle in zip(paths, angles, strict=True):
        t = (np.arange(201) - 100) * metal.PIXEL_MM - (40 * np.cos(angle) + 20 * np.sin(angle))
        chord = 2 * np.sqrt(np.maximum(15.0**2 - t * t, 0))
        assert path.sum() * metal.PIXEL_MM == pytest.approx(np.pi * 15**2, rel=0.02)
        assert np.abs(path - chord)[np.abs(t) < 12].max() < 1.5


def test_the_reconstruction_returns_what_was_projected() -> None:
    """A disc's own chords, filtered and smeared back, give the disc."""
    lattice, _, _ = slab((0, 0, 10))
    angles = np.arange(metal.VIEWS) * np.pi / metal.VIEWS
    t = (np.arange(201) - 100) * metal.PIXEL_MM
    chords = np.tile((2 * np.sqrt(np.maximum(60.0**2 - t * t, 0)))[None, :, None], (metal.VIEWS, 1, 7))
    image = metal._backproject(metal._filtered(chords.astype(np.float32)), angles, lattice)
    grid = Lattice(
        lattice.z,
        np.arange(lattice.y[0], lattice.y[-1], metal.PIXEL_MM, dtype=np.float32),
        np.arange(lattice.x[0], lattice.x[-1], metal.PIXEL_MM, dtype=np.float32),
    )
    radius = np.hypot(*np.meshgrid(grid.y, grid.x, indexing="ij"))
    assert image[3][radius < 50].mean() == pytest.approx(1.0, abs=0.02)
    assert abs(image[3][(radius > 70) & (radius < 110)].mean()) < 0.02


def test_a_scan_that_ends_above_the_metal_shows_none() -> None:
    body = anatomy.build(man(LEFT), Lattice.spanning((-120, -60, 150), (120, 60, 190), 4.0))
    implant = Implant(left=True, head_mm=16, cup_mm=26, stem_mm=120, stem_radius_mm=8.5)
    assert metal.implanted((implant,), man(LEFT), body, np.random.default_rng(0)) is None
