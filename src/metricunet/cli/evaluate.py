"""`metricunet evaluate`: predictions against references."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metricunet.cli.options import Json, Output, Overwrite
from metricunet.cli.terminal import DONE, SOME_FAILED, print_json, progress_bars, say, trace


def evaluate(
    predictions: Annotated[
        Path, typer.Argument(help="Predicted mask, RTSTRUCT or DICOM SEG, or a folder of these.")
    ],
    references: Annotated[
        Path, typer.Argument(help="Reference mask, RTSTRUCT or DICOM SEG, or a folder of these.")
    ],
    output: Output,
    scan: Annotated[
        Path | None,
        typer.Option(
            help="Measure on the grid of this scan. RTSTRUCT and SEG need the folder of their DICOM series, or a "
            "folder of several."
        ),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(
            help="Read from this YAML file which spellings of a name mean which structure, as import does.",
            metavar="FILE",
        ),
    ] = None,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(
            help="Accept contours that are off by this many mm in added path length and surface Dice: 2, or for "
            "one structure rectum=3. Give it again for more.",
            metavar="MM",
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Show these scans, a file or a folder, in the report's pictures.")
    ] = None,
    write_card: Annotated[
        Path | None,
        typer.Option(
            help="Write a copy of this model file, which made the predictions, into the output folder, with the "
            "scores in its card. It takes 20 or more scans of patients that no training has seen.",
            metavar="MODEL",
        ),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Score predicted masks or contours against references; write a row for each case, a summary and a report."""
    from metricunet.evaluation.compare import evaluate as run
    from metricunet.evaluation.naming import split_tolerances
    from metricunet.evaluation.summary import fault_line, format_summary

    general, of_structures = split_tolerances(tolerance or [])
    with progress_bars() as bar:
        result = run(
            predictions,
            references,
            output,
            scan=scan,
            names=names,
            tolerance_mm=general,
            tolerances_mm=of_structures,
            images=images,
            write_card=write_card,
            overwrite=overwrite,
            progress=bar("scoring"),
        )
    for fault in result.faults:
        trace(fault.error)
    if json:
        print_json({name: entry.to_json() for name, entry in result.summary.items()})
        for fault in result.faults:
            say(fault_line(fault))
        for note in result.notes:
            say(f"note: {note}")
    else:
        typer.echo(format_summary(result))
        typer.echo(f"report: {output / 'report.html'}")
        if result.model is not None:
            typer.echo(f"model with these scores in its card: {result.model}")
    raise typer.Exit(SOME_FAILED if result.failed or result.faults else DONE)
