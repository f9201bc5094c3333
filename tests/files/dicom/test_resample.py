"""Series with gaps or a tilt, where these are allowed: a ramp comes out exactly, wherever its slices lie."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from metricunet.errors import InputError
from metricunet.files.dicom.resample import GapFilling
from metricunet.files.dicom.series import CtSeries, find_series
from metricunet.files.dicom.stack import Allow
from metricunet.files.rtstruct.read import read_rtstruct
from metricunet.files.rtstruct.write import write_rtstruct
from metricunet.files.seg.write import write_seg
from metricunet.volume import Geometry, Volume
from tests.support.ct_cases import FAULTS_OF_FILES, FAULTS_OF_SLICES, Series, draw_series, write
from tests.support.dicom_series import ORIENTATIONS
from tests.support.structure_sets import dciodvfy_complaints, ellipsoid, structure

GAPS, TILT, BOTH = Allow(gaps=True), Allow(tilt=True), Allow(gaps=True, tilt=True)
#: HU for each millimetre along x, y and z.
GRADIENT = np.array([3.0, -4.0, 5.0])
SLOPE = 0.02
#: What may be allowed.
POSITIONAL = {"missing", "uneven", "barely uneven", "sheared", "tilted", "every second slice"}


def ramp_series(
    heights_mm: Sequence[float],
    patient_position: str = "HFS",
    *,
    tilt_degrees: float = 0.0,
    shift_mm: Callable[[float], Sequence[float]] = lambda height: (0, 0, 0),
    matrix: tuple[int, int] = (14, 11),
) -> Series:
    """A series of a ramp: slices at z = -50 + heights, leaning about the left-right axis."""
    rng = np.random.default_rng(0)
    drawn = draw_series(rng, patient_position, slices=len(heights_mm))
    c, s = np.cos(np.radians(tilt_degrees)), np.sin(np.radians(tilt_degrees))
    turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    across, down = (turn @ np.array(v, dtype=float) for v in ORIENTATIONS[patient_position])
    row_mm, column_mm = 1.25, 0.8
    row, column = np.indices(matrix)
    for ds, height in zip(drawn.slices, heights_mm, strict=True):
        position = np.array([-4.0, 7.0, -50.0 + height]) + shift_mm(height)
        places = position + row[..., None] * down * row_mm + column[..., None] * across * column_mm
        hu = places @ GRADIENT
        ds.ImagePositionPatient = [round(float(v), 6) for v in position]
        ds.ImageOrientationPatient = [round(float(v), 9) for v in (*across, *down)]
        ds.PixelSpacing, ds.SliceThickness = [row_mm, column_mm], 2.5
        ds.Rows, ds.Columns, ds.PixelRepresentation = *matrix, 0
        ds.RescaleSlope, ds.RescaleIntercept = SLOPE, -700
        ds.PixelData = np.rint((hu + 700) / SLOPE).astype(np.uint16).tobytes()
    return drawn


def read(series: Series, folder: Path, allow: Allow, *, enhanced: bool = False) -> CtSeries:
    write(series, folder, np.random.default_rng(1), enhanced=enhanced)
    found = find_series(folder, allow)
    assert found.refused == ()
    (one,) = found.series
    return one


def refusal(series: Series, folder: Path, allow: Allow) -> str:
    write(series, folder, np.random.default_rng(1))
    found = find_series(folder, allow)
    assert found.series == ()
    (refused,) = found.refused
    return refused.reason


def places_of(geometry: Geometry) -> NDArray[np.float64]:
    return geometry.to_world(np.moveaxis(np.indices(geometry.shape), 0, -1))


MISSING = [0, 2.5, 5, 15, 17.5, 20, 25, 27.5]
UNEVEN = [0, 2.5, 4.6, 7.7, 10, 12.3, 15, 17.9]
TWO_SPACINGS = [0, 5, 10, 15, 17.5, 20, 22.5, 25, 27.5, 30]


class TestGaps:
    @pytest.mark.parametrize("position", ORIENTATIONS)
    @pytest.mark.parametrize("enhanced", [False, True])
    @pytest.mark.parametrize("heights", [MISSING, UNEVEN, TWO_SPACINGS], ids=["missing", "uneven", "two spacings"])
    def test_a_ramp_comes_out_exactly(
        self, tmp_path: Path, heights: list[float], position: str, enhanced: bool
    ) -> None:
        series = read(ramp_series(heights, position), tmp_path, GAPS, enhanced=enhanced)
        volume = series.read()
        assert volume.geometry is series.geometry
        places = places_of(volume.geometry)
        np.testing.assert_allclose(volume.array, places @ GRADIENT, atol=SLOPE)
        # From the first slice to the last, and the same rows and columns.
        np.testing.assert_allclose(volume.geometry.origin_mm, [-4, 7, -50], atol=1e-6)
        assert places[-1, 0, 0, 2] == pytest.approx(-50 + heights[-1])
        np.testing.assert_allclose(volume.spacing_mm[1:], (1.25, 0.8))

    def test_missing_slices_are_filled_and_the_others_untouched(self, tmp_path: Path) -> None:
        drawn = draw_series(np.random.default_rng(3), "FFS", slices=12)
        for k in (4, 5, 9):
            del drawn.slices[k - (k > 4) - (k > 5)]
        series = read(drawn, tmp_path, GAPS)
        assert series.geometry.shape[0] == 12
        there = [0, 1, 2, 3, 6, 7, 8, 10, 11]
        array = series.read().array
        np.testing.assert_array_equal(array[there], drawn.hu[there])
        np.testing.assert_allclose(array[9], (drawn.hu[8] + drawn.hu[10]) / 2, atol=0.5)
        np.testing.assert_allclose(array[4], drawn.hu[3] + (drawn.hu[6] - drawn.hu[3]) / 3, atol=0.5)

    def test_the_notes_say_what_was_repaired_and_where(self, tmp_path: Path) -> None:
        notes = read(ramp_series(MISSING), tmp_path / "a", GAPS).notes
        assert notes == (
            "3 slices are missing between z = -45.00 and -35.00 mm; the gap was filled by interpolation",
            "1 slice is missing between z = -30.00 and -25.00 mm; the gap was filled by interpolation",
        )
        (note,) = read(ramp_series(UNEVEN), tmp_path / "b", GAPS).notes
        assert note.startswith("the slices lie 2.10 to 3.10 mm apart; the scan was resampled to even slices")

    def test_many_gaps_are_summed_up(self, tmp_path: Path) -> None:
        heights = [k * 2.5 for k in range(40) if k % 5 != 3]
        notes = read(ramp_series(heights), tmp_path, GAPS).notes
        assert len(notes) == 5
        assert notes[-1] == "there are 4 more gaps like these"

    def test_two_acquisitions_side_by_side_take_no_more_memory_than_any_scan(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Slices in pairs, 0.1 mm apart: an even grid of that step holds 14 times as many."""
        series = read(ramp_series([3.0 * (k // 2) + 0.1 * (k % 2) for k in range(20)]), tmp_path, GAPS)
        slices, rows, columns = series.geometry.shape
        assert slices == 272
        monkeypatch.setattr("metricunet.files.voxels.MOST_BYTES", 4 * slices * rows * columns - 1)
        with pytest.raises(
            InputError, match=r"resampled to: 272 x 14 x 11 voxels take .*; export a reconstruction"
        ):
            series.read()
        monkeypatch.setattr("metricunet.files.voxels.MOST_BYTES", 4 * slices * rows * columns)
        assert series.read().array.shape == series.geometry.shape

    def test_a_sound_series_is_the_same_with_everything_allowed(self, tmp_path: Path) -> None:
        drawn = draw_series(np.random.default_rng(3), "HFP")
        series = read(drawn, tmp_path, BOTH)
        assert (series.resampling, series.notes) == (None, ())
        np.testing.assert_array_equal(series.read().array, drawn.hu)

    def test_a_wide_gap_is_not_bridged(self, tmp_path: Path) -> None:
        heights = [0, 2.5, 5, 30, 32.5]
        reason = refusal(ramp_series(heights), tmp_path / "a", GAPS)
        assert re.search(r"z = -45\.00 mm \(slice 3 of 5\).*25\.00 mm further on.*gaps over 20 mm are not", reason)
        # What would not help is not advised.
        assert "allow_gaps" not in refusal(ramp_series(heights), tmp_path / "b", Allow())

    @pytest.mark.parametrize("fault", sorted({*FAULTS_OF_SLICES, *FAULTS_OF_FILES} - POSITIONAL))
    def test_nothing_else_is_let_through(self, tmp_path: Path, fault: str) -> None:
        rng = np.random.default_rng(5)
        drawn = draw_series(rng, "HFS", slices=7)
        put_in: Any = FAULTS_OF_SLICES.get(fault) or FAULTS_OF_FILES[fault]
        put_in(drawn, rng)
        write(drawn, tmp_path, rng)
        found = find_series(tmp_path, BOTH)
        if fault == "unreadable pixels":
            with pytest.raises(InputError):
                found.series[0].read()
        else:
            assert found.series == ()


class TestTilt:
    @pytest.mark.parametrize("position", ORIENTATIONS)
    @pytest.mark.parametrize("degrees", [-25.0, 1.5, 12.0])
    def test_a_leaning_gantry(self, tmp_path: Path, position: str, degrees: float) -> None:
        heights = [2.5 * k for k in range(9)]
        series = read(ramp_series(heights, position, tilt_degrees=degrees), tmp_path, TILT)
        self.check(series, position, 2.5)
        (note,) = series.notes
        tilted = f"the slices are tilted by {abs(degrees):.1f} degrees from axial"
        assert note == f"{tilted}; the scan was resampled to axial slices 2.500 mm apart"

    @pytest.mark.parametrize("position", ORIENTATIONS)
    def test_a_sheared_stack(self, tmp_path: Path, position: str) -> None:
        heights = [2.0 * k for k in range(9)]
        shift = np.tan(np.radians(14))
        series = read(ramp_series(heights, position, shift_mm=lambda h: (0, h * shift, 0)), tmp_path, TILT)
        self.check(series, position, 2.0)
        assert "sheared by 14.0 degrees, as from a tilted gantry" in series.notes[0]

    def test_an_oblique_reformat(self, tmp_path: Path) -> None:
        lean = np.radians(8)
        # Stacked along its own normal: the box is turned, not sheared.
        series = ramp_series(
            [2.0 * np.cos(lean) * k for k in range(9)],
            tilt_degrees=8,
            shift_mm=lambda h: (0, -h * np.tan(lean), 0),
        )
        self.check(read(series, tmp_path, TILT), "HFS", 2.0 / np.cos(lean))

    @pytest.mark.parametrize("enhanced", [False, True])
    def test_tilted_and_gapped(self, tmp_path: Path, enhanced: bool) -> None:
        drawn = ramp_series(MISSING, tilt_degrees=10)
        series = read(drawn, tmp_path, BOTH, enhanced=enhanced)
        self.check(series, "HFS", 2.5)
        assert len(series.notes) == 3

    @staticmethod
    def check(series: CtSeries, position: str, step_mm: float) -> None:
        volume = series.read()
        np.testing.assert_allclose(volume.spacing_mm, (step_mm, 1.25, 0.8), rtol=1e-6)
        across, down = ORIENTATIONS[position]
        np.testing.assert_allclose(volume.geometry.directions.T, [(0, 0, 1), down, across], atol=1e-12)
        places = places_of(volume.geometry)
        inside = _within(places, series)
        assert inside.sum() > 0.4 * len(series.slices) * 14 * 11
        np.testing.assert_allclose(volume.array[inside], (places @ GRADIENT)[inside], atol=SLOPE)
        # Beyond half a voxel around the slices there is air.
        assert (volume.array[~_within(places, series, margin=0.51)] == -1000).all()
        assert set(np.unique(volume.array[volume.array < -500])) <= {-1000}

    def test_tilt_alone_does_not_allow_gaps_nor_gaps_tilt(self, tmp_path: Path) -> None:
        assert "allow_gaps" in refusal(ramp_series(MISSING, tilt_degrees=10), tmp_path / "a", TILT)
        assert "allow_tilt" in refusal(ramp_series(MISSING, tilt_degrees=10), tmp_path / "b", GAPS)

    def test_one_shifted_slice_is_no_tilt(self, tmp_path: Path) -> None:
        drawn = ramp_series([0, 2, 4, 6, 8, 10], shift_mm=lambda h: (0, 1.5 * (h == 6), 0))
        reason = refusal(drawn, tmp_path, BOTH)
        assert "z = -44.00 mm (slice 4 of 6): is shifted by 1.50 mm within its plane" in reason

    def test_whole_numbers_stay_whole(self, tmp_path: Path) -> None:
        drawn = ramp_series([0, 2, 4, 6], tilt_degrees=10)
        for ds in drawn.slices:
            ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
            ds.PixelData = np.full((14, 11), 1064, np.uint16).tobytes()
        array = read(drawn, tmp_path, TILT).read().array
        assert array.dtype == np.int16
        assert set(np.unique(array)) == {-1000, 40}


def _within(places: NDArray[np.float64], series: CtSeries, margin: float | None = None) -> NDArray[np.bool_]:
    """Points between two slices whose feet lie on both; with a margin (pixels, slices) whose foot is near either.

    Reckoned from what the files state, point by point.
    """
    normal = np.cross(*series.slices[0].orientation)
    normal *= np.sign(normal[2])
    first, last = series.slices[0], series.slices[-1]
    reach = (margin or 0) * min(
        float((b.position_mm - a.position_mm) @ normal)
        for a, b in zip(series.slices, series.slices[1:], strict=False)
    )
    inside = np.zeros(places.shape[:-1], dtype=bool)
    for low, high in zip(series.slices, series.slices[1:], strict=False):
        lower = low.position_mm @ normal - (reach if low is first else 0)
        upper = high.position_mm @ normal + (reach if high is last else 0)
        between = (places @ normal >= lower - 1e-9) & (places @ normal <= upper + 1e-9)
        feet = [_foot_on(places, s, -1e-6 if margin is None else margin) for s in (low, high)]
        inside |= between & (feet[0] & feet[1] if margin is None else feet[0] | feet[1])
    return inside


def _foot_on(places: NDArray[np.float64], s: Any, margin: float) -> NDArray[np.bool_]:
    across, down = s.orientation
    column = (places - s.position_mm) @ across / s.pixel_spacing_mm[1]
    row = (places - s.position_mm) @ down / s.pixel_spacing_mm[0]
    on_columns = (column >= -margin) & (column <= s.columns - 1 + margin)
    return np.asarray(on_columns & (row >= -margin) & (row <= s.rows - 1 + margin))


class TestDrawing:
    @pytest.fixture
    def gapped(self, tmp_path: Path) -> CtSeries:
        return read(ramp_series([*UNEVEN[:4], 12.7, 15, 17.5], matrix=(20, 24)), tmp_path / "ct", GAPS)

    def test_contours_lie_on_the_slices_that_there_are(self, tmp_path: Path, gapped: CtSeries) -> None:
        mask = ellipsoid(gapped.geometry, (7.0, 8.0, 7.0))
        (written,) = write_rtstruct(
            tmp_path / "rs.dcm", gapped, [structure("Prostate", mask, gapped)], description="test"
        )
        dataset = pydicom.dcmread(tmp_path / "rs.dcm")
        images = {s.sop_uid: s for s in gapped.slices}
        drawn = set()
        for contour in dataset.ROIContourSequence[0].ContourSequence:
            (reference,) = contour.ContourImageSequence
            image = images[reference.ReferencedSOPInstanceUID]
            points = np.array([float(v) for v in contour.ContourData]).reshape(-1, 3)
            np.testing.assert_allclose(points[:, 2], image.position_mm[2], atol=1e-5)
            # The mask on this slice is that of the nearest plane of the grid.
            drawn.add(image.sop_uid)
        planes = np.flatnonzero(mask.any(axis=(1, 2)))
        nearest = np.rint((gapped.positions_mm[:, 2] + 50) / gapped.geometry.spacing_mm[0])
        assert drawn == {s.sop_uid for s, k in zip(gapped.slices, nearest, strict=True) if k in planes}
        assert read_rtstruct(tmp_path / "rs.dcm", gapped).warnings == ()
        # Fewer slices, each standing for more: the volume stays about what it is.
        assert written.volume_ml == pytest.approx(mask.sum() * gapped.geometry.voxel_volume_ml, rel=0.15)
        assert dciodvfy_complaints(tmp_path / "rs.dcm") == []

    def test_frames_of_a_segmentation_lie_on_them_too(self, tmp_path: Path, gapped: CtSeries) -> None:
        mask = ellipsoid(gapped.geometry, (7.0, 8.0, 7.0))
        write_seg(tmp_path / "seg.dcm", gapped, [structure("Prostate", mask, gapped)], description="test")
        dataset = pydicom.dcmread(tmp_path / "seg.dcm")
        images = {s.sop_uid: s for s in gapped.slices}
        for group in dataset.PerFrameFunctionalGroupsSequence:
            (source,) = group.DerivationImageSequence[0].SourceImageSequence
            position = group.PlanePositionSequence[0].ImagePositionPatient
            np.testing.assert_allclose(
                [float(v) for v in position], images[source.ReferencedSOPInstanceUID].position_mm
            )
        assert "SpacingBetweenSlices" not in dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        assert dciodvfy_complaints(tmp_path / "seg.dcm") == []

    def test_a_mask_that_lies_between_the_slices(self, tmp_path: Path) -> None:
        series = read(ramp_series(MISSING), tmp_path / "ct", GAPS)
        mask = np.zeros(series.geometry.shape, dtype=bool)
        mask[4, 5:8, 5:8] = True
        with pytest.raises(InputError, match="lies between two slices"):
            write_rtstruct(tmp_path / "rs.dcm", series, [structure("x", mask, series)], description="test")
        with pytest.raises(InputError, match="no structure has a voxel"):
            write_seg(tmp_path / "seg.dcm", series, [structure("x", mask, series)], description="test")
        assert not (tmp_path / "rs.dcm").exists()

    def test_nothing_is_drawn_on_tilted_slices(self, tmp_path: Path) -> None:
        series = read(ramp_series([0, 2, 4, 6], tilt_degrees=10), tmp_path / "ct", TILT)
        mask = np.ones(series.geometry.shape, dtype=bool)
        for write_it in (write_rtstruct, write_seg):
            with pytest.raises(InputError, match=r"are tilted and were resampled.*use formats=\['nifti'\]"):
                write_it(tmp_path / "x.dcm", series, [structure("x", mask, series)], description="test")
        assert not (tmp_path / "x.dcm").exists()


def test_places_between_slices_by_hand() -> None:
    geometry = Geometry.from_parts((5, 1, 2), (2.0, 1.0, 1.0))
    filling = GapFilling(geometry, np.array([0.0, 1.5, 4.0]))
    slices = np.array([[[0, 10]], [[3, 40]], [[8, -60]]], dtype=np.int16)
    # At 1: two thirds of the way to the second; at 2 and 3: 0.2 and 0.6 of the way to the third.
    np.testing.assert_array_equal(filling.onto_grid(slices)[:, 0], [[0, 10], [2, 30], [4, 20], [6, -20], [8, -60]])
    grid = np.arange(10).reshape(5, 1, 2)
    np.testing.assert_array_equal(filling.on_slices(grid), grid[[0, 2, 4]])
    assert Volume(filling.onto_grid(slices), geometry).array.dtype == np.int16
