"""Segmentations of 3D Slicer (`NAME.seg.nrrd`): a label map whose header names each value.

Slicer numbers the segments of each file by their order there, so a value says nothing without its name. It writes
only the box that holds the segments: outside it there is none.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from metricunet.errors import InputError
from metricunet.files.itk import read_itk_labels
from metricunet.files.itk_header import LONGEST_HEADER
from metricunet.files.scan import case_name, read_labels
from metricunet.volume import SAME_GRID_TOLERANCE_MM, Geometry, Volume

SUFFIX = ".seg.nrrd"
#: Of the value of a segment.
MOST_DIGITS = 9
_FIELD = re.compile(r"Segment(\d+)_(Name|LabelValue|Layer):=(.*)")
#: Of a file with several layers; the first size is their number.
_LAYERS = re.compile(r"sizes:\s*(\d{1,9})(?:\s+\d+){3}")


def is_segmentation(path: Path) -> bool:
    """Tell by its name whether a file is a segmentation of 3D Slicer."""
    return path.name.lower().endswith(SUFFIX)


def map_name(path: Path) -> str:
    """Return the name of a label map's file, whatever its format, without what says its kind."""
    name = case_name(path)
    return name.removesuffix(Path(name).suffix) if is_segmentation(path) else name  # .seg, in any capitals


def stated_names(path: Path) -> dict[str, int]:
    """Return the name and value of each structure that a label map's own header states; none where it states none.

    Raises:
        InputError: as `segments`.
    """
    return segments(path) if is_segmentation(path) else {}


def read_map(path: Path, geometry: Geometry | None = None) -> Volume:
    """Read a label map of whatever format.

    Args:
        path: the file.
        geometry: the scan's grid, on which a segmentation is read, see `read_segmentation`; None where no grid is
            known but the file's own.

    Raises:
        InputError: as `read_labels` and `read_segmentation`.
    """
    if not is_segmentation(path):
        return read_labels(path)
    return read_segmentation(path, read_itk_labels(path).geometry if geometry is None else geometry)


def segments(path: Path) -> dict[str, int]:
    """Return the name and value of each segment that the header states; none where it states none.

    Raises:
        InputError: the file cannot be read, its segments overlap, two share a name or a value, or a value is no
            whole number from 1 on.
    """
    values: dict[str, int] = {}
    for number, fields in _one_layer(path).items():
        text = fields.get("LabelValue", "")
        if not text.isdecimal() or len(text) > MOST_DIGITS or int(text) == 0:  # 0 is what lies in no segment
            raise InputError(
                f"{path}: Segment{number}_LabelValue is '{text[:80]}', expected a whole number from 1 on; save it "
                "again in Slicer"
            )
        name, value = fields.get("Name", "") or text, int(text)
        if name in values or value in values.values():
            raise InputError(
                f"{path}: two segments share the name {name} or the value {value}; rename or merge one in Slicer, "
                "and save it again"
            )
        values[name] = value
    return values


def _one_layer(path: Path) -> dict[str, dict[str, str]]:
    """Return what the header states of each segment, by its number.

    Raises:
        InputError: the file cannot be read, or its segments lie in several layers.
    """
    try:
        with path.open("rb") as handle:
            header = handle.read(LONGEST_HEADER).partition(b"\n\n")[0]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    stated: dict[str, dict[str, str]] = {}
    layers = 1
    for line in header.decode("utf-8", "replace").splitlines():
        if (found := _FIELD.fullmatch(line.strip())) is not None:
            stated.setdefault(found[1], {})[found[2]] = found[3].strip()
        elif (sizes := _LAYERS.fullmatch(line.strip())) is not None:
            layers = int(sizes[1])
    layers = max(layers, len({fields["Layer"] for fields in stated.values() if "Layer" in fields}))
    if layers > 1:
        # Values begin anew in each layer, so that two segments of one value are no fault of theirs.
        raise InputError(
            f"{path}: its segments lie in {layers} layers, as Slicer keeps those that overlap, and a voxel of a "
            "label map has one value; collapse the layers in Slicer's module Segmentations (Binary labelmap "
            "layers, Force collapse to single layer), and save it again"
        )
    return stated


def read_segmentation(path: Path, geometry: Geometry) -> Volume:
    """Read a segmentation on the grid of its scan, with 0 outside the box that the file holds.

    Args:
        path: the file.
        geometry: the scan's grid.

    Returns:
        Labels in the axis order of the scan; in their own where the box is no part of the scan's grid.

    Raises:
        InputError: as `read_itk_labels`, or its segments overlap.
    """
    _one_layer(path)
    labels = read_itk_labels(path)
    labels = labels.reordered(*labels.geometry.axes_to(geometry))
    start = np.rint(geometry.to_index(labels.geometry.origin_mm)).astype(int)
    shape = np.asarray(labels.geometry.shape)
    inside = bool((start >= 0).all() and (start + shape <= geometry.shape).all())
    if (
        not inside
        or geometry.crop(start.tolist(), shape.tolist()).gap_mm(labels.geometry) > SAME_GRID_TOLERANCE_MM
    ):
        return labels
    return Volume(np.zeros(geometry.shape, dtype=labels.array.dtype), geometry).paste(labels.array, start.tolist())
