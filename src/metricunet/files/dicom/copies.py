"""Slices that were exported twice: a copy counts once, and what only looks like a copy is kept to be refused."""

from __future__ import annotations

import filecmp
from collections.abc import Sequence
from dataclasses import fields
from itertools import groupby

import numpy as np

from metricunet.errors import InputError
from metricunet.files.dicom.pixels import read_hu
from metricunet.files.dicom.slice import SliceHeader

#: What may differ between two exports of one slice: where it lies, and how its pixels are packed.
MAY_DIFFER = ("path", "compressed", "bits", "slope", "intercept", "padding")
#: So many slices are decoded at once: one by one each would have its file read, and a process started, for itself.
AT_ONCE = 64

Pair = tuple[SliceHeader, SliceHeader]


def once_each(slices: Sequence[SliceHeader]) -> list[SliceHeader]:
    """Leave out slices that are copies of others: byte for byte, or equal in all that matters.

    Two slices at one place are copies if their headers state the same and their pixels have the same HU. All
    others are kept, for the checks that follow to refuse.

    Args:
        slices: the slices of one series.
    """
    kept: list[SliceHeader] = []
    alike: list[Pair] = []
    at: dict[tuple[float, ...], list[SliceHeader]] = {}
    for one in slices:
        here = at.setdefault(tuple(np.round(one.position_mm, 3).tolist()), [])
        others = [other for other in here if other.path != one.path]  # two frames of a file are two images
        if any(_is_same_file(one, other) for other in others):
            continue
        twin = next((other for other in others if _has_same_header(one, other)), None)
        if twin is None:
            here.append(one)
            kept.append(one)
        else:
            alike.append((one, twin))
    same = _have_same_hu(alike)
    return [*kept, *(one for (one, _), is_copy in zip(alike, same, strict=True) if not is_copy)]


def _is_same_file(one: SliceHeader, other: SliceHeader) -> bool:
    # What was compared is remembered: a file of many frames is asked for once for each of them.
    return filecmp.cmp(one.path, other.path, shallow=False)


def _has_same_header(one: SliceHeader, other: SliceHeader) -> bool:
    return all(
        np.array_equal(np.asarray(getattr(one, field.name)), np.asarray(getattr(other, field.name)))
        for field in fields(one)
        if field.name not in MAY_DIFFER
    )


def _have_same_hu(pairs: Sequence[Pair]) -> list[bool]:
    found: list[bool] = []
    for _, group in groupby(pairs, key=lambda pair: [one.bits for one in pair]):
        batch = list(group)  # slices that are decoded together have one format
        for first in range(0, len(batch), AT_ONCE):
            found += _compared(batch[first : first + AT_ONCE])
    return found


def _compared(pairs: Sequence[Pair]) -> list[bool]:
    try:
        ones, twins = (read_hu(side) for side in zip(*pairs, strict=True))
    except InputError:
        if len(pairs) > 1:
            return [same for pair in pairs for same in _compared([pair])]
        return [False]  # damaged pixels are named when the series is read
    return [np.array_equal(a, b) for a, b in zip(ones, twins, strict=True)]
