"""What machines see of the folders and files that a command reads and writes."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from metricunet.errors import InputError
from metricunet.files.atomic import UNFINISHED

#: So much of a file tells it from another one of its name.
HEAD_BYTES = 1 << 16


def check_folders(
    ask: Callable[..., Iterator[tuple[str, Any]]], written: Path | None, read: Sequence[Path]
) -> None:
    """Refuse what a machine does not see as it is seen here; see `metricunet.engine.Engine.check_folders`.

    Args:
        ask: has a function called on each machine, and yields the machine's name and what the function returned.
        written: folder that results go into. It may be missing. None where no machine writes any.
        read: files and folders that are read.

    Raises:
        InputError: naming the machine and the first such path, or a machine with another version of the program.
    """
    seen = {path.absolute(): _seen(path) for path in read}
    with ExitStack() as held:
        probe = None if written is None else held.enter_context(_probe(written.absolute()))
        for node, answer in ask(_look, list(seen), probe):
            for path, other in answer["seen"].items():
                if other != seen[path]:
                    raise InputError(
                        f"{path}: machine {node} sees {'another one' if other else 'none'}; every machine "
                        "must see it by this path: put it on storage that they share"
                    )
            if written is not None and answer["writing"]:
                raise InputError(
                    f"{written.absolute()}: machine {node} cannot write there ({answer['writing']}); the "
                    "results need a folder on storage that all machines share"
                )
            if answer["version"] != version("metricunet"):
                raise InputError(
                    f"machine {node} has metricunet {answer['version']}, and this one has "
                    f"{version('metricunet')}; install one version on all"
                )


@contextmanager
def _probe(written: Path) -> Iterator[Path]:
    """Leave a file that every machine should see, in a folder or in the nearest one above it that is there."""
    existing = next(folder for folder in (written, *written.parents) if folder.is_dir())
    probe = existing / f"{UNFINISHED.rstrip('*')}{secrets.token_hex(8)}.probe"
    try:
        probe.write_text(os.getcwd(), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{existing}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        yield probe
    finally:
        probe.unlink(missing_ok=True)


def _seen(path: Path) -> str:
    """Return what a file or folder looks like from here; empty where there is none."""
    try:
        if path.is_dir():
            return "folder"
        with path.open("rb") as handle:
            head = handle.read(HEAD_BYTES)
        return f"{path.stat().st_size} {hashlib.sha256(head).hexdigest()}"
    except OSError:
        return ""


def _look(paths: Sequence[Path], probe: Path | None) -> dict[str, Any]:
    """Say, on a machine, what it sees, and whether it can write beside a file that it must see, too."""
    writing = ""
    if probe is not None:
        own = probe.with_name(f"{probe.name}.{secrets.token_hex(4)}")
        try:
            probe.read_text(encoding="utf-8")
            own.write_text("", encoding="utf-8")
            own.unlink()
        except OSError as error:
            writing = str(error.strerror or error)
    return {"seen": {path: _seen(path) for path in paths}, "writing": writing, "version": version("metricunet")}
