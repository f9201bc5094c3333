"""A worker that dies: its case is given back, also where the ledger cannot be written at that moment."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from metricunet.ledger import Job
from metricunet.workflows.serve.config import NodeConfig
from metricunet.workflows.serve.journal import Journal
from metricunet.workflows.serve.pool import Worker
from tests.workflows.serve.test_worker import Held, queue

__all__ = ["queue"]  # a fixture


@pytest.mark.parametrize("held", [0, 3])
def test_the_case_of_a_dead_worker_is_given_back(queue: Held, tmp_path: Path, held: int) -> None:
    config = NodeConfig.model_validate({"state": tmp_path, "model": ["none"], "rules": [{"name": "any"}]})
    assert queue.take("cpu") is not None
    queue.held = held
    starts = tmp_path / "starts"
    told: list[Job | None] = []

    def ended(job: Job | None) -> None:
        told.append(job)
        worker.stop()

    command = [sys.executable, "-c", f"open({str(starts)!r}, 'a').write('x')"]
    worker = Worker(tmp_path / "node.yaml", "cpu", config, queue, Journal(tmp_path, None), ended, command)
    worker.run()
    assert [job and job.state for job in told] == ["waiting"]
    assert (queue.jobs()[0].deaths, starts.read_text()) == (1, "x")


def test_a_worker_that_is_started_again_and_again_and_never_gets_ready_is_missing(
    queue: Held, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = NodeConfig.model_validate({"state": tmp_path, "model": ["none"], "rules": [{"name": "any"}]})
    worker = Worker(tmp_path / "node.yaml", "cpu", config, queue, Journal(tmp_path, None), lambda job: None)
    assert not worker.is_up
    monkeypatch.setattr(Worker, "pid", 4711)
    assert worker.is_up  # it has just been started, and loads its models
    worker.restarts = 1
    assert not worker.is_up
    worker.ready = True
    assert worker.is_up
