"""A node at work: its doors, its workers, its senders and its web server, and the one loop that joins them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from metricunet.errors import InputError, told
from metricunet.ledger import Delivery, Job, Ledger, Queue
from metricunet.ledger.job import BAD
from metricunet.ledger.queue import NOTICE, PROGRAM
from metricunet.workflows.serve.arrivals import Arrivals
from metricunet.workflows.serve.commitment import Commitments
from metricunet.workflows.serve.config import NodeConfig
from metricunet.workflows.serve.decided import Decisions, why_rejected
from metricunet.workflows.serve.deliveries import Sender
from metricunet.workflows.serve.journal import Journal
from metricunet.workflows.serve.keep import delete_old
from metricunet.workflows.serve.notices import Notices
from metricunet.workflows.serve.pool import COMMAND, Worker
from metricunet.workflows.serve.recipe import begun_with, recipe_of, settings_digest
from metricunet.workflows.serve.state import State
from metricunet.workflows.serve.watch import WatchedFolder

#: The loop looks for series so often, for decisions and bad ends, into the watched folder, and for what is old.
LOOK_S, SLOW_S, WATCH_S, KEEP_S = 0.2, 1.0, 2.0, 3600.0
#: A worker that was started so often and never got ready is not waited for.
MOST_STARTS = 3


class Node:
    """All parts of a node.

    Args:
        file: the node's file.
        config: what it says.
        journal: is told what happens.
        command: of a worker.

    Raises:
        InputError: the folder of state, or a model, cannot be used.
    """

    def __init__(self, file: Path, config: NodeConfig, journal: Journal, command: Sequence[str] = COMMAND) -> None:
        self.file, self.config, self.journal = file, config, journal
        self.state = State(config.state)
        self.queue = Queue(Ledger(self.state.ledger))
        self.queue.give_back()  # nobody works yet
        self.notices = Notices(config.webhook, journal)
        digest = settings_digest(config)
        self.arrivals = Arrivals(config, self.state, self.queue, journal, lambda rule: recipe_of(rule, digest))
        self.decisions = Decisions(config, self.state, self.queue, journal)
        begun = begun_with(config, digest)
        self.workers = [
            Worker(file, device, config, self.queue, journal, self._ended, command, begun)
            for device in config.devices
        ]
        self.commitments = Commitments(self.queue, journal)
        self.senders = [
            Sender(one, config, self.state, self.queue, journal, self.commitments, self._given_up)
            for one in config.destinations
        ]
        self.watched = (
            None
            if config.watch is None
            else WatchedFolder(
                config.watch.folder, config.quiet.total_seconds(), self.arrivals, self.state, journal
            )
        )
        #: Lets go of associations that ended without a word.
        self.prune: Callable[[], None] = lambda: None
        self.began = time.time()
        self._stopping, self._wake = threading.Event(), threading.Event()
        self._told = self.queue.noticed()
        self._next_watch = self._next_keep = self._next_slow = 0.0

    def start(self) -> None:
        """Start workers, senders and notices."""
        for one in (*self.workers, *self.senders, self.notices):
            one.start()

    def stop(self) -> None:
        """End the loop."""
        self._stopping.set()
        self._wake.set()

    def close(self) -> None:
        """End workers, senders and notices; what they had in hand is taken up at the next start."""
        self.notices.stop()
        for sender in self.senders:
            sender.stop()
        for worker in self.workers:
            worker.stop()
        with suppress(InputError):  # the next start does it, too
            self.queue.give_back()

    def run(self) -> None:
        """Look around until `stop`. Whatever goes wrong in one round is said, and the next one tried."""
        while not self._stopping.is_set():
            try:
                self.look()
            except Exception as error:
                self.journal.say("round failed", "error", why=told(error))
            self._wake.wait(LOOK_S)
            self._wake.clear()

    def look(self, at_once: bool = False) -> None:
        """Look around once: what came, what was decided, what went wrong, what is old.

        Args:
            at_once: do not wait for quiet times.
        """
        now = time.monotonic()
        if self.watched is not None and (at_once or now >= self._next_watch):
            self.watched.look(at_once)
            self._next_watch = time.monotonic() + WATCH_S
        self.prune()
        if self.arrivals.gather(at_once):
            for worker in self.workers:
                worker.wake()
        # What fails is tried again in its time, too, and not in every round.
        if at_once or now >= self._next_slow:
            self._next_slow = now + SLOW_S
            self.decisions.hold_sent()
            if self.decisions.look():
                self.wake_senders()
            self._give_up_strays()
            self._tell_bad()
        if now >= self._next_keep:
            self._next_keep = now + KEEP_S
            delete_old(self.config, self.state, self.queue, self.journal)
            self.arrivals.delete_unknown()

    def work_off(self) -> bool:
        """Take in what is there, segment it and try each delivery once; return whether all went well."""
        self.look(at_once=True)
        for worker in self.workers:
            worker.start()
        while self._has_work() and not self._stopping.is_set():
            if all(worker.restarts >= MOST_STARTS and not worker.ready for worker in self.workers):
                break
            self._wake.wait(LOOK_S)
            self._wake.clear()
        for sender in self.senders:
            while sender.once():
                pass
        self.look(at_once=True)
        self.notices.drain()
        counts = self.queue.counts()
        return (
            not self.notices.raised
            and not self.arrivals.arriving
            and not counts["sending"]
            and not counts["waiting"]
            and not counts["segmenting"]
        )

    def _has_work(self) -> bool:
        """Tell whether a worker has a case, or may take one that was not put off."""
        return any(not job.is_put_off for job in self.queue.jobs("waiting", "segmenting"))

    def _ended(self, job: Job | None) -> None:
        self.wake_senders()
        self._wake.set()

    def wake_senders(self) -> None:
        """Tell the senders that something may be due."""
        for sender in self.senders:
            sender.wake()

    def _given_up(self, delivery: Delivery, why: str) -> None:
        self.journal.say("given up", "warning", destination=delivery.destination, why=why)
        self._wake.set()

    def _give_up_strays(self) -> None:
        """Give up what waits for a destination that the node's file has no longer, so that somebody is told."""
        for one in self.queue.under_way():
            if self.config.destination(one.destination) is None:
                why = (
                    f"the node's file has no destination {one.destination!r} any more; put it back, restart the "
                    "node and try again"
                )
                self.queue.give_up(one.id, why)
                self._given_up(one, why)

    def _tell_bad(self) -> None:
        """Raise a notice for each case that came to a bad end since the last look, or was rejected once sent."""
        bad, out = self.queue.jobs(*BAD, "rejected"), self.queue.out_though_rejected()
        moments: dict[int, str] = {}
        for job in bad:
            there = out.get(job.id, {})
            if job.state not in BAD and not there:
                continue
            # What was on its way when it was rejected may have come there since.
            moments[job.id] = max([job.changed, *there.values()])
            if self._told.get(job.id, "") < moments[job.id]:
                why = why_rejected(there) if there else job.why
                self.notices.tell(f"case {job.state}", case=Path(job.folder).name, state=job.state, why=why)
                self.queue.note(PROGRAM, NOTICE, job_id=job.id, subject=job.state)
        self._told = moments
