"""Structures by name, their values in label files, and the classes that stand for them in the networks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Class of voxels that nobody contoured.
IGNORE_CLASS = 255
#: The highest label value that fits into a byte.
HIGHEST_OF_A_BYTE = 255


def class_of(structures: Iterable[str], name: str) -> int:
    """Return the networks' class of a structure: its position among the structures, from 1. The background is 0.

    Args:
        structures: names in their order, such as the keys of a card's or a cohort's `labels`.
        name: one of them.

    Raises:
        ValueError: no such structure.
    """
    return list(structures).index(name) + 1


def without(labels: Mapping[str, int], names: Iterable[str]) -> dict[str, int]:
    """Return the labels of all structures but those named, in their order."""
    left_out = set(names)
    return {name: value for name, value in labels.items() if name not in left_out}


def classes_of(values: NDArray[Any], labels: Mapping[str, int], ignore: int | None = None) -> NDArray[np.uint8]:
    """Map label values to the networks' classes.

    Args:
        values: label values of any shape, unsigned integers.
        labels: structure name to its value.
        ignore: value of voxels that nobody contoured, which get `IGNORE_CLASS`; None where there are none.

    Returns:
        The classes in the shape of `values`; a value that names no structure is background.
    """
    table = np.zeros(int(max(values.max(), *labels.values(), ignore or 0)) + 1, dtype=np.uint8)
    for k, value in enumerate(labels.values(), start=1):
        table[value] = k
    if ignore is not None:
        table[ignore] = IGNORE_CLASS
    return np.asarray(table[values], dtype=np.uint8)


def values_of(classes: NDArray[Any], labels: Mapping[str, int]) -> NDArray[Any]:
    """Map the networks' classes to label values: the other way round than `classes_of`.

    Args:
        classes: classes of any shape, integers, none of them `IGNORE_CLASS`.
        labels: structure name to its value.

    Returns:
        The values in the shape of `classes`: uint8, or uint16 where a structure's value does not fit into that.
    """
    kind = np.uint8 if max(labels.values()) <= HIGHEST_OF_A_BYTE else np.uint16
    return np.asarray(np.array([0, *labels.values()], dtype=kind)[classes])
