"""NRRD and MetaImage in: scans and label maps of 3D Slicer, ITK-SNAP, elastix, plastimatch and their like.

Read without ITK: its readers fill in what a header leaves out, and what is left out here is where the patient's
left side lies.
"""

from __future__ import annotations

import bz2
import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray

from metricunet.errors import InputError
from metricunet.files.itk_header import ItkHeader, read_meta_header, read_nrrd_header
from metricunet.files.voxels import PIECE_BYTES, axes_and_grid, check_size, gather, label_volume, scan_volume
from metricunet.volume import Volume

NRRD_SUFFIXES = (".nrrd", ".nhdr")
META_SUFFIXES = (".mha", ".mhd")
ITK_SUFFIXES = (*NRRD_SUFFIXES, *META_SUFFIXES)
#: Data are unpacked in pieces of this many packed bytes, so that a header that lies takes no memory.
PIECE = 1 << 16


def is_itk(path: Path) -> bool:
    """Tell by its name whether a path is an NRRD or MetaImage header (the data may lie beside it)."""
    return path.name.lower().endswith(ITK_SUFFIXES)


def read_itk(path: Path) -> Volume:
    """Read a scan, .nrrd, .nhdr, .mha or .mhd: int16 where its integers always fit, float32 otherwise.

    Axes are permuted (never flipped) so that the volume is indexed [slice, row, column].

    Raises:
        InputError: what `read_nrrd_header` and `read_meta_header` refuse, a sheared grid, data that are
            damaged or of another length than the header says, NaN or infinite values.
    """
    header = _header(path)
    axes, geometry = axes_and_grid(path, header.shape, header.affine)
    return scan_volume(path, _values(path, header).transpose(axes), geometry)


def read_itk_labels(path: Path) -> Volume:
    """Read a label map as uint8 (uint16 if a label is over 255).

    Raises:
        InputError: as `read_itk`, and for negative or fractional values.
    """
    return label_volume(path, read_itk(path))


def itk_files(path: Path) -> tuple[Path, ...]:
    """Return the files that hold a scan: the header's, and its data's where they lie beside it."""
    data = _header(path).data
    return (path,) if data == path else (path, data)


def _header(path: Path) -> ItkHeader:
    return read_nrrd_header(path) if path.name.lower().endswith(NRRD_SUFFIXES) else read_meta_header(path)


def _values(path: Path, header: ItkHeader) -> NDArray[Any]:
    """Return the voxels [fastest axis, ..., slowest axis]."""
    check_size(path, header.shape, header.dtype)
    wanted = header.dtype.itemsize * math.prod(header.shape)
    try:
        with header.data.open("rb") as handle:
            handle.seek(header.offset)
            pieces = _raw(handle, header, wanted) if header.compression == "none" else _unpacked(handle, header)
            values, found = gather(pieces, header.shape, header.dtype)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(
            f"{header.data}: the file is truncated or damaged ({error}); copy or export it again"
        ) from error
    if found != wanted:
        size = f"fewer than the {wanted}" if found < wanted else f"more than the {wanted}"
        raise InputError(
            f"{header.data}: holds {size} bytes of voxels that the header of {path.name} announces; "
            "the file is truncated or its header wrong, copy or export it again"
        )
    return values


def _raw(handle: BinaryIO, header: ItkHeader, wanted: int) -> Iterator[bytes]:
    start = handle.tell()
    size = handle.seek(0, 2)
    handle.seek(max(start, size - wanted) if header.skip == -1 else min(size, start + header.skip))
    while piece := handle.read(PIECE_BYTES):
        yield piece


def _unpacked(handle: BinaryIO, header: ItkHeader) -> Iterator[bytes]:
    skip = header.skip
    for piece in {"zlib": _inflated, "gzip": _gunzipped, "bzip2": _bunzipped}[header.compression](handle):
        if skip < len(piece):
            yield piece[skip:]
        skip = max(0, skip - len(piece))


def _inflated(handle: BinaryIO) -> Iterator[bytes]:
    decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    while not decompressor.eof and (packed := handle.read(PIECE)):
        yield decompressor.decompress(packed)
    if not decompressor.eof:
        raise EOFError("the compressed data end early")


def _gunzipped(handle: BinaryIO) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=handle) as packed:
        while piece := packed.read(PIECE):
            yield piece


def _bunzipped(handle: BinaryIO) -> Iterator[bytes]:
    with bz2.BZ2File(handle) as packed:
        while piece := packed.read(PIECE):
            yield piece
