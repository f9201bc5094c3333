"""The evaluation of whole folders: every reference against its prediction, one case at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from metricunet.cohort.importing.names_file import read_names
from metricunet.errors import InputError, told, without_frames
from metricunet.evaluation.cases import (
    CasePair,
    LabelMaps,
    Matching,
    RecordedQuality,
    known_as,
    match_cases,
    own_labels,
    read_quality,
)
from metricunet.evaluation.contour_files import LabelSide, Side, open_side
from metricunet.evaluation.figures import Overlay, draw_overlay
from metricunet.evaluation.held_out import held_out_cases
from metricunet.evaluation.measures import ALL_DEFINITIONS, NOTHING, align, crop_to_content, measure, on_grid
from metricunet.evaluation.naming import Naming, choose_tolerances
from metricunet.evaluation.report import MAX_OVERLAYS, render_report, worst_first
from metricunet.evaluation.summary import (
    CONTOUR_COLUMNS,
    CaseFault,
    CaseRow,
    Evaluation,
    cases_csv,
    summarise,
)
from metricunet.files import slicer
from metricunet.files.atomic import write_json, write_text
from metricunet.files.claim import claimed
from metricunet.files.own import OwnFiles
from metricunet.files.record import RunRecord, hash_if_readable
from metricunet.files.reviews import QUALITY_SUFFIX
from metricunet.files.scan import read_scan
from metricunet.files.slicer import read_map
from metricunet.progress import Progress
from metricunet.volume import Geometry, Volume

COMMAND = "evaluate"
#: Of its own name, for the results may lie beside those of a prediction.
EVALUATION_RECORD = "evaluate.json"
OUTPUTS = ("cases.csv", "summary.json", "report.html")


def evaluate(
    predictions: Path,
    references: Path,
    output: Path,
    *,
    scan: Path | None = None,
    names: Path | None = None,
    tolerance_mm: float | None = None,
    tolerances_mm: Mapping[str, float] | None = None,
    images: Path | None = None,
    write_card: Path | None = None,
    overwrite: bool | None = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Compare predictions with references and write cases.csv, summary.json, report.html and evaluate.json.

    A reference without a prediction counts as missed, since the predictor writes no mask for a gland that it
    did not find. Structures are those of the dataset.json beside the references or one folder above; without
    one, label 1 is the prostate. A structure that was not contoured in a reference (contoured.json) has no
    measures there.

    Either side may be DICOM structure sets or segmentations; each goes onto the grid of its scan, and is measured
    as its mask. With a names file its structures are compared that some reference names, else those that both
    sides of some case name. A structure set tells only what was drawn: what a reference lacks, or has no contour
    of, was not contoured; what a prediction lacks was missed.

    A case that cannot be read or measured is among the evaluation's `faults` and in no number; the others are
    scored as they would be without it. So is a structure that cannot be measured in a case where others can. A
    case whose picture cannot be drawn keeps its numbers.

    Args:
        predictions: a folder with CASE.nii.gz (and CASE.quality.json), or one such file; or structure sets or
            segmentations, see `match_cases`.
        references: a folder with CASE.nii.gz, one such file, or a cohort in nnU-Net's raw layout; or structure
            sets or segmentations.
        output: the folder to write to. Only files that an earlier evaluation wrote there are replaced.
        scan: the scans on whose grids all is measured; structure sets and segmentations need their DICOM series.
        names: a names file, as of an import: which spellings of a name mean which structure.
        tolerance_mm: the tolerance of added path length and surface Dice, for structures without one of their own;
            by default `SURFACE_TOLERANCE_MM`.
        tolerances_mm: structure to its own tolerance; it counts before that of the names file.
        images: a folder with the scans, or one scan, for the report's pictures; see `match_cases`. By default
            these show `scan`.
        write_card: model file that made the predictions, of which a copy is written to the output folder with the
            scores in its card; see `metricunet.evaluation.held_out` for what that takes.
        overwrite: whether files of others that have the outputs' names may be replaced; inputs never are. None
            is False for a caller who has no such option to offer.
        progress: called with the steps done and the steps in all; the last call says that all are done.

    Raises:
        InputError: nothing matches, no case can be scored (a file that cannot be read, a prediction on another
            grid than its reference, a structure set of another scan, a voxel whose value names no structure), or
            an output would replace an input or a file that is not an earlier evaluation's; or the scores may not
            stand in the model's card. Nothing is written then.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file, expected a folder for the results; choose another folder")
    arguments = {
        "predictions": predictions,
        "references": references,
        "output": output,
        "scan": scan,
        "names": names,
        "tolerance_mm": tolerance_mm,
        "tolerances_mm": dict(tolerances_mm or {}),
        "images": images,
        "write_card": write_card,
        "overwrite": bool(overwrite),
    }
    record = RunRecord(COMMAND, arguments)
    matching = match_cases(
        predictions, references, images, scan=scan, names=None if names is None else read_names(names)
    )
    return evaluate_matched(
        matching,
        predictions,
        references,
        output,
        record,
        names=names,
        tolerance_mm=tolerance_mm,
        tolerances_mm=tolerances_mm,
        write_card=write_card,
        overwrite=overwrite,
        progress=progress,
    )


def check_output(output: Path) -> None:
    """Refuse a folder in which an evaluation could not replace what is there, for work that ends with one.

    Args:
        output: the folder that the evaluation will write to, by `evaluate` with `overwrite` None.

    Raises:
        InputError: a file there is not an earlier evaluation's; it is named.
    """
    OwnFiles(output, EVALUATION_RECORD, COMMAND).check(OUTPUTS)


def evaluate_matched(
    matching: Matching,
    predictions: Path,
    references: Path,
    output: Path,
    record: RunRecord,
    *,
    names: Path | None = None,
    tolerance_mm: float | None = None,
    tolerances_mm: Mapping[str, float] | None = None,
    write_card: Path | None = None,
    overwrite: bool | None = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Score cases that were matched already, and write what `evaluate` writes.

    Args:
        matching: the cases.
        predictions: what the report names as the predictions.
        references: what the report names as the references.
        output: the folder to write to.
        record: the record that was begun for it.
        names, tolerance_mm, tolerances_mm, write_card, overwrite, progress: as in `evaluate`.

    Raises:
        InputError: as `evaluate`.
    """
    tolerances = choose_tolerances(matching.structures, matching.naming, tolerance_mm, tolerances_mm)
    files = (*matching.files, *([names] if names is not None else []), *filter(None, [write_card]))
    own = OwnFiles(output, EVALUATION_RECORD, COMMAND, overwrite=overwrite, inputs=files)
    own.check(OUTPUTS)
    held_out = None if write_card is None else held_out_cases(write_card, matching, output, bool(overwrite))
    steps = len(matching.pairs) + min(MAX_OVERLAYS, len(matching.pairs)) + 1
    rows: list[CaseRow] = []
    qualities: dict[str, RecordedQuality] = {}
    faults = [CaseFault(name, str(error), without_frames(error)) for name, error in matching.faults]
    notes = list(matching.notes)
    for done, pair in enumerate(matching.pairs, start=1):
        try:
            quality, measured = read_quality(pair.quality), _measured(pair, matching, tolerances)
        except Exception as error:  # whatever it is, it costs this case alone
            faults.append(CaseFault(pair.case, told(error), without_frames(error)))
        else:
            qualities[pair.case] = quality
            rows += measured.rows
            faults += measured.faults
            notes += measured.notes
        if progress is not None:
            progress(done, steps)
    if not qualities:
        raise InputError(_nothing_scored(predictions, faults)) from faults[0].error
    evaluation = Evaluation(
        rows=tuple(rows),
        summary=summarise(rows, ALL_DEFINITIONS, tolerances),
        unpredicted=tuple(p.case for p in matching.pairs if p.prediction is None and p.case in qualities),
        unmatched=matching.unmatched,
        quality=qualities,
        notes=tuple(dict.fromkeys(notes)),
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
        "structures": tolerances,
        "faults": [
            {"case": f.case, "structure": f.structure or None, "scored": f.scored, "reason": f.reason}
            for f in evaluation.faults
        ],
        "notes": list(evaluation.notes),
        "pairs": {
            p.case: {
                "prediction": None if p.prediction is None else str(p.prediction),
                "reference": str(p.reference),
                "scan": None if p.scan is None else str(p.scan.path),
            }
            for p in matching.pairs
        },
        "inputs": {str(path): hash_if_readable(path) for path in files},
    }
    with claimed(own.claim, "an evaluation"):
        own.check(OUTPUTS)  # another may have written here while this one measured
        if held_out is not None:
            held_out.check_place()  # likewise
        try:
            write_text(own.stage("cases.csv"), cases_csv(evaluation.rows, CONTOUR_COLUMNS))
            write_json(own.stage("summary.json"), {name: s.to_json() for name, s in evaluation.summary.items()})
            write_text(own.stage("report.html"), report)
            own.commit(record.content())
        finally:
            own.discard()
        if held_out is not None and scores is not None:
            evaluation = replace(evaluation, model=held_out.write(scores))
    if progress is not None:
        progress(steps, steps)
    return evaluation


