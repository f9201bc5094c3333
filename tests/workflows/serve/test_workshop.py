"""What a worker says of a case, whatever the models are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from metricunet.ledger import Job
from metricunet.workflows.serve.work import Workshop
from tests.support.dicom_series import Written, write_series
from tests.workflows.serve.conftest import Doors


class Bench(Workshop):
    """A workshop without models."""

    def __init__(self, node: Doors) -> None:
        self.config, self.state = node.config, node.state
        self.queue, self.ledger = node.queue, node.queue.ledger


def taken(node: Doors, written: Written) -> Job:
    """Bring a series in, and give it to a worker."""
    for path in written.files:
        if path.exists():
            node.bring(path)
    node.arrivals.gather(at_once=True)
    job = node.queue.take("cpu")
    assert job is not None
    return job


def test_a_refusal_advises_nothing_that_a_node_cannot_do(doors: Callable[..., Doors], tmp_path: Path) -> None:
    node = doors()
    job = taken(node, write_series(tmp_path / "gap", shape=(8, 4, 4), leave_out=(4,)))
    worked = Bench(node).work(job)
    assert worked.state == "refused"
    assert "missing" in worked.why
    assert "allow" not in worked.why
