"""Random changes: known answers, independent oracles, and what may never happen (folds, unwanted mirroring)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.interpolate import BSpline
from torch import Tensor

from metricunet.training.augment import (
    Warp,
    blur_matrices,
    change_hu,
    in_plane_matrices,
    low_resolution_matrices,
    read,
    read_classes,
    smooth,
    spline_basis,
)
from metricunet.training.config import ELASTIC_GRID_MM, AugmentConfig

CPU = torch.device("cpu")
STILL = {
    "rotation_deg": 0,
    "scale": 0,
    "mirror": False,
    "elastic_share": 0,
    "shift_hu": 0,
    "contrast": 0,
    "noise_hu": 0,
    "blur_share": 0,
    "low_resolution_share": 0,
}
LARGEST_ELASTIC_MM = 0.4 * ELASTIC_GRID_MM


def changes(**named: object) -> AugmentConfig:
    """A configuration that does what is named, and nothing else."""
    return AugmentConfig.model_validate(STILL | named)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def positions(warp: Warp, points: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Offsets that voxels read, found from an image of the coordinates: [batch, axes, *crop], column first."""
    size = [3 * n for n in shape]
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in size], indexing="ij")
    middle = torch.tensor([(n - 1) / 2 for n in reversed(size)]).expand(len(points), -1)
    images = torch.stack(axes[::-1]).expand(len(points), *[-1] * (len(shape) + 1))
    found = read(images, warp.grid(points, middle, torch.tensor(size[::-1])))
    return found - middle.view(*middle.shape, *[1] * len(shape))


def offsets(shape: tuple[int, ...]) -> Tensor:
    """Offsets of voxels from the middle of a crop: [axes, *crop], (column, row[, slice])."""
    sides = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in shape]
    return torch.stack(torch.meshgrid(*sides, indexing="ij")[::-1])


# Where voxels are read


@pytest.mark.parametrize(
    ("voxels", "spacing_mm"), [(128, 1.0), (48, 4.0), (40, 4.0), (7, 1.5), (1, 2.0), (65, 0.5)]
)
def test_the_spline_is_scipys_and_reproduces_straight_lines(voxels: int, spacing_mm: float) -> None:
    weights, place_mm = spline_basis(voxels, spacing_mm)
    offset_mm = (np.arange(voxels) - (voxels - 1) / 2) * spacing_mm
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(voxels))
    np.testing.assert_allclose((weights @ place_mm).numpy(), offset_mm, atol=1e-4)
    for k, place in enumerate(place_mm.tolist()):
        element = BSpline.basis_element(place + ELASTIC_GRID_MM * np.arange(-2, 3), extrapolate=False)
        np.testing.assert_allclose(weights[:, k].numpy(), np.nan_to_num(element(offset_mm)), atol=1e-5)


