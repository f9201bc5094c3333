"""`Scan` and `load_scan`: a scan from wherever it is."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from metricunet.api.plain import in_one_line
from metricunet.cohort.case import check_image
from metricunet.cohort.layout import CHANNEL_SUFFIX
from metricunet.errors import InputError
from metricunet.files.dicom.stack import Allow
from metricunet.files.images import (
    files_of_nibabel,
    is_nibabel,
    is_simpleitk,
    volume_of_array,
    volume_of_nibabel,
    volume_of_simpleitk,
    volume_of_volume,
)
from metricunet.files.scan import case_name
from metricunet.inference.case_files import files_of
from metricunet.inference.inputs import ScanInput, find_inputs
from metricunet.volume import Volume

#: What a scan is called that came from memory and was given no name.
UNNAMED = "scan"
IN_MEMORY = "the scan"


@dataclass(frozen=True, eq=False, repr=False)
class Scan:
    """A CT scan in Hounsfield units, read and checked.

    Attributes:
        volume: It holds the voxels, and where they lie in the patient.
        name: It names the case, and the names of its outputs begin with it.
        source: The scan was read from this file or DICOM series; None for a scan that came from memory.
        origins: An image in memory says that it was read from these files, which no output may replace.
        stamps: Each file of the source had this size and this time of its last change when it was read; None where
            that is not known.
    """

    volume: Volume
    name: str
    source: ScanInput | None = None
    origins: tuple[Path, ...] = ()
    stamps: tuple[tuple[int, int], ...] | None = None

    @cached_property
    def source_sha256(self) -> str:
        """Hash of the source's files, or of the affine and the voxels of a scan from memory.

        Raises:
            InputError: The files are gone, or are not those that were read any more.
        """
        if self.source is not None:
            try:
                found = self.source.sha256()
                changed = self.stamps is not None and _stamps_of(self.source) != self.stamps
            except OSError as error:
                raise InputError(f"{self.source.path}: its files can be read no more ({error})") from error
            if changed:
                raise InputError(
                    f"{self.source.path}: was changed since it was read, and what was read would be taken for "
                    "what lies there now; load it again"
                )
            return found
        content = hashlib.sha256(self.volume.geometry.affine.tobytes())
        content.update(np.ascontiguousarray(self.volume.array).tobytes())
        return content.hexdigest()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it was read from, as far as they are known."""
        return self.origins if self.source is None else self.source.files

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for each fault of the files that was repaired in reading them."""
        return () if self.source is None else self.source.notes

    @property
    def patient_sex(self) -> str:
        """The patient's sex as the header of a DICOM series states it, `M`, `F` or `O`; empty where none does."""
        return "" if self.source is None else self.source.patient_sex

    @property
    def is_dicom(self) -> bool:
        """Whether it is a DICOM series, to which a structure set can refer."""
        return self.source is not None and self.source.series is not None

    def __repr__(self) -> str:
        kind = "DICOM series" if self.is_dicom else "from memory" if self.source is None else self.source.path.name
        return f"Scan({self.name}: {self.volume!r}, {kind})"


