"""Structure sets and segmentations on either side of an evaluation, against their masks."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import pydicom
import pytest

import metricunet as mu
from metricunet.errors import InputError
from metricunet.evaluation.compare import evaluate
from metricunet.evaluation.naming import MARK, Naming, split_tolerances, unmarked
from metricunet.evaluation.summary import CSV_COLUMNS, format_summary
from metricunet.files.dicom.series import CtSeries
from metricunet.files.nifti import write_nifti
from metricunet.files.rtstruct.write import write_rtstruct
from metricunet.files.seg.write import write_seg
from metricunet.inference import structure_set
from metricunet.volume import Volume
from metricunet.workflows.review.decide import MARK as REVIEW_MARK
from tests.support.command import Command
from tests.support.structure_sets import Mask, ellipsoid, make_series, rtstruct, square, structure

SPACING_MM = (2.5, 0.9, 1.1)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> CtSeries:
    return make_series(tmp_path_factory.mktemp("scan") / "ct", (10, 30, 34), SPACING_MM)


@pytest.fixture(scope="module")
def other_series(tmp_path_factory: pytest.TempPathFactory) -> CtSeries:
    return make_series(tmp_path_factory.mktemp("other") / "ct", (10, 30, 34), SPACING_MM, "FFS")


def gland(series: CtSeries, shift: tuple[int, int, int] = (0, 0, 0), size: float = 1.0) -> Mask:
    semi_axes_mm = np.multiply((8.0, 9.0, 11.0), size)
    return np.roll(ellipsoid(series.geometry, semi_axes_mm), shift, axis=(0, 1, 2))


def write_set(path: Path, series: CtSeries, masks: Mapping[str, Mask]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    structures = [structure(name, mask, series) for name, mask in masks.items()]
    write_rtstruct(path, series, structures, description="test", outline="voxel")
    return path


def write_segmentation(path: Path, series: CtSeries, masks: Mapping[str, Mask]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_seg(path, series, [structure(name, mask, series) for name, mask in masks.items()], description="test")
    return path


def write_mask(path: Path, series: CtSeries, masks: Mapping[str, Mask]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.zeros(series.geometry.shape, dtype=np.uint8)
    for value, mask in enumerate(masks.values(), start=1):
        labels[mask] = value
    write_nifti(path, Volume(labels, series.geometry))
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0} | {n: k for k, n in enumerate(masks, 1)}}
    (path.parent / "dataset.json").write_text(json.dumps(content))
    return path


WRITERS: dict[str, tuple[Callable[[Path, CtSeries, Mapping[str, Mask]], Path], str]] = {
    "mask": (write_mask, "nii.gz"),
    "rtstruct": (write_set, "rtstruct.dcm"),
    "seg": (write_segmentation, "seg.dcm"),
}


def written(kind: str, folder: Path, series: CtSeries, masks: Mapping[str, Mask]) -> Path:
    write, suffix = WRITERS[kind]
    return write(folder / f"a.{suffix}", series, masks)


def table(output: Path) -> list[dict[str, str]]:
    with (output / "cases.csv").open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def names_file(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("predicted", WRITERS)
@pytest.mark.parametrize("drawn", WRITERS)
def test_whatever_holds_the_structures_the_numbers_are_those_of_the_masks(
    series: CtSeries, tmp_path: Path, predicted: str, drawn: str
) -> None:
    found = {"Prostate^auto": gland(series, (1, 2, -1)), "Rectum^auto": gland(series, (0, 10, 0), 0.4)}
    truth = {"prostate": gland(series), "Rectum": gland(series, (1, 10, 1), 0.4) & ~gland(series)}
    found["Rectum^auto"] &= ~found["Prostate^auto"]
    plain = [dict(zip(("prostate", "rectum"), masks.values(), strict=True)) for masks in (found, truth)]
    expected = evaluate(
        write_mask(tmp_path / "p" / "a.nii.gz", series, plain[0]),
        write_mask(tmp_path / "r" / "a.nii.gz", series, plain[1]),
        tmp_path / "masks",
        scan=series.folder,
        tolerance_mm=1.0,
    )
    result = (
        evaluate(
            written(predicted, tmp_path / "predicted", series, found),
            written(drawn, tmp_path / "drawn", series, truth),
            tmp_path / "out",
            scan=series.folder,
            tolerance_mm=1.0,
        )
        if (predicted, drawn) != ("mask", "mask")
        else expected
    )
    assert [row.measures for row in result.rows] == [row.measures for row in expected.rows]
    assert [row.outcome for row in result.rows] == ["measured", "measured"]
    assert len({row.structure.casefold() for row in result.rows}) == 2
    assert not result.faults
    report = (tmp_path / ("masks" if result is expected else "out") / "report.html").read_text(encoding="utf-8")
    assert "Contour review" in report
    assert "data:image/png" in report  # the scan is in the pictures


def test_masks_without_a_scan_have_the_numbers_of_masks_with_it(series: CtSeries, tmp_path: Path) -> None:
    p = write_mask(tmp_path / "p" / "a.nii.gz", series, {"prostate": gland(series, (0, 1, 1))})
    r = write_mask(tmp_path / "r" / "a.nii.gz", series, {"prostate": gland(series)})
    evaluate(p, r, tmp_path / "alone")
    evaluate(p, r, tmp_path / "scan", scan=series.folder)
    for alone, with_scan in zip(table(tmp_path / "alone"), table(tmp_path / "scan"), strict=True):
        assert list(alone)[: len(CSV_COLUMNS)] == list(CSV_COLUMNS)
        assert [v for v in alone.values() if v] == pytest.approx([v for v in with_scan.values() if v]) or all(
            float(a) == pytest.approx(float(b), abs=2e-6)
            for a, b in zip(list(alone.values())[2:], list(with_scan.values())[2:], strict=True)
        )


#: Where small structures lie that share no voxel.
PARTS = {"prostate": (0, 0, 0), "bladder": (0, 10, 0), "rectum": (0, 0, 11)}


def parts(series: CtSeries, *names: str) -> dict[str, Mask]:
    return {name: gland(series, PARTS[name.lower()], 0.4) for name in names}


def write_prediction(path: Path, series: CtSeries, values: Mapping[str, int]) -> Path:
    """Write a label map as a predictor does: the verdict beside it alone says what its values mean."""
    labels = np.zeros(series.geometry.shape, dtype=np.uint8)
    for name, value in values.items():
        labels[gland(series, PARTS[name], 0.4)] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, Volume(labels, series.geometry))
    quality = path.with_name(path.name.replace(".nii.gz", ".quality.json"))
    quality.write_text(json.dumps({"verdict": "review", "labels": dict(values)}))
    return path


class TestPredictorsOwnValues:
    """A model numbers its structures as it was trained; its verdict says how."""

    VALUES: ClassVar = {"prostate": 1, "bladder": 2, "rectum": 3}

    @pytest.mark.parametrize("scan", [False, True], ids=["alone", "on a scan"])
    def test_masks_are_read_by_them_with_and_without_a_scan(
        self, series: CtSeries, tmp_path: Path, scan: bool
    ) -> None:
        r = write_mask(tmp_path / "r" / "a.nii.gz", series, parts(series, "bladder", "prostate"))
        p = write_prediction(tmp_path / "p" / "a.nii.gz", series, self.VALUES)
        result = evaluate(p, r, tmp_path / "out", scan=series.folder if scan else None)
        assert {row.structure: row.measures.dice for row in result.rows} == {"bladder": 1.0, "prostate": 1.0}
        assert result.notes == ("predictions hold structures that the references do not name: rectum",)
        assert not result.faults
        if scan:
            found = mu.evaluate(p, r, scan=series.folder)
            assert {name: measures.dice for name, measures in found.items()} == {"bladder": 1.0, "prostate": 1.0}

    @pytest.mark.parametrize("kind", ["rtstruct", "seg"])
    def test_masks_meet_dicom_by_their_names(self, series: CtSeries, tmp_path: Path, kind: str) -> None:
        r = written(kind, tmp_path / "r", series, parts(series, "Bladder", "Prostate"))
        p = write_prediction(tmp_path / "p" / "a.nii.gz", series, {"rectum": 1, "bladder": 2, "prostate": 3})
        result = evaluate(p, r, tmp_path / "out", scan=series.folder)
        assert {row.structure: row.measures.dice for row in result.rows} == {"bladder": 1.0, "prostate": 1.0}
        assert result.notes == ("not compared, of the predictions: rectum",)
        found = mu.evaluate(p, r, scan=series.folder)
        assert {name: measures.dice for name, measures in found.items()} == {"bladder": 1.0, "prostate": 1.0}

    def test_another_organ_of_value_1_is_no_prostate(self, series: CtSeries, tmp_path: Path) -> None:
        r = write_set(tmp_path / "r.dcm", series, parts(series, "Prostate"))
        p = write_prediction(tmp_path / "p" / "a.nii.gz", series, {"bladder": 1})
        with pytest.raises(InputError, match=r"prediction: bladder; reference: Prostate"):
            evaluate(p, r, tmp_path / "out", scan=series.folder)

    def test_a_names_file_may_still_spell_a_value_whose_name_it_does_not_know(
        self, series: CtSeries, tmp_path: Path
    ) -> None:
        r = write_set(tmp_path / "r.dcm", series, parts(series, "Prostate"))
        p = write_prediction(tmp_path / "p" / "a.nii.gz", series, {"prostate": 2})
        quality = tmp_path / "p" / "a.quality.json"
        quality.write_text(json.dumps({"labels": {"target": 2}}))
        names = names_file(tmp_path / "names.yaml", 'gland: [Prostate, "2"]\n')
        (row,) = evaluate(p, r, tmp_path / "out", scan=series.folder, names=names).rows
        assert (row.structure, row.measures.dice) == ("gland", 1.0)

    def test_a_value_without_a_name_is_told_with_what_names_the_others(
        self, series: CtSeries, tmp_path: Path
    ) -> None:
        r = write_set(tmp_path / "r" / "a.dcm", series, parts(series, "Prostate"))
        p = write_prediction(tmp_path / "p" / "a.nii.gz", series, {"prostate": 1, "bladder": 2})
        quality = tmp_path / "p" / "a.quality.json"
        quality.write_text(json.dumps({"labels": {"prostate": 1}}))
        with pytest.raises(InputError, match=r"value 2, .*quality\.json names these alone; predict the case"):
            evaluate(p, r, tmp_path / "out", scan=series.folder)
        quality.unlink()
        with pytest.raises(InputError, match=r"value 2, .*Name all structures in .*/p/dataset\.json"):
            evaluate(p, r, tmp_path / "out", scan=series.folder)

    def test_a_verdict_that_cannot_be_read_costs_its_case_alone(
        self, series: CtSeries, other_series: CtSeries, tmp_path: Path
    ) -> None:
        scans = tmp_path / "scans"
        scans.mkdir()
        for one in (series, other_series):
            (scans / one.case).symlink_to(one.folder)
            write_set(tmp_path / "r" / f"{one.case}.dcm", one, parts(one, "Prostate"))
            write_prediction(tmp_path / "p" / f"{one.case}.nii.gz", one, {"prostate": 3})
        (tmp_path / "p" / f"{series.case}.quality.json").write_text("{")
        result = evaluate(tmp_path / "p", tmp_path / "r", tmp_path / "out", scan=scans)
        assert [(row.case, row.measures.dice) for row in result.rows] == [(other_series.case, 1.0)]
        assert [fault.case for fault in result.faults] == [series.case]


def test_a_folder_of_pairs_meets_by_its_series(series: CtSeries, other_series: CtSeries, tmp_path: Path) -> None:
    """Files of any name, in subfolders; the scans lie in one tree."""
    scans = tmp_path / "scans"
    scans.mkdir()
    for k, one in enumerate((series, other_series)):
        (scans / str(k)).symlink_to(one.folder)
    drawn, found = tmp_path / "approved", tmp_path / "auto"
    write_set(drawn / "patient_b" / "RS.77.dcm", other_series, {"PROSTATA": gland(other_series)})
    write_set(
        drawn / "patient_a" / "RS.5.dcm", series, {"Prostate": gland(series), "PTV": gland(series, size=1.2)}
    )
    write_segmentation(found / "x.dcm", series, {"Prostate^auto": gland(series, (1, 0, 0))})
    write_segmentation(found / "y.dcm", other_series, {"Prostate^auto": gland(other_series, (0, 1, 0))})
    (found / "notes.txt").write_text("nothing")
    names = names_file(tmp_path / "names.yaml", "prostate: [Prostate, PROSTATA]\nbladder: [Bladder]\n")
    result = evaluate(found, drawn, tmp_path / "out", scan=scans, names=names)
    assert sorted(result.cases) == sorted([series.case, other_series.case])
    assert {row.structure for row in result.rows} == {"prostate"}
    shifts = {row.case: row.measures.shift_head_mm for row in result.rows}
    assert shifts == {series.case: pytest.approx(2.5), other_series.case: pytest.approx(0)}
    assert result.notes == ("not compared, of the references: PTV",)
    pairs = json.loads((tmp_path / "out" / "evaluate.json").read_text())["pairs"]
    assert pairs[series.case]["reference"].endswith("RS.5.dcm")
    assert pairs[series.case]["prediction"].endswith("x.dcm")


def test_masks_named_after_a_series_or_a_set_meet_it(series: CtSeries, tmp_path: Path) -> None:
    drawn = write_set(tmp_path / "approved" / "p1.dcm", series, {"Prostate": gland(series)}).parent
    for name in (series.case, "p1"):
        folder = tmp_path / name
        write_mask(folder / f"{name}.nii.gz", series, {"prostate": gland(series)})
        (folder / f"{name}.quality.json").write_text(json.dumps({"verdict": "review"}))
        result = evaluate(folder, drawn, tmp_path / f"out_{name}", scan=series.folder)
        (row,) = result.rows
        assert (row.case, row.structure, row.measures.dice) == (name, "prostate", 1.0)
        assert result.quality[name].verdict == "review"
    # What the predictor wrote of a case without a mask.
    folder = tmp_path / "absent"
    folder.mkdir()
    (folder / f"{series.case}.quality.json").write_text(json.dumps({"verdict": "fail"}))
    names = names_file(tmp_path / "names.yaml", "prostate: [Prostate]")
    result = evaluate(folder, drawn, tmp_path / "out", scan=series.folder, names=names)
    assert [row.outcome for row in result.rows] == ["missed"]
    assert result.failed == (series.case,)


def test_masks_may_lie_beside_the_slices(series: CtSeries, tmp_path: Path) -> None:
    folder = tmp_path / "ct"
    shutil.copytree(series.folder, folder)
    write_mask(folder / "prostate.nii.gz", series, {"prostate": gland(series)})
    drawn = write_set(folder / "rs.dcm", series, {"Prostate": gland(series)})
    (row,) = evaluate(folder / "prostate.nii.gz", drawn, tmp_path / "out", scan=folder).rows
    assert row.measures.dice == 1


def test_masks_in_a_folder_count_before_the_sets_beside_them(series: CtSeries, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    masks = {"prostate": gland(series)}
    write_mask(folder / f"{series.case}.nii.gz", series, masks)
    write_set(folder / f"{series.case}.rtstruct.dcm", series, {"Prostate^auto": gland(series, (2, 0, 0))})
    drawn = write_set(tmp_path / "rs.dcm", series, {"Prostate": gland(series)})
    (row,) = evaluate(folder, drawn, tmp_path / "scores", scan=series.folder).rows
    assert row.measures.dice == 1


class TestMissing:
    def test_what_the_reference_lacks_was_not_contoured_and_what_the_prediction_lacks_was_missed(
        self, series: CtSeries, tmp_path: Path
    ) -> None:
        names = names_file(tmp_path / "n.yaml", "prostate: [Prostate]\nbladder: [Bladder]\nrectum: [Rectum]\n")
        drawn = write_set(
            tmp_path / "r.dcm", series, {"Prostate": gland(series), "Bladder": gland(series, (0, 8, 0))}
        )
        found = write_set(
            tmp_path / "p.dcm", series, {"Prostate": gland(series), "Rectum": gland(series, (0, 8, 0))}
        )
        result = evaluate(found, drawn, tmp_path / "out", scan=series.folder, names=names)
        assert {r.structure: r.outcome for r in result.rows} == {"prostate": "measured", "bladder": "missed"}
        assert result.notes == ("not compared, of the predictions: Rectum",)
        assert "note: not compared, of the predictions: Rectum" in format_summary(result)
        back = evaluate(drawn, found, tmp_path / "back", scan=series.folder, names=names)
        assert {r.structure: r.outcome for r in back.rows} == {"prostate": "measured", "rectum": "missed"}

    def test_without_a_names_file_structures_of_one_side_alone_are_named_and_left_out(
        self, series: CtSeries, tmp_path: Path
    ) -> None:
        drawn = write_set(tmp_path / "r.dcm", series, {"Prostate": gland(series), "Body": gland(series, size=1.3)})
        found = write_set(tmp_path / "p.dcm", series, {"PROSTATE": gland(series), "SeminalVes": gland(series)})
        result = evaluate(found, drawn, tmp_path / "out", scan=series.folder)
        assert [row.structure for row in result.rows] == ["Prostate"]
        assert result.notes == (
            "not compared, of the predictions: SeminalVes",
            "not compared, of the references: Body",
        )

    def test_a_structure_without_contours_says_nothing_in_a_reference(
        self, series: CtSeries, tmp_path: Path
    ) -> None:
        z = [float(series.positions_mm[k, 2]) for k in (3, 4)]
        squares = [square(-39.9, -37, value) for value in z]
        frame = series.frame_of_reference_uid
        empty = rtstruct(tmp_path / "r.dcm", [("Prostate", None), ("Bladder", squares)], frame=frame)
        full = write_set(
            tmp_path / "p.dcm", series, {"Prostate": gland(series), "Bladder": gland(series, (0, 8, 0))}
        )
        result = evaluate(full, empty, tmp_path / "a", scan=series.folder)
        assert {r.structure: r.outcome for r in result.rows}["Prostate"] == "not_contoured"
        result = evaluate(empty, full, tmp_path / "b", scan=series.folder)
        assert {r.structure: r.outcome for r in result.rows}["Prostate"] == "missed"
        for stated in (series.case, series.series_uid):
            text = f"prostate: [Prostate]\nabsent: {{prostate: ['{stated}']}}\nignore: ['*']"
            names = names_file(tmp_path / "n.yaml", text)
            result = evaluate(full, empty, tmp_path / "c", scan=series.folder, names=names)
            assert [r.outcome for r in result.rows] == ["false_positive"]

    def test_an_empty_segment_is_absent(self, series: CtSeries, tmp_path: Path) -> None:
        nothing = np.zeros(series.geometry.shape, dtype=bool)
        whole = {"Prostate": gland(series), "Bladder": gland(series, (0, 8, 0))}
        drawn = write_segmentation(tmp_path / "r.dcm", series, whole)
        dataset = pydicom.dcmread(drawn)
        for item in dataset.PerFrameFunctionalGroupsSequence:  # all frames go to the first segment
            item.SegmentIdentificationSequence[0].ReferencedSegmentNumber = 1
        dataset.save_as(tmp_path / "one.dcm")
        found = write_set(tmp_path / "p.dcm", series, whole)
        result = evaluate(found, tmp_path / "one.dcm", tmp_path / "out", scan=series.folder)
        assert {r.structure: r.outcome for r in result.rows}["Bladder"] == "false_positive"
        assert not nothing.any()

    def test_a_reference_on_some_slices_is_taken_as_it_is_drawn(self, series: CtSeries, tmp_path: Path) -> None:
        part = gland(series)
        part[:5] = False
        drawn = write_set(tmp_path / "r.dcm", series, {"Prostate": part})
        found = write_set(tmp_path / "p.dcm", series, {"Prostate": gland(series)})
        (row,) = evaluate(found, drawn, tmp_path / "out", scan=series.folder).rows
        assert row.measures.sensitivity == 1
        assert row.measures.added_path_length_mm == 0
        assert row.measures.volume_ratio == gland(series).sum() / part.sum()

    def test_gaps_between_frames_are_empty_slices(self, series: CtSeries, tmp_path: Path) -> None:
        holed = gland(series)
        holed[4] = False
        seg = write_segmentation(tmp_path / "p.dcm", series, {"Prostate": holed})
        drawn = write_set(tmp_path / "r.dcm", series, {"Prostate": gland(series)})
        (row,) = evaluate(seg, drawn, tmp_path / "out", scan=series.folder).rows
        sets = write_set(tmp_path / "q.dcm", series, {"Prostate": holed})
        result = evaluate(sets, drawn, tmp_path / "sets", scan=series.folder)
        assert result.rows[0].measures == row.measures
        assert any("hold nothing of it" in note for note in result.notes)


class TestRefused:
    def pair(self, series: CtSeries, folder: Path) -> tuple[Path, Path]:
        return (
            write_set(folder / "p.dcm", series, {"Prostate": gland(series)}),
            write_set(folder / "r.dcm", series, {"Prostate": gland(series)}),
        )

    def test_without_the_scan(self, series: CtSeries, tmp_path: Path) -> None:
        p, r = self.pair(series, tmp_path)
        with pytest.raises(InputError, match=r"p\.dcm: is a DICOM structure set .* give the folder .* by scan"):
            evaluate(p, r, tmp_path / "out")
        nifti = write_mask(tmp_path / "ct.nii.gz", series, {"prostate": gland(series)})
        with pytest.raises(InputError, match=r"ct\.nii\.gz is no DICOM"):
            evaluate(p, r, tmp_path / "out", scan=nifti)
        assert not (tmp_path / "out").exists()

    def test_another_scan(self, series: CtSeries, other_series: CtSeries, tmp_path: Path) -> None:
        p, r = self.pair(series, tmp_path)
        with pytest.raises(
            InputError, match=r"frame of reference is .* choose the set that was drawn on this scan"
        ):
            evaluate(p, r, tmp_path / "out", scan=other_series.folder)
        seg = write_segmentation(tmp_path / "s.dcm", series, {"Prostate": gland(series)})
        with pytest.raises(InputError, match=r"frame of reference is .* choose the segmentation that was made on"):
            evaluate(seg, seg, tmp_path / "out", scan=other_series.folder)

    def test_two_sides_of_two_scans(self, series: CtSeries, other_series: CtSeries, tmp_path: Path) -> None:
        p, _ = self.pair(series, tmp_path)
        r = write_set(tmp_path / "other.dcm", other_series, {"Prostate": gland(other_series)})
        scans = tmp_path / "scans"
        scans.mkdir()
        for k, one in enumerate((series, other_series)):
            (scans / str(k)).symlink_to(one.folder)
        with pytest.raises(InputError, match=r"p\.dcm: was drawn on series .* but .*other\.dcm on series"):
            evaluate(p, r, tmp_path / "out", scan=scans)

    def test_a_scan_that_no_set_was_drawn_on(
        self, series: CtSeries, other_series: CtSeries, tmp_path: Path
    ) -> None:
        third = make_series(tmp_path / "third", (10, 30, 34), SPACING_MM)
        p, r = self.pair(third, tmp_path)
        scans = tmp_path / "scans"
        scans.mkdir()
        for k, one in enumerate((series, other_series)):
            (scans / str(k)).symlink_to(one.folder)
        with pytest.raises(InputError, match=r"none of the 2 CT series in .* fits that"):
            evaluate(p, r, tmp_path / "out", scan=scans)

    def test_names_that_match_none(self, series: CtSeries, tmp_path: Path) -> None:
        p = write_set(tmp_path / "p.dcm", series, {"Gland": gland(series)})
        r = write_set(tmp_path / "r.dcm", series, {"Prostate": gland(series), "PTV": gland(series)})
        with pytest.raises(
            InputError, match=r"prediction: Gland; reference: Prostate, PTV\); say which names are one"
        ):
            evaluate(p, r, tmp_path / "out", scan=series.folder)
        names = names_file(tmp_path / "n.yaml", "bladder: [Bladder]")
        with pytest.raises(InputError, match=r"n\.yaml: no spelling in it .* \(which has Prostate, PTV\)"):
            evaluate(p, r, tmp_path / "out", scan=series.folder, names=names)

    def test_several_structures_of_one_name_cost_that_structure_alone(
        self, series: CtSeries, tmp_path: Path
    ) -> None:
        masks = {"Prostate": gland(series), "Pro_state": gland(series), "Bladder": gland(series, (0, 8, 0))}
        for kind, what in (
            ("rtstruct", "ROI 1 'Prostate' and ROI 2 'Pro_state'"),
            ("seg", "'Prostate' and 'Pro_state'"),
        ):
            r = written(kind, tmp_path / kind, series, masks)
            p = write_set(tmp_path / "p.dcm", series, {"Prostate": gland(series), "Bladder": masks["Bladder"]})
            result = evaluate(p, r, tmp_path / f"out_{kind}", scan=series.folder)
            assert {row.structure: row.measures.dice for row in result.rows} == {"Bladder": 1.0}
            (fault,) = result.faults
            assert fault.structure == "Prostate"
            assert what in fault.reason
            assert f"{series.case}: Prostate failed, not scored: " in format_summary(result)
            alone = write_set(tmp_path / "alone.dcm", series, {"Prostate": gland(series)})
            with pytest.raises(InputError, match="one structure"):
                evaluate(alone, r, tmp_path / "none", scan=series.folder)

    def test_one_that_is_drawn_among_namesakes_that_are_not(self, series: CtSeries, tmp_path: Path) -> None:
        z = [float(series.positions_mm[k, 2]) for k in (3, 4)]
        squares = [square(-39.9, -37, value) for value in z]
        rois = [("Prostate", None), ("prostate", squares)]
        r = rtstruct(tmp_path / "r.dcm", rois, frame=series.frame_of_reference_uid)
        (row,) = evaluate(r, r, tmp_path / "out", scan=series.folder).rows
        assert row.measures.dice == 1

    def test_two_sets_of_one_scan_in_a_folder(self, series: CtSeries, tmp_path: Path) -> None:
        p, r = self.pair(series, tmp_path / "both")
        with pytest.raises(InputError, match=r"r\.dcm: was drawn on the series that .*p\.dcm was drawn on"):
            evaluate(p, p.parent, tmp_path / "out", scan=series.folder)
        assert r.is_file()

    def test_a_mask_of_another_grid(self, series: CtSeries, tmp_path: Path) -> None:
        _, r = self.pair(series, tmp_path)
        smaller = Volume(gland(series)[1:].astype(np.uint8), series.geometry.crop((1, 0, 0), (9, 30, 34)))
        write_nifti(tmp_path / "p.nii.gz", smaller)
        with pytest.raises(InputError, match=r"p\.nii\.gz: its grid is not that of its scan"):
            evaluate(tmp_path / "p.nii.gz", r, tmp_path / "out", scan=series.folder)

    def test_contours_too_far_apart(self, series: CtSeries, tmp_path: Path) -> None:
        squares = [square(-39.9, -37, float(series.positions_mm[k, 2])) for k in (1, 3, 5, 7)]
        r = rtstruct(tmp_path / "r.dcm", [("Prostate", squares)], frame=series.frame_of_reference_uid)
        p = write_set(tmp_path / "p.dcm", series, {"Prostate": gland(series)})
        with pytest.raises(InputError, match=r"r\.dcm: ROI 'Prostate'.*interpolate the contours to every slice"):
            evaluate(p, r, tmp_path / "out", scan=series.folder)

    def test_a_damaged_set_costs_its_own_case(
        self, series: CtSeries, other_series: CtSeries, tmp_path: Path
    ) -> None:
        scans = tmp_path / "scans"
        scans.mkdir()
        for k, one in enumerate((series, other_series)):
            (scans / str(k)).symlink_to(one.folder)
            for side in ("auto", "approved"):
                write_set(tmp_path / side / f"{k}.dcm", one, {"Prostate": gland(one)})
        whole = (tmp_path / "auto" / "1.dcm").read_bytes()
        (tmp_path / "auto" / "1.dcm").write_bytes(whole[: len(whole) // 2])
        result = evaluate(tmp_path / "auto", tmp_path / "approved", tmp_path / "out", scan=scans)
        assert {row.case: row.outcome for row in result.rows} == {series.case: "measured"}
        assert sorted(fault.case for fault in result.faults) == sorted(["1", other_series.case])
        assert result.failed == ()
        (tmp_path / "auto" / "1.dcm").write_bytes(whole[:300])
        assert [
            row.case for row in evaluate(tmp_path / "auto", tmp_path / "approved", tmp_path / "o", scan=scans).rows
        ] == [series.case]


class TestTolerances:
    def test_option_names_file_and_default(self, series: CtSeries, tmp_path: Path) -> None:
        masks = {
            "Prostate": gland(series),
            "Bladder": gland(series, (0, 8, 0)),
            "Rectum": gland(series, (0, -8, 0)),
        }
        p = write_set(tmp_path / "p.dcm", series, masks)
        text = (
            "prostate: [Prostate]\nbladder: [Bladder]\nrectum: [Rectum]\ntolerance_mm: {bladder: 3, rectum: 4}\n"
        )
        names = names_file(tmp_path / "n.yaml", text)
        result = evaluate(
            p, p, tmp_path / "out", scan=series.folder, names=names, tolerance_mm=1, tolerances_mm={"Rectum": 5}
        )
        found = {row.structure: row.measures.tolerance_mm for row in result.rows}
        assert found == {"prostate": 1, "bladder": 3, "rectum": 5}
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert {name: entry["tolerance_mm"] for name, entry in summary.items()} == found
        assert evaluate(p, p, tmp_path / "plain", scan=series.folder).rows[0].measures.tolerance_mm == 2

    def test_what_is_no_tolerance(self, series: CtSeries, tmp_path: Path) -> None:
        p = write_set(tmp_path / "p.dcm", series, {"Prostate": gland(series)})
        for given, message in (
            ({"tolerance_mm": -1.0}, "tolerance_mm: -1 mm for Prostate; expected a distance of 0 mm or more"),
            ({"tolerance_mm": float("nan")}, "tolerance_mm: nan mm"),
            (
                {"tolerances_mm": {"Bladder": 1.0}},
                "names 'Bladder', which is not compared; expected one of Prostate",
            ),
        ):
            with pytest.raises(InputError, match=message):
                evaluate(p, p, tmp_path / "out", scan=series.folder, **given)  # type: ignore[arg-type]
        assert split_tolerances(["3", "rectum=1.5"]) == (3.0, {"rectum": 1.5})
        assert split_tolerances([]) == (None, {})
        for text in ("much", "rectum=", "rectum=wide"):
            with pytest.raises(InputError, match="expected millimetres such as 2, or rectum=3"):
                split_tolerances([text])


class TestNaming:
    def test_a_predictions_mark_is_no_part_of_a_name(self) -> None:
        for mark in (structure_set.MARK, structure_set.SYNTHETIC_MARK):
            for name in (f"Prostate{mark}", f"Prostate{mark}_2"):
                assert MARK.search(name)
                assert unmarked(name) == "Prostate"
        assert unmarked(f"Prostate{REVIEW_MARK}") == unmarked(f"Prostate{REVIEW_MARK}_2") == "Prostate"

    def test_an_automatic_set_meets_the_reviewed_one(self, series: CtSeries, tmp_path: Path) -> None:
        auto = write_set(tmp_path / "a.dcm", series, {"Prostate^autosyn": gland(series, (0, 0, 1))})
        reviewed = write_set(
            tmp_path / "r.dcm", series, {"Prostate^auto": gland(series, (0, 1, 1)), "Prostate^rev": gland(series)}
        )
        result = evaluate(auto, reviewed, tmp_path / "out", scan=series.folder)
        (row,) = result.rows
        assert row.structure == "Prostate"
        assert abs(row.measures.shift_left_mm or 0) > 0
        assert row.measures.shift_back_mm == 0

    def test_a_spelling_that_is_nearly_in_the_file_is_not_called_missed(
        self, series: CtSeries, tmp_path: Path
    ) -> None:
        auto = write_set(tmp_path / "a.dcm", series, {"Prostate^auto": gland(series)})
        drawn = write_set(tmp_path / "r.dcm", series, {"prostate": gland(series)})
        names = names_file(tmp_path / "n.yaml", 'prostate: [prostate]\nignore: ["*"]\n')
        with pytest.raises(InputError, match=r"no spelling of prostate .* has Prostate\^auto; add 'Prostate'"):
            evaluate(auto, drawn, tmp_path / "out", scan=series.folder, names=names)
        names = names_file(tmp_path / "n.yaml", "prostate: [prostate]\nignore: [Prostate]\n")
        result = evaluate(auto, drawn, tmp_path / "out", scan=series.folder, names=names)
        assert [row.outcome for row in result.rows] == ["missed"]

    @pytest.mark.parametrize("kind", ["rtstruct", "seg"])
    def test_a_set_that_holds_both_is_compared_with_itself(
        self, series: CtSeries, tmp_path: Path, kind: str
    ) -> None:
        """As `predict --add-to` writes it: what is marked is the prediction, what it lacks was missed."""
        masks = {"Prostate": gland(series), "Prostate^auto": gland(series, (1, 0, 0)), "Rectum": gland(series)}
        both = written(kind, tmp_path, series, masks)
        names = names_file(tmp_path / "n.yaml", "prostate: [Prostate]\nrectum: [Rectum]")
        result = evaluate(both, both, tmp_path / "out", scan=series.folder, names=names)
        assert {row.structure: row.outcome for row in result.rows} == {"prostate": "measured", "rectum": "missed"}
        assert result.rows[0].measures.shift_head_mm == pytest.approx(2.5)
        assert not result.faults

    def test_names_that_are_one_without_a_file(self) -> None:
        naming = Naming()
        for one, other in (
            ("Prostate^autosyn", "prostate"),
            ("SeminalVes", "seminal_vesicles"),
            ("urinary_bladder", "BLADDER"),
            ("Femur_L", "femur left"),
        ):
            assert naming.structure_of(one) == naming.structure_of(other) or one == "Femur_L"
        assert naming.structure_of("Femur_L") == naming.structure_of("femur_left")
        assert naming.structure_of("Femur_L") != naming.structure_of("femur_right")

    def test_masks_take_their_names_from_a_file_too(self, series: CtSeries, tmp_path: Path) -> None:
        """By the values that it spells, where no dataset.json names them."""
        masks = {"a": gland(series), "b": gland(series, (0, 8, 0)) & ~gland(series)}
        p = write_mask(tmp_path / "p" / "p.nii.gz", series, masks)
        (p.parent / "dataset.json").unlink()
        r = write_set(tmp_path / "r.dcm", series, {"Prostate": masks["a"], "Bladder": masks["b"]})
        names = names_file(tmp_path / "n.yaml", "bladder: [2, Bladder]\nprostate: [1, Prostate]\n")
        result = evaluate(p, r, tmp_path / "out", scan=series.folder, names=names)
        assert {row.structure: row.measures.dice for row in result.rows} == {"bladder": 1.0, "prostate": 1.0}
        with pytest.raises(InputError, match="holds the value 2, which names no structure"):
            evaluate(p, r, tmp_path / "plain", scan=series.folder)


def test_the_command(metricunet: Command, series: CtSeries, tmp_path: Path) -> None:
    p = write_set(tmp_path / "auto.dcm", series, {"Prostate^auto": gland(series, (0, 0, 1))})
    r = write_set(tmp_path / "approved.dcm", series, {"Prostate": gland(series), "PTV": gland(series)})
    words = ["evaluate", p, r, "-o", tmp_path / "out", "--scan", series.folder, "--tolerance", "0"]
    ended = metricunet(*words)
    assert ended.status == 0, ended.err
    assert "Added path length, tolerance 0 mm [mm]" in ended.out
    assert "note: not compared, of the references: PTV" in ended.out
    ended = metricunet("evaluate", p, r, "-o", tmp_path / "none")
    assert ended.status == 2
    assert "give the folder of the DICOM series that it was drawn on by --scan" in ended.err
    ended = metricunet(*words, "--json", "--tolerance", "ptv=1")
    assert ended.status == 2
    assert "--tolerance names 'ptv', which is not compared" in ended.err


def test_from_python(series: CtSeries, tmp_path: Path) -> None:
    p = write_set(tmp_path / "auto.dcm", series, {"Prostate^auto": gland(series, (0, 0, 1))})
    r = write_segmentation(tmp_path / "approved.dcm", series, {"Prostate": gland(series)})
    report = mu.evaluate(p, r, tmp_path / "out", scan=series.folder, tolerance_mm=1)
    expected = {row.structure: row.measures for row in report.rows}
    assert mu.evaluate(str(p), r, scan=str(series.folder), tolerance_mm=1) == expected
    scan = mu.load_scan(series.folder)
    assert mu.evaluate(p, r, scan=scan, tolerance_mm=1) == expected
    labels = Volume(gland(series, (0, 0, 1)), series.geometry)
    (found,) = mu.evaluate(labels, r, scan=scan, tolerance_mm=1).values()
    assert found == expected["Prostate"]
    with pytest.raises(InputError, match="give the folder of that series by scan"):
        mu.evaluate(p, r)
    with pytest.raises(InputError, match="scan cannot be a int"):
        mu.evaluate(p, r, scan=3)  # type: ignore[call-overload]


def test_a_scan_with_a_gap_is_refused_without_options_that_evaluate_does_not_have(
    metricunet: Command, series: CtSeries, tmp_path: Path
) -> None:
    r = write_set(tmp_path / "approved.dcm", series, {"Prostate": gland(series)})
    shutil.copytree(series.folder, tmp_path / "ct")
    (tmp_path / "ct" / series.files[4].name).unlink()
    ended = metricunet("evaluate", r, r, "-o", tmp_path / "out", "--scan", tmp_path / "ct")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "holds no CT series that can be used" in ended.err
    assert "--allow" not in ended.err
    with pytest.raises(InputError, match="holds no CT series that can be used") as refused:
        mu.evaluate(r, r, scan=tmp_path / "ct")
    assert "allow_gaps" not in str(refused.value)


def test_what_was_compared_is_never_replaced(series: CtSeries, tmp_path: Path) -> None:
    p = write_set(tmp_path / "auto.dcm", series, {"Prostate": gland(series)})
    (tmp_path / "out").mkdir()
    names = names_file(tmp_path / "out" / "cases.csv", "prostate: [Prostate]")
    with pytest.raises(InputError, match=r"cases\.csv: is an input"):
        evaluate(p, p, tmp_path / "out", scan=series.folder, names=names, overwrite=True)
    assert names.read_text() == "prostate: [Prostate]"
