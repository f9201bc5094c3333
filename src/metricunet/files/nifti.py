"""NIfTI in and out. The file's own grid is kept to the voxel; world coordinates turn from RAS to LPS here."""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from nibabel.openers import Opener
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import NDArray

from metricunet.errors import InputError, unlike_limits
from metricunet.files.atomic import written_whole
from metricunet.files.sparse_gzip import gzip_of
from metricunet.files.voxels import PIECE_BYTES, axes_and_grid, check_size, gather, label_volume, scan_volume
from metricunet.volume import FloatArray, Geometry, Volume

NIFTI_SUFFIXES = (".nii.gz", ".nii")
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: sform and qform may differ by rounding of float32 quaternions; beyond this they describe two places.
FORM_TOLERANCE_MM = 0.5


def is_nifti(path: Path) -> bool:
    """Tell by its name whether a path is a NIfTI file."""
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def case_name(path: Path) -> str:
    """Return a NIfTI file's name without folder and suffix."""
    for suffix in NIFTI_SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def read_nifti(path: Path) -> Volume:
    """Read a scan: int16 where the file holds unscaled integers that fit, float32 otherwise.

    Axes are permuted (never flipped) so that the volume is indexed [slice, row, column].

    Raises:
        InputError: not a NIfTI file, truncated, not three-dimensional, too large for memory, NaN or infinite
            values, no or broken or sheared orientation, sform and qform that contradict each other.
    """
    image = _open(path)
    axes, geometry = stated_grid(path, image)
    return scan_volume(path, _voxels(path, image).transpose(axes), geometry)


def read_labels(path: Path) -> Volume:
    """Read a label map as uint8 (uint16 if a label is over 255).

    Raises:
        InputError: as `read_nifti`, and for negative or fractional values.
    """
    return label_volume(path, read_nifti(path))


def write_nifti(path: Path, volume: Volume, like: Path | None = None) -> None:
    """Write a volume as NIfTI, whole or not at all.

    Args:
        path: ends in .nii.gz or .nii.
        volume: any voxels; the dtype is kept (bool becomes uint8).
        like: a NIfTI file on the same grid whose axis order and orientation are copied exactly. Without it
            the axes are written column, row, slice.
    """
    image = _image(volume, like)
    with written_whole(path) as temporary:
        nib.save(image, temporary)


def write_nifti_stack(
    path: Path, volumes: Iterable[Volume], count: int, like: Path | None = None, slope: float = 1.0
) -> None:
    """Write volumes of one grid into one four-dimensional NIfTI file, whole or not at all, one after the other.

    Args:
        path: ends in .nii.gz.
        volumes: all of one dtype; no more than one of them is held at a time.
        count: how many there are.
        like: as in `write_nifti`.
        slope: what stored values are multiplied by when they are read.
    """
    with written_whole(path) as temporary, Opener(str(temporary), "wb") as handle:
        for number, volume in enumerate(volumes):
            image = _image(volume, like, packed=False)  # each slice is packed below
            if number == 0:
                header = image.header.copy()
                header.set_data_shape((*image.shape, count))
                header.set_slope_inter(slope, 0.0)
                header["magic"] = header.single_magic
                header.write_to(handle)
            for part in np.asarray(image.dataobj).T:  # the first axis of the file is the fastest
                handle.write(np.ascontiguousarray(part).tobytes())