@pytest.mark.parametrize(("shape", "spacing_mm"), [((32, 48), (1.0, 1.0)), ((8, 16, 24), (4.0, 3.0, 2.0))])
def test_without_changes_a_crop_is_read_as_it_is(shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> None:
    warp = Warp(shape, spacing_mm, changes(), True, CPU)
    found = positions(warp, warp.draw(3, seeded(0))[0], shape)
    torch.testing.assert_close(found, offsets(shape).expand_as(found), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("shape", "spacing_mm"), [((33, 65), (2.0, 1.0)), ((9, 17, 33), (8.0, 4.0, 2.0))])
def test_a_moved_control_point_moves_voxels_as_its_spline_says(
    shape: tuple[int, ...], spacing_mm: tuple[float, ...]
) -> None:
    """These crops are 64 mm wide, so the third control point is at the middle voxel: a weight of 2/3 per axis."""
    warp = Warp(shape, spacing_mm, changes(), True, CPU)
    points = warp.draw(1, seeded(0))[0].clone()
    points[(0, *[2] * len(shape), 0)] += 6.0
    moved = (positions(warp, points, shape) - offsets(shape))[0]
    voxel = tuple(n // 2 for n in shape)
    assert moved[(0, *voxel)] == pytest.approx(6 * (2 / 3) ** len(shape), abs=1e-4)
    assert moved[0].abs().max() == pytest.approx(float(moved[(0, *voxel)]), abs=1e-4)
    assert moved[1:].abs().max() < 1e-4
    # The corner is as far away as the next control point along every axis: a weight of 1/6 each.
    assert moved[0].flatten()[0] == pytest.approx(6 * (1 / 6) ** len(shape), abs=1e-4)


def test_a_turn_is_a_turn_in_mm_where_voxels_are_not_square() -> None:
    """Read back in mm, the map must keep lengths and right angles."""
    spacing_mm = (3.0, 1.0)
    warp = Warp((16, 48), spacing_mm, changes(rotation_deg=60), False, CPU)
    found = positions(warp, warp.draw(8, seeded(3))[0], (16, 48))
    along = (found[:, :, :, 1:] - found[:, :, :, :-1]) * torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
    down = (found[:, :, 1:] - found[:, :, :-1]) * torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(along.norm(dim=1), torch.ones(8, 16, 47), atol=1e-3, rtol=0)
    torch.testing.assert_close(down.norm(dim=1), torch.full((8, 15, 48), 3.0), atol=1e-3, rtol=0)
    assert (along[:, :, :15] * down[:, :, :, :47]).sum(dim=1).abs().max() < 1e-2
    turns = torch.atan2(along[:, 1, 0, 0], along[:, 0, 0, 0]).rad2deg()
    assert turns.abs().max() <= 60
    assert turns.std() > 10


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), space=st.booleans(), step_mm=st.sampled_from([1.0, 2.0, 4.0]))
def test_a_field_moves_no_voxel_further_than_it_may_and_never_folds(
    seed: int, space: bool, step_mm: float
) -> None:
    shape = (12, 24, 28) if space else (48, 56)
    config = changes(elastic_mm=LARGEST_ELASTIC_MM, elastic_share=1)
    warp = Warp(shape, (step_mm,) * len(shape), config, False, CPU)
    found = positions(warp, warp.draw(2, seeded(seed))[0], shape)
    assert (found - offsets(shape)).abs().max() * step_mm <= LARGEST_ELASTIC_MM + 1e-3
    assert determinants(found).min() > 0


def determinants(found: Tensor) -> Tensor:
    """Jacobian determinants of maps [batch, axes, *crop], by differences between neighbours."""
    dims = found.dim() - 2
    corner = (slice(None), slice(None), *[slice(-1)] * dims)
    steps = [found.diff(dim=found.dim() - 1 - k) for k in range(dims)]
    columns = [step[(..., *[slice(0, n - 1) for n in found.shape[2:]])] for step in steps]
    assert found[corner].shape == columns[0].shape
    return torch.linalg.det(torch.stack(columns, dim=-1).movedim(1, -2))


def test_the_worst_field_does_not_fold() -> None:
    """Neighbouring control points moved against each other as far as the setting lets them."""
    for shape in ((96, 96), (24, 24, 24)):
        step_mm = 96 / shape[0]
        warp = Warp(shape, (step_mm,) * len(shape), changes(), False, CPU)
        points = warp.draw(1, seeded(0))[0]
        signs = [torch.arange(n) % 2 * -2.0 + 1 for n in points.shape[1:-1]]
        checker = signs[0][:, None] * signs[1]
        if len(shape) == 3:
            checker = signs[0][:, None, None] * signs[1][:, None] * signs[2]
        for flips in range(2 ** len(shape)):
            direction = torch.tensor([-1.0 if flips >> k & 1 else 1.0 for k in range(len(shape))])
            moves = (
                checker[..., None] * torch.ones(len(shape)),
                torch.stack(
                    [
                        s.view([-1 if k == a else 1 for k in range(len(shape))]).expand(checker.shape)
                        for a, s in enumerate(signs)
                    ][::-1],
                    dim=-1,
                ),
            )
            for move in moves:
                worst = points + LARGEST_ELASTIC_MM / step_mm * direction * move
                assert determinants(positions(warp, worst, shape)).min() > 0


def test_the_default_field_is_smooth_and_of_the_stated_size() -> None:
    config = changes(elastic_mm=8, elastic_share=1)
    for shape, step_mm, part in (((128, 128), 1.0, 0.277), ((40, 48, 48), 4.0, 0.191)):
        warp = Warp(shape, (step_mm,) * len(shape), config, False, CPU)
        found = positions(warp, warp.draw(12, seeded(1))[0], shape)
        moved_mm = (found - offsets(shape)) * step_mm
        assert moved_mm.std() == pytest.approx(8 * part, rel=0.1)
        assert determinants(found).min() > 0.3
        # A cubic B-spline bends by at most the second differences of its control points.
        bend = moved_mm.diff(n=2, dim=-1).abs().max() / step_mm**2
        assert bend < 8 * 4 / ELASTIC_GRID_MM**2


