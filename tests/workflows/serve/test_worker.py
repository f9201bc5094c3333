"""A worker whose ledger cannot be written: no case is blamed for it, and none is left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metricunet.errors import InputError
from metricunet.ledger import Job, Ledger, Queue
from metricunet.workflows.serve import patience
from metricunet.workflows.serve.config import NodeConfig
from metricunet.workflows.serve.journal import Journal
from metricunet.workflows.serve.recipe import begun_with, settings_digest
from metricunet.workflows.serve.work import Worked
from metricunet.workflows.serve.worker import check_unchanged, work_once

LOCKED = "ledger.sqlite: the ledger is being written by another process all the time"


class Bench:
    """Stands for the models, and does what a test says."""

    def __init__(self, queue: Queue, do: Callable[[Job], Worked]) -> None:
        self.queue, self.work = queue, do


class Held(Queue):
    """A queue whose ledger another process holds so many times."""

    held = 0

    def _wait(self) -> None:
        self.held -= 1
        if self.held >= 0:
            raise InputError(LOCKED)

    def take(self, worker: str) -> Job | None:
        self._wait()
        return super().take(worker)

    def give_back(self, worker: str | None = None, *, died: bool = False) -> list[Job]:
        self._wait()
        return super().give_back(worker, died=died)


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Held:
    monkeypatch.setattr(patience, "PAUSE_S", 0)
    queue = Held(Ledger(tmp_path / "ledger.sqlite"))
    job = queue.receive("any:1", series="1", study="2", patient=["3"], sender="CT", folder="scans/c0ffee")
    queue.whole(job.id, digest="d")
    return queue


def test_a_case_whose_end_cannot_be_written_waits_again(queue: Held, tmp_path: Path) -> None:
    def locked(job: Job) -> Worked:
        queue.held = 2  # also when it is given back
        raise InputError(LOCKED)

    bench: Any = Bench(queue, locked)
    for _ in range(3):
        queue.held = 1  # also when it is taken
        assert work_once(bench, "cpu", Journal(tmp_path, None))
        (job,) = queue.jobs()
        assert (job.state, job.deaths) == ("waiting", 0)
    bench.work = lambda job: Worked(queue.move(job.id, "kept").state, "")
    assert work_once(bench, "cpu", Journal(tmp_path, None))
    assert queue.jobs()[0].state == "kept"
    assert not work_once(bench, "cpu", Journal(tmp_path, None))
    assert "another process" in next(tmp_path.glob("*.jsonl")).read_text()


def test_a_case_in_other_hands_is_left_to_them(queue: Held, tmp_path: Path) -> None:
    def moved_twice(job: Job) -> Worked:
        queue.move(job.id, "kept")
        return Worked(queue.move(job.id, "refused").state, "")

    bench: Any = Bench(queue, moved_twice)
    assert work_once(bench, "cpu", Journal(tmp_path, None))
    assert queue.jobs()[0].state == "kept"


def test_a_worker_begins_with_what_the_node_began_with_or_not_at_all(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.write_bytes(b"one model")
    content: dict[str, Any] = {"state": tmp_path / "state", "model": [model], "rules": [{"name": "any"}]}
    config = NodeConfig.model_validate(content)
    begun = begun_with(config, settings_digest(config))
    check_unchanged(config, begun)
    check_unchanged(NodeConfig.model_validate({**content, "webhook": "https://example.org"}), begun)
    other = NodeConfig.model_validate({**content, "rules": [{"name": "other"}]})
    with pytest.raises(InputError, match="restart the node"):
        check_unchanged(other, begun)
    model.write_bytes(b"another model under its name")
    with pytest.raises(InputError, match="restart the node"):
        check_unchanged(config, begun)
