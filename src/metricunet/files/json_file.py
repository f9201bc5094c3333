"""JSON files that people or other programs wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metricunet.errors import InputError
from metricunet.files.text_file import read_text


def read_json(path: Path, advice: str = "") -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        advice: end of the message, what to do.

    Raises:
        InputError: not readable, not Unicode (see `read_text`), not JSON, or nested too deeply for any use.
    """
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not valid JSON ({reason}){advice}") from error
