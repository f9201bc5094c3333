"""The evaluation of whole folders: every reference against its prediction, one case at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from metricunet.errors import InputError
from metricunet.evaluation.cases import CasePair, Matching, match_cases, read_quality
from metricunet.evaluation.figures import Overlay, draw_overlay
from metricunet.evaluation.measures import NOTHING, align, crop_to_content, measure
from metricunet.evaluation.report import MAX_OVERLAYS, render_report, worst_first
from metricunet.evaluation.summary import CaseRow, Evaluation, cases_csv, summarise
from metricunet.files.atomic import write_json, write_text
from metricunet.files.scan import read_labels, read_scan
from metricunet.volume import Volume

Progress = Callable[[int, int], None]


def evaluate(
    predictions: Path,
    references: Path,
    output: Path,
    *,
    images: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Compare predictions with references and write cases.csv, summary.json and report.html.

    A reference without a prediction counts as missed, since the predictor writes no mask for a gland that it
    did not find. Structures are those of the dataset.json beside the references or one folder above; without
    one, label 1 is the prostate. A structure that was not contoured in a reference (contoured.json) has no
    measures there. Nothing is written unless every case could be read.

    Args:
        predictions: a folder with CASE.nii.gz (and CASE.quality.json), or one such file.
        references: a folder with CASE.nii.gz, one such file, or a cohort in nnU-Net's raw layout.
        output: the folder to write to.
        images: a folder with the scans, or one scan, for the report's pictures; see `match_cases`.
        progress: called with the steps done and the steps in all; the last call says that all are done.

    Raises:
        InputError: if nothing matches, a file cannot be read, a prediction lies on another grid than its
            reference, or a voxel holds a value that names no structure.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file, expected a folder for the results; choose another with -o")
    matching = match_cases(predictions, references, images)
    steps = len(matching.pairs) + min(MAX_OVERLAYS, len(matching.pairs)) + 1
    rows: list[CaseRow] = []
    for done, pair in enumerate(matching.pairs, start=1):
        rows += _measured(pair, matching)
        if progress is not None:
            progress(done, steps)
    evaluation = Evaluation(
        rows=tuple(rows),
        summary=summarise(rows),
        unpredicted=tuple(pair.case for pair in matching.pairs if pair.prediction is None),
        unmatched=matching.unmatched,
        quality={pair.case: read_quality(pair.quality) for pair in matching.pairs},
    )
    pair_of = {pair.case: pair for pair in matching.pairs}
    overlays: list[Overlay] = []
    for worst in worst_first(evaluation)[:MAX_OVERLAYS]:
        overlays.append(_pictured(pair_of[worst.case], matching, worst.structure))
        if progress is not None:
            progress(len(matching.pairs) + len(overlays), steps)
    report = render_report(evaluation, overlays, predictions=predictions, references=references)
    write_text(output / "cases.csv", cases_csv(evaluation.rows))
    write_json(output / "summary.json", {name: s.to_json() for name, s in evaluation.summary.items()})
    write_text(output / "report.html", report)
    if progress is not None:
        progress(steps, steps)
    return evaluation


def _measured(pair: CasePair, matching: Matching) -> list[CaseRow]:
    prediction, reference = _read(pair, matching)
    unknown = matching.not_contoured.get(pair.case, ())
    return [
        CaseRow(pair.case, structure, NOTHING, contoured=False)
        if structure in unknown
        else CaseRow(
            pair.case,
            structure,
            measure(
                prediction.with_array(prediction.array == value),
                reference.with_array(reference.array == value),
            ),
        )
        for structure, value in matching.labels.items()
    ]


def _pictured(pair: CasePair, matching: Matching, structure: str) -> Overlay:
    prediction, reference = _read(pair, matching)
    image = None if pair.image is None else read_scan(pair.image)
    return draw_overlay(pair.case, structure, matching.labels[structure], prediction, reference, image)


def _read(pair: CasePair, matching: Matching) -> tuple[Volume, Volume]:
    """Read both label maps on the reference's grid, cut to what they hold; ignored voxels are background."""
    reference = read_labels(pair.reference)
    allowed = set(matching.labels.values())
    _check_values(pair.reference, reference, allowed | ({matching.ignore} if matching.ignore else set()))
    if pair.prediction is None:
        prediction = reference.with_array(np.zeros_like(reference.array))
    else:
        prediction = read_labels(pair.prediction)
        _check_values(pair.prediction, prediction, allowed)
        prediction = align(prediction, reference, str(pair.prediction), str(pair.reference))
    prediction, reference = crop_to_content(prediction, reference)
    if matching.ignore is not None:
        ignored = reference.array == matching.ignore
        prediction = prediction.with_array(np.where(ignored, 0, prediction.array))
        reference = reference.with_array(np.where(ignored, 0, reference.array))
    return prediction, reference


def _check_values(path: Path, labels: Volume, allowed: set[int]) -> None:
    known = np.zeros(np.iinfo(labels.array.dtype).max + 1, dtype=bool)
    known[[0, *(v for v in allowed if v < len(known))]] = True
    strange = labels.array[~known[labels.array]]
    if strange.size:
        found = ", ".join(str(v) for v in np.unique(strange)[:5])
        raise InputError(
            f"{path}: holds the value {found}, which names no structure; expected 0 or "
            f"{', '.join(str(v) for v in sorted(allowed))}. Name all structures in the dataset.json beside the "
            "references"
        )
