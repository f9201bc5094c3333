"""`metricunet review` and `metricunet serve`: pages to look at predictions, and a DICOM node that makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metricunet.cli.terminal import NOTHING_DONE, SOME_FAILED, say
from metricunet.errors import InputError


def review(
    predictions: Annotated[Path, typer.Argument(help="Folder that metricunet predict has written.")],
    scans: Annotated[
        Path | None,
        typer.Option(
            help="Find the scans in this folder. Without it they are found where they were predicted.",
            metavar="FOLDER",
        ),
    ] = None,
    reviewer: Annotated[
        str | None,
        typer.Option(help="Write this name with each decision. Without it, your login.", metavar="NAME"),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Listen at this port of this machine alone; 0 takes a free one.")
    ] = 0,
    browser: Annotated[
        bool,
        typer.Option("--browser/--no-browser", help="Open the page in your browser, or only print its address."),
    ] = True,
    ledger: Annotated[
        Path | None,
        typer.Option(
            help="Also write verdicts and decisions into this ledger. Without it, into the one that "
            "METRICUNET_LEDGER names, else into that of your user (see metricunet ledger).",
            metavar="FILE",
        ),
    ] = None,
    no_ledger: Annotated[
        bool, typer.Option("--no-ledger", help="Write decisions beside the predictions alone.")
    ] = False,
) -> None:
    """Look at predictions in the browser, and accept, reject or correct them; nothing leaves this machine."""
    from metricunet.ledger.location import default_ledger
    from metricunet.workflows.review import review as run

    if no_ledger and ledger is not None:
        raise InputError(
            "--no-ledger means that no ledger is written, and --ledger names one; leave one of them out"
        )
    file = None if no_ledger else ledger or default_ledger()
    run(predictions, scans=scans, reviewer=reviewer, port=port, browser=browser, ledger=file, say=typer.echo)


def serve(
    node: Annotated[Path, typer.Argument(help="File that says what the node takes, does and sends.")],
    check: Annotated[
        bool, typer.Option("--check", help="Name every mistake in the file, one line each, and do nothing else.")
    ] = False,
    once: Annotated[
        bool,
        typer.Option(
            "--once",
            help="Listen nowhere: take what lies in the watched folder, work off the queue, try each delivery "
            "once, and end.",
        ),
    ] = False,
) -> None:
    """Run a DICOM node: take CT series from the network, segment them, and send structure sets."""
    from metricunet.workflows.serve import check_node
    from metricunet.workflows.serve import serve as run

    if check:
        mistakes = check_node(node)
        for line in mistakes:
            typer.echo(f"{node}: {line}")
        if mistakes:
            raise typer.Exit(NOTHING_DONE)
        typer.echo(f"{node}: no mistakes")
    elif not run(node, once=once, say=say):
        raise typer.Exit(SOME_FAILED)
