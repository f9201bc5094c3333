"""A folder that is looked into: files that no longer change are copied in, each once; none is changed there.

A file that is no object of DICOM, that no rule takes, that is too large or one too many for its series, is passed
over from then on. Where the machine fails, since its disk is full for example, the file is tried again, and no
series from the folder is taken for whole before.
"""

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
from metricunet.files.atomic import FULL, write_json
from metricunet.workflows.serve.arrivals import Arrivals, NoRoom, NotTaken, TooMuch
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
        #: What went wrong at the last look, with which file: it is said once, however often it is tried again.
        self._faults: set[tuple[str, str]] = set()
        #: Files whose time lies ahead, and when they were first seen with it.
        self._ahead: dict[tuple[str, int, int], float] = {}

    def look(self, at_once: bool = False) -> int:
        """Copy in what is new and complete; return how many files were taken.

        Args:
            at_once: take files also that changed a moment ago.
        """
        taken = 0
        new: dict[str, list[int]] = {}
        faults: set[tuple[str, str]] = set()
        ahead: dict[tuple[str, int, int], float] = {}
        is_kept_out = False

        def closed(error: OSError) -> None:
            self._say_closed(faults, error)

        walk = os.walk(self.folder, onerror=closed)
        for path in (Path(parent) / name for parent, _, names in walk for name in names):
            # A name may be a patient's, so that its hash is remembered.
            key = hashlib.sha256(os.fsencode(path)).hexdigest()
            try:
                found = path.stat()
                stamp = [found.st_size, found.st_mtime_ns]
                if self._seen.get(key) == stamp or path.is_symlink() or not path.is_file():
                    continue
                now = self.clock()
                since = found.st_mtime
                if since > now:  # by a clock that is ahead of this one: it counts from when it was first seen so
                    mark = (key, found.st_size, found.st_mtime_ns)
                    since = ahead[mark] = self._ahead.get(mark, now)
                if not at_once and now - since < self.settled_s:
                    continue
                taken += self._take(path, found.st_size)
            except TooMuch as error:
                self._say(faults, "", "watched file not taken", str(error))
            except NoRoom:
                is_kept_out = True
                continue
            except InputError as error:  # nothing else would be taken either
                self._say(faults, "", "watched folder not taken in", told(error))
                is_kept_out = True
                break
            except OSError as error:
                self._say(faults, key, "watched file not read", error.strerror or type(error).__name__)
                if error.errno in FULL:
                    is_kept_out = True
                    break
                continue
            new[key] = stamp
        self._faults, self._ahead = faults, ahead
        if is_kept_out:
            self.arrivals.hold(SENDER)
        else:
            self.arrivals.end(SENDER)
        if new:
            self._seen |= new
            with suppress(InputError):
                write_json(self._record, self._seen)
        return taken

    def _take(self, path: Path, size: int) -> int:
        """Take a file, and return how many were taken: none where something is wrong with the file itself.

        Raises:
            TooMuch: it is too large, or one too many.
            NoRoom: there may be room later.
            InputError, OSError: the disk or the ledger.
        """
        self.arrivals.check_room(size)
        copy = self.state.receiving / f"{uuid4().hex}.dcm"
        try:
            shutil.copyfile(path, copy)
            self.arrivals.take(copy, SENDER)
        except NoRoom:
            raise
        except NotTaken:
            return 0
        finally:
            copy.unlink(missing_ok=True)
        return 1

    def _say_closed(self, faults: set[tuple[str, str]], error: OSError) -> None:
        """Say that the folder, or one below it, cannot be looked into; one below that is gone by now is none."""
        why = error.strerror or type(error).__name__
        if Path(error.filename) == self.folder:
            self._say(faults, "", "watched folder not read", why)
        elif not isinstance(error, FileNotFoundError):
            key = hashlib.sha256(os.fsencode(error.filename)).hexdigest()
            self._say(faults, key, "watched folder not read", f"one below it: {why}")

    def _say(self, faults: set[tuple[str, str]], key: str, event: str, why: str) -> None:
        """Note a fault among those of this look, and say it if it was none at the last one."""
        faults.add((key, why))
        if (key, why) not in self._faults:
            self.journal.say(event, "warning", why=why)

    def _read(self) -> dict[str, list[int]]:
        try:
            content = json.loads(self._record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}
