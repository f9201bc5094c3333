"""Ctrl-C in a training ends the command as anywhere else."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a `KeyboardInterrupt` leave the block as one, and later ones count again.

    Lightning ends the process with status 1 instead, as if something had failed, and ignores the signal then.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as ended:
        if not isinstance(ended.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt from ended
