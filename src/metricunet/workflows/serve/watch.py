"""A folder that is looked into: files that no longer change are copied in, each once; none is changed there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from metricunet.errors import InputError, told
from metricunet.files.atomic import write_json
from metricunet.workflows.serve.arrivals import Arrivals, NoRoom, NotTaken
from metricunet.workflows.serve.journal import Journal
from metricunet.workflows.serve.state import State

#: What stands for a sender.
SENDER = "folder"
RECORD = "watched.json"


class WatchedFolder:
    """Looks into a folder.

    Args:
        folder: to look into, with those below.
        settled_s: a file that has not changed for so long is complete.
        arrivals: takes the files.
        state: folder of the node.
        journal: is told.
        clock: wall clock in seconds, as files have it.
    """

    def __init__(
        self,
        folder: Path,
        settled_s: float,
        arrivals: Arrivals,
        state: State,
        journal: Journal,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder, self.settled_s, self.arrivals = folder, settled_s, arrivals
        self.state, self.journal, self.clock = state, journal, clock
        self._record = state.folder / RECORD
        self._seen = self._read()

    def look(self, at_once: bool = False) -> int:
        """Copy in what is new and complete; return how many files were taken.

        Args:
            at_once: take files also that changed a moment ago.
        """
        taken = 0
        new: dict[str, list[int]] = {}
        for parent, _, names in os.walk(self.folder):
            for name in names:
                path = Path(parent) / name
                # A name may be a patient's, so that its hash is remembered.
                key = hashlib.sha256(os.fsencode(path)).hexdigest()
                try:
                    found = path.stat()
                    stamp = [found.st_size, found.st_mtime_ns]
                    if self._seen.get(key) == stamp or path.is_symlink() or not path.is_file():
                        continue
                    if not at_once and self.clock() - found.st_mtime < self.settled_s:
                        continue
                    taken += self._take(path, found.st_size)
                except NoRoom:
                    continue  # it is tried again
                except OSError as error:
                    self.journal.say("watched file not read", "warning", why=str(error.strerror))
                    continue
                new[key] = stamp
        if new:
            self._seen |= new
            with suppress(InputError):
                write_json(self._record, self._seen)
        return taken

    def _take(self, path: Path, size: int) -> int:
        self.arrivals.check_room(size)
        copy = self.state.receiving / f"{uuid4().hex}.dcm"
        try:
            shutil.copyfile(path, copy)
            self.arrivals.take(copy, SENDER)
        except NoRoom:
            raise
        except NotTaken:
            return 0
        except InputError as error:
            self.journal.say("watched file not taken", "warning", why=told(error))
            return 0
        finally:
            copy.unlink(missing_ok=True)
        return 1

    def _read(self) -> dict[str, list[int]]:
        try:
            content = json.loads(self._record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}