def write_nifti_part(path: Path, part: Volume | None, grid: Geometry, like: Path | None = None) -> None:
    """Write a mask on a grid of which a part alone is not 0, whole or not at all.

    The file is as `write_nifti` would write the whole mask, but for how its zeros are compressed: that is done
    once for many files.

    Args:
        path: ends in .nii.gz.
        part: uint8 or bool, on a part of the grid; None for a mask of zeros.
        grid: of the mask.
        like: as in `write_nifti`.
    """
    nothing = Volume(np.broadcast_to(np.uint8(0), grid.shape), grid)
    image = _image(nothing, like, packed=False)  # no voxel is held
    columns, rows, planes = image.shape
    head = BytesIO()
    header = image.header.copy()
    header["magic"] = header.single_magic
    header.set_slope_inter(1.0, 0.0)
    header.write_to(head)
    first, slab = 0, np.zeros((0, rows, columns), dtype=np.uint8)
    if part is not None:
        array, (i, j, first) = _placed(part, grid, like)
        slab = np.zeros((array.shape[2], rows, columns), dtype=np.uint8)
        slab[:, j : j + array.shape[1], i : i + array.shape[0]] = array.T
    content = gzip_of(head.getvalue(), rows * columns, first, slab.tobytes(), planes - first - len(slab))
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def _placed(part: Volume, grid: Geometry, like: Path | None) -> tuple[NDArray[np.uint8], tuple[int, int, int]]:
    """Return a part of a grid along the axes of a file, and its first voxel there."""
    axes: Sequence[int] = (2, 1, 0)
    if like is not None:
        permuted, grid = stated_grid(like, _open(like))
        axes = [int(axis) for axis in np.argsort(permuted)]
        part = part.reordered(*part.geometry.axes_to(grid))
    start = np.rint(grid.to_index(part.geometry.origin_mm)).astype(int)
    i, j, k = (int(start[axis]) for axis in axes)
    return part.array.astype(np.uint8, copy=False).transpose(axes), (i, j, k)


def _image(volume: Volume, like: Path | None, packed: bool = True) -> nib.Nifti1Image:
    """Return a volume as nibabel holds it, see `write_nifti`; unless it is to be packed, without a copy."""
    pack = np.ascontiguousarray if packed else np.asarray
    array = volume.array.astype(np.uint8) if volume.array.dtype == bool else volume.array
    if like is None:
        affine = RAS_TO_LPS @ volume.geometry.affine[:, [2, 1, 0, 3]]
        # The file holds columns fastest, as the array does: its transpose needs no copy in another order.
        image = nib.Nifti1Image(pack(array).transpose(2, 1, 0), affine)
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)
        if (
            not _form_gap_mm(image, image.get_qform()) <= FORM_TOLERANCE_MM
        ):  # axes as rounded in another file; a qform is strict
            image.header["qform_code"] = 0
    else:
        source = _open(like)
        axes, geometry = stated_grid(like, source)
        stored = volume.with_array(array).reordered_like(geometry).array.transpose(np.argsort(axes))
        image = nib.Nifti1Image(pack(stored), source.affine)
        image.header.set_xyzt_units("mm")
        image.set_sform(source.get_sform(), code=int(source.header["sform_code"]))
        image.set_qform(_stored_qform(source), code=int(source.header["qform_code"]))
    return image


def _stored_qform(image: Any) -> FloatArray:
    """Return the qform that a header holds; the place that counts where it holds none.

    What is stored beside a code of 0 says nothing, so it may be anything, and no rotation at all.
    """
    try:
        with _silent():
            qform: FloatArray = np.asarray(image.get_qform(), dtype=np.float64)
    except (ValueError, nib.spatialimages.HeaderDataError):
        qform = np.full((4, 4), np.nan)
    return qform if np.isfinite(qform).all() else np.asarray(image.affine, dtype=np.float64)


