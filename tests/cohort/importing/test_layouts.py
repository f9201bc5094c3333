"""TotalSegmentator, nnU-Net, AMOS22 and pairs of files: found by themselves, absent where a label map says so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from metricunet.cohort.importing import import_cohort, list_names
from metricunet.cohort.importing.layouts import detect
from metricunet.cohort.importing.privacy import hashed
from metricunet.cohort.layout import Cohort, image_path, label_path, read_cohort
from metricunet.errors import InputError
from metricunet.files.nifti import read_labels, read_nifti, write_nifti
from metricunet.volume import Geometry, Volume
from tests.support.cohorts import write_dataset_json
from tests.support.patients import SHAPE, mask, scan, write_labels
from tests.support.slicer import write_nrrd

PROSTATE, BLADDER = mask(6.5, 11.5, [1, 2, 3]), mask(8.5, 15.5, [2, 3, 4])
NONE = np.zeros(SHAPE, dtype=bool)


def labels_of(cohort: Cohort, name: str) -> np.ndarray:
    (case,) = (c for c in (*cohort.training, *cohort.test) if c.name == name)
    assert case.label is not None
    return read_labels(case.label).array


def names(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "names.yaml"
    path.write_text(text)
    return path


def totalsegmentator(root: Path) -> Path:
    """s0001 has a prostate, s0002 an empty mask of one, s0003 no mask of one; s0004 is not whole."""
    for k, masks in enumerate(
        [
            {"prostate": PROSTATE, "urinary_bladder": BLADDER},
            {"prostate": NONE, "urinary_bladder": BLADDER},
            {"urinary_bladder": BLADDER},
        ],
        start=1,
    ):
        folder = root / f"s{k:04d}"
        write_nifti(folder / "ct.nii.gz", scan(k))
        for name, array in masks.items():
            write_nifti(folder / "segmentations" / f"{name}.nii.gz", scan().with_array(array))
    write_nifti(root / "s0004" / "ct.nii.gz", scan(4))
    (root / "meta.csv").write_text("image_id;age\n")
    return root


def test_totalsegmentator_needs_no_names_file_for_the_prostate(tmp_path: Path) -> None:
    root = totalsegmentator(tmp_path / "ts")
    assert detect(root) == "totalsegmentator"
    result = import_cohort([root], tmp_path / "cohort")
    cohort = read_cohort(tmp_path / "cohort")
    assert cohort.info.labels == {"prostate": 1}
    assert result.structures == {"prostate": {"contoured": 1, "absent": 1}}
    np.testing.assert_array_equal(labels_of(cohort, hashed("ts", "s0001")), PROSTATE)
    assert not labels_of(cohort, hashed("ts", "s0002")).any()
    assert all(case.not_contoured == () for case in cohort.training)
    assert sorted(line.split(":")[0].split("/")[-1] for line in result.left_out) == ["s0003", "s0004"]
    image = next(c.image for c in cohort.training if c.name == hashed("ts", "s0001"))
    np.testing.assert_array_equal(read_nifti(image).array, scan(1).array)


def test_a_mask_that_is_missing_says_nothing_and_an_empty_one_says_absent(tmp_path: Path) -> None:
    root = totalsegmentator(tmp_path / "ts")
    given = names(tmp_path, "prostate: [prostate]\nbladder: [urinary_bladder]\n")
    result = import_cohort([root], tmp_path / "cohort", names=given)
    cohort = read_cohort(tmp_path / "cohort")
    unknown = {case.name: case.not_contoured for case in cohort.training}
    assert unknown == {hashed("ts", "s0001"): (), hashed("ts", "s0002"): (), hashed("ts", "s0003"): ("prostate",)}
    assert result.structures["prostate"] == {"contoured": 1, "absent": 1, "not contoured": 1}
    np.testing.assert_array_equal(labels_of(cohort, hashed("ts", "s0003")), 2 * BLADDER)
    assert detect(root / "s0001") == "totalsegmentator"


def amos(root: Path, table: bool = True) -> Path:
    """amos_0001 and amos_0004 are men's, amos_0003 a woman's; amos_0002 is to be predicted by others."""
    for folder, name, masks in (
        ("Tr", "amos_0001", {15: PROSTATE, 14: BLADDER & ~PROSTATE}),
        ("Tr", "amos_0003", {15: PROSTATE}),
        ("Va", "amos_0004", {14: BLADDER}),
        ("Ts", "amos_0002", None),
    ):
        write_nifti(root / f"images{folder}" / f"{name}.nii.gz", scan(int(name[-1])))
        if masks is not None:
            write_labels(root / f"labels{folder}" / f"{name}.nii.gz", masks)
    content = {
        "name": "AMOS",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "14": "bladder", "15": "prostate/uterus"},
        "numTraining": 2,
        "training": [{"image": "./imagesTr/amos_0001.nii.gz", "label": "./labelsTr/amos_0001.nii.gz"}],
    }
    (root / "dataset.json").write_text(json.dumps(content))
    if table:
        rows = "amos_id,Patient's Birth Date,Patient's Sex,Patient's Age\n1,,M,070Y\n3,,F,061Y\n4,,M,\n"
        (root / "labeled_data_meta_0000_0599.csv").write_text(rows)
    return root


def test_amos_gives_the_prostates_of_men(tmp_path: Path) -> None:
    root = amos(tmp_path / "amos22")
    assert detect(root) == "nnunet"
    result = import_cohort([root], tmp_path / "cohort")
    cohort = read_cohort(tmp_path / "cohort")
    assert {case.name for case in cohort.training} == {
        hashed("amos22", "amos_0001"),
        hashed("amos22", "amos_0004"),
    }
    assert result.structures == {"prostate": {"contoured": 1, "absent": 1}}
    np.testing.assert_array_equal(labels_of(cohort, hashed("amos22", "amos_0001")), PROSTATE)
    assert len(result.left_out) == 2
    assert any(
        "amos_0003" in line and "a woman, whose label prostate/uterus is the uterus" in line
        for line in result.left_out
    )
    assert any("amos_0002" in line and "has no labels in labelsTs" in line for line in result.left_out)
    assert not result.notes
    assert not result.failed


def test_amos_without_its_table_warns_of_uteri(tmp_path: Path) -> None:
    result = import_cohort([amos(tmp_path / "amos22", table=False)], tmp_path / "cohort")
    assert len(result.cases) == 3
    assert any("is the uterus of women" in note for note in result.notes)
    assert "uterus of women" in json.loads((tmp_path / "cohort" / "import.json").read_text())["notes"][0]
    (tmp_path / "amos22" / "labeled_data_meta_1.csv").write_text("amos_id,age\n1,70\n")
    with pytest.raises(InputError, match="expected AMOS22's table"):
        import_cohort([tmp_path / "amos22"], tmp_path / "other")


def test_nnunet_keeps_its_test_cases_its_patients_and_what_was_not_contoured(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    for split, name in (("Tr", "a"), ("Tr", "b"), ("Ts", "c")):
        write_nifti(image_path(root, name, split), scan(ord(name)))
        write_labels(label_path(root, name, split), {3: PROSTATE} if name != "b" else {})
    write_dataset_json(root, {"prostate": 3, "bladder": 7}, 2, "phantoms", "synthetic")
    (root / "contoured.json").write_text('{"a": ["prostate"], "b": ["prostate"]}')
    (root / "patients.json").write_text('{"a": "x", "b": "x"}')
    given = names(tmp_path, "bladder: [bladder]\nprostate: [prostate]\n")
    import_cohort([root], tmp_path / "cohort", names=given)
    cohort = read_cohort(tmp_path / "cohort")
    assert cohort.info.trained_on == "synthetic"
    assert {case.name for case in cohort.training} == {hashed("raw", "a"), hashed("raw", "b")}
    assert [case.name for case in cohort.test] == [hashed("raw", "c")]
    assert all(case.not_contoured == ("bladder",) for case in cohort.training)
    assert cohort.test[0].not_contoured == ()
    patients = json.loads((tmp_path / "cohort" / "patients.json").read_text())
    assert patients[hashed("raw", "a")] == patients[hashed("raw", "b")] != patients[hashed("raw", "c")]
    np.testing.assert_array_equal(labels_of(cohort, hashed("raw", "a")), 2 * PROSTATE)
    assert json.loads((tmp_path / "cohort" / "dataset.json").read_text())["numTraining"] == 2


@pytest.mark.parametrize("kind", ["folders", "endings"])
def test_pairs_are_told_by_their_names_and_structures_by_their_values(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "pairs"
    for name, masks in (("x", {1: PROSTATE, 2: BLADDER & ~PROSTATE}), ("y", {2: BLADDER}), ("z", None)):
        image, label = {
            "folders": (f"images/{name}_0000.nii.gz", f"labels/{name}.nii.gz"),
            "endings": (f"{name}.nii.gz", f"{name}_seg.nii.gz"),
        }[kind]
        write_nifti(root / image, scan(ord(name)))
        if masks is not None:
            write_labels(root / label, masks)
    assert detect(root) == "pairs"
    found = list_names([root])
    assert '- "1"  # 2 cases' in found.text
    assert len(found.refused) == 1
    with pytest.raises(InputError, match="layout pairs has no fixed names"):
        import_cohort([root], tmp_path / "cohort")
    result = import_cohort([root], tmp_path / "cohort", names=names(tmp_path, "prostate: 1\nbladder: 2\n"))
    cohort = read_cohort(tmp_path / "cohort")
    assert result.structures == {"prostate": {"contoured": 1, "absent": 1}, "bladder": {"contoured": 2}}
    np.testing.assert_array_equal(labels_of(cohort, hashed("pairs", "x")), PROSTATE + 2 * (BLADDER & ~PROSTATE))
    assert "has no label map of its name" in result.refused[0]


def test_what_was_not_contoured_in_pairs_is_not_taken_for_absent(tmp_path: Path) -> None:
    root = tmp_path / "pairs"
    for name, masks in (("x", {1: PROSTATE}), ("y", {1: PROSTATE, 2: BLADDER & ~PROSTATE}), ("z", {1: PROSTATE})):
        write_nifti(root / "images" / f"{name}.nii.gz", scan(ord(name)))
        write_labels(root / "labels" / f"{name}.nii.gz", masks)
    (root / "contoured.json").write_text('{"x": ["1"]}')
    given = names(tmp_path, "prostate: 1\nbladder: 2\n")
    result = import_cohort([root], tmp_path / "cohort", names=given)
    assert result.structures["bladder"] == {"not contoured": 1, "contoured": 1, "absent": 1}
    unknown = {case.name: case.not_contoured for case in read_cohort(tmp_path / "cohort").training}
    assert unknown[hashed("pairs", "x")] == ("bladder",)
    assert unknown[hashed("pairs", "z")] == ()
    (root / "contoured.json").write_text('{"x": ["3"]}')
    with pytest.raises(InputError, match=r"contoured\.json: case x names structure '3'; dataset\.json has 1, 2"):
        import_cohort([root], tmp_path / "other", names=given)


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        ("pairs", "labels/x_mask.nii.gz", "labels/x_seg.nii.gz"),
        ("pairs", "labels/x.nii.gz", "labels/x.nii"),
        ("pairs", "images/x.nii.gz", "images/x_0000.nii.gz"),
        ("one folder", "x_mask.nii.gz", "x_seg.nii.gz"),
        ("one folder", "x.nii.gz", "x_ct.nii.gz"),
        ("nnunet", "labelsTr/x.nii", "labelsTr/x.nii.gz"),
        ("nnunet", "imagesTs/x.nii.gz", "imagesTs/x_0000.nii.gz"),
    ],
)
def test_two_files_for_one_case_leave_it_out_and_both_are_named(
    tmp_path: Path, kind: str, first: str, second: str
) -> None:
    root = tmp_path / "data"
    folder = "Ts" if "Ts" in first else "Tr"
    image, label = {
        "pairs": ("images/{}_0000.nii.gz", "labels/{}.nii.gz"),
        "one folder": ("{}.nii.gz", "{}_seg.nii.gz"),
        "nnunet": (f"images{folder}/{{}}_0000.nii.gz", f"labels{folder}/{{}}.nii.gz"),
    }[kind]
    for name in ("x", "y"):
        write_nifti(root / image.format(name), scan(1))
        write_labels(root / label.format(name), {1: PROSTATE})
    for file in (first, second):  # two readers, or two versions of the scan
        if "label" in first or "mask" in first:
            write_labels(root / file, {1: BLADDER})
        else:
            write_nifti(root / file, scan(2))
    if kind == "nnunet":
        write_dataset_json(root, {"1": 1}, 2, "", "users")
        (root / "labelsTr").mkdir(exist_ok=True)
    result = import_cohort([root], tmp_path / "cohort", names=names(tmp_path, "prostate: 1\n"))
    assert result.cases == (hashed("data", "y"),)
    (line,) = result.refused
    assert first in line
    assert second in line
    assert "take all but one away" in line
    (left_out,) = json.loads((tmp_path / "cohort" / "import.json").read_text())["left_out"]
    assert left_out["what"] == hashed("x")


def test_one_case_that_cannot_be_used_does_not_stop_the_others(tmp_path: Path) -> None:
    root = tmp_path / "pairs"
    for name in ("good", "grid", "hu", "torn", "value"):
        write_nifti(root / "images" / f"{name}.nii.gz", scan())
        write_labels(root / "labels" / f"{name}.nii.gz", {1: PROSTATE})
    shifted = Geometry.from_parts(SHAPE, (2.0, 1.0, 1.0), (5.0, 0.0, 0.0))
    write_labels(root / "labels" / "grid.nii.gz", {1: PROSTATE}, Volume(scan().array, shifted))
    write_nifti(root / "images" / "hu.nii.gz", scan().with_array((scan().array + 1000).astype(np.int16)))
    torn = root / "images" / "torn.nii.gz"
    torn.write_bytes(torn.read_bytes()[:-200])
    write_dataset_json(root, {"prostate": 1}, 5, "", "users")
    write_labels(root / "labels" / "value.nii.gz", {9: PROSTATE})
    result = import_cohort([root], tmp_path / "cohort", names=names(tmp_path, "prostate: [prostate]\n"))
    assert result.cases == (hashed("pairs", "good"),)
    assert result.failed
    reasons = " | ".join(result.refused)
    for words in (
        "grid.nii.gz: lies on another grid than its scan",
        "images/hu.nii.gz: the lowest value is 0",
        "torn.nii.gz: the file is",
        "value.nii.gz: the value 9 has no name; expected 0 or 1",
    ):
        assert words in reasons
    assert len(list((tmp_path / "cohort").rglob("*.nii.gz"))) == 2
    listed = json.loads((tmp_path / "cohort" / "import.json").read_text())["left_out"]
    assert all(
        entry["what"] == hashed(name) for entry, name in zip(listed, ("grid", "hu", "torn", "value"), strict=True)
    )


def test_cases_of_one_name_in_two_sources_are_two_cases(tmp_path: Path) -> None:
    for clinic in ("here", "there", "else/there"):
        write_nifti(tmp_path / clinic / "images" / "001.nii.gz", scan())
        write_labels(tmp_path / clinic / "labels" / "001.nii.gz", {1: PROSTATE})
    given = names(tmp_path, "prostate: 1\n")
    roots = [tmp_path / "here", tmp_path / "there", tmp_path / "there", tmp_path / "else" / "there"]
    result = import_cohort(roots, tmp_path / "cohort", names=given)
    assert result.cases == (hashed("here", "001"), hashed("there", "001"))
    assert result.patients == 2
    assert ["is the same scan as" in line for line in result.left_out] == [True]
    assert ["has the name of" in line for line in result.refused] == [True]


def test_a_real_scan_with_a_label_map(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "pelvis_ct_nifti"
    for folder, file in (("images", "example_ct.nii.gz"), ("labels", "example_seg_fast_force_split.nii.gz")):
        (tmp_path / "real" / folder).mkdir(parents=True)
        (tmp_path / "real" / folder / "man.nii.gz").symlink_to(source / file)
    given = names(tmp_path, "prostate: 22\nbladder: 21\nignore: ['*']\n")
    import_cohort([tmp_path / "real"], tmp_path / "cohort", names=given)
    cohort = read_cohort(tmp_path / "cohort")
    truth = read_labels(source / "example_seg_fast_force_split.nii.gz").array
    found = labels_of(cohort, hashed("real", "man"))
    np.testing.assert_array_equal(found, np.where(truth == 22, 1, np.where(truth == 21, 2, 0)))
    assert (found == 1).sum() > 500


def test_label_maps_stored_in_other_axes_are_turned_to_the_scan(tmp_path: Path) -> None:
    root = tmp_path / "pairs"
    write_nifti(root / "images" / "a.nii.gz", scan())
    flipped = scan().with_array(PROSTATE.astype(np.uint8)).reordered((0, 2, 1), (True, False, True))
    write_nifti(root / "labels" / "a.nii.gz", flipped)
    import_cohort([root], tmp_path / "cohort", names=names(tmp_path, "prostate: 1\n"))
    np.testing.assert_array_equal(labels_of(read_cohort(tmp_path / "cohort"), hashed("pairs", "a")), PROSTATE)


def test_a_layout_that_is_named_is_not_guessed(tmp_path: Path) -> None:
    root = totalsegmentator(tmp_path / "ts")
    with pytest.raises(InputError, match=r"layout must be one of auto, dicom, totalsegmentator, nnunet, pairs"):
        import_cohort([root], tmp_path / "cohort", layout="nifti")
    with pytest.raises(InputError, match="holds no CT series and no structure set"):
        import_cohort([root], tmp_path / "cohort", layout="dicom")
    with pytest.raises(InputError, match=r"no dataset\.json here"):
        import_cohort([root], tmp_path / "cohort", layout="nnunet")
    with pytest.raises(InputError, match="holds no scan with a label map"):
        import_cohort([root], tmp_path / "cohort", layout="pairs")
    with pytest.raises(InputError, match="no such file or folder"):
        import_cohort([tmp_path / "nowhere"], tmp_path / "cohort")


def test_slicers_segments_go_by_their_names_in_each_file(tmp_path: Path) -> None:
    root, grid = tmp_path / "data", scan().geometry
    whole = PROSTATE.astype(np.uint8) + 2 * (BLADDER & ~PROSTATE).astype(np.uint8)
    swapped = np.array([0, 2, 1], dtype=np.uint8)[whole]
    for name in ("a", "b", "c"):
        write_nrrd(root / "images" / f"{name}.nrrd", scan().array, grid)
    write_nrrd(root / "labels" / "a.seg.nrrd", whole, grid, {"Prostate": 1, "Bladder": 2})
    write_nrrd(root / "labels" / "b.seg.nrrd", swapped, grid, {"Bladder": 1, "Prostate": 2})
    start = [int(axis.min()) for axis in np.nonzero(whole)]
    box = whole[tuple(slice(s, None) for s in start)]
    write_nrrd(root / "labels" / "c.seg.nrrd", box, grid.crop(start, box.shape), {"Prostate": 1, "Bladder": 2})
    assert detect(root) == "pairs"
    file = names(tmp_path, "prostate: [Prostate]\nbladder: [Bladder]\n")
    assert import_cohort([root], tmp_path / "cohort", names=file).refused == ()
    cohort = read_cohort(tmp_path / "cohort")
    assert len(cohort.training) == 3
    for case in cohort.training:
        np.testing.assert_array_equal(labels_of(cohort, case.name), whole)


def test_a_segmentation_that_is_no_part_of_its_scan_is_refused(tmp_path: Path) -> None:
    root, grid = tmp_path / "data", scan().geometry
    write_nrrd(root / "a.nrrd", scan().array, grid)
    other = Geometry.from_parts((2, 4, 4), (2.0, 1.0, 1.0), (0.5, 0.0, 0.0))
    write_nrrd(root / "a.seg.nrrd", np.ones(other.shape, dtype=np.uint8), other, {"Prostate": 1})
    with pytest.raises(InputError, match=r"a\.seg\.nrrd: lies on another grid than its scan"):
        import_cohort([root], tmp_path / "cohort", names=names(tmp_path, "prostate: [Prostate]\n"))


@pytest.mark.parametrize("deep", ["data", "data/v2", "data/v2/unpacked"])
def test_a_layout_in_a_folder_below_is_named(tmp_path: Path, deep: str) -> None:
    folder = totalsegmentator(tmp_path / "outer" / deep)
    words = f"{tmp_path / 'outer'}: is of no known layout, but {folder} in it is of layout totalsegmentator; give"
    with pytest.raises(InputError, match=re.escape(words)):
        import_cohort([tmp_path / "outer"], tmp_path / "cohort")


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("sub-01/ct/sub-01_ct.nii.gz", "derivatives/labels/sub-01/ct/sub-01_ct_dseg.nii.gz"),
        ("p1/image.nii.gz", "p1/label.nii.gz"),
    ],
    ids=["BIDS", "a folder for each patient"],
)
def test_files_of_no_known_layout_are_named(tmp_path: Path, image: str, label: str) -> None:
    root = tmp_path / "data"
    write_nifti(root / image, scan())
    write_labels(root / label, {1: PROSTATE})
    with pytest.raises(
        InputError, match=r"of no known layout: it holds files .*\.nii\.gz; lay them out as images/"
    ):
        import_cohort([root], tmp_path / "cohort")
    assert not (tmp_path / "cohort").exists()


def test_a_small_shear_imports_and_a_large_one_costs_its_subject(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for name, shear in (("s1", 2e-4), ("s2", 9e-4), ("s3", 3e-3)):
        affine = np.diag([-1.0, -1.0, 2.0, 1.0])
        affine[0, 1] = shear
        for place, array in (("ct", scan().array), ("segmentations/prostate", PROSTATE.astype(np.uint8))):
            image = nib.Nifti1Image(np.ascontiguousarray(array.transpose(2, 1, 0)), affine)
            image.header.set_xyzt_units("mm")
            image.set_sform(affine, code=1)
            image.set_qform(affine, code=1, strip_shears=True)
            path = root / name / f"{place}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(image, path)
    (refused,) = import_cohort([root], tmp_path / "cohort").refused
    assert "s3/ct.nii.gz: the affine is sheared" in refused
    assert len(read_cohort(tmp_path / "cohort").training) == 2


def images_and_labels(cohort: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """The scans of a cohort with their labels."""
    cases = read_cohort(cohort)
    return [(read_nifti(c.image).array, labels_of(cases, c.name)) for c in (*cases.training, *cases.test)]


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/{}_ct.nii.gz", "labels/{}_ct.nii.gz"),
        ("images/{}_0000.nii.gz", "labels/{}_0000.nii.gz"),
        ("{}_ct.nii.gz", "{}_ct_seg.nii.gz"),
        ("{}_CT.nii.gz", "{}_SEG.nii.gz"),
        ("{}.nii.gz", "{}_Label.nii.gz"),
        ("Images/{}_CT.nii.gz", "Labels/{}_Mask.nii.gz"),
    ],
)
def test_pairs_are_found_by_one_name_for_both_and_by_endings_in_any_capitals(
    tmp_path: Path, image: str, label: str
) -> None:
    root, truth = tmp_path / "pairs", {"p1": PROSTATE, "p2": BLADDER}
    for k, (name, inside) in enumerate(truth.items()):
        write_nifti(root / image.format(name), scan(k))
        write_labels(root / label.format(name), {1: inside})
    assert detect(root) == "pairs"
    assert not import_cohort([root], tmp_path / "cohort", names=names(tmp_path, "prostate: 1\n")).failed
    found = images_and_labels(tmp_path / "cohort")
    assert len(found) == 2
    for k, inside in enumerate(truth.values()):
        (labels,) = (labels for array, labels in found if np.array_equal(array, scan(k).array))
        np.testing.assert_array_equal(labels == 1, inside)


@pytest.mark.parametrize(
    "files",
    [
        {"case_0000": "case_0000", "case_0001": "case_0001"},  # the layout of AMOS22, numbered from 0
        {"x_0000": "x", "x_0000_0000": "x_0000"},  # nnU-Net's, with a case that is called like a channel
    ],
)
def test_a_case_called_like_a_channel_keeps_its_scan(tmp_path: Path, files: dict[str, str]) -> None:
    root, truth = tmp_path / "raw", (PROSTATE, BLADDER)
    for k, (image, label) in enumerate(files.items()):
        write_nifti(root / "imagesTr" / f"{image}.nii.gz", scan(k))
        write_labels(root / "labelsTr" / f"{label}.nii.gz", {1: truth[k]})
    write_dataset_json(root, {"prostate": 1}, 2, "", "users")
    result = import_cohort([root], tmp_path / "cohort")
    assert (len(result.cases), result.refused, result.left_out) == (2, (), ())
    for array, labels in images_and_labels(tmp_path / "cohort"):
        k = 0 if np.array_equal(array, scan(0).array) else 1
        np.testing.assert_array_equal(array, scan(k).array)
        np.testing.assert_array_equal(labels == 1, truth[k])


def raw_data(root: Path, labels: dict[str, int], cases: dict[str, str]) -> Path:
    """A data set of nnU-Net's: split to the name of its case, whose labels hold the value 1."""
    for k, (split, name) in enumerate(cases.items()):
        write_nifti(image_path(root, name, split), scan(k))
        write_labels(label_path(root, name, split), {1: PROSTATE})
    write_dataset_json(root, labels, 1, "", "users")
    return root


