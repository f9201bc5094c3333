"""Timing: who is called when, and what is made of the seconds. No test depends on how fast anything is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metricunet.workflows.bench import timing
from metricunet.workflows.bench.timing import Ratio, Times, alternate, counter, quartiles, take_turns

CPU = torch.device("cpu")


def test_turns_go_to_and_fro() -> None:
    calls: list[str] = []

    def clock(name: str, seconds: float) -> Callable[[], float]:
        def run() -> float:
            calls.append(name)
            return seconds

        return run

    ticks: list[None] = []
    found = take_turns({"a": clock("a", 1.0), "b": clock("b", 2.0)}, 3, advance=lambda: ticks.append(None))
    assert "".join(calls) == "abbaab"
    assert found == {"a": [1.0, 1.0, 1.0], "b": [2.0, 2.0, 2.0]}
    assert len(ticks) == 6


def test_the_budget_ends_the_rounds_but_not_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def slow() -> float:
        nonlocal now
        now += 10
        return 10.0

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    ticks: list[None] = []
    found = take_turns({"a": slow, "b": slow}, 5, budget_s=25, advance=lambda: ticks.append(None))
    assert found == {"a": [10.0, 10.0], "b": [10.0, 10.0]}
    assert len(ticks) == 10
    assert len(take_turns({"a": slow}, 5, budget_s=0)["a"]) == 1


def test_warming_rounds_do_not_count() -> None:
    calls: list[str] = []
    found = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, CPU, warm=1)
    assert "".join(calls) == "ababba"
    assert [len(v) for v in found.values()] == [2, 2]
    assert all(s >= 0 for v in found.values() for s in v)


def test_times_and_ratios_by_hand() -> None:
    # Sorted 1 2 3 4 6: the quartiles with both ends counted in are the second and the fourth.
    assert Times.of([3.0, 1.0, 2.0, 6.0, 4.0]) == Times(3.0, (2.0, 4.0), 5)
    assert Times.of([7.0]) == Times(7.0, (7.0, 7.0), 1)
    # 2/1, 3/3, 12/4: pairs are divided, not medians.
    assert Ratio.of([2.0, 3.0, 12.0], [1.0, 3.0, 4.0]) == Ratio(2.0, (1.5, 2.5))


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=20))
def test_quartiles_lie_around_the_median(values: list[float]) -> None:
    low, high = quartiles(values)
    assert min(values) <= low <= Times.of(values).median_s <= high <= max(values) * (1 + 1e-12)


def test_a_counter_never_passes_its_end() -> None:
    seen: list[tuple[int, int]] = []
    advance = counter(2, lambda done, total: seen.append((done, total)))
    for _ in range(3):
        advance()
    assert seen == [(1, 2), (2, 2), (2, 2)]
