"""`metricunet info` and `metricunet export`: what a model file says, and what other programs make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from metricunet.cli.options import Json, Output, Overwrite
from metricunet.cli.terminal import print_json


def info(
    model: Annotated[
        Path | None,
        typer.Argument(
            help="Model file, or folder of an exported model, to describe, or base for the one that comes along. "
            "Without it, that one is described."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Print what a model file says of its model (structures, training data, calibration), and its SHA-256."""
    from metricunet.files.exported import files_of_model, read_any_card
    from metricunet.files.model import card_content
    from metricunet.files.record import sha256
    from metricunet.inference.models import named_model, shipped_model

    path = shipped_model() if model is None else named_model(model)
    card = read_any_card(path)
    # As predictions and the ledger state it.
    content = card_content(card) | {"model_sha256": sha256(files_of_model(path))}
    if json:
        print_json(content)
        return
    for name, value in content.items():
        if isinstance(value, dict):
            typer.echo(f"{name}:")
            for key, entry in value.items():
                shown = f"{len(entry)} known by the hashes of their files" if key == "scans" else entry
                typer.echo(f"  {key}: {shown}")
        elif name == "calibration":
            typer.echo("calibration: not calibrated, so the temperature is 1")
        elif name == "lineage":
            typer.echo(
                f"lineage: {'' if value else 'none known, trained from random weights or by an older version'}"
            )
            for ancestor in value:
                kind = "synthetic scans only" if ancestor["synthetic"] else f"{len(ancestor['cases'])} known cases"
                typer.echo(f"  {ancestor['name']}: trained on {kind}, weights {ancestor['weights_sha256']}")
        elif name == "cases":
            typer.echo(f"cases: {len(value)} known by the hashes of their files (--json lists them)")
        elif name == "validated":
            typer.echo("validated: no scores on patients in this card")
        else:
            typer.echo(f"{name}: {value}")
    if card.held_back:
        typer.echo(f"verdicts are review at best: {card.held_back}")


def export(
    model: Annotated[Path, typer.Argument(help="Model file to export, or base for the one that comes along.")],
    output: Output,
    to: Annotated[
        Literal["onnx", "monai-bundle"],
        typer.Option(
            help="Write ONNX files, which metricunet predict --runtime onnx computes without torch (onnx), or a "
            "bundle for python -m monai.bundle (monai-bundle)."
        ),
    ],
    overwrite: Overwrite = False,
) -> None:
    """Write a model for other programs: as ONNX files, or as a bundle of MONAI."""
    from metricunet.workflows.export import export as run

    done = run(model, output, to=to, overwrite=overwrite)
    for line in done.lines:
        typer.echo(line)