def _open(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    _check_packing(path)
    try:
        with _silent():
            image = nib.load(path)
    except (
        nib.filebasedimages.ImageFileError,
        nib.spatialimages.HeaderDataError,
        OSError,
        EOFError,
    ) as error:
        raise InputError(f"{path}: not a readable NIfTI file ({_one_line(error)})") from error
    except (zlib.error, ValueError, OverflowError) as error:
        raise InputError(f"{path}: the file is damaged ({_one_line(error)}); copy or export it again") from error
    if not isinstance(image, nib.Nifti1Image | nib.Nifti1Pair):
        raise InputError(f"{path}: is {type(image).__name__}, expected NIfTI")
    return image


#: The first field of NIfTI-1 and NIfTI-2, in either byte order.
HEADER_SIZES = tuple(size.to_bytes(4, order) for size in (348, 540) for order in ("little", "big"))


def _check_packing(path: Path) -> None:
    """Refuse a file that is compressed and not named so, or the other way round: no library reads it."""
    try:
        with path.open("rb") as handle:
            beginning = handle.read(4)
    except OSError:
        return  # whoever reads it says what is wrong
    packed, named = beginning.startswith(b"\x1f\x8b"), path.name.lower().endswith(".gz")
    if packed and not named:
        raise InputError(f"{path}: is compressed with gzip, but not named so; rename it to {path.name}.gz")
    if named and beginning in HEADER_SIZES:
        raise InputError(f"{path}: is not compressed with gzip as its name says; remove .gz from its name")


def _voxels(path: Path, image: Any) -> NDArray[Any]:
    """Return the voxels in the file's own order of axes.

    Read here and not by nibabel, which holds a scan twice or more while it scales it.
    """
    stored, shape = image.dataobj, image.shape[:3]
    dtype, slope, inter = stored.dtype, float(stored.slope), float(stored.inter)
    scaled = (slope, inter) != (1.0, 0.0)
    check_size(path, shape, dtype, scaled)
    scale = partial(apply_read_scaling, slope=slope, inter=inter) if scaled else None
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as handle:
            handle.seek(stored.offset)
            values, found = gather(_pieces(handle), shape, dtype, scale)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise InputError(
            f"{path}: the file is truncated or damaged ({_one_line(error)}); copy or export it again"
        ) from error
    wanted = values.size * dtype.itemsize
    if found < wanted:
        raise InputError(
            f"{path}: the file is truncated: it holds {found} bytes of voxels, expected {wanted}; "
            "copy or export it again"
        )
    return values


def _pieces(handle: BinaryIO | gzip.GzipFile) -> Iterator[bytes]:
    while piece := handle.read(PIECE_BYTES):
        yield piece


@contextmanager
def _silent() -> Iterator[None]:
    """Keep nibabel from printing what it mends in a header; what matters of that is looked at here."""
    logger = nib.imageglobals.logger
    logger.addFilter(_nothing)
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        logger.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def stated_grid(path: Path | str, image: Any) -> tuple[tuple[int, int, int], Geometry]:
    """Return the permutation of a NIfTI image's axes to [slice, row, column], and the grid after it.

    Args:
        path: of the file, or what to call the image in messages.
        image: as nibabel holds it; its voxels are not read.

    Raises:
        InputError: as `read_nifti`, of all that a header states.
    """
    shape = image.shape
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise InputError(
            f"{path}: has {len(shape)} dimensions {tuple(shape)}; expected one three-dimensional scan. "
            "Split a series of volumes into files first"
        )
    header = image.header
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    if sform <= 0 and qform <= 0:
        raise InputError(
            f"{path}: states no orientation (sform_code and qform_code are 0): left and right are unknown; "
            "convert it again from DICOM, or set the sform"
        )
    stated = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(stated).all():
        raise InputError(f"{path}: its orientation is not finite; convert it again from DICOM")
    placed = axes_and_grid(path, (int(shape[0]), int(shape[1]), int(shape[2])), RAS_TO_LPS @ stated)
    if sform > 0 and qform > 0:
        _check_forms_agree(path, image)
    return placed


def _form_gap_mm(image: Any, qform: FloatArray) -> float:
    """Return how far apart sform and qform put a corner of the image."""
    corners: NDArray[np.float64] = np.array(
        [[i, j, k, 1.0] for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    ) * np.array([*(np.asarray(image.shape[:3]) - 1), 1])
    return float(np.abs(corners @ (image.affine - qform).T).max())


def _check_forms_agree(path: Path | str, image: Any) -> None:
    try:
        with _silent():
            qform: FloatArray = np.asarray(image.get_qform(), dtype=np.float64)
    except (ValueError, nib.spatialimages.HeaderDataError) as error:
        raise InputError(f"{path}: its qform is broken ({error}); set the qform from the sform") from error
    if not np.isfinite(qform).all():
        raise InputError(f"{path}: its qform is not finite; set the qform from the sform")
    gap = _form_gap_mm(image, qform)
    if not gap <= FORM_TOLERANCE_MM:
        raise InputError(
            f"{path}: its sform and qform put voxels up to {unlike_limits(gap, FORM_TOLERANCE_MM)} mm apart, "
            "so programs will disagree on where it lies; make them equal"
        )
