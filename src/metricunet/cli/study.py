"""`metricunet study`: arms, seeds and folds of a study file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metricunet.cli.options import Device, Engine, Output
from metricunet.cli.terminal import DONE, SOME_FAILED, progress_bars, say, say_failed


def study(
    file: Annotated[Path, typer.Argument(help="YAML file with the data, arms, seeds and folds of the study.")],
    output: Output,
    device: Device = "auto",
    engine: Engine = None,
    replicates: Annotated[
        int | None,
        typer.Option(
            help="Carry out this many of the replicates of a study that has some, the first ones; run again "
            "without it for the rest."
        ),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            help="Keep the small files of finished runs in this folder as well, and take up what it holds. With "
            "it in version control, the same command continues the study on another machine.",
            metavar="FOLDER",
        ),
    ] = None,
) -> None:
    """Train and score every arm of a study with every seed and fold, and write tables; run again to continue."""
    from metricunet.engine import opened
    from metricunet.study.run import study as run

    with opened(engine) as shared, progress_bars() as bar:
        result = run(
            file, output, device=device, engine=shared, replicates=replicates, keep=keep, say=say, bar=bar
        )
    typer.echo(result.text)
    typer.echo(f"tables: {result.tables}")
    for failed in result.failed:
        say_failed(f"{failed.spec.title}: {failed.error}", failed.cause)
    raise typer.Exit(SOME_FAILED if result.failed else DONE)
