"""Pixels of a checked CT series: decoded, and rescaled to Hounsfield units."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError

from metricunet.errors import InputError
from metricunet.files.dicom.codestream import has_codestreams
from metricunet.files.dicom.decode import decode_in_processes, frames_apart, stored_frames
from metricunet.files.dicom.file import read_meta
from metricunet.files.dicom.header import DAMAGE, one_line
from metricunet.files.dicom.slice import SliceHeader
from metricunet.files.voxels import check_size
from metricunet.hu import HIGHEST_HU, PADDING_HU

#: Threads that read slices here.
MOST_THREADS = 4
#: Processes that decode compressed slices. The decoders bring threads of their own.
MOST_PROCESSES = 4
#: Fewer compressed slices than this are decoded by one process before another would have started.
FEWEST_FOR_PROCESSES = 32


def read_hu(slices: tuple[SliceHeader, ...]) -> NDArray[Any]:
    """Decode slices that share one matrix and one pixel format.

    Returns:
        HU [slice, row, column]: int16 where every slope and intercept is whole and every value fits, float32
        otherwise. Padding that the files state, and that would lie above all Hounsfield units, is air.

    Raises:
        InputError: a slice that cannot be decoded, named; padding of that kind that no file states; more voxels
            than are read, of the type that they have.
    """
    first = slices[0]
    signed = first.bits[2] == 1
    # Whole numbers fit in int16 nearly always; where they do not, it shows when they are decoded.
    _check_size(slices, np.int16 if _has_whole_hu(slices) else np.float32)
    stored = np.empty((len(slices), first.rows, first.columns), dtype=np.int16 if signed else np.uint16)

    files: dict[Path, list[int]] = {}
    for index, header in enumerate(slices):
        files.setdefault(header.path, []).append(index)
    left = list(files.values())
    many = sum(s.compressed for s in slices) >= FEWEST_FOR_PROCESSES
    if len(left) == len(slices) and (many or _needs_process(first)):
        processes = min(MOST_PROCESSES, os.cpu_count() or 1) if many else 1
        left = [[k] for k in decode_in_processes([s.path for s in slices], stored, processes)]

    def decode(indices: list[int]) -> None:
        _decode_file([slices[k] for k in indices], indices, stored)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # surplus padding after the pixels and the like
        with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
            # The list is for the first error to surface.
            list(pool.map(decode, left))
            for plane, header in zip(stored, slices, strict=True):
                _set_padding_to_air(plane, header)
            return _rescaled(stored, slices, pool)


def _needs_process(header: SliceHeader) -> bool:
    """Tell whether a slice goes through a decoder that damage may make end its process."""
    try:
        return header.compressed and has_codestreams(read_meta(header.path))
    except (*DAMAGE, InvalidDicomError):
        return False  # it has changed since it was looked at, and no decoder will get it


def _decode_file(headers: Sequence[SliceHeader], indices: Sequence[int], stored: NDArray[Any]) -> None:
    """Decode one file's slices, each to its place."""
    shape, done = stored.shape[1:], 0
    try:
        decoded = frames_apart if _needs_process(headers[0]) else stored_frames
        for pixels in decoded(headers[0].path, [s.frame for s in headers]):
            if pixels.shape != shape:
                raise InputError(
                    f"{headers[done].location}: the picture is {pixels.shape}, expected {shape}; export it again"
                )
            stored[indices[done]] = pixels
            done += 1
    except InputError:
        raise
    except (*DAMAGE, InvalidDicomError, RuntimeError, MemoryError) as error:
        at = headers[min(done, len(headers) - 1)]
        raise InputError(f"{at.location}: {_reason(at.path, error)}") from error


def _reason(path: Path, error: BaseException) -> str:
    if not path.is_file():
        return "the file has gone since the series was looked at; run again"
    detail = one_line(error)
    return f"its pixels cannot be decoded, so it is truncated or damaged ({detail}); copy or export it again"


def _set_padding_to_air(plane: NDArray[Any], header: SliceHeader) -> None:
    """Put air where a slice without sign holds padding that was meant to be negative, as 63536 for -2000.

    Padding below air stays as it is, since it is air to all that follows. So does what lies among Hounsfield
    units: files state 0 or 4095 that hold tissue and metal of these values.
    """
    if header.padding is None:
        return
    low, high = header.padding
    if low * header.slope + header.intercept <= HIGHEST_HU or int(plane.max()) < low:
        return
    air = round((PADDING_HU - header.intercept) / header.slope)
    limits = np.iinfo(plane.dtype)
    plane[(plane >= low) & (plane <= high)] = min(max(air, limits.min), limits.max)


def _check_padding_is_stated(stored: NDArray[Any], slices: tuple[SliceHeader, ...]) -> None:
    """Name the cause where all that lies above Hounsfield units is one value, negative if it had a sign.

    Raises:
        InputError: it is padding that no file states.
    """
    found: set[int] = set()
    count = 0
    for plane, header in zip(stored, slices, strict=True):
        above = plane[plane > (HIGHEST_HU - header.intercept) / header.slope]
        found |= {int(above.min()), int(above.max())} if above.size else set()
        count += above.size
        if len(found) > 1:
            return
    for value in found:
        if value >= 0x8000:
            first = slices[0]
            raise InputError(
                f"{first.path.parent}: {100 * count / stored.size:.2g} % of the voxels hold the stored value "
                f"{value}, which is {value * first.slope + first.intercept:g} HU. It stands for "
                f"{value - 0x10000}, the padding outside the scan circle, and PixelPaddingValue does not say so: "
                f"set PixelPaddingValue to {value} in the files, or export the series again without padding"
            )


def _has_whole_hu(slices: Sequence[SliceHeader]) -> bool:
    """Tell whether all that can be stored stands for a whole number of HU."""
    return all(s.slope.is_integer() and s.intercept.is_integer() for s in slices)


def _check_size(slices: Sequence[SliceHeader], held: type[np.int16] | type[np.float32]) -> None:
    first = slices[0]
    check_size(first.path, (len(slices), first.rows, first.columns), np.dtype(held))


def _rescaled(stored: NDArray[Any], slices: tuple[SliceHeader, ...], pool: ThreadPoolExecutor) -> NDArray[Any]:
    slopes = np.array([s.slope for s in slices])
    intercepts = np.array([s.intercept for s in slices])
    low = np.array(list(pool.map(lambda plane: int(plane.min()), stored))) * slopes + intercepts
    high = np.array(list(pool.map(lambda plane: int(plane.max()), stored))) * slopes + intercepts
    if float(high.max()) > HIGHEST_HU and stored.dtype == np.uint16:
        _check_padding_is_stated(stored, slices)
    limits = np.iinfo(np.int16)
    if _has_whole_hu(slices) and low.min() >= limits.min and high.max() <= limits.max:
        # In place, modulo 2^16: exact, because the results are known to fit, whatever the steps between do.
        hu = stored.view(np.int16)

        def rescale(index: int) -> None:
            hu[index] *= np.int64(slopes[index]).astype(np.int16)
            hu[index] += np.int64(intercepts[index]).astype(np.int16)

        list(pool.map(rescale, range(len(hu))))
        return hu
    _check_size(slices, np.float32)
    result = np.empty(stored.shape, dtype=np.float32)
    for k, plane in enumerate(stored):
        result[k] = plane * slopes[k] + intercepts[k]
    return result
