"""Blocks of slices for 3D training: cut from where they should be, moved with their labels, drawn by seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metricunet.cohort.prepare import PreparedCase
from metricunet.structures import IGNORE_CLASS
from metricunet.training.batches import BlockBatches, SegmentBatches, update_generator
from metricunet.training.config import AugmentConfig, SegmentConfig, load_config
from metricunet.volume import Geometry, Volume

CPU = torch.device("cpu")
STILL = AugmentConfig().model_copy(
    update={
        "rotation_deg": 0.0, "scale": 0.0, "mirror": False, "elastic_share": 0.0, "shift_hu": 0.0, "contrast": 0.0,
        "noise_hu": 0.0, "blur_share": 0.0, "low_resolution_share": 0.0,
    }
)  # fmt: skip


def settings(**changes: object) -> SegmentConfig:
    base = load_config("small").segment
    usual: dict[str, object] = {
        "network": "vnet", "spatial_dims": 3, "block_slices": 8, "batch_size": 6, "hu_window": (-100, 100),
        "spacing_mm": (2, 1, 1), "crop_mm": (32, 24, 24), "box_mm": (48, 36, 32),
    }  # fmt: skip
    return base.model_copy(update=usual | changes)


def case(hu: np.ndarray, labels: np.ndarray) -> PreparedCase:
    grid = Geometry.from_parts(hu.shape, (2, 1, 1), (0, 0, 0))
    fine = Volume(hu.astype(np.int16), grid), Volume(labels.astype(np.uint8), grid)
    return PreparedCase("c", fine[0], fine[1], fine[0], fine[1], {}, "0")


def ramp() -> PreparedCase:
    """HU tell the slice: 4 for each; the structure is in slices 10 to 13."""
    hu = np.broadcast_to(4.0 * np.arange(24)[:, None, None] - 50, (24, 36, 32))
    labels = np.zeros(hu.shape)
    labels[10:14, 10:26, 8:24] = 1
    return case(hu, labels)


def blocks(
    cases: list[PreparedCase], augment: AugmentConfig, jitter: float = 0.0, **changes: object
) -> BlockBatches:
    return BlockBatches(cases, settings(**changes), augment, 2, True, (jitter, jitter, jitter), CPU)


def test_a_block_is_neighbouring_slices_in_their_order() -> None:
    """Known answer: without changes each slice shows its own number; all slices of a crop occur, no others."""
    batches = blocks([ramp()], STILL, target_share=0.0)
    seen: set[int] = set()
    for update in range(20):
        drawn = batches.draw(update_generator(0, 1, update, CPU))
        assert drawn.images.shape == (6, 1, 8, 24, 24)
        assert drawn.labels.shape == (6, 8, 24, 24)
        assert drawn.labels.dtype == torch.uint8
        number = (drawn.images[:, 0] * 100 + 50) / 4
        first = number[:, :1, :1, :1]
        torch.testing.assert_close(number, (first + torch.arange(8.0)[:, None, None]).expand_as(number))
        for start, labels in zip(first.flatten().round().int().tolist(), drawn.labels, strict=True):
            inside = [10 <= start + k < 14 for k in range(8)]
            assert labels.flatten(1).any(dim=1).tolist() == inside
            # 36 x 32 voxels give a middle crop of 24 x 24 that begins at row 6 and column 4.
            assert all(bool((labels[k, 4:20, 4:20] == 1).all()) for k in range(8) if inside[k])
            seen |= set(range(start, start + 8))
    # The crop is 16 slices high in a box of 24.
    assert seen == set(range(4, 20))


def test_jitter_reaches_farther_and_stays_in_the_box() -> None:
    batches = blocks([ramp()], STILL, jitter=100.0, target_share=0.0)
    firsts = [
        int(first)
        for update in range(40)
        for first in (
            (batches.draw(update_generator(0, 1, update, CPU)).images[:, 0, 0, 0, 0] * 100 + 50) / 4
        ).round()
    ]
    assert (min(firsts), max(firsts)) == (0, 16)


def test_chosen_blocks_hold_a_structure_anywhere_in_them() -> None:
    batches = blocks([ramp()], STILL, target_share=1.0)
    drawn = [batches.draw(update_generator(0, 1, update, CPU)).labels for update in range(20)]
    held = torch.cat(drawn).flatten(2).any(dim=2)
    assert held.any(dim=1).all()
    assert held.any(dim=0).all()


def test_labels_follow_the_image_through_every_turn_of_the_block() -> None:
    """Image and labels are one; after the turn they must agree, on every slice, but for the rim."""
    generator = np.random.default_rng(0)
    labels = generator.random((24, 36, 32)) < 0
    labels[8:16, 9:20, 6:23] = True
    labels[10:14, 20:30, 6:12] = True
    one = case(np.where(labels, 100, -100), labels)
    turning = STILL.model_copy(update={"rotation_deg": 40.0, "scale": 0.2, "mirror": True})
    batches = blocks([one], turning, jitter=6.0)
    for update in range(5):
        drawn = batches.draw(update_generator(1, 1, update, CPU))
        bright = drawn.images[:, 0] > 0
        assert (bright == (drawn.labels == 1)).float().mean() > 0.995
        # One turn for the whole block: in-plane outlines of slices with equal labels are equal.
        for block in drawn.labels:
            shapes = {bytes(plane.numpy().tobytes()) for plane in block if plane.any()}
            assert len(shapes) <= 2


def test_voxels_that_nobody_contoured_stay_so() -> None:
    labels = np.zeros((24, 36, 32))
    labels[:, :18] = IGNORE_CLASS
    labels[:, 18:] = 1
    drawn = blocks([case(np.zeros(labels.shape), labels)], STILL).draw(update_generator(0, 1, 0, CPU))
    assert (drawn.labels[..., :12, :] == IGNORE_CLASS).all()
    assert (drawn.labels[..., 12:, :] == 1).all()


def test_hu_change_alike_through_a_block() -> None:
    """A change of level and contrast is one for the block; noise is each voxel's own."""
    level = STILL.model_copy(update={"shift_hu": 20.0, "contrast": 0.2})
    flat = case(np.full((24, 36, 32), 30.0), np.ones((24, 36, 32)))
    images = blocks([flat], level).draw(update_generator(0, 1, 3, CPU)).images
    values = images.flatten(1)
    torch.testing.assert_close(values, values[:, :1].expand_as(values))
    assert len(set(values[:, 0].tolist())) == 6
    noisy = blocks([flat], STILL.model_copy(update={"noise_hu": 10.0})).draw(update_generator(0, 1, 3, CPU)).images
    assert noisy.std(dim=2).min() > 0


def test_the_draw_depends_on_seed_and_update_alone() -> None:
    batches = blocks([ramp(), ramp()], AugmentConfig(), jitter=5.0)
    one, two, other = (batches.draw(update_generator(0, 1, k, CPU)) for k in (7, 7, 8))
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.labels, two.labels)
    assert not torch.equal(one.images, other.images)
    assert one.images.abs().max() <= 1


@pytest.mark.parametrize("name", ["rotation_deg", "shift_hu"])
def test_a_block_of_one_slice_is_a_slice(name: str) -> None:
    """The same random changes as the 2.5D batches make: one slice in either gives values from one distribution."""
    changes = STILL.model_copy(update={name: 20.0})
    labels = np.zeros((24, 36, 32))
    labels[:, 12:24, 6:26] = 1
    hu = 50 * labels
    flat = SegmentBatches([case(hu, labels)], settings(slices=1), changes, 2, True, (0, 0, 0), CPU)
    solid = blocks([case(hu, labels)], changes, block_slices=1)
    means = [
        torch.stack([b.draw(update_generator(0, 1, k, CPU)).images.mean() for k in range(60)])
        for b in (flat, solid)
    ]
    assert float(means[0].mean()) == pytest.approx(float(means[1].mean()), abs=0.03)
