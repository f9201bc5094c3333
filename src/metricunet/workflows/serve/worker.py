"""A worker of a node: a process of its own, which loads the models once and takes one case after another.

It is told over its standard input that there is work; the end of that input is the end of the node, and it goes at
once, so that no worker outlives its node.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from metricunet.errors import InputError, told
from metricunet.ledger import StateChanged
from metricunet.ledger.job import BAD
from metricunet.workflows.serve.config import NodeConfig, read_node
from metricunet.workflows.serve.journal import Journal, Level
from metricunet.workflows.serve.patience import insist
from metricunet.workflows.serve.recipe import begun_with, settings_digest
from metricunet.workflows.serve.state import State
from metricunet.workflows.serve.work import Workshop

#: It looks for work by itself so often.
LOOK_S = 1.0


class BeginAnew(Exception):  # noqa: N818
    """The process may be spoilt for other cases, and has to end. The node starts another one at once."""


def main(node: Path, device: str, begun: str = "") -> None:
    """Work until the standard input ends, or the process may be spoilt for other cases.

    Args:
        node: the node's file.
        device: to compute on; also the worker's name in the queue.
        begun: what the node has begun with, see `begun_with`; empty where that is not to be compared.
    """
    os.umask(0o077)
    wake = threading.Event()
    threading.Thread(target=_listen, args=(wake,), daemon=True).start()
    journal = Journal(None)
    try:
        config = read_node(node)
        journal = Journal(State(config.state).log)
        check_unchanged(config, begun)
        workshop = Workshop(config, device)
    except InputError as error:
        journal.say("worker cannot start", "error", worker=device, why=told(error))
        sys.exit(2)
    journal.say("worker ready", worker=device)
    print("ready", flush=True)
    while True:
        try:
            worked = work_once(workshop, device, journal)
        except BeginAnew:
            os._exit(3)  # at once: what a GPU was left with may never come to an end
        if not worked:
            wake.wait(LOOK_S)
            wake.clear()


def check_unchanged(config: NodeConfig, begun: str) -> None:
    """Refuse to work with another file, model or version than the node and its other workers.

    Args:
        config: as it is now.
        begun: what the node has begun with, see `begun_with`; empty where that is not to be compared.

    Raises:
        InputError: something is another one now.
    """
    if begun and begun != begun_with(config, settings_digest(config)):
        raise InputError(
            "the node's file, a model or the version of metricunet is another one than when the node began; "
            "restart the node"
        )


def work_once(workshop: Workshop, device: str, journal: Journal) -> bool:
    """Take a case and work on it; return whether there was one.

    Where the ledger cannot be written, that is no fault of the case: as soon as it can be, the case waits again.

    Args:
        workshop: segments it.
        device: the worker's name in the queue.
        journal: is told.

    Raises:
        BeginAnew: the case has come to its end, and no other one is to be worked on in this process.
    """

    def say(why: str) -> None:
        journal.say("ledger not written", "error", worker=device, why=why)

    job = insist(lambda: workshop.queue.take(device), say)
    if job is None:
        return False
    case, unrecorded, anew = Path(job.folder).name, "", False
    print(f"begin {job.id}", flush=True)
    try:
        worked = workshop.work(job)
    except StateChanged as error:  # another worker had it, since this one was taken for dead
        journal.say("case was in other hands", "warning", case=case, why=told(error))
    except InputError as error:
        unrecorded = told(error)
    else:
        level: Level = "warning" if worked.state in (*BAD, "waiting") else "info"
        event = "case put off" if worked.state == "waiting" else "case done"
        journal.say(event, level, case=case, job=job.id, state=worked.state, why=worked.why)
        anew = worked.anew
    print(f"end {job.id}", flush=True)
    if unrecorded:
        say(unrecorded)
        insist(lambda: workshop.queue.give_back(device), say)
    if anew:
        journal.say("worker begins anew", "warning", worker=device, why="a case may have spoilt it for others")
        raise BeginAnew
    return True


def _listen(wake: threading.Event) -> None:
    for _ in sys.stdin:
        wake.set()
    os._exit(0)  # whatever it was doing: a job that is not finished is taken up again


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:4])
