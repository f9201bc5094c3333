from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import metricunet as mu
from metricunet.errors import InputError
from metricunet.evaluation.compare import EVALUATION_RECORD, OUTPUTS, evaluate, in_terms_of
from metricunet.evaluation.measures import MEASURE_NAMES
from metricunet.evaluation.summary import CONTOUR_COLUMNS, format_summary
from metricunet.files.claim import AlreadyClaimed, claimed
from metricunet.files.nifti import write_nifti
from metricunet.files.own import OwnFiles
from metricunet.volume import Geometry, Volume
from tests.evaluation.conftest import make_grid
from tests.support.slicer import write_nrrd

Gland = Callable[..., NDArray[Any]]
BLADDER = {"Bladder": 1}


def read_rows(output: Path) -> dict[tuple[str, str], dict[str, float | None]]:
    with (output / "cases.csv").open(encoding="utf-8", newline="") as handle:
        return {
            (row.pop("case"), row.pop("structure")): {k: float(v) if v else None for k, v in row.items()}
            for row in csv.DictReader(handle)
        }


def test_a_folder_end_to_end(folders: Any, gland: Gland) -> None:
    folders.name_labels(prostate=1)
    nothing = np.zeros_like(gland())
    folders.add("perfect", gland(), gland())
    folders.add("shifted", gland(), gland((3.0, 0, 0)))
    folders.add("no_mask", gland(), None, quality={"verdict": "fail", "reasons": ["no gland"]})
    folders.add("empty_mask", gland(), nothing)
    folders.add("invented", nothing, gland())
    folders.add("absent", nothing, nothing)
    write_nifti(
        folders.predictions / "stray.nii.gz",
        Volume(gland().astype(np.uint8), Geometry.from_parts(gland().shape, (3, 1, 1))),
    )
    result = evaluate(folders.predictions, folders.cohort, folders.output)

    assert result.failed == ("empty_mask", "no_mask")
    assert result.unpredicted == ("no_mask",)
    assert result.unmatched == ("stray",)
    rows = read_rows(folders.output)
    assert [case for case, _ in rows] == ["absent", "empty_mask", "invented", "no_mask", "perfect", "shifted"]
    columns = (*MEASURE_NAMES, *CONTOUR_COLUMNS)
    assert list(rows["perfect", "prostate"]) == list(columns)
    assert tuple(rows["perfect", "prostate"].values()) == (1, 0, 1, 1, 0, 1, 0, 2, 0, 1, 0, 0, 0, 1)
    assert set(rows["absent", "prostate"].values()) == {None}
    assert rows["no_mask", "prostate"] == rows["empty_mask", "prostate"]
    assert rows["no_mask", "prostate"]["dice"] == 0
    assert rows["no_mask", "prostate"]["asd_mm"] is None
    assert rows["invented", "prostate"]["sensitivity"] is None
    shifted = rows["shifted", "prostate"]
    assert shifted["dice"] == pytest.approx(0.9, abs=0.03)
    # A shift by d moves a closed surface by d |cos| along its normal: on average by about d / 2.
    assert shifted["asd_mm"] == pytest.approx(1.5, abs=0.3)
    assert shifted["volume_difference_ml"] == pytest.approx(0, abs=1e-9)

    summary = json.loads((folders.output / "summary.json").read_text(encoding="utf-8"))
    assert set(summary) == {"prostate"}
    assert summary["prostate"]["true_absent"] == 1
    assert summary["prostate"]["dice"]["n"] == 5
    assert summary["prostate"]["dice"]["missed"] == 2
    assert summary["prostate"]["dice"]["mean"] == pytest.approx((1 + shifted["dice"]) / 5)
    assert summary["prostate"]["asd_mm"]["mean"] == pytest.approx(shifted["asd_mm"] / 2)
    assert summary["prostate"]["asd_mm"]["n"] == 4
    assert sorted(p.name for p in folders.output.iterdir()) == [
        "cases.csv",
        "evaluate.json",
        "report.html",
        "summary.json",
    ]


