"""Retention: what names a person is deleted after a while, and it is said what was."""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from metricunet.errors import InputError
from metricunet.ledger.store import Ledger, stamp
from metricunet.ledger.table import count_rows

_UNITS = {"d": 1, "day": 1, "days": 1, "w": 7, "week": 7, "weeks": 7, "y": 365, "year": 365, "years": 365}
_AGE = re.compile(r"\s*([0-9]{1,6})\s*([a-z]+)\s*")


@dataclass(frozen=True)
class Pruned:
    """What was deleted.

    Attributes:
        before: moment before which it was.
        decisions: how many lost their reviewer and reason.
        events: how many lines of the audit trail are gone.
        cases: how many cases are gone with all that is known of them.
    """

    before: str
    decisions: int
    events: int
    cases: int

    @property
    def text(self) -> str:
        """What was deleted, in a sentence."""
        parts = [
            f"reviewer and reason of {_many(self.decisions, 'decision')}",
            _many(self.events, "line") + " of the audit trail",
        ]
        if self.cases:
            parts.append(f"{_many(self.cases, 'case')} with verdict, decisions and edits")
        return f"deleted of what is older than {self.before[:10]}: {', '.join(parts)}"


def age_of(text: str) -> timedelta:
    """Return how long is meant by a text such as `30d`, `30 days`, `8w` or `2y`; a year has 365 days.

    Raises:
        InputError: it is none.
    """
    found = _AGE.fullmatch(text.lower())
    if found is None or found[2] not in _UNITS:
        raise InputError(f"{text!r} is no length of time; expected one such as 30d, 8w or 2y")
    return timedelta(days=int(found[1]) * _UNITS[found[2]])


def prune(ledger: Ledger, keep: timedelta, *, cases: bool = False, now: datetime | None = None) -> Pruned:
    """Delete what names a person and is older: reviewers, reasons, and the audit trail of a node.

    Verdicts, decisions and edits stay, under keyed hashes, unless they are to go as well. What was deleted is
    overwritten in the file.

    Args:
        ledger: the ledger.
        keep: how long it is kept.
        cases: whether cases go as a whole whose last decision is older, or that nobody has decided on since.
        now: this moment; for tests.

    Raises:
        InputError: the ledger cannot be written.
    """
    moment = now or datetime.now(UTC)
    try:
        before = stamp(moment - keep)
    except OverflowError:  # before the calendar begins
        before = stamp(datetime(1, 1, 1, tzinfo=UTC))
    with ledger.writing() as db:
        emptied = db.execute(
            "UPDATE decisions SET reviewer = '', reason = '' "
            "WHERE decided < ? AND (reviewer != '' OR reason != '')",
            (before,),
        ).rowcount
        events = db.execute("DELETE FROM events WHERE moment < ?", (before,)).rowcount
        gone = _delete_cases(db, before) if cases else 0
    ledger.overwrite_deleted()
    return Pruned(before, emptied, events, gone)


def _delete_cases(db: sqlite3.Connection, before: str) -> int:
    count = count_rows(db, "cases")
    db.execute(
        "DELETE FROM cases "
        "WHERE coalesce((SELECT max(decided) FROM decisions WHERE case_id = cases.id), recorded) < ?",
        (before,),
    )
    return count - count_rows(db, "cases")


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
