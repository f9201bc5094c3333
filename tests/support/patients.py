"""Trees of DICOM patients, each with a CT series and structure sets, and other programs' layouts of the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from metricunet.files.nifti import write_nifti
from metricunet.volume import Geometry, Volume
from tests.support.dicom_series import Edit, Written, pattern, write_series
from tests.support.structure_sets import rtstruct

SHAPE, SPACING_MM = (6, 24, 24), (2.0, 1.0, 1.0)
#: Name to (low, high, slices): a square whose sides run between voxels' centres.
Squares = Mapping[str, tuple[float, float, Sequence[int]] | None]


@dataclass(frozen=True)
class Patient:
    """Who a patient is, as the headers say."""

    name: str = "Doe^John"
    identifier: str = "P-100"
    born: str = "19480317"

    def put_into(self, dataset: Dataset) -> None:
        dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = self.name, self.identifier, self.born


def write_ct(folder: Path, patient: Patient, edit: Edit | None = None, **more: object) -> Written:
    """Write a CT series of a patient: `SHAPE` voxels from the origin on."""

    def signed(k: int, dataset: Dataset) -> None:
        patient.put_into(dataset)
        if edit is not None:
            edit(k, dataset)

    return write_series(
        folder,
        shape=SHAPE,
        spacing_mm=SPACING_MM,
        origin_mm=(0.0, 0.0, 0.0),
        edit=signed,
        **more,  # type: ignore[arg-type]
    )


def write_set(
    path: Path,
    patient: Patient,
    series: Written | None,
    squares: Squares,
    *,
    states_series: bool = True,
    frame: str | None = None,
    change: Callable[[Dataset], None] | None = None,
) -> Path:
    """Write a structure set of squares; None stands for a structure that nobody drew."""

    def edit(dataset: Dataset) -> None:
        patient.put_into(dataset)
        dataset.SpecificCharacterSet = "ISO_IR 192"
        dataset.StudyInstanceUID = generate_uid()
        if series is not None and states_series:
            images = Dataset()
            images.SeriesInstanceUID = series.series_uid
            study = Dataset()
            study.RTReferencedSeriesSequence = [images]
            dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence = [study]
        if change is not None:
            change(dataset)

    rois = [(name, None if square is None else _loops(*square)) for name, square in squares.items()]
    frame = frame or (series.frame_of_reference_uid if series is not None else generate_uid())
    path.parent.mkdir(parents=True, exist_ok=True)
    return rtstruct(path, rois, frame=frame, change=edit)


def _loops(low: float, high: float, slices: Sequence[int]) -> list[list[float]]:
    loops = []
    for k in slices:
        z = k * SPACING_MM[0]
        loops.append([low, low, z, high, low, z, high, high, z, low, high, z])
    return loops


def mask(low: float, high: float, slices: Sequence[int]) -> np.ndarray:
    """The voxels of a square."""
    array = np.zeros(SHAPE, dtype=bool)
    inside = (np.arange(SHAPE[1]) > low) & (np.arange(SHAPE[1]) < high)
    array[np.ix_(np.asarray(slices), inside.nonzero()[0], inside.nonzero()[0])] = True
    return array


def scan(seed: int = 0) -> Volume:
    """A scan in HU on the same grid as those of the DICOM patients."""
    return Volume(np.roll(pattern(SHAPE), seed), Geometry.from_parts(SHAPE, SPACING_MM, (0.0, 0.0, 0.0)))


def write_labels(path: Path, masks: Mapping[int, np.ndarray], like: Volume | None = None) -> Path:
    """Write a label map: value to mask."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    for value, inside in masks.items():
        labels[inside] = value
    write_nifti(path, (like or scan()).with_array(labels))
    return path
