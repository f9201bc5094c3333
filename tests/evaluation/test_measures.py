from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from metricunet.errors import InputError
from metricunet.evaluation.measures import (
    DEFINITIONS,
    MEASURE_NAMES,
    Measures,
    average_surface_distance_mm,
    measure,
    percentile_surface_distance_mm,
    surface_dice,
    surface_distances,
)
from metricunet.volume import Geometry, Volume

GRIDS_MM = [(1.0, 1.0, 1.0), (3.0, 0.9, 0.9), (5.0, 1.2, 1.2), (0.8, 0.781, 0.781)]


def volume(mask: NDArray[Any], spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Volume:
    return Volume(mask, Geometry.from_parts(mask.shape, spacing_mm, (10.0, -20.0, 30.0)))


def box(shape: Sequence[int], start: Sequence[int], stop: Sequence[int]) -> NDArray[Any]:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def sphere(
    spacing_mm: tuple[float, float, float], radius_mm: float, centre_mm: tuple[float, float, float]
) -> NDArray[Any]:
    axes = [np.arange(math.ceil(70 / s)) * s - c for s, c in zip(spacing_mm, centre_mm, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    return np.asarray(z**2 + y**2 + x**2 <= radius_mm**2)


def test_equal_masks_are_perfect() -> None:
    mask = volume(sphere((2.0, 1.0, 1.0), 18, (35, 35, 35)), (2.0, 1.0, 1.0))
    result = measure(mask, mask)
    assert result == Measures(1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0)
    assert [result.value(d.name) for d in DEFINITIONS] == [d.best for d in DEFINITIONS]


def test_overlap_by_hand() -> None:
    # 4 x 4 x 4 against 4 x 4 x 6 voxels of 2 x 1 x 0.5 mm, of which 4 x 4 x 3 are common.
    prediction = box((8, 8, 12), (1, 1, 1), (5, 5, 5))
    reference = box((8, 8, 12), (1, 1, 2), (5, 5, 8))
    result = measure(volume(prediction, (2.0, 1.0, 0.5)), volume(reference, (2.0, 1.0, 0.5)))
    assert result.dice == pytest.approx(2 * 48 / (64 + 96))
    assert result.sensitivity == pytest.approx(48 / 96)
    assert result.ppv == pytest.approx(48 / 64)
    assert result.volume_difference_ml == pytest.approx((64 - 96) * 1.0 / 1000)


def test_two_single_voxels_by_hand() -> None:
    # Voxels of 1 mm, 3 mm apart along columns. The facing faces are 2 mm apart, the faces that look away have
    # their like at 3 mm, and the four others are nearest to the other's facing face: half a voxel up, 2.5 along.
    prediction, reference = box((3, 3, 7), (1, 1, 1), (2, 2, 2)), box((3, 3, 7), (1, 1, 4), (2, 2, 5))
    result = measure(volume(prediction), volume(reference))
    assert result.dice == 0
    assert result.asd_mm == pytest.approx((2 + 3 + 4 * math.hypot(0.5, 2.5)) / 6)
    assert result.hd95_mm == pytest.approx(3)
    assert result.surface_dice_2mm == pytest.approx(1 / 6)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("voxels", [1, 2, 4])
def test_flat_sides_shifted_by_whole_voxels(axis: int, voxels: int) -> None:
    # A wide plate: nearly all of its surface is the two flat sides, each at the shift from its like.
    spacing_mm = (2.5, 1.5, 0.75)
    shape, start, stop = [100, 100, 100], [2, 2, 2], [98, 98, 98]
    shape[axis], start[axis], stop[axis] = 20, 3, 13
    prediction = box(shape, start, stop)
    reference = np.roll(prediction, voxels, axis=axis)
    shift_mm = voxels * spacing_mm[axis]
    distances = surface_distances(prediction, reference, spacing_mm)
    assert distances.prediction_mm.max() <= shift_mm + 1e-9
    assert np.median(distances.prediction_mm) == pytest.approx(shift_mm)
    assert percentile_surface_distance_mm(distances, 100) == pytest.approx(shift_mm)
    assert surface_dice(distances, shift_mm) == 1
    assert surface_dice(distances, shift_mm * 0.99) < 0.5


def test_shift_by_half_a_voxel_of_the_coarse_grid() -> None:
    # Half a voxel of 2 mm exists on a grid of 1 mm: flat sides are then 1 mm apart.
    plate = box((40, 80, 80), (10, 4, 4), (30, 76, 76))
    distances = surface_distances(plate, np.roll(plate, 1, axis=0), (1.0, 1.0, 1.0))
    assert percentile_surface_distance_mm(distances, 95) == pytest.approx(1)
    # 72 x 72 faces on each flat side, 4 x 72 x 20 around: only the rim of the latter has moved off its like.
    assert average_surface_distance_mm(distances) == pytest.approx(2 * 72**2 / (2 * 72**2 + 4 * 72 * 20), rel=0.1)


@pytest.mark.parametrize("spacing_mm", GRIDS_MM)
@pytest.mark.parametrize("gap_mm", [1.0, 3.0, 6.0])
def test_concentric_spheres_are_their_difference_apart(
    spacing_mm: tuple[float, float, float], gap_mm: float
) -> None:
    centre_mm = (35.3, 34.8, 35.1)
    inner = volume(sphere(spacing_mm, 20, centre_mm), spacing_mm)
    outer = volume(sphere(spacing_mm, 20 + gap_mm, centre_mm), spacing_mm)
    result = measure(outer, inner)
    # Voxels are steps: the mean comes out short, by at most a quarter of the coarsest step.
    assert result.asd_mm == pytest.approx(gap_mm, abs=0.25 * max(spacing_mm))
    assert result.hd95_mm == pytest.approx(gap_mm, abs=0.5 * max(spacing_mm) + 0.2)
    assert result.sensitivity == 1
    assert result.dice == pytest.approx(2 * 20**3 / (20**3 + (20 + gap_mm) ** 3), abs=0.01)


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning:monai")
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
@pytest.mark.parametrize("spacing_mm", GRIDS_MM)
def test_agrees_with_monai(spacing_mm: tuple[float, float, float]) -> None:
    # MONAI takes the centres of the outermost voxels as the surface and weighs them all alike, so the two can
    # agree to a part of a voxel and no better.
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    prediction = sphere(spacing_mm, 19, (37.0, 33.0, 36.5))
    reference = sphere(spacing_mm, 21, (35.0, 35.0, 35.0))
    ours = measure(volume(prediction, spacing_mm), volume(reference, spacing_mm))

    def batch(mask: NDArray[Any]) -> Any:
        return torch.from_numpy(mask)[None, None].float()

    p, r = batch(prediction), batch(reference)
    keywords: dict[str, Any] = {"include_background": True, "spacing": spacing_mm}
    asd_mm = float(metrics.compute_average_surface_distance(p, r, symmetric=True, **keywords))
    hd95_mm = float(metrics.compute_hausdorff_distance(p, r, percentile=95, **keywords))
    assert ours.dice == pytest.approx(float(metrics.compute_dice(p, r)), abs=1e-6)
    assert ours.asd_mm == pytest.approx(asd_mm, abs=0.15 * max(spacing_mm))
    assert ours.hd95_mm == pytest.approx(hd95_mm, abs=0.5 * max(spacing_mm))


# An oracle that shares nothing with the module: lists of faces in plain Python, all pairs of distances.


def listed_faces(mask: NDArray[Any], spacing_mm: tuple[float, ...]) -> list[tuple[tuple[float, ...], float]]:
    inside = {tuple(int(i) for i in index) for index in np.argwhere(mask)}
    faces = []
    for voxel in inside:
        for axis, side in itertools.product(range(3), (-1, 1)):
            neighbour = list(voxel)
            neighbour[axis] += side
            if tuple(neighbour) not in inside:
                centre = [i * s for i, s in zip(voxel, spacing_mm, strict=True)]
                centre[axis] += side * spacing_mm[axis] / 2
                faces.append((tuple(centre), math.prod(s for a, s in enumerate(spacing_mm) if a != axis)))
    return faces


def by_brute_force(
    prediction: NDArray[Any], reference: NDArray[Any], spacing_mm: tuple[float, ...]
) -> tuple[float, float, float]:
    p, r = listed_faces(prediction, spacing_mm), listed_faces(reference, spacing_mm)

    def to_nearest(own: list[Any], other: list[Any]) -> list[tuple[float, float]]:
        return [(min(math.dist(c, o) for o, _ in other), area) for c, area in own]

    def percentile(distances: list[tuple[float, float]]) -> float:
        total, reached = sum(area for _, area in distances), 0.0
        for distance, area in sorted(distances):
            reached += area
            if reached >= 0.95 * total - 1e-9:
                return distance
        raise AssertionError

    both = [to_nearest(p, r), to_nearest(r, p)]
    pooled = both[0] + both[1]
    total = sum(area for _, area in pooled)
    return (
        sum(d * area for d, area in pooled) / total,
        max(percentile(distances) for distances in both),
        sum(area for d, area in pooled if d <= 2.0 + 1e-6) / total,
    )


@st.composite
def mask_pairs(draw: st.DrawFn) -> tuple[NDArray[Any], NDArray[Any], tuple[float, float, float]]:
    shape = draw(st.sampled_from([(2, 3, 4), (4, 3, 2), (1, 4, 5), (3, 3, 3)]))
    bits = st.lists(st.booleans(), min_size=math.prod(shape), max_size=math.prod(shape))
    first, second = (np.array(draw(bits), dtype=bool).reshape(shape) for _ in range(2))
    spacing_mm = draw(st.sampled_from([(1.0, 1.0, 1.0), (3.0, 0.9, 0.7), (5.0, 1.0, 1.0), (0.8, 2.0, 1.3)]))
    return first, second, spacing_mm


@settings(max_examples=60, deadline=None)
@given(mask_pairs())
def test_surface_measures_equal_brute_force(
    pair: tuple[NDArray[Any], NDArray[Any], tuple[float, float, float]],
) -> None:
    prediction, reference, spacing_mm = pair
    result = measure(volume(prediction, spacing_mm), volume(reference, spacing_mm))
    if not (prediction.any() and reference.any()):
        assert result.asd_mm is None
        assert result.hd95_mm is None
        return
    asd_mm, hd95_mm, near = by_brute_force(prediction, reference, spacing_mm)
    assert result.asd_mm == pytest.approx(asd_mm)
    assert result.hd95_mm == pytest.approx(hd95_mm)
    assert result.surface_dice_2mm == pytest.approx(near)


@settings(max_examples=60, deadline=None)
@given(mask_pairs())
def test_swapping_swaps_sensitivity_and_ppv(
    pair: tuple[NDArray[Any], NDArray[Any], tuple[float, float, float]],
) -> None:
    first, second, spacing_mm = pair
    if not (first.any() and second.any()):
        return
    there = measure(volume(first, spacing_mm), volume(second, spacing_mm))
    back = measure(volume(second, spacing_mm), volume(first, spacing_mm))
    assert there.sensitivity == back.ppv
    assert there.ppv == back.sensitivity
    for name in ("dice", "asd_mm", "hd95_mm", "surface_dice_2mm"):
        assert there.value(name) == pytest.approx(back.value(name))
    assert there.volume_difference_ml == pytest.approx(-(back.volume_difference_ml or 0))


@settings(max_examples=40, deadline=None)
@given(
    mask_pairs(),
    st.permutations([0, 1, 2]),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_storage_order_does_not_matter(
    pair: tuple[NDArray[Any], NDArray[Any], tuple[float, float, float]],
    axes: list[int],
    flips: tuple[bool, bool, bool],
) -> None:
    prediction, reference = volume(pair[0], pair[2]), volume(pair[1], pair[2])
    assert measure(prediction.reordered(axes, flips), reference) == measure(prediction, reference)


def test_the_edge_of_the_scan_is_a_surface() -> None:
    # An organ that the scan cuts: its cut face counts, exactly as if air followed.
    prediction, reference = box((6, 8, 8), (0, 2, 2), (4, 6, 6)), box((6, 8, 8), (0, 2, 3), (5, 6, 7))
    padded = [volume(np.pad(mask, 3), (3.0, 1.0, 1.0)) for mask in (prediction, reference)]
    assert measure(volume(prediction, (3.0, 1.0, 1.0)), volume(reference, (3.0, 1.0, 1.0))) == measure(*padded)


def test_faces_weigh_their_area() -> None:
    # One voxel of 4 x 1 x 2 mm against itself and its neighbour in the row.
    prediction, reference = box((3, 4, 3), (1, 1, 1), (2, 2, 2)), box((3, 4, 3), (1, 1, 1), (2, 3, 2))
    spacing_mm = (4.0, 1.0, 2.0)
    result = measure(volume(prediction, spacing_mm), volume(reference, spacing_mm))
    # Prediction: faces of 1 x 2 (slice), 4 x 2 (row), 4 x 1 mm² (column), two of each: 28 mm². Only the row face
    # of 8 mm² that looks at the second voxel is off: 1 mm to the far face.
    # Reference: 2 x 4 + 16 + 2 x 8 = 40 mm². Its far face (8 mm²) is 1 mm from that same row face. The second
    # voxel's slice faces (2 x 2 mm²) are 1 mm from the first's, its column faces (2 x 4 mm²) too.
    assert result.asd_mm == pytest.approx((8 * 1 + 8 * 1 + 4 * 1 + 8 * 1) / (28 + 40))


def test_the_tolerance_bears_float32_spacings() -> None:
    mask = box((12, 40, 40), (2, 2, 2), (6, 38, 38))
    spacing_mm = (float(np.float32(2.0000002)), 1.0, 1.0)
    assert spacing_mm[0] > 2
    result = measure(volume(mask, spacing_mm), volume(np.roll(mask, 1, axis=0), spacing_mm))
    assert result.surface_dice_2mm == 1


def test_missed_organ() -> None:
    reference = box((8, 8, 8), (2, 2, 2), (6, 6, 7))
    result = measure(volume(np.zeros_like(reference)), volume(reference))
    assert result == Measures(0.0, None, 0.0, 0.0, None, 0.0, pytest.approx(-0.08))
    assert result.outcome == "missed"


def test_false_positive() -> None:
    prediction = box((8, 8, 8), (2, 2, 2), (6, 6, 7))
    result = measure(volume(prediction), volume(np.zeros_like(prediction)))
    assert result == Measures(0.0, None, None, 0.0, None, 0.0, pytest.approx(0.08))
    assert result.outcome == "false_positive"


def test_both_empty() -> None:
    empty = volume(np.zeros((4, 4, 4), dtype=np.uint8))
    result = measure(empty, empty)
    assert [result.value(name) for name in MEASURE_NAMES] == [None] * len(MEASURE_NAMES)
    assert result.outcome == "true_absent"


def test_no_overlap_at_all_is_measured() -> None:
    result = measure(
        volume(box((8, 8, 20), (2, 2, 1), (5, 5, 4))), volume(box((8, 8, 20), (2, 2, 14), (5, 5, 17)))
    )
    assert result.outcome == "measured"
    assert (result.dice, result.sensitivity, result.ppv) == (0, 0, 0)
    assert result.asd_mm is not None
    assert 10 < result.asd_mm < 13


def test_another_grid_is_refused_in_one_line() -> None:
    reference = volume(box((8, 8, 8), (2, 2, 2), (6, 6, 6)), (3.0, 1.0, 1.0))
    shifted = Volume(reference.array, reference.geometry.crop((0, 0, 1), (8, 8, 8)))
    smaller = reference.crop((0, 0, 0), (8, 8, 7))
    for other in (shifted, smaller):
        with pytest.raises(InputError, match=r"the prediction: .*the reference") as caught:
            measure(other, reference)
        assert "\n" not in str(caught.value)
        assert ("8 x 8 x 7 voxels" if other is smaller else "up to 1 mm from") in str(caught.value)


def test_real_glands(shared_data: Any) -> None:
    from metricunet.files.nifti import read_labels

    paths = sorted((shared_data / "anatomy_labels").glob("*.nii.gz"))
    assert paths
    for path in paths:
        labels = read_labels(path)
        prostate, bladder = labels.with_array(labels.array == 1), labels.with_array(labels.array == 2)
        assert measure(prostate, prostate).dice == 1
        # Neighbours: no overlap, but the surfaces touch.
        apart = measure(bladder, prostate)
        assert apart.dice == 0
        assert apart.asd_mm is not None
        assert apart.hd95_mm is not None
        assert 5 < apart.asd_mm < apart.hd95_mm < 100
        # One voxel (1.5 mm) more all around.
        grown = ndimage.binary_dilation(prostate.array)
        result = measure(prostate.with_array(grown), prostate)
        assert result.asd_mm == pytest.approx(1.2, abs=0.3)
        assert result.hd95_mm == pytest.approx(1.5, abs=0.1)
        assert result.sensitivity == 1
