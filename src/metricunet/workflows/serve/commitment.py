"""Storage commitment: a peer that has taken an object is asked to say that it keeps it, and says so later.

The node asks by N-ACTION. The peer answers by N-EVENT-REPORT, on the association of the question or on one that it
opens to the node. Each question of a delivery has an identifier of its own, a keyed hash: nobody can guess it, and
whose it is can be told without remembering it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from metricunet.ledger import Delivery, Queue
from metricunet.workflows.serve.journal import Journal

SUCCESS, NO_SUCH_EVENT, INVALID_ARGUMENT = 0x0000, 0x0113, 0x0115
#: Of an answer: every object is kept; some are not.
ALL_KEPT, SOME_NOT_KEPT = 1, 2
#: Root of identifiers that are a number of 128 bits.
_ROOT, _DIGITS = "2.25.", 32
#: An object that the peer does not keep is sent again after so long.
SEND_AGAIN = timedelta(minutes=1)


def transaction_of(queue: Queue, delivery: Delivery, attempt: int) -> str:
    """Return the identifier of a question for a delivery.

    Args:
        queue: that the delivery is in.
        delivery: a file that the peer has taken.
        attempt: how often the delivery was tried before the question.
    """
    text = queue.ledger.key.hashed(
        "commitment", str(delivery.id), delivery.sop_uid, delivery.created, str(attempt)
    )
    return f"{_ROOT}{int(text[:_DIGITS], 16)}"


class Commitments:
    """Takes the answers of peers. Threads may share it.

    Args:
        queue: of the node.
        journal: is told.
    """

    def __init__(self, queue: Queue, journal: Journal) -> None:
        self.queue, self.journal = queue, journal

    def answer(self, kind: int | None, answer: Dataset) -> int:
        """Note what a peer says of the objects that it was asked for.

        Args:
            kind: of the answer, its Event Type ID.
            answer: its Event Information.

        Returns:
            The status of the N-EVENT-REPORT: 0x0115 where nobody has asked.
        """
        if kind not in (ALL_KEPT, SOME_NOT_KEPT):
            return NO_SUCH_EVENT
        delivery = self._asked(str(answer.get("TransactionUID", "")))
        if delivery is None:
            self.journal.say("commitment refused", "warning", why="an answer to nothing that was asked")
            return INVALID_ARGUMENT
        facts = facts_of(delivery)
        if delivery.sop_uid in _uids(answer, "ReferencedSOPSequence"):
            if delivery.state == "stored":
                self.queue.delivered(delivery.id, confirmed=True)
                self.journal.say("committed", **facts)
            return SUCCESS
        failed = _uids(answer, "FailedSOPSequence")
        if delivery.sop_uid not in failed:
            return INVALID_ARGUMENT
        if delivery.state == "stored":
            why = f"the peer does not keep it ({failed[delivery.sop_uid]})"
            self.queue.put_off(delivery.id, why, next_attempt=datetime.now(UTC) + SEND_AGAIN)
            self.journal.say("not committed", "warning", why=why, again_s=SEND_AGAIN.total_seconds(), **facts)
        return SUCCESS

    def _asked(self, transaction: str) -> Delivery | None:
        """Return the delivery that a question was about; None where there was no such question."""
        return next(
            (
                delivery
                for delivery in self.queue.taken()
                for attempt in range(delivery.attempts, 0, -1)
                if transaction_of(self.queue, delivery, attempt) == transaction
            ),
            None,
        )


def facts_of(delivery: Delivery) -> dict[str, Any]:
    """Return what the journal says of a delivery: case, destination and kind of file."""
    case = Path(delivery.file).name.partition(".")[0]
    return {"case": case, "destination": delivery.destination, "kind": delivery.kind}


def _uids(answer: Dataset, sequence: str) -> Mapping[str, str]:
    """Return the instances that an answer lists, each with the reason that it states, if any."""
    items: Any = answer.get(sequence) or []
    return {str(item.get("ReferencedSOPInstanceUID", "")): _reason(item.get("FailureReason")) for item in items}


def _reason(code: object) -> str:
    return f"reason 0x{code:04X}" if isinstance(code, int) else "no reason given"