def test_a_name_in_training_and_test_is_told_with_advice_that_helps(tmp_path: Path) -> None:
    root = raw_data(tmp_path / "raw", {"prostate": 1}, {"Tr": "a", "Ts": "a"})
    (line,) = import_cohort([root], tmp_path / "cohort").refused
    assert "imagesTs/a_0000.nii.gz: has the name of" in line
    assert line.endswith("rename one of the two, scan and labels alike")


@pytest.mark.parametrize("name", ["prostate", "Prostate", "PROSTATE"])
def test_without_a_names_file_capitals_of_the_prostate_do_not_count(tmp_path: Path, name: str) -> None:
    root = raw_data(tmp_path / "raw", {"bladder": 2, name: 1}, {"Tr": "a"})
    import_cohort([root], tmp_path / "cohort")
    assert read_cohort(tmp_path / "cohort").info.labels == {"prostate": 1}
    ((_, labels),) = images_and_labels(tmp_path / "cohort")
    np.testing.assert_array_equal(labels == 1, PROSTATE)


def test_where_nothing_is_called_prostate_what_is_there_is_named(tmp_path: Path) -> None:
    root = raw_data(tmp_path / "raw", {"CTV": 1, "bladder": 2}, {"Tr": "a"})
    words = r"layout nnunet: no structure is called prostate; there are 'CTV', 'bladder'\. Say in a file"
    with pytest.raises(InputError, match=words):
        import_cohort([root], tmp_path / "cohort")
    assert not (tmp_path / "cohort").exists()


