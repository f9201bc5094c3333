"""Processes that make phantoms beside the one that asks for them."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading

from metricunet.engine import GIB, Needs
from metricunet.errors import InputError, argument

#: The most that the making of a phantom was measured to take is 1.0 GiB, of a varied one.
NEEDS = Needs(round(1.1 * GIB))


def end_with_parent() -> None:
    """Let a worker end when its parent is killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with(sentinel: int) -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=end_with, args=(parent.sentinel,), daemon=True).start()


def killed(what_then: str) -> InputError:
    """Return what the user is told where one of the processes that make phantoms was killed.

    Args:
        what_then: what is left of the work, and what to do.
    """
    fewer = argument("workers")
    script = ""
    if not fewer.startswith("-"):  # each of these processes imports the user's script
        script = '; a script of your own must call this under `if __name__ == "__main__":`'
    return InputError(
        "one of the processes that make phantoms was killed, as systems do where memory runs out: each takes up "
        f"to {NEEDS.memory_bytes / GIB:.1f} GiB. {what_then}, with more memory free or fewer {fewer}{script}"
    )
