"""What an export has written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Target = Literal["onnx", "monai-bundle"]


@dataclass(frozen=True)
class Exported:
    """What was written, and what to do with it.

    Attributes:
        folder: of the exported model.
        files: their names in it.
        lines: what to tell the user, a line each.
    """

    folder: Path
    files: tuple[str, ...]
    lines: tuple[str, ...]
