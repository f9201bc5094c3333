"""Scans that are in memory already: arrays with an affine, nibabel's and SimpleITK's images, as volumes."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from metricunet.errors import InputError
from metricunet.files.nifti import RAS_TO_LPS, stated_grid
from metricunet.files.voxels import check_field, check_size, held_type, scan_volume
from metricunet.volume import CANONICAL_DIRECTIONS, Geometry, Volume, match_axes


def is_nibabel(image: object) -> bool:
    """Tell whether an object is an image of nibabel."""
    return isinstance(image, nib.spatialimages.SpatialImage)


def is_simpleitk(image: object) -> bool:
    """Tell whether an object is an image of SimpleITK, which is imported by nobody but its owner."""
    library = sys.modules.get("SimpleITK")
    return library is not None and isinstance(image, library.Image)


def files_of_nibabel(image: Any) -> tuple[Path, ...]:
    """Return the files that an image of nibabel says it was read from or written to, if any."""
    names = [holder.filename for holder in getattr(image, "file_map", {}).values()]
    return tuple(dict.fromkeys(Path(name).absolute() for name in names if name is not None))


def volume_of_array(array: NDArray[Any], affine: ArrayLike, name: str = "the array") -> Volume:
    """Return a scan given as nibabel gives it.

    Args:
        array: HU [x, y, z].
        affine: 4 x 4, from the index of a voxel's centre to millimetres to the right, the front and the head
            (RAS+).
        name: what to call the scan in messages.

    Raises:
        InputError: not three-dimensional, no real numbers, NaN or infinite values, or an affine that is no grid's.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise InputError(f"{name}: is masked; give its values with the masked ones filled: array.filled(-1000)")
    try:
        matrix = np.asarray(affine, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise InputError(f"{name}: its affine holds no numbers; expected 4 x 4") from error
    if array.ndim != 3 or matrix.shape != (4, 4):
        raise InputError(
            f"{name}: has shape {array.shape}, its affine {matrix.shape}; expected three axes [x, y, z], and 4 x 4"
        )
    return _volume(array, RAS_TO_LPS @ matrix, name)


def volume_of_volume(volume: Volume, name: str = "the volume") -> Volume:
    """Return a scan given as a volume that somebody made, checked as those that are read from files.

    Args:
        volume: HU.
        name: what to call the scan in messages.

    Raises:
        InputError: no real numbers, NaN or infinite values, or a grid of a size that no scanner has.
    """
    check_field(name, volume.geometry)
    return scan_volume(name, _held(volume.array, name), volume.geometry)


def volume_of_nibabel(image: Any) -> Volume:
    """Return a scan given as a NIfTI image of nibabel, its orientation checked as that of a file.

    Raises:
        InputError: another kind of image, and as `read_nifti`.
    """
    name = "the nibabel image"
    if not isinstance(image, nib.Nifti1Image | nib.Nifti1Pair):
        raise InputError(f"{name}: is {type(image).__name__}, expected NIfTI; give its array, with affine=")
    axes, geometry = stated_grid(name, image)
    try:
        values = np.asanyarray(image.dataobj).reshape(image.shape[:3])
    except (OSError, EOFError, ValueError, zlib.error) as error:  # its voxels are read from the file only now
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{name}: its voxels cannot be read from its file any more ({reason})") from error
    return scan_volume(name, _held(values, name).transpose(axes), geometry)


def volume_of_simpleitk(image: Any) -> Volume:
    """Return a scan given as an image of SimpleITK.

    Raises:
        InputError: not three-dimensional, several numbers in a voxel, NaN or infinite values, or a sheared grid.
    """
    name = "the SimpleITK image"
    library = sys.modules["SimpleITK"]
    if image.GetPixelIDTypeAsString().startswith("label"):  # asked for anything else it ends the process
        raise InputError(f"{name}: is a label map, expected numbers; convert it with LabelMapToLabel")
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(
            f"{name}: has {image.GetDimension()} axes and {image.GetNumberOfComponentsPerPixel()} numbers in a "
            "voxel; expected three axes and one number"
        )
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return _volume(library.GetArrayFromImage(image).transpose(2, 1, 0), affine, name)


def _volume(array: NDArray[Any], affine: NDArray[np.float64], name: str) -> Volume:
    """Return voxels [i, j, k] with the affine from that index to LPS, their axes ordered as the package's."""
    try:
        geometry = Geometry((array.shape[0], array.shape[1], array.shape[2]), affine)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    check_field(name, geometry)
    axes, _ = match_axes(geometry.directions, CANONICAL_DIRECTIONS)
    values = _held(array, name).transpose(axes)
    return scan_volume(name, values, geometry.reordered(axes, (False, False, False)))


def _held(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Return a copy of the voxels in the type that a file's would have."""
    check_size(name, (array.shape[0], array.shape[1], array.shape[2]), array.dtype)
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused
        return array.astype(held_type(array.dtype))
