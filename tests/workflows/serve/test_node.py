"""A node looks around: what nobody would send any more is given up, and what is bad is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from metricunet.ledger import Ledger, Queue
from metricunet.workflows.serve import node as room
from metricunet.workflows.serve.config import NodeConfig
from metricunet.workflows.serve.journal import Journal
from metricunet.workflows.serve.node import Node
from metricunet.workflows.serve.state import State

PACS = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": 104}


@pytest.fixture
def node(tmp_path: Path) -> Callable[..., Node]:
    """A node on one folder of state; its loop is gone through by hand."""

    def started(**settings: Any) -> Node:
        (tmp_path / "model").write_bytes(b"not looked into")
        content = {"state": tmp_path / "state", "model": [tmp_path / "model"], "rules": [{"name": "any"}]}
        config = NodeConfig.model_validate({**content, **settings})
        state = State(config.state)
        state.make()
        return Node(tmp_path / "node.yaml", config, Journal(state.log, None))

    return started


def sending(queue: Queue) -> int:
    job = queue.receive("any:1", series="1", study="2", patient=["3"], sender="CT", folder="scans/c0ffee")
    queue.whole(job.id, digest="d")
    queue.take("cpu")
    queue.move(job.id, "sending")
    return job.id


def test_what_waits_for_a_destination_that_is_gone_is_given_up_and_told(node: Callable[..., Node]) -> None:
    before = node(destinations=[PACS])
    job = sending(before.queue)
    waiting, stored = (
        before.queue.deliver(job, "pacs", kind, f"predictions/c0ffee.{kind}.dcm", uid)
        for kind, uid in (("rtstruct", "1.2"), ("seg", "1.3"))
    )
    later = datetime.now(UTC) + timedelta(hours=1)
    before.queue.put_off(waiting.id, "nobody there", next_attempt=later)
    before.queue.stored(stored.id, next_attempt=later)
    before.look(at_once=True)
    assert before.queue.job(job).state == "sending"
    renamed = node(destinations=[{**PACS, "name": "pacs2"}])
    renamed.look(at_once=True)
    assert renamed.queue.job(job).state == "failed"
    assert "no destination 'pacs' any more" in renamed.queue.job(job).why
    assert [one.state for one in renamed.queue.deliveries(job)] == ["failed", "failed"]
    assert renamed.notices.raised == 1
    # Nor does it wait for ever when somebody tries it again.
    renamed.queue.retry(waiting.id, "A. Reader")
    renamed.look(at_once=True)
    assert renamed.queue.job(job).state == "failed"


def test_a_case_that_was_rejected_after_it_was_sent_is_told_once(node: Callable[..., Node]) -> None:
    here = node(destinations=[PACS])
    job = sending(here.queue)
    here.queue.delivered(here.queue.deliver(job, "pacs", "rtstruct", "predictions/c0ffee.rtstruct.dcm", "1.2").id)
    here.queue.move(job, "rejected", "a reviewer rejected it")
    for _ in range(2):
        here.look(at_once=True)
    node(destinations=[PACS]).look(at_once=True)
    with here.queue.ledger.reading() as db:
        told = db.execute("SELECT count(*) FROM events WHERE action = 'notice' AND job_id = ?", (job,)).fetchone()
    assert told[0] == 1


def test_what_was_on_its_way_when_it_was_rejected_is_told(node: Callable[..., Node]) -> None:
    destinations = [PACS, {**PACS, "name": "tps"}]
    here = node(destinations=destinations)
    job = sending(here.queue)
    for name in ("pacs", "tps"):
        here.queue.deliver(job, name, "rtstruct", "predictions/c0ffee.rtstruct.dcm", "1.2")
    under_way = here.queue.due()
    here.queue.drop(job, "a reviewer rejected it")
    here.queue.move(job, "rejected", "a reviewer rejected it")
    here.look(at_once=True)
    assert here.notices.raised == 0
    for count, one in enumerate(under_way, start=1):
        here.queue.delivered(one.id)
        for _ in range(2):
            here.look(at_once=True)
        assert here.notices.raised == count
    (log,) = here.state.log.glob("*.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    said = [line["why"] for line in lines if line["event"] == "notice"]
    assert ["sent to pacs," in said[0], "sent to pacs, tps," in said[1]] == [True, True]
    again = node(destinations=destinations)
    again.look(at_once=True)
    assert again.notices.raised == 0


def test_what_fails_in_a_round_is_not_tried_in_each(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = node()
    tries: list[object] = []

    def broken(*arguments: object) -> int:
        tries.append(arguments)
        raise OSError("the folder cannot be read")

    monkeypatch.setattr(room, "delete_old", broken)
    with pytest.raises(OSError, match="cannot be read"):
        here.look()
    for _ in range(5):
        here.look()
    assert len(tries) == 1


def test_a_node_that_keeps_everything_goes_on(node: Callable[..., Node]) -> None:
    here = node(keep="999999 days")
    assert here.config.keep == timedelta(days=999999)
    here.look(at_once=True)
    assert Queue(Ledger(here.state.ledger)).jobs() == []
