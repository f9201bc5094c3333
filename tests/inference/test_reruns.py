"""Where stage 2 looks when the target reaches its crop's faces: it moves or grows until the whole is seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from metricunet.inference.predictor import Predictor
from metricunet.inference.reruns import GROWTH, next_view
from metricunet.networks import NetworkOutput
from metricunet.quality.prediction import Prediction
from metricunet.quality.verdict import judge
from metricunet.stages.locate import Localisation
from metricunet.stages.segment import View
from metricunet.volume import Geometry, Volume
from tests.support.threshold_model import GLAND_HU, Bands, ball, bands_known, box, drawn_scan

GEOMETRY = Geometry.from_parts((40, 40, 40), (2, 2, 2))
NONE = (False, False)


def located(x: float, y: float, z: float) -> Localisation:
    return Localisation("found", 1.0, "by hand", np.array([x, y, z]), 30.0)


def predicted(model: Path, scan: Volume, found: Localisation, reruns: int = 3) -> Prediction:
    return Predictor([model], "cpu", "fp32", reruns).segment(scan, found)


def dice_with_truth(found: Prediction, scan: Volume) -> float:
    """Noise is far smaller than the contrast, so the truth is a threshold."""
    assert found.labels is not None
    truth, mask = scan.array > -15, found.labels.array > 0
    return 2 * float((truth & mask).sum()) / float(truth.sum() + mask.sum())


def test_one_face_moves_two_faces_grow_and_none_ends() -> None:
    view = View(GEOMETRY.to_world([20, 20, 20]))
    centroid = np.array([26.0, 21.0, 20.0])
    assert next_view(view, (NONE, NONE, NONE), centroid, GEOMETRY) is None
    moved = next_view(view, ((False, True), NONE, NONE), centroid, GEOMETRY)
    assert moved is not None
    np.testing.assert_allclose(GEOMETRY.to_index(moved.centre_mm), [26, 20, 20])
    assert moved.growth == (1, 1, 1)
    grown = next_view(view, ((True, True), NONE, NONE), centroid, GEOMETRY)
    assert grown is not None
    np.testing.assert_allclose(grown.centre_mm, view.centre_mm)
    assert grown.growth == (GROWTH, 1, 1)
    # The centroid lies on the other side of the middle than the face, or hardly off it: moving is no help.
    for face in ((True, False), (False, True)):
        found = next_view(view, (NONE, face, NONE), np.array([20.0, 20.5, 20.0]), GEOMETRY)
        assert found is not None
        assert found.growth == (1, GROWTH, 1)
    # Grown already, and nothing to move to.
    assert next_view(grown, ((True, True), NONE, NONE), centroid, GEOMETRY) is None


def touches_crop(found: Prediction) -> bool:
    """Whether the target reaches a face of the field that is not the edge of the scan."""
    return any(crop.touched for crop in found.crops if crop.used)


def test_an_off_centre_crop_moves_until_it_sees_the_whole(bands_model: Path) -> None:
    scan = drawn_scan((ball((10, -5, 5), 18), GLAND_HU))
    first = located(10, 21, -21)  # 26 mm off along two axes
    cut = predicted(bands_model, scan, first, reruns=0)
    assert touches_crop(cut)
    assert set(cut.crops[0].touched) == {"front", "head"}
    assert dice_with_truth(cut, scan) < 0.9
    whole = predicted(bands_model, scan, first)
    assert not touches_crop(whole)
    assert dice_with_truth(whole, scan) > 0.98
    assert len(whole.crops) == 2
    assert [crop.used for crop in whole.crops] == [False, True]
    assert whole.crops[0].touched == cut.crops[0].touched
    assert whole.crops[1].volume_ml > whole.crops[0].volume_ml
    assert whole.crops[1].sides_mm == pytest.approx((64, 64, 64), abs=4)


def test_a_gland_larger_than_the_crop_lets_it_grow_along_that_axis(bands_model: Path) -> None:
    scan = drawn_scan((ball((0, 0, 0), (20, 20, 40)), GLAND_HU))
    found = predicted(bands_model, scan, located(0, 0, 0))
    assert found.crops[0].touched == ("feet", "head")
    assert not touches_crop(found)
    assert dice_with_truth(found, scan) > 0.98
    assert found.crops[-1].sides_mm == pytest.approx((96, 64, 64), abs=4)
    assert found.seen is not None
    assert found.seen.geometry.shape == (48, 32, 32)


def test_what_is_larger_than_any_gland_is_flagged_after_a_bounded_number_of_looks(bands_model: Path) -> None:
    scan = drawn_scan((box((-15, -15, -70), (15, 15, 70)), GLAND_HU), shape=(80, 72, 80))
    predictor = Predictor([bands_model], "cpu", "fp32")
    found = predictor.segment(scan, located(0, 0, 0))
    assert touches_crop(found)
    assert 2 <= len(found.crops) <= 4
    quality = judge("c", scan, found)
    (flag,) = [flag for flag in quality.flags if flag.code == "touches_crop"]
    assert "feet, head" in flag.text
    assert f"{len(found.crops)} looks" in flag.text
    assert [crop["used"] for crop in quality.crops].count(True) == 1
    assert quality.crops[0].keys() == {"centre_mm", "sides_mm", "touched", "volume_ml", "used"}


def test_the_scans_edge_is_no_reason_to_look_again(bands_model: Path) -> None:
    scan = drawn_scan((ball((0, 0, -55), 18), GLAND_HU))
    found = predicted(bands_model, scan, located(0, 0, -50))
    assert len(found.crops) == 1
    assert not touches_crop(found)


def test_every_storage_order_takes_the_same_looks(bands_model: Path) -> None:
    scan = drawn_scan((ball((10, -5, 5), 18), GLAND_HU))
    straight = predicted(bands_model, scan, located(10, 15, -13))
    turned = predicted(bands_model, scan.reordered((2, 0, 1), (True, False, True)), located(10, 15, -13))
    assert straight.labels is not None
    assert turned.labels is not None
    back = turned.labels.reordered_like(scan.geometry)
    np.testing.assert_array_equal(back.array, straight.labels.array)
    assert turned.crops == straight.crops


class Forgetful(Bands):
    """Sees nothing more after its first crop."""

    slices = 0

    def forward_with_maps(self, images: Tensor) -> NetworkOutput:
        if self.spatial_dims == 2:
            self.slices += len(images)
            if self.slices > 32:
                images = images * 0 - 1
        return super().forward_with_maps(images)


def test_a_second_look_that_sees_nothing_leaves_the_first(bands_model: Path) -> None:
    scan = drawn_scan((ball((10, -5, 5), 18), GLAND_HU))
    with bands_known(Forgetful):
        found = predicted(bands_model, scan, located(10, 15, -13))
    assert [crop.used for crop in found.crops] == [True, False]
    assert found.crops[1].volume_ml == 0
    assert touches_crop(found)
    assert found.labels is not None
    assert found.labels.array.any()
