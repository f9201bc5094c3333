"""`evaluate`: a prediction against its reference, or folders of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, overload

import numpy as np

from metricunet.api.compared import ComparedSide, case_scan, compared_on_scan
from metricunet.api.model import Result
from metricunet.api.plain import in_one_line
from metricunet.cohort.importing.names_file import read_names
from metricunet.errors import InputError
from metricunet.evaluation.cases import DEFAULT_LABELS
from metricunet.evaluation.compare import comparable, in_terms_of, unnamed_by
from metricunet.evaluation.compare import evaluate as evaluate_files
from metricunet.evaluation.measures import Measures, measure
from metricunet.evaluation.naming import Naming, choose_tolerances
from metricunet.evaluation.summary import Evaluation
from metricunet.progress import Progress


@overload
def evaluate(
    prediction: object,
    reference: object,
    output: None = None,
    *,
    scan: object = None,
    names: str | os.PathLike[str] | None = None,
    tolerance_mm: float | None = None,
    tolerances_mm: Mapping[str, float] | None = None,
) -> dict[str, Measures]: ...


@overload
def evaluate(
    prediction: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    scan: str | os.PathLike[str] | None = None,
    names: str | os.PathLike[str] | None = None,
    tolerance_mm: float | None = None,
    tolerances_mm: Mapping[str, float] | None = None,
    images: str | os.PathLike[str] | None = None,
    write_card: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Evaluation: ...


@in_one_line
def evaluate(
    prediction: Any,
    reference: Any,
    output: str | os.PathLike[str] | None = None,
    *,
    scan: Any = None,
    names: str | os.PathLike[str] | None = None,
    tolerance_mm: float | None = None,
    tolerances_mm: Mapping[str, float] | None = None,
    images: str | os.PathLike[str] | None = None,
    write_card: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Measures] | Evaluation:
    """Measure a prediction against its reference; or, with `output`, whole folders, as `metricunet evaluate` does.

    Structures are those of the dataset.json beside the reference file or one folder above; without one, those of
    the result, or label 1 is the prostate. A `Result`, and a mask with the verdict that was written beside it
    (CASE.quality.json), is compared by the names of structures, in whatever spelling, and so is a segmentation of
    3D Slicer, by the names in its header; all else by label values. A
    structure that was not contoured in the reference (contoured.json) is left out.

    Where a side is a DICOM structure set or segmentation, both are compared by names: those of the names file that
    the reference has, else those that both sides have. What the reference has no contour of is left out, what the
    prediction has none of was missed.

    Args:
        prediction: This is a `Result`, or a label map: a file, a `Volume`, or an image of nibabel or SimpleITK; or
            the file of a structure set or segmentation. With `output` it is one such file, or a folder of them.
        reference: This is a label map on the same grid: a file, a `Volume`, or an image of nibabel or SimpleITK;
            or the file of a structure set or segmentation. With `output` it is one such file, a folder of them,
            or a cohort.
        output: The folder receives cases.csv, summary.json and report.html.
        scan: All is measured on the grid of this scan: a path or a `Scan`; with `output` a path of one or several.
            Structure sets and segmentations need their DICOM series; a `Result` of a series has it.
        names: This names file, as of an import, says which spellings of a name mean which structure.
        tolerance_mm: By so much a contour may be off in added path length and surface Dice; 2 by default.
        tolerances_mm: Structures of these names have a tolerance of their own.
        images: With `output`, the report's pictures show these scans: a folder of them, or one.
        write_card: With `output`, a copy of this model file, which made the predictions, is written into that
            folder with the scores in its card. It takes 20 or more scans of patients that no training has seen.
        overwrite: With `output`, files of others that have an output's name are replaced.
        progress: With `output`, it is called with the steps done and the steps in all.

    Returns:
        The measures of each structure; with `output` the rows and the summary of all cases.

    Raises:
        InputError: Something cannot be read, the two grids differ, a voxel names no structure, contours were drawn
            on another scan, or no structure has a name that both sides have.
    """
    if output is not None:
        if not isinstance(prediction, str | os.PathLike) or not isinstance(reference, str | os.PathLike):
            raise InputError("with output=, both must be paths; save the result, and evaluate its folder")
        if scan is not None and not isinstance(scan, str | os.PathLike):
            raise InputError(f"with output=, scan must be a path; got {type(scan).__name__}")
        return evaluate_files(
            Path(prediction),
            Path(reference),
            Path(output),
            scan=None if scan is None else Path(scan),
            names=None if names is None else Path(names),
            tolerance_mm=tolerance_mm,
            tolerances_mm=tolerances_mm,
            images=None if images is None else Path(images),
            write_card=None if write_card is None else Path(write_card),
            overwrite=overwrite,
            progress=progress,
        )
    if images is not None or write_card is not None or overwrite or progress is not None:
        raise InputError(
            "images, write_card, overwrite and progress are for the report of whole folders; give output="
        )
    naming = Naming(None if names is None else read_names(Path(names)))
    sides = ComparedSide.of(prediction, "the prediction"), ComparedSide.of(reference, "the reference")
    files = [side.file for side in sides if side.file is not None]
    if files or scan is not None or names is not None:
        if not files and names is None:
            naming = Naming(exact=True)
        return compared_on_scan(sides, case_scan(scan, prediction, files), naming, tolerance_mm, tolerances_mm)
    found, truth = sides
    labels, ignore, unknown = truth.maps(found.labels or DEFAULT_LABELS)
    # Each structure of the reference, and what the prediction calls it.
    shared = {name: name for name in labels}
    if found.labels is not None:
        named = {theirs: own for own, theirs in naming.counterparts(found.labels, labels).items()}
        shared = {name: named[name] for name in labels if name in named}
    if not shared:
        raise InputError(
            f"{truth.name}: holds {', '.join(labels)}, and the model segments {', '.join(found.labels or {})}; "
            "nothing can be compared"
        )
    drawn = truth.volume()
    predicted = found.volume(drawn.geometry)
    drawn = truth.volume(predicted.geometry) if truth.may_be_cut else drawn
    if isinstance(prediction, Result):
        masks = {name: prediction.mask(own).array for name, own in shared.items()}
        array = np.zeros(predicted.array.shape, dtype=np.uint16)
        for name in shared:
            array[masks[name]] = labels[name]
        predicted = predicted.with_array(array)
    else:  # the values of a predicted mask are the model's, whatever the references call them
        predicted, _ = in_terms_of(labels, predicted, found.own_labels)
    drawn, _ = in_terms_of(labels, drawn, truth.header_labels)
    unknown = (*unknown, *unnamed_by(truth.header_labels, labels))
    tolerances = choose_tolerances({n: n for n in shared}, Naming(exact=True), tolerance_mm, tolerances_mm)
    p, r = comparable(predicted, drawn, set(labels.values()), ignore, (found.name, truth.name))
    return {
        name: measure(
            p.with_array(p.array == labels[name]), r.with_array(r.array == labels[name]), tolerances[name]
        )
        for name in shared
        if name not in unknown
    }
