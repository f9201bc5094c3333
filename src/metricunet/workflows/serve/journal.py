"""What a node says: a JSON line for each event, to standard error and a file a day. It names no patient."""

from __future__ import annotations

import json
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TextIO

from metricunet.workflows.serve.state import without_identifiers

Level = Literal["info", "warning", "error"]
#: A sentence of a library may be a page long.
LONGEST = 500


class Journal:
    """Writes the lines; threads may share it.

    Args:
        folder: of the files, one for each day in UTC; None writes none.
        stream: that the lines go to as well; None for none.
    """

    def __init__(self, folder: Path | None, stream: TextIO | None = sys.stderr) -> None:
        self.folder, self.stream = folder, stream
        self._lock = threading.Lock()

    def say(self, event: str, level: Level = "info", **facts: object) -> None:
        """Write a line. That it cannot be written stops nothing.

        Args:
            event: what happened, in a word or two.
            level: `warning` where a person ought to look.
            facts: more of it: numbers, names of cases, rules and destinations, sentences.
        """
        moment = datetime.now(UTC)
        plain = {
            name: without_identifiers(value)[:LONGEST] if isinstance(value, str) else value
            for name, value in facts.items()
        }
        line = json.dumps(
            {"time": moment.isoformat(timespec="milliseconds"), "level": level, "event": event, **plain},
            default=str,
        )
        with self._lock:
            # Each by itself: whoever read the stream may be gone, and the file is still written.
            with suppress(OSError, ValueError):
                if self.folder is not None:
                    with (self.folder / f"{moment:%Y-%m-%d}.jsonl").open("a", encoding="utf-8") as handle:
                        handle.write(f"{line}\n")
            with suppress(OSError, ValueError):
                if self.stream is not None:
                    print(line, file=self.stream, flush=True)