def test_what_was_not_contoured_is_blank_and_counted_apart(folders: Any, gland: Gland) -> None:
    """Predicted or not: never missed, never invented, never rightly absent."""
    folders.name_labels(prostate=1, bladder=2)
    bladder = 2 * gland((0, 9, 0)) * (1 - gland())
    nothing = np.zeros_like(gland())
    folders.add("full", gland() + bladder, gland() + bladder)
    folders.add("predicted", gland(), gland() + bladder)
    folders.add("unpredicted", gland(), gland())
    folders.add("no_mask", nothing, None)
    folders.add("absent", gland(), gland())
    (folders.cohort / "contoured.json").write_text(
        json.dumps({"predicted": ["prostate"], "unpredicted": ["prostate"], "no_mask": []})
    )
    result = evaluate(folders.predictions, folders.cohort, folders.output)
    outcomes = {(row.case, row.structure): row.outcome for row in result.rows}
    assert outcomes["predicted", "bladder"] == outcomes["unpredicted", "bladder"] == "not_contoured"
    assert outcomes["no_mask", "prostate"] == outcomes["no_mask", "bladder"] == "not_contoured"
    assert outcomes["absent", "bladder"] == "true_absent"
    assert outcomes["predicted", "prostate"] == "measured"
    assert result.failed == ()
    rows = read_rows(folders.output)
    assert set(rows["predicted", "bladder"].values()) == set(rows["no_mask", "prostate"].values()) == {None}
    summary = json.loads((folders.output / "summary.json").read_text(encoding="utf-8"))
    assert (summary["bladder"]["not_contoured"], summary["bladder"]["true_absent"]) == (3, 1)
    assert (summary["bladder"]["dice"]["n"], summary["bladder"]["dice"]["missed"]) == (1, 0)
    assert (summary["prostate"]["not_contoured"], summary["prostate"]["dice"]["n"]) == (1, 4)
    assert "bladder: 1 case, 0 missed, 1 truly absent, 3 not contoured" in format_summary(result)
    page = (folders.output / "report.html").read_text(encoding="utf-8")
    assert page.count('<span class="badge quiet">not contoured</span>') == 4
    assert "3 not contoured, not counted" in page


def test_several_structures(folders: Any, gland: Gland) -> None:
    folders.name_labels(urinary_bladder=2, prostate=1)
    reference = gland().astype(np.uint8)
    reference[:4] = 2
    prediction = gland().astype(np.uint8)
    folders.add("a", reference, prediction)
    result = evaluate(folders.predictions, folders.cohort / "labelsTr", folders.output)
    assert [(row.structure, row.measures.outcome) for row in result.rows] == [
        ("urinary_bladder", "missed"),
        ("prostate", "measured"),
    ]
    assert result.failed == ("a",)


def test_structures_that_the_references_do_not_name_are_left_out(folders: Any, gland: Gland) -> None:
    folders.name_labels(bladder=1, prostate=2)
    reference = gland().astype(np.uint8) * 2
    reference[:4] = 1
    prediction = gland().astype(np.uint8)
    prediction[:4] = 3
    prediction[-2:] = 2
    named = {"prostate": 1, "seminal_vesicles": 2, "bladder": 3}
    folders.add("a", reference, prediction, quality={"verdict": "review", "labels": named})
    result = evaluate(folders.predictions, folders.cohort, folders.output)
    assert {row.structure: row.measures.dice for row in result.rows} == {"bladder": 1.0, "prostate": 1.0}
    assert any("do not name: seminal_vesicles" in note for note in result.notes)


def test_a_name_in_another_spelling_is_the_same_structure_whatever_its_value(folders: Any, gland: Gland) -> None:
    folders.name_labels(Bladder=1, Prostate=2)
    reference = gland().astype(np.uint8) * 2
    reference[:4] = 1
    prediction = gland().astype(np.uint8)
    prediction[:4] = 2
    named = {"prostate": 1, "urinary_bladder": 2}
    folders.add("a", reference, prediction, quality={"verdict": "review", "labels": named})
    result = evaluate(folders.predictions, folders.cohort, folders.output)
    assert {row.structure: row.measures.dice for row in result.rows} == {"Bladder": 1.0, "Prostate": 1.0}
    assert not result.notes


