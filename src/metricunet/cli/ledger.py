"""`metricunet ledger`: what is in a ledger, in the terminal and as CSV; what is added to it, and deleted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metricunet.cli.naming import flags_of
from metricunet.errors import arguments_named

if TYPE_CHECKING:
    from metricunet.ledger import Ledger
    from metricunet.ledger.overview import Group, Overview

commands = typer.Typer(
    help="Show, export, complete and prune the ledger of verdicts, decisions and edits that review writes.",
    no_args_is_help=True,
)

LedgerFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="[FILE]",
        help="Use this ledger. Without it, the one that METRICUNET_LEDGER names, else that of your user.",
    ),
]


@commands.callback()
def _named(context: typer.Context) -> None:
    """Name in messages the options of the commands on a ledger, and after them those of all others."""
    group: Any = context.command
    own = {f"{context.info_name} {name}": command for name, command in group.commands.items()}
    others: dict[str, Any] = {} if context.parent is None else getattr(context.parent.command, "commands", {})
    called = f"{context.info_name} {context.invoked_subcommand}"
    context.with_resource(arguments_named(flags_of({**own, **others}, called)))


@commands.command()
def show(
    file: LedgerFile = None,
    structure: Annotated[str, typer.Option(help="Tell of edits of this structure.", metavar="NAME")] = "",
    baseline: Annotated[
        int,
        typer.Option(min=10, help="Make the limits of the control charts from this many cases, the first ones."),
    ] = 40,
) -> None:
    """Say how often, where and how much was corrected, by month, model and scanner, and whether it drifts."""
    from metricunet.errors import InputError
    from metricunet.ledger.overview import overview_of
    from metricunet.ledger.table import read_cases

    overview = overview_of(read_cases(_opened(file)), structure=structure, baseline=baseline)
    if structure and overview.structures and structure not in overview.structures:
        raise InputError(
            f"the ledger has no edit of {structure!r}; choose one of {', '.join(overview.structures)}"
        )
    typer.echo(_text(overview))


@commands.command()
def export(
    output: Annotated[Path, typer.Option("-o", "--output", help="Write the table into this CSV file.")],
    file: LedgerFile = None,
    people: Annotated[
        bool, typer.Option("--people", help="Also write reviewers and reasons, which are personal data.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace a file of that name. Files of the ledger are never replaced."),
    ] = False,
) -> None:
    """Write a CSV row for each structure of each decision, and for each case without one."""
    from metricunet.errors import InputError
    from metricunet.files.atomic import write_text
    from metricunet.ledger.location import files_of
    from metricunet.ledger.table import csv_lines, read_rows

    ledger = _opened(file)
    if any(own.exists() and output.exists() and output.samefile(own) for own in files_of(ledger.path)):
        raise InputError(f"{output}: is a file of the ledger itself; choose another name for the table")
    # A table has no record beside it, so nobody can tell whether it is as it was written.
    if os.path.lexists(output) and (output.is_dir() or not overwrite):
        otherwise = "" if output.is_dir() else ", or replace it with --overwrite"
        raise InputError(f"{output}: is there already; choose another name for the table{otherwise}")
    rows = read_rows(ledger)
    write_text(output, "".join(csv_lines(rows, people=people)))
    typer.echo(f"{output}: {len(rows)} rows")


@commands.command()
def add(
    predictions: Annotated[Path, typer.Argument(help="Folder that metricunet predict has written.")],
    file: LedgerFile = None,
    scans: Annotated[
        Path | None,
        typer.Option(
            help="Find the scans in this folder. Without it they are found where they were predicted.",
            metavar="FOLDER",
        ),
    ] = None,
) -> None:
    """Add the verdicts and decisions of a prediction folder that the ledger does not have yet."""
    from metricunet.ledger.location import default_ledger
    from metricunet.workflows.review.recording import add_folder

    path = file or default_ledger()
    added = add_folder(path, predictions, scans=scans)
    known = f", {added.known} were there" if added.known else ""
    typer.echo(f"{path}: {added.cases} verdicts, {added.decisions} new decisions{known}")
    for reason in added.left_out:
        typer.echo(f"left out: {reason}", err=True)
    raise typer.Exit(1 if added.left_out else 0)


@commands.command()
def prune(
    keep: Annotated[
        str, typer.Option(help="Keep what is younger than this, such as 30d, 8w or 2y.", metavar="TIME")
    ],
    file: LedgerFile = None,
    cases: Annotated[
        bool,
        typer.Option("--cases", help="Delete older cases as a whole, with their verdicts, decisions and edits."),
    ] = False,
) -> None:
    """Delete older reviewers, reasons and lines of the audit trail, and say what was deleted."""
    from metricunet.ledger import Ledger
    from metricunet.ledger.prune import age_of, prune

    age = age_of(keep)
    path = _opened(file).path  # a file that is not there is none to be made
    typer.echo(f"{path}: {prune(Ledger(path), age, cases=cases).text}")


@commands.command()
def rekey(file: LedgerFile = None) -> None:
    """Begin anew with another key: no later case can be joined to an earlier one of the same patient."""
    from metricunet.files.claim import CLAIM_NAME, claimed
    from metricunet.ledger import Ledger

    ledger = Ledger(_opened(file).path)
    # A node hashes with the key that it began with, so a series that is just coming in would be taken for two.
    with claimed(ledger.path.resolve().parent / CLAIM_NAME, "metricunet serve or another rekey"):
        key = ledger.new_key()
    typer.echo(f"{key.path}: is a new key; keep a copy where the ledger's copies are not")


def _opened(file: Path | None) -> Ledger:
    """Open a ledger for reading; none is made where there is none."""
    from metricunet.ledger import Ledger
    from metricunet.ledger.location import default_ledger

    return Ledger(file or default_ledger(), create=False)


def _text(overview: Overview) -> str:
    """Return an overview as lines for the terminal."""
    total = overview.total
    if not total.cases:
        return "No case is in the ledger yet."
    lines = [
        f"{total.cases} cases, {total.decided} decided: {total.accepted} accepted, {total.corrected} corrected, "
        f"{total.rejected} rejected"
    ]
    for title, groups in (
        ("month", overview.by_month),
        ("model", overview.by_model),
        ("scanner", overview.by_scanner),
    ):
        if groups:
            lines += ["", *_table(title, groups, overview.structure)]
    if overview.where:
        from metricunet.ledger.overview import part_name

        shares = ", ".join(
            f"{part_name(part, overview.structure)} {100 * share:.0f} %" for part, share in overview.where.items()
        )
        lines += ["", f"where the {overview.structure} was corrected, by volume: {shares}"]
    return "\n".join([*lines, "", *(f"{chart.title}: {chart.sentence}" for chart in overview.charts)])


def _table(title: str, groups: tuple[Group, ...], structure: str) -> list[str]:
    heads = (
        title,
        "cases",
        "decided",
        "corrected",
        "rejected",
        f"{structure or 'structure'} changed",
        "Dice",
        "APL mm",
    )
    rows = [
        (
            one.name,
            str(one.cases),
            str(one.decided),
            str(one.corrected),
            str(one.rejected),
            f"{one.changed} of {one.measured}",
            "-" if one.dice is None else f"{one.dice:.3f}",
            "-" if one.added_path_length_mm is None else f"{one.added_path_length_mm:.0f}",
        )
        for one in groups
    ]
    widths = [max(len(row[k]) for row in (heads, *rows)) for k in range(len(heads))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(n) for cell, n in zip(row[1:], widths[1:], strict=True))])
        for row in (heads, *rows)
    ]