def test_the_share_of_images_with_a_field() -> None:
    for share in (0.0, 0.3, 1.0):
        warp = Warp((16, 16), (4.0, 4.0), changes(elastic_share=share), False, CPU)
        moved = (positions(warp, warp.draw(400, seeded(0))[0], (16, 16)) - offsets((16, 16))).abs().amax((1, 2, 3))
        assert float((moved > 1e-3).float().mean()) == pytest.approx(share, abs=0.07)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rotation_deg=st.floats(0, 180),
    scale=st.floats(0, 0.4),
    space=st.booleans(),
)
def test_nothing_is_read_beyond_the_reach(seed: int, rotation_deg: float, scale: float, space: bool) -> None:
    shape, spacing_mm = ((6, 20, 12), (4.0, 2.0, 3.0)) if space else ((20, 12), (2.0, 3.0))
    config = changes(rotation_deg=rotation_deg, scale=scale, mirror=True, elastic_mm=12, elastic_share=1)
    warp = Warp(shape, spacing_mm, config, True, CPU)
    found = warp.spread(warp.draw(16, seeded(seed))[0]).abs().flatten(1, -2).amax((0, 1))
    assert (found <= torch.tensor(warp.reach_voxels()[::-1]) + 1e-3).all()


def test_mirroring_is_left_right_and_only_where_it_is_allowed() -> None:
    config = changes(mirror=True)
    matrices = in_plane_matrices(64, config, True, seeded(0))
    assert set(matrices[:, 0, 0].tolist()) == {-1.0, 1.0}
    assert set(matrices[:, 1, 1].tolist()) == {1.0}
    assert (in_plane_matrices(64, config, False, seeded(0))[:, 0, 0] == 1).all()
    for shape in ((8, 10), (4, 8, 10)):
        for mirror, allowed in ((True, True), (True, False), (False, True)):
            warp = Warp(shape, (1.0,) * len(shape), changes(mirror=mirror), allowed, CPU)
            points, mirrored = warp.draw(64, seeded(1))
            found = positions(warp, points, shape)
            flipped = found[:, 0].flatten(1)[:, 0] > 0
            assert torch.equal(mirrored, flipped)
            assert bool(flipped.any()) == (mirror and allowed)
            assert not bool(flipped.all())
            wanted = torch.where(
                flipped.view(-1, *[1] * (len(shape) + 1)), offsets(shape).flip(-1) * 1.0, offsets(shape)
            )
            torch.testing.assert_close(found[:, 0], wanted[:, 0], atol=1e-4, rtol=0)
            torch.testing.assert_close(found[:, 1:], offsets(shape)[1:].expand_as(found[:, 1:]), atol=1e-4, rtol=0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), space=st.booleans())
def test_an_image_that_equals_its_labels_still_does_after_every_move(seed: int, space: bool) -> None:
    draw = np.random.default_rng(seed)
    shape, spacing_mm = ((12, 16, 16), (4.0, 4.0, 4.0)) if space else ((32, 32), (2.0, 2.0))
    coarse = ndimage.gaussian_filter(draw.normal(size=[n + 8 for n in shape]), 3)
    labels = torch.from_numpy((coarse > 0).astype(np.uint8))[None].expand(4, *coarse.shape)
    config = changes(rotation_deg=30, scale=0.2, mirror=True, elastic_mm=12, elastic_share=1)
    warp = Warp(shape, spacing_mm, config, True, CPU)
    size = torch.tensor(coarse.shape[::-1])
    grid = warp.grid(warp.draw(4, seeded(seed))[0], ((size - 1) / 2).expand(4, -1), size)
    image = read(labels[:, None].float(), grid)[:, 0]
    assert torch.equal(read_classes(labels, grid, [1]), (image > 0.5).to(torch.uint8))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), values=st.sampled_from([[1], [1, 2], [1, 2, 255], [1, 255], [1, 2, 3, 4]]))