def test_a_names_file_says_which_structures_of_two_masks_are_one(
    folders: Any, gland: Gland, tmp_path: Path
) -> None:
    folders.name_labels(Blase=1, Prostata=2)
    reference = gland().astype(np.uint8) * 2
    reference[:4] = 1
    prediction = gland().astype(np.uint8)
    prediction[:4] = 2
    named = {"prostate": 1, "bladder": 2}
    folders.add("a", reference, prediction, quality={"verdict": "review", "labels": named})
    names = tmp_path / "names.yaml"
    names.write_text("prostate: [Prostata, prostate]\nbladder: [Blase, bladder]\n", encoding="utf-8")
    result = evaluate(folders.predictions, folders.cohort, folders.output, names=names)
    assert {row.structure: row.measures.dice for row in result.rows} == {"prostate": 1.0, "bladder": 1.0}


def test_values_do_not_decide_against_names_that_are_known() -> None:
    geometry = Geometry.from_parts((1, 1, 5), (1, 1, 1))
    prediction = Volume(np.arange(5, dtype=np.uint8).reshape(1, 1, 5), geometry)
    labels = {"Prostate": 1, "Rectum": 2, "nodes": 3}
    found, left = in_terms_of(labels, prediction, {"bladder": 2, "prostate": 4, "pelvic": 3})
    assert found.array.ravel().tolist() == [0, 1, 0, 3, 1]
    assert left == ("bladder",)


def test_where_no_name_is_known_values_decide() -> None:
    geometry = Geometry.from_parts((1, 1, 4), (1, 1, 1))
    prediction = Volume(np.arange(4, dtype=np.uint8).reshape(1, 1, 4), geometry)
    labels = {"Prostate": 1, "bladder": 2}
    same, left = in_terms_of(labels, prediction, {"prostate": 1, "bladder": 3, "bulb": 2})
    assert same.array.ravel().tolist() == [0, 1, 0, 2]
    assert left == ("bulb",)
    untouched, left = in_terms_of(labels, prediction, {})
    assert untouched is prediction
    assert not left


def test_ignored_voxels_count_for_neither_side(folders: Any, gland: Gland) -> None:
    folders.name_labels(prostate=1, ignore=2)
    reference = gland().astype(np.uint8)
    reference[:, :, :10] = 2
    prediction = gland().astype(np.uint8)
    prediction[:, :, :8] = 1
    folders.add("a", reference, prediction)
    (row,) = evaluate(folders.predictions, folders.cohort, folders.output).rows
    assert row.measures.dice == 1
    assert row.measures.asd_mm == 0
    report = (folders.output / "report.html").read_text(encoding="utf-8")
    outlines = re.findall(r'<path d="(M[^"]*Z)"', report)
    assert [outline.count("M") for outline in outlines] == [1] * 6


def test_a_prediction_in_another_orientation_is_the_same_prediction(
    folders: Any, gland: Gland, grid: Geometry
) -> None:
    folders.add("a", gland(), gland((3, 0, 0)))
    (plain,) = evaluate(folders.predictions, folders.cohort, folders.output).rows
    turned = Volume(gland((3, 0, 0)).astype(np.uint8), grid).reordered((0, 1, 2), (True, False, True))
    write_nifti(folders.predictions / "a.nii.gz", turned)
    (row,) = evaluate(folders.predictions, folders.cohort, folders.output).rows
    for name in MEASURE_NAMES:
        assert row.measures.value(name) == pytest.approx(plain.measures.value(name), abs=1e-5)


def test_two_files(folders: Any, gland: Gland) -> None:
    folders.add("a", gland(), gland((0, 0, 3)))
    (folders.predictions / "a.nii.gz").rename(folders.predictions / "mine.nii.gz")
    result = evaluate(
        folders.predictions / "mine.nii.gz", folders.cohort / "labelsTr" / "a.nii.gz", folders.output
    )
    assert result.cases == ("a",)
    assert result.failed == ()


