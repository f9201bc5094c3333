"""What reaches the disk for certain, and in which order: files and folders flushed, and names changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

#: What flushes; the tests at large have nothing flushed.
FSYNC = os.fsync


def flushes(patch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """Return a list that grows: `("flushed", inode)` of a file or folder, and `("named", path)` after a rename."""
    said: list[tuple[str, object]] = []
    replace, rename = os.replace, os.rename

    def flushed(handle: int) -> None:
        FSYNC(handle)
        said.append(("flushed", os.fstat(handle).st_ino))

    def replaced(source: Any, target: Any) -> None:
        replace(source, target)
        said.append(("named", Path(target)))

    def renamed(source: Any, target: Any) -> None:
        rename(source, target)
        said.append(("named", Path(target)))

    patch.setattr(os, "fsync", flushed)
    patch.setattr(os, "replace", replaced)
    patch.setattr(os, "rename", renamed)
    return said


def flushed(path: Path) -> tuple[str, object]:
    """Return what such a list holds where a file or folder was flushed."""
    return "flushed", path.stat().st_ino