def _nothing_scored(predictions: Path, faults: Sequence[CaseFault]) -> str:
    if len(faults) == 1:
        return faults[0].reason
    return f"{predictions}: none of the {len(faults)} cases could be scored; {faults[0].case}: {faults[0].reason}"


@dataclass(frozen=True)
class Measured:
    """What came of one case.

    Attributes:
        rows: one for each structure that could be measured, or was not contoured.
        faults: the structures that could not be measured.
        notes: sentences on what was odd in what was read.
    """

    rows: tuple[CaseRow, ...]
    faults: tuple[CaseFault, ...]
    notes: tuple[str, ...]


def measure_sides(
    case: str,
    prediction: Side | None,
    reference: Side,
    grid: Geometry,
    structures: Mapping[str, str],
    tolerances_mm: Mapping[str, float],
    absent: Collection[str] = (),
) -> Measured:
    """Measure every structure of one case.

    Args:
        case: its name.
        prediction: the predicted structures; None where nothing was predicted.
        reference: the structures to compare with, on the grid of the former.
        grid: that grid.
        structures: name of each structure to what `Naming.structure_of` calls it.
        tolerances_mm: name of each structure to its tolerance.
        absent: names of structures that the case is known not to hold.

    Raises:
        Exception: no structure can be measured; what the first one failed with.
    """
    rows: list[CaseRow] = []
    faults: list[CaseFault] = []
    for name, key in structures.items():
        try:
            pair = _masks(prediction, reference, grid, key, name in absent)
            if pair is None:
                rows.append(CaseRow(case, name, NOTHING, contoured=False))
            else:
                rows.append(CaseRow(case, name, measure(*pair, tolerances_mm[name])))
        except Exception as error:  # whatever it is, it costs this structure alone
            faults.append(CaseFault(case, told(error), without_frames(error), scored=True, structure=name))
    if faults and not any(row.contoured for row in rows):
        raise faults[0].error
    notes = [*reference.notes, *(prediction.notes if prediction is not None else ())]
    return Measured(tuple(rows), tuple(faults), tuple(dict.fromkeys(notes)))