def test_a_voxel_takes_the_class_of_the_greatest_share(seed: int, values: list[int]) -> None:
    generator = seeded(seed)
    table = torch.tensor([0, *values], dtype=torch.uint8)
    labels = table[torch.randint(len(table), (2, 9, 9), generator=generator)]
    grid = torch.rand(2, 6, 6, 2, generator=generator) * 2.2 - 1.1
    shares = read(torch.stack([(labels == value).float() for value in table], dim=1), grid)
    two = shares.sort(dim=1).values
    clear = two[:, -1] - two[:, -2] > 1e-5
    found = read_classes(labels, grid, values)
    assert found.dtype == torch.uint8
    assert torch.equal(found[clear], table[shares.argmax(dim=1)][clear])


def test_at_a_tie_the_background_wins() -> None:
    labels = torch.tensor([[[0, 1]]], dtype=torch.uint8)
    assert read_classes(labels, torch.zeros(1, 1, 1, 2), [1]).item() == 0
    assert read_classes(labels + 1, torch.zeros(1, 1, 1, 2), [1, 2]).item() == 1


# What is done to the HU


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("shape", [(40, 30), (14, 18, 20)])
def test_blur_is_scipys(shape: tuple[int, ...], sigma: float) -> None:
    image = np.random.default_rng(0).normal(size=shape)
    found = smooth(
        torch.from_numpy(image).float()[None, None].expand(2, 3, *shape),
        [blur_matrices(n, torch.tensor([sigma, 0.0])) for n in shape],
    )
    wanted, weight = image, np.ones(shape)
    if sigma:
        settings = {"sigma": sigma, "mode": "constant", "truncate": 50 / sigma}
        wanted = ndimage.gaussian_filter(image, **settings) / ndimage.gaussian_filter(weight, **settings)
    np.testing.assert_allclose(found[0, 1].numpy(), wanted, atol=2e-3 if 0 < sigma < 0.5 else 1e-5)
    assert torch.equal(found[1, 2], torch.from_numpy(image).float())


def test_each_axis_is_smoothed_by_its_own_matrix() -> None:
    generator = seeded(0)
    image = torch.randn(2, 3, 5, 6, 7, generator=generator)
    matrices = [torch.randn(2, n, n, generator=generator) for n in (5, 6, 7)]
    wanted = torch.einsum("bczyx,bkz,bly,bmx->bcklm", image, *matrices)
    torch.testing.assert_close(smooth(image, matrices), wanted, atol=1e-3, rtol=1e-4)


def test_half_resolution_is_pooling_and_linear_interpolation() -> None:
    image = torch.randn(1, 2, 24, 32, generator=seeded(0))
    found = smooth(image, [low_resolution_matrices(n, torch.tensor([2.0])) for n in (24, 32)])
    wanted = F.interpolate(F.avg_pool2d(image, 2), scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, wanted)


