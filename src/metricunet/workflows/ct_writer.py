"""Writing CT as an uncompressed DICOM series, for scans to read where the user brings none.

The grid is given in DICOM's own terms and not as a `Geometry`, so that what reads the series is checked against
numbers that it had no part in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from metricunet.files.dicom.identity import RANDOM, Identity
from metricunet.volume import FloatArray, Geometry

Triple = tuple[float, float, float]

INTERCEPT_HU = -1024
#: Direction along a row (to the next column) and along a column (to the next row), LPS, by patient position.
ORIENTATIONS: dict[str, tuple[Triple, Triple]] = {
    "HFS": ((1, 0, 0), (0, 1, 0)),
    "HFP": ((-1, 0, 0), (0, -1, 0)),
    "FFS": ((-1, 0, 0), (0, 1, 0)),
    "FFP": ((1, 0, 0), (0, -1, 0)),
}


@dataclass(frozen=True)
class CtGrid:
    """Where the pixels of an axial series lie.

    Attributes:
        shape: slices, rows, columns.
        pixel_spacing_mm: between rows, between columns (PixelSpacing).
        slice_distance_mm: between slices.
        first_mm: LPS centre of the first pixel of the slice nearest to the feet.
        patient_position: HFS, HFP, FFS or FFP; decides ImageOrientationPatient.
    """

    shape: tuple[int, int, int]
    pixel_spacing_mm: tuple[float, float]
    slice_distance_mm: float
    first_mm: Triple
    patient_position: str = "HFS"

    @classmethod
    def of(cls, geometry: Geometry, patient_position: str = "HFS") -> CtGrid:
        """Return the grid of a scan; a slight turn is dropped.

        Args:
            geometry: its slices run to the head, rows and columns as `ORIENTATIONS` has them: for HFS to the back
                and the left, for HFP to the front and the right.
            patient_position: HFS, HFP, FFS or FFP.
        """
        distance, row, column = (round(step, 6) for step in geometry.spacing_mm)
        x, y, z = (round(float(v), 6) for v in geometry.origin_mm)
        return cls(geometry.shape, (row, column), distance, (x, y, z), patient_position)

    @property
    def orientation(self) -> tuple[float, ...]:
        """ImageOrientationPatient: the direction along a row, then the one along a column."""
        along_row, along_column = ORIENTATIONS[self.patient_position]
        return (*along_row, *along_column)

    def place_mm(self, slices: Any, rows: Any, columns: Any) -> FloatArray:
        """LPS centres [..., 3] of pixels, by the equation of DICOM PS3.3, C.7.6.2.1.1."""
        along_row, along_column = (np.array(v) for v in ORIENTATIONS[self.patient_position])
        k, r, c = (np.asarray(v, dtype=np.float64)[..., None] for v in (slices, rows, columns))
        between_rows, between_columns = self.pixel_spacing_mm
        first = np.array(self.first_mm) + k * np.array([0.0, 0.0, self.slice_distance_mm])
        return np.asarray(first + along_row * between_columns * c + along_column * between_rows * r)

    def axes_mm(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return z of each slice, y of each row, x of each column."""
        slices, rows, columns = (np.arange(n) for n in self.shape)
        z = self.place_mm(slices, 0, 0)[:, 2]
        return z, self.place_mm(0, rows, 0)[:, 1], self.place_mm(0, 0, columns)[:, 0]


@dataclass(frozen=True)
class Storage:
    """How HU are stored: stored value times slope plus intercept, in 16 bits."""

    slope: float = 1.0
    intercept: float = INTERCEPT_HU
    signed: bool = False

    def stored(self, hu: NDArray[Any]) -> NDArray[Any]:
        """Return what is stored of HU: rounded to whole numbers and cut to 16 bits."""
        kind = np.dtype("<i2" if self.signed else "<u2")
        limits = np.iinfo(kind)
        return np.clip(
            np.rint((hu.astype(np.float64) - self.intercept) / self.slope), limits.min, limits.max
        ).astype(kind)

    def hu(self, stored: NDArray[Any]) -> NDArray[np.float64]:
        """Return the HU that stored values stand for."""
        return np.asarray(stored.astype(np.float64) * self.slope + self.intercept)


def write_ct_series(
    folder: Path,
    hu: NDArray[Any],
    grid: CtGrid,
    *,
    storage: Storage | None = None,
    patient: str = "bench",
    description: str = "",
    identity: Identity = RANDOM,
) -> None:
    """Write one file for each slice, axial; names and instance numbers run from the head to the feet.

    Args:
        folder: folder to write into; it is made if it is missing.
        hu: [slice, row, column], slices from the feet to the head.
        grid: the grid of these values.
        storage: how HU are stored; by default as whole numbers from -1024 on.
        patient: PatientID.
        description: SeriesDescription.
        identity: where the UIDs come from; random by default.
    """
    storage = storage or Storage()
    folder.mkdir(parents=True, exist_ok=True)
    common = _common(grid, storage, patient, description, identity)
    for k, plane in enumerate(hu):
        number = len(hu) - k
        dataset = Dataset()
        dataset.update(common)
        dataset.SOPInstanceUID, dataset.InstanceNumber = identity.uid("slice", str(k)), number
        dataset.ImagePositionPatient = [round(float(v), 6) for v in grid.place_mm(k, 0, 0)]
        dataset.PixelData = storage.stored(plane).tobytes()
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, dataset.SOPInstanceUID
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta = meta
        dataset.save_as(folder / f"{number:05d}.dcm", enforce_file_format=True)


def _common(grid: CtGrid, storage: Storage, patient: str, description: str, identity: Identity) -> Dataset:
    """What all slices share."""
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = identity.uid("study"), identity.uid("scan")
    dataset.FrameOfReferenceUID = identity.uid("frame of reference")
    dataset.Modality, dataset.ImageType = "CT", ["DERIVED", "SECONDARY", "AXIAL"]
    dataset.PatientName, dataset.PatientID, dataset.PatientSex = "Synthetic^Scan", patient, "O"
    dataset.StudyDate, dataset.StudyTime = "20260101", "120000"
    dataset.PatientBirthDate = dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    dataset.StudyID, dataset.SeriesNumber, dataset.SeriesDescription = "1", 1, description
    dataset.Manufacturer, dataset.PositionReferenceIndicator = "metricunet", ""
    dataset.BodyPartExamined = "PELVIS"
    dataset.KVP, dataset.AcquisitionNumber = None, None
    dataset.PatientPosition = grid.patient_position
    dataset.ImageOrientationPatient = list(grid.orientation)
    dataset.PixelSpacing = list(grid.pixel_spacing_mm)
    dataset.SliceThickness = grid.slice_distance_mm
    dataset.RescaleSlope, dataset.RescaleIntercept = storage.slope, storage.intercept
    dataset.RescaleType = "HU"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = grid.shape[1:]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = int(storage.signed)
    return dataset
