"""Structure sets as planning systems write them: each region becomes a mask, or its reason is named."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from metricunet.errors import InputError
from metricunet.files.dicom.series import CtSeries, find_series
from metricunet.files.rtstruct.model import RoiMask
from metricunet.files.rtstruct.read import read_rtstruct
from metricunet.files.rtstruct.write import write_rtstruct
from metricunet.volume import Geometry
from tests.support.dicom_series import write_series
from tests.support.structure_sets import (
    GRID,
    plastimatch,
    rtstruct,
    square,
    structure,
)


class TestReading:
    def test_contours_in_any_order_and_several_in_a_slice(self, tmp_path: Path) -> None:
        contours = [square(2.5, 4.5, 6), square(0.5, 8.5, 3), square(1.5, 9.5, 6), square(6.5, 8.5, 6)]
        mask = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", contours)])).mask("a", GRID)
        assert mask.array.sum(axis=(1, 2)).tolist() == [0, 64, 64 - 4 - 4, 0, 0, 0]

    def test_a_repeated_last_point_is_dropped(self, tmp_path: Path) -> None:
        numbers = square(0.5, 8.5, 3)
        read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", [numbers + numbers[:3]])]))
        (contour,) = read.structure("a").contours
        assert contour.tolist() == np.reshape(numbers, (4, 3)).tolist()
        assert read.mask("a", GRID).array.sum() == 64

    def test_contours_drawn_on_thinner_slices_do_not_cancel(self, tmp_path: Path) -> None:
        # Three planes fall into each slice of 3 mm; the one through its centre counts.
        contours = [square(0.5, 8.5 if z % 3 == 0 else 5.5, z) for z in range(2, 11)]
        mask = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", contours)])).mask("a", GRID)
        assert mask.array.sum(axis=(1, 2)).tolist() == [0, 64, 64, 64, 0, 0]

    def test_contours_between_slices_go_to_the_nearest(self, tmp_path: Path) -> None:
        contours = [square(0.5, 8.5, z + 1.2) for z in (3, 6, 9)]
        mask = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", contours)])).mask("a", GRID)
        assert mask.array.sum(axis=(1, 2)).tolist() == [0, 64, 64, 64, 0, 0]

    def test_sparse_contours_are_refused(self, tmp_path: Path) -> None:
        read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", [square(0.5, 8.5, z) for z in (0, 6, 12)])]))
        with pytest.raises(
            InputError, match=r"ROI 'a': its contours lie 6\.00 mm apart or more, .*slices 3\.00 mm"
        ):
            read.mask("a", GRID)

    @pytest.mark.parametrize("step", [3.3, 4, 4.5])
    def test_contours_of_thicker_slices_are_refused_where_slices_would_stay_empty(
        self, tmp_path: Path, step: float
    ) -> None:
        def read(count: int) -> RoiMask:
            contours = [square(0.5, 8.5, step * n) for n in range(count)]
            (found,) = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", contours)])).masks(GRID)
            return found

        within = read(int(14 / step) + 1)
        if step == 3.3:  # each slice has its contour
            assert within.mask is not None
            assert within.mask.array.any(axis=(1, 2)).sum() == 5
        else:
            assert within.status == "unusable"
            assert f"its contours lie {step:.2f} mm apart or more, the slices 3.00 mm" in within.reason

    @pytest.mark.parametrize("z", [-1.6, 16.6, 700])
    def test_contours_beyond_the_scan_are_refused_by_name(self, tmp_path: Path, z: float) -> None:
        read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("CTV", [square(0.5, 8.5, 3), square(1, 2, z)])]))
        with pytest.raises(InputError, match=rf"rs\.dcm: ROI 'CTV': a contour at z = {z:.2f} mm .* half a slice"):
            read.mask("CTV", GRID)

    def test_half_a_slice_beyond_the_last_is_accepted(self, tmp_path: Path) -> None:
        read = read_rtstruct(
            rtstruct(tmp_path / "rs.dcm", [("a", [square(0.5, 8.5, -1.5), square(0.5, 8.5, 1.5)])])
        )
        assert read.mask("a", GRID).array[0].sum() == 64

    def test_a_contour_across_slices_is_refused(self, tmp_path: Path) -> None:
        slanted = [0, 0, 0, 8, 0, 0, 8, 8, 9, 0, 8, 9]
        with pytest.raises(InputError, match="ROI 'a': a contour"):
            read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", [slanted])])).mask("a", GRID)

    def test_contours_beside_the_scan(self, tmp_path: Path) -> None:
        read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", [square(50, 60, 3)])]))
        with pytest.raises(InputError, match="ROI 'a' contains no voxel's centre"):
            read.mask("a", GRID)

    def test_empty_and_unknown_rois(self, tmp_path: Path) -> None:
        read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("CTV", None), ("PTV", []), ("a", [square(1, 5, 3)])]))
        assert [w.partition("rs.dcm: ")[2] for w in read.warnings] == [
            "ROI 'CTV' has no contours",
            "ROI 'PTV' has no contours",
        ]
        for name in ("CTV", "PTV"):
            with pytest.raises(InputError, match=f"ROI '{name}' has no contours"):
                read.mask(name, GRID)
        with pytest.raises(InputError, match="has no ROI 'GTV'; it has CTV, PTV, a"):
            read.mask("GTV", GRID)

    def test_points_and_lines_enclose_nothing(self, tmp_path: Path) -> None:
        def change(dataset: Dataset) -> None:
            dataset.ROIContourSequence[0].ContourSequence[0].ContourGeometricType = "POINT"

        path = rtstruct(tmp_path / "rs.dcm", [("iso", [[1, 2, 3], [1, 2, 3, 4, 5, 3]])], change=change)
        read = read_rtstruct(path)
        assert len(read.warnings) == 3
        assert "enclose nothing (POINT) are passed over: 1" in read.warnings[0]
        assert "(fewer than three points)" in read.warnings[1]
        with pytest.raises(InputError, match="ROI 'iso' has no contours"):
            read.mask("iso", GRID)

    def test_duplicate_names_are_reported(self, tmp_path: Path) -> None:
        rois = [("a", [square(1, 5, 3)]), ("a", [square(1, 5, 6)]), ("b", [square(1, 5, 6)])]
        read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", rois))
        assert any("2 ROIs are named 'a'" in warning for warning in read.warnings)
        with pytest.raises(InputError, match="ROIs 7, 8 are all named 'a'"):
            read.mask("a", GRID)
        assert read.mask("b", GRID).array.any()

    def test_frame_of_reference_without_its_sequence(self, tmp_path: Path) -> None:
        read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", [square(1, 5, 3)])], sequence=False))
        assert read.frame_of_reference_uid == "1.2.3.4"
        assert "ReferencedFrameOfReferenceSequence is missing; its ROIs state 1.2.3.4" in read.warnings[0]

    def test_no_frame_of_reference_at_all(self, tmp_path: Path, series: CtSeries) -> None:
        path = rtstruct(tmp_path / "rs.dcm", [("a", [square(1, 5, 3)])], sequence=False, frame=None)
        read = read_rtstruct(path, series)
        assert read.frame_of_reference_uid is None
        assert "nothing else states one" in read.warnings[0]
        assert "taken to be that of the scan" in read.warnings[1]

    def test_another_frame_of_reference_is_refused(self, tmp_path: Path, series: CtSeries) -> None:
        for sequence in (True, False):
            path = rtstruct(tmp_path / "rs.dcm", [("a", [square(1, 5, 3)])], sequence=sequence)
            with pytest.raises(InputError, match=r"frame of reference is 1\.2\.3\.4, but") as caught:
                read_rtstruct(path, series)
            assert series.frame_of_reference_uid in str(caught.value)
            assert "copy its contours to this scan in the program that registered the two" in str(caught.value)

    def test_one_roi_in_another_frame_is_refused_by_name(self, tmp_path: Path, series: CtSeries) -> None:
        def change(dataset: Dataset) -> None:
            dataset.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = "9.9"

        rois = [("a", [square(1, 5, 3)]), ("b", [square(1, 5, 3)])]
        path = rtstruct(tmp_path / "rs.dcm", rois, frame=series.frame_of_reference_uid, change=change)
        read = read_rtstruct(path, series)
        assert [len(s.contours) for s in read.structures] == [1, 0]
        with pytest.raises(
            InputError, match=r"ROI 'b' cannot be used on this scan: its frame of reference is 9\.9"
        ):
            read.mask("b", GRID)
        assert any("ROI 'b': frame of reference is 9.9" in warning for warning in read.warnings)

    def test_a_set_drawn_on_another_series_of_the_same_frame_is_said(self, tmp_path: Path) -> None:
        frame = generate_uid()
        write_series(tmp_path / "a", frame_of_reference_uid=frame)
        write_series(tmp_path / "b", frame_of_reference_uid=frame)
        (a,), (b,) = find_series(tmp_path / "a").series, find_series(tmp_path / "b").series
        mask = np.ones(a.geometry.shape, dtype=bool)
        write_rtstruct(tmp_path / "rs.dcm", a, [structure("x", mask, a)], description="test")
        (note,) = read_rtstruct(tmp_path / "rs.dcm", b).warnings
        assert f"was drawn on series {a.series_uid}, not on {b.series_uid}" in note

    @pytest.mark.parametrize("numbers", [[1, 2], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8, float("nan")]])
    def test_broken_contour_data(self, tmp_path: Path, numbers: list[float]) -> None:
        def change(dataset: Dataset) -> None:
            element = pydicom.dataelem.RawDataElement
            text = b"\\".join(str(n).encode() for n in numbers)
            contour = dataset.ROIContourSequence[0].ContourSequence[0]
            del contour.ContourData
            tag = pydicom.tag.Tag("ContourData")
            contour._dict[tag] = element(tag, "DS", len(text), text, 0, True, True)

        path = rtstruct(tmp_path / "rs.dcm", [("CTV", [square(1, 2, 3)])], change=change)
        with pytest.raises(InputError, match="ROI 'CTV' has ContourData that holds"):
            read_rtstruct(path).mask("CTV", GRID)

    def test_contours_without_a_name(self, tmp_path: Path) -> None:
        def change(dataset: Dataset) -> None:
            del dataset.StructureSetROISequence[0]

        rois = [("a", [square(1, 5, 3)]), ("b", [square(1, 5, 3)])]
        read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", rois, change=change))
        assert read.names == ("b",)
        assert "contours of ROI number 7, which it does not name" in read.warnings[0]

    @pytest.mark.parametrize("undefined", [False, True])
    def test_a_file_that_is_cut_off_never_passes_for_whole(self, tmp_path: Path, undefined: bool) -> None:
        def change(dataset: Dataset) -> None:
            for element in dataset:
                if element.VR == "SQ":
                    element.value.is_undefined_length = element.is_undefined_length = undefined
                    for item in element.value:
                        item.is_undefined_length_sequence_item = undefined
                        change(item)

        rois = [("a", [square(1, 5, 3), square(1, 5, 6)]), ("b", [square(1, 5, 3)])]
        whole = rtstruct(tmp_path / "rs.dcm", rois, change=change).read_bytes()
        assert len(read_rtstruct(tmp_path / "rs.dcm").structures) == 2
        path = tmp_path / "cut.dcm"
        for length in range(140, len(whole), 5):
            path.write_bytes(whole[:length])
            with pytest.raises(InputError, match=r"cut\.dcm: (cannot be read|is |.*is missing, so|.*is damaged)"):
                read_rtstruct(path)

    @pytest.mark.parametrize("keyword", ["StructureSetROISequence", "ROIContourSequence"])
    def test_a_set_that_lacks_what_makes_one(self, tmp_path: Path, keyword: str) -> None:
        path = rtstruct(tmp_path / "rs.dcm", [("a", None)], change=lambda dataset: delattr(dataset, keyword))
        with pytest.raises(InputError, match=f"{keyword} is missing, so the file is incomplete"):
            read_rtstruct(path)

    def test_text_that_would_break_a_line(self, tmp_path: Path) -> None:
        read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a\r\nb\x1b[2J", None)]))
        assert read.names == ("a b [2J",)
        assert not any("\n" in warning for warning in read.warnings)

    def test_not_a_structure_set(self, tmp_path: Path, series: CtSeries) -> None:
        (tmp_path / "a.txt").write_text("nothing")
        with pytest.raises(InputError, match="is not a DICOM file"):
            read_rtstruct(tmp_path / "a.txt")
        with pytest.raises(InputError, match="is of modality CT, expected RTSTRUCT"):
            read_rtstruct(series.files[0])
        with pytest.raises(InputError, match="no such file"):
            read_rtstruct(tmp_path / "none.dcm")


def flat(*points: tuple[float, float], z: float = 3) -> list[float]:
    return [value for x, y in points for value in (x, y, z)]


class TestMasks:
    """Each region is a mask or has a reason."""

    def test_every_kind_at_once(self, tmp_path: Path) -> None:
        def change(dataset: Dataset) -> None:
            items = {int(item.ReferencedROINumber): item for item in dataset.ROIContourSequence}
            items[9].ContourSequence[0].ContourGeometricType = "POINT"
            items[9].ContourSequence[1].ContourGeometricType = "OPEN_PLANAR"
            del items[10]["ContourSequence"]

        rois = [
            ("CTV", [square(0.5, 8.5, 3)]),
            ("never drawn", None),
            ("iso and line", [[1, 2, 3], square(1, 5, 3)]),
            ("emptied", [square(1, 5, 3)]),
            ("CTV", [square(0.5, 4.5, 6)]),
            ("elsewhere", [square(0.5, 8.5, 300)]),
            ("speck", [square(1.1, 1.3, 3)]),
        ]
        read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", rois, change=change))
        masks = read.masks(GRID)
        assert [(m.number, m.name, m.status) for m in masks] == [
            (7, "CTV", "contoured"),
            (8, "never drawn", "not contoured"),
            (9, "iso and line", "no area"),
            (10, "emptied", "not contoured"),
            (11, "CTV", "contoured"),
            (12, "elsewhere", "unusable"),
            (13, "speck", "unusable"),
        ]
        for found in masks:
            assert (found.mask is None) == (found.status != "contoured") == bool(found.reason)
            assert "\n" not in found.reason
            if found.reason:
                assert f"rs.dcm: ROI '{found.name}'" in found.reason
        assert "(POINT: 1, OPEN_PLANAR: 1)" in masks[2].reason
        assert "at most half a slice" in masks[5].reason
        assert masks[0].mask is not None
        assert masks[4].mask is not None
        assert (masks[0].mask.array.sum(), masks[4].mask.array.sum()) == (64, 16)

    @pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"])
    def test_nested_areas(self, tmp_path: Path, kind: str) -> None:
        def change(dataset: Dataset) -> None:
            for contour in dataset.ROIContourSequence[0].ContourSequence:
                contour.ContourGeometricType = kind

        contours = [square(4.5, 5.5, 3), square(2.5, 8.5, 3), square(0.5, 10.5, 3)]
        read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", contours)], change=change))
        (found,) = read.masks(GRID)
        assert found.mask is not None
        assert found.mask.array.sum() == 100 - 36 + 1
        assert found.notes == ()

    def test_a_keyhole(self, tmp_path: Path) -> None:
        hole = [(2.5, 5.0), (2.5, 2.5), (7.5, 2.5), (7.5, 7.5), (2.5, 7.5), (2.5, 5.0)]
        outer = [(0.5, 5.0), (0.5, 9.5), (9.5, 9.5), (9.5, 0.5), (0.5, 0.5), (0.5, 5.0)]
        read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", [flat(*outer, *hole)])]))
        assert read.mask("a", GRID).array.sum() == 81 - 25

    def test_a_contour_given_twice_counts_once(self, tmp_path: Path) -> None:
        numbers = square(0.5, 8.5, 3)
        backwards = np.reshape(numbers, (4, 3))[::-1].ravel().tolist()
        read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", [numbers, backwards])]))
        (found,) = read.masks(GRID)
        assert found.mask is not None
        assert found.mask.array.sum() == 64
        assert "a contour at z = 3.00 mm occurs twice; it counts once" in found.notes[0]

    @pytest.mark.parametrize("again", ["a point more", "other decimals"])
    def test_a_contour_given_again_with_other_points_counts_once(self, tmp_path: Path, again: str) -> None:
        numbers = square(0.5, 8.5, 3)
        if again == "a point more":
            second = [*numbers[:3], 4.25, 0.5, 3, *numbers[3:]]
        else:
            second = [value + 0.004 * (n % 3 < 2) for n, value in enumerate(numbers)]
        read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", [numbers, second, square(2.5, 4.5, 3)])]))
        (found,) = read.masks(GRID)
        assert found.mask is not None
        assert found.mask.array[1].sum() == 64 - 4
        assert found.notes == (f"{read.path}: ROI 'a': a contour at z = 3.00 mm occurs twice; it counts once",)

    def test_a_wall_of_one_pixel_stays_a_wall(self, tmp_path: Path) -> None:
        read = read_rtstruct(
            rtstruct(tmp_path / "rs.dcm", [("a", [square(0.95, 8.05, 3), square(1.05, 7.95, 3)])])
        )
        assert read.mask("a", GRID).array[1].sum() == 64 - 36

    def test_contours_that_cross_are_reported(self, tmp_path: Path) -> None:
        read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", [square(0.5, 5.5, 3), square(3.5, 8.5, 3)])]))
        (found,) = read.masks(GRID)
        assert found.mask is not None
        assert found.mask.array.sum() == 25 + 25 - 2 * 4
        assert "contours at z = 3.00 mm cross each other" in found.notes[0]

    def test_side_by_side_is_not_crossing(self, tmp_path: Path) -> None:
        contours = [square(0.5, 4.5, 3), [v + 4 * (n % 3 == 0) for n, v in enumerate(square(0.5, 4.5, 3))]]
        (found,) = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", contours)])).masks(GRID)
        assert found.notes == ()
        assert found.mask is not None
        assert found.mask.array.sum() == 32

    def test_off_the_planes_and_several_in_a_slice_are_reported(self, tmp_path: Path) -> None:
        read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", [square(0.5, 8.5, z) for z in (2, 4, 7)])]))
        (found,) = read.masks(GRID)
        assert "contours lie up to 1.00 mm off the slices' planes" in found.notes[0]
        assert "3 planes of contours fall into 2 slices" in found.notes[1]

    def test_halfway_between_slices_none_is_lost(self, tmp_path: Path) -> None:
        contours = [square(0.5, 8.5, z + 1.5) for z in (0, 3, 6, 9)]
        mask = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", contours)])).mask("a", GRID)
        assert mask.array.sum(axis=(1, 2)).tolist() == [64, 64, 64, 64, 0, 0]

    def test_slices_left_out_between_others_are_reported(self, tmp_path: Path) -> None:
        read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", [square(0.5, 8.5, z) for z in (0, 3, 9, 12)])]))
        (found,) = read.masks(GRID)
        assert "1 of the slices between its ends hold nothing of it, the first at z = 6.00 mm" in found.notes[0]

    @pytest.mark.parametrize(("low", "high", "count"), [(3.5, 14.5, 64), (-4.5, 3.5, 16), (-30, 30, 144)])
    def test_what_the_edges_of_the_slices_cut_off_is_reported(
        self, tmp_path: Path, low: float, high: float, count: int
    ) -> None:
        read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", [square(low, high, 3)])]))
        (found,) = read.masks(GRID)
        assert found.mask is not None
        assert found.mask.array.sum() == count
        far_mm = max(-0.5 - low, high - 11.5)
        (note,) = found.notes
        assert f"reach up to {far_mm:.2f} mm beyond the slices' edges; what lies there is cut off" in note

    def test_contours_along_the_edges_of_the_slices_are_whole(self, tmp_path: Path) -> None:
        read = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", [square(-0.9, 11.9, 3)])]))
        (found,) = read.masks(GRID)
        assert found.mask is not None
        assert (found.mask.array.sum(), found.notes) == (144, ())

    def test_a_contour_that_is_not_planar(self, tmp_path: Path) -> None:
        warped = [0.5, 0.5, 2.0, 8.5, 0.5, 4.0, 8.5, 8.5, 2.0, 0.5, 8.5, 4.0]
        (found,) = read_rtstruct(rtstruct(tmp_path / "rs.dcm", [("a", [warped])])).masks(GRID)
        assert found.status == "unusable"
        assert "at z = 3.00 mm is not in the plane of a slice: its points spread over 2.00 mm" in found.reason

    @pytest.mark.parametrize("number", [1e7, -1e300])
    def test_places_outside_the_world(self, tmp_path: Path, number: float) -> None:
        path = rtstruct(tmp_path / "rs.dcm", [("a", [[number, 0, 3, 8, 0, 3, 8, 8, 3]])])
        with pytest.raises(InputError, match=r"ROI 'a' has ContourData that holds .*, expected lengths in millim"):
            read_rtstruct(path).mask("a", GRID)

    def test_a_wild_contour_takes_little_memory(self, tmp_path: Path) -> None:
        # Every edge spans every row: ten million crossings in all.
        grid = Geometry.from_parts((1, 512, 512), (3, 1, 1))
        x = np.tile([-900.0, 900.0], 10_000)
        zigzag = np.stack([np.linspace(0, 500, len(x)), x, np.zeros(len(x))], axis=1)
        path = rtstruct(tmp_path / "rs.dcm", [("a", [zigzag.ravel().tolist()])])
        tracemalloc.start()
        try:
            read_rtstruct(path).masks(grid)
            assert tracemalloc.get_traced_memory()[1] < 4e8
        finally:
            tracemalloc.stop()


class TestNamedImages:
    def set_of(self, path: Path, series: CtSeries, names: Sequence[int | str]) -> Path:
        """Squares on slices 2, 3, ...; contour n names the image of slice names[n], or that UID."""

        def change(dataset: Dataset) -> None:
            for contour, name in zip(dataset.ROIContourSequence[0].ContourSequence, names, strict=True):
                image = Dataset()
                image.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
                image.ReferencedSOPInstanceUID = series.sop_uids[name] if isinstance(name, int) else name
                contour.ContourImageSequence = [image]

        heights = [float(series.positions_mm[k, 2]) for k in range(2, 2 + len(names))]
        contours = [square(-30, -20, z) for z in heights]
        return rtstruct(path, [("a", contours)], frame=series.frame_of_reference_uid, change=change)

    def test_the_right_ones(self, tmp_path: Path, series: CtSeries) -> None:
        assert read_rtstruct(self.set_of(tmp_path / "rs.dcm", series, [2, 3, 4]), series).warnings == ()

    def test_images_that_the_scan_lacks_are_named(self, tmp_path: Path, series: CtSeries) -> None:
        path = self.set_of(tmp_path / "rs.dcm", series, [2, "9.9.9", 4])
        (note,) = read_rtstruct(path, series).warnings
        assert f"ROI 'a': 1 of its contours name images that series {series.series_uid} lacks" in note
        assert note.endswith("the first 9.9.9")

    def test_contours_beside_the_image_that_they_name(self, tmp_path: Path, series: CtSeries) -> None:
        path = self.set_of(tmp_path / "rs.dcm", series, [2, 5, 4])
        (note,) = read_rtstruct(path, series).warnings
        assert "1 of its contours lie up to 5.00 mm from the plane of the image that they name" in note


class TestRealSets:
    def test_thorax(self, shared_data: Path, tmp_path: Path) -> None:
        folder = shared_data / "thorax_rt_dicom"
        (series,) = find_series(folder).series
        (path,) = [
            p for p in folder.iterdir() if pydicom.dcmread(p, specific_tags=["Modality"]).Modality == "RTSTRUCT"
        ]
        read = read_rtstruct(path, series)
        assert read.frame_of_reference_uid == series.frame_of_reference_uid
        assert any("ReferencedFrameOfReferenceSequence is missing" in warning for warning in read.warnings)
        expected = "LUNGS LUNG_R LUNG_L HEART SPINALCORD GTVp CTVp PTV4140 LIVER"
        assert read.names == tuple(expected.split())
        masks = {name: read.mask(name, series.geometry).array.astype(bool) for name in read.names}
        ml = {name: mask.sum() * series.geometry.voxel_volume_ml for name, mask in masks.items()}
        assert 800 < ml["LUNG_L"] < ml["LUNG_R"] < 1500
        assert ml["LUNGS"] == pytest.approx(ml["LUNG_L"] + ml["LUNG_R"], rel=0.01)
        assert ml["GTVp"] < ml["CTVp"] < ml["PTV4140"]
        assert (masks["GTVp"] & ~masks["PTV4140"]).sum() < 0.01 * masks["GTVp"].sum()
        # Right is towards lower x, the heart lies between.
        middle = {name: series.geometry.to_world(np.argwhere(mask).mean(axis=0)) for name, mask in masks.items()}
        assert middle["LUNG_R"][0] < middle["HEART"][0] < middle["LUNG_L"][0]
        # Lungs are air, the heart is not: contours and pixels lie in one place.
        hu = series.read().array
        assert np.median(hu[masks["LUNGS"]]) < -700
        assert 0 < np.median(hu[masks["HEART"]]) < 120

        # Another program fills the same clinical contours; centres close to a line may differ.
        theirs = plastimatch(path, series, tmp_path / "plastimatch")
        for name in ("HEART", "LUNG_L", "SPINALCORD", "LIVER"):
            other = theirs[name].array != 0
            both = (masks[name] & other).sum()
            assert 2 * both / (masks[name].sum() + other.sum()) > 0.995, name

    def test_prostate_without_a_referenced_frame(self, shared_data: Path) -> None:
        path = shared_data / "rtstruct_edge_cases" / "prostate_no_referenced_frame.dcm"
        read = read_rtstruct(path)
        assert any("ReferencedFrameOfReferenceSequence is missing" in warning for warning in read.warnings)
        points = np.concatenate(read.structure("PROSTATE").contours)
        low, high = points.min(axis=0), points.max(axis=0)
        shape = np.ceil((high - low) / [0.5, 0.5, 1]).astype(int)[::-1] + (1, 9, 9)  # noqa: RUF005
        grid = Geometry.from_parts(shape.tolist(), (1, 0.5, 0.5), (low[0] - 2, low[1] - 2, low[2]))
        mask = read.mask("PROSTATE", grid)
        assert mask.array.any(axis=(1, 2)).sum() == 31
        assert mask.array.sum() * grid.voxel_volume_ml == pytest.approx(35.5, abs=0.3)

    def test_rois_without_contours(self, shared_data: Path) -> None:
        read = read_rtstruct(shared_data / "rtstruct_edge_cases" / "empty_rois_phantom.dcm")
        assert sum("has no contours" in warning for warning in read.warnings) == 10
        for name in ("CTV", "PROS"):
            with pytest.raises(InputError, match=f"ROI '{name}' has no contours"):
                read.mask(name, GRID)
        assert len(read.structure("Bladder").contours) == 21
        # On a grid of its own planes each of the others becomes a mask, the empty ones say so.
        z = np.unique(np.concatenate([c[:, 2] for c in read.structure("BODY").contours]))
        low = np.concatenate(read.structure("BODY").contours).min(axis=0)
        high = np.concatenate(read.structure("BODY").contours).max(axis=0)
        shape = (len(z), int((high - low)[1] / 2) + 2, int((high - low)[0] / 2) + 2)
        grid = Geometry.from_parts(shape, (float(np.diff(z)[0]), 2, 2), (low[0], low[1], z[0]))
        status = {found.name: found.status for found in read.masks(grid)}
        assert sorted(set(status.values())) == ["contoured", "not contoured"]
        assert sum(value == "contoured" for value in status.values()) == 6
        assert status["CTV"] == status["PROS"] == "not contoured"