def test_voxels_that_nobody_judged_are_refused_with_advice(tmp_path: Path) -> None:
    root = raw_data(tmp_path / "raw", {"prostate": 2, "ignore": 1}, {"Tr": "a"})
    words = r"a\.nii\.gz: the value 1 is nnU-Net's ignore label; expected 0 or 2; an import keeps no such voxels"
    with pytest.raises(InputError, match=words):
        import_cohort([root], tmp_path / "cohort")


def test_a_folder_of_links_has_the_names_of_the_links(tmp_path: Path) -> None:
    """In an archive with a folder for each version all subjects may end in one name, or in a patient's."""
    for k, inside in ((1, PROSTATE), (2, BLADDER)):
        folder = tmp_path / "archive" / str(k) / "secret"
        write_nifti(folder / "ct.nii.gz", scan(k))
        write_nifti(folder / "segmentations" / "prostate.nii.gz", scan().with_array(inside))
        (tmp_path / "ts").mkdir(exist_ok=True)
        (tmp_path / "ts" / f"s{k}").symlink_to(folder)
    (tmp_path / "ts" / "again").symlink_to(tmp_path / "archive" / "1" / "secret")
    result = import_cohort([tmp_path / "ts"], tmp_path / "cohort")
    assert len(result.cases) == 2
    assert hashed("ts", "s2") in result.cases
    assert not result.refused
    assert ["is the same scan as" in line for line in result.left_out] == [True]
    np.testing.assert_array_equal(labels_of(read_cohort(tmp_path / "cohort"), hashed("ts", "s2")), BLADDER)
    assert "secret" not in (tmp_path / "cohort" / "import.json").read_text()


