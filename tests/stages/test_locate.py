"""Stage 1: status, centre and reason on drawn probability maps, and classes read on a scan's grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metricunet.networks import UNet
from metricunet.specs import LocateSpec
from metricunet.stages.classes import likeliest
from metricunet.stages.forward import coarse_probabilities
from metricunet.stages.locate import classes_on, localise, locate_spec
from metricunet.training.config import load_config
from metricunet.volume import Geometry, Volume

GEOMETRY = Geometry.from_parts((30, 40, 40), (4, 4, 4), (-80, -80, 100))


def blob(*blobs: tuple[tuple[int, int, int], int, float]) -> Volume:
    """Cubes given by their first voxel, side and probability."""
    array = np.zeros(GEOMETRY.shape, dtype=np.float32)
    for (s, r, c), side, probability in blobs:
        array[s : s + side, r : r + side, c : c + side] = probability
    return Volume(array, GEOMETRY)


def test_one_sure_candidate_is_found_at_its_centre() -> None:
    found = localise(blob(((10, 12, 14), 9, 0.9)), (20.0, 60.0))
    assert found.status == "found"
    assert found.confidence == pytest.approx(0.9, abs=1e-3)
    assert found.volume_ml == pytest.approx(9**3 * 0.064)
    assert found.centre_mm is not None
    np.testing.assert_allclose(found.centre_mm, GEOMETRY.to_world([14, 16, 18]), atol=1e-3)


def test_nothing_is_absent_with_a_reason() -> None:
    for probability in (blob(), blob(((10, 10, 10), 9, 0.2)), blob(((10, 10, 10), 3, 0.9))):
        found = localise(probability)
        assert (found.status, found.centre_mm, found.confidence) == ("absent", None, 0.0)
        assert "highest probability" in found.reason


DOUBTS = {
    "mean probability is 0.55": (blob(((10, 12, 14), 9, 0.55)), None),
    "mean probability is 0.40": (blob(((10, 12, 14), 9, 0.40)), None),
    "no candidate of 2 mL has a probability of 0.5": (blob(((10, 12, 14), 3, 0.9), ((10, 12, 17), 2, 0.3)), None),
    "other candidates hold 42%": (blob(((2, 2, 2), 9, 0.9), ((15, 20, 20), 8, 0.93)), None),
    "first or last slice": (blob(((0, 12, 14), 9, 0.9)), None),
    "2 to 10 mL are plausible": (blob(((10, 12, 14), 9, 0.9)), (3.0, 5.0)),
}


@pytest.mark.parametrize("words", DOUBTS)
def test_doubts_are_named_and_still_located(words: str) -> None:
    probability, volumes = DOUBTS[words]
    found = localise(probability, volumes)
    assert found.status == "uncertain"
    assert words in found.reason
    assert found.centre_mm is not None


def test_the_larger_candidate_wins() -> None:
    found = localise(blob(((2, 2, 2), 4, 0.9), ((15, 20, 20), 8, 0.9)))
    assert found.centre_mm is not None
    np.testing.assert_allclose(found.centre_mm, GEOMETRY.to_world([18.5, 23.5, 23.5]), atol=1e-3)


def test_a_speck_that_is_sure_hides_no_gland_that_is_less_so() -> None:
    """Three voxels a side are 1.7 mL, too small to be a gland; their sum of probabilities is the larger one."""
    found = localise(blob(((2, 2, 2), 3, 1.0), ((15, 20, 20), 4, 0.4)))
    assert found.centre_mm is not None
    np.testing.assert_allclose(found.centre_mm, GEOMETRY.to_world([16.5, 21.5, 21.5]), atol=1e-3)


def test_the_candidate_is_kept_where_it_lies() -> None:
    found = localise(blob(((2, 2, 2), 4, 0.9), ((15, 20, 22), 8, 0.9)))
    assert found.candidate is not None
    assert found.candidate.array.shape == (8, 8, 8)
    assert found.candidate.array.all()
    np.testing.assert_allclose(found.candidate.geometry.origin_mm, GEOMETRY.to_world([15, 20, 22]))
    assert localise(blob()).candidate is None


@pytest.mark.parametrize("spacing_mm", [(1.3, 0.9, 0.9), (5.0, 1.1, 2.9)])
@pytest.mark.parametrize("n_classes", [1, 3])
def test_interpolating_a_part_is_interpolating_all(spacing_mm: tuple[float, float, float], n_classes: int) -> None:
    draw = np.random.default_rng(n_classes)
    coarse = Geometry.from_parts((20, 24, 22), (2, 2, 2), (3, -5, 8))
    logits = np.full((n_classes + 1, *coarse.shape), -3.0)
    logits[0] = 0
    logits[:, 6:14, 9:17, 4:12] = draw.normal(0, 2, (n_classes + 1, 8, 8, 8))
    shares = np.exp(logits) / np.exp(logits).sum(axis=0)
    volumes = [Volume(share.astype(np.float32), coarse) for share in shares[1:]]
    grid = coarse.with_spacing(spacing_mm)
    image = Volume(np.zeros(grid.shape, dtype=np.int16), grid)
    whole = likeliest(np.stack([volume.resample(image.geometry).array for volume in volumes]))
    assert whole.any()
    assert np.array_equal(classes_on(image, volumes), whole)
    nothing = [volume.with_array(np.zeros_like(volume.array)) for volume in volumes]
    assert not classes_on(image, nothing).any()


def test_what_a_training_chooses_of_stage_one() -> None:
    spec = locate_spec(load_config().locate, 3)
    assert (spec.network["spatial_dims"], spec.network["classes"], spec.network["norm"]) == (3, 3, "batch")
    assert (spec.spacing_mm, spec.hu_window) == ((4.0, 4.0, 4.0), (-250.0, 450.0))


def test_stage_one_sees_the_whole_scan_whatever_its_sides() -> None:
    """Sides that no network can halve are filled up with air, and the answer has the grid's own sides."""
    torch.manual_seed(0)
    network = UNet(1, 2, 2, levels=3, spatial_dims=3).eval()
    spec = LocateSpec({}, (4.0, 4.0, 4.0), (-100.0, 100.0))
    scan = Volume(np.zeros((13, 21, 30), dtype=np.int16), Geometry.from_parts((13, 21, 30), (3.0, 2.0, 2.0)))
    background, target = coarse_probabilities(network, spec, scan, "fp32")
    assert target.array.shape == (10, 11, 15)
    assert target.spacing_mm == pytest.approx((4.0, 4.0, 4.0))
    np.testing.assert_allclose(target.geometry.centre_mm, scan.geometry.centre_mm)
    np.testing.assert_allclose(background.array + target.array, 1, atol=1e-6)
