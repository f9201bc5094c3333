"""A prediction as a plain value: what the cards of several models say together, and where each mask lies."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from metricunet.errors import InputError
from metricunet.files.model import ModelCard, read_card
from metricunet.quality.prediction import EnsembleCard, Prediction, structure_masks
from metricunet.stages.locate import Localisation
from metricunet.volume import Geometry, Volume
from tests.support.threshold_model import write_bands_model

LABELS = {"prostate": 1, "bladder": 40}
FOUND = Localisation("found", 0.9, "one candidate", np.zeros(3), 30.0)
ABSENT = Localisation("absent", 0.0, "no candidate", None, 0.0)


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    return read_card(
        write_bands_model(
            tmp_path_factory.mktemp("card") / "model.safetensors",
            LABELS,
            [(0, 1), (2, 3)],
            ranges={"volume_ml": (20, 40), "noise_hu": (5, 9)},
        )
    )


def predicted(card: ModelCard, scan: Volume) -> Prediction:
    """A prostate of 2 x 1 x 3 voxels whose place is known along the canonical axes, and no bladder."""
    canonical = scan.canonical()
    classes = np.zeros((4, 5, 6), dtype=np.uint8)
    classes[1:3, 2, 3:6] = 1
    start = (1, 2, 3)
    labels = np.zeros(canonical.array.shape, dtype=np.uint8)
    labels[1:5, 2:7, 3:9] = classes
    return Prediction(
        EnsembleCard.of([card]),
        FOUND,
        scan.geometry,
        canonical.with_array(labels).reordered_like(scan.geometry),
        canonical.with_array(labels).crop(start, classes.shape),
        start,
        structure_masks(classes, list(LABELS), start),
    )


def test_several_cards_say_what_any_of_them_has_seen(card: ModelCard) -> None:
    other = replace(card, ranges={"volume_ml": (10.0, 30.0), "crop_hu": (0.0, 9.0)}, trained_on="synthetic")
    both = EnsembleCard.of([card, other])
    assert both.ranges == {"volume_ml": (10, 40), "noise_hu": (5, 9), "crop_hu": (0, 9)}
    assert both.synthetic
    assert (both.labels, both.target, both.target_class) == (LABELS, "prostate", 1)
    one = EnsembleCard.of([card])
    assert (one.ranges, one.synthetic, one.held_back) == (card.ranges, False, "")
    assert both.held_back == other.held_back != ""


def test_masks_lie_on_the_smallest_boxes_that_hold_them() -> None:
    classes = np.zeros((4, 5, 6), dtype=np.uint8)
    classes[1, 1:4, 2] = 1
    classes[1, 2, 2:5] = 3
    found = structure_masks(classes, ["a", "b", "c"], (10, 20, 30))
    assert list(found) == ["a", "c"]
    assert found["a"].start == (11, 21, 32)
    assert found["a"].array[0, :, 0].tolist() == [True, False, True]  # one voxel of its box is another's
    assert found["c"].box == (slice(11, 12), slice(22, 23), slice(32, 35))
    assert structure_masks(np.zeros_like(classes), ["a"], (0, 0, 0)) == {}


@pytest.mark.parametrize("axes", list(permutations(range(3))))
def test_a_mask_on_the_scans_own_grid_is_that_of_its_labels(card: ModelCard, axes: tuple[int, int, int]) -> None:
    geometry = Geometry.from_parts((8, 9, 10), (3, 1, 1))
    scan = Volume(np.zeros(geometry.shape, np.int16), geometry).reordered(axes, (True, False, True))
    found = predicted(card, scan)
    assert found.labels is not None
    mask = found.mask("prostate")
    assert mask.geometry is scan.geometry
    assert mask.array.dtype == bool
    np.testing.assert_array_equal(mask.array, found.labels.array == 1)
    assert mask.array.sum() == 6
    assert not found.mask("bladder").array.any()


def test_the_mask_of_what_was_not_found_is_empty(card: ModelCard) -> None:
    geometry = Geometry.from_parts((3, 4, 5), (3, 1, 1))
    absent = Prediction(EnsembleCard.of([card]), ABSENT, geometry)
    mask = absent.mask("prostate")
    assert mask.geometry is geometry
    assert mask.array.dtype == bool
    assert mask.array.shape == (3, 4, 5)
    assert not mask.array.any()
    with pytest.raises(InputError, match="'rectum'; the model segments prostate, bladder"):
        absent.mask("rectum")


def test_verdicts_need_no_network() -> None:
    """They are read and made where nothing is computed, so they must not wait for torch."""
    words = "import metricunet.quality.verdict, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", words], check=False).returncode == 0