def test_the_folder_one_stands_in_has_its_name_and_that_is_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    totalsegmentator(tmp_path / "ts")
    monkeypatch.chdir(tmp_path / "ts" / "s0001")
    (case,) = import_cohort([Path()], tmp_path / "cohort").cases
    assert case == hashed("s0001", "s0001")
    record = (tmp_path / "cohort" / "import.json").read_text()
    assert f'"source": "{hashed("s0001")}"' in record
    assert "s0001" not in record


@pytest.mark.parametrize("layout", ["pairs", "totalsegmentator"])
def test_a_patients_json_says_which_cases_are_of_one_patient(tmp_path: Path, layout: str) -> None:
    image, label = {
        "pairs": ("images/{}.nii.gz", "labels/{}.nii.gz"),
        "totalsegmentator": ("{}/ct.nii.gz", "{}/segmentations/1.nii.gz"),
    }[layout]
    root = tmp_path / "in"
    for k, name in enumerate("abc"):
        write_nifti(root / image.format(name), scan(k))
        write_labels(root / label.format(name), {1: PROSTATE})
    (root / "patients.json").write_text('{"a": "x", "b": "x"}')
    assert detect(root) == layout
    result = import_cohort([root], tmp_path / "cohort", names=names(tmp_path, "prostate: 1\n"))
    patients = json.loads((tmp_path / "cohort" / "patients.json").read_text())
    first, second, third = (patients[hashed("in", name)] for name in "abc")
    assert first == second != third
    assert result.patients == 2
    assert any("patients.json: does not name c; each counts as a patient of its own" in n for n in result.notes)
