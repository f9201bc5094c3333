"""A scan or label map in one file, whatever its format: the one place that tells formats by their suffix."""

from __future__ import annotations

from pathlib import Path

from metricunet.files import nifti
from metricunet.files.itk import ITK_SUFFIXES, is_itk, itk_files, read_itk, read_itk_labels
from metricunet.files.nifti import NIFTI_SUFFIXES, is_nifti
from metricunet.volume import Volume

#: NIfTI first: what the package itself writes.
SCAN_SUFFIXES = (*NIFTI_SUFFIXES, *ITK_SUFFIXES)


def is_scan(path: Path) -> bool:
    """Tell by its name whether a path is a file of one scan or label map: NIfTI, NRRD or MetaImage."""
    return is_nifti(path) or is_itk(path)


def case_name(path: Path) -> str:
    """Return the file's name without folder and suffix."""
    return path.stem if is_itk(path) else nifti.case_name(path)


def read_scan(path: Path) -> Volume:
    """Read a scan: int16 where the file holds integers that always fit, float32 otherwise.

    Raises:
        InputError: as `read_nifti` or `read_itk`, by the file's suffix.
    """
    return read_itk(path) if is_itk(path) else nifti.read_nifti(path)


def read_labels(path: Path) -> Volume:
    """Read a label map as uint8 (uint16 if a label is over 255).

    Raises:
        InputError: as `read_scan`, and for negative or fractional values.
    """
    return read_itk_labels(path) if is_itk(path) else nifti.read_labels(path)


def scan_files(path: Path) -> tuple[Path, ...]:
    """Return every file that the scan consists of: a header may have its data beside it.

    Raises:
        InputError: a header that cannot be read, or data that are missing.
    """
    return itk_files(path) if is_itk(path) else (path,)
