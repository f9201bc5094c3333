"""Work that is shared out by Ray is done, whatever is lost on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from metricunet.engine import GIB, Engine, Needs
from metricunet.errors import InputError, WorkerDied
from metricunet.files.claim import AlreadyClaimed, claimed
from tests.support.engines import MACHINE
from tests.support.workers import Doubling, Unmade, Waiting, killed, refuse

NEEDS = Needs(GIB // 4)


def test_a_task_that_kills_its_worker_twice_fails_and_the_others_are_done(
    ray_engine: Engine, tmp_path: Path
) -> None:
    @contextmanager
    def claim(task: int) -> Iterator[None]:
        with claimed(tmp_path / f"{task}.claim", "a task"):
            yield

    with claimed(tmp_path / "6.claim", "a task"):
        found = dict(ray_engine.each(list(range(9)), Doubling, NEEDS, claim=claim))
    died = found.pop(3)
    assert isinstance(died, WorkerDied)
    assert str(died) == "its worker process died, and the one of the second try, too"
    odd = found.pop(4)
    assert isinstance(odd, KeyError)
    assert "Doubling" in odd.__notes__[0] or "in do" in odd.__notes__[0]
    assert isinstance(found.pop(6), AlreadyClaimed)
    done: dict[int, Any] = found
    assert {task: result[0] for task, result in done.items()} == {task: 2 * task for task in done}
    assert (
        len({result[1] for result in done.values()}) <= 4
    )  # one made for each process: two, and two in their stead
    assert {result[2:] for result in done.values()} == {("1", str(Path.cwd()))}
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError, match="no model"):
        list(ray_engine.each([0], Unmade, NEEDS))


def test_a_call_says_what_it_raised_or_that_its_workers_died(ray_engine: Engine) -> None:
    assert ray_engine.submit(NEEDS, pow, 2, 5).result() == 32
    refused = ray_engine.submit(NEEDS, refuse, "no such patient").exception()
    assert type(refused) is InputError
    assert str(refused) == "no such patient"
    died = ray_engine.submit(NEEDS, killed).exception()
    assert isinstance(died, WorkerDied)
    assert str(died) == "its worker process died, and the one of the second try, too"


def test_work_that_is_given_up_ends(ray_engine: Engine, tmp_path: Path) -> None:
    def interrupt(task: int, node: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(ray_engine.each([0, 1], partial(Waiting, tmp_path), NEEDS, watch=interrupt))
    pids = {int(path.name.split("-")[2]) for path in tmp_path.iterdir()}
    assert pids
    processes = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(pid))
    _, alive = psutil.wait_procs(processes, timeout=600)
    assert not alive


def test_what_no_machine_has_is_said_before_any_work(ray_engine: Engine) -> None:
    with pytest.raises(InputError, match=r"no machine has what a worker takes, 1 cores and 100\.0 GiB of memory"):
        list(ray_engine.each([0], Doubling, Needs(100 * GIB)))
    with pytest.raises(InputError, match=r"no machine has what a worker takes, 1 cores and 100\.0 GiB of memory"):
        ray_engine.submit(Needs(100 * GIB), pow, 2, 5)
    with pytest.raises(InputError, match="no machine of engine='ray' has a GPU"):
        ray_engine.device(Needs(GIB, "cuda"))
    with pytest.raises(InputError, match="chooses the number of the GPU"):
        ray_engine.device(Needs(GIB, "cuda:1"))
    assert ray_engine.device(Needs(GIB, "auto")) == "cpu"


def test_a_machine_that_is_lost_costs_its_tasks_a_second_try(
    ray_engine: Engine, machines: Any, tmp_path: Path
) -> None:
    """The last of those that use the cluster: it has other machines afterwards."""
    seen: dict[int, str] = {}

    def lose(task: int, node: str) -> None:
        seen[task] = node
        if len(set(seen.values())) == 2 and not (tmp_path / "go").exists():
            (other,) = machines.worker_nodes
            machines.remove_node(other)
            (tmp_path / "go").touch()

    found = dict(ray_engine.each([0, 1, 2, 3], partial(Waiting, tmp_path), NEEDS, watch=lose))
    assert found == {task: task for task in range(4)}
    begun = [int(path.name.split("-")[1]) for path in tmp_path.glob("begun-*")]
    assert sorted(begun) in ([0, 0, 1, 2, 3], [0, 1, 1, 2, 3])
    machines.add_node(**MACHINE)
