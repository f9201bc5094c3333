"""Checking cohorts: every planted fault is found and named; a good cohort has none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from metricunet.cohort.case import check_scan
from metricunet.cohort.check import check_cohort
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