@settings(max_examples=25, deadline=None)
@given(factor=st.floats(1, 4), length=st.integers(1, 80), seed=st.integers(0, 2**31))
def test_low_resolution_keeps_level_and_mean_and_removes_detail(factor: float, length: int, seed: int) -> None:
    matrices = low_resolution_matrices(length, torch.tensor([factor, 1.0]))
    torch.testing.assert_close(matrices.sum(dim=2), torch.ones(2, length))
    assert (matrices >= 0).all()
    assert torch.equal(matrices[1], torch.eye(length))
    # A slope stays a slope between the middles of the first and the last cell that lie wholly within. Where a
    # cell's ends cut voxels, its mean is off the middle by at most 1/8 of a voxel over its width.
    slope = torch.arange(length) + 0.5
    inner = (slope >= factor / 2) & (slope <= (length // factor - 0.5) * factor)
    torch.testing.assert_close((matrices[0] @ slope)[inner], slope[inner], atol=0.125 / factor + 1e-3, rtol=0)
    noise = torch.randn(1, 64, length, length, generator=seeded(seed)) + 10
    lower = smooth(noise, [matrices[:1], matrices[:1]])
    assert lower.mean() == pytest.approx(float(noise.mean()), abs=0.1)
    if factor >= 1.5 and length >= 16:
        before, after = (torch.fft.rfft2(x - 10).abs().square() for x in (noise, lower))
        high = slice(length // 3, 2 * length // 3)
        assert after[..., high, length // 3 :].mean() < 0.25 * before[..., high, length // 3 :].mean()


def test_sharpness_changes_in_mm() -> None:
    """The same blur in mm whatever the voxels; those that are too coarse for it show less."""
    spot = torch.zeros(1, 1, 65, 65)
    spot[..., 32, 32] = 1
    config = changes(blur_share=1, blur_mm=3)
    for spacing_mm in ((1.0, 1.0), (1.0, 4.0), (0.5, 2.0)):
        found = change_hu(spot, spacing_mm, config, seeded(0))[0, 0]
        place = torch.arange(65) - 32.0
        spread_mm = [
            float((found.sum(dim=1 - axis) * place.square()).sum().sqrt()) * spacing_mm[axis] for axis in (0, 1)
        ]
        sigma_mm = 3 * float(torch.rand(2, generator=seeded(0))[1])
        assert spread_mm[0] == pytest.approx(sigma_mm, rel=0.03)
        assert spread_mm[1] <= spread_mm[0] + 1e-3


def test_an_image_is_blurred_and_then_sampled_down() -> None:
    """On the same random numbers, both together are one after the other."""
    image = torch.randn(6, 2, 20, 24, generator=seeded(0))
    generator = seeded(1)
    both = change_hu(image, (1.0, 2.0), changes(blur_share=1, blur_mm=4, low_resolution_share=0.5), seeded(1))
    blurred = change_hu(image, (1.0, 2.0), changes(blur_share=1, blur_mm=4), generator)
    wanted = change_hu(blurred, (1.0, 2.0), changes(low_resolution_share=0.5), generator)
    torch.testing.assert_close(both, wanted, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(both, blurred, atol=1e-2)


@pytest.mark.parametrize("name", ["blur_share", "low_resolution_share"])
def test_a_share_of_the_images_loses_detail(name: str) -> None:
    """A few of those chosen change by too little to tell."""
    image = torch.randn(1, 1, 24, 24, generator=seeded(0)).expand(400, 2, 24, 24)
    for share in (0.25, 1.0):
        changed = change_hu(image, (1.0, 1.0), changes(**{name: share, "blur_mm": 4}), seeded(1))
        rough = changed.diff(dim=3).std(dim=(1, 2, 3))
        touched = rough < 0.9999 * image[0].diff(dim=2).std()
        assert float(touched.float().mean()) == pytest.approx(share, abs=0.08)
        untouched = changed[~(changed != image).flatten(1).any(dim=1)]
        assert torch.equal(untouched, image[: len(untouched)])


def test_nothing_asked_for_is_nothing_done() -> None:
    hu = torch.randn(3, 1, 8, 8, generator=seeded(0))
    generator = seeded(1)
    before = generator.get_state()
    assert change_hu(hu, (1.0, 1.0), changes(), generator) is hu
    quiet = changes(blur_share=1, blur_mm=0, low_resolution_share=1, low_resolution_factor=1)
    assert change_hu(hu, (1.0, 1.0), quiet, generator) is hu
    assert torch.equal(generator.get_state(), before)


def test_the_argument_stays_as_it_is() -> None:
    hu = torch.randn(4, 2, 16, 16, generator=seeded(0)) * 100
    kept = hu.clone()
    changed = change_hu(hu, (1.0, 1.0), AugmentConfig(), seeded(1))
    assert torch.equal(hu, kept)
    assert not torch.equal(changed, hu)
    assert torch.equal(changed, change_hu(hu, (1.0, 1.0), AugmentConfig(), seeded(1)))


def test_changes_of_hu_are_each_image_its_own() -> None:
    hu = torch.full((8, 1, 4, 4), 100.0)
    changed = change_hu(hu, (1.0, 1.0), changes(shift_hu=20, contrast=0.2), seeded(0))
    assert len(set(changed[:, 0, 0, 0].tolist())) == 8
    assert (changed.flatten(1).std(dim=1) < 1e-4).all()
    assert ((changed - 100).abs() <= 20 + 0.2 * 60 + 1e-3).all()
    soft_tissue = change_hu(torch.full((8, 1, 4, 4), 40.0), (1.0, 1.0), changes(contrast=0.5), seeded(0))
    torch.testing.assert_close(soft_tissue, torch.full((8, 1, 4, 4), 40.0))


def test_noise_has_at_most_its_level() -> None:
    noisy = change_hu(torch.zeros(16, 1, 64, 64), (1.0, 1.0), changes(noise_hu=12), seeded(0))
    levels = noisy.flatten(1).std(dim=1)
    assert levels.max() < 12.5
    assert levels.max() > 8
    assert levels.min() < 4
