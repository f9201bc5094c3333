"""What takes long to make is made by one of the test processes, and copied by the others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder of this process alone with what `make` writes.

    Of several processes of pytest-xdist, the first one that comes makes it, and others wait for that one. Each
    gets a copy, so that none sees what tests of another one do in it.

    Args:
        factory: pytest's own.
        name: of the folder; no other call has it.
        make: fills a folder that is not there yet. What it writes can be moved.
    """
    own = factory.mktemp(name) / name
    if "PYTEST_XDIST_WORKER" not in os.environ:
        make(own)
        return own
    import fcntl  # not on Windows, where one process must do

    common = factory.getbasetemp().parent / name
    done = common.with_suffix(".done")
    with common.with_suffix(".lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # given back when the file is closed, and if this process is killed
        if not done.exists():
            shutil.rmtree(common, ignore_errors=True)  # half of it, of one that failed
            make(common)
            done.touch()
    shutil.copytree(common, own)
    return own
