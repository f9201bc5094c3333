"""Geometry: known answers, exact inverses, and properties over random orientations and spacings."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from metricunet.errors import InputError
from metricunet.volume import CANONICAL_DIRECTIONS, Geometry, Volume, resample_labels, voxels_of

SPACINGS = st.tuples(st.floats(1, 5), st.floats(0.6, 1.5), st.floats(0.6, 1.5))
ORIGINS = st.tuples(*[st.floats(-500, 500)] * 3)


@st.composite
def geometries(draw: st.DrawFn, oblique: bool = True) -> Geometry:
    """Any right-angled grid: every order and sign of axes, rotated freely where oblique."""
    axes = draw(st.sampled_from(list(permutations(range(3)))))
    signs = draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
    directions = CANONICAL_DIRECTIONS[:, axes] * signs
    if oblique:
        angles = draw(st.tuples(*[st.floats(-180, 180)] * 3))
        directions = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ directions
    shape = draw(st.tuples(*[st.integers(6, 14)] * 3))
    return Geometry.from_parts(shape, draw(SPACINGS), draw(ORIGINS), directions)


def indices(geometry: Geometry) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.arange(n) for n in geometry.shape], indexing="ij"), axis=-1)


def ramp(geometry: Geometry, slope: tuple[float, float, float] = (0.3, -1.1, 0.7)) -> Volume:
    return Volume(geometry.to_world(indices(geometry)) @ np.array(slope), geometry)


def ellipsoid(geometry: Geometry, centre_mm: np.ndarray, radii_mm: tuple[float, float, float]) -> Volume:
    offset = (geometry.to_world(indices(geometry)) - centre_mm) / np.array(radii_mm)
    return Volume((np.square(offset).sum(axis=-1) <= 1).astype(np.uint8), geometry)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def test_known_world_coordinates() -> None:
    geometry = Geometry.from_parts((10, 20, 30), (3, 2, 1), (5, 6, 7))
    # Two slices up, one row back, four columns to the left: x is left, y is back, z is up.
    np.testing.assert_allclose(geometry.to_world([2, 1, 4]), [5 + 4, 6 + 2, 7 + 6])
    assert geometry.spacing_mm == (3, 2, 1)
    assert geometry.extent_mm == (30, 40, 30)
    assert geometry.voxel_volume_ml == pytest.approx(0.006)
    np.testing.assert_allclose(geometry.centre_mm, [5 + 14.5, 6 + 19, 7 + 13.5])


@given(geometries())
def test_world_and_index_are_inverses(geometry: Geometry) -> None:
    index = indices(geometry).reshape(-1, 3)
    np.testing.assert_allclose(geometry.to_index(geometry.to_world(index)), index, atol=1e-8)


@given(geometries(), st.permutations(range(3)), st.tuples(*[st.booleans()] * 3))
def test_reordering_moves_no_voxel_and_undoes_itself(
    geometry: Geometry, axes: list[int], flips: tuple[bool, bool, bool]
) -> None:
    volume = ramp(geometry)
    view = volume.reordered(axes, flips)
    world = view.geometry.to_world(indices(view.geometry))
    np.testing.assert_allclose(view.array, world @ np.array([0.3, -1.1, 0.7]), atol=1e-6)
    back = view.reordered_like(geometry)
    np.testing.assert_array_equal(back.array, volume.array)
    assert back.geometry is geometry


@given(geometries(oblique=False))
def test_canonical_axes_run_to_head_back_and_left(geometry: Geometry) -> None:
    np.testing.assert_allclose(ramp(geometry).canonical().geometry.directions, CANONICAL_DIRECTIONS, atol=1e-9)


def test_reordered_like_refuses_another_grid() -> None:
    volume = ramp(Geometry.from_parts((4, 5, 6), (1, 1, 1)))
    with pytest.raises(InputError, match="same voxels"):
        volume.reordered_like(Geometry.from_parts((4, 5, 6), (1, 1, 1), (0.2, 0, 0)))


@given(
    geometries(),
    st.tuples(*[st.integers(-9, 12)] * 3),
    st.tuples(*[st.integers(1, 20)] * 3),
)
def test_crop_and_paste_are_inverses(
    geometry: Geometry, start: tuple[int, int, int], shape: tuple[int, int, int]
) -> None:
    volume = ramp(geometry)
    patch = volume.crop(start, shape, fill=-7)
    world = patch.geometry.to_world(indices(patch.geometry))
    inside = ((indices(patch.geometry) + start >= 0) & (indices(patch.geometry) + start < geometry.shape)).all(-1)
    np.testing.assert_allclose(patch.array[inside], (world @ np.array([0.3, -1.1, 0.7]))[inside], atol=1e-6)
    assert (patch.array[~inside] == -7).all()
    np.testing.assert_array_equal(volume.paste(patch.array, start).array, volume.array)
    np.testing.assert_array_equal(
        volume.paste(patch.array + 1, start).crop(start, shape, fill=-6).array, patch.array + 1
    )


def test_crop_does_not_share_memory_with_the_scan() -> None:
    volume = ramp(Geometry.from_parts((4, 5, 6), (1, 1, 1)))
    assert not np.shares_memory(volume.crop((1, 1, 1), (2, 2, 2)).array, volume.array)


@given(geometries(), SPACINGS)
def test_with_spacing_covers_the_field_around_the_same_middle(
    geometry: Geometry, spacing_mm: tuple[float, float, float]
) -> None:
    other = geometry.with_spacing(spacing_mm)
    np.testing.assert_allclose(other.centre_mm, geometry.centre_mm, atol=1e-6)
    np.testing.assert_allclose(other.directions, geometry.directions, atol=1e-9)
    np.testing.assert_allclose(other.spacing_mm, spacing_mm, rtol=1e-12)
    gap = np.array(other.extent_mm) - np.array(geometry.extent_mm)
    assert (gap > -1e-3).all()
    assert (gap < np.array(spacing_mm) + 1e-6).all()


@settings(deadline=None)
@given(geometries(), SPACINGS, st.tuples(*[st.floats(-180, 180)] * 3), st.booleans())
def test_resampling_reproduces_ramps(
    geometry: Geometry,
    spacing_mm: tuple[float, float, float],
    angles: tuple[float, float, float],
    turned: bool,
) -> None:
    """World coordinates survive to 1e-6 mm: a ramp is a coordinate, so every value says where it was read."""
    volume = ramp(geometry, (1.0, 0.0, 0.0))
    directions = geometry.directions
    if turned:
        directions = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ directions
    target = Geometry.from_parts((5, 6, 7), spacing_mm, (0, 0, 0), directions)
    target = target.box_around(geometry.centre_mm, target.shape, spacing_mm)
    result = volume.resample(target, fill=np.nan)
    world = target.to_world(indices(target))
    # Clear of the border by what a target voxel and the interpolation reach.
    reach = 1 + np.linalg.norm(spacing_mm) / np.array(geometry.spacing_mm)
    index = geometry.to_index(world)
    inside = ((index >= reach) & (index <= np.array(geometry.shape) - 1 - reach)).all(-1)
    np.testing.assert_allclose(result.array[inside], world[..., 0][inside], atol=1e-6)
    outside = ((index < -0.51) | (index > np.array(geometry.shape) - 0.49)).any(-1)
    assert np.isnan(result.array[outside]).all()
    well_inside = ((index > -0.49) & (index < np.array(geometry.shape) - 0.51)).all(-1)
    assert np.isfinite(result.array[well_inside]).all()


def test_downsampling_is_the_mean_of_what_a_voxel_covers() -> None:
    geometry = Geometry.from_parts((8, 8, 8), (1, 1, 1))
    array = np.zeros(geometry.shape)
    array[4, 4, 4] = 1
    coarse = Volume(array, geometry).resample(geometry.with_spacing((4, 4, 4)))
    assert coarse.array.shape == (2, 2, 2)
    # A single voxel keeps its integral: coarse voxels are 64 times as large.
    assert coarse.array.sum() * 64 == pytest.approx(1)


def test_upsampling_interpolates_between_centres() -> None:
    geometry = Geometry.from_parts((1, 1, 2), (1, 1, 1))
    volume = Volume(np.array([[[0.0, 4.0]]]), geometry)
    fine = volume.resample(geometry.box_around(geometry.centre_mm, (1, 1, 5), (1, 1, 0.25)))
    np.testing.assert_allclose(fine.array[0, 0], [0, 1, 2, 3, 4])


def test_border_values_go_on_for_half_a_voxel() -> None:
    geometry = Geometry.from_parts((1, 1, 2), (1, 1, 1))
    target = geometry.box_around(geometry.centre_mm, (1, 1, 5), (1, 1, 0.8))
    result = Volume(np.array([[[2.0, 4.0]]]), geometry).resample(target, fill=-9)
    # Read at -1.1, -0.3, 0.5, 1.3 and 2.1 voxels.
    np.testing.assert_allclose(result.array[0, 0], [-9, 2, 3, 4, -9])


def test_a_grid_beyond_the_field_is_all_fill() -> None:
    geometry = Geometry.from_parts((4, 4, 4), (1, 1, 1))
    result = ramp(geometry).resample(Geometry.from_parts((3, 3, 3), (1, 1, 1), (100, 0, 0)), fill=-1024)
    assert (result.array == -1024).all()


def test_integers_resample_to_float32() -> None:
    geometry = Geometry.from_parts((4, 4, 4), (1, 1, 1))
    volume = Volume(np.arange(64, dtype=np.int16).reshape(4, 4, 4), geometry)
    assert volume.resample(geometry).array.dtype == np.float32
    np.testing.assert_array_equal(volume.resample(geometry).array, volume.array)


@pytest.mark.parametrize("spacing_mm", [(1, 0.8, 0.8), (3, 0.9, 1.3), (5, 1.37, 1.37)])
def test_a_smooth_30_ml_shape_survives_the_working_grid(spacing_mm: tuple[float, float, float]) -> None:
    shape = np.ceil(np.array((70, 80, 80)) / spacing_mm).astype(int)
    geometry = Geometry.from_parts(shape, spacing_mm, (3.3, -8.1, 40.2))
    radii = (20.5, 17.5, 20.0)  # left-right, front-back, head-foot: 30.1 mL
    mask = ellipsoid(geometry, geometry.centre_mm + 0.37, radii)
    assert mask.array.sum() * geometry.voxel_volume_ml == pytest.approx(30, rel=0.03)
    fine = geometry.with_spacing((2, 1, 1))
    there = resample_labels(mask, fine)
    assert dice(there.array > 0, ellipsoid(fine, geometry.centre_mm + 0.37, radii).array > 0) > 0.95
    share = mask.with_array(mask.array.astype(np.float32)).resample(fine)
    back = share.resample(geometry).array > 0.5
    assert dice(back, mask.array > 0) >= 0.98


def test_labels_take_the_largest_share() -> None:
    geometry = Geometry.from_parts((1, 1, 6), (1, 1, 1))
    labels = Volume(np.array([[[0, 2, 2, 7, 7, 7]]], dtype=np.uint8), geometry)
    coarse = geometry.box_around(geometry.centre_mm, (1, 1, 2), (1, 1, 3))
    np.testing.assert_array_equal(resample_labels(labels, coarse).array, [[[2, 7]]])
    assert resample_labels(labels, coarse).array.dtype == np.uint8
    np.testing.assert_array_equal(resample_labels(labels, geometry).array, labels.array)


@pytest.mark.parametrize(
    ("row", "expected"), [((1, 2), 1), ((2, 1), 1), ((0, 2), 0), ((2, 0), 0), ((0, 1, 2, 2), 2)]
)
def test_of_equal_shares_the_lowest_class_is_taken(row: tuple[int, ...], expected: int) -> None:
    labels = Volume(np.array([[row]], dtype=np.uint8), Geometry.from_parts((1, 1, len(row)), (1, 1, 1)))
    whole = labels.geometry.box_around(labels.geometry.centre_mm, (1, 1, 1), (1, 1, len(row)))
    assert resample_labels(labels, whole).array.tolist() == [[[expected]]]


def test_a_narrow_majority_decides() -> None:
    geometry = Geometry.from_parts((1, 1, 25), (1, 1, 1))
    coarse = geometry.box_around(geometry.centre_mm, (1, 1, 1), (1, 1, 25))
    for first, second in ((5, 9), (9, 5)):
        row = np.array([[[first] * 13 + [second] * 12]], dtype=np.uint8)
        assert resample_labels(Volume(row, geometry), coarse).array.tolist() == [[[first]]]


def test_border_values_go_on_for_half_a_voxel_on_a_turned_grid_too() -> None:
    geometry = Geometry.from_parts((5, 5, 5), (2, 2, 2))
    volume = Volume(np.full(geometry.shape, 7.0), geometry)
    directions = Rotation.from_euler("z", 30, degrees=True).as_matrix() @ geometry.directions
    target = Geometry.from_parts((5, 9, 9), (2, 1, 1), (0, 0, 0), directions)
    target = target.box_around(geometry.centre_mm, target.shape, (2, 1, 1))
    index = geometry.to_index(target.to_world(indices(target)))
    inside = ((index > -0.49) & (index < 4.49)).all(-1)
    assert ((index < 0) & inside[..., None]).any()
    np.testing.assert_allclose(volume.resample(target, fill=-1).array[inside], 7.0)


def test_labels_are_background_outside() -> None:
    geometry = Geometry.from_parts((2, 2, 2), (1, 1, 1))
    labels = Volume(np.full((2, 2, 2), 3, dtype=np.uint8), geometry)
    result = resample_labels(labels, Geometry.from_parts((2, 2, 4), (1, 1, 1), (-1, 0, 0)))
    np.testing.assert_array_equal(result.array[0, 0], [0, 3, 3, 0])


@pytest.mark.parametrize(
    ("affine", "word"),
    [
        (np.diag([1.0, 0, 1, 1]), "singular"),
        (np.full((4, 4), np.nan), "finite"),
        (np.eye(3), "4 x 4"),
        (np.array([[1, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "sheared"),
        (np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1.0]]), "last row"),
    ],
)
def test_broken_affines_are_refused(affine: np.ndarray, word: str) -> None:
    with pytest.raises(InputError, match=word):
        Geometry((2, 2, 2), affine)


def test_shear_at_the_tolerance() -> None:
    affine = np.eye(4)
    affine[0, 1] = 0.9e-3
    Geometry((2, 2, 2), affine)
    affine[0, 1] = 1.1e-3
    with pytest.raises(InputError, match="sheared"):
        Geometry((2, 2, 2), affine)


def test_arrays_must_fit_their_grid() -> None:
    with pytest.raises(InputError, match="shape"):
        Volume(np.zeros((2, 3, 4)), Geometry.from_parts((4, 3, 2), (1, 1, 1)))
    with pytest.raises(InputError, match="three axes"):
        Geometry((0, 2, 2), np.eye(4))


def test_same_grid_has_a_tolerance() -> None:
    one = Geometry.from_parts((4, 4, 4), (1, 1, 1))
    assert one.same_grid(Geometry.from_parts((4, 4, 4), (1, 1, 1), (0.099, 0, 0)))
    assert not one.same_grid(Geometry.from_parts((4, 4, 4), (1, 1, 1), (0.101, 0, 0)))
    assert not one.same_grid(Geometry.from_parts((4, 4, 5), (1, 1, 1)))
    # A wrong spacing shows at the far corner, not at the origin.
    assert one.same_grid(Geometry.from_parts((4, 4, 4), (1, 1, 1.03)))
    assert not one.same_grid(Geometry.from_parts((4, 4, 4), (1, 1, 1.04)))
    # What programs round away: 1e-4 in spacing and direction over 512 voxels.
    wide = Geometry.from_parts((200, 512, 512), (2, 1, 1))
    turned = wide.affine.copy()
    turned[:3, :3] += 1e-4 * np.array([[1, 0, 0], [0, 0, 0], [0, 0, 1]])
    turned[:3, 3] += 1e-3
    assert wide.same_grid(Geometry(wide.shape, turned))
    assert not wide.same_grid(Geometry.from_parts(wide.shape, (2, 1, 1.001)))


def test_reordered_like_takes_the_others_place() -> None:
    volume = ramp(Geometry.from_parts((4, 5, 6), (1, 1, 1)))
    other = Geometry.from_parts((4, 5, 6), (1, 1, 1), (0.05, 0, 0))
    assert volume.reordered_like(other).geometry is other


@pytest.mark.parametrize(
    ("shape", "change"),
    [
        ((4, 4, 4), (0, 3, 1e39)),
        ((4, 4, 4), (1, 1, -1e200)),
        ((10**400, 4, 4), (0, 0, 1.0)),
        ((4, 10**7, 4), (0, 0, 1.0)),
    ],
)
def test_a_grid_larger_than_any_patients_is_refused_without_a_warning(
    shape: tuple[int, int, int], change: tuple[int, int, float]
) -> None:
    affine = np.eye(4)
    affine[change[0], change[1]] = change[2]
    with pytest.raises(InputError, match="at most 1,000,000"):
        Geometry(shape, affine)


def test_voxels_of_a_box_are_rounded_to_the_nearest() -> None:
    assert voxels_of((96.0, 128.0, 128.0), (2.0, 1.0, 1.0)) == (48, 128, 128)
    assert voxels_of((10.0, 10.0, 10.0), (3.0, 4.1, 0.7)) == (3, 2, 14)