class TestSlicersSegmentations:
    """Slicer numbers the segments of each file in its own way, and may write the box that holds them alone."""

    @staticmethod
    def predicted(folders: Any, mask: NDArray[Any]) -> Geometry:
        folders.add("a", mask, mask)
        (folders.cohort / "labelsTr" / "a.nii.gz").rename(folders.cohort / "imagesTr" / "scan.nii.gz")
        return make_grid()

    def test_its_header_says_which_value_is_which_structure(self, folders: Any, gland: Gland) -> None:
        mask = gland()
        grid = self.predicted(folders, mask)
        bladder = np.roll(mask, 9, axis=0) & ~mask
        both = (2 * mask + bladder).astype(np.uint8)
        write_nrrd(folders.cohort / "labelsTr" / "a.seg.nrrd", both, grid, {"Bladder": 1, "Prostate": 2})
        result = evaluate(folders.predictions, folders.cohort / "labelsTr", folders.output)
        assert [(row.case, row.structure, row.measures.dice) for row in result.rows] == [("a", "prostate", 1.0)]
        assert any("not compared, of the references: Bladder" in note for note in result.notes)

    def test_beside_a_label_map_of_its_case_it_is_no_reference_that_was_missed(
        self, folders: Any, gland: Gland
    ) -> None:
        mask = gland()
        folders.add("a", mask, mask)
        copy = write_nrrd(folders.predictions / "a.seg.nrrd", mask.astype(np.uint8), make_grid(), BLADDER)
        result = evaluate(folders.predictions, folders.cohort / "labelsTr", folders.output)
        assert (result.cases, result.unmatched) == (("a",), ("a.seg",))
        shutil.copy(copy, folders.cohort / "labelsTr" / "a.seg.nrrd")
        with pytest.raises(InputError, match=r"a\.seg\.nrrd: case a occurs twice, see a\.nii\.gz"):
            evaluate(folders.predictions, folders.cohort / "labelsTr", folders.output)

    def test_what_it_does_not_name_was_not_contoured_in_it(self, folders: Any, gland: Gland) -> None:
        mask = gland()
        grid = self.predicted(folders, mask)
        reference = write_nrrd(
            folders.cohort / "x.seg.nrrd", np.roll(mask, 9, axis=0) * np.uint8(1), grid, BLADDER
        )
        result = evaluate(folders.predictions / "a.nii.gz", reference, folders.output)
        assert [(row.structure, row.contoured) for row in result.rows] == [("prostate", False)]
        assert mu.evaluate(folders.predictions / "a.nii.gz", reference) == {}

    @pytest.mark.parametrize("with_scan", [False, True])
    @pytest.mark.parametrize("is_prediction", [False, True])
    def test_one_that_is_cut_to_its_box_lies_where_it_is(
        self, folders: Any, gland: Gland, is_prediction: bool, with_scan: bool
    ) -> None:
        mask = gland()
        grid = self.predicted(folders, mask)
        box = Volume(mask.astype(np.uint8), grid).crop((2, 1, 3), [n - 4 for n in grid.shape])
        assert box.array.sum() == mask.sum()
        cut = write_nrrd(folders.cohort / "x.seg.nrrd", box.array, box.geometry, {"Prostate": 1})
        whole = folders.predictions / "a.nii.gz"
        prediction, reference = (cut, whole) if is_prediction else (whole, cut)
        scan = folders.cohort / "imagesTr" / "scan.nii.gz" if with_scan else None
        result = evaluate(prediction, reference, folders.output, scan=scan)
        (row,) = result.rows
        assert (row.measures.dice, row.measures.volume_difference_ml) == (1.0, 0.0)
        assert mu.evaluate(prediction, reference, scan=scan)["prostate"] == row.measures


def test_two_runs_write_the_same_bytes(folders: Any, gland: Gland) -> None:
    folders.add("a", gland(), gland((0, 3, 0)), hu=np.where(gland(), 45, -90))
    folders.add("b", gland(), gland((2, 0, 0)))
    evaluate(folders.predictions, folders.cohort, folders.output)
    first = {name: (folders.output / name).read_bytes() for name in OUTPUTS}
    evaluate(folders.predictions, folders.cohort, folders.output)
    assert {name: (folders.output / name).read_bytes() for name in OUTPUTS} == first


