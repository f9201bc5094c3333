"""One node at a time on a folder of state, and none is kept out by one that was killed with its container."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metricunet.files.claim import AlreadyClaimed, claimed, read_claim
from metricunet.files.own import OwnFiles
from metricunet.workflows.serve.alone import LOCK, served_alone
from metricunet.workflows.serve.state import State
from tests.support.cohorts import edit_json

#: The claim of another container: on this machine, under another name, and under another name before a restart.
CONTAINERS: list[dict[str, Any]] = [
    {"namespace": "pid:[1]"},
    {"namespace": "pid:[1]", "host": "0123456789ab"},
    {"namespace": "pid:[1]", "host": "0123456789ab", "boot": "an earlier one"},
]


@pytest.fixture
def state(tmp_path: Path) -> State:
    found = State(tmp_path / "state")
    found.make()
    return found


def leave_claim(path: Path, **changes: Any) -> None:
    """Leave the claim of a process that was killed, with some facts changed."""
    with claimed(path, "a prediction"):
        content = path.read_bytes()
    path.write_bytes(content)
    edit_json(path, **changes)


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_node_that_was_killed_with_its_container_holds_nothing(state: State, container: dict[str, Any]) -> None:
    with served_alone(state):
        left = {path: path.read_bytes() for path in (state.claim, state.folder / LOCK)}
    for path, content in left.items():
        path.write_bytes(content)
    edit_json(state.claim, **container)
    for _ in range(2):
        with served_alone(state):
            holder = read_claim(state.claim)
            assert holder is not None
            assert (holder.is_alive(), holder.is_elsewhere()) == (True, False)
        assert not state.claim.exists()


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_node_that_serves_in_another_container_keeps_the_folder(state: State, container: dict[str, Any]) -> None:
    with served_alone(state):
        edit_json(state.claim, **container)
        before = state.claim.read_bytes()
        with pytest.raises(AlreadyClaimed, match="metricunet serve is going on"), served_alone(state):
            pass
        assert state.claim.read_bytes() == before


def test_a_claim_that_goes_with_no_lock_stays(state: State) -> None:
    with served_alone(state):
        pass
    leave_claim(state.claim, host="another computer")
    with pytest.raises(AlreadyClaimed, match="if it no longer runs, remove"), served_alone(state):
        pass
    assert state.claim.exists()


@pytest.mark.parametrize(
    ("record", "command"), [("c0ffee.quality.json", "predict"), ("c0ffee.reviewed.json", "review")]
)
def test_no_case_is_held_by_a_container_that_was_killed(state: State, record: str, command: str) -> None:
    claim = OwnFiles(state.predictions, record, command).claim
    leave_claim(claim, namespace="pid:[1]")
    with served_alone(state), claimed(claim, "a prediction"):
        pass
    with claimed(claim, "a prediction"), served_alone(state):
        assert claim.exists()  # of a process that can be seen, and lives
