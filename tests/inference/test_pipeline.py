"""Reading, computing and writing side by side: order, faults, and how much is held at once."""

from __future__ import annotations

import threading
import traceback
import weakref
from typing import Any

import pytest

from metricunet.errors import InputError
from metricunet.inference.pipeline import Finished, run_pipeline


def nothing() -> None:
    return None


def test_outcomes_come_in_order_with_the_faults_of_every_stage() -> None:
    def read(item: int) -> int:
        if item == 1:
            raise InputError("read 1")
        if item == 2:
            raise Finished("done before")
        return item * 10

    def compute(item: int, content: int) -> int:
        if item == 3:
            raise InputError("compute 3")
        return content + 1

    def write(item: int, computed: int) -> str:
        if item == 4:
            raise InputError("write 4")
        return f"{item}:{computed}"

    results = [(item, str(result)) for item, result in run_pipeline(range(7), read, compute, write, nothing)]
    expected = ["0:1", "read 1", "done before", "compute 3", "write 4", "5:51", "6:61"]
    assert results == list(enumerate(expected))


def test_the_next_is_read_and_the_last_written_while_one_is_computed() -> None:
    read_next, wrote_last = [threading.Event() for _ in range(3)], [threading.Event() for _ in range(3)]

    def read(item: int) -> int:
        read_next[item].set()
        return item

    def compute(item: int, content: int) -> int:
        # Neither wait could end if the stages ran one after the other.
        if item + 1 < 3:
            assert read_next[item + 1].wait(30)
        if item:
            assert wrote_last[item - 1].wait(30)
        return content

    def write(item: int, computed: int) -> int:
        wrote_last[item].set()
        return computed

    assert [r for _, r in run_pipeline(range(3), read, compute, write, nothing)] == [0, 1, 2]


def test_models_are_loaded_while_the_first_is_read() -> None:
    reading, loaded = threading.Event(), threading.Event()

    def read(item: int) -> int:
        reading.set()
        assert loaded.wait(30)
        return item

    def load() -> None:
        assert reading.wait(30)
        loaded.set()

    assert list(run_pipeline([5], read, lambda item, x: x, lambda item, x: x, load)) == [(5, 5)]


def test_at_most_three_items_are_alive() -> None:
    class Scan:
        alive = 0
        most = 0

        def __init__(self) -> None:
            Scan.alive += 1
            Scan.most = max(Scan.most, Scan.alive)

        def __del__(self) -> None:
            Scan.alive -= 1

    results = run_pipeline(
        range(12), lambda item: Scan(), lambda item, scan: scan, lambda item, scan: item, nothing
    )
    assert [r for _, r in results] == list(range(12))
    assert Scan.most <= 3


@pytest.mark.parametrize("stage", ["read", "compute", "write"])
@pytest.mark.parametrize("fault", [ZeroDivisionError, MemoryError, InputError])
def test_a_fault_of_one_item_is_its_own(stage: str, fault: type[Exception]) -> None:
    def step(name: str) -> Any:
        def run(item: int, *content: Any) -> int:
            if name == stage and item == 2:
                raise fault(name)
            return item

        return run

    results = [r for _, r in run_pipeline(range(4), step("read"), step("compute"), step("write"), nothing)]
    assert isinstance(results.pop(2), fault)
    assert results == [0, 1, 3]


@pytest.mark.parametrize("stage", ["read", "compute", "write", "load"])
def test_a_stop_by_the_user_or_a_model_that_cannot_be_loaded_ends_all(stage: str) -> None:
    def fail(name: str) -> Any:
        def run(*arguments: Any) -> Any:
            if name == stage:
                raise ZeroDivisionError if name == "load" else KeyboardInterrupt
            return arguments[0] if arguments else None

        return run

    with pytest.raises((ZeroDivisionError, KeyboardInterrupt)):
        list(run_pipeline(range(4), *(fail(name) for name in ("read", "compute", "write", "load"))))


@pytest.mark.parametrize("stage", ["read", "compute", "write"])
def test_a_failed_item_holds_no_memory(stage: str) -> None:
    class Scan:
        pass

    kept: list[weakref.ref[Scan]] = []

    def step(name: str) -> Any:
        def run(item: int, *content: Any) -> int:
            scan = Scan()
            if name == stage and item == 0:
                kept.append(weakref.ref(scan))
                raise ZeroDivisionError(name)
            if name == "compute" and item == 1 and stage != "write":
                assert kept[0]() is None, "the next item may need what the failed one held"
            return item

        return run

    results = [r for _, r in run_pipeline(range(3), step("read"), step("compute"), step("write"), nothing)]
    assert kept[0]() is None
    assert "raise ZeroDivisionError(name)" in "".join(traceback.format_exception(results[0]))
    assert results[1:] == [1, 2]
