"""Phantoms made straight on the grids of the stages: the same patients that a scan on disk would have shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from metricunet.cohort.prepare import OrgansSettings, PrepareSettings, hu_on
from metricunet.phantom import stream
from metricunet.phantom.imaging import NOISE_SLICE_MM, render_image, tissue_layers
from metricunet.phantom.make import Drawn, draw_phantom
from metricunet.phantom.scanner import Couch, Scan
from metricunet.phantom.stream import StreamRecipe, coarser, streamed_case, within
from metricunet.phantom.varied import lose
from metricunet.phantom.variety import PART_SHARE, Variety
from metricunet.stages.locate import coarse_grid
from metricunet.volume import Volume, resample_labels, voxels_of

ORGANS = OrgansSettings(("bladder",), (2.0, 2.0, 2.0), (232.0, 192.0, 288.0))
SETTINGS = PrepareSettings("prostate", organs=ORGANS)
RECIPE = StreamRecipe(3, "varied", ("prostate", "bladder"), "prostate", absent_fraction=0.25)
#: The first patient whose scan shows no prostate, by his number.
ABSENT = 3


def scan_of(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], noise_hu: float = 20.0) -> Scan:
    couch = Couch(True, 200.0, 40.0, -300.0, -900.0)
    return Scan(shape, spacing_mm, (-10.0, -20.0, -30.0), (1.0, 2.0, 3.0), noise_hu, 1.0, couch, 0.0)


@pytest.fixture(scope="module")
def quiet() -> Drawn:
    """The first patient, without noise."""
    drawn = draw_phantom(RECIPE.patient_seed("train", 0), "varied")
    return replace(
        drawn, scan=replace(drawn.scan, noise_hu=0.0), appearance=replace(drawn.appearance, streak_hu=0.0)
    )


@pytest.fixture(scope="module")
def whole(quiet: Drawn) -> tuple[Volume, Volume]:
    """His scan as it would lie on a disk, and its labels."""
    return quiet.image(), quiet.labels({"prostate": 1, "bladder": 2})


@pytest.fixture(scope="module")
def streamed(quiet: Drawn) -> stream.StreamedCase:
    """The same man from the stream."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "draw_phantom", lambda *_: quiet)
        return streamed_case(RECIPE, SETTINGS, "train", 0, ("coarse", "fine", "organs"))


def test_the_fine_box_is_that_of_the_whole_scan(
    whole: tuple[Volume, Volume], streamed: stream.StreamedCase
) -> None:
    image, labels = whole
    fine = streamed.box("fine")
    assert fine is not None
    grid = fine.hu.geometry
    centre = labels.geometry.to_world(np.argwhere(labels.array == 1).mean(axis=0))
    np.testing.assert_allclose(grid.centre_mm, centre, atol=1e-6)
    target = labels.with_array((labels.array == 1).astype(np.uint8))
    np.testing.assert_array_equal(fine.labels.array, resample_labels(target, grid).array)
    # Each rendering rounds for itself.
    gap = np.abs(hu_on(image, grid).array.astype(float) - fine.hu.array)
    assert np.quantile(gap, 0.999) <= 1
    assert streamed.facts["volume_ml"] == pytest.approx(
        (labels.array == 1).sum() * labels.geometry.voxel_volume_ml
    )
    assert streamed.facts["target_hu"] == np.median(image.array[labels.array == 1])


def test_the_box_of_the_organs_is_near_that_of_the_whole_scan(
    whole: tuple[Volume, Volume], streamed: stream.StreamedCase
) -> None:
    image, labels = whole
    found = streamed.box("organs")
    assert found is not None
    grid = found.hu.geometry
    assert grid.extent_mm == pytest.approx(ORGANS.box_mm)
    np.testing.assert_allclose(grid.centre_mm, streamed.facts["centre_mm"], atol=1e-6)
    bladder = labels.with_array((labels.array == 2).astype(np.uint8))
    assert (resample_labels(bladder, grid).array == found.labels.array).mean() > 0.999
    gap = np.abs(hu_on(image, grid).array.astype(float) - found.hu.array)
    assert np.median(gap) < 4


def test_the_coarse_scan_is_near_that_of_the_whole_scan(
    whole: tuple[Volume, Volume], streamed: stream.StreamedCase
) -> None:
    image, labels = whole
    grid = coarse_grid(image.geometry, SETTINGS.coarse_spacing_mm)
    assert streamed.coarse is not None
    assert streamed.coarse_labels is not None
    assert streamed.coarse.geometry.same_grid(grid)
    target = labels.with_array((labels.array == 1).astype(np.uint8))
    same = resample_labels(target, grid).array == streamed.coarse_labels.array
    assert same.mean() > 0.999
    expected = hu_on(image, grid).array
    soft = np.abs(expected) < 200
    gap = expected[soft].astype(float) - streamed.coarse.array[soft]
    assert abs(gap.mean()) < 1
    assert np.abs(gap).mean() < 5


