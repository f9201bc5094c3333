"""Small cohorts of ellipsoids, written to disk as a user's would be."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from metricunet.files.nifti import write_nifti
from metricunet.volume import Geometry, Volume

CENTRE_MM = (5.0, -10.0, -460.0)


def ellipsoid(geometry: Geometry, centre_mm: Sequence[float], radii_mm: Sequence[float]) -> NDArray[Any]:
    """Mask of the voxels whose centres lie in an ellipsoid with axes along x, y and z."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in geometry.shape], indexing="ij"), axis=-1)
    offset = (geometry.to_world(index) - np.asarray(centre_mm)) / np.asarray(radii_mm)
    return np.asarray((offset**2).sum(axis=-1) <= 1)


def make_grid(spacing_mm: Sequence[float] = (3.0, 1.5, 1.5), extent_mm: float = 90.0) -> Geometry:
    """A grid around `CENTRE_MM`."""
    shape = [round(extent_mm / s) for s in spacing_mm]
    return Geometry.from_parts(shape, spacing_mm).box_around(CENTRE_MM, shape, spacing_mm)


@dataclass
class Folders:
    """A cohort and a prediction folder to fill."""

    cohort: Path
    predictions: Path
    output: Path

    def add(
        self,
        case: str,
        reference: NDArray[Any],
        prediction: NDArray[Any] | None,
        *,
        geometry: Geometry | None = None,
        hu: NDArray[Any] | None = None,
        quality: dict[str, Any] | None = None,
    ) -> None:
        """Write a case; without `prediction` no mask, without `hu` no scan."""
        geometry = geometry or make_grid()
        write_nifti(self.cohort / "labelsTr" / f"{case}.nii.gz", Volume(reference.astype(np.uint8), geometry))
        if prediction is not None:
            write_nifti(self.predictions / f"{case}.nii.gz", Volume(prediction.astype(np.uint8), geometry))
        if hu is not None:
            write_nifti(self.cohort / "imagesTr" / f"{case}_0000.nii.gz", Volume(hu.astype(np.int16), geometry))
        if quality is not None:
            path = self.predictions / f"{case}.quality.json"
            path.write_text(json.dumps({"case": case, **quality}), encoding="utf-8")

    def name_labels(self, **labels: int) -> None:
        """Write dataset.json."""
        content = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, **labels},
            "numTraining": 1,
            "file_ending": ".nii.gz",
        }
        (self.cohort / "dataset.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """Empty folders in the layout of a cohort and of a prediction."""
    result = Folders(tmp_path / "cohort", tmp_path / "prediction", tmp_path / "evaluation")
    for folder in (result.cohort / "labelsTr", result.cohort / "imagesTr", result.predictions):
        folder.mkdir(parents=True)
    return result


@pytest.fixture
def grid() -> Geometry:
    """The grid on which `folders.add` writes unless told otherwise."""
    return make_grid()


@pytest.fixture
def gland(grid: Geometry) -> Callable[..., NDArray[Any]]:
    """Make a gland on the default grid: `gland(shift_mm=(x, y, z), scale=1)`."""

    def make(shift_mm: Sequence[float] = (0, 0, 0), scale: float = 1.0) -> NDArray[Any]:
        return ellipsoid(grid, np.add(CENTRE_MM, shift_mm), np.multiply((22, 18, 15), scale))

    return make
