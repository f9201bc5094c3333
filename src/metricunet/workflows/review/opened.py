"""A case that is open for review: its scan and its masks on one grid, cut and packed for the browser.

The browser's arrays run to the patient's right, front and head, the first fastest: the order in which NIfTI files
are shown. Structures have the numbers 1, 2, ... there, whatever their values in label maps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from metricunet.cohort.names import standard_name
from metricunet.errors import InputError, argument
from metricunet.files.dicom.series import CtSeries
from metricunet.files.nifti import RAS_TO_LPS, read_labels
from metricunet.files.record import hash_if_readable
from metricunet.files.reviews import QUALITY_SUFFIX, Review
from metricunet.files.rtstruct.read import read_rtstruct
from metricunet.files.seg.read import read_seg
from metricunet.inference.case_files import SUFFIXES
from metricunet.inference.inputs import ScanInput
from metricunet.inference.page.shown import Field, around, as_shown, whole_hu
from metricunet.volume import Geometry, Volume
from metricunet.workflows.review.folder import PredictedCase

#: The scan is shown this far around the structures, unless all of it is asked for.
AROUND_MM = 50.0
#: Numbers of structures in the browser fit into a byte.
MOST_STRUCTURES = 250
#: A volume in `quality.json` is rounded to this.
VOLUME_ROUNDING_ML = 0.01
#: Hex digits that identify a prediction among those of a case.
PREDICTION_DIGITS = 24

Classes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class OpenedCase:
    """A case with its scan and its predicted mask.

    Attributes:
        case: what was said of it.
        source: the scan's files.
        scan: HU, in the browser's order.
        stored: the scan's grid in its own order of axes.
        labels: structure to its value in label maps; its number in the browser is its place here, from 1.
        predicted: numbers of structures, in the browser's order; all 0 where nothing was found.
        notes: what the reviewer ought to know of the files.
        mask_sha256: of the file that the predicted mask was read from; None where there is none.
        prediction: identifies the prediction by the bytes of its `quality.json` and of that mask's file, so that a
            decision is taken for no other one.
    """

    case: PredictedCase
    source: ScanInput
    scan: Volume
    stored: Geometry
    labels: Mapping[str, int]
    predicted: Classes
    notes: tuple[str, ...]
    mask_sha256: str | None
    prediction: str

    @property
    def grid(self) -> Geometry:
        """The scan's grid in the browser's order."""
        return self.scan.geometry

    def classes(self, review: Review | None) -> Classes:
        """Return the mask of a review, or the predicted one, as numbers of structures.

        Raises:
            InputError: the review is of another scan, or its file was changed or is not on the scan's grid.
        """
        if review is None or review.mask is None:
            return self.predicted
        if self.case.is_another_scan_than(review):
            raise InputError(
                f"{review.path}: is a review of another scan that had this name (its SHA-256 differs); look at "
                "the prediction"
            )
        if not review.is_whole():
            raise InputError(
                f"{review.path}: its files were changed since they were written; look at another review"
            )
        read = read_labels(review.mask)
        mask = _on_grid(read.array, read.geometry, self.grid, str(review.mask), "look at the prediction")
        numbers = {review.labels[name]: k for k, name in enumerate(self.labels, start=1) if name in review.labels}
        return _as_numbers(mask, numbers)

    def label_map(self, classes: Classes) -> Volume:
        """Return numbers of structures as the values of a label map, on the browser's grid."""
        values = np.array([0, *self.labels.values()])
        kind = np.uint8 if values.max() <= np.iinfo(np.uint8).max else np.uint16
        return Volume(values.astype(kind)[classes], self.grid)

    def whole(self) -> Field:
        """Return the field of all of the scan."""
        return Field((0, 0, 0), self.grid.shape)

    def near(self, classes: Classes) -> Field:
        """Return the field around the structures; all of the scan where there are none."""
        box = next(iter(ndimage.find_objects((classes > 0).astype(np.uint8))), None)
        if box is None:
            return self.whole()
        return around(box, self.grid, AROUND_MM)

    def field(self, start: Sequence[int], shape: Sequence[int]) -> Field:
        """Return a field that somebody asks for.

        Raises:
            InputError: it is not within the scan.
        """
        inside = len(start) == len(shape) == 3 and all(
            first >= 0 and n > 0 and first + n <= total
            for first, n, total in zip(start, shape, self.grid.shape, strict=True)
        )
        if not inside:
            raise InputError(
                f"the field {list(start)} + {list(shape)} is not within the scan {list(self.grid.shape)}"
            )
        return Field((start[0], start[1], start[2]), (shape[0], shape[1], shape[2]))

    def nifti(self, field: Field) -> bytes:
        """Return the scan in a field as a NIfTI file: whole HU, int16."""
        array = whole_hu(self.scan.array[field.slices])
        geometry = self.grid.crop(field.start, field.shape)
        affine = RAS_TO_LPS @ geometry.affine[:, [2, 1, 0, 3]]
        image = nib.Nifti1Image(array.transpose(2, 1, 0), affine)
        return bytes(image.to_bytes())

    def ranked_slices(self) -> list[dict[str, Any]]:
        """Return the slices that an error is stated for: `slice`, `z_mm` and `expected_error_mm`."""
        middle = (np.asarray(self.grid.shape) - 1) / 2
        index = [(k, middle[1], middle[2]) for k in range(self.grid.shape[0])]
        heights = self.grid.to_world(index)[:, 2]
        return [
            {"slice": int(np.abs(heights - z).argmin()), "z_mm": z, "expected_error_mm": mm}
            for z, mm in self.case.slices_mm
        ]


