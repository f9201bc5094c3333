"""Training batches: image and labels move together, the draw depends on seed and update alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from metricunet.cohort.layout import read_cohort
from metricunet.cohort.prepare import PreparedCase, PrepareSettings, prepare
from metricunet.training.augment import change_hu, in_plane_matrices, read_plane
from metricunet.training.batches import LocateBatches, SegmentBatches, update_generator
from metricunet.training.config import AugmentConfig, load_config
from tests.support.cohorts import TINY_SETTINGS

CPU = torch.device("cpu")
STILL = AugmentConfig(rotation_deg=0, scale=0, mirror=False, shift_hu=0, contrast=0, noise_hu=0, blur_share=0)
CONFIG = load_config("small", settings=TINY_SETTINGS)


@pytest.fixture(scope="module")
def cases(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> list[PreparedCase]:
    cohort = read_cohort(tiny_cohort)
    settings = PrepareSettings(
        "prostate", CONFIG.locate.spacing_mm, CONFIG.segment.spacing_mm, CONFIG.segment.box_mm
    )
    return prepare(cohort.training, cohort.info, settings, tmp_path_factory.mktemp("prepared"))


def segment_batches(cases: list[PreparedCase], augment: AugmentConfig, jitter: float = 0.0) -> SegmentBatches:
    return SegmentBatches(cases, CONFIG.segment, augment, 2, True, (jitter, jitter, jitter), CPU)


def locate_batches(cases: list[PreparedCase], augment: AugmentConfig) -> LocateBatches:
    return LocateBatches(cases, CONFIG.locate, augment, 2, 1, True, CPU)


@pytest.mark.parametrize("stage", ["segment", "locate"])
def test_shapes_ranges_and_determinism(cases: list[PreparedCase], stage: str) -> None:
    augment = AugmentConfig()
    batches = segment_batches(cases, augment, 6) if stage == "segment" else locate_batches(cases, augment)
    one, two, other = (batches.draw(update_generator(0, 1, k, CPU)) for k in (7, 7, 8))
    space = (32, 32) if stage == "segment" else (16, 16, 16)
    assert one.images.shape == (4 if stage == "segment" else 2, 5 if stage == "segment" else 1, *space)
    assert one.labels.shape == (one.images.shape[0], *space)
    assert one.labels.dtype == torch.uint8
    assert one.images.abs().max() <= 1
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.labels, two.labels)
    assert not torch.equal(one.images, other.images)


@pytest.mark.parametrize("stage", ["segment", "locate"])
def test_labels_follow_the_image_through_every_turn(cases: list[PreparedCase], stage: str) -> None:
    """The targets are brighter than all else, so the labels must lie where the image is bright."""
    augment = AugmentConfig(rotation_deg=40, scale=0.2, shift_hu=0, contrast=0, noise_hu=0, blur_share=0)
    batches = segment_batches(cases, augment, 8) if stage == "segment" else locate_batches(cases, augment)
    window = CONFIG.segment.hu_window if stage == "segment" else CONFIG.locate.hu_window
    agreements = []
    for k in range(6):
        batch = batches.draw(update_generator(1, 0, k, CPU))
        middle = batch.images[:, batch.images.shape[1] // 2]
        hu = middle * (window[1] - window[0]) / 2 + sum(window) / 2
        bright = hu > -15  # half way between fat at -90 and the target at 60
        target = batch.labels == 1
        if target.any():
            agreements.append(2 * (bright & target).sum() / (bright.sum() + target.sum()))
    assert len(agreements) >= 4
    assert min(agreements) > (0.93 if stage == "segment" else 0.88)


def test_without_changes_a_batch_is_the_crop_itself(cases: list[PreparedCase]) -> None:
    batches = segment_batches(cases, STILL)
    batch = batches.draw(update_generator(0, 0, 0, CPU))
    low, high = CONFIG.segment.hu_window
    found = 0
    for image, labels in zip(batch.images, batch.labels, strict=True):
        for case in cases:
            if case.fine is None or case.fine_labels is None:
                continue
            crop = np.clip((case.fine.array[:, 8:40, 8:40] - (low + high) / 2) / ((high - low) / 2), -1, 1)
            for k in range(2, len(crop) - 2):
                if np.allclose(crop[k - 2 : k + 3], image.numpy(), atol=1e-4):
                    np.testing.assert_array_equal(case.fine_labels.array[k, 8:40, 8:40], labels.numpy())
                    found += 1
    assert found == 4


def test_mirroring_is_left_right() -> None:
    generator = torch.Generator().manual_seed(0)
    config = AugmentConfig(rotation_deg=0, scale=0, mirror=True)
    matrices = in_plane_matrices(64, config, True, generator)
    assert set(matrices[:, 0, 0].tolist()) == {-1.0, 1.0}
    assert set(matrices[:, 1, 1].tolist()) == {1.0}
    assert (in_plane_matrices(64, config, False, generator)[:, 0, 0] == 1).all()
    plane = torch.arange(12.0).reshape(1, 1, 3, 4)
    mirrored = read_plane(plane, torch.tensor([[1.5, 1.0]]), torch.tensor([[[-1.0, 0], [0, 1]]]), (3, 4))
    torch.testing.assert_close(mirrored, plane.flip(3))


def test_changes_of_hu_are_each_image_its_own() -> None:
    hu = torch.full((8, 1, 4, 4), 100.0)
    config = AugmentConfig(shift_hu=20, contrast=0.2, noise_hu=0, blur_share=0)
    changed = change_hu(hu, config, torch.Generator().manual_seed(0))
    assert len(set(changed[:, 0, 0, 0].tolist())) == 8
    assert (changed.flatten(1).std(dim=1) < 1e-4).all()
    assert ((changed - 100).abs() <= 20 + 0.2 * 60 + 1e-3).all()


def test_noise_has_at_most_its_level() -> None:
    hu = torch.zeros(16, 1, 64, 64)
    config = AugmentConfig(shift_hu=0, contrast=0, noise_hu=12, blur_share=0)
    levels = change_hu(hu, config, torch.Generator().manual_seed(0)).flatten(1).std(dim=1)
    assert levels.max() < 12.5
    assert levels.max() > 8
    assert levels.min() < 4
