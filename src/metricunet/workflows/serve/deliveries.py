"""What waits to be sent, to one destination by each thread, so that a slow one holds up no other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from metricunet.errors import told
from metricunet.ledger import Delivery, Queue
from metricunet.ledger.job import DeliveryState
from metricunet.workflows.serve.commitment import Commitments, facts_of, transaction_of
from metricunet.workflows.serve.config import Destination, NodeConfig
from metricunet.workflows.serve.journal import Journal
from metricunet.workflows.serve.outbound import Question, ask, send
from metricunet.workflows.serve.state import State, without_identifiers

LOOK_S = 0.5
#: After a failure the next attempt waits so long, twice as long after each, and no longer than the last.
FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=10), timedelta(hours=1)
#: A peer that was asked for its commitment, and has not answered, is asked again after so long.
PATIENCE = timedelta(hours=1)
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
        commitments: takes what a peer says that commits to keep a file.
        given_up: is told of a delivery that is tried no more, and why.
    """

    def __init__(
        self,
        destination: Destination,
        config: NodeConfig,
        state: State,
        queue: Queue,
        journal: Journal,
        commitments: Commitments,
        given_up: Callable[[Delivery, str], None],
    ) -> None:
        super().__init__(name=f"sender {destination.name}", daemon=True)
        self.destination, self.config, self.state = destination, config, state
        self.queue, self.journal = queue, journal
        self.commitments, self.given_up = commitments, given_up
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
        """Send what is due, at most some files, and ask for commitments that are; return how many were tried."""
        due = self._due("waiting")
        there = [one for one in due if self._path(one).is_file()]
        for one in due:
            if one not in there:
                self._give_up(one, "its file was deleted")
        answers = send(self.destination, [self._path(one) for one in there], self.config.ae_title, self.config.tls)
        self._note(there, answers)
        return len(due) + self._ask()

    def _due(self, state: DeliveryState) -> list[Delivery]:
        return [one for one in self.queue.due(state) if one.destination == self.destination.name][:AT_ONCE]

    def _ask(self) -> int:
        """Ask the peer to commit to what it has taken; return how many files it was asked for."""
        due = self._due("stored")
        now = datetime.now(UTC)
        asked: list[Delivery] = []
        for one in due:
            if self._too_old(one, now):
                self._give_up(one, one.error or "the peer has not said that it keeps it")
            else:  # before it is asked: it may answer at once
                asked.append(self.queue.stored(one.id, one.error, next_attempt=now + PATIENCE))
        if not asked:
            return len(due)
        questions = {
            one.id: Question(transaction_of(self.queue, one, one.attempts), one.kind, one.sop_uid) for one in asked
        }
        answers = ask(
            self.destination,
            list(questions.values()),
            self.config.ae_title,
            self.config.tls,
            self.commitments.answer,
        )
        for one in asked:
            why = without_identifiers(answers.get(questions[one.id].transaction, "the association broke"))
            facts = facts_of(one)
            if why:
                pause = _pause(one)
                self.queue.stored(one.id, why, next_attempt=now + pause)
                self.journal.say(
                    "commitment not asked", "warning", why=why, again_s=pause.total_seconds(), **facts
                )
            else:
                self.journal.say("commitment asked", **facts)
        return len(due)

    def _too_old(self, delivery: Delivery, now: datetime) -> bool:
        return now - datetime.fromisoformat(delivery.created) > self.config.limits.give_up

    def _note(self, tried: Sequence[Delivery], answers: dict[Path, str]) -> None:
        now = datetime.now(UTC)
        for one in tried:
            why = without_identifiers(answers.get(self._path(one), "the association broke"))
            facts = facts_of(one)
            if not why:
                if self.destination.commitment:
                    self.queue.stored(one.id, next_attempt=now)
                else:
                    self.queue.delivered(one.id)
                self.journal.say("delivered", "info", **facts)
            elif self._too_old(one, now):
                self._give_up(one, why)
            else:
                pause = _pause(one)
                self.queue.put_off(one.id, why, next_attempt=now + pause)
                self.journal.say("not delivered", "warning", why=why, again_s=pause.total_seconds(), **facts)

    def _give_up(self, delivery: Delivery, why: str) -> None:
        self.queue.give_up(delivery.id, why)
        self.given_up(delivery, why)

    def _path(self, delivery: Delivery) -> Path:
        return self.state.folder / delivery.file


def _pause(delivery: Delivery) -> timedelta:
    pause: timedelta = FIRST_PAUSE * 2 ** min(delivery.attempts, 20)
    return min(pause, LONGEST_PAUSE)
