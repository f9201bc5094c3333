"""The queue of a node: every job is worked on by one worker, ends in a state that says so, and none is lost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from metricunet.errors import InputError
from metricunet.ledger import Job, Ledger, Queue, StateChanged
from metricunet.ledger.job import ENDS, NEXT, STATES, Outgoing

START = datetime(2030, 1, 1, 12, tzinfo=UTC)


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.moment = START

    def __call__(self) -> datetime:
        return self.moment


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(tmp_path: Path, clock: Clock) -> Queue:
    return Queue(Ledger(tmp_path / "ledger.sqlite"), clock)


def received(queue: Queue, name: str = "a") -> Job:
    return queue.receive(
        "pelvis",
        series=f"1.2.{name}",
        study="1.2",
        patient=("id", "", "MRN-4711"),
        sender="SCANNER",
        folder=f"in/{name}",
    )


def waiting(queue: Queue, name: str = "a") -> Job:
    return queue.whole(received(queue, name).id, digest=name)


def sending(queue: Queue) -> Job:
    job = waiting(queue)
    queue.take("cpu")
    return queue.move(job.id, "sending")


def events(queue: Queue) -> list[tuple[str, ...]]:
    with queue.ledger.reading() as db:
        return [tuple(row) for row in db.execute("SELECT actor, action, detail FROM events ORDER BY id")]


def test_a_job_goes_from_its_first_slice_to_its_last_delivery(queue: Queue) -> None:
    job = received(queue)
    queue.count(job.input_id, files=3, size=1000)
    assert queue.take("cpu") is None
    job = queue.whole(job.id, digest="all")
    assert (job.state, job.files, job.bytes, job.attempts) == ("waiting", 3, 1000, 0)
    taken = queue.take("cpu")
    assert taken is not None
    assert (taken.id, taken.state, taken.worker, taken.attempts) == (job.id, "segmenting", "cpu", 1)
    assert queue.take("gpu") is None
    with queue.ledger.writing():
        queue.move(job.id, "sending")
        queue.deliver(job.id, "archive", "rtstruct", "out/a.dcm", "1.9")
        queue.deliver(job.id, "planning", "rtstruct", "out/a.dcm", "1.9")
        queue.deliver(job.id, "planning", "rtstruct", "out/a.dcm", "1.9")
    first, second = queue.due()
    queue.delivered(first.id)
    assert queue.job(job.id).state == "sending"
    queue.delivered(second.id, confirmed=True)
    assert queue.job(job.id).state == "sent"
    assert [d.state for d in queue.deliveries(job.id)] == ["sent", "confirmed"]
    assert queue.counts()["sent"] == 1
    words = [action for _, action, _ in events(queue)]
    assert words == [
        "received",
        "waiting",
        "segmenting",
        "sending",
        "delivery sent",
        "delivery confirmed",
        "sent",
    ]


def test_identifiers_are_kept_as_hashes_alone(queue: Queue) -> None:
    job = received(queue, "secret")
    assert job.patient == queue.ledger.key.hashed("patient", "id", "", "MRN-4711")
    assert job.series != received(queue, "other").series
    stored = b"".join(path.read_bytes() for path in queue.ledger.path.parent.glob("ledger.sqlite*"))
    assert b"MRN-4711" not in stored
    assert b"1.2.secret" not in stored


def test_an_input_that_came_before_is_the_earlier_job(queue: Queue) -> None:
    job = waiting(queue, "a")
    again = received(queue, "b")
    assert queue.whole(again.id, digest="a").id == job.id
    assert [one.id for one in queue.jobs()] == [job.id]
    assert received(queue, "a").id == job.id


def test_the_oldest_goes_first_and_none_before_its_time(queue: Queue, clock: Clock) -> None:
    first, second = waiting(queue, "a"), waiting(queue, "b")
    taken = queue.take("cpu")
    assert taken is not None
    assert taken.id == first.id
    queue.move(first.id, "waiting", "no memory", not_before=START + timedelta(minutes=5))
    assert [job.id for job in iter(lambda: queue.take("cpu"), None)] == [second.id]
    clock.moment += timedelta(minutes=5)
    later = queue.take("cpu")
    assert later is not None
    assert (later.id, later.attempts) == (first.id, 2)


def test_a_clock_that_is_set_back_holds_up_neither_job_nor_delivery(queue: Queue, clock: Clock) -> None:
    job, later = waiting(queue), START + timedelta(seconds=10)
    queue.take("cpu")
    queue.move(job.id, "sending")
    one, two = (queue.deliver(job.id, "archive", "rtstruct", f"out/{uid}.dcm", uid) for uid in ("1.8", "1.9"))
    queue.put_off(one.id, "refused connection", next_attempt=later)
    second = waiting(queue, "b")
    clock.moment -= timedelta(hours=2)
    assert [delivery.id for delivery in queue.due()] == [two.id, one.id]
    queue.put_off(one.id, "refused connection", next_attempt=clock.moment + timedelta(seconds=20))
    assert [delivery.id for delivery in queue.due()] == [two.id]
    taken = queue.take("cpu")
    assert taken is not None
    assert taken.id == second.id
    queue.give_back("cpu")  # by the clock as it is now
    assert not queue.job(second.id).is_put_off
    assert queue.take("cpu") is not None


def test_what_kills_its_worker_twice_is_set_aside_and_what_was_interrupted_is_not(queue: Queue) -> None:
    job = waiting(queue)
    for _ in range(5):
        queue.take("cpu")
        assert [one.state for one in queue.give_back()] == ["waiting"]
    queue.take("cpu")
    assert queue.give_back("gpu", died=True) == []
    assert [one.state for one in queue.give_back("cpu", died=True)] == ["waiting"]
    queue.take("cpu")
    assert [one.state for one in queue.give_back("cpu", died=True)] == ["set aside"]
    assert queue.take("cpu") is None
    assert "2 times" in queue.job(job.id).why
    assert queue.again(job.id, "A. Reader").deaths == 0
    assert queue.take("cpu") is not None
    assert ("A. Reader", "waiting", "") in events(queue)


def test_a_delivery_is_tried_again_in_its_time_until_it_is_given_up(queue: Queue, clock: Clock) -> None:
    job = waiting(queue)
    queue.take("cpu")
    queue.move(job.id, "sending")
    one = queue.deliver(job.id, "archive", "rtstruct", "out/a.dcm", "1.9")
    queue.put_off(one.id, "refused connection", next_attempt=START + timedelta(hours=1))
    assert queue.due() == []
    clock.moment += timedelta(hours=1)
    (due,) = queue.due()
    assert (due.attempts, due.error) == (1, "refused connection")
    queue.give_up(due.id, "after a week")
    assert queue.job(job.id).state == "failed"
    assert "archive" in queue.job(job.id).why


def test_a_file_that_was_taken_is_sent_when_the_destination_has_committed_to_it(
    queue: Queue, clock: Clock
) -> None:
    job = sending(queue)
    one = queue.deliver(job.id, "pacs", "rtstruct", "a.dcm", "1.2.3")
    queue.stored(one.id, next_attempt=START + timedelta(hours=1))
    assert (queue.due(), queue.due("stored")) == ([], [])
    assert queue.undelivered("pacs") == 1
    clock.moment += timedelta(hours=2)
    assert [found.id for found in queue.due("stored")] == [one.id]
    assert queue.job(job.id).state == "sending"
    queue.delivered(one.id, confirmed=True)
    assert queue.job(job.id).state == "sent"
    assert queue.stored(one.id, "too late", next_attempt=START).state == "confirmed"
    assert queue.undelivered("pacs") == 0


def test_a_person_has_one_delivery_tried_again(queue: Queue, clock: Clock) -> None:
    job = sending(queue)
    one, other = (queue.deliver(job.id, name, "rtstruct", "a.dcm", "1.2.3") for name in ("pacs", "tps"))
    queue.delivered(other.id)
    queue.give_up(one.id, "nobody there")
    clock.moment += timedelta(days=8)
    again = queue.retry(one.id, "A. Reader")
    assert (again.state, queue.job(job.id).state) == ("waiting", "sending")
    assert again.created > one.created  # it has its whole time before it
    queue.put_off(one.id, "nobody there", next_attempt=clock.moment + timedelta(hours=1))
    assert queue.due() == []
    queue.retry(one.id, "A. Reader")
    assert [found.id for found in queue.due()] == [one.id]
    with pytest.raises(StateChanged):
        queue.retry(other.id, "A. Reader")
    queue.give_up(one.id, "nobody there")
    queue.move(job.id, "review", actor="A. Reader")
    queue.move(job.id, "rejected", actor="A. Reader")
    for wish in (queue.retry, queue.send_again):
        with pytest.raises(StateChanged, match="is rejected"):
            wish(one.id if wish == queue.retry else job.id, "A. Reader")
    assert queue.job(job.id).state == "rejected"
    with pytest.raises(InputError, match="no delivery 99"):
        queue.retry(99, "A. Reader")


def test_a_state_follows_only_from_those_that_it_may(queue: Queue) -> None:
    job = waiting(queue)
    with pytest.raises(StateChanged, match=r"is waiting and cannot become sent; expected one that is sending"):
        queue.move(job.id, "sent")
    assert queue.job(job.id) == job
    assert set(NEXT) == set(STATES)
    assert {after for states in NEXT.values() for after in states} == set(STATES) - {"received"}
    assert set(ENDS) < set(STATES)


def test_steps_in_one_transaction_happen_together_or_not_at_all(queue: Queue) -> None:
    job = waiting(queue)
    queue.take("cpu")
    before = events(queue)

    def half() -> None:
        with queue.ledger.writing():
            queue.move(job.id, "sending")
            queue.deliver(job.id, "archive", "rtstruct", "out/a.dcm", "1.9")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert queue.job(job.id).state == "segmenting"
    assert queue.deliveries(job.id) == []
    assert events(queue) == before


def out(destination: str, sop_uid: str, kind: str = "rtstruct") -> Outgoing:
    return Outgoing(destination, kind, f"out/{kind}.dcm", sop_uid)


@pytest.mark.parametrize("sop_uid", ["1.9", "1.10"], ids=["same model", "another model"])
def test_a_case_that_is_segmented_again_is_sent_again(queue: Queue, sop_uid: str) -> None:
    job = waiting(queue)
    queue.take("cpu")
    queue.send(job.id, [out("pacs", "1.9"), out("tps", "1.9")])
    there, away = queue.due()
    queue.delivered(there.id)
    queue.give_up(away.id, "nobody there")
    queue.again(job.id, "A. Reader")
    assert queue.due() == []
    assert {one.state for one in queue.deliveries(job.id)} == {"dropped"}
    assert "it was failed: nobody there" in queue.deliveries(job.id)[1].error
    # A sender that was just trying it does not bring it back.
    assert queue.put_off(away.id, "nobody there", next_attempt=START).state == "dropped"
    assert queue.give_up(away.id, "nobody there").state == "dropped"
    queue.take("cpu")
    assert queue.send(job.id, [out("pacs", sop_uid), out("tps", sop_uid)]).state == "sending"
    due = queue.due()
    assert [(one.destination, one.sop_uid) for one in due] == [("pacs", sop_uid), ("tps", sop_uid)]
    for one in due:
        queue.delivered(one.id)
    assert queue.job(job.id).state == "sent"


def test_what_was_segmented_again_and_failed_sends_nothing_of_before(queue: Queue) -> None:
    job = sending(queue)
    one, other = (queue.deliver(job.id, name, "rtstruct", "a.dcm", "1.2.3") for name in ("pacs", "tps"))
    queue.delivered(one.id)
    queue.give_up(other.id, "nobody there")
    queue.again(job.id, "A. Reader")
    queue.take("cpu")
    queue.move(job.id, "failed", "the verdict")
    for wish in (lambda: queue.send_again(job.id, "A. Reader"), lambda: queue.retry(other.id, "A. Reader")):
        with pytest.raises(StateChanged):
            wish()
    assert queue.due() == []


def test_a_case_is_segmented_again_only_when_it_is_not_in_hand(queue: Queue) -> None:
    job = sending(queue)
    one = queue.deliver(job.id, "pacs", "rtstruct", "a.dcm", "1.2.3")
    with pytest.raises(StateChanged):
        queue.again(job.id, "A. Reader")
    assert queue.deliveries(job.id) == [one]


def test_a_case_whose_one_file_was_given_up_does_not_stay_sending(queue: Queue) -> None:
    job = sending(queue)
    one, other = (queue.deliver(job.id, name, "rtstruct", "a.dcm", "1.2.3") for name in ("pacs", "tps"))
    queue.give_up(one.id, "nobody there")
    queue.give_up(other.id, "nobody here")
    queue.retry(one.id, "A. Reader")
    queue.delivered(one.id)
    assert (queue.job(job.id).state, queue.job(job.id).why) == ("failed", "not sent to tps: nobody here")


def test_what_takes_the_place_of_another_is_sent_alone(queue: Queue) -> None:
    job = sending(queue)
    queue.deliver(job.id, "pacs", "rtstruct", "a.dcm", "1.1")
    queue.deliver(job.id, "pacs", "seg", "a.seg.dcm", "1.2")
    queue.send(job.id, [out("pacs", "1.3")])
    assert [one.sop_uid for one in queue.due()] == ["1.2", "1.3"]
    for one in queue.due():
        queue.delivered(one.id)
    assert queue.job(job.id).state == "sent"
    queue.send_again(job.id, "A. Reader")
    assert sorted(one.sop_uid for one in queue.due()) == ["1.2", "1.3"]


def test_nobody_is_asked_to_keep_what_is_sent_no_more(queue: Queue) -> None:
    job = sending(queue)
    one = queue.deliver(job.id, "pacs", "rtstruct", "a.dcm", "1.1")
    queue.stored(one.id, next_attempt=START)
    assert [found.state for found in queue.drop(job.id, "a reviewer rejected it")] == ["sent"]
    assert queue.under_way() == []


def test_a_job_without_files_or_deliveries_is_kept(queue: Queue) -> None:
    job = waiting(queue)
    queue.take("cpu")
    queue.move(job.id, "review")
    kept = queue.send(job.id, [], nothing="accepted, and there is nothing to send")
    assert (kept.state, kept.why) == ("kept", "accepted, and there is nothing to send")
