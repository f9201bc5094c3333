"""The numbers behind a verdict, where they are counted by hand, and on real scans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metricunet.files.nifti import read_nifti
from metricunet.quality.findings import metal_ml, repeated_slices, stage_overlap
from metricunet.stages.locate import Localisation
from metricunet.volume import Geometry, Volume

COARSE = Geometry.from_parts((10, 10, 10), (4, 4, 4), (-20, -20, -20))


def candidate(first: int, side: int) -> Localisation:
    array = np.ones((side, side, side), dtype=bool)
    volume = Volume(array, COARSE.crop((first, first, first), array.shape))
    return Localisation("found", 1.0, "", volume.geometry.centre_mm, 1.0, volume)


def cube(low_mm: float, high_mm: float) -> Volume:
    """A cube on a grid of 1 mm whose faces lie on those of the coarse grid's voxels."""
    geometry = Geometry.from_parts((48, 48, 48), (1, 1, 1), (-29.5, -29.5, -29.5))
    index = np.stack(np.meshgrid(*[np.arange(48)] * 3, indexing="ij"), axis=-1)
    place = geometry.to_world(index)
    return Volume(((place > low_mm) & (place < high_mm)).all(axis=-1), geometry)


def test_overlap_of_the_stages_is_the_dice_in_space() -> None:
    # Candidate: coarse voxels 3 to 6, from -10 to 6 mm.
    found = candidate(3, 4)
    # Reading the fine mask on the coarse grid blurs its edge by a fraction of a fine voxel.
    assert stage_overlap(found, cube(-10, 6)) == pytest.approx(1, abs=0.05)
    assert stage_overlap(found, cube(-10, 14)) == pytest.approx(2 * 16**3 / (16**3 + 24**3), abs=0.05)
    assert stage_overlap(found, cube(8, 16)) == 0
    # The candidate's part of the grid need not reach as far as the mask, nor the mask's as far as the candidate.
    small = cube(-10, 6)
    part = small.crop((19, 19, 19), (17, 17, 17))
    assert stage_overlap(found, part) == pytest.approx(stage_overlap(found, small), abs=1e-6)
    assert stage_overlap(Localisation("found", 1.0, "", None, 1.0), small) is None


@pytest.mark.parametrize("low_mm", [-11, -10, -9, -8])
@pytest.mark.parametrize("thick_mm", [3, 6, 20])
def test_a_part_that_just_holds_a_flat_mask_has_the_overlap_of_the_whole(low_mm: int, thick_mm: int) -> None:
    whole = cube(low_mm, 12)
    whole.array[np.argwhere(whole.array)[0, 0] + thick_mm :] = False
    index = np.argwhere(whole.array)
    part = whole.crop(index.min(axis=0), index.max(axis=0) - index.min(axis=0) + 1)
    assert part.array.all()
    on_coarse = whole.with_array(whole.array.astype(np.float32)).resample(COARSE).array > 0.3
    assert on_coarse.any()
    found = Localisation("found", 1.0, "", COARSE.centre_mm, 1.0, Volume(on_coarse, COARSE))
    overlap = stage_overlap(found, part)
    assert overlap is not None
    assert overlap == pytest.approx(stage_overlap(found, whole), abs=1e-6)
    assert 0.4 < overlap <= 1 + 1e-6


def test_slices_that_fill_gaps_are_counted() -> None:
    array = np.random.default_rng(0).normal(0, 9, (8, 5, 5)).astype(np.int16)
    image = Volume(array, Geometry.from_parts(array.shape, (1, 1, 1)))
    assert repeated_slices(image, 0, 7) == 0
    array[3] = array[2]
    array[6] = -1024
    assert repeated_slices(image, 0, 7) == 2
    assert repeated_slices(image, 3, 5) == 1  # of two equal slices either may be the copy
    assert repeated_slices(image, 1, 2) == 1
    assert repeated_slices(image, 0, 1) == repeated_slices(image, 4, 5) == 0
    array[7] = -1024
    assert repeated_slices(image, 0, 7) == 3


def test_metal_is_counted_on_its_slices_alone() -> None:
    array = np.zeros((6, 10, 10), dtype=np.int16)
    array[2, :5] = 2500
    array[4, :5] = 2499
    image = Volume(array, Geometry.from_parts(array.shape, (2, 1, 1)))
    assert metal_ml(image, 0, 5) == pytest.approx(50 * 2 / 1000)
    assert metal_ml(image, 3, 5) == 0


def test_the_nail_in_a_real_hip(shared_data: Path) -> None:
    image = read_nifti(shared_data / "pelvis_ct_nifti" / "example_ct.nii.gz").canonical()
    slices = image.geometry.shape[0]
    found = [metal_ml(image, k, k) for k in range(slices)]
    assert sum(found) == pytest.approx(11.6, abs=0.2)
    assert metal_ml(image, 0, slices - 1) == pytest.approx(sum(found))
    assert np.flatnonzero(found).max() < 30  # the nail lies low in the scan; bones and bowel above hold no metal
    assert repeated_slices(image, 0, slices - 1) == 0
