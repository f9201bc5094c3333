"""Retention: scans, masks, corrections and the journal go when they are old, and it is said what went."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from metricunet.files.atomic import STAGING
from metricunet.files.own import record_of_staging
from metricunet.ledger import Queue
from metricunet.ledger.job import ENDS
from metricunet.workflows.serve.config import NodeConfig
from metricunet.workflows.serve.journal import Journal
from metricunet.workflows.serve.state import State

#: A case that waits for a person goes as well when it is old; one that is worked on or sent does not.
OLD = (*ENDS, "review")


def delete_old(
    config: NodeConfig,
    state: State,
    queue: Queue,
    journal: Journal,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> int:
    """Delete what is older than the node keeps things; return how many cases went.

    Args:
        config: of the node.
        state: its folder.
        queue: its queue.
        journal: is told what went.
        clock: tells the moment.
    """
    try:
        before = clock() - config.keep
    except OverflowError:  # before the calendar begins
        before = datetime.min.replace(tzinfo=UTC)
    old = [job for job in queue.jobs(*OLD) if datetime.fromisoformat(job.changed) < before]
    results = _results(state.predictions) if old else {}
    gone = 0
    for job in old:
        case = Path(job.folder).name
        files = results.get(case, [])
        folder = state.folder / job.folder
        objects = sum(1 for _ in folder.glob("*.dcm")) if folder.is_dir() else 0
        # Nobody moves the case on meanwhile. The rows go last: a kill before them is made good at the next look.
        with queue.ledger.writing():
            if queue.job(job.id) != job:
                continue  # somebody has: it is old no more
            try:
                for path in (*files, folder):
                    _remove(path)
            except OSError as error:
                journal.say("not deleted", "error", case=case, why=str(error.strerror or error))
                continue
            queue.forget(job.input_id)
        gone += 1
        journal.say("deleted", case=case, state=job.state, objects=objects, files=len(files))
    lines = queue.forget_events(before)
    days = [path for path in state.log.glob("*.jsonl") if path.stem < before.date().isoformat()]
    for path in days:
        with suppress(OSError):
            path.unlink()
    if lines or days:
        journal.say("deleted", journal_lines=lines, log_days=len(days))
    return gone


def _results(folder: Path) -> dict[str, list[Path]]:
    """Return for each case what lies in the folder of predictions of it, half-written files of a kill included."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in folder.iterdir():
        name = record_of_staging(path) if path.name.startswith(STAGING) else path.name
        if name is not None:
            found[name.partition(".")[0]].append(path)
    return found


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
