"""What keeps a study out of folders that hold somebody else's files."""

from __future__ import annotations

from pathlib import Path

from metricunet.errors import InputError
from metricunet.training.run import is_scratch


def refuse_others(folder: Path, marker: Path, what: str) -> None:
    """Refuse a folder that holds somebody's files and lacks the one that a run begins with.

    Args:
        folder: that is to be worked in.
        marker: the file.
        what: the folder is for.

    Raises:
        InputError: the first strange file, named.
    """
    if marker.is_file() or not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file; expected a folder for {what}")
    strange = (path for path in sorted(folder.rglob("*")) if not path.is_dir() and not is_scratch(path))
    if (first := next(strange, None)) is not None:
        raise InputError(
            f"{folder}: holds {first.relative_to(folder)}, and nothing that says that it is {what}; move it "
            "elsewhere, or choose another study folder"
        )
