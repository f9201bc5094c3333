"""Contours on the sub-voxel surface: as large as the analytic shape, and still the very mask when filled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from metricunet.errors import InputError
from metricunet.files.dicom.series import CtSeries
from metricunet.files.rtstruct.outlines import Holes, Outline, Structure, Style, drawn
from metricunet.files.rtstruct.read import read_rtstruct
from metricunet.files.rtstruct.write import write_rtstruct
from metricunet.volume import Geometry, Volume
from tests.support.dicom_series import ORIENTATIONS
from tests.support.structure_sets import dciodvfy_complaints, ellipsoid, make_series, plastimatch

Field = NDArray[np.float32]
Triple = tuple[float, float, float]

SPACINGS_MM = [(1.0, 0.8, 1.1), (2.5, 1.4, 0.9), (3.0, 1.0, 1.0), (5.0, 0.9, 1.3)]


@dataclass(frozen=True, eq=False)
class Shape:
    """A shape cut by the slices: the share of each pixel inside, and the exact sum of areas in millilitres."""

    share: Field
    exact_ml: float


def ellipses(geometry: Geometry, parts: list[tuple[Triple, Triple]]) -> Shape:
    """Ellipsoids that do not overlap: centre and semi-axes along slice, row and column from the grid's middle.

    A negative first semi-axis marks a hole in what comes before.
    """
    n = 9
    offsets = (np.arange(n) + 0.5) / n - 0.5
    spacing, shape = geometry.spacing_mm, geometry.shape
    k, r, c = (
        ((np.arange(size)[:, None] + (offsets if axis else [0.0])).ravel() - (size - 1) / 2) * spacing[axis]
        for axis, size in enumerate(shape)
    )
    share = np.zeros(geometry.shape, dtype=np.float32)
    area = 0.0
    for centre, semi in parts:
        sign = np.sign(semi[0])
        for n_slice, height in enumerate(k):
            left = 1 - ((height - centre[0]) / semi[0]) ** 2
            if left <= 0:
                continue
            row = ((r - centre[1]) / semi[1]) ** 2
            column = ((c - centre[2]) / semi[2]) ** 2
            inside = (row[:, None] + column[None] < left).reshape(shape[1], n, shape[2], n).mean(axis=(1, 3))
            share[n_slice] += sign * inside
            area += sign * np.pi * semi[1] * semi[2] * left
    return Shape(share, area * spacing[0] / 1000)


def shapes_of(geometry: Geometry) -> dict[str, Shape]:
    """A prostate, a shell, two lobes that nearly touch, a thin disc."""
    half = 0.55 * geometry.spacing_mm[0]
    return {
        "ellipsoid": ellipses(geometry, [((0, 0.3, -0.2), (17, 19, 23))]),
        "shell": ellipses(geometry, [((0, 0, 0), (17, 22, 23)), ((0, 1, -1), (-11, 12, 11))]),
        "lobes": ellipses(geometry, [((0, 0, -12.4), (16, 15, 11.2)), ((0, 1, 12.4), (16, 14, 11.5))]),
        "disc": ellipses(geometry, [((0, 0, 0), (half, 20, 24))]),
    }


def grid_for(spacing_mm: tuple[float, float, float]) -> tuple[int, int, int]:
    k, r, c = (int(58 / s) + 3 for s in spacing_mm)
    return k + 1 - k % 2, r, c


class TestSurface:
    @pytest.mark.parametrize(
        ("spacing_mm", "position"),
        list(zip(SPACINGS_MM, ORIENTATIONS, strict=True)),
        ids=lambda v: v if isinstance(v, str) else "x".join(map(str, v)),
    )
    @pytest.mark.parametrize("outline", ["surface", "voxel"])
    def test_volumes_and_masks_here_and_elsewhere(
        self, tmp_path: Path, spacing_mm: tuple[float, float, float], position: str, outline: Outline
    ) -> None:
        series = make_series(tmp_path / "ct", grid_for(spacing_mm), spacing_mm, position)
        shapes = shapes_of(series.geometry)
        structures = [
            Structure(name, volume(shape.share > 0.5, series), probability=volume(shape.share, series))
            for name, shape in shapes.items()
        ]
        island = np.zeros(series.geometry.shape, dtype=np.float32)
        island[2, 5, 7] = 1
        structures.append(Structure("island", volume(island > 0.5, series), probability=volume(island, series)))
        path = tmp_path / "rs.dcm"
        done = write_rtstruct(path, series, structures, description="test", outline=outline)
        assert dciodvfy_complaints(path) == []
        read = read_rtstruct(path, series)
        theirs = plastimatch(path, series, tmp_path / "plastimatch")
        assert [summary.outline for summary in done] == [outline] * 5
        for structure, summary in zip(structures, done, strict=True):
            name, mask = structure.name, structure.mask.array
            assert np.array_equal(read.mask(name, series.geometry).array, mask), name
            assert np.array_equal(theirs[name].array != 0, mask), name
            if name in shapes and outline == "surface":
                assert summary.volume_ml == pytest.approx(shapes[name].exact_ml, rel=0.005), name
            if outline == "voxel":
                assert summary.volume_ml == pytest.approx(summary.mask_volume_ml, rel=1e-9), name
            areas = shoelace_mm2(list(read.structure(name).contours))
            assert summary.volume_ml == pytest.approx(areas * spacing_mm[0] / 1000, rel=1e-4), name

    def test_the_outline_is_nearer_to_the_truth_than_voxels_edges(self, tmp_path: Path) -> None:
        series = make_series(tmp_path / "ct", (9, 60, 60), (3, 0.9, 1.2))
        shape = ellipses(series.geometry, [((0, 0.2, 0.4), (100, 20, 24))])
        structure = Structure("a", volume(shape.share > 0.5, series), probability=volume(shape.share, series))
        off_mm = {}
        for outline in ("surface", "voxel"):
            path = tmp_path / f"{outline}.dcm"
            write_rtstruct(path, series, [structure], description="test", outline=outline)
            (middle,) = [p for p in read_rtstruct(path).structure("a").contours if abs(p[0, 2] + 108) < 0.1]
            x, y = (middle - series.geometry.centre_mm)[:, :2].T
            # To first order the distance from an ellipse f = 1 is (f - 1) / |grad f|.
            u, v = (x - 0.4) / 24, (y - 0.2) / 20
            off_mm[outline] = np.abs((u * u + v * v - 1) / (2 * np.hypot(u / 24, v / 20)))
        assert off_mm["surface"].mean() < 0.1 * 0.9
        assert off_mm["surface"].max() < 0.3 * 0.9
        assert off_mm["voxel"].mean() > 2 * off_mm["surface"].mean()

    @settings(deadline=None, max_examples=20)
    @given(seed=st.integers(0, 2**32 - 1), removed=st.booleans())
    def test_any_probability_gives_its_mask_back(
        self, series: CtSeries, tmp_path_factory: pytest.TempPathFactory, seed: int, removed: bool
    ) -> None:
        rng = np.random.default_rng(seed)
        field = np.zeros(series.geometry.shape, dtype=np.float32)
        field[2:6, 10:18, 9:17] = rng.random((4, 8, 8))
        mask = field > 0.5
        if removed:  # parts taken away and holes filled after the network
            mask[3] &= rng.random(mask[3].shape) < 0.9
            mask[4, 11:14, 10:13] = True
        path = tmp_path_factory.mktemp("rs") / "rs.dcm"
        structure = Structure("any", volume(mask, series), probability=volume(field, series))
        write_rtstruct(path, series, [structure], description="test")
        assert np.array_equal(read_rtstruct(path).mask("any", series.geometry).array, mask)

    def test_a_probability_on_a_part_of_the_grid_draws_the_same(self, series: CtSeries) -> None:
        field = ellipses(series.geometry, [((0, 0.4, -0.3), (7, 8, 9))]).share
        mask = field > 0.5
        box = [slice(max(0, a.min() - 1), a.max() + 2) for a in np.nonzero(mask)]
        start = [part.start for part in box]
        part = field[tuple(box)]
        grid = series.geometry.crop(start, part.shape)
        whole = drawn(Structure("a", volume(mask, series), probability=volume(field, series)), series, Style())
        piece = drawn(Structure("a", volume(mask, series), probability=Volume(part, grid)), series, Style())
        assert whole.volume_ml == piece.volume_ml
        assert [k for k, _ in whole.contours] == [k for k, _ in piece.contours]
        for (_, one), (_, two) in zip(whole.contours, piece.contours, strict=True):
            np.testing.assert_array_equal(one, two)

    def test_at_the_edge_of_the_scan(self, series: CtSeries, tmp_path: Path) -> None:
        ones = np.ones(series.geometry.shape, dtype=np.float32)
        structure = Structure("all", volume(ones > 0.5, series), probability=volume(ones, series))
        (done,) = write_rtstruct(tmp_path / "rs.dcm", series, [structure], description="test")
        read = read_rtstruct(tmp_path / "rs.dcm")
        assert read.mask("all", series.geometry).array.all()
        # Only the corners of the outermost pixels are cut.
        assert done.volume_ml == pytest.approx(done.mask_volume_ml, rel=1e-3)

    def test_without_a_probability_voxels_edges_are_drawn(self, series: CtSeries, tmp_path: Path) -> None:
        mask = volume(ellipsoid(series.geometry, (7, 9, 9)), series)
        for outline in ("surface", "voxel"):
            (done,) = write_rtstruct(
                tmp_path / outline, series, [Structure("a", mask)], description="test", outline=outline
            )
            assert done.outline == "voxel"
            assert done.volume_ml == pytest.approx(done.mask_volume_ml)


class TestSmoothing:
    @pytest.mark.parametrize("outline", ["surface", "voxel"])
    def test_bounded_and_reported(self, tmp_path: Path, outline: Outline) -> None:
        series = make_series(tmp_path / "ct", (9, 60, 60), (3, 0.9, 1.2))
        shape = ellipses(series.geometry, [((0, 0.2, 0.4), (20, 20, 24))])
        structure = Structure("a", volume(shape.share > 0.5, series), probability=volume(shape.share, series))
        plain = drawn(structure, series, Style(outline))
        smooth = drawn(structure, series, Style(outline, smoothing_mm=0.5))
        assert plain.smoothing_change_ml == 0
        assert smooth.smoothing_change_ml == pytest.approx(smooth.volume_ml - plain.volume_ml, abs=1e-9)
        assert abs(smooth.smoothing_change_ml) < 0.005 * plain.volume_ml
        for (k, before), (same, after) in zip(plain.contours, smooth.contours, strict=True):
            assert k == same
            assert farthest_mm(after, before) <= 0.5 + 1e-6
            assert farthest_mm(before, after) <= 0.5 + 1e-6
        (done,) = write_rtstruct(
            tmp_path / "rs.dcm", series, [structure], description="By a model.", outline=outline, smoothing_mm=0.5
        )
        assert done.smoothing_change_ml == smooth.smoothing_change_ml
        (roi,) = pydicom.dcmread(tmp_path / "rs.dcm").StructureSetROISequence
        change = 100 * smooth.smoothing_change_ml / plain.volume_ml
        assert roi.ROIDescription == f"By a model. Outline smoothed, volume changed by {change:+.2f} %."
        assert dciodvfy_complaints(tmp_path / "rs.dcm") == []

    @pytest.mark.parametrize("limit", [-0.1, 0.51, float("nan")])
    def test_beyond_the_bound_is_refused(self, limit: float) -> None:
        with pytest.raises(InputError, match=r"smoothing_mm is .* expected 0"):
            Style(smoothing_mm=limit)


class TestHoles:
    @pytest.mark.parametrize("outline", ["surface", "voxel"])
    @pytest.mark.parametrize("holes", ["keep", "keyhole", "close"])
    def test_each_way(self, tmp_path: Path, outline: Outline, holes: Holes) -> None:
        series = make_series(tmp_path / "ct", (9, 60, 60), (3, 0.9, 1.2))
        parts = [((0, 0, 0), (20, 22, 26)), ((0, 4, -9), (-9, 6, 7)), ((0, -3, 10), (-9, 9, 8))]
        shape = ellipses(series.geometry, [*parts, ((0, -3, 10), (5, 4, 4))])
        mask = shape.share > 0.5
        structure = Structure("a", volume(mask, series), probability=volume(shape.share, series))
        (done,) = write_rtstruct(
            tmp_path / "rs.dcm", series, [structure], description="test", outline=outline, holes=holes
        )
        back = read_rtstruct(tmp_path / "rs.dcm").mask("a", series.geometry).array
        theirs = plastimatch(tmp_path / "rs.dcm", series, tmp_path / "plastimatch")["a"].array != 0
        assert dciodvfy_complaints(tmp_path / "rs.dcm") == []
        (roi,) = pydicom.dcmread(tmp_path / "rs.dcm").StructureSetROISequence
        if holes == "close":
            assert done.holes_closed == 10
            assert "Holes closed: 10." in roi.ROIDescription
            whole = ellipses(series.geometry, parts[:1]).share > 0.5
            assert np.array_equal(back, whole)
            assert np.array_equal(theirs, whole)
        else:
            assert done.holes_closed == 0
            assert np.array_equal(back, mask)
            # Another program may see a pixel's centre on the doubled line differently.
            assert (theirs != mask).sum() <= (0 if holes == "keep" else 5)
            dot = int((ellipses(series.geometry, [((0, -3, 10), (5, 4, 4))]).share > 0.5).any(axis=(1, 2)).sum())
            assert done.contours == done.slices + dot + (10 if holes == "keep" else 0)


class TestRefused:
    def test_probabilities_that_are_none(self, series: CtSeries, tmp_path: Path) -> None:
        mask = ellipsoid(series.geometry, (7, 9, 9))
        good = mask.astype(np.float32)
        other = series.geometry.crop((0, 0, 1), series.geometry.shape)
        for field, match in (
            (volume(good * 7 - 3, series), "its probability runs from -3 to 4, expected 0 to 1"),
            (volume(np.where(good > 0, np.nan, 0), series), "its probability runs from nan to nan"),
            (volume(1 - good, series), "below 0.5 in most of its mask"),
            (Volume(good, other), "its probability is not on the grid of series"),
            (volume(good, series).crop((0, 0, 0), (4, 30, 34)), "covers a part of its mask alone"),
            (volume(good, series).crop((0, 0, 0), (8, 30, 40)), "its probability is not on the grid of series"),
        ):
            with pytest.raises(InputError, match=match) as caught:
                structure = Structure("a", volume(mask, series), probability=field)
                write_rtstruct(tmp_path / "rs.dcm", series, [structure], description="test")
            assert str(caught.value).startswith(f"{tmp_path / 'rs.dcm'}: structure 'a': ")
        assert list(tmp_path.iterdir()) == []

    def test_unknown_ways(self) -> None:
        with pytest.raises(InputError, match="outline is 'pixel', expected one of surface, voxel"):
            Style(outline="pixel")  # type: ignore[arg-type]
        with pytest.raises(InputError, match="holes is 'drop', expected one of keep, keyhole, close"):
            Style(holes="drop")  # type: ignore[arg-type]


def volume(array: NDArray[np.generic], series: CtSeries) -> Volume:
    return Volume(array, series.geometry)


def shoelace_mm2(contours: list[NDArray[np.float64]]) -> float:
    """The area within contours of which holes run the other way round."""
    signed = [float(np.sum(p[:, 0] * np.roll(p[:, 1], -1) - np.roll(p[:, 0], -1) * p[:, 1])) / 2 for p in contours]
    return abs(sum(signed))


def farthest_mm(contour: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """How far the points of a contour, and those halfway between them, lie from the edges of another."""
    points = np.concatenate([contour, (contour + np.roll(contour, -1, axis=0)) / 2])
    edges = np.roll(other, -1, axis=0) - other
    share = ((points[:, None] - other) * edges).sum(axis=2) / (edges**2).sum(axis=1)
    nearest = other + np.clip(share, 0, 1)[..., None] * edges
    return float(np.linalg.norm(points[:, None] - nearest, axis=2).min(axis=1).max())
