"""The ledger: verdict, decision and edit of every case over time, and the queue of a node, in one SQLite file.

`schema` has the tables as numbered migrations, `store` opens the file, `keys` hashes what identifies people,
`edits` measures what a reviewer changed, `records` writes verdicts and decisions, and `queue` is the node's: what
came in, jobs with their states, deliveries and the audit trail; its docstring shows how a node uses it.

A `Ledger` is cheap to make and needs no closing: each transaction opens the file and closes it again. Threads may
share one; every process makes its own. Nothing here needs anything but the standard library and the measures.
"""

from metricunet.ledger.job import Delivery, Job, StateChanged
from metricunet.ledger.queue import Queue
from metricunet.ledger.records import CaseFacts, DecisionFacts, Model, Scanner, record_case, record_decision
from metricunet.ledger.store import Ledger

__all__ = [
    "CaseFacts",
    "DecisionFacts",
    "Delivery",
    "Job",
    "Ledger",
    "Model",
    "Queue",
    "Scanner",
    "StateChanged",
    "record_case",
    "record_decision",
]
