"""The phantom's anatomy: what every man has in common, and real label maps within the range of a few."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial import cKDTree

from metricunet.phantom import anatomy, organs
from metricunet.phantom.anatomy import Anatomy
from metricunet.phantom.patient import GLAND_MEDIAN_ML, GLAND_RANGE_ML, Patient, draw_patient
from metricunet.phantom.shapes import Lattice
from tests.support.phantoms import structure_fields

SEEDS = range(12)
SPACING_MM = 4.0
#: Real structures by their value in the label maps.
REAL = {
    "prostate": (1,),
    "bladder": (2,),
    "rectum": (3,),  # with the rest of the colon
    "femur_left": (4,),
    "femur_right": (5,),
    "hip_left": (6,),
    "hip_right": (7,),
    "sacrum": (8, 19),
}
Points = dict[str, np.ndarray]


@cache
def man(seed: int) -> Patient:
    return draw_patient(np.random.default_rng(np.random.SeedSequence(seed).spawn(4)[0]))


@cache
def shapes(seed: int) -> Anatomy:
    return structure_fields(man(seed), SPACING_MM)


def phantom_points(seed: int) -> Points:
    """Points (x, y, z) of each structure."""
    found = shapes(seed)
    lattice = found.lattice
    result = {}
    for name in REAL:
        index = np.argwhere(found.fields[name] < 0)
        result[name] = np.stack([lattice.x[index[:, 2]], lattice.y[index[:, 1]], lattice.z[index[:, 0]]], axis=1)
    return result


def real_points(path: Path) -> Points:
    image = nib.as_closest_canonical(nib.load(path))
    array = np.asarray(image.dataobj)
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    return {
        name: nib.affines.apply_affine(to_lps, np.argwhere(np.isin(array, values)))
        for name, values in REAL.items()
    }


def measures(points: Points, spacing_mm: float) -> dict[str, float]:
    """Volumes in mL, extents and distances in mm; places are relative to the prostate's centre.

    Windows along z keep to what both real label maps cover.
    """
    voxel_ml = spacing_mm**3 / 1000
    centre = points["prostate"].mean(axis=0)
    at = {name: p - centre for name, p in points.items()}
    near = cKDTree(at["prostate"])
    result = {
        "gland mL": len(at["prostate"]) * voxel_ml,
        "bladder mL": len(at["bladder"]) * voxel_ml,
        "bladder y mm": at["bladder"][:, 1].mean(),
        "bladder z mm": at["bladder"][:, 2].mean(),
        "pelvis width mm": at["hip_left"][:, 0].max() - at["hip_right"][:, 0].min(),
        "coccyx z mm": at["sacrum"][:, 2].min(),
    }
    for axis, name in enumerate("xyz"):
        result[f"gland {name} extent mm"] = np.ptp(at["prostate"][:, axis]) + spacing_mm
    for name, low, high in (
        ("femur_left", -13, 45),
        ("femur_right", -13, 45),
        ("hip_left", -13, 150),
        ("hip_right", -13, 150),
        ("sacrum", -40, 150),
        ("rectum", 0, 45),
    ):
        part = at[name][(at[name][:, 2] > low) & (at[name][:, 2] < high)]
        result[f"{name} mL"] = len(part) * voxel_ml
        # Neighbouring voxels that touch are one spacing apart.
        result[f"{name} gap mm"] = max(0.0, near.query(part)[0].min() - spacing_mm)
        for axis, letter in enumerate("xyz"):
            if name not in ("sacrum", "rectum") or letter == "y":
                result[f"{name} {letter} mm"] = abs(part[:, 0].mean()) if axis == 0 else part[:, axis].mean()
    front = at["hip_left"][(at["hip_left"][:, 2] > -6) & (at["hip_left"][:, 2] < 0)]
    result["symphysis y mm"] = front[:, 1].min()
    return result


def test_real_anatomy_lies_in_the_range_of_a_few_phantoms(shared_data: Path) -> None:
    made = [measures(phantom_points(seed), SPACING_MM) for seed in SEEDS]
    outside = []
    for path in sorted((shared_data / "anatomy_labels").glob("*.nii.gz")):
        for name, value in measures(real_points(path), 1.5).items():
            values = [m[name] for m in made]
            low, high = min(values), max(values)
            # Distances are only as fine as half the coarse lattice on which they are measured here.
            slack = SPACING_MM / 2 if name.endswith("mm") else 0.05 * value
            if not low - slack <= value <= high + slack:
                outside.append(f"{path.name} {name}: {value:.1f}, phantoms {low:.1f} to {high:.1f}")
    assert not outside, "\n".join(outside)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_organs_lie_where_they_belong(seed: int) -> None:
    points = phantom_points(seed)
    gland = points["prostate"].mean(axis=0)
    assert points["bladder"][:, 2].mean() > gland[2] + 10
    assert points["bladder"][:, 1].mean() < gland[1]
    beside = points["rectum"][np.abs(points["rectum"][:, 2] - gland[2]) < 8]
    assert beside[:, 1].mean() > gland[1] + 15
    assert points["femur_left"][:, 0].min() > points["prostate"][:, 0].max()
    assert points["femur_right"][:, 0].max() < points["prostate"][:, 0].min()
    assert points["hip_left"][:, 0].mean() > 0 > points["hip_right"][:, 0].mean()
    level = points["hip_left"][np.abs(points["hip_left"][:, 2] - gland[2]) < 8]
    assert level[:, 1].min() < points["prostate"][:, 1].min()  # the symphysis lies in front
    low = points["sacrum"][points["sacrum"][:, 2] < gland[2] + 60]
    assert low[:, 1].min() > points["prostate"][:, 1].max() + 10


@pytest.mark.parametrize("seed", SEEDS)
def test_no_two_organs_share_a_place(seed: int) -> None:
    fields = shapes(seed).fields
    solid = ("prostate", "seminal_vesicles", "bladder", "rectum", "hip_left", "hip_right", "femur_left", "sacrum")
    count = sum((fields[name] < 0).astype(int) for name in solid)
    assert int(count.max()) == 1
    assert (fields["body"][count > 0] < 0).all()
    for hollow, whole in (("urine", "bladder"), ("rectum_lumen", "rectum"), ("rectum_gas", "rectum_lumen")):
        assert (fields[whole][fields[hollow] < 0] < 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_gland_is_as_large_as_it_was_meant_to_be(seed: int) -> None:
    low, high, volume = anatomy.gland_extent(man(seed))
    assert volume == pytest.approx(man(seed).gland_volume_ml, rel=0.04)
    inside = shapes(seed).fields["prostate"] < 0
    lattice = shapes(seed).lattice
    for axis, others, coordinates in ((0, (0, 1), lattice.x), (1, (0, 2), lattice.y), (2, (1, 2), lattice.z)):
        found = coordinates[inside.any(axis=others)]
        assert low[axis] - 0.1 <= found.min()
        assert found.max() <= high[axis] + 0.1


def test_glands_have_the_stated_distribution() -> None:
    volumes = [draw_patient(np.random.default_rng(seed)).gland_volume_ml for seed in range(400)]
    assert np.median(volumes) == pytest.approx(GLAND_MEDIAN_ML, rel=0.1)
    assert GLAND_RANGE_ML[0] <= min(volumes) < 18
    assert 80 < max(volumes) <= GLAND_RANGE_ML[1]
    assert np.std(np.log(volumes)) == pytest.approx(0.45, abs=0.05)


def test_rectum_and_bladder_come_full_and_empty() -> None:
    men = [draw_patient(np.random.default_rng(seed)) for seed in range(100)]
    assert {m.rectum_filling for m in men} == {"gas", "stool", "empty"}
    assert min(m.rectum_radius.max() for m in men) < 12
    assert max(m.rectum_radius.max() for m in men) > 28
    assert min(m.bladder_volume_ml for m in men) < 60
    assert max(m.bladder_volume_ml for m in men) > 300


def test_the_largest_gland_keeps_out_of_the_bones() -> None:
    largest = max(range(60), key=lambda seed: man(seed).gland_volume_ml)
    assert man(largest).gland_volume_ml > 80
    fields = shapes(largest).fields
    inside = fields["prostate"] < 0
    assert (np.minimum(fields["hip_left"], fields["hip_right"])[inside] > 2.4).all()
    found = organs.volume_ml(fields["prostate"], shapes(largest).lattice)
    assert found == pytest.approx(man(largest).gland_volume_ml, rel=0.06)


def test_the_field_of_view_does_not_change_the_patient() -> None:
    whole = shapes(1)
    low, high = (-40.0, -44.0, -24.0), (44.0, 60.0, 36.0)
    part = anatomy.build(man(1), Lattice.spanning(low, high, SPACING_MM))
    box = whole.lattice.box(low, high)
    for name in ("prostate", "bladder", "rectum", "hip_left", "muscle", "body"):
        shape, other = whole.fields[name][box], part.fields[name]
        assert np.array_equal(shape < 0, other < 0), name
