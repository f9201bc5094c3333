"""The evaluation of whole folders: every reference against its prediction, one case at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from metricunet.errors import InputError, told, without_frames
from metricunet.evaluation.cases import CasePair, Matching, RecordedQuality, match_cases, read_quality
from metricunet.evaluation.figures import Overlay, draw_overlay
from metricunet.evaluation.held_out import held_out_cases
from metricunet.evaluation.measures import NOTHING, align, crop_to_content, measure
from metricunet.evaluation.report import MAX_OVERLAYS, render_report, worst_first
from metricunet.evaluation.summary import CaseFault, CaseRow, Evaluation, cases_csv, summarise
from metricunet.files.atomic import write_json, write_text
from metricunet.files.own import OwnFiles
from metricunet.files.record import RunRecord, hash_if_readable
from metricunet.files.scan import read_labels, read_scan
from metricunet.progress import Progress
from metricunet.volume import Volume

COMMAND = "evaluate"
#: Of its own name, for the results may lie beside those of a prediction.
EVALUATION_RECORD = "evaluate.json"
OUTPUTS = ("cases.csv", "summary.json", "report.html")


def evaluate(
    predictions: Path,
    references: Path,
    output: Path,
    *,
    images: Path | None = None,
    write_card: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Compare predictions with references and write cases.csv, summary.json, report.html and evaluate.json.

    A reference without a prediction counts as missed, since the predictor writes no mask for a gland that it
    did not find. Structures are those of the dataset.json beside the references or one folder above; without
    one, label 1 is the prostate. A structure that was not contoured in a reference (contoured.json) has no
    measures there.

    A case that cannot be read or measured is among the evaluation's `faults` and in no number; the others are
    scored as they would be without it. A case whose picture cannot be drawn keeps its numbers.

    Args:
        predictions: a folder with CASE.nii.gz (and CASE.quality.json), or one such file.
        references: a folder with CASE.nii.gz, one such file, or a cohort in nnU-Net's raw layout.
        output: the folder to write to. Only files that an earlier evaluation wrote there are replaced.
        images: a folder with the scans, or one scan, for the report's pictures; see `match_cases`.
        write_card: model file that made the predictions, of which a copy is written to the output folder with the
            scores in its card; see `metricunet.evaluation.held_out` for what that takes.
        overwrite: whether files of others that have the outputs' names may be replaced; inputs never are.
        progress: called with the steps done and the steps in all; the last call says that all are done.

    Raises:
        InputError: nothing matches, no case can be scored (a file that cannot be read, a prediction on another
            grid than its reference, a voxel whose value names no structure), or an output would replace an input
            or a file that is not an earlier evaluation's; or the scores may not stand in the model's card. Nothing
            is written then.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file, expected a folder for the results; choose another folder")
    arguments = {
        "predictions": predictions,
        "references": references,
        "output": output,
        "images": images,
        "write_card": write_card,
        "overwrite": overwrite,
    }
    record = RunRecord(COMMAND, arguments)
    matching = match_cases(predictions, references, images)
    inputs = [*matching.files, *filter(None, [write_card])]
    own = OwnFiles(output, EVALUATION_RECORD, COMMAND, overwrite=overwrite, inputs=inputs)
    own.check(OUTPUTS)
    held_out = None if write_card is None else held_out_cases(write_card, matching, output, overwrite)
    steps = len(matching.pairs) + min(MAX_OVERLAYS, len(matching.pairs)) + 1
    rows: list[CaseRow] = []
    qualities: dict[str, RecordedQuality] = {}
    faults: list[CaseFault] = []
    for done, pair in enumerate(matching.pairs, start=1):
        try:
            quality, measured = read_quality(pair.quality), _measured(pair, matching)
        except Exception as error:  # whatever it is, it costs this case alone
            faults.append(CaseFault(pair.case, told(error), without_frames(error)))
        else:
            qualities[pair.case] = quality
            rows += measured
        if progress is not None:
            progress(done, steps)
    if not qualities:
        raise InputError(_nothing_scored(predictions, faults)) from faults[0].error
    evaluation = Evaluation(
        rows=tuple(rows),
        summary=summarise(rows),
        unpredicted=tuple(p.case for p in matching.pairs if p.prediction is None and p.case in qualities),
        unmatched=matching.unmatched,
        quality=qualities,
    )
    pair_of = {pair.case: pair for pair in matching.pairs}
    overlays: list[Overlay] = []
    for done, worst in enumerate(worst_first(evaluation)[:MAX_OVERLAYS], start=len(matching.pairs) + 1):
        try:
            overlays.append(_pictured(pair_of[worst.case], matching, worst.structure))
        except Exception as error:  # likewise
            faults.append(CaseFault(worst.case, told(error), without_frames(error), scored=True))
        if progress is not None:
            progress(done, steps)
    evaluation = replace(evaluation, faults=tuple(sorted(faults, key=lambda fault: fault.case)))
    scores = None if held_out is None else held_out.scores(evaluation)
    report = render_report(evaluation, overlays, predictions=predictions, references=references)
    record.facts = {
        "cases": len(evaluation.cases),
        "faults": [{"case": f.case, "scored": f.scored, "reason": f.reason} for f in evaluation.faults],
        "inputs": {str(path): hash_if_readable(path) for path in matching.files},
    }
    try:
        write_text(own.stage("cases.csv"), cases_csv(evaluation.rows))
        write_json(own.stage("summary.json"), {name: s.to_json() for name, s in evaluation.summary.items()})
        write_text(own.stage("report.html"), report)
        own.commit(record.content())
    except BaseException:
        own.discard()
        raise
    if held_out is not None and scores is not None:
        evaluation = replace(evaluation, model=held_out.write(scores))
    if progress is not None:
        progress(steps, steps)
    return evaluation


def _nothing_scored(predictions: Path, faults: Sequence[CaseFault]) -> str:
    if len(faults) == 1:
        return faults[0].reason
    return f"{predictions}: none of the {len(faults)} cases could be scored; {faults[0].case}: {faults[0].reason}"


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
    """Read both label maps; see `comparable`."""
    reference = read_labels(pair.reference)
    if pair.prediction is None:
        prediction = reference.with_array(np.zeros_like(reference.array))
    else:
        prediction = read_labels(pair.prediction)
    names = str(pair.prediction), str(pair.reference)
    return comparable(prediction, reference, set(matching.labels.values()), matching.ignore, names)


def comparable(
    prediction: Volume,
    reference: Volume,
    allowed: set[int],
    ignore: int | None = None,
    names: tuple[str, str] = ("the prediction", "the reference"),
) -> tuple[Volume, Volume]:
    """Return both label maps on the reference's grid, cut to what they hold; ignored voxels are background.

    Args:
        prediction: label map.
        reference: label map.
        allowed: values that name a structure.
        ignore: value of reference voxels that nobody contoured, or None.
        names: what to call the two in messages.

    Raises:
        InputError: two different grids, or a value that names no structure.
    """
    _check_values(names[1], reference, allowed | ({ignore} if ignore else set()))
    _check_values(names[0], prediction, allowed)
    prediction = align(prediction, reference, *names)
    prediction, reference = crop_to_content(prediction, reference)
    if ignore is not None:
        ignored = reference.array == ignore
        prediction = prediction.with_array(np.where(ignored, 0, prediction.array))
        reference = reference.with_array(np.where(ignored, 0, reference.array))
    return prediction, reference


def _check_values(path: str, labels: Volume, allowed: set[int]) -> None:
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
