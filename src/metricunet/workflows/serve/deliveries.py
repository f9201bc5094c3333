"""What waits to be sent, to one destination by each thread, so that a slow one holds up no other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from metricunet.errors import told
from metricunet.ledger import Delivery, Queue
from metricunet.workflows.serve.config import Destination, NodeConfig
from metricunet.workflows.serve.journal import Journal
from metricunet.workflows.serve.outbound import send
from metricunet.workflows.serve.state import State, without_identifiers

LOOK_S = 0.5
#: After a failure the next attempt waits so long, twice as long after each, and no longer than the last.
FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=10), timedelta(hours=1)
#: So many files go in one association.
AT_ONCE = 20


class Sender(threading.Thread):
    """Sends what is due to one destination.

    Args:
        destination: where to.
        config: of the node.
        state: its folder.
        queue: its queue.
        journal: is told.
        given_up: is told of a delivery that is tried no more, and why.
    """

    def __init__(
        self,
        destination: Destination,
        config: NodeConfig,
        state: State,
        queue: Queue,
        journal: Journal,
        given_up: Callable[[Delivery, str], None],
    ) -> None:
        super().__init__(name=f"sender {destination.name}", daemon=True)
        self.destination, self.config, self.state = destination, config, state
        self.queue, self.journal, self.given_up = queue, journal, given_up
        self._wake, self._stopping = threading.Event(), threading.Event()

    def wake(self) -> None:
        """Tell the thread that something is due."""
        self._wake.set()

    def stop(self) -> None:
        """Send no more."""
        self._stopping.set()
        self._wake.set()

    def run(self) -> None:
        """Send what is due, until `stop`."""
        while not self._stopping.is_set():
            self._wake.wait(LOOK_S)
            self._wake.clear()
            try:
                while not self._stopping.is_set() and self.once():
                    pass
            except Exception as error:  # the disk may be full; the next look tries again
                self.journal.say("sending failed", "error", destination=self.destination.name, why=told(error))

    def once(self) -> int:
        """Send what is due, at most some files; return how many were tried."""
        due = [one for one in self.queue.due() if one.destination == self.destination.name][:AT_ONCE]
        there = [one for one in due if self._path(one).is_file()]
        for one in due:
            if one not in there:
                self._give_up(one, "its file was deleted")
        answers = send(self.destination, [self._path(one) for one in there], self.config.ae_title, self.config.tls)
        self._note(there, answers)
        return len(due)

    def _note(self, tried: Sequence[Delivery], answers: dict[Path, str]) -> None:
        now = datetime.now(UTC)
        for one in tried:
            why = without_identifiers(answers.get(self._path(one), "the association broke"))
            case = Path(one.file).name.partition(".")[0]
            facts = {"case": case, "destination": one.destination, "kind": one.kind}
            if not why:
                self.queue.delivered(one.id)
                self.journal.say("delivered", "info", **facts)
            elif now - datetime.fromisoformat(one.created) > self.config.limits.give_up:
                self._give_up(one, why)
            else:
                pause = min(FIRST_PAUSE * 2 ** min(one.attempts, 20), LONGEST_PAUSE)
                self.queue.put_off(one.id, why, next_attempt=now + pause)
                self.journal.say("not delivered", "warning", why=why, again_s=pause.total_seconds(), **facts)

    def _give_up(self, delivery: Delivery, why: str) -> None:
        self.queue.give_up(delivery.id, why)
        self.given_up(delivery, why)

    def _path(self, delivery: Delivery) -> Path:
        return self.state.folder / delivery.file