def test_the_same_patient_comes_out_the_same() -> None:
    one, two = (streamed_case(RECIPE, SETTINGS, "train", 1, ("fine",)) for _ in range(2))
    np.testing.assert_array_equal(one.boxes["fine"].hu.array, two.boxes["fine"].hu.array)
    assert one.coarse is None
    assert one.facts == two.facts


def test_who_is_who() -> None:
    seeds = {RECIPE.patient_seed(use, n) for use in ("train", "validate") for n in range(50)}
    assert len(seeds) == 100
    assert [n for n in range(8) if not RECIPE.reaches_target(n)] == [ABSENT, ABSENT + 4]
    assert RECIPE.sha256(pool=3) != RECIPE.sha256(pool=4)
    assert RECIPE.sha256() != replace(RECIPE, seed=4).sha256()


def test_stage_1_can_do_without_what_the_boxes_have() -> None:
    bare = Variety(joints=False)
    both = replace(RECIPE, coarse_variety=bare)
    case = streamed_case(both, SETTINGS, "train", 0, ("coarse", "fine", "organs"))
    usual = streamed_case(RECIPE, SETTINGS, "train", 0, ("coarse", "fine", "organs"))
    without = streamed_case(replace(RECIPE, variety=bare), SETTINGS, "train", 0, ("coarse",))
    assert case.coarse is not None
    assert usual.coarse is not None
    assert without.coarse is not None
    assert np.array_equal(case.coarse.array, without.coarse.array)
    assert not np.array_equal(case.coarse.array, usual.coarse.array)
    for name, box in usual.boxes.items():
        assert np.array_equal(case.boxes[name].hu.array, box.hu.array)
    assert both.sha256() != RECIPE.sha256()


def test_stage_1_alone_can_see_tissues_drawn_anew_and_is_judged_by_real_ones() -> None:
    anew = replace(RECIPE, coarse_variety=Variety(tissues=True))
    changed = 0
    for number in range(4):
        case, usual = (streamed_case(r, SETTINGS, "train", number, ("coarse", "fine")) for r in (anew, RECIPE))
        assert case.coarse is not None
        assert usual.coarse is not None
        assert case.coarse_labels is not None
        assert usual.coarse_labels is not None
        changed += not np.array_equal(case.coarse.array, usual.coarse.array)
        assert np.array_equal(case.coarse_labels.array, usual.coarse_labels.array)
        for name, box in usual.boxes.items():
            assert np.array_equal(case.boxes[name].hu.array, box.hu.array)
        judged, real = (streamed_case(r, SETTINGS, "validate", number, ("coarse",)).coarse for r in (anew, RECIPE))
        assert judged is not None
        assert real is not None
        assert np.array_equal(judged.array, real.array)
    assert 0 < changed < 4


def test_stage_2_need_not_see_where_a_gland_would_lie() -> None:
    recipe = replace(RECIPE, absent_fraction=1.0, mistaken="elsewhere")
    kinds = {lose(recipe.patient_seed("train", n)): n for n in range(40)}
    assert not streamed_case(recipe, SETTINGS, "train", kinds["woman"], ("fine",)).boxes
    assert not streamed_case(recipe, SETTINGS, "train", kinds["prostatectomy"], ("fine",)).boxes
    elsewhere = next(number for lost, number in kinds.items() if lost in PART_SHARE)
    shown = streamed_case(recipe, SETTINGS, "train", elsewhere, ("fine",))
    assert not shown.boxes["fine"].labels.array.any()


def test_a_patient_without_a_prostate_has_a_box_with_nothing_to_find() -> None:
    case = streamed_case(RECIPE, SETTINGS, "train", ABSENT, ("fine", "organs"))
    assert set(case.boxes) == {"fine"}
    fine = case.boxes["fine"]
    assert fine.hu.geometry.shape == fine.labels.geometry.shape == voxels_of(SETTINGS.box_mm, (2.0, 1.0, 1.0))
    assert not (fine.labels.array == 1).any()
    assert "centre_mm" not in case.facts
    assert "volume_ml" not in case.facts
    again = streamed_case(RECIPE, SETTINGS, "train", ABSENT, ("fine",)).boxes["fine"]
    assert np.array_equal(again.hu.array, fine.hu.array)
    assert not streamed_case(RECIPE, SETTINGS, "validate", ABSENT, ("fine", "organs")).boxes


