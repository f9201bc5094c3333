"""What a queue holds: jobs and their deliveries, the states of both, and where they may go from them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from metricunet.errors import InputError

#: What a job can be doing, in words for people.
State = Literal[
    "received",  # its slices are coming in
    "waiting",  # for a worker
    "segmenting",
    "review",  # a person is to decide
    "sending",
    "sent",
    "kept",  # it ended well, and nobody wanted it sent
    "rejected",  # by a reviewer; nothing is sent
    "refused",  # it cannot be segmented, or no rule takes it
    "failed",  # segmented or sent without success
    "set aside",  # it has killed its worker more often than is allowed
]
STATES: tuple[State, ...] = get_args(State)
#: Ends that somebody has to be told of.
BAD: tuple[State, ...] = ("refused", "failed", "set aside")
#: Where a job may go from a state.
NEXT: Mapping[State, tuple[State, ...]] = {
    "received": ("waiting", "refused", "failed"),
    "waiting": ("segmenting", "refused", "set aside"),
    "segmenting": ("waiting", "review", "sending", "kept", "refused", "failed", "set aside"),
    "review": ("sending", "kept", "rejected", "waiting"),
    "sending": ("sent", "kept", "failed", "review", "rejected"),
    "sent": ("sending", "review", "rejected"),
    "kept": ("sending", "review", "rejected"),
    "rejected": ("review", "sending", "kept"),
    "refused": ("waiting",),
    "failed": ("waiting", "sending", "kept", "review", "rejected"),
    "set aside": ("waiting",),
}
#: States of a job whose deliveries may be tried at once, and of one that may be sent once more as a whole: what a
#: reviewer has rejected or has yet to decide on is neither.
TRIED_NOW: tuple[State, ...] = ("sending", "failed")
SENT_AGAIN: tuple[State, ...] = ("sent", "failed")
#: States that nothing follows by itself.
ENDS: tuple[State, ...] = ("sent", "kept", "rejected", "refused", "failed", "set aside")
DeliveryState = Literal["waiting", "stored", "sent", "confirmed", "failed", "dropped"]
DELIVERY_STATES: tuple[DeliveryState, ...] = get_args(DeliveryState)
#: States of a delivery whose file the destination has, of one that is under way, and of either.
ARRIVED: tuple[DeliveryState, ...] = ("stored", "sent", "confirmed")
UNDER_WAY: tuple[DeliveryState, ...] = ("waiting", "stored")
LIVE: tuple[DeliveryState, ...] = ("waiting", *ARRIVED)


class StateChanged(InputError):  # noqa: N818
    """A job is not, or no longer, in a state from which it can go where it was sent.

    Attributes:
        job: as it is.
    """

    def __init__(self, job: Job, wanted: str, of: Collection[str] = ()) -> None:
        self.job = job
        of = of or [state for state, after in NEXT.items() if wanted in after]
        super().__init__(
            f"job {job.id} is {job.state} and cannot become {wanted}; expected one that is "
            f"{' or '.join(of) or 'another'}"
        )


@dataclass(frozen=True)
class Job:
    """One input and what is done with it.

    Attributes:
        id: number of the job.
        input_id: number of the input.
        recipe: name of what is to be done, such as a rule of the node's file.
        state: see `STATES`.
        why: of a state that needs a reason; empty for others.
        worker: that works on it; None where none does.
        attempts: how often a worker took it.
        deaths: how often its worker died of it.
        not_before: when a worker may take it at the earliest.
        created: when the input began to come in.
        changed: when its state last changed.
        case_id: row of the verdict; None where there is none yet.
        series: keyed hash of the series.
        study: keyed hash of the study.
        patient: keyed hash of the patient.
        sender: who sent it.
        folder: of its files.
        digest: of the whole input; None while it comes in.
        files: number of its files.
        bytes: size of its files.
        whole: when the last of its files was there; None while it comes in.
    """

    id: int
    input_id: int
    recipe: str
    state: State
    why: str
    worker: str | None
    attempts: int
    deaths: int
    not_before: str
    created: str
    changed: str
    case_id: int | None
    series: str
    study: str
    patient: str
    sender: str
    folder: str
    digest: str | None
    files: int
    bytes: int
    whole: str | None

    @property
    def is_put_off(self) -> bool:
        """Whether it waits for its time to come, and not for a worker alone."""
        return self.state == "waiting" and self.not_before > self.changed and self.not_before != self.created


@dataclass(frozen=True)
class Outgoing:
    """One file that is to go to one destination.

    Attributes:
        destination: name of the destination.
        kind: `rtstruct` or `seg`.
        file: relative to the node's folder of state.
        sop_uid: SOPInstanceUID of the file.
    """

    destination: str
    kind: str
    file: str
    sop_uid: str


@dataclass(frozen=True)
class Delivery:
    """One file on its way to one destination.

    Attributes:
        id: number of the delivery.
        job_id: that it is of.
        destination: name of the destination.
        kind: `rtstruct` or `seg`.
        file: that is sent, relative to the node's folder of state.
        sop_uid: SOPInstanceUID of the file; a repeat of it is the same delivery.
        state: `waiting`, `sent`, `failed`; where the destination is asked to commit to keep it, `stored` until it
            has, and `confirmed` then; `dropped` where it is sent no more, for its case was segmented again,
            rejected or corrected.
        attempts: how often it was tried.
        next_attempt: when to try at the earliest, to send or, where it is `stored`, to ask.
        error: of the last attempt; empty where it went well.
        created: when it was asked for.
        changed: when its state last changed.
    """

    id: int
    job_id: int
    destination: str
    kind: str
    file: str
    sop_uid: str
    state: DeliveryState
    attempts: int
    next_attempt: str
    error: str
    created: str
    changed: str
