"""Localisation: status, centre and reason on drawn probability maps."""

from __future__ import annotations

import numpy as np
import pytest

from metricunet.inference.locate import localise
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


def test_the_candidate_is_kept_where_it_lies() -> None:
    found = localise(blob(((2, 2, 2), 4, 0.9), ((15, 20, 22), 8, 0.9)))
    assert found.candidate is not None
    assert found.candidate.array.shape == (8, 8, 8)
    assert found.candidate.array.all()
    np.testing.assert_allclose(found.candidate.geometry.origin_mm, GEOMETRY.to_world([15, 20, 22]))
    assert localise(blob()).candidate is None
