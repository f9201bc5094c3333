"""Pixels of a checked CT series: decoded, and rescaled to Hounsfield units."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from metricunet.errors import InputError
from metricunet.files.dicom_header import DAMAGE, SliceHeader, one_line

#: Reading and converting overlap in threads; the decoders themselves hold the interpreter's lock or bring
#: threads of their own, so more than a few gain nothing.
MOST_THREADS = 4


def read_hu(slices: tuple[SliceHeader, ...]) -> NDArray[Any]:
    """Decode slices that share one matrix and one pixel format.

    Returns:
        HU [slice, row, column]: int16 where every slope and intercept is whole and every value fits, float32
        otherwise.

    Raises:
        InputError: a slice that cannot be decoded, named.
    """
    first = slices[0]
    signed = first.bits[2] == 1
    stored = np.empty((len(slices), first.rows, first.columns), dtype=np.int16 if signed else np.uint16)

    def decode(index: int) -> None:
        stored[index] = _stored_pixels(slices[index], stored.shape[1:])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # surplus padding after the pixels and the like
        with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
            # The list is for the first error to surface.
            list(pool.map(decode, range(len(slices))))
    return _rescaled(stored, slices)


def _stored_pixels(header: SliceHeader, shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        dataset = pydicom.dcmread(header.path)
        dataset.pixel_array_options(raw=True)
        pixels: NDArray[Any] = dataset.pixel_array
    except (*DAMAGE, AttributeError, RuntimeError, MemoryError) as error:
        raise InputError(f"{header.place}: {_reason(header.path, error)}") from error
    if pixels.shape != shape:
        raise InputError(f"{header.place}: the picture is {pixels.shape}, expected {shape}; export it again")
    return pixels


def _reason(path: Path, error: BaseException) -> str:
    if not path.is_file():
        return "the file has gone since the series was looked at; run again"
    detail = one_line(error)
    return f"its pixels cannot be decoded, so it is truncated or damaged ({detail}); copy or export it again"


def _rescaled(stored: NDArray[Any], slices: tuple[SliceHeader, ...]) -> NDArray[Any]:
    slopes = np.array([s.slope for s in slices])
    intercepts = np.array([s.intercept for s in slices])
    low = np.array([int(plane.min()) for plane in stored]) * slopes + intercepts
    high = np.array([int(plane.max()) for plane in stored]) * slopes + intercepts
    limits = np.iinfo(np.int16)
    whole = bool(np.all(slopes == np.rint(slopes)) and np.all(intercepts == np.rint(intercepts)))
    if whole and low.min() >= limits.min and high.max() <= limits.max:
        # The stored array is reused: a slice is read before its place is written.
        hu = stored.view(np.int16)
        for k, plane in enumerate(stored):
            hu[k] = plane.astype(np.int32) * int(slopes[k]) + int(intercepts[k])
        return hu
    result = np.empty(stored.shape, dtype=np.float32)
    for k, plane in enumerate(stored):
        result[k] = plane * slopes[k] + intercepts[k]
    return result