def _masks(
    prediction: Side | None, reference: Side, grid: Geometry, structure: str, absent: bool
) -> tuple[Volume, Volume] | None:
    """Return the two masks of a structure; None where the reference says nothing of it."""
    nothing = Volume(np.zeros(grid.shape, dtype=bool), grid)
    drawn = reference.mask(structure)
    if drawn is None and not absent:
        return None
    found = None if prediction is None else prediction.mask(structure)
    masks = [nothing if mask is None else mask for mask in (found, drawn)]
    for side in (prediction, reference):
        if side is not None and side.ignored is not None:
            known = ~side.ignored
            masks = [mask.with_array((mask.array != 0) & known) for mask in masks]
    return masks[0], masks[1]


def _measured(pair: CasePair, matching: Matching, tolerances_mm: Mapping[str, float]) -> Measured:
    if pair.prediction is None and pair.quality is None and matching.unread:
        # Of which case a damaged file is cannot be known, and what may be there was not missed.
        raise InputError(
            f"{pair.reference}: no prediction that can be read was drawn on its scan, and "
            f"{', '.join(matching.unread[:3])} cannot be read; export that again"
        )
    prediction, reference, grid = _read(pair, matching)
    known = known_as(pair.case, pair.scan)
    absent = {name for name, key in matching.structures.items() if matching.naming.is_absent(key, *known)}
    return measure_sides(pair.case, prediction, reference, grid, matching.structures, tolerances_mm, absent)


