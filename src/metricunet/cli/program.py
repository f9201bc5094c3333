"""The program `metricunet`: its commands in the order of its help, and how it ends where one of them fails."""

from __future__ import annotations

import signal
import sys
from typing import Annotated, Any

import typer

from metricunet.cli.cohort import check, import_
from metricunet.cli.convert import convert
from metricunet.cli.evaluate import evaluate
from metricunet.cli.ledger import commands as ledger_commands
from metricunet.cli.machine import bench, commission, nnunet
from metricunet.cli.models import export, info
from metricunet.cli.naming import flags_of
from metricunet.cli.phantom import demo, phantom
from metricunet.cli.predict import predict
from metricunet.cli.review import review, serve
from metricunet.cli.study import study
from metricunet.cli.terminal import (
    DONE,
    INTERRUPTED,
    NOTHING_DONE,
    is_debug,
    print_in_any_encoding,
    say,
    set_debug,
    trace,
)
from metricunet.cli.train import train
from metricunet.errors import InputError, arguments_named, is_out_of_memory, refused_by_system, told

#: Packages that are not installed where only exported models are computed (requirements-onnx.txt).
LEFT_OUT = ("torch", "lightning", "safetensors", "matplotlib")

app = typer.Typer(
    name="metricunet",
    help="Segment the prostate in CT scans with MetricUNet, a network trained with voxel-wise metric learning.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo)
app.command()(phantom)
app.command("import")(import_)
app.command()(check)
app.command()(train)
app.command()(predict)
app.command()(review)
app.command()(serve)
app.command()(convert)
app.command()(evaluate)
app.command()(study)
app.command()(info)
app.command()(export)
app.command()(bench)
app.command("validate", hidden=True)(commission)  # its name until 0.1.0
app.command()(commission)
app.command()(nnunet)
app.add_typer(ledger_commands, name="ledger")


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show with every error where in the program it was raised.")
    ] = False,
) -> None:
    set_debug(debug)
    commands: dict[str, Any] = getattr(context.command, "commands", {})
    context.with_resource(arguments_named(flags_of(commands, context.invoked_subcommand)))
    if version:
        from metricunet import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point: bad input becomes one line and status 2; --debug shows before it where it came from."""
    print_in_any_encoding()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell without job control starts what runs in the background so; whoever sends it means it to end.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.exit(app(standalone_mode=False) or DONE)
    except InputError as error:
        trace(error)
        say(f"error: {' '.join(str(error).split())}")
    except typer.TyperException as error:
        # Typer reads values with pydantic, which sets words of its own before a sentence.
        message = error.format_message().replace(": Value error, ", ": ")
        if message:  # there is none where no command was given, and the help was printed
            say(f"error: {' '.join(message.split())} (see --help)")
    except (KeyboardInterrupt, typer.Abort):
        say("stopped")
        sys.exit(INTERRUPTED)
    except Exception as error:
        trace(error)
        if isinstance(error, ModuleNotFoundError) and error.name in LEFT_OUT:
            say(f"error: this needs {error.name}, which is not installed here; run `pip install {error.name}`")
        elif (refused := refused_by_system(error)) is not None:
            say(f"error: {told(refused)}")
        elif is_out_of_memory(error):
            say(f"error: {told(error)}; end other programs on it, or take a smaller scan, batch or network")
        else:
            where = "" if is_debug() else ": --debug after metricunet shows where"
            say(f"error: {told(error)}; this is a fault of the program{where}")
    sys.exit(NOTHING_DONE)
