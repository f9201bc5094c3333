"""Where the ledger lies unless the user names another file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from metricunet.ledger.keys import KEY_SUFFIX

#: Names the ledger for all commands.
VARIABLE = "METRICUNET_LEDGER"
NAME = "ledger.sqlite"


def default_ledger() -> Path:
    """Return the file that `METRICUNET_LEDGER` names, else that of the user: one for all prediction folders."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else _data_folder() / "metricunet" / NAME


def _data_folder() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")


def files_of(ledger: Path) -> tuple[Path, ...]:
    """Return the files of a ledger, which nothing else may overwrite: its own, its key, and SQLite's beside it.

    Args:
        ledger: path of the ledger.
    """
    return tuple(
        ledger.with_name(f"{ledger.name}{suffix}") for suffix in ("", KEY_SUFFIX, "-wal", "-shm", "-journal")
    )
