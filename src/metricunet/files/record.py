"""run.json: what a command did, with what, on what machine, and how long it took."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from metricunet.files.atomic import write_json

RECORD_NAME = "run.json"


@dataclass
class RunRecord:
    """Collects the facts of a run; `write` leaves them in the output folder.

    Attributes:
        command: the verb.
        arguments: what it was called with.
        facts: anything else worth keeping (configuration, seed, input hashes).
    """

    command: str
    arguments: Mapping[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    timings_s: dict[str, float] = field(default_factory=dict)
    _started: float = field(default_factory=time.perf_counter)
    _started_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def content(self) -> dict[str, Any]:
        """Return what the record says, the time until now among it."""
        self.timings_s["total"] = round(time.perf_counter() - self._started, 3)
        return {
            "command": self.command,
            "arguments": {k: _plain(v) for k, v in self.arguments.items()},
            "version": version("metricunet"),
            "started": self._started_at,
            "timings_s": self.timings_s,
            "machine": machine(),
            **{k: _plain(v) for k, v in self.facts.items()},
        }

    def write(self, folder: Path) -> None:
        """Write `run.json` into the folder."""
        write_json(folder / RECORD_NAME, self.content())


def machine() -> dict[str, Any]:
    """Describe processor, operating system and library versions; nothing that names the computer or its user."""
    packages = {}
    for name in ("torch", "onnxruntime", "numpy", "lightning", "pydicom"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": sys.version.split()[0],
        "packages": packages,
    }


def sha256(paths: Iterable[Path]) -> str:
    """Hash the contents of files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def hash_if_readable(path: Path) -> str | None:
    """Hash a file for a record; None where it cannot be read."""
    try:
        return sha256([path])
    except OSError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(v) for v in value]
    return value
