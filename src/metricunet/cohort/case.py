"""Reading one case of a cohort and finding what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import ndimage

from metricunet.cohort.layout import Case, DatasetInfo
from metricunet.errors import InputError, unlike_limits
from metricunet.files.grids import difference
from metricunet.files.scan import read_labels, read_scan
from metricunet.hu import why_not_hu
from metricunet.volume import Volume

Severity = Literal["error", "warning"]

#: Scans outside these bounds are unlike any planning CT.
PLAUSIBLE_SPACING_MM = (0.3, 6.0)
#: A contour smaller than this is a slip of the pen.
SMALLEST_STRUCTURE_ML = 0.5


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. An error stops training; a warning is worth a look."""

    case: str
    severity: Severity
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.message}"


@dataclass(frozen=True)
class LabelledScan:
    """A scan in HU and its labels on the same grid."""

    image: Volume
    labels: Volume


def read_case(case: Case, info: DatasetInfo) -> LabelledScan:
    """Read image and labels of a training case, the labels in the order and direction of the image's axes.

    Raises:
        InputError: unreadable files, values that are no HU, two different grids, label values that dataset.json
            does not name, or a structure that is there although contoured.json says that it was not contoured.
    """
    scan = _read_case(case, info)
    refuse_no_hu(scan.image, case.image)
    return scan


def refuse_no_hu(image: Volume, source: Path | str) -> None:
    """Refuse a scan whose lowest or highest value cannot be in Hounsfield units.

    Args:
        image: the scan.
        source: where it was read from, as the message is to name it.

    Raises:
        InputError: the source, the value, and what was expected.
    """
    reason = why_not_hu(float(image.array.min()), float(image.array.max()))
    if reason is not None:
        raise InputError(f"{source}: {reason}")


def _read_case(case: Case, info: DatasetInfo) -> LabelledScan:
    """Read a case whatever its values are, for `check_case` has more to say of them; else as `read_case`."""
    if case.label is None:
        raise InputError(f"{case.image}: case {case.name} has no labels")
    image, labels = read_scan(case.image), read_labels(case.label)
    try:
        labels = labels.reordered_like(image.geometry)
    except InputError:
        raise InputError(
            f"{case.label}: labels on another grid than the image: "
            f"{difference(labels.geometry, image.geometry, case.image.name)}; resample the labels to the image "
            "(nearest neighbour)"
        ) from None
    known = {0, *info.labels.values()} | ({info.ignore} if info.ignore is not None else set())
    unknown = sorted(set(np.unique(labels.array).tolist()) - known)
    if unknown:
        raise InputError(
            f"{case.label}: label value {unknown[0]} is not in dataset.json, which names {sorted(known)}; "
            "correct the file or add the structure to dataset.json"
        )
    for name in case.not_contoured:
        if (labels.array == info.labels[name]).any():
            raise InputError(
                f"{case.label}: holds {name}, which contoured.json does not list for case {case.name}; add it"
            )
    return LabelledScan(image, labels)


def check_case(
    case: Case, info: DatasetInfo, warn: Callable[[Case, Volume], Iterable[str]] | None = None
) -> list[Problem]:
    """Return every problem of one case.

    Args:
        case: the case.
        info: what dataset.json says.
        warn: says what else is odd about its scan, once that is read: a warning each.
    """
    try:
        scan = None if case.label is None else _read_case(case, info)
        image = read_scan(case.image) if scan is None else scan.image
    except InputError as error:
        return [Problem(case.name, "error", str(error))]
    found = list(_image(image, case.image))
    if scan is not None and case.label is not None:
        found += _structures(scan, case.label, case, info)
    if warn is not None:
        found += ((False, message) for message in warn(case, image))
    return [Problem(case.name, "error" if serious else "warning", message) for serious, message in found]


def check_scan(path: Path) -> list[Problem]:
    """Return every problem of a scan in one file, without labels."""
    try:
        found = list(_image(read_scan(path), path))
    except InputError as error:
        return [Problem(path.name, "error", str(error))]
    return [Problem(path.name, "error" if serious else "warning", message) for serious, message in found]


def check_image(case: str, image: Volume, path: Path | str) -> list[Problem]:
    """Return every problem of a scan that was read from `path`, without labels."""
    return [Problem(case, "error" if serious else "warning", message) for serious, message in _image(image, path)]


def _image(image: Volume, path: Path | str) -> Iterator[tuple[bool, str]]:
    low, high = float(image.array.min()), float(image.array.max())
    if low == high:
        yield True, f"{path}: every voxel is {low:g}; the scan is empty"
    elif (reason := why_not_hu(low, high)) is not None:
        yield True, f"{path}: {reason}"
    smallest, largest = PLAUSIBLE_SPACING_MM
    for name, spacing in zip(("slice", "row", "column"), image.spacing_mm, strict=True):
        if not smallest <= spacing <= largest:
            yield (
                False,
                f"{path}: {name} spacing {unlike_limits(spacing, smallest, largest)} mm; expected {smallest} to "
                f"{largest} mm",
            )


def _structures(scan: LabelledScan, path: Path, case: Case, info: DatasetInfo) -> Iterator[tuple[bool, str]]:
    for name, value in info.labels.items():
        if name in case.not_contoured:
            yield (
                False,
                f"{path}: {name} is not contoured (contoured.json): neither learned nor scored in this case",
            )
            continue
        mask = scan.labels.array == value
        volume_ml = float(mask.sum()) * scan.labels.geometry.voxel_volume_ml
        if volume_ml == 0:
            message = f"{path}: {name} is absent; the case counts as one without {name}"
            yield False, f"{message}. If it was only not contoured, say so in contoured.json"
            continue
        if volume_ml < SMALLEST_STRUCTURE_ML:
            yield False, f"{path}: {name} has {volume_ml:.2f} mL; is this contour complete?"
        box = ndimage.find_objects(mask.astype(np.uint8))[0]
        for axis, side in ((0, "first or last slice"), (1, "front or back edge"), (2, "left or right edge")):
            if box[axis].start == 0 or box[axis].stop == mask.shape[axis]:
                yield False, f"{path}: {name} touches the {side} of the scan, so part of it may be missing"
        pieces, count = ndimage.label(mask[box])
        if count > 1:
            sizes = np.bincount(pieces.ravel())[1:] * scan.labels.geometry.voxel_volume_ml
            rest = float(sizes.sum() - sizes.max())
            yield False, f"{path}: {name} lies in {count} pieces, {rest:.2f} mL outside the largest"
        empty = _empty_slices_inside(mask[box])
        if empty:
            yield False, f"{path}: {name} is missing on {empty} slices between its first and its last"


def _empty_slices_inside(mask: np.ndarray) -> int:
    return int((~mask.any(axis=(1, 2))).sum())
