"""A scan, a model that finds two structures in it, and what comes of both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import metricunet as mu
from metricunet.api import Model, Result
from metricunet.files.nifti import read_nifti
from tests.support.dicom_series import Written, write_series
from tests.support.threshold_model import (
    GLAND_BAND,
    GLAND_HU,
    ball,
    bands_known,
    box,
    drawn_scan,
    write_bands_model,
)

LABELS = {"prostate": 1, "bladder": 2}
BANDS = (GLAND_BAND, (160.0, 280.0))
GLAND = (ball((2, -3, 0), (19, 16, 18)), GLAND_HU)
BLADDER = (box((-10, -15, 20), (12, 8, 30)), 220.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("door")


@pytest.fixture(scope="module")
def scan(folder: Path) -> Path:
    """A file whose axes are stored in another order and direction than the package's."""
    volume = drawn_scan(GLAND, BLADDER, shape=(44, 60, 64), spacing_mm=(2.5, 1.9, 1.7))
    stored = volume.array.transpose(1, 2, 0)[:, ::-1]  # [row, column, slice], columns towards the right
    affine = volume.geometry.reordered((1, 2, 0), (False, True, False)).affine
    path = folder / "pelvis_0000.nii.gz"
    nib.save(nib.Nifti1Image(stored, np.diag([-1.0, -1, 1, 1]) @ affine), path)
    return path


@pytest.fixture(scope="module")
def dicom(folder: Path, scan: Path) -> Written:
    volume = read_nifti(scan).canonical()
    return write_series(folder / "ct", volume.array, spacing_mm=volume.spacing_mm)


@pytest.fixture(scope="module")
def model_file(folder: Path) -> Iterator[Path]:
    with bands_known():
        yield write_bands_model(folder / "model.safetensors", LABELS, BANDS)


@pytest.fixture(scope="module")
def model(model_file: Path) -> Model:
    return mu.load_model(str(model_file), device="cpu")


@pytest.fixture(scope="module")
def result(model: Model, scan: Path) -> Result:
    return model.predict(scan)


@pytest.fixture(scope="module")
def nothing(model: Model) -> Result:
    """Of a scan without a gland."""
    return model.predict(drawn_scan(shape=(40, 48, 48)))
