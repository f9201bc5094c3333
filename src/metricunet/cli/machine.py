"""`metricunet bench`, `commission` and `nnunet`: what is of this machine and what is installed on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from metricunet.cli.options import Device, Json, Output
from metricunet.cli.terminal import DONE, SOME_FAILED, print_json, progress_bars


def bench(
    part: Annotated[str, typer.Argument(help="Part to measure: predict, train, metric, or all.")] = "all",
    scan: Annotated[
        Path | None,
        typer.Option(help="Predict this scan, a file or a DICOM folder. Without it, a synthetic scan is made."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "-m", "--model", help="Predict with this model file. Without it, an untrained model is made."
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Measure the networks and the training of this preset: default (also without this option), or "
            "small."
        ),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(
            min=1, help="Repeat each measurement this many times. Without it, each part chooses its own number."
        ),
    ] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Measure how fast this machine predicts, trains and computes the metric losses, and in how much memory."""
    from metricunet.workflows.bench import bench as run

    found: dict[str, Any] = {}
    with progress_bars() as bar:
        for name, result in run(
            part, scan=scan, model=model, preset=preset, repeats=repeats, device=device, bar=bar
        ):
            found[name] = result.to_json()
            if not json:
                typer.echo(f"{result.text()}\n")
    if json:
        print_json(found if part == "all" else found[part])


def commission(output: Output, json: Json = False) -> None:
    """Send shapes of known size through every file format and back, and write a page to sign for commissioning."""
    from metricunet.workflows.commission.run import commission as run

    with progress_bars() as bar:
        result = run(output, progress=bar("commissioning"))
    if json:
        print_json(result.to_json())
    else:
        typer.echo(result.text())
        typer.echo(f"report: {result.report}")
    raise typer.Exit(SOME_FAILED if result.failed else DONE)


def nnunet(
    action: Annotated[
        Literal["install", "uninstall", "path"],
        typer.Argument(
            help="Make nnU-Net in this environment find the trainers (install), undo that (uninstall), or print "
            "the folder that nnUNet_extTrainer may name instead (path)."
        ),
    ],
) -> None:
    """Let nnU-Net 2.8 find trainers with the metric branch by name, such as nnUNetTrainerVoxelMetric."""
    from metricunet.nnunet.install import FOLDER, install, uninstall

    if action == "path":
        typer.echo(FOLDER)
    elif action == "install":
        typer.echo(f"nnU-Net finds nnUNetTrainerVoxelMetric and nnUNetTrainerVoxelControl by {install()}")
    else:
        removed = uninstall()
        typer.echo("nothing was installed" if removed is None else f"removed {removed}")
