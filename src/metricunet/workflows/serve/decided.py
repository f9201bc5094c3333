"""From what a person decided on a case to what is sent of it.

The last review of a case counts, and only one of the mask that is there now: of a case that was segmented again an
earlier review says nothing. It is followed once, whatever state the case is in by then: what was sent is corrected
by another instance, and what was rejected is sent no more.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

from metricunet.errors import InputError, told
from metricunet.files.own import read_sealed
from metricunet.files.record import hash_if_readable
from metricunet.files.reviews import Review, reviews_in, reviews_of
from metricunet.inference.case_files import SUFFIXES
from metricunet.ledger import Delivery, Job, Queue, StateChanged
from metricunet.ledger.job import ARRIVED, LIVE, Outgoing
from metricunet.ledger.job import State as JobState
from metricunet.ledger.queue import FOLLOWED
from metricunet.workflows.serve.config import Destination, NodeConfig
from metricunet.workflows.serve.journal import Journal
from metricunet.workflows.serve.outbound import outgoing, sop_uid_of
from metricunet.workflows.serve.recipe import rule_of, why_no_rule
from metricunet.workflows.serve.state import State

#: States of a case that was segmented, and of which a decision counts.
DECIDED_ON: tuple[JobState, ...] = ("review", "sending", "sent", "kept", "rejected", "failed")
#: Those of them of which nothing goes out unless somebody decides so.
UNSENT: tuple[JobState, ...] = ("review", "rejected", "failed")
#: A folder that was changed so recently may change once more at the moment that it states.
SETTLED_S = 2.0


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
        self._followed = queue.followed()
        self._reviews: Mapping[str, Review] = {}
        self._read_at: float | None = None
        self._fitting: dict[int, tuple[str, int, bool]] = {}
        self._faulty: dict[int, str] = {}

    def look(self) -> int:
        """Follow every decision that was not followed yet; return how many cases have moved on."""
        reviews, moved = self._last_reviews(), 0
        jobs = self.queue.jobs(*DECIDED_ON) if reviews else []
        for job in jobs:
            review = reviews.get(_case_of(job))
            if review is None or (job.state != "review" and self._followed.get(job.id) == review.number):
                continue
            try:
                moved += self._fits(job, review) and self.follow(job, review)
            except StateChanged:
                continue  # somebody was faster; the next look sees how it is then
            except Exception as error:  # whatever it is, others' decisions are followed
                self._say_fault(job, error)
        known = {job.id for job in jobs}
        self._fitting = {number: found for number, found in self._fitting.items() if number in known}
        return moved

    def hold_sent(self) -> None:
        """Let cases wait for a decision that were sent to some at once, and go to others when accepted."""
        if all(one.send == "at_once" for one in self.config.destinations):
            return
        sent, reviews = self.queue.jobs("sent"), self._last_reviews()
        for job in sent:
            if self._settled.get(job.id) == job.changed:
                continue
            try:
                later = self._later(job, reviews.get(_case_of(job)))
                if later:
                    words = f"{later[0].name} gets it when somebody has accepted it"
                    self.queue.move(job.id, "review", words)
            except StateChanged:
                continue
            except Exception as error:  # whatever it is, it holds up no other case
                self._say_fault(job, error)
        self._settled = {job.id: job.changed for job in sent}

    def follow(self, job: Job, review: Review) -> bool:
        """Do what a decision asks for; return whether the case has moved on.

        Args:
            job: in a state of `DECIDED_ON`.
            review: the last one of its case, of the mask that is there.

        Raises:
            StateChanged: the job is in another state by now.
        """
        with self.queue.ledger.writing():
            now = self.queue.job(job.id)
            if (now.state, now.changed) != (job.state, job.changed):
                raise StateChanged(now, review.decision, DECIDED_ON)
            self.queue.note(
                review.reviewer, FOLLOWED, job_id=job.id, subject=str(review.number), detail=review.decision
            )
            moved = self._reject(job, review) if review.decision == "rejected" else self._send(job, review)
        self._followed[job.id] = review.number
        return moved

    def _reject(self, job: Job, review: Review) -> bool:
        was_sent = any(one.state != "dropped" for one in self.queue.deliveries(job.id))
        deliveries = self.queue.drop(job.id, "a reviewer rejected it")
        there = sorted({one.destination for one in deliveries if one.state in ARRIVED})
        moves = job.state != "rejected" and (job.state != "failed" or was_sent)  # else nothing goes out anyway
        if moves:
            self.queue.move(job.id, "rejected", why_rejected(there), actor=review.reviewer)
        self.journal.say("rejected", "warning" if there else "info", case=_case_of(job), job=job.id, there=there)
        return moves

    def _send(self, job: Job, review: Review) -> bool:
        before = self.queue.deliveries(job.id)
        if review.decision == "corrected":
            self.queue.drop(job.id, "a reviewer corrected it")
        wanted = self._wanted(job, review)
        if not wanted and job.state in UNSENT and rule_of(self.config, job.recipe) is None:
            raise InputError(why_no_rule(job.recipe))  # it is followed as soon as there is one
        case, nothing = _case_of(job), f"{review.decision}, and there is nothing to send"
        if review.decision == "corrected":
            for one in self._receivers(job, review):
                why = _without_correction(one, review)
                if why:
                    nothing = f"{nothing}: {one.name} {why}"
                    self.journal.say("correction not sent", "warning", case=case, destination=one.name, why=why)
        changed = bool(wanted) or self.queue.deliveries(job.id) != before or job.state in ("review", "rejected")
        if changed:
            self.queue.send(job.id, wanted, actor=review.reviewer, nothing=nothing)
        self.journal.say("accepted", case=case, job=job.id, decision=review.decision, files=len(wanted))
        return changed

    def _wanted(self, job: Job, review: Review) -> list[Outgoing]:
        """Return what a decision sends to those who have it not: the reviewed structure set, or what was accepted.

        Whoever has the automatic structure set as it was accepted gets no second one.
        """
        case, deliveries = _case_of(job), self.queue.deliveries(job.id)
        automatic, seg = self._predicted(case, "rtstruct"), self._predicted(case, "seg")
        accepted = review.decision == "accepted"
        found = []
        for one in self._receivers(job, review):
            there = _live(deliveries, one.name)
            if "rtstruct" in one.formats and review.structure_set is not None:
                sets = [delivery.sop_uid for delivery in there if delivery.kind == "rtstruct"]
                has_it = accepted and automatic is not None and sets[-1:] == [sop_uid_of(automatic)]
                if not has_it:
                    found.append(outgoing(self.state, one, "rtstruct", review.structure_set))
            if "seg" in one.formats and accepted and seg is not None:
                found.append(outgoing(self.state, one, "seg", seg))
        known = {(delivery.destination, delivery.sop_uid) for delivery in deliveries if delivery.state in LIVE}
        return [one for one in found if (one.destination, one.sop_uid) not in known]

    def _later(self, job: Job, review: Review | None) -> list[Destination]:
        """Return who waits for somebody to accept a case; once that is decided, who gets what was decided."""
        reached = {one.destination for one in self.queue.deliveries(job.id) if one.state != "dropped"}
        later = [one for one in self._destinations(job) if one.send == "on_accept" and one.name not in reached]
        if later and review is not None and self._fits(job, review):
            wanted = {one.destination for one in self._wanted(job, review)}
            later = [one for one in later if one.name in wanted]
        return later

    def _destinations(self, job: Job) -> tuple[Destination, ...]:
        rule = rule_of(self.config, job.recipe)
        return () if rule is None else self.config.destinations_of(rule)

    def _receivers(self, job: Job, review: Review) -> tuple[Destination, ...]:
        """Return who gets what was decided: of a correction also those who got the case by an earlier rule."""
        ruled = self._destinations(job)
        if review.decision != "corrected":
            return ruled
        had = {one.destination for one in self.queue.deliveries(job.id)}
        return tuple(one for one in self.config.destinations if one in ruled or one.name in had)

    def _predicted(self, case: str, kind: Literal["rtstruct", "seg"]) -> Path | None:
        path = self.state.predictions / f"{case}{SUFFIXES[kind]}"
        return path if path.is_file() else None

    def _say_fault(self, job: Job, error: Exception) -> None:
        if self._faulty.get(job.id) != told(error):
            self._faulty[job.id] = told(error)
            self.journal.say("decision not followed", "error", case=_case_of(job), why=told(error))

    def _fits(self, job: Job, review: Review) -> bool:
        """Tell whether a review is of the mask that is there; said once where it is not."""
        known = self._fitting.get(job.id)
        if known is not None and known[:2] == (job.changed, review.number):
            return known[2]
        fits = _is_of_mask(review, self.state)
        self._fitting[job.id] = (job.changed, review.number, fits)
        if not fits:
            self.journal.say(
                "review passed over", case=_case_of(job), job=job.id, why="it is of another mask than is there now"
            )
        return fits

    def _last_reviews(self) -> Mapping[str, Review]:
        """Return the last review of each case, read anew where the folder has changed since."""
        changed = self.state.predictions.stat().st_mtime
        if changed != self._read_at:
            self._reviews = {case: found[-1] for case, found in reviews_in(self.state.predictions).items()}
            self._read_at = changed if time.time() - changed > SETTLED_S else None
        return self._reviews


def why_rejected(there: Collection[str]) -> str:
    """Return what is said of a case that was rejected.

    Args:
        there: destinations that have something of it.
    """
    why = "a reviewer rejected it"
    if there:
        why += f" after it was sent to {', '.join(sorted(there))}, where it has to be deleted by hand"
    return why


def is_decided(state: State, case: str) -> bool:
    """Tell whether somebody has reviewed the very mask of a case that is there now."""
    reviews = reviews_of(state.predictions, case)
    return bool(reviews) and _is_of_mask(reviews[-1], state)


def _is_of_mask(review: Review, state: State) -> bool:
    seen = (read_sealed(review.path) or {}).get("prediction", {}).get("mask_sha256")
    return bool(seen == hash_if_readable(state.predictions / f"{review.case}{SUFFIXES['nifti']}"))


def _case_of(job: Job) -> str:
    return Path(job.folder).name


def _live(deliveries: Sequence[Delivery], destination: str) -> list[Delivery]:
    """Return what a destination has or is about to get, in the order in which it was asked for."""
    found = [one for one in deliveries if one.destination == destination and one.state in LIVE]
    return sorted(found, key=lambda one: (one.created, one.id))


def _without_correction(destination: Destination, review: Review) -> str:
    """Return why a destination gets no correction; empty where it does."""
    if "rtstruct" not in destination.formats:
        return "takes segmentations alone, and a correction is a structure set"
    return "" if review.structure_set is not None else "gets no structure set, for none could be drawn"
