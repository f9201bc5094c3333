"""Tasks that are done here, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from metricunet.engine import GIB, Needs, Serial
from metricunet.files.claim import AlreadyClaimed, claimed
from tests.support.workers import Doubling, Unmade

NEEDS = Needs(GIB // 4)


def test_done_here_a_task_costs_itself_alone(tmp_path: Path) -> None:
    held = []

    @contextmanager
    def claim(task: int) -> Iterator[None]:
        with claimed(tmp_path / f"{task}.claim", "a task"):
            held.append(task)
            yield

    with claimed(tmp_path / "1.claim", "a task"):
        found = dict(Serial().each([0, 1, 4, 5], Doubling, NEEDS, claim=claim))
    assert [found[0][0], found[5][0]] == [0, 10]  # type: ignore[index]
    assert isinstance(found[1], AlreadyClaimed)
    assert isinstance(found[4], KeyError)
    assert held == [0, 4, 5]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError, match="no model"):
        list(Serial().each([0], Unmade, NEEDS))
