"""The functions by which work that takes long tells its caller how far it is."""

from __future__ import annotations

from collections.abc import Callable

#: Told how many steps are done and how many there are in all.
Progress = Callable[[int, int], None]
#: Opens a progress bar of a name, and returns the function that moves it.
Bars = Callable[[str], Progress]
#: Told one line for the user, such as which step begins.
Say = Callable[[str], None]


def no_progress(done: int, total: int) -> None:
    """Show nothing."""


def no_bars(name: str) -> Progress:
    """Open no progress bar."""
    return no_progress


def silent(message: str) -> None:
    """Say nothing."""