def _pictured(pair: CasePair, matching: Matching, structure: str) -> Overlay:
    prediction, reference, grid = _read(pair, matching)
    # Where structures overlap, the one that the picture is of has the voxel, then the first.
    order = sorted(matching.structures, key=lambda name: name != structure)
    maps = [_painted(side, grid, matching, order) for side in (prediction, reference)]
    return draw_overlay(pair.case, structure, matching.labels[structure], maps[0], maps[1], _image(pair))


def _image(pair: CasePair) -> Volume | None:
    if pair.image is not None:
        return read_scan(pair.image)
    return None if pair.scan is None else pair.scan.read()


def _painted(side: Side | None, grid: Geometry, matching: Matching, order: Sequence[str]) -> Volume:
    """Return the structures of one side as a label map; what cannot be used is left out."""
    array = np.zeros(grid.shape, dtype=np.uint16)
    for name in reversed(order):
        try:
            mask = None if side is None else side.mask(matching.structures[name])
        except InputError:
            continue
        if mask is not None:
            array[mask.array != 0] = matching.labels[name]
    return Volume(array, grid)


def _read(pair: CasePair, matching: Matching) -> tuple[Side | None, Side, Geometry]:
    """Open both sides on the grid that they are measured on."""
    if pair.scan is None:
        return _read_maps(pair, matching)
    grid, series = pair.scan.geometry(), pair.scan.series
    sides: list[Side | None] = []
    structures = set(matching.structures.values())
    for path, maps, predicted in (
        (pair.prediction, matching.prediction_maps, True),
        (pair.reference, matching.reference_maps, False),
    ):
        if path is None:
            sides.append(None)
        elif path in pair.drawn:
            assert series is not None  # such files were matched with their series
            file = pair.drawn[path]
            sides.append(open_side(file, series, matching.naming, structures, predicted=predicted))
        else:
            labels = on_grid(read_map(path, grid), grid, str(path), f"the scan {pair.scan.path}")
            read = _predicted_side if predicted else _reference_side
            sides.append(read(pair, labels, maps, matching.naming))
    prediction, reference = sides
    assert reference is not None  # every pair has one
    return prediction, reference, grid


def _reference_side(pair: CasePair, labels: Volume, maps: LabelMaps, naming: Naming) -> LabelSide:
    own = slicer.stated_names(pair.reference)
    lacking: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    if not naming.exact:
        maps = maps.as_stated(own, naming, pair.reference)
    elif own:
        labels, others = in_terms_of(maps.labels, labels, own, naming)
        lacking = unnamed_by(own, maps.labels, naming)
    side = label_side(str(pair.reference), labels, maps, naming, pair.case)
    side.not_contoured = (*side.not_contoured, *lacking)
    side.notes += left_out_of(others)
    return side


