"""What commands show and how they end: statuses, lines on standard error, progress bars, JSON, any encoding."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from metricunet.progress import Bars, Progress

if TYPE_CHECKING:
    from metricunet.inference.predict import PredictOutcome

DONE, SOME_FAILED, NOTHING_DONE, INTERRUPTED = 0, 1, 2, 130

#: For characters that the encoding of a pipe or file lacks. What is not here is written as its number.
PLAIN = {"−": "-", "–": "-", "—": "-", "±": "+/-", "×": "x", "²": "2", "…": "...", "“": '"', "”": '"', "’": "'"}

#: Whether `--debug` was given.
_debug = False


@contextmanager
def progress_bars() -> Iterator[Bars]:
    """Yield a function that opens a named progress bar on standard error; silent without a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as LiveBars

    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = LiveBars(*columns, console=console, disable=not console.is_terminal)

    def stop() -> None:
        if console.is_terminal:  # some versions of rich print an empty line for bars that were never shown
            progress.stop()

    def bar(name: str) -> Progress:
        task: Any = None

        def advance(done: int, total: int) -> None:
            nonlocal task
            if task is None:
                # Started with its first step and stopped with its last, for rich allows one live display only.
                progress.start()
                task = progress.add_task(name, total=total)
            progress.update(task, completed=done, total=total)
            if done >= total:
                stop()
                progress.remove_task(task)  # its last state stays on the screen; the next bar must not repeat it
                task = None  # what is told of another round, such as of scans without contours, opens it anew

        return advance

    try:
        yield bar
    finally:
        stop()


def set_debug(given: bool) -> None:
    """Show with errors where in the program they were raised, or do not."""
    global _debug
    _debug = given


def is_debug() -> bool:
    """Tell whether `--debug` was given."""
    return _debug


def say(message: str) -> None:
    """Print on standard error what is no result."""
    typer.echo(message, err=True)


def say_failed(message: str, error: BaseException | None) -> None:
    """Say in one line that a case failed; with --debug, also where."""
    say(f"failed: {message}")
    if error is not None:
        trace(error)


def say_refused(outcome: PredictOutcome) -> None:
    """Say in one line of each scan that could not be segmented, why."""
    for refused in outcome.refused:
        if refused.error is not None:
            say_failed(refused.reason, refused.error)
        else:
            say(f"refused: {refused.reason}")


def trace(error: BaseException) -> None:
    """With --debug, show where something went wrong, whether or not it ended the command."""
    if _debug:
        import traceback

        say("".join(traceback.format_exception(error)).rstrip())


def print_json(content: Any) -> None:
    """Print a result for other programs to read."""
    import json

    typer.echo(json.dumps(content, indent=2))


def print_in_any_encoding() -> None:
    """Let output go through whatever the encoding of standard output is: cp1252 has no minus sign, ASCII no ü.

    Where it is ASCII, Typer takes that for a mistake of the locale and writes UTF-8.
    """
    import codecs
    from io import TextIOWrapper

    codecs.register_error("metricunet.plain", _plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="metricunet.plain")


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Handle an encoding error (see `codecs.register_error`): a likeness of each character, else its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    # Bytes of a file's name that are no text stand as characters from 0xDC80 on.
    known = (PLAIN.get(c) or (f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else None) for c in lost)
    plain = (text or c.encode("ascii", "backslashreplace").decode() for c, text in zip(lost, known, strict=True))
    return "".join(plain), error.end