@pytest.mark.parametrize("lost", ["woman", "prostatectomy"])
def test_the_empty_box_lies_where_the_gland_would(lost: str) -> None:
    recipe = replace(RECIPE, absent_fraction=1.0)
    number = next(n for n in range(100) if lose(recipe.patient_seed("train", n)) == lost)
    drawn = draw_phantom(recipe.patient_seed("train", number), "varied", reaches_prostate=False)
    case = streamed_case(recipe, SETTINGS, "train", number, ("fine",))
    box = case.boxes["fine"]
    centre = box.hu.geometry.to_world((np.array(box.hu.geometry.shape) - 1) / 2)
    bed = (np.array(drawn.gland_mm[0]) + np.array(drawn.gland_mm[1])) / 2 + np.array(drawn.scan.world_shift_mm)
    assert case.facts["bed_mm"] == pytest.approx(bed)
    assert np.abs(centre - bed).max() < 5 * stream.MISTAKEN_MM
    assert (box.hu.array > -200).mean() > 0.8
    assert not (box.labels.array == 1).any()


@pytest.mark.parametrize("shown", ["head", "missed", "whole"])
def test_nobody_says_where_a_gland_would_lie_that_is_there_or_out_of_sight(shown: str) -> None:
    recipe = replace(RECIPE, absent_fraction=0.0 if shown == "whole" else 1.0)
    number = next(n for n in range(200) if shown in ("whole", lose(recipe.patient_seed("train", n))))
    assert "bed_mm" not in streamed_case(recipe, SETTINGS, "train", number, ()).facts


def test_a_part_of_a_scan_lies_on_its_voxels() -> None:
    scan = scan_of((40, 50, 60), (2.0, 0.5, 0.7))
    part = within(scan, (0.0, -15.0, 10.3), (12.0, -10.0, 21.0))
    assert part is not None
    offset = (np.array(part.start_mm) - scan.start_mm) / np.array(scan.spacing_mm[::-1])
    np.testing.assert_allclose(offset, np.round(offset), atol=1e-9)
    assert all(a <= b for a, b in zip(part.start_mm, (0.0, -15.0, 10.3), strict=True))
    assert all(a >= b for a, b in zip(part.end_mm, (12.0, -10.0, 21.0), strict=True))
    assert part.spacing_mm == scan.spacing_mm
    all_of_it = within(scan, (-1e3,) * 3, (1e3,) * 3)
    assert all_of_it == scan
    assert within(scan, (-10.0, -20.0, 200.0), (0.0, 0.0, 300.0)) is None


@pytest.mark.parametrize(
    ("spacing", "most", "joined"),
    [
        ((2.0, 0.5, 0.5), (2.0, 2.0, 2.0), (1, 4, 4)),
        ((0.6, 0.9, 0.9), (2.0, 2.0, 2.0), (3, 2, 2)),
        ((5.0, 2.5, 2.5), (2.0, 2.0, 2.0), (1, 1, 1)),
    ],
)
def test_a_coarser_scan_covers_the_same_field(
    spacing: tuple[float, float, float], most: tuple[float, float, float], joined: tuple[int, int, int]
) -> None:
    scan = scan_of((24, 48, 48), spacing)
    found = coarser(scan, most)
    np.testing.assert_allclose(found.spacing_mm, np.array(spacing) * joined)
    assert found.shape == tuple(n // k for n, k in zip(scan.shape, joined, strict=True))
    faces = np.array(scan.start_mm) - np.array(spacing[::-1]) / 2
    np.testing.assert_allclose(np.array(found.start_mm) - np.array(found.spacing_mm[::-1]) / 2, faces)
    if joined == (1, 1, 1):
        assert found.noise_hu == scan.noise_hu


def test_the_noise_of_a_coarser_scan_is_that_of_the_mean() -> None:
    joined, spacing = (2, 3, 3), (1.0, 0.7, 0.7)
    scan = scan_of((60, 240, 240), spacing)
    expected = coarser(scan, (2.0, 2.1, 2.1)).noise_hu
    drawn = draw_phantom(0, "easy")
    # High above the patient there is air and nothing else: less noisy by a factor of its own.
    far = replace(scan, start_mm=(-80.0, -2000.0, 0.0))
    layers = tissue_layers(drawn.shapes, drawn.appearance)
    image = render_image(drawn.shapes, far, drawn.appearance, layers, np.random.default_rng(0)).astype(float)
    blocks = image.reshape(30, joined[0], 80, joined[1], 80, joined[2]).mean(axis=(1, 3, 5))
    assert blocks.std() / image.std() == pytest.approx(expected / scan.noise_hu, rel=0.05)
    assert spacing[0] > NOISE_SLICE_MM  # else neighbouring slices would be too alike for so few of them
