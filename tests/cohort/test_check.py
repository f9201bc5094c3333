"""Checking cohorts: every planted fault is found and named; a good cohort has none."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from metricunet.cohort.case import check_scan, read_case
from metricunet.cohort.check import check_cohort
from metricunet.cohort.layout import read_cohort
from metricunet.files.nifti import read_nifti, write_nifti
from metricunet.volume import Geometry, Volume

Change = Callable[[np.ndarray], np.ndarray]


@pytest.fixture
def folder(tiny_cohort: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_cohort, tmp_path / "cohort"))


def change(path: Path, how: Change, geometry: Geometry | None = None) -> None:
    volume = read_nifti(path)
    write_nifti(path, Volume(how(volume.array.copy()), geometry or volume.geometry))


def test_a_good_cohort_has_but_the_empty_case(tiny_cohort: Path) -> None:
    calls: list[tuple[int, int]] = []
    problems = check_cohort(tiny_cohort, lambda done, total: calls.append((done, total)))
    assert [(p.case, p.severity) for p in problems] == [("case_05", "warning")]
    assert "prostate is absent" in problems[0].message
    assert calls == [(k, 8) for k in range(1, 9)]


def _two_pieces(array: np.ndarray) -> np.ndarray:
    array[2:4, 2:8, 2:8] = 1
    return array


def _gap(array: np.ndarray) -> np.ndarray:
    slices = np.flatnonzero(array.any(axis=(1, 2)))
    array[slices[len(slices) // 2]] = 0
    return array


def _touching(array: np.ndarray) -> np.ndarray:
    array[0] = array[len(array) // 2]
    return array


LABEL_FAULTS: dict[str, tuple[str, Change]] = {
    "label value 7": ("error", lambda a: a * 7),
    "whole numbers": ("error", lambda a: a * np.float32(0.5)),
    "in 2 pieces": ("warning", _two_pieces),
    "missing on 1 slices": ("warning", _gap),
    "first or last slice": ("warning", _touching),
    "is this contour complete": ("warning", lambda a: a * (np.cumsum(a.ravel()).reshape(a.shape) < 5)),
}


@pytest.mark.parametrize("words", LABEL_FAULTS)
def test_faults_of_labels(folder: Path, words: str) -> None:
    severity, how = LABEL_FAULTS[words]
    path = folder / "labelsTr" / "case_01.nii.gz"
    change(path, how)
    found = [p for p in check_cohort(folder) if p.case == "case_01"]
    assert any(words in p.message and p.severity == severity and str(path) in p.message for p in found), found


def test_labels_on_another_grid(folder: Path) -> None:
    path = folder / "labelsTr" / "case_01.nii.gz"
    geometry = read_nifti(path).geometry
    change(path, lambda a: a, geometry.crop((0, 0, 1), geometry.shape))
    (found,) = [p for p in check_cohort(folder) if p.case == "case_01"]
    assert "another grid" in found.message


IMAGE_FAULTS: dict[str, Change] = {
    "no Hounsfield units": lambda a: a + 1024,
    "the scan is empty": lambda a: a * 0,
    "NaN": lambda a: np.where(a == a.max(), np.nan, a).astype(np.float32),
}


@pytest.mark.parametrize("words", IMAGE_FAULTS)
def test_faults_of_images(folder: Path, words: str) -> None:
    path = folder / "imagesTs" / "case_06_0000.nii.gz"
    change(path, IMAGE_FAULTS[words])
    found = [p for p in check_cohort(folder) if p.severity == "error"]
    assert [p.case for p in found] == ["case_06"]
    assert words in found[0].message
    assert words in check_scan(path)[0].message


def test_odd_spacing_is_a_warning(folder: Path) -> None:
    path = folder / "imagesTs" / "case_06_0000.nii.gz"
    volume = read_nifti(path)
    write_nifti(path, Volume(volume.array, Geometry.from_parts(volume.array.shape, (10, 1, 1))))
    assert [p.severity for p in check_scan(path)] == ["warning"]


def test_a_case_in_training_and_test(folder: Path) -> None:
    shutil.copy(folder / "imagesTr" / "case_00_0000.nii.gz", folder / "imagesTs")
    assert any("imagesTr and imagesTs" in p.message for p in check_cohort(folder))


LABELS, IMAGE = "labelsTr/case_00.nii.gz", "imagesTr/case_00_0000.nii.gz"


def _flipped(scan: Volume) -> Volume:
    return scan.reordered((0, 1, 2), (True, False, True))


def _off(change: Callable[[np.ndarray], None]) -> Callable[[Volume], Volume]:
    def how(scan: Volume) -> Volume:
        affine = scan.geometry.affine.copy()
        change(affine)
        return Volume(scan.array, Geometry(scan.geometry.shape, affine))

    return how


def _origin(affine: np.ndarray) -> None:
    affine[:3, 3] += 1e-3


def _spacing(affine: np.ndarray) -> None:
    affine[0, 2] += 1e-4
    affine[2, 0] -= 1e-4


def _direction(affine: np.ndarray) -> None:
    affine[1, 2] += 2e-4


def _values(factor: float, dtype: type) -> Callable[[Volume], Volume]:
    return lambda scan: scan.with_array((scan.array * factor).astype(dtype))


@pytest.mark.parametrize(
    "how",
    [
        _flipped,
        _off(_origin),
        _off(_spacing),
        _off(_direction),
        _values(0.9999, np.float32),
        _values(1, np.int8),
        _values(1, np.float64),
    ],
)
def test_label_maps_as_programs_write_them_are_the_same_labels(
    folder: Path, how: Callable[[Volume], Volume]
) -> None:
    info = read_cohort(folder).info
    before = read_case(read_cohort(folder).training[0], info)
    write_nifti(folder / LABELS, how(read_nifti(folder / LABELS)))
    assert [p.case for p in check_cohort(folder) if p.severity == "error"] == []
    after = read_case(read_cohort(folder).training[0], info)
    np.testing.assert_array_equal(after.labels.array, before.labels.array)
    assert after.labels.geometry is after.image.geometry


def test_grids_that_differ_are_told_apart(folder: Path) -> None:
    def far(affine: np.ndarray) -> None:
        affine[0, 3] += 0.1004

    write_nifti(folder / LABELS, _off(far)(read_nifti(folder / LABELS)))
    (found,) = [p.message for p in check_cohort(folder) if p.severity == "error"]
    assert re.search(r"labels on another grid than the image: its voxels lie up to 0\.100\d+ mm from", found)


def test_a_value_without_a_name_and_labels_without_orientation(folder: Path) -> None:
    write_nifti(folder / LABELS, _values(255, np.uint8)(read_nifti(folder / LABELS)))
    (found,) = [p.message for p in check_cohort(folder) if p.severity == "error"]
    assert "label value 255 is not in dataset.json, which names [0, 1]" in found
    image = nib.load(folder / LABELS)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, folder / LABELS)
    (found,) = [p.message for p in check_cohort(folder) if p.severity == "error"]
    assert "states no orientation" in found


def of_case(folder: Path, name: str) -> list[str]:
    return [str(problem) for problem in check_cohort(folder) if problem.case == name]


def test_a_scan_that_is_there_twice_is_told_unless_it_is_one_patients(folder: Path) -> None:
    """Stored in another type and order of axes, so that no file is a copy of another."""
    image = _flipped(read_nifti(folder / IMAGE))
    write_nifti(folder / "imagesTr" / "case_01_0000.nii.gz", image.with_array(image.array.astype(np.float32)))
    shutil.copy(folder / LABELS, folder / "labelsTr" / "case_01.nii.gz")
    patients = {f"case_{k:02d}": f"p{k}" for k in range(6)}
    for stated in (None, patients):
        if stated is not None:
            (folder / "patients.json").write_text(json.dumps(stated))
        (found,) = of_case(folder, "case_01")
        assert found.startswith("warning: ")
        assert "imagesTr/case_01_0000.nii.gz: is the very scan of case case_00, " in found
    (folder / "patients.json").write_text(json.dumps(patients | {"case_01": "p0"}))
    assert of_case(folder, "case_01") == []


def test_a_patient_who_is_trained_and_tested_on_is_told(folder: Path) -> None:
    patients = {f"case_{k:02d}": f"p{k}" for k in range(8)}
    (folder / "patients.json").write_text(json.dumps(patients))
    assert of_case(folder, "case_06") == []
    (folder / "patients.json").write_text(json.dumps(patients | {"case_06": "p2"}))
    (found,) = of_case(folder, "case_06")
    assert "case_06_0000.nii.gz: its patient 'p2' is that of training case case_02, too" in found
    assert found.startswith("warning: ")
    assert of_case(folder, "case_07") == []


def test_cases_that_came_after_the_folds_are_told(folder: Path) -> None:
    """Of six training cases four are in a fold, one of them without its labels."""
    fold = {"train": ["case_00", "case_01"], "val": ["case_02"], "unlabeled": ["case_03"]}
    (folder / "splits.json").write_text(json.dumps([fold]))
    (found,) = of_case(folder, "")
    assert found.startswith("warning: ")
    assert "splits.json: no fold names case_04, case_05, so no training of a fold sees them" in found
    (folder / "splits.json").write_text(json.dumps([fold, {"train": ["case_04"], "val": ["case_05"]}]))
    assert of_case(folder, "") == []


@pytest.mark.parametrize("content", ["[]", '{"case_00": null}', "{"])
def test_patients_that_cannot_be_read_are_one_problem_among_others(folder: Path, content: str) -> None:
    (folder / "patients.json").write_text(content)
    (folder / IMAGE).write_bytes(b"no scan")
    found = [problem for problem in check_cohort(folder) if problem.severity == "error"]
    assert [problem.case for problem in found] == ["", "case_00"]
    assert str(folder / "patients.json") in found[0].message
