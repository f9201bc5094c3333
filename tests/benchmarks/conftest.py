"""A small scan, a small model that finds something in it, and a machine whose peak is quickly measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import peak
from benchmarks import subject as subjects
from benchmarks.subject import Subject, prepared_subject
from metricunet.cohort.layout import read_cohort
from metricunet.cohort.prepare import PreparedCase, PrepareSettings, prepare
from metricunet.training.config import TrainConfig, load_config
from tests.support.cohorts import TINY_SETTINGS


def tiny_config(preset: str = "small") -> TrainConfig:
    return load_config("small", settings=TINY_SETTINGS)


@pytest.fixture
def small_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "MATRIX_SIDE", {"cpu": 64})
    monkeypatch.setattr(peak, "CONVOLUTION", {"cpu": (1, 8, 16)})


@pytest.fixture
def tiny_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subjects, "load_config", tiny_config)


@pytest.fixture
def cases(tiny_cohort: Path, tmp_path: Path) -> list[PreparedCase]:
    """Three cases of the tiny cohort as its training reads them."""
    config, cohort = tiny_config(), read_cohort(tiny_cohort)
    settings = PrepareSettings(
        "prostate", config.locate.spacing_mm, config.segment.spacing_mm, config.segment.box_mm
    )
    return prepare(cohort.training[:3], cohort.info, settings, tmp_path)


@pytest.fixture
def subject(tiny_cohort: Path, tiny_presets: None, small_peak: None) -> Iterator[Subject]:
    """A NIfTI scan of 30 x 48 x 56 voxels, and a stand-in model with tiny networks."""
    scan = tiny_cohort / "imagesTr" / "case_00_0000.nii.gz"
    with prepared_subject(scan, None, "small", 20) as made:
        yield made


@pytest.fixture
def phantom(monkeypatch: pytest.MonkeyPatch, tiny_cohort: Path, tiny_presets: None) -> Iterator[Subject]:
    """The same scan in the phantom's place: it is written as DICOM, and its true shape is known."""
    from metricunet.files.nifti import read_labels, read_nifti

    scan = read_nifti(tiny_cohort / "imagesTr" / "case_00_0000.nii.gz").canonical()
    truth = read_labels(tiny_cohort / "labelsTr" / "case_00.nii.gz").canonical()
    monkeypatch.setattr(subjects, "phantom_scan", lambda slices: (scan, truth))
    with prepared_subject(None, None, "small", 30) as made:
        yield made
