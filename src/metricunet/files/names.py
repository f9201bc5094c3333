"""Which names of files the file system accepts."""

from __future__ import annotations

import os
from pathlib import Path

from metricunet.errors import InputError

#: The longest name in bytes where the system does not say: that of nearly every file system in use.
USUAL_NAME_BYTES = 255


def check_name_fits(path: Path, *suffixes: str) -> None:
    """Check, before any work, that a file's name is no longer than the file system of its folder allows.

    Args:
        path: the file; its folder need not exist yet, nor those around it.
        suffixes: what is put behind the name, as in CASE + ".nii.gz"; the longest counts. None: the name is whole.

    Raises:
        InputError: naming how long the name would be, in bytes, and how long it may be.
    """
    longest = max(suffixes, key=lambda suffix: len(os.fsencode(suffix)), default="")
    size, most = len(os.fsencode(path.name + longest)), _most_bytes(path.parent)
    if size > most:
        shown = path.name if len(path.name) <= 60 else f"{path.name[:40]}..."
        raise InputError(
            f"{path.parent}: the name {shown}{longest} would have {size} bytes, and at most {most} are possible "
            "there; give the scan or its folder a shorter name"
        )


def _most_bytes(folder: Path) -> int:
    """Return the longest name, in bytes, in a folder or in the nearest one around it that exists."""
    pathconf = getattr(os, "pathconf", None)  # not on Windows
    if pathconf is None:
        return USUAL_NAME_BYTES
    for place in (folder, *folder.absolute().parents):
        try:
            most = int(pathconf(place, "PC_NAME_MAX"))
        except (OSError, ValueError):  # not there, or a name that is too long itself
            continue
        return most if most > 0 else USUAL_NAME_BYTES  # -1: no limit known
    return USUAL_NAME_BYTES