def _predicted_side(pair: CasePair, labels: Volume, maps: LabelMaps, naming: Naming) -> LabelSide:
    """Read a predicted label map by the values that its header states or the predictor wrote down, if any did."""
    assert pair.prediction is not None  # else there would be no label map
    own = own_labels(pair.prediction, pair.quality)
    others: tuple[str, ...] = ()
    if pair.reference in pair.drawn:
        stated_in = pair.prediction if slicer.stated_names(pair.prediction) else pair.quality
        maps = maps.as_stated(own, naming, stated_in)
    else:  # the values of two label maps are those of the references
        labels, others = in_terms_of(maps.labels, labels, own, naming)
    side = label_side(str(pair.prediction), labels, maps, naming, pair.case)
    side.notes += unnamed(others)
    return side


def label_side(name: str, volume: Volume, maps: LabelMaps, naming: Naming, case: str) -> LabelSide:
    """Return a label map as a side.

    Args:
        name: what to call it in messages.
        volume: the label map.
        maps: what its values mean.
        naming: which names are one.
        case: name of the case, by which contoured.json knows it.

    Raises:
        InputError: a value that names no structure.
    """
    allowed = set(maps.labels.values()) | ({maps.ignore} if maps.ignore else set())
    _check_values(name, volume, allowed, maps.named_in)
    side = LabelSide(name, volume, maps.labels, naming, maps.not_contoured.get(case, ()))
    if maps.ignore is not None:
        side.ignored = volume.array == maps.ignore
    return side


def _read_maps(pair: CasePair, matching: Matching) -> tuple[Side | None, Side, Geometry]:
    """Read two label maps; see `comparable`."""
    maps = matching.reference_maps
    naming = matching.naming
    reference = read_map(pair.reference)
    own: Mapping[str, int] = {}
    if pair.prediction is None:
        prediction = reference.with_array(np.zeros_like(reference.array))
    else:
        prediction = read_map(pair.prediction, reference.geometry)
        if slicer.is_segmentation(pair.reference):  # it may be cut to what it holds
            reference = read_map(pair.reference, prediction.geometry)
        own = own_labels(pair.prediction, pair.quality)
    names = str(pair.prediction), str(pair.reference)
    prediction, others = in_terms_of(maps.labels, prediction, own, naming)
    drawn = slicer.stated_names(pair.reference)
    reference, strange = in_terms_of(maps.labels, reference, drawn, naming)
    unknown = (*maps.not_contoured.get(pair.case, ()), *unnamed_by(drawn, maps.labels, naming))
    prediction, reference = comparable(
        prediction, reference, set(maps.labels.values()), maps.ignore, names, maps.named_in
    )
    predicted = LabelSide(names[0], prediction, maps.labels, naming)
    predicted.notes += unnamed(others)
    side = LabelSide(names[1], reference, maps.labels, naming, unknown)
    side.notes += left_out_of(strange)
    return predicted, side, reference.geometry


def unnamed(others: Sequence[str]) -> list[str]:
    """Return what is to be noted of predicted structures that the references do not name; nothing without any."""
    return [f"predictions hold structures that the references do not name: {', '.join(others)}"] if others else []


def left_out_of(others: Sequence[str]) -> list[str]:
    """Return what is to be noted of structures that a reference holds and that are not compared."""
    if not others:
        return []
    advice = "a dataset.json beside the references that names them has them compared"
    return [f"not compared, of the references: {', '.join(others)}; {advice}"]


def unnamed_by(own: Mapping[str, int], labels: Mapping[str, int], naming: Naming | None = None) -> tuple[str, ...]:
    """Return the structures of which a label map says nothing whose header names those that it holds.

    Args:
        own: structure to value, as the header states it; empty where it states none, and then all may be there.
        labels: structure to value in the references.
        naming: as in `in_terms_of`.
    """
    if not own:
        return ()
    meant = _meant(labels, own, naming).values()
    return tuple(name for name, value in labels.items() if value not in meant)


