"""`metricunet import` and `metricunet check`: the cohort to train on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from metricunet.cli.options import AllowGaps, AllowTilt, Engine, Json, Overwrite
from metricunet.cli.terminal import DONE, SOME_FAILED, print_json, progress_bars, say, trace
from metricunet.errors import InputError


def import_(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Folders to import: DICOM of patients, data sets of TotalSegmentator, nnU-Net or AMOS22, "
            "or pairs of images and label maps in NIfTI. With --reviewed: folders of predictions."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Write the cohort into this folder. It is not needed with --list-names."
        ),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(
            help="Read from this YAML file which spellings of a name mean which structure.", metavar="FILE"
        ),
    ] = None,
    list_names: Annotated[
        bool,
        typer.Option(
            "--list-names",
            help="Import nothing; count the spellings of structures' names, and print a file to complete "
            "for --names. With --names, print only the spellings that this file does not sort.",
        ),
    ] = False,
    layout: Annotated[
        str,
        typer.Option(
            help="Read the folders as dicom, totalsegmentator, nnunet or pairs, or recognise their layout (auto)."
        ),
    ] = "auto",
    uids: Annotated[
        Literal["keep", "hash"],
        typer.Option(help="Keep the identifiers of the sources in import.json, or write only hashes of them."),
    ] = "hash",
    reviewed: Annotated[
        bool,
        typer.Option(
            "--reviewed",
            help="Take from folders of predictions what was accepted or corrected in `metricunet review`.",
        ),
    ] = False,
    scans: Annotated[
        Path | None,
        typer.Option(
            help="With --reviewed: find the scans in this folder. Without it they are found where they were "
            "predicted.",
            metavar="FOLDER",
        ),
    ] = None,
    overwrite: Overwrite = False,
    engine: Engine = None,
) -> None:
    """Make a cohort to train on from CT scans with contours: DICOM with structure sets, or other layouts."""
    from metricunet.cohort.importing import import_cohort
    from metricunet.cohort.importing import list_names as spellings
    from metricunet.cohort.importing.layouts import Finder
    from metricunet.engine import opened

    found_by: str | Finder = layout
    if reviewed:
        from metricunet.workflows.review.learn import ReviewedCases

        if layout != "auto":
            raise InputError(f"--reviewed reads folders of predictions; leave --layout {layout} out")
        found_by = ReviewedCases(scans)
    elif scans is not None:
        raise InputError("--scans says where the scans of predictions lie; give it together with --reviewed")
    if not list_names and output is None:
        raise InputError("import needs -o COHORT, or --list-names to see the names of structures first")
    of_import = {
        "-o": output is not None,
        "--uids": uids != "hash",
        "--overwrite": overwrite,
        "--engine": engine is not None,
    }
    if list_names and (given := [flag for flag, is_given in of_import.items() if is_given]):
        raise InputError(f"--list-names imports nothing, so {' and '.join(given)} would do nothing; leave it out")
    notes: tuple[str, ...] = ()
    with opened(engine) as shared, progress_bars() as bar:
        if list_names or output is None:
            listed = spellings(sources, names=names, layout=found_by, bars=bar)
            typer.echo(_as_names_file(listed.text.rstrip()))
            left_out, refused, failed = listed.left_out, listed.refused, False
        else:
            done = import_cohort(
                sources,
                output,
                names=names,
                layout=found_by,
                uids=uids,
                overwrite=overwrite,
                bars=bar,
                engine=shared,
            )
            for error in done.errors:
                trace(error)
            typer.echo(done.text())
            notes, left_out, refused, failed = done.notes, done.left_out, done.refused, done.failed
    for kind, lines in (("note", notes), ("left out", left_out), ("refused", refused)):
        for line in lines:
            say(f"{kind}: {line}")
    raise typer.Exit(SOME_FAILED if failed else DONE)


def check(
    path: Annotated[Path, typer.Argument(help="Cohort to check, or scan: one file, or a folder of DICOM.")],
    allow_gaps: AllowGaps = False,
    allow_tilt: AllowTilt = False,
    json: Json = False,
) -> None:
    """Find the problems of a cohort or a scan, and print one line for each."""
    from metricunet.workflows.check import check as run

    with progress_bars() as bar:
        problems = run(path, bar("checking"), allow_gaps=allow_gaps, allow_tilt=allow_tilt)
    if json:
        print_json([{"case": p.case, "severity": p.severity, "message": p.message} for p in problems])
    else:
        for problem in problems:
            typer.echo(str(problem))
        errors = sum(p.severity == "error" for p in problems)
        typer.echo(f"{errors} errors, {len(problems) - errors} warnings")
    raise typer.Exit(SOME_FAILED if any(p.severity == "error" for p in problems) else DONE)


def _as_names_file(text: str) -> str:
    """Return a names file as it can be redirected to a file: UTF-8, or ASCII with the escapes that YAML knows."""
    import codecs

    name = codecs.lookup(sys.stdout.encoding or "utf-8").name
    return text if name.startswith("utf") else text.encode("ascii", "backslashreplace").decode("ascii")
