"""The files of a result, as `metricunet predict` writes them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metricunet.api.scan import Scan
from metricunet.files.exported import files_of_model
from metricunet.files.own import OwnFiles
from metricunet.files.record import RECORD_NAME
from metricunet.files.sharing import in_turn
from metricunet.inference.case_files import (
    CaseOutcome,
    begun_record,
    checked_formats,
    chosen_structures,
    run_facts,
    withheld_formats,
    withheld_line,
    write_case,
)
from metricunet.inference.structure_set import ContourOptions
from metricunet.quality.prediction import Prediction
from metricunet.quality.verdict import QualityReport

if TYPE_CHECKING:
    from metricunet.inference.segmenter import Segmenter


def write_result(
    folder: Path,
    scan: Scan,
    prediction: Prediction,
    quality: QualityReport,
    seconds: float,
    *,
    models: Sequence[Path],
    predictor: Segmenter,
    provenance: Mapping[str, Any],
    formats: Sequence[str],
    structures: Sequence[str] | None,
    options: ContourOptions,
    overwrite: bool,
    draw_anyway: bool,
) -> tuple[Path, ...]:
    """Write the files of a result, and the record of a run beside them.

    Args:
        folder: receives them; it is made where it is missing.
        scan: was segmented.
        prediction: came out.
        quality: is the verdict on that.
        seconds: were spent on both.
        models: files of the model.
        predictor: did the computing.
        provenance: of the model; see `Model`.
        formats: which files to write.
        structures: which structures; None for all.
        options: how contours are drawn.
        overwrite: whether files of others that have an output's name are replaced.
        draw_anyway: whether structure sets and segmentations are written whatever the doubt is.
    """
    card = predictor.card
    if chosen := chosen_structures(structures, card.labels, card.tg263):
        prediction, quality = prediction.only(chosen), quality.only(chosen)
    known = checked_formats(formats)
    drawn = {"structure_set": options.key()} if "rtstruct" in known else {}
    provenance = {**provenance, **drawn}
    scans = [] if scan.source is None else [scan.source.path]
    record = begun_record(scans, models, folder, formats, options, predictor.reruns, draw_anyway, structures)
    kept = [*scan.files, *(file for path in models for file in files_of_model(path))]
    own = OwnFiles(folder, RECORD_NAME, "predict", inputs=kept, overwrite=overwrite)
    if folder.is_dir():
        own.check([])
    written = write_case(
        folder,
        prediction,
        quality,
        scan.source,
        scan=scan.volume,
        formats=known,
        options=options,
        provenance={"input_sha256": scan.source_sha256, **provenance},
        inputs=kept,
        overwrite=overwrite,
        draw_anyway=draw_anyway,
    )
    withheld = () if draw_anyway else withheld_formats(prediction, quality, known)
    outcome = CaseOutcome.of(quality, seconds, withheld)
    record.facts |= run_facts(provenance, predictor.device, [outcome])
    with in_turn(own.claim, "the record of a prediction"):  # another process may save into this folder, too
        own.commit(record.content())
    if withheld:
        warnings.warn(
            f"{scan.name}: {withheld_line(withheld)}", stacklevel=4
        )  # at the line that called Result.save
    return (*written, own.path)
