"""Each check fails when what it watches goes wrong: faults are put into the doors, one at a time.

That nothing fails without a fault, on the same geometry, is shown in test_run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from metricunet.evaluation.measures import Measures
from metricunet.files.dicom.series import CtSeries, SeriesSearch, find_series
from metricunet.files.nifti import read_labels, write_nifti
from metricunet.files.rtstruct.registration import Registration
from metricunet.files.rtstruct.write import write_rtstruct
from metricunet.files.seg.write import write_seg
from metricunet.volume import Geometry, Volume
from metricunet.workflows.commission import measures, other_programs, scans, structure_sets, subjects, two_stages
from metricunet.workflows.commission.checks import CommissionCheck, checked
from metricunet.workflows.commission.subjects import ScanPlan, Site, make_site

Patch = pytest.MonkeyPatch


def failures(run: Callable[[Sequence[Site]], Iterable[CommissionCheck]], site: Site) -> set[str]:
    """Names of the checks of a group that failed; none may have stopped."""
    checks = checked("group", lambda: run([site]))
    assert all(check.name != "Runs to its end" for check in checks), checks[-1].reason
    return {check.name for check in checks if check.status == "fail"}


def edit(path: Path, change: Callable[[Dataset], None]) -> None:
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path, enforce_file_format=True)


def contours_in(dataset: Dataset) -> list[Dataset]:
    return [contour for item in dataset.ROIContourSequence for contour in item.ContourSequence]


def move(path: Path, change: Callable[[Any], Any]) -> None:
    """Change all points [n, 3] of a structure set."""

    def on(dataset: Dataset) -> None:
        for contour in contours_in(dataset):
            points = np.array([float(v) for v in contour.ContourData]).reshape(-1, 3)
            contour.ContourData = [f"{v:.6f}" for v in change(points).ravel()]

    edit(path, on)


def faulty_writer(monkeypatch: Patch, fault: Callable[[Path], None]) -> None:
    def write(path: Path, *args: Any, **more: Any) -> Any:
        done = write_rtstruct(path, *args, **more)
        fault(path)
        return done

    monkeypatch.setattr(structure_sets, "write_rtstruct", write)


def shifted(points: Any, by: Sequence[float]) -> Any:
    return points + np.array(by)


MASK, VOLUME, CURVE = "Mask out and in", "Contours' volume", "Contours on the analytic curve"
CORNERS = "Points on the corners of voxels"
PLANE = "Plane and image that contours name"


class TestContours:
    def test_shifted_by_half_a_pixel(self, site: Site, monkeypatch: Patch) -> None:
        faulty_writer(monkeypatch, lambda path: move(path, lambda p: shifted(p, (0.4, 0, 0))))
        # Filled at voxels' centres, which a shift to the right by just half a pixel leaves on the same side.
        assert failures(structure_sets.voxel_edges, site) == {CORNERS}
        assert failures(structure_sets.between_voxels, site) == {MASK, CURVE}

    def test_shifted_by_half_a_slice(self, site: Site, monkeypatch: Patch) -> None:
        faulty_writer(monkeypatch, lambda path: move(path, lambda p: shifted(p, (0, 0, -2.5))))
        assert PLANE in failures(structure_sets.voxel_edges, site)

    def test_mirrored_left_to_right(self, site: Site, monkeypatch: Patch) -> None:
        middle = site.plan.middle_mm[0]
        faulty_writer(monkeypatch, lambda path: move(path, lambda p: p * (-1, 1, 1) + (2 * middle, 0, 0)))
        assert failures(structure_sets.voxel_edges, site) == {MASK}
        assert failures(structure_sets.between_voxels, site) == {MASK, CURVE}

    def test_a_slice_dropped(self, site: Site, monkeypatch: Patch) -> None:
        def drop(path: Path) -> None:
            def on(dataset: Dataset) -> None:
                heights = sorted({float(c.ContourData[2]) for c in contours_in(dataset)})
                for item in dataset.ROIContourSequence:
                    kept = [
                        c for c in item.ContourSequence if float(c.ContourData[2]) != heights[len(heights) // 3]
                    ]
                    item.ContourSequence = kept

            edit(path, on)

        faulty_writer(monkeypatch, drop)
        assert failures(structure_sets.voxel_edges, site) == {MASK, VOLUME}
        assert failures(structure_sets.between_voxels, site) == {MASK, VOLUME}

    def test_points_on_the_centres_of_the_outermost_pixels(self, site: Site, monkeypatch: Patch) -> None:
        def shrink(points: Any) -> Any:
            middle = points.mean(axis=0)
            return middle + (points - middle) * (1 - 0.5 / np.maximum(np.abs(points - middle).max(axis=0), 1))

        faulty_writer(monkeypatch, lambda path: move(path, shrink))
        assert failures(structure_sets.voxel_edges, site) >= {MASK, VOLUME}
        assert failures(structure_sets.between_voxels, site) >= {MASK, VOLUME, CURVE}

    def test_another_image_named(self, site: Site, monkeypatch: Patch) -> None:
        def rename(dataset: Dataset) -> None:
            contour = contours_in(dataset)[0]
            contour.ContourImageSequence[0].ReferencedSOPInstanceUID = site.series.sop_uids[0]

        faulty_writer(monkeypatch, lambda path: edit(path, rename))
        assert failures(structure_sets.voxel_edges, site) == {PLANE}

    def test_smoothing_that_goes_too_far(self, site: Site, monkeypatch: Patch) -> None:
        def push(path: Path) -> None:
            if path.name == structure_sets.SMOOTH:
                move(path, lambda p: shifted(p, (0.6, 0, 0)))

        faulty_writer(monkeypatch, push)
        assert failures(structure_sets.smoothing, site) == {"Smoothing of up to 0.5 mm, largest move"}

    @pytest.mark.parametrize(
        ("way", "failing"),
        [
            ("keep", {"A hole that is closed is filled"}),
            ("close", {"A hole of its own contour comes back", "A hole joined by a keyhole comes back"}),
        ],
    )
    def test_holes_drawn_another_way(self, site: Site, monkeypatch: Patch, way: str, failing: set[str]) -> None:
        def write(path: Path, *args: Any, **more: Any) -> Any:
            return write_rtstruct(path, *args, **more | {"holes": way})

        monkeypatch.setattr(structure_sets, "write_rtstruct", write)
        assert failures(structure_sets.holes, site) == failing


class TestScans:
    def test_spacings_swapped(self, plan: ScanPlan, tmp_path: Path, monkeypatch: Patch) -> None:
        """What masks alone never show: they come back through the same wrong grid."""

        def swapped(series: CtSeries) -> CtSeries:
            geometry = series.geometry
            spacing = [geometry.spacing_mm[n] for n in (0, 2, 1)]
            wrong = Geometry.from_parts(geometry.shape, spacing, geometry.origin_mm, geometry.directions)
            return replace(series, geometry=wrong)

        def find(path: Path) -> SeriesSearch:
            search = find_series(path)
            return replace(search, series=tuple(swapped(series) for series in search.series))

        monkeypatch.setattr(subjects, "find_series", find)
        site = make_site(plan, tmp_path / "swapped")
        assert failures(scans.dicom_in, site) == {"Grid against the header's equation"}
        assert failures(scans.nifti, site) >= {"Grid, by nibabel and by ours"}
        assert CURVE in failures(structure_sets.between_voxels, site)

    def test_hu_off_by_one(self, site: Site, monkeypatch: Patch) -> None:
        scan = site.series.read()
        monkeypatch.setattr(CtSeries, "read", lambda self: scan.with_array(scan.array + 1))
        assert failures(scans.dicom_in, site) == {"HU against what was stored"}

    def test_a_gap_that_is_accepted(self, site: Site, monkeypatch: Patch) -> None:
        monkeypatch.setattr(scans, "find_series", lambda path: SeriesSearch((site.series,), ()))
        assert failures(scans.dicom_in, site) == {"Series that lacks a slice"}

    def test_nifti_mirrored(self, site: Site, monkeypatch: Patch) -> None:
        def write(path: Path, volume: Volume, **more: Any) -> None:
            write_nifti(path, volume.with_array(volume.array[:, :, ::-1]), **more)

        monkeypatch.setattr(scans, "write_nifti", write)
        assert failures(scans.nifti, site) == {
            "HU, by nibabel and by ours",
            "The same, out as they came in",
        }

    def test_itk_with_a_slice_too_low(self, site: Site, monkeypatch: Patch) -> None:
        read = scans.read_scan
        monkeypatch.setattr(
            scans,
            "read_scan",
            lambda path: Volume(read(path).array, read(path).geometry.crop((-1, 0, 0), site.plan.grid.shape)),
        )
        assert failures(scans.itk, site) == {"Grid against the header's numbers"}


class TestSets:
    @pytest.fixture
    def with_set(self, site: Site) -> Site:
        """The site after its sub-voxel structure set has been written."""
        assert failures(structure_sets.between_voxels, site) == set()
        return site

    def test_sound(self, with_set: Site) -> None:
        assert failures(structure_sets.adding, with_set) == set()
        assert failures(structure_sets.registered, with_set) == set()

    def test_a_structure_of_others_touched(self, with_set: Site, monkeypatch: Patch) -> None:
        add = structure_sets.add_to_rtstruct

        def recolour(dataset: Dataset) -> None:
            dataset.ROIContourSequence[1].ROIDisplayColor = [1, 2, 3]

        def write(before: Path, after: Path, *args: Any, **more: Any) -> None:
            add(before, after, *args, **more)
            edit(after, recolour)

        monkeypatch.setattr(structure_sets, "add_to_rtstruct", write)
        assert failures(structure_sets.adding, with_set) == {"Structures that were there"}

    def test_a_registration_the_other_way(self, with_set: Site, monkeypatch: Patch) -> None:
        matrix = Registration.matrix
        monkeypatch.setattr(Registration, "matrix", lambda self, a, b: np.linalg.inv(matrix(self, a, b)))
        assert "Turned and shifted, against the matrix" in failures(structure_sets.registered, with_set)

    def test_seg_drops_a_slice_or_moves(self, site: Site, monkeypatch: Patch) -> None:
        def write(path: Path, series: CtSeries, structures: Any, **more: Any) -> None:
            k = site.plan.grid.shape[0] // 2
            cut = []
            for structure in structures:
                array = structure.mask.array.copy()
                array[k] &= structure.name == subjects.ISLAND
                cut.append(replace(structure, mask=structure.mask.with_array(array)))
            write_seg(path, series, [s for s in cut if s.mask.array.any()], **more)

        monkeypatch.setattr(structure_sets, "write_seg", write)
        monkeypatch.setattr(type(site), "structures", [s for s in site.structures if s.name != "thin disc"])
        assert failures(structure_sets.segmentations, site) == {MASK, "Frames at their positions, by pydicom"}

    def test_seg_at_a_wrong_position(self, site: Site, monkeypatch: Patch) -> None:
        def rise(dataset: Dataset) -> None:
            for item in dataset.PerFrameFunctionalGroupsSequence:
                x, y, z = (float(v) for v in item.PlanePositionSequence[0].ImagePositionPatient)
                item.PlanePositionSequence[0].ImagePositionPatient = [x, y + 0.05, z]

        def write(path: Path, *args: Any, **more: Any) -> None:
            write_seg(path, *args, **more)
            edit(path, rise)

        monkeypatch.setattr(structure_sets, "write_seg", write)
        assert failures(structure_sets.segmentations, site) == {"Frames at their positions, by pydicom"}


class TestArithmetic:
    def test_resampling_half_a_voxel_off(self, site: Site, monkeypatch: Patch) -> None:
        resample = Volume.resample

        def off(self: Volume, geometry: Geometry, fill: float = 0.0) -> Volume:
            return Volume(resample(self, geometry.crop((0, 0, 0.5), geometry.shape), fill).array, geometry)  # type: ignore[arg-type]

        monkeypatch.setattr(Volume, "resample", off)
        assert failures(measures.volumes, site) == {
            "A linear ramp on other grids",
            "Centre of an ellipsoid at 1 x 1 x 2 mm",
        }

    def test_paste_one_voxel_off(self, site: Site, monkeypatch: Patch) -> None:
        paste = Volume.paste
        monkeypatch.setattr(
            Volume, "paste", lambda self, patch, start: paste(self, patch, (start[0], start[1] + 1, start[2]))
        )
        assert failures(measures.volumes, site) == {"A crop pasted back where it was"}

    @pytest.mark.parametrize(("measure", "name"), [("dice", "Dice"), ("asd_mm", "ASD"), ("hd95_mm", "HD95")])
    def test_measures(self, site: Site, monkeypatch: Patch, measure: str, name: str) -> None:
        real = measures.measure

        def wrong(prediction: Volume, reference: Volume) -> Measures:
            found = real(prediction, reference)
            return replace(found, **{measure: 1.2 * (found.value(measure) or 0)})

        monkeypatch.setattr(measures, "measure", wrong)
        monkeypatch.setattr(measures, "SHIFTS_MM", (5.0,))
        assert failures(measures.spheres, site) == {f"{name} of shifted spheres"}

    def test_the_lens_by_counting(self) -> None:
        measures_of = measures.known_answers(20, 6)
        points = np.random.default_rng(0).uniform(-20, 20, (400_000, 3))
        one = (points**2).sum(axis=1) < 400
        both = one & (((points - (6, 0, 0)) ** 2).sum(axis=1) < 400)
        assert measures_of[0] == pytest.approx(both.sum() / one.sum(), abs=0.005)


class TestPrediction:
    @pytest.mark.parametrize(
        ("fault", "failing"),
        [
            (lambda m: m[:, :, ::-1], {"Centre of the target, DICOM", "Its voxels"}),
            (lambda m: np.roll(m, 1, axis=2), {"Centre of the target, DICOM", "Its voxels"}),
            (lambda m: m * (np.arange(len(m)) != 5)[:, None, None], {"Its volume", "Its voxels"}),
        ],
        ids=["mirrored", "a voxel off", "a slice dropped"],
    )
    def test_masks(self, site: Site, monkeypatch: Patch, fault: Callable[[Any], Any], failing: set[str]) -> None:
        predict = two_stages.predict

        def wrong(paths: Sequence[Path], models: Any, output: Path, **more: Any) -> None:
            predict(paths, models, output, **more)
            for path in output.glob("*.nii.gz"):
                mask = read_labels(path)
                write_nifti(path, mask.with_array(np.ascontiguousarray(fault(mask.array))))

        monkeypatch.setattr(two_stages, "predict", wrong)
        monkeypatch.setattr(two_stages, "_orders", lambda site, model: [])
        assert failures(two_stages.two_stages, site) >= {*failing, "RTSTRUCT and SEG against the NIfTI"}

    def test_one_order_of_axes_gone_wrong(self, site: Site, monkeypatch: Patch) -> None:
        predict = two_stages.predict

        def wrong(paths: Sequence[Path], models: Any, output: Path, **more: Any) -> None:
            predict(paths, models, output, **more)
            path = output / "RAS.nii.gz"
            if path.exists():
                mask = read_labels(path)
                write_nifti(path, mask.with_array(mask.array[:, ::-1].copy()), like=path)

        monkeypatch.setattr(two_stages, "predict", wrong)
        assert failures(two_stages.two_stages, site) == {"NIfTI in all 48 orders and directions of axes"}


class TestJudges:
    @pytest.fixture
    def written(self, site: Site) -> Site:
        assert failures(structure_sets.voxel_edges, site) | failures(structure_sets.between_voxels, site) == set()
        return site

    def test_plastimatch(self, written: Site) -> None:
        if other_programs.version_of("plastimatch") is None:
            pytest.skip("plastimatch is not installed")
        assert failures(other_programs.by_plastimatch, written) == set()
        move(written.folder / structure_sets.BETWEEN, lambda p: shifted(p, (0.4, 0, 0)))
        assert failures(other_programs.by_plastimatch, written) >= {"Sub-voxel contours: mask"}

    def test_dciodvfy(self, written: Site) -> None:
        if other_programs.version_of("dciodvfy") is None:
            pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
        assert failures(structure_sets.segmentations, written) == set()
        assert failures(other_programs.by_dciodvfy, written) == set()
        edit(written.folder / structure_sets.BETWEEN, lambda dataset: delattr(dataset, "StructureSetLabel"))
        assert failures(other_programs.by_dciodvfy, written) == {"Structure sets, 2 files"}

    def test_judges_that_are_not_there(self, site: Site, monkeypatch: Patch) -> None:
        monkeypatch.setattr(other_programs.shutil, "which", lambda program: None)
        checks = [*other_programs.by_plastimatch([site]), *other_programs.by_dciodvfy([site])]
        assert [check.status for check in checks] == ["not run"] * 6
        assert checks[0].reason == "plastimatch is not installed (Debian: plastimatch)"
        assert other_programs.version_of("plastimatch") is None
