"""Masks, structure sets as other programs might write them, and the programs that judge ours."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import ImplicitVRLittleEndian, generate_uid

from metricunet.files.dicom.series import CtSeries, find_series
from metricunet.files.nifti import read_nifti
from metricunet.files.rtstruct.outlines import Structure
from metricunet.volume import Geometry, Volume
from tests.support.dicom_series import write_series

Mask = NDArray[np.bool_]


def make_series(
    folder: Path,
    shape: tuple[int, int, int] = (8, 30, 34),
    spacing_mm: tuple[float, float, float] = (2.5, 0.9, 1.1),
    patient_position: str = "HFS",
) -> CtSeries:
    write_series(folder, shape=shape, spacing_mm=spacing_mm, patient_position=patient_position)
    (series,) = find_series(folder).series
    return series


def structure(name: str, mask: Mask, series: CtSeries, **more: object) -> Structure:
    return Structure(name, Volume(mask, series.geometry), **more)  # type: ignore[arg-type]


def ellipsoid(geometry: Geometry, semi_axes_mm: Sequence[float]) -> Mask:
    """Voxels whose centre lies in an ellipsoid about the grid's middle; semi-axes along slice, row, column."""
    index = np.stack(np.indices(geometry.shape), axis=-1) - (np.asarray(geometry.shape) - 1) / 2
    scaled = index * np.asarray(geometry.spacing_mm) / np.asarray(semi_axes_mm)
    return np.asarray((scaled**2).sum(axis=-1) < 1)


def slab_volume_ml(geometry: Geometry, semi_axes_mm: Sequence[float]) -> float:
    """Exact areas of an ellipsoid's cross-sections at the slices, times the slice distance."""
    heights = (np.arange(geometry.shape[0]) - (geometry.shape[0] - 1) / 2) * geometry.spacing_mm[0]
    shrink = np.clip(1 - (heights / semi_axes_mm[0]) ** 2, 0, None)
    return float(np.pi * semi_axes_mm[1] * semi_axes_mm[2] * shrink.sum() * geometry.spacing_mm[0] / 1000)


def shapes(shape: tuple[int, int, int]) -> dict[str, Mask]:
    """Shapes that have tripped writers of structure sets."""
    k, r, c = np.indices(shape)
    middle = [(n - 1) / 2 for n in shape]
    distance = np.hypot(r - middle[1], c - middle[2])
    inner_slices = (k > 0) & (k < shape[0] - 1)
    left = np.hypot(r - middle[1], c - middle[2] + 6.5) < 6.6
    right = np.hypot(r - middle[1], c - middle[2] - 6.5) < 6.6
    diagonal = np.zeros(shape, dtype=bool)
    diagonal[3, 5:8, 5:8] = True
    diagonal[3, 8:11, 8:11] = True
    diagonal[3, 11, 7] = True
    island = np.zeros(shape, dtype=bool)
    island[2, 4, 6] = True
    corners = np.zeros(shape, dtype=bool)
    corners[0, 0, 0] = corners[-1, -1, -1] = corners[0, -1, :] = True
    return {
        "shell": inner_slices & (distance < 12) & (distance > 5),
        "cored_shell": inner_slices & (((distance < 12) & (distance > 5)) | (distance < 2)),
        "lobes": inner_slices & (left | right),
        "diagonal": diagonal,
        "island": island,
        "corners": corners,
        "everything": np.ones(shape, dtype=bool),
        "noise": np.random.default_rng(5).random(shape) < 0.4,
    }


def plastimatch(rtstruct: Path, series: CtSeries, output: Path) -> dict[str, Volume]:
    """Let an independent program fill the contours on the CT's grid."""
    program = shutil.which("plastimatch")
    if program is None:
        pytest.skip("plastimatch is not installed")
    command = [program, "convert", "--input", rtstruct, "--referenced-ct", series.folder, "--xor-contours"]
    command += ["--output-prefix", output, "--prefix-format", "nii.gz"]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    names = {path: path.name.removesuffix(".nii.gz") for path in output.iterdir()}
    return {name: read_nifti(path).reordered_like(series.geometry) for path, name in names.items()}


def dciodvfy_complaints(path: Path) -> list[str]:
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    done = subprocess.run([program, str(path)], capture_output=True, text=True, errors="replace")
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


def rtstruct(
    path: Path,
    rois: Sequence[tuple[str, Sequence[Sequence[float]] | None]],
    *,
    frame: str | None = "1.2.3.4",
    sequence: bool = True,
    change: Callable[[Dataset], None] | None = None,
    odd: Mapping[tuple[str, str], bytes] | None = None,
) -> Path:
    """Write a structure set as another program might: each ROI has a name and its contours' flat numbers.

    Args:
        path: the file.
        rois: name and contours.
        frame: of reference, of the set and of each ROI.
        sequence: whether the set lists its frame.
        change: what a test does to the set before it is written.
        odd: text that pydicom would not write, by the ROI's name and `ROIDisplayColor` or `ContourData` (of its
            first contour).
    """
    odd = {key: text + b" " * (len(text) % 2) for key, text in (odd or {}).items()}
    stand_ins = {key: _stand_in(n, len(text)) for n, (key, text) in enumerate(odd.items(), start=1)}
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.481.3", generate_uid()
    dataset.Modality = "RTSTRUCT"
    if sequence:
        reference = Dataset()
        reference.FrameOfReferenceUID = frame
        dataset.ReferencedFrameOfReferenceSequence = [reference]
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(rois, start=7):
        roi, item = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        if frame is not None:
            roi.ReferencedFrameOfReferenceUID = frame
        dataset.StructureSetROISequence.append(roi)
        item.ReferencedROINumber = number
        if contours is not None:
            item.ContourSequence = []
            for numbers in contours:
                contour = Dataset()
                contour.ContourGeometricType = "CLOSED_PLANAR"
                contour.NumberOfContourPoints = len(numbers) // 3
                contour.ContourData = [f"{value:.10g}" for value in numbers]
                item.ContourSequence.append(contour)
        for keyword, where in (("ROIDisplayColor", [item]), ("ContourData", item.get("ContourSequence", []))):
            if (name, keyword) in odd:
                setattr(where[0], keyword, stand_ins[name, keyword])
        dataset.ROIContourSequence.append(item)
    dataset.ROIContourSequence.reverse()  # their order is free
    if change is not None:
        change(dataset)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=True)
    content = path.read_bytes()
    for (name, keyword), text in odd.items():
        tag = Tag(keyword)
        head = struct.pack("<HHL", tag.group, tag.element, len(text))
        before = head + "\\".join(stand_ins[name, keyword]).ljust(len(text)).encode()
        assert content.count(before) == 1
        content = content.replace(before, head + text)
    path.write_bytes(content)
    return path


def _stand_in(digit: int, length: int) -> list[str]:
    """Numbers that take as many bytes in a file as a text of even length."""
    return [str(digit)] * (length // 2)


def square(low: float, high: float, z: float) -> list[float]:
    return [low, low, z, high, low, z, high, high, z, low, high, z]


GRID = Geometry.from_parts((6, 12, 12), (3.0, 1.0, 1.0))
