"""What a person decided on a case, and what follows: it is sent, or corrected at those who had it, or not sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from metricunet.ledger import Delivery, Job
from metricunet.ledger.job import Outgoing
from metricunet.workflows.serve.config import Rule
from metricunet.workflows.serve.decided import Decisions, is_decided
from metricunet.workflows.serve.journal import Journal
from metricunet.workflows.serve.outbound import sop_uid_of
from tests.support.dicom_series import companion, save
from tests.workflows.serve.conftest import RTSTRUCT, Doors, write_review

CASE = "c0ffee"
PLACE = {"ae_title": "PEER", "host": "127.0.0.1", "port": 104}
NOW, LATER = {"name": "now", **PLACE}, {"name": "later", **PLACE, "send": "on_accept"}
SEG = {"name": "seg", **PLACE, "formats": ["seg"]}
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"


class Reviewed:
    """A case that was segmented, with its files, its destinations, and people who review it."""

    def __init__(self, doors: Doors) -> None:
        self.doors, self.queue, self.state = doors, doors.queue, doors.state
        job = self.queue.receive(
            "any:1", series="1", study="2", patient=["3"], sender="CT", folder=f"scans/{CASE}"
        )
        self.number = self.queue.whole(job.id, digest="d").id
        self.decisions = self.begun_anew()

    def begun_anew(self) -> Decisions:
        """What follows decisions, as in a node that has just been started."""
        return Decisions(self.doors.config, self.state, self.queue, Journal(self.state.log, None))

    def segment(self, mask: bytes = b"mask") -> None:
        """Write what a worker makes of the case."""
        assert self.queue.take("cpu") is not None
        self.file(".nii.gz").write_bytes(mask)
        save(self.file(".rtstruct.dcm"), companion("RTSTRUCT", RTSTRUCT))
        save(self.file(".seg.dcm"), companion("SEG", SEGMENTATION))

    def send(self, **kinds: str) -> None:
        """Let the automatic files go to destinations, as a worker does."""
        self.queue.send(self.number, [self.out(name, kind) for name, kind in kinds.items()])

    def out(self, name: str, kind: str = "rtstruct") -> Outgoing:
        file = self.file(f".{kind}.dcm")
        return Outgoing(name, kind, file.relative_to(self.state.folder).as_posix(), sop_uid_of(file))

    def arrive(self) -> None:
        """Let all arrive that is to be sent."""
        for one in self.queue.due():
            self.queue.delivered(one.id)

    def review(self, decision: str, number: int = 1) -> str:
        """Write a review of the mask that is there; return the UID of its structure set, if it has one."""
        return write_review(self.state.predictions, CASE, decision, number)

    def file(self, suffix: str) -> Path:
        return self.state.predictions / f"{CASE}{suffix}"

    @property
    def job(self) -> Job:
        return self.queue.job(self.number)

    def deliveries(self, *states: str) -> list[Delivery]:
        return [one for one in self.queue.deliveries(self.number) if one.state in states]

    def sets_at(self, name: str) -> list[str]:
        """The UIDs of the structure sets that a destination has or is about to get, in their order."""
        return [
            one.sop_uid
            for one in self.deliveries("waiting", "stored", "sent", "confirmed")
            if (one.destination, one.kind) == (name, "rtstruct")
        ]

    def said(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.doors.log if line["event"] == event]


@pytest.fixture
def reviewed(doors: Callable[..., Doors]) -> Callable[..., Reviewed]:
    def made(*destinations: dict[str, Any]) -> Reviewed:
        return Reviewed(doors(destinations=list(destinations)))

    return made


@pytest.mark.parametrize("decision", ["rejected", "accepted", "corrected"])
def test_a_review_of_an_earlier_segmentation_decides_nothing(
    reviewed: Callable[..., Reviewed], decision: str
) -> None:
    case = reviewed({**LATER, "formats": ["rtstruct", "seg"]})
    case.segment(b"a mask")
    case.queue.move(case.number, "failed", "the verdict")
    case.review(decision)
    case.queue.again(case.number, "A. Reader")
    case.segment(b"a better mask")
    case.queue.move(case.number, "review")
    assert [case.decisions.look() for _ in range(2)] == [0, 0]
    assert case.job.state == "review"
    assert case.deliveries("waiting") == []
    assert not is_decided(case.state, CASE)
    assert len(case.said("review passed over")) == 1  # and not at every look
    uid = case.review("corrected", 2)
    assert is_decided(case.state, CASE)
    assert case.decisions.look() == 1
    assert (case.job.state, case.sets_at("later")) == ("sending", [uid])


def test_a_correction_reaches_whoever_had_the_automatic_contours(reviewed: Callable[..., Reviewed]) -> None:
    case = reviewed(NOW, LATER)
    case.segment()
    case.send(now="rtstruct")
    case.arrive()
    case.decisions.hold_sent()
    assert case.job.state == "review"
    automatic, uid = case.out("now").sop_uid, case.review("corrected")
    assert case.decisions.look() == 1
    assert (case.sets_at("now"), case.sets_at("later")) == ([automatic, uid], [uid])
    case.arrive()
    for decisions in (case.decisions, case.begun_anew()):  # it is followed once
        decisions.hold_sent()
        assert decisions.look() == 0
        assert case.job.state == "sent"


def test_a_case_that_was_sent_at_once_is_corrected_too(reviewed: Callable[..., Reviewed]) -> None:
    case = reviewed(NOW)
    case.segment()
    case.send(now="rtstruct")
    case.arrive()
    automatic, uid = case.out("now").sop_uid, case.review("corrected")
    assert case.decisions.look() == 1
    case.arrive()
    assert (case.job.state, case.sets_at("now")) == ("sent", [automatic, uid])
    # Sent again it is the correction alone.
    case.queue.send_again(case.number, "A. Reader")
    assert [one.sop_uid for one in case.queue.due()] == [uid]
    case.arrive()
    # Who finds that the automatic contours were right after all sends them once more, as reviewed.
    last = case.review("accepted", 2)
    assert case.decisions.look() == 1
    assert case.sets_at("now") == [automatic, uid, last]


def test_what_was_accepted_as_it_was_sent_is_sent_no_second_time(reviewed: Callable[..., Reviewed]) -> None:
    case = reviewed(NOW)
    case.segment()
    case.send(now="rtstruct")
    case.arrive()
    before = case.job
    case.review("accepted")
    assert case.decisions.look() == 0
    assert case.job == before


def test_a_correction_takes_the_place_of_what_waits(reviewed: Callable[..., Reviewed]) -> None:
    case = reviewed({**NOW, "formats": ["rtstruct", "seg"]}, SEG)
    case.segment()
    case.queue.send(case.number, [case.out("now"), case.out("now", "seg"), case.out("seg", "seg")])
    uid = case.review("corrected")
    case.decisions.look()
    assert [one.sop_uid for one in case.queue.due()] == [uid]
    assert len(case.deliveries("dropped")) == 3
    case.arrive()
    assert case.job.state == "sent"
    assert {line["destination"] for line in case.said("correction not sent")} == {"seg"}


def test_a_correction_that_goes_nowhere_says_why(reviewed: Callable[..., Reviewed]) -> None:
    case = reviewed({**SEG, "send": "on_accept"})
    case.segment()
    case.queue.move(case.number, "review")
    case.review("corrected")
    case.decisions.look()
    assert case.job.state == "kept"
    assert "seg takes segmentations alone" in case.job.why
    # Somebody accepts the prediction after all, and that is a segmentation.
    case.review("accepted", 2)
    case.decisions.look()
    assert [one.kind for one in case.deliveries("waiting")] == ["seg"]


def test_what_was_rejected_is_sent_no_more(reviewed: Callable[..., Reviewed]) -> None:
    case = reviewed(NOW, {**NOW, "name": "other"})
    case.segment()
    case.send(now="rtstruct", other="rtstruct")
    first, second = case.queue.due()
    case.queue.delivered(first.id)
    case.review("rejected")
    assert case.decisions.look() == 1
    assert case.job.state == "rejected"
    assert "sent to now," in case.job.why
    case.queue.put_off(second.id, "it was just being tried", next_attempt=datetime.now(UTC))
    assert case.queue.due() == []
    assert json.dumps(case.said("rejected")[0]["there"]) == '["now"]'
    # The last word counts.
    uid = case.review("corrected", 2)
    assert case.decisions.look() == 1
    assert (case.job.state, case.sets_at("other")) == ("sending", [uid])


def test_a_rejected_case_of_which_nothing_goes_out_can_be_segmented_again(
    reviewed: Callable[..., Reviewed],
) -> None:
    case = reviewed(NOW)
    case.segment()
    case.queue.move(case.number, "failed", "the verdict")
    case.review("rejected")
    assert case.decisions.look() == 0
    assert case.queue.again(case.number, "A. Reader").state == "waiting"


def test_who_accepts_a_case_that_has_failed_sends_it(reviewed: Callable[..., Reviewed]) -> None:
    case = reviewed(NOW)
    case.segment()
    case.queue.move(case.number, "failed", "the verdict")
    uid = case.review("accepted")
    case.decisions.look()
    assert (case.job.state, case.sets_at("now")) == ("sending", [uid])
    (one,) = case.queue.due()
    case.queue.give_up(one.id, "nobody there")
    assert case.decisions.look() == 0  # it is not tried for ever
    assert case.job.state == "failed"


@pytest.mark.parametrize("decision", ["accepted", "corrected"])
def test_a_decision_on_a_case_whose_rule_is_gone_is_followed_when_it_is_back(
    reviewed: Callable[..., Reviewed], decision: str
) -> None:
    case = reviewed(LATER)
    case.segment()
    case.queue.move(case.number, "review")
    uid = case.review(decision)
    config = case.doors.config
    case.doors.config = config.model_copy(update={"rules": (Rule(name="renamed"),)})
    decisions = case.begun_anew()
    assert [decisions.look() for _ in range(2)] == [0, 0]
    assert case.job.state == "review"
    (said,) = case.said("decision not followed")
    assert "no rule 'any' any more" in said["why"]
    case.doors.config = config
    assert case.begun_anew().look() == 1
    assert (case.job.state, case.sets_at("later")) == ("sending", [uid])


def test_a_damaged_review_holds_up_no_other(reviewed: Callable[..., Reviewed]) -> None:
    case = reviewed(LATER)
    case.segment()
    case.queue.move(case.number, "review")
    case.review("accepted")
    whole = (case.state.predictions / f"{CASE}.reviewed.rtstruct.dcm").read_bytes()
    (case.state.predictions / f"{CASE}.reviewed.rtstruct.dcm").write_bytes(b"rubbish")
    assert [case.decisions.look() for _ in range(2)] == [0, 0]
    assert len(case.said("decision not followed")) == 1
    (case.state.predictions / f"{CASE}.reviewed.rtstruct.dcm").write_bytes(whole)
    assert case.decisions.look() == 1
