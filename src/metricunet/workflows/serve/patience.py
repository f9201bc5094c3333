"""Patience with the ledger: what must be written there is tried until it can be."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from metricunet.errors import InputError, told

Done = TypeVar("Done")

#: What has failed is tried again after so long.
PAUSE_S = 5.0


def insist(
    act: Callable[[], Done], say: Callable[[str], object], stopping: threading.Event | None = None
) -> Done | None:
    """Do something with the ledger, again and again while the disk is full or another process holds it.

    Args:
        act: what to do; it raises `InputError` where it could not be done.
        say: is told why, each time.
        stopping: ends the trying once it is set; None: nothing does.

    Returns:
        What was done; None where the trying was ended.
    """
    stopping = stopping or threading.Event()
    while True:
        try:
            return act()
        except InputError as error:
            say(told(error))
        if stopping.wait(PAUSE_S):
            return None
