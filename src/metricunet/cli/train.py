"""`metricunet train`: from a cohort, or from synthetic scans, to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from metricunet.cli.options import Device, Output
from metricunet.cli.terminal import DONE, SOME_FAILED, progress_bars, say, trace
from metricunet.errors import InputError


def train(
    output: Output,
    cohort: Annotated[
        Path | None,
        typer.Argument(
            help="Cohort to train on: a folder in nnU-Net's raw data layout. It is left out with --phantoms."
        ),
    ] = None,
    phantoms: Annotated[
        Literal["easy", "real", "varied"] | None,
        typer.Option(
            help="Train on synthetic scans of this difficulty, made beside the training, in place of a cohort."
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Make the synthetic scans of --phantoms in this many processes.")
    ] = 1,
    engine: Annotated[
        str | None,
        typer.Option(
            help="Have the folds of --fold each trained, or the synthetic scans of --phantoms made, by Ray: on "
            "all cores or GPUs of this machine (ray), or on a cluster that is running (ray://ADDRESS).",
            metavar="ray[://ADDRESS]",
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Read settings from this YAML file.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Begin with the settings named default, or with small ones, which suit a CPU. If not given, it "
            "is default, or with --init the model's networks and a short training.",
            show_default=False,
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change one setting, given as section.key=value, such as segment.epochs=20. "
            "Give it again to change more.",
        ),
    ] = None,
    fold: Annotated[
        str,
        typer.Option(
            help="Validate on the cases of this fold, counted from 0; or train on all cases (all); or train every "
            "fold, and score each case by the model that has not seen it (each)."
        ),
    ] = "0",
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            "--pretrained",
            help="Begin with the weights of this model file in place of random ones, or with those of the model "
            "that comes with the program (base). Structures that it lacks begin anew.",
            metavar="MODEL",
        ),
    ] = None,
    freeze: Annotated[
        Literal["encoder"] | None,
        typer.Option(help="With --init, keep the encoders of all networks as they are."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the training in the output folder where it was stopped.")
    ] = False,
    logger: Annotated[
        list[str] | None,
        typer.Option(
            help="Also tell this logger the numbers of each epoch: mlflow or wandb, which write into the output "
            "folder and send nothing unless their environment variables say so; or tensorboard, which is told "
            "wherever it is installed. Give it again for more.",
        ),
    ] = None,
    device: Device = "auto",
    devices: Annotated[
        int,
        typer.Option(
            min=1, help="Train on this many devices of this computer together, each with a share of every batch."
        ),
    ] = 1,
    nodes: Annotated[
        int, typer.Option(min=1, help="Train on this many computers together, on each of which this is started.")
    ] = 1,
) -> None:
    """Train both stages of a model on a cohort, and write it to the output folder as model.safetensors."""
    from metricunet.engine import opened
    from metricunet.files.model import read_card
    from metricunet.training.config import load_config
    from metricunet.training.fit import refuse_idle
    from metricunet.training.fit import train as run
    from metricunet.training.start import initial_model

    if fold not in ("all", "each") and not fold.isdecimal():
        raise InputError(f"--fold must be a whole number, all or each; got {fold!r}")
    start = None if init is None else initial_model(init)
    parent = None if start is None else read_card(start)
    settings = load_config(preset, config, set_ or [], phantoms=phantoms, freeze=freeze, parent=parent)
    refuse_idle(cohort, fold, workers=workers, engine=engine)
    if fold == "each":
        if devices * nodes > 1:
            raise InputError(
                "--fold each trains each fold on one device; start the command again with --resume and another "
                "--device, such as cuda:1, and both share the folds"
            )
        from metricunet.training.cross_validation import cross_validate, lines_of

        with opened(engine) as shared, progress_bars() as bar:
            crossed = cross_validate(
                cohort,
                output,
                config=settings,
                init=start,
                resume=resume,
                device=device,
                loggers=logger or (),
                engine=shared,
                bar=bar,
                say=say,
            )
        for line in lines_of(crossed):
            typer.echo(line)
        for cause in filter(None, (fold.cause for fold in crossed.failed)):
            trace(cause)
        raise typer.Exit(SOME_FAILED if crossed.incomplete else DONE)
    with opened(engine) as shared, progress_bars() as bar:
        model = run(
            cohort,
            output,
            config=settings,
            fold=int(fold) if fold != "all" else "all",
            init=start,
            resume=resume,
            device=device,
            progress=bar("preparing" if settings.phantoms is None else "phantoms"),
            loggers=logger or (),
            workers=workers,
            devices=devices,
            nodes=nodes,
            engine=shared,
            say=say,
        )
    typer.echo(f"model: {model}")