def open_case(case: PredictedCase, source: ScanInput) -> OpenedCase:
    """Read the scan and the masks of a case.

    Raises:
        InputError: a file that cannot be read, or a mask that is not on the scan's grid.
    """
    scan = source.read()
    view = as_shown(scan)
    files = case.mask_files
    digest = hash_if_readable(files[0]) if files else None
    labels, predicted = _predicted(case, source, view.geometry)
    notes: tuple[str, ...] = ()
    if files and case.stated.get(files[0].name, digest) != digest:
        notes = (f"{files[0].name} was changed since it was predicted",)
    if len(labels) > MOST_STRUCTURES:
        raise InputError(f"case {case.name}: has {len(labels)} structures, at most {MOST_STRUCTURES} can be shown")
    stated = hash_if_readable(case.folder / f"{case.name}{QUALITY_SUFFIX}")
    prediction = hashlib.sha256(f"{stated} {digest}".encode()).hexdigest()[:PREDICTION_DIGITS]
    return OpenedCase(case, source, view, scan.geometry, labels, predicted, notes, digest, prediction)


def _on_grid(
    array: NDArray[Any], geometry: Geometry, grid: Geometry, name: str, advice: str = "predict the case again"
) -> NDArray[Any]:
    try:
        return Volume(array, geometry).reordered_like(grid).array
    except InputError as error:
        raise InputError(f"{name}: is not on the grid of the scan; {advice}") from error


def _as_numbers(values: NDArray[Any], numbers: Mapping[int, int]) -> Classes:
    table = np.zeros(max(int(values.max()), *numbers, 0) + 1, dtype=np.uint8)
    for value, number in numbers.items():
        table[value] = number
    return np.ascontiguousarray(table[values])


def _predicted(case: PredictedCase, source: ScanInput, grid: Geometry) -> tuple[dict[str, int], Classes]:
    """Return structures and numbers of the mask that was predicted, from whichever file there is."""
    files = case.mask_files
    if not files:
        return dict(case.labels) or {"prostate": 1}, np.zeros(grid.shape, dtype=np.uint8)
    path = files[0]
    if path.name.endswith(SUFFIXES["nifti"]):
        read = read_labels(path)
        values = _on_grid(read.array, read.geometry, grid, str(path))
        labels = _complete_labels(case, values, grid)
        return labels, _as_numbers(values, {v: k for k, v in enumerate(labels.values(), start=1)})
    if source.series is None:
        raise InputError(f"{path}: refers to a DICOM series, and the scan at {source.path} is none")
    _check_whole(path, source.series)
    if path.name.endswith(SUFFIXES["rtstruct"]):
        filled = read_rtstruct(path, source.series).masks(source.series.geometry)
        found = {entry.name: entry.mask for entry in filled if entry.mask is not None}
    else:
        found = read_seg(path, source.series)
    # A structure set that was added to has structures of others, too: they are none of the prediction.
    masks = {name: mask for written, mask in found.items() if (name := _named(case, written))}
    labels = dict(case.labels) or {name: k for k, name in enumerate(case.structures, start=1)} or {"prostate": 1}
    classes = np.zeros(grid.shape, dtype=np.uint8)
    for k, name in enumerate(labels, start=1):
        if name in masks:
            classes[_on_grid(masks[name].array, masks[name].geometry, grid, str(path)) != 0] = k
    return labels, classes


def _check_whole(path: Path, series: CtSeries) -> None:
    """Refuse contours of a scan with planes that were filled in: they say nothing of what was predicted there.

    Raises:
        InputError: naming the file.
    """
    planes = series.geometry.shape[0]
    filled_in = planes - len(np.unique(series.on_slices(np.arange(planes))))
    if filled_in:
        raise InputError(
            f"{path}: says nothing of {filled_in} of the scan's {planes} planes, which were filled in between its "
            "slices, so the mask that was predicted is not whole in it; predict the case again with "
            f"{argument('formats', ['nifti'])}"
        )


def _named(case: PredictedCase, written: str) -> str | None:
    """Return which structure of the prediction a name in a DICOM file stands for, if any."""
    for name, said in case.structures.items():
        drawn = said.get("contours")
        if isinstance(drawn, dict):
            if drawn.get("name") == written:
                return name
        elif standard_name(name, case.tg263) == written.partition("^")[0]:
            return name
    return None


def _complete_labels(case: PredictedCase, values: NDArray[Any], grid: Geometry) -> dict[str, int]:
    """Return a name for each value of a label map; where the prediction states none, by the volumes it states."""
    labels = dict(case.labels)
    largest = int(values.max())
    counts = np.zeros(largest + 1, dtype=np.int64)
    for plane in values:  # counted at once, the values of a large scan would be held as integers of 8 bytes
        counts += np.bincount(plane.ravel(), minlength=largest + 1)
    for value in np.flatnonzero(counts[1:]) + 1:
        if int(value) in labels.values():
            continue
        volume_ml = float(counts[value] * grid.voxel_volume_ml)
        fitting = [
            name
            for name, said in case.structures.items()
            if name not in labels and _is_near(said.get("volume_ml"), volume_ml)
        ]
        labels[fitting[0] if len(fitting) == 1 else f"label {value}"] = int(value)
    return labels or {"prostate": 1}


def _is_near(stated: object, volume_ml: float) -> bool:
    return isinstance(stated, int | float) and abs(stated - volume_ml) <= VOLUME_ROUNDING_ML
