"""Running `metricunet` as a user does: a process of its own, imports and all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from metricunet.errors import InputError
from metricunet.workflows.bench import launch


@dataclass(frozen=True)
class Ended:
    """How a process ended: exit status, wall seconds, peak of its memory (None where the system does not tell)."""

    status: int
    seconds: float
    peak_mib: float | None
    error: str


def run_metricunet(
    words: Sequence[object], environment: Mapping[str, str] | None = None, python: Path | str = sys.executable
) -> Ended:
    """Run `metricunet WORDS` and wait for it.

    Args:
        words: the words of the command line.
        environment: variables to change.
        python: the interpreter, by default this one; another one has an environment of its own.

    Raises:
        InputError: it ended with a status of 2 or more; its last line on standard error is passed on.
    """
    command = [str(python), "-m", "metricunet", *map(str, words)]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "ended.json"
        # -I and -S keep the launcher small; the command itself runs in the user's environment.
        launcher = [sys.executable, "-I", "-S", launch.__file__, str(report)]
        subprocess.run([*launcher, *command], env={**os.environ, **(environment or {})}, check=True)
        ended = Ended(**json.loads(report.read_text(encoding="utf-8")))
    if ended.status not in (0, 1):
        lines = ended.error.strip().splitlines() or ["no message"]
        raise InputError(f"metricunet {words[0]} ended with status {ended.status}: {lines[-1]}")
    return ended
