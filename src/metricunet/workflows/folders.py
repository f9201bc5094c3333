"""Output folders that a command fills as a whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from metricunet.errors import InputError
from metricunet.files.record import RECORD_NAME


def clear_earlier(output: Path, command: str) -> None:
    """Remove what an earlier run of a command left; refuse to touch anything else.

    Raises:
        InputError: the folder holds something else, or is a file.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    try:
        found = json.loads((output / RECORD_NAME).read_text(encoding="utf-8"))["command"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found != command:
        raise InputError(f"{output}: is not empty and holds no {command}; choose another folder with -o")
    shutil.rmtree(output)
