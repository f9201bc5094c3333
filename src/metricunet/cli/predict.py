"""`metricunet predict`: from scans to masks and structure sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from metricunet.cli.options import AllowGaps, AllowTilt, Device, Engine, Output, Overwrite
from metricunet.cli.terminal import DONE, SOME_FAILED, progress_bars, say, say_refused
from metricunet.errors import InputError


def predict(
    scans: Annotated[
        list[Path],
        typer.Argument(help="Scans to segment: NIfTI, NRRD or MetaImage files, or folders of these or of DICOM."),
    ],
    output: Output,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            "-m",
            "--model",
            help="Segment with this model file, with that of this run folder, or with the exported model in this "
            "folder; of a cross-validation's folder, with those of all folds; for the word base, with the shipped "
            "model. Several models are averaged; give it again for more. Without it, the environment variable "
            "METRICUNET_MODEL names the model or models; without that, the shipped model is used.",
        ),
    ] = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            "--output_type",
            help="Write nifti (masks), rtstruct (DICOM structure sets), seg (DICOM segmentations), probability "
            "(NIfTI, in 4 bytes a voxel), probability_uint8 (in one byte), probability_seg (fractional DICOM "
            "segmentations), page (as --page), or several of these, separated by commas. The words dicom_rtstruct "
            "and dicom_seg mean the same.",
        ),
    ] = "nifti",
    structures: Annotated[
        list[str] | None,
        typer.Option(
            "--structures",
            "--roi_subset",
            help="Write only these structures of the model, separated by commas, such as prostate,bladder. The "
            "verdict is still that of all, but of organs at risk only where one of them is chosen: their network "
            "does not run otherwise.",
            metavar="NAMES",
        ),
    ] = None,
    series: Annotated[
        str | None, typer.Option(help="Segment only the DICOM series with this SeriesInstanceUID.")
    ] = None,
    contours: Annotated[
        Literal["surface", "voxel"],
        typer.Option(
            help="Draw the contours of a structure set where the probability is one half (surface), or along the "
            "edges of the mask's voxels (voxel)."
        ),
    ] = "surface",
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
    add_to: Annotated[
        Path | None,
        typer.Option(
            help="Write a copy of this structure set with the new structures added. It must be of the one DICOM "
            "series that is given.",
            metavar="RTSTRUCT",
        ),
    ] = None,
    reruns: Annotated[
        int,
        typer.Option(
            min=0, help="Move or enlarge the crop up to this many times where the prostate reaches its edge."
        ),
    ] = 3,
    allow_gaps: AllowGaps = False,
    allow_tilt: AllowTilt = False,
    device: Device = "auto",
    runtime: Annotated[
        Literal["torch", "onnx"] | None,
        typer.Option(
            help="Compute with torch, or without it an exported model, a folder of `metricunet export --to onnx` "
            "(onnx). Without the option, what is given decides.",
            show_default=False,
        ),
    ] = None,
    provider: Annotated[
        Literal["cpu", "cuda", "openvino"] | None,
        typer.Option(
            help="Compute an exported model on the CPU or an NVIDIA GPU by onnxruntime (cpu, cuda), or on the CPU "
            "by OpenVINO. Without it, --device decides, and its auto means the CPU.",
            show_default=False,
        ),
    ] = None,
    fail_on: Annotated[
        Literal["fail", "review"] | None,
        typer.Option(
            "--fail-on",
            help="End with status 1 if a case has the verdict fail, or also if one needs review (review).",
            show_default="fail",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="The same as --fail-on review.")] = False,
    draw_anyway: Annotated[
        bool,
        typer.Option(
            "--draw-anyway",
            help="Write structure sets and segmentations also where the doubt is strong and the model was trained "
            "on synthetic scans, or descends from one that was, without validation on patients.",
        ),
    ] = False,
    page: Annotated[
        bool,
        typer.Option(
            "--page",
            help="Write also a page for each case, CASE.page.html, to look at in any browser: scan, structures "
            "and verdict in one file.",
        ),
    ] = False,
    overwrite: Overwrite = False,
    engine: Engine = None,
) -> None:
    """Segment the prostate in scans; write masks or structure sets, and say which cases need review."""
    from metricunet.inference.models import chosen_models, warnings_of

    if strict and fail_on == "fail":
        raise InputError("--strict means --fail-on review, and --fail-on fail is given; leave one of them out")
    models = chosen_models(model or ())
    for warning in warnings_of(models):
        say(f"warning: {warning}")
    from metricunet.engine import opened
    from metricunet.inference.case_files import withheld_line
    from metricunet.inference.predict import predict as run

    formats = [*_names([format_]), *(["page"] if page else [])]
    with opened(engine) as shared, progress_bars() as bar:
        outcome = run(
            scans,
            models,
            output,
            formats=formats,
            structures=_names(structures) if structures else None,
            series=series,
            contours=contours,
            holes=holes,
            smooth=smooth,
            add_to=add_to,
            reruns=reruns,
            device=device,
            runtime=runtime,
            provider=provider,
            allow_gaps=allow_gaps,
            allow_tilt=allow_tilt,
            overwrite=overwrite,
            draw_anyway=draw_anyway,
            progress=bar("segmenting"),
            engine=shared,
        )
    for case in outcome.cases:
        time = "done before" if case.skipped else f"{case.seconds:.1f} s"
        typer.echo(f"{case.case}: {case.verdict}, {case.status}, doubt {case.doubt} ({time})")
        for reason in case.reasons:
            typer.echo(f"  {reason}")
        if case.withheld:
            typer.echo(f"  {withheld_line(case.withheld)}")
    say_refused(outcome)
    raise typer.Exit(SOME_FAILED if outcome.failed(strict or fail_on == "review") else DONE)


def _names(given: list[str]) -> list[str]:
    """Return the names that are separated by commas in one option, or in several of a kind."""
    return [name.strip() for names in given for name in names.split(",")]
