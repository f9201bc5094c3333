"""One node at a time on a folder of state, also where nodes run in containers.

A claim says which process serves there. Whether a process in another container still lives it cannot tell, and
after a kill every container is another one. So a node holds a lock beside its claim, which the system takes away
with its life, and notes there which claim goes with the lock: where the lock is free, that claim is a dead node's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from metricunet.files.atomic import STAGING
from metricunet.files.claim import claimed, read_claim
from metricunet.workflows.serve.state import State

if sys.platform != "win32":
    import fcntl

LOCK = ".serving.lock"
#: A token of a claim is shorter.
LONGEST_TOKEN = 256


@contextmanager
def served_alone(state: State) -> Iterator[None]:
    """Hold a folder of state, which is there already, while the block runs.

    Claims on cases there that were made in other containers are dead ones' then, and are removed.

    Raises:
        AlreadyClaimed: another node serves there, or may do so on another computer.
        InputError: the folder cannot be written.
    """
    lock = _locked(state.folder / LOCK)
    try:
        if lock is not None:
            _remove_claim_of(os.pread(lock, LONGEST_TOKEN, 0), state.claim)
        with claimed(state.claim, "metricunet serve"):
            if lock is not None:
                _note_claim(lock, state.claim)
            _remove_foreign_claims(state.predictions)
            yield
    finally:
        if lock is not None:
            os.close(lock)


def _locked(path: Path) -> int | None:
    """Return the handle of a locked file; None where another process has it, or the file system has no locks."""
    if sys.platform == "win32":
        return None
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:  # whoever makes the claim says what is wrong with the folder
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _note_claim(lock: int, claim: Path) -> None:
    with suppress(OSError, ValueError):  # on a full disk, the claim alone tells
        holder = read_claim(claim)
        if holder is not None:
            os.ftruncate(lock, 0)
            os.pwrite(lock, holder.token.encode(), 0)
            os.fsync(lock)


def _remove_claim_of(token: bytes, claim: Path) -> None:
    with suppress(OSError, ValueError):  # what cannot be read is told by whoever makes the next one
        holder = read_claim(claim)
        if holder is not None and holder.token.encode() == token:
            claim.unlink()


def _remove_foreign_claims(folder: Path) -> None:
    for path in folder.glob(f"{STAGING}*.claim"):
        with suppress(OSError, ValueError):
            holder = read_claim(path)
            if holder is not None and holder.is_elsewhere():
                path.unlink()