def in_terms_of(
    labels: Mapping[str, int], volume: Volume, own: Mapping[str, int], naming: Naming | None = None
) -> tuple[Volume, tuple[str, ...]]:
    """Return a label map with the references' values, and the structures that these do not name.

    Structures are found by their names, in whatever spelling. A value whose name the references do not have stays
    what it is where the references have that value under a name that the label map does not: there, values
    decide, as without names, unless the two names are known to be those of two structures.

    Args:
        labels: structure to value in the references.
        volume: the label map.
        own: structure to value in it, as its header or the predictor states it; empty where nobody does.
        naming: its names file says which names are one; without one they are if they differ in capitals, signs and
            spaces alone, or are TG-263's for the other.
    """
    if not own or dict(own) == dict(labels):
        return volume, ()
    wanted = _meant(labels, own, naming)
    highest = max(int(volume.array.max(initial=0)), *own.values())
    kind = np.result_type(volume.array, np.min_scalar_type(max(labels.values())))
    table = np.arange(highest + 1, dtype=kind)
    for value, means in wanted.items():
        table[value] = means
    left = tuple(name for name, value in own.items() if not wanted[value])
    return volume.with_array(table[volume.array]), left


def _meant(labels: Mapping[str, int], own: Mapping[str, int], naming: Naming | None) -> dict[int, int]:
    """Return which value of the references each value of a label map stands for; 0 for none."""
    naming = Naming(None if naming is None else naming.file)  # the two sides have names of their own
    named = naming.counterparts(own, labels)
    by_value = {value: name for name, value in labels.items() if name not in named.values()}
    wanted: dict[int, int] = {}
    for name, value in own.items():
        if name in named:
            wanted[value] = labels[named[name]]
        else:
            wanted[value] = value if value in by_value and not naming.differ(name, by_value[value]) else 0
    return wanted


def comparable(
    prediction: Volume,
    reference: Volume,
    allowed: set[int],
    ignore: int | None = None,
    names: tuple[str, str] = ("the prediction", "the reference"),
    named_in: Path | None = None,
) -> tuple[Volume, Volume]:
    """Return both label maps on the reference's grid, cut to what they hold; ignored voxels are background.

    Args:
        prediction: label map.
        reference: label map.
        allowed: values that name a structure.
        ignore: value of reference voxels that nobody contoured, or None.
        names: what to call the two in messages.
        named_in: the file that names the values; None for the dataset.json beside the references.

    Raises:
        InputError: two different grids, or a value that names no structure.
    """
    _check_values(names[1], reference, allowed | ({ignore} if ignore else set()), named_in)
    _check_values(names[0], prediction, allowed, named_in)
    prediction = align(prediction, reference, *names)
    prediction, reference = crop_to_content(prediction, reference)
    if ignore is not None:
        ignored = reference.array == ignore
        prediction = prediction.with_array(np.where(ignored, 0, prediction.array))
        reference = reference.with_array(np.where(ignored, 0, reference.array))
    return prediction, reference


def _check_values(path: str, labels: Volume, allowed: set[int], named_in: Path | None) -> None:
    known = np.zeros(np.iinfo(labels.array.dtype).max + 1, dtype=bool)
    known[[0, *(v for v in allowed if v < len(known))]] = True
    strange = labels.array[~known[labels.array]]
    if strange.size:
        found = ", ".join(str(v) for v in np.unique(strange)[:5])
        advice = f"Name all structures in {named_in or 'the dataset.json beside the references'}"
        if named_in is not None and named_in.name.endswith(QUALITY_SUFFIX):
            advice = f"{named_in} names these alone; predict the case again"
        raise InputError(
            f"{path}: holds the value {found}, which names no structure; expected 0 or "
            f"{', '.join(str(v) for v in sorted(allowed))}. {advice}"
        )
