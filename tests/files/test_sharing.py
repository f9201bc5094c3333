"""Processes that share work: what others hold comes last, and a folder is worked in by one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from metricunet.files import sharing
from metricunet.files.claim import CLAIM_NAME, AlreadyClaimed, Holder, claimed
from metricunet.files.sharing import in_turn, taken_up
from tests.files.test_claim import leave_claim


def test_what_others_hold_comes_last_and_nothing_is_done_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"b": 2, "c": 1}
    slept: list[float] = []
    monkeypatch.setattr(sharing.time, "sleep", slept.append)
    done: list[str] = []

    def do(item: str) -> str:
        if held.get(item, 0):
            held[item] -= 1
            holder = Holder("host", None, None, 1, 0.0, "today", "token")
            raise AlreadyClaimed(Path("x") / CLAIM_NAME, holder, "a run")
        done.append(item)
        return item.upper()

    said: list[str] = []
    assert list(taken_up(["a", "b", "c", "d"], do, said.append)) == ["A", "D", "C", "B"]
    assert done == ["a", "d", "c", "b"]
    assert slept == []
    held["e"] = 3
    assert list(taken_up(["e"], do, said.append)) == ["E"]
    assert slept == [sharing.POLL_S] * 3
    assert len(said) == 1


def test_a_file_that_is_no_claim_is_an_error_and_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / CLAIM_NAME).write_text("mine")
    with pytest.raises(AlreadyClaimed, match="not readable as a claim"), in_turn(tmp_path / CLAIM_NAME, "a study"):
        pass


def test_in_turn_takes_over_what_a_dead_process_left(tmp_path: Path) -> None:
    leave_claim(tmp_path / CLAIM_NAME, started_s=1.0)
    path = tmp_path / CLAIM_NAME
    with in_turn(path, "a study"), pytest.raises(AlreadyClaimed), claimed(path, "a study"):
        pass
    assert list(tmp_path.iterdir()) == []
