"""Notices: what a person has to know, told to an address of the web, without a patient's name."""

from __future__ import annotations

import json
import queue
import threading
from http.client import HTTPException

from metricunet.workflows.serve.journal import Journal
from metricunet.workflows.serve.outbound import post

ANSWER_S = 10
#: A notice is tried so often, with a pause that doubles; more notices than fit are dropped, and stay in the log.
ATTEMPTS, FIRST_PAUSE_S, MOST_WAITING = 6, 2.0, 1000


class Notices(threading.Thread):
    """Tells an address, one notice after another.

    Args:
        url: of the address; None tells nobody but the log.
        journal: is told of every notice.
    """

    def __init__(self, url: str | None, journal: Journal) -> None:
        super().__init__(name="notices", daemon=True)
        self.url, self.journal = url, journal
        self.raised = 0
        self._waiting: queue.Queue[dict[str, object] | None] = queue.Queue(MOST_WAITING)
        self._stopping = threading.Event()

    def tell(self, event: str, **facts: object) -> None:
        """Raise a notice.

        Args:
            event: what happened, in a word or two.
            facts: name of the case, its state, a sentence why.
        """
        self.raised += 1
        self.journal.say("notice", "warning", what=event, **facts)
        if self.url is not None:
            try:
                self._waiting.put_nowait({"event": event, **facts})
            except queue.Full:
                self.journal.say("notice dropped", "error", what=event)

    def run(self) -> None:
        """Post what waits, until `stop`."""
        while (notice := self._waiting.get()) is not None:
            self._post(notice)

    def stop(self) -> None:
        """Post no more."""
        self._stopping.set()
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            return

    def drain(self) -> None:
        """Post what waits in this thread, once each."""
        while not self._waiting.empty():
            notice = self._waiting.get_nowait()
            if notice is not None:
                self._post(notice, attempts=1)

    def _post(self, notice: dict[str, object], attempts: int = ATTEMPTS) -> None:
        assert self.url is not None
        body = json.dumps(notice, default=str).encode()
        pause = FIRST_PAUSE_S
        for attempt in range(attempts):
            try:
                post(self.url, body, {"Content-Type": "application/json"}, ANSWER_S)
                return
            except (OSError, HTTPException, ValueError) as error:
                if attempt == attempts - 1:
                    self.journal.say("webhook failed", "error", why=str(error))
            if self._stopping.wait(pause):
                return
            pause *= 2