def test_two_evaluations_in_one_folder_do_not_mix(
    folders: Any, gland: Gland, grid: Geometry, tmp_path: Path
) -> None:
    folders.add("a", gland(), gland((0, 3, 0)))
    shutil.copytree(folders.predictions, tmp_path / "others")
    write_nifti(tmp_path / "others" / "a.nii.gz", Volume(gland().astype(np.uint8), grid))
    evaluate(folders.predictions, folders.cohort, tmp_path / "alone")

    def another(done: int, _: int) -> None:
        if done == 1:
            evaluate(tmp_path / "others", folders.cohort, folders.output)

    evaluate(folders.predictions, folders.cohort, folders.output, progress=another)
    for name in OUTPUTS:
        assert (folders.output / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    claim = OwnFiles(folders.output, EVALUATION_RECORD, "evaluate").claim
    with (
        claimed(claim, "an evaluation"),
        pytest.raises(AlreadyClaimed, match="an evaluation is going on here already"),
    ):
        evaluate(tmp_path / "others", folders.cohort, folders.output)
    assert (folders.output / "cases.csv").read_bytes() == (tmp_path / "alone" / "cases.csv").read_bytes()


def test_progress_reaches_its_end(folders: Any, gland: Gland) -> None:
    for case in "abc":
        folders.add(case, gland(), gland())
    folders.add("absent", np.zeros_like(gland()), None)
    steps: list[tuple[int, int]] = []
    evaluate(folders.predictions, folders.cohort, folders.output, progress=lambda i, n: steps.append((i, n)))
    done = [i for i, _ in steps]
    assert done == sorted(set(done))
    assert {n for _, n in steps} == {done[-1]}


def test_another_grid_alone_names_both_files_and_leaves_nothing(
    folders: Any, gland: Gland, grid: Geometry
) -> None:
    folders.add("b", gland(), None)
    write_nifti(
        folders.predictions / "b.nii.gz",
        Volume(gland().astype(np.uint8), grid.box_around((0, 0, 0), grid.shape, grid.spacing_mm)),
    )
    with pytest.raises(InputError) as caught:
        evaluate(folders.predictions, folders.cohort, folders.output)
    message = str(caught.value)
    assert str(folders.predictions / "b.nii.gz") in message
    assert str(folders.cohort / "labelsTr" / "b.nii.gz") in message
    assert "\n" not in message
    assert not folders.output.exists()


@pytest.mark.parametrize("side", ["prediction", "reference"])
def test_values_without_a_name_are_refused(folders: Any, gland: Gland, side: str) -> None:
    odd = gland().astype(np.uint8) * 22
    folders.add("a", odd if side == "reference" else gland(), odd if side == "prediction" else gland())
    with pytest.raises(
        InputError, match="holds the value 22, which names no structure; expected 0 or 1"
    ) as caught:
        evaluate(folders.predictions, folders.cohort, folders.output)
    folder = folders.predictions if side == "prediction" else folders.cohort / "labelsTr"
    assert str(caught.value).startswith(str(folder / "a.nii.gz"))


def test_an_output_that_is_a_file(folders: Any, gland: Gland) -> None:
    folders.add("a", gland(), gland())
    folders.output.write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="is a file, expected a folder"):
        evaluate(folders.predictions, folders.cohort, folders.output)


def test_real_glands_and_a_real_scan(shared_data: Path, tmp_path: Path) -> None:
    from scipy import ndimage

    from metricunet.files.nifti import read_labels

    scan = shared_data / "pelvis_ct_nifti" / "example_ct.nii.gz"
    organs = read_labels(shared_data / "pelvis_ct_nifti" / "example_seg_fast_force_split.nii.gz")
    prostate = (organs.array == 22).astype(np.uint8)
    write_nifti(tmp_path / "labelsTr" / "man.nii.gz", organs.with_array(prostate), like=scan)
    moved = ndimage.shift(prostate, (0, 1, 0), order=0)
    write_nifti(tmp_path / "prediction" / "man.nii.gz", organs.with_array(moved))
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "man_0000.nii.gz").symlink_to(scan)
    result = evaluate(tmp_path / "prediction", tmp_path / "labelsTr", tmp_path / "out", images=tmp_path / "scans")
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8").count("data:image/png") == 3
    measures = result.rows[0].measures
    assert measures.dice is not None
    assert measures.asd_mm is not None
    assert 0.8 < measures.dice < 0.95
    assert 0.5 < measures.asd_mm < 3
