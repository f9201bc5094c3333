"""From what a person decided on a case to what is sent of it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from metricunet.files.reviews import Review, reviews_in
from metricunet.inference.case_files import SUFFIXES
from metricunet.ledger import Job, Queue, StateChanged
from metricunet.workflows.serve.config import NodeConfig
from metricunet.workflows.serve.journal import Journal
from metricunet.workflows.serve.outbound import sop_uid_of
from metricunet.workflows.serve.recipe import rule_of
from metricunet.workflows.serve.state import State


class Decisions:
    """Moves cases on that were reviewed.

    Args:
        config: of the node.
        state: its folder.
        queue: its queue.
        journal: is told.
    """

    def __init__(self, config: NodeConfig, state: State, queue: Queue, journal: Journal) -> None:
        self.config, self.state, self.queue, self.journal = config, state, queue, journal
        self._settled: dict[int, str] = {}

    def look(self) -> int:
        """Move on every case that waits for a decision and has one; return how many."""
        waiting = self.queue.jobs("review")
        if not waiting:
            return 0
        reviews = reviews_in(self.state.predictions)
        moved = 0
        for job in waiting:
            found = reviews.get(Path(job.folder).name, ())
            if found:
                with suppress(StateChanged):
                    self.follow(job, found[-1])
                    moved += 1
        return moved

    def hold_sent(self) -> None:
        """Let cases wait for a decision that were sent to some at once, and go to others when accepted."""
        if all(one.send == "at_once" for one in self.config.destinations):
            return
        sent = self.queue.jobs("sent")
        for job in sent:
            if self._settled.get(job.id) == job.changed:
                continue
            reached = {one.destination for one in self.queue.deliveries(job.id)}
            rule = rule_of(self.config, job.recipe)
            later = [
                one
                for one in (self.config.destinations_of(rule) if rule is not None else ())
                if one.send == "on_accept" and one.name not in reached
            ]
            if later:
                with suppress(StateChanged):
                    self.queue.move(job.id, "review", f"{later[0].name} gets it when somebody has accepted it")
        self._settled = {job.id: job.changed for job in sent}

    def follow(self, job: Job, review: Review) -> None:
        """Do what a decision asks for.

        Args:
            job: in state `review`.
            review: the last one of its case.

        Raises:
            StateChanged: the job is in another state by now.
        """
        case = Path(job.folder).name
        if review.decision == "rejected":
            self.queue.move(job.id, "rejected", "a reviewer rejected it", actor=review.reviewer)
            self.journal.say("rejected", case=case, job=job.id)
            return
        rule = rule_of(self.config, job.recipe)
        reached = {one.destination for one in self.queue.deliveries(job.id)}
        wanted = [
            (one, kind, file)
            for one in (self.config.destinations_of(rule) if rule is not None else ())
            if one.name not in reached
            for kind in one.formats
            if (file := self._file(case, kind, review)) is not None
        ]
        with self.queue.ledger.writing():
            if not wanted:
                self.queue.move(job.id, "kept", "accepted, and there is nothing to send", actor=review.reviewer)
            else:
                self.queue.move(job.id, "sending", actor=review.reviewer)
                for destination, kind, file in wanted:
                    relative = file.relative_to(self.state.folder).as_posix()
                    self.queue.deliver(job.id, destination.name, kind, relative, sop_uid_of(file))
        self.journal.say("accepted", case=case, job=job.id, decision=review.decision, files=len(wanted))

    def _file(self, case: str, kind: str, review: Review) -> Path | None:
        """Return what is sent: the reviewed structure set; the segmentation where nothing was corrected."""
        if kind == "rtstruct":
            return review.structure_set
        path = self.state.predictions / f"{case}{SUFFIXES['seg']}"
        return path if review.decision == "accepted" and path.is_file() else None
