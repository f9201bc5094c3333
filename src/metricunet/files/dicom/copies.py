"""Slices that were exported twice: a copy counts once, and what only looks like a copy is kept to be refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from metricunet.errors import InputError
from metricunet.files.dicom.pixels import read_hu
from metricunet.files.dicom.slice import SliceHeader

#: What may differ between two exports of one slice: where it lies, and how its pixels are packed.
MAY_DIFFER = ("path", "compressed", "bits", "slope", "intercept", "padding")


def once_each(slices: Sequence[SliceHeader]) -> list[SliceHeader]:
    """Leave out slices that are copies of others: byte for byte, or equal in all that matters.

    Two slices at one place are copies if their headers state the same and their pixels have the same HU. All
    others are kept, for the checks that follow to refuse.

    Args:
        slices: the slices of one series.
    """
    kept: list[SliceHeader] = []
    at: dict[tuple[float, ...], list[SliceHeader]] = {}
    for one in slices:
        here = at.setdefault(tuple(np.round(one.position_mm, 3).tolist()), [])
        if not any(_is_copy(one, other) for other in here):
            here.append(one)
            kept.append(one)
    return kept


def _is_copy(one: SliceHeader, other: SliceHeader) -> bool:
    if one.path == other.path:
        return False  # two frames of a file are two images
    if one.path.stat().st_size == other.path.stat().st_size and one.path.read_bytes() == other.path.read_bytes():
        return True
    for field in fields(one):
        if field.name in MAY_DIFFER:
            continue
        if not np.array_equal(np.asarray(getattr(one, field.name)), np.asarray(getattr(other, field.name))):
            return False
    try:
        return bool(np.array_equal(read_hu((one,)), read_hu((other,))))
    except InputError:
        return False  # damaged pixels are named when the series is read
