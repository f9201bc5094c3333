"""Training batches: image and labels move together, the draw depends on seed and update alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from metricunet.cohort.layout import read_cohort
from metricunet.cohort.prepare import PreparedCase, PrepareSettings, prepare
from metricunet.structures import IGNORE_CLASS
from metricunet.training.batches import AIMED_WITHIN, LocateBatches, SegmentBatches, update_generator
from metricunet.training.config import AugmentConfig, LocateConfig, load_config
from metricunet.volume import Geometry, Volume
from tests.support.cohorts import TINY_SETTINGS
from tests.support.waits import Waits

CPU = torch.device("cpu")
STILL = AugmentConfig(
    rotation_deg=0,
    scale=0,
    mirror=False,
    elastic_share=0,
    shift_hu=0,
    contrast=0,
    noise_hu=0,
    blur_share=0,
    low_resolution_share=0,
)
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
    size, channels = (CONFIG.segment.batch_size, 5) if stage == "segment" else (CONFIG.locate.batch_size, 1)
    assert one.images.shape == (size, channels, *space)
    assert one.labels.shape == (one.images.shape[0], *space)
    assert one.labels.dtype == torch.uint8
    assert one.images.abs().max() <= 1
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.labels, two.labels)
    assert not torch.equal(one.images, other.images)


@pytest.mark.parametrize("stage", ["segment", "locate"])
def test_labels_follow_the_image_through_every_turn(cases: list[PreparedCase], stage: str) -> None:
    """The targets are brighter than all else, so the labels must lie where the image is bright."""
    moves = {"rotation_deg": 40, "scale": 0.2, "mirror": True, "elastic_mm": 12, "elastic_share": 1}
    augment = STILL.model_copy(update=moves)
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


def ramp_case(
    shape: tuple[int, int, int], steps: tuple[int, int, int], step_mm: float, fine: bool = False
) -> PreparedCase:
    """A case whose HU rise by `steps` per voxel; its target is what is right of the middle column."""
    geometry = Geometry.from_parts(shape, (step_mm,) * 3, (0, 0, 0))
    index = np.indices(shape)
    hu = np.tensordot(steps, index, axes=1).astype(np.int16)
    image, labels = Volume(hu, geometry), Volume((index[2] >= shape[2] // 2).astype(np.uint8), geometry)
    boxes = (image, labels) if fine else (None, None)
    return PreparedCase("ramp", image, labels, *boxes, {}, "")


def test_patches_of_scans_of_any_shape_are_those_scans_with_air_around() -> None:
    """Scans of the number of the case and of the coordinates tell what a patch read; scipy reads noise there."""
    draw = np.random.default_rng(0)
    shapes = [(14, 20, 26), (30, 10, 18), (9, 40, 12)]
    grids = [np.indices(shape) for shape in shapes]
    noise = [draw.integers(-900, 1000, shape).astype(np.int16) for shape in shapes]
    kinds = [
        [np.full(shape, 100 * k, dtype=np.int16) for k, shape in enumerate(shapes)],
        *[[(10 * grid[axis]).astype(np.int16) for grid in grids] for axis in range(3)],
        noise,
    ]
    config = CONFIG.locate.model_copy(update={"batch_size": 48, "hu_window": (-1024.0, 1024.0)})
    drawn = []
    for arrays in kinds:
        scans = [ramp_case(shape, (0, 0, 0), 6.0) for shape in shapes]
        scans = [replace(c, coarse=c.coarse.with_array(a)) for c, a in zip(scans, arrays, strict=True)]
        batches = LocateBatches(scans, config, STILL, 2, 1, True, CPU)
        drawn.append(batches.draw(update_generator(0, 0, 0, CPU)))
    numbers, *places, read = [batch.images[:, 0].numpy() * 1024 for batch in drawn]
    patch = np.indices(config.patch_voxels)
    cases = []
    for k in range(len(read)):
        case = round(numbers[k].max() / 100)
        within = np.abs(numbers[k] - 100 * case) < 0.05
        origin = [np.median((places[a][k] / 10 - patch[a])[within]) for a in range(3)]
        at = [patch[a] + origin[a] for a in range(3)]
        wanted = ndimage.map_coordinates(noise[case].astype(float), at, order=1, mode="grid-constant", cval=-1024)
        np.testing.assert_allclose(read[k], wanted, atol=0.5)
        share = ndimage.map_coordinates(
            (grids[case][2] >= shapes[case][2] // 2) * 1.0, at, order=1, mode="grid-constant"
        )
        clear = np.abs(share - 0.5) > 1e-3
        np.testing.assert_array_equal(drawn[-1].labels[k].numpy()[clear], (share > 0.5)[clear])
        cases.append(case)
    assert set(cases) == {0, 1, 2}


def test_patches_are_aimed_at_the_target_or_at_where_it_would_lie() -> None:
    shape, bed = (60, 80, 90), (12, 66, 20)
    held = ramp_case(shape, (0, 0, 0), 6.0)
    empty = held.coarse.with_array(np.zeros(shape, dtype=np.uint8))
    hu = np.indices(shape)
    config = CONFIG.locate.model_copy(
        update={"batch_size": 64, "hu_window": (-1024.0, 1024.0), "target_share": 1.0, "aim_where_absent": True}
    )

    def middles(facts: dict[str, object], config: LocateConfig = config) -> np.ndarray:
        """Where the patches' middles lie, from a scan that tells each voxel's place."""
        found = []
        for axis in range(3):
            scan = held.coarse.with_array((10 * hu[axis]).astype(np.int16))
            case = replace(held, coarse=scan, coarse_labels=empty, facts=facts)
            batch = LocateBatches([case], config, STILL, 2, 1, True, CPU).draw(update_generator(0, 0, 0, CPU))
            middle = [n // 2 for n in config.patch_voxels]
            found.append(batch.images[:, 0, *middle].numpy() * 102.4)
        return np.stack(found, axis=1)

    place_mm = held.coarse.geometry.to_world(np.array([bed]))[0].tolist()
    near = middles({"bed_mm": place_mm})
    reach = np.array(config.patch_voxels) * AIMED_WITHIN + 1
    assert (np.abs(near - bed) <= reach).all()
    assert np.ptp(near, axis=0).min() > 0.5 * reach.min()
    assert (np.abs(middles({}) - bed) > reach).any()
    anywhere = config.model_copy(update={"aim_where_absent": False})
    np.testing.assert_array_equal(middles({"bed_mm": place_mm}, anywhere), middles({}))


def test_slices_beside_a_structure_may_be_chosen_as_often_as_those_that_hold_it() -> None:
    case = ramp_case((40, 48, 48), (4, 0, 0), 2.0, fine=True)
    classes = np.zeros(case.coarse.array.shape, dtype=np.uint8)
    classes[[13, 24, 25]] = 1
    case = replace(case, fine_labels=case.coarse_labels.with_array(classes))

    def chosen(margin_mm: float) -> np.ndarray:
        update = {
            "batch_size": 2000,
            "target_share": 1.0,
            "target_margin_mm": margin_mm,
            "hu_window": (0.0, 200.0),
        }
        config = CONFIG.segment.model_copy(update=update)
        batches = SegmentBatches([case], config, STILL, 2, True, (0, 0, 0), CPU)
        batch = batches.draw(update_generator(0, 1, 0, CPU))
        return np.bincount((batch.images[:, 2, 8, 8] * 25 + 25).round().long(), minlength=40)

    assert set(np.flatnonzero(chosen(0.0))) == {13, 24, 25}
    counts = chosen(2.5 * CONFIG.segment.spacing_mm[0])
    near = [*range(12, 16), *range(22, 28)]  # 11 is beyond what a crop could hold
    assert set(np.flatnonzero(counts)) == set(near)
    assert counts[near].min() > 0.6 * counts[near].max()


@pytest.mark.parametrize("allowed", [True, False])
def test_a_side_stays_a_side_unless_mirroring_is_allowed(allowed: bool) -> None:
    augment = STILL.model_copy(update={"mirror": True, "rotation_deg": 30.0, "elastic_share": 1.0})
    cases = [ramp_case((16, 48, 48), (0, 0, 4), 6.0, fine=True)]
    segment = CONFIG.segment.model_copy(update={"batch_size": 32, "hu_window": (0.0, 200.0)})
    locate = CONFIG.locate.model_copy(update={"batch_size": 32, "hu_window": (0.0, 200.0), "target_share": 1.0})
    drawn = (
        SegmentBatches(cases, segment, augment, 2, allowed, (0, 0, 0), CPU).draw(update_generator(0, 1, 0, CPU)),
        LocateBatches(cases, locate, augment, 2, 1, allowed, CPU).draw(update_generator(0, 0, 0, CPU)),
    )
    for batch in drawn:
        rise = batch.images.diff(dim=-1).flatten(1)
        rise = torch.where(rise == 0, torch.nan, rise)  # in the air, and beyond the window
        mirrored = rise.nanmedian(dim=1).values < 0
        assert bool(mirrored.any()) == allowed
        assert not bool(mirrored.all())


def test_ignored_voxels_stay_ignored() -> None:
    """With and without them in the cohort, other voxels come out the same."""
    plain = ramp_case((16, 48, 48), (0, 0, 4), 6.0, fine=True)
    classes = plain.coarse_labels.array.copy()
    classes[:, :24] = IGNORE_CLASS
    hidden = plain.coarse_labels.with_array(classes)
    part = replace(plain, coarse_labels=hidden, fine_labels=hidden)
    for stage in ("segment", "locate"):
        build = segment_batches if stage == "segment" else locate_batches
        whole, partly = (
            build([case], AugmentConfig()).draw(update_generator(2, 0, 0, CPU)) for case in (plain, part)
        )
        ignored = partly.labels == IGNORE_CLASS
        assert 0.02 < float(ignored.float().mean()) < 0.98
        assert int((whole.labels == IGNORE_CLASS).sum()) == 0
        assert torch.equal(whole.images, partly.images)
        # Where three shares meet, the ignored one may win over either.
        assert float((whole.labels == partly.labels)[~ignored].float().mean()) > 0.99


def test_the_middle_slice_holds_a_structure_as_often_as_asked() -> None:
    case = ramp_case((40, 48, 48), (4, 0, 0), 2.0, fine=True)
    classes = np.zeros(case.coarse.array.shape, dtype=np.uint8)
    classes[[7, 20, 33]] = 1
    case = replace(case, fine_labels=case.coarse_labels.with_array(classes))
    for share in (0.0, 0.6, 1.0):
        update = {"batch_size": 400, "target_share": share, "hu_window": (0.0, 200.0)}
        config = CONFIG.segment.model_copy(update=update)
        batches = SegmentBatches([case], config, STILL, 2, True, (0, 0, 0), CPU)
        batch = batches.draw(update_generator(0, 1, 0, CPU))
        slices = (batch.images[:, 2, 8, 8] * 25 + 25).round().long()
        holding = torch.isin(slices, torch.tensor([7, 20, 33]))
        assert torch.equal(holding, (batch.labels == 1).flatten(1).all(dim=1))
        by_chance = 1 / 16  # one of them is among the slices that a crop could hold
        assert float(holding.float().mean()) >= share - 0.08
        assert float(holding.float().mean()) <= share + (1 - share) * by_chance + 0.08
        if share == 1.0:
            assert holding.all()
            counts = torch.bincount(slices, minlength=40)[[7, 20, 33]]
            assert counts.min() > 100


@pytest.mark.parametrize("stage", ["segment", "locate"])
def test_a_draw_never_waits_for_the_device(cases: list[PreparedCase], stage: str) -> None:
    """No value goes to the host, and no tensor is made of numbers on the host."""
    batches = (
        segment_batches(cases, AugmentConfig(), 6)
        if stage == "segment"
        else locate_batches(cases, AugmentConfig())
    )
    with Waits() as waits:
        batches.draw(update_generator(0, 1, 3, CPU))
    assert waits.found == []
    with Waits() as waits:
        torch.arange(3.0)[torch.tensor([True, False, True])].sum().item()
    assert len(waits.found) >= 3  # the check itself sees what it should
