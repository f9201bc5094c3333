"""`predict`: one scan to its result, or folders of scans to files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from metricunet.api.model import Model, Result, chosen_files, opened_predictor
from metricunet.api.plain import Paths, in_one_line, listed, several
from metricunet.api.scan import load_scan
from metricunet.engine import Engine
from metricunet.errors import InputError
from metricunet.files.rtstruct.outlines import Holes, Outline
from metricunet.inference.case_files import withheld_line
from metricunet.inference.predict import PredictOutcome
from metricunet.inference.predict import predict as predict_files
from metricunet.inference.reruns import MOST_RERUNS
from metricunet.progress import Progress


@overload
def predict(
    scans: object,
    models: Paths | Model | None = None,
    output: None = None,
    *,
    device: str = "auto",
    provider: str | None = None,
    reruns: int = MOST_RERUNS,
    series: str | None = None,
    allow_gaps: bool = False,
    allow_tilt: bool = False,
) -> Result: ...


@overload
def predict(
    scans: Paths,
    models: Paths | None = None,
    *,
    output: str | os.PathLike[str],
    device: str = "auto",
    provider: str | None = None,
    reruns: int = MOST_RERUNS,
    series: str | None = None,
    allow_gaps: bool = False,
    allow_tilt: bool = False,
    formats: str | Sequence[str] = ("nifti",),
    structures: str | Sequence[str] | None = None,
    contours: Outline = "surface",
    holes: Holes = "keep",
    smooth: bool = False,
    add_to: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    draw_anyway: bool = False,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> PredictOutcome: ...


@overload
def predict(
    scans: Paths,
    models: Paths | None,
    output: str | os.PathLike[str],
    *,
    device: str = "auto",
    provider: str | None = None,
    reruns: int = MOST_RERUNS,
    series: str | None = None,
    allow_gaps: bool = False,
    allow_tilt: bool = False,
    formats: str | Sequence[str] = ("nifti",),
    structures: str | Sequence[str] | None = None,
    contours: Outline = "surface",
    holes: Holes = "keep",
    smooth: bool = False,
    add_to: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    draw_anyway: bool = False,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> PredictOutcome: ...


@in_one_line
def predict(
    scans: Any,
    models: Any = None,
    output: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    provider: str | None = None,
    reruns: int = MOST_RERUNS,
    series: str | None = None,
    allow_gaps: bool = False,
    allow_tilt: bool = False,
    formats: str | Sequence[str] = ("nifti",),
    structures: str | Sequence[str] | None = None,
    contours: Outline = "surface",
    holes: Holes = "keep",
    smooth: bool = False,
    add_to: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    draw_anyway: bool = False,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> Result | PredictOutcome:
    """Segment one scan; or, with `output`, whole folders of scans, as `metricunet predict` does.

    Without `output` nothing is written, and a `Result` comes back. For many scans in memory, load the model once
    and call its `predict`.

    Args:
        scans: This is one scan, anything that `load_scan` takes. With `output` these are paths of files, of
            folders of them, or of folders of DICOM series.
        models: This is a model file, or several to be averaged, and by default what `load_model` takes then;
            without `output` it may be a `Model`, which has its own device, provider and reruns.
        output: The files are written into this folder.
        device: It computes; see `load_model`.
        provider: It computes an exported model; see `load_model`.
        reruns: A scan may be segmented again as often as this; see `load_model`.
        series: The series with this SeriesInstanceUID is taken alone.
        allow_gaps: A series with missing or uneven slices is resampled; see `load_scan`.
        allow_tilt: A series of a tilted gantry is resampled; see `load_scan`.
        formats: With `output`, these formats are written; see `Result.save`, also for what follows.
        structures: With `output`, these structures are written.
        contours: With `output`, contours of structure sets run so.
        holes: With `output`, holes in structure sets are drawn so.
        smooth: With `output`, contours of structure sets are smoothed.
        add_to: With `output`, the new structures are added to this structure set.
        overwrite: With `output`, files of others that have an output's name are replaced.
        draw_anyway: With `output`, structure sets are written whatever the doubt is.
        progress: With `output`, it is called with (done, all).
        engine: With `output`, it shares the scans out, as `metricunet.engine.opened` yields it.

    Returns:
        The result; with `output` what became of each scan.

    Raises:
        InputError: Nothing can be done with the input or the arguments.
    """
    if output is None:
        writing = {
            "formats": formats != ("nifti",),
            "structures": structures is not None,
            "contours": contours != "surface",
            "holes": holes != "keep",
            "smooth": smooth,
            "add_to": add_to is not None,
            "overwrite": overwrite,
            "draw_anyway": draw_anyway,
            "progress": progress is not None,
            "engine": engine is not None,
        }
        if given := ", ".join(name for name, is_given in writing.items() if is_given):
            raise InputError(f"{given}: of use with output= alone; give that, or call save on the result")
        scan = load_scan(scans, series=series, allow_gaps=allow_gaps, allow_tilt=allow_tilt)
        if not isinstance(models, Model):
            paths = chosen_files(models)
            return Model(paths, opened_predictor(paths, device, reruns, provider)).predict(scan)
        if device != "auto" or reruns != MOST_RERUNS or provider is not None:
            raise InputError(
                "device, provider and reruns: a loaded model has its own; give them to load_model, or a path here"
            )
        return models.predict(scan)
    if isinstance(models, Model):
        raise InputError("with output=, models must be paths; for a loaded model, call its predict and save")
    outcome = predict_files(
        listed(scans),
        chosen_files(models),
        Path(output),
        device=device,
        provider=provider,
        reruns=reruns,
        series=series,
        allow_gaps=allow_gaps,
        allow_tilt=allow_tilt,
        formats=several(formats),
        structures=None if structures is None else several(structures),
        contours=contours,
        holes=holes,
        smooth=smooth,
        add_to=None if add_to is None else Path(add_to),
        overwrite=overwrite,
        draw_anyway=draw_anyway,
        progress=progress,
        engine=engine,
    )
    for case in outcome.cases:
        if case.withheld:
            said = f"{case.case}: {withheld_line(case.withheld)}"
            warnings.warn(said, stacklevel=3)  # at the line that called predict
    return outcome
