"""`metricunet convert`: structures from one format to others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from metricunet.cli.options import Json, Output, Overwrite
from metricunet.cli.terminal import DONE, SOME_FAILED, print_json, progress_bars, say


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="Structures to convert: a label map (NIfTI, NRRD, MetaImage), a folder of masks, an RTSTRUCT or "
            "a SEG."
        ),
    ],
    output: Output,
    scan: Annotated[
        Path,
        typer.Option(
            help="The scan that the structures belong to: a folder of DICOM or, for --to nifti and masks, a file."
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            help="Write nifti (a label map), masks (a file for each structure), rtstruct (DICOM structure set), "
            "seg (DICOM segmentation), or several of these, separated by commas."
        ),
    ],
    names: Annotated[
        Path | None,
        typer.Option(
            help="Read from this YAML file which spellings of a name mean which structure, and which to ignore.",
            metavar="FILE",
        ),
    ] = None,
    series: Annotated[str | None, typer.Option(help="Take the DICOM series with this SeriesInstanceUID.")] = None,
    case: Annotated[str | None, typer.Option(help="Name the outputs so, and not as the source is named.")] = None,
    contours: Annotated[
        Literal["surface", "voxel"],
        typer.Option(
            help="Draw the contours of a structure set along the edges of the mask's voxels (voxel), or halfway "
            "between the voxels' centres (surface)."
        ),
    ] = "voxel",
    smooth: Annotated[
        bool,
        typer.Option(
            "--smooth", help="Smooth the contours of a structure set, moving no point by more than 0.5 mm."
        ),
    ] = False,
    holes: Annotated[
        Literal["keep", "close", "keyhole"],
        typer.Option(
            help="Draw a hole in a structure set as a contour of its own (keep), leave it out (close), or join it "
            "to the contour around it by a line (keyhole)."
        ),
    ] = "keep",
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Convert label maps, structure sets (RTSTRUCT) and segmentations (SEG) into each other, on their scan."""
    from metricunet.workflows.convert import convert as run

    with progress_bars() as bar:
        done = run(
            source,
            output,
            scan=scan,
            to=to,
            names=names,
            series=series,
            case=case,
            contours=contours,
            smooth=smooth,
            holes=holes,
            overwrite=overwrite,
            progress=bar("converting"),
        )
    if json:
        print_json(done.to_json())
    else:
        typer.echo(done.text())
    for note in done.notes:
        say(f"note: {note}")
    for outcome in done.structures:
        for note in outcome.notes:
            say(f"note: {note}")
        if outcome.status == "left out":
            say(f"left out: {outcome.name}: {outcome.reason}")
    raise typer.Exit(SOME_FAILED if done.failed else DONE)
