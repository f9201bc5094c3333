"""Synthetic DICOM CT series on disk, sound by default, with faults put in by the test that wants them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

from metricunet.files.dicom.series import CtSeries, SeriesSearch, find_series
from metricunet.volume import Geometry

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"

#: Direction of a row (increasing column) and of a column (increasing row), in LPS, by patient position.
ORIENTATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "HFS": ((1, 0, 0), (0, 1, 0)),
    "HFP": ((-1, 0, 0), (0, -1, 0)),
    "FFS": ((-1, 0, 0), (0, 1, 0)),
    "FFP": ((1, 0, 0), (0, -1, 0)),
}

Edit = Callable[[int, Dataset], None]


@dataclass(frozen=True)
class Written:
    """A series on disk: its files and true geometry, slices running from the feet to the head."""

    folder: Path
    files: tuple[Path, ...]
    geometry: Geometry
    series_uid: str
    frame_of_reference_uid: str


def pattern(shape: Sequence[int]) -> NDArray[np.int16]:
    """HU in which no two voxels near each other are alike, so that no flip or shift goes unseen."""
    k, r, c = np.indices(tuple(shape))
    return ((k * 97 + r * 31 + c * 7) % 2001 - 1000).astype(np.int16)


def write_series(
    folder: Path,
    hu: NDArray[np.int16] | None = None,
    *,
    shape: tuple[int, int, int] = (8, 12, 10),
    spacing_mm: tuple[float, float, float] = (2.5, 0.9, 1.1),
    origin_mm: tuple[float, float, float] = (-40.5, -62.25, -120.0),
    patient_position: str = "HFS",
    turn: NDArray[np.float64] | None = None,
    slope: float = 1.0,
    intercept: float = -1024.0,
    signed: bool = False,
    transfer_syntax: str = ExplicitVRLittleEndian,
    leave_out: Sequence[int] = (),
    edit: Edit | None = None,
    after: Edit | None = None,
    series_uid: str | None = None,
    frame_of_reference_uid: str | None = None,
    study_uid: str | None = None,
) -> Written:
    """Write one CT series, a file for each slice.

    Args:
        folder: made if need be.
        hu: voxels [slice, row, column], slices from the feet to the head; `pattern` by default.
        shape: of the pattern.
        spacing_mm: along slice, row and column.
        origin_mm: LPS position of voxel [0, 0, 0].
        patient_position: HFS, HFP, FFS or FFP.
        turn: 3 x 3 rotation of the whole grid about its first voxel.
        slope: rescale slope.
        intercept: rescale intercept.
        signed: store signed pixels.
        transfer_syntax: uncompressed, or RLE.
        leave_out: slices that are not written.
        edit: changes slice k's data set before it is written.
        after: changes slice k's data set after its pixels have been encoded.
        series_uid: and the other identifiers, fresh by default.
        frame_of_reference_uid: see there.
        study_uid: see there.
    """
    hu = pattern(shape) if hu is None else hu
    row_run, column_run = (np.asarray(v, dtype=float) for v in ORIENTATIONS[patient_position])
    directions = np.stack([np.array([0.0, 0.0, 1.0]), column_run, row_run], axis=1)
    directions = directions if turn is None else turn @ directions
    geometry = Geometry.from_parts(hu.shape, spacing_mm, origin_mm, directions)
    series_uid = series_uid or generate_uid()
    frame_of_reference_uid = frame_of_reference_uid or generate_uid()
    study_uid = study_uid or generate_uid()
    stored = np.rint((hu.astype(float) - intercept) / slope).astype(np.int16 if signed else np.uint16)

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for k in range(hu.shape[0]):
        # Neither names nor instance numbers follow the positions.
        path = folder / f"{(k * 7919 + 13) % 10007:05d}.dcm"
        files.append(path)
        if k in leave_out:
            continue
        dataset = _slice(geometry, k, stored[k], signed)
        dataset.InstanceNumber = (k * 5) % hu.shape[0] + 1
        dataset.PatientPosition = patient_position
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID = series_uid, study_uid
        dataset.FrameOfReferenceUID = frame_of_reference_uid
        save(path, dataset, transfer_syntax, k, edit, after)
    return Written(folder, tuple(files), geometry, series_uid, frame_of_reference_uid)


def save(
    path: Path,
    dataset: Dataset,
    transfer_syntax: str = ExplicitVRLittleEndian,
    k: int = 0,
    edit: Edit | None = None,
    after: Edit | None = None,
) -> None:
    """Write a data set as a DICOM file, after the changes that a test wants."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # faults are put in on purpose
        if edit is not None:
            edit(k, dataset)
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        meta.TransferSyntaxUID = ExplicitVRLittleEndian if transfer_syntax == RLELossless else transfer_syntax
        dataset.file_meta = meta
        if transfer_syntax == RLELossless:
            dataset.compress(RLELossless, generate_instance_uid=False)
        if after is not None:
            after(k, dataset)
        dataset.save_as(path, enforce_file_format=True)


def rotation(axis: str, degrees: float) -> np.ndarray:
    """A rotation about an axis of the patient, to be given to `write_series` as `turn`."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return {
        "x": np.array([[1, 0, 0], [0, c, -s], [0, s, c]]),
        "y": np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]),
        "z": np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]),
    }[axis]


def only(search: SeriesSearch) -> CtSeries:
    """Return the one series that was found, where nothing was refused."""
    assert search.refused == ()
    (series,) = search.series
    return series


def find_only(folder: Path) -> CtSeries:
    """Return the one series in a folder, where nothing is refused."""
    return only(find_series(folder))


def recompress(path: Path, syntax: str) -> None:
    """Compress a file by gdcm, whose name of the transfer syntax is given."""
    gdcm = pytest.importorskip("gdcm")
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def companion(modality: str, sop_class: str, **elements: Any) -> Dataset:
    """A DICOM object that lies beside a scan: a dose, a structure set, another modality's image."""
    dataset = Dataset()
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = generate_uid()
    dataset.Modality = modality
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def _slice(geometry: Geometry, k: int, stored: NDArray[Any], signed: bool) -> Dataset:
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SOPClassUID = CT_IMAGE
    dataset.SOPInstanceUID = generate_uid()
    dataset.StudyDate, dataset.StudyTime = "20240229", "101500"
    dataset.AccessionNumber = "A1"
    dataset.Modality = "CT"
    dataset.Manufacturer = "Synthetic"
    dataset.ReferringPhysicianName = "Ärztin^Anna"
    dataset.SeriesDescription = "Pelvis"
    dataset.PatientName = "Müller^Max"
    dataset.PatientID = "P-001"
    dataset.PatientBirthDate = "19550501"
    dataset.PatientSex = "M"
    dataset.StudyID = "S1"
    dataset.SeriesNumber = 2
    dataset.ImagePositionPatient = [round(float(v), 6) for v in geometry.to_world([k, 0, 0])]
    directions = geometry.directions
    dataset.ImageOrientationPatient = [round(float(v), 8) for v in [*directions[:, 2], *directions[:, 1]]]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.PixelSpacing = [round(v, 6) for v in geometry.spacing_mm[1:]]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = int(signed)
    dataset.SliceThickness = round(geometry.spacing_mm[0], 6)
    dataset.PixelData = stored.tobytes()
    return dataset
