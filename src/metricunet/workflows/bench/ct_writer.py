"""Writing a volume as an uncompressed DICOM CT series, for scans to read where the user brings none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from metricunet.volume import Volume

INTERCEPT_HU = -1024


def write_ct_series(folder: Path, scan: Volume) -> None:
    """Write one file for each slice: 16 bits, uncompressed, axial.

    Args:
        folder: made if need be.
        scan: HU, its axes to the head, the back and the left; less than -1024 becomes that, fractions are cut off,
            and a slight rotation is dropped, for none of it matters to how long reading takes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    geometry = scan.geometry
    for k, plane in enumerate(scan.array):
        dataset = Dataset()
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
        dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.PatientName, dataset.PatientID, dataset.PatientSex = "Synthetic", "bench", "M"
        dataset.PatientBirthDate = dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = ""
        dataset.StudyID = dataset.ReferringPhysicianName = ""
        dataset.SeriesNumber, dataset.InstanceNumber, dataset.PatientPosition = 1, k + 1, "HFS"
        dataset.ImagePositionPatient = [round(float(v), 6) for v in geometry.to_world([k, 0, 0])]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing = [round(v, 6) for v in geometry.spacing_mm[1:]]
        dataset.SliceThickness = round(geometry.spacing_mm[0], 6)
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, INTERCEPT_HU
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.Rows, dataset.Columns = plane.shape
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
        stored = np.clip(plane.astype(np.int32) - INTERCEPT_HU, 0, 65535).astype("<u2")
        dataset.PixelData = stored.tobytes()
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, dataset.SOPInstanceUID
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta = meta
        dataset.save_as(folder / f"{k:05d}.dcm", enforce_file_format=True)