@in_one_line
def load_scan(
    source: object,
    *,
    affine: ArrayLike | None = None,
    series: str | None = None,
    name: str | None = None,
    allow_gaps: bool = False,
    allow_tilt: bool = False,
) -> Scan:
    """Read a CT scan from wherever it is.

    Values are Hounsfield units. A volume of this package is indexed [slice, row, column] and lies in DICOM's
    patient coordinates (LPS: to the left, the back and the head), in millimetres. An array is taken as nibabel
    gives it: indexed [x, y, z], with an affine to RAS (to the right, the front and the head), in millimetres.

    Args:
        source: The scan is one of these:

            - a path, str or Path, of a file (NIfTI, NRRD, MetaImage) or of a folder that holds one scan, DICOM
              files for example;
            - an image of nibabel (NIfTI) or of SimpleITK;
            - a numpy array [x, y, z], with `affine`;
            - a `Volume`, or a `Scan`, which is returned as it is.
        affine: An array alone takes it: 4 x 4, it maps the index of a voxel's centre to RAS millimetres.
        series: The series with this SeriesInstanceUID is taken, where a folder holds several.
        name: The case is called so; by default by the file's name, by twelve digits of a series' hashed UID, or
            `scan`.
        allow_gaps: A DICOM series whose slices are missing or uneven is resampled rather than refused.
        allow_tilt: A DICOM series of a tilted gantry is resampled rather than refused.

    Raises:
        InputError: There is nothing that can be read, there are several scans, the values are no Hounsfield units,
            or an argument is of no use for such a source.

    Example:
        image = nibabel.load("scan.nii.gz")
        scan = load_scan(image.get_fdata(), affine=image.affine, name="patient_1")
    """
    if name is not None:
        _check_name(name)
    if affine is not None and not isinstance(source, np.ndarray):
        raise InputError(f"affine is for an array alone, and the scan is a {type(source).__name__}; leave it out")
    of_files = {"series": series is not None, "allow_gaps": allow_gaps, "allow_tilt": allow_tilt}
    if not isinstance(source, str | os.PathLike) and (
        given := [name for name, is_given in of_files.items() if is_given]
    ):
        raise InputError(
            f"{', '.join(given)}: of use for a path alone, and the scan is a {type(source).__name__}; leave it out"
        )
    if isinstance(source, Scan):
        return source if name is None else replace(source, name=name)
    if isinstance(source, str | os.PathLike):
        if not os.fspath(source):
            raise InputError("the path of the scan is empty; expected a file, or a folder of DICOM")
        entry = _only_scan(Path(source), series, Allow(allow_gaps, allow_tilt))
        try:
            stamps = _stamps_of(entry)  # before it is read, so that no change goes unnoticed
        except OSError:
            stamps = None  # reading it says what is wrong
        return Scan(entry.read(), name or entry.case, entry, stamps=stamps)
    volume, found_name, origins = _from_memory(source, affine)
    for problem in check_image(found_name, volume, IN_MEMORY):
        if problem.severity == "error":
            raise InputError(problem.message)
    return Scan(volume, name or found_name, origins=origins)


def _stamps_of(source: ScanInput) -> tuple[tuple[int, int], ...] | None:
    """Return what tells whether a scan's files were changed: of each its size, and the time of its last change."""
    return tuple((status.st_size, status.st_mtime_ns) for status in map(os.stat, files_of(source)))


def _from_memory(source: object, affine: ArrayLike | None) -> tuple[Volume, str, tuple[Path, ...]]:
    """Return a scan that is no file, what to call it, and the files that it says it was read from."""
    if isinstance(source, Volume):
        return volume_of_volume(source), UNNAMED, ()
    if isinstance(source, np.ndarray):
        if affine is None:
            raise InputError(
                "an array does not say where its voxels lie in the patient; give affine=, 4 x 4, from the index "
                "[x, y, z] to RAS millimetres, as in load_scan(image.get_fdata(), affine=image.affine)"
            )
        return volume_of_array(source, affine), UNNAMED, ()
    if is_nibabel(source):
        origins = files_of_nibabel(source)
        return volume_of_nibabel(source), _case_of(origins[0]) if origins else UNNAMED, origins
    if is_simpleitk(source):
        return volume_of_simpleitk(source), UNNAMED, ()
    raise InputError(
        f"a scan cannot be a {type(source).__name__}; expected a path, an array with its affine, an image of "
        "nibabel or SimpleITK, or a Volume"
    )


def _case_of(path: Path) -> str:
    return case_name(path).removesuffix(CHANNEL_SUFFIX)


def _check_name(name: object) -> None:
    plain = isinstance(name, str) and name.isprintable() and name == Path(name).name
    if not plain or not name or str(name).startswith("."):
        raise InputError(f"name must be that of a file, without folders; got {name!r}")


def _only_scan(path: Path, series: str | None, allow: Allow) -> ScanInput:
    """Return the one scan at a path.

    Raises:
        InputError: none, several, or another scan there that cannot be read, so that it is unclear which is meant.
    """
    inputs, refused = find_inputs([path], series, allow=allow)
    if len(inputs) > 1:
        names = [entry.path.name if entry.series is None else entry.series.series_uid for entry in inputs]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise InputError(
            f"{path}: holds {len(inputs)} scans ({', '.join(names[:3])}{more}); give the path of one file, or "
            "series= with the UID of one series"
        )
    damaged = [entry.reason for entry in refused if entry.is_scan]
    if damaged:
        raise InputError(
            f"{damaged[0]}. Another scan there can be read, {inputs[0].case}; give its file, or its series="
        )
    return inputs[0]
