"""Timing of what is compared: in turn, in one process, so that all see the same machine."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from metricunet.progress import Progress

Run = Callable[[], object]
Advance = Callable[[], None]


@dataclass(frozen=True)
class Times:
    """Seconds of one thing measured several times: median, quartiles, and how often."""

    median_s: float
    quartiles_s: tuple[float, float]
    n: int

    @staticmethod
    def of(seconds: Sequence[float]) -> Times:
        """Summarise; at least one time."""
        return Times(statistics.median(seconds), quartiles(seconds), len(seconds))


@dataclass(frozen=True)
class Ratio:
    """The median of the ratios of paired times, and their quartiles."""

    median: float
    quartiles: tuple[float, float]

    @staticmethod
    def of(above: Sequence[float], below: Sequence[float]) -> Ratio:
        """Divide pair by pair: both hold one time of each round."""
        ratios = [a / b for a, b in zip(above, below, strict=True)]
        return Ratio(statistics.median(ratios), quartiles(ratios))


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the first and third quartile, both ends counted in; of one value, that value twice."""
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def wait(device: torch.device) -> None:
    """Wait until a GPU has done all that it was told to do; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds(run: Run, device: torch.device) -> float:
    """Return how long one call takes, the device's own work included."""
    wait(device)
    began = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - began


def alternate(
    runs: Mapping[str, Run],
    repeats: int,
    device: torch.device,
    *,
    warm: int = 1,
    budget_s: float = math.inf,
    advance: Advance | None = None,
) -> dict[str, list[float]]:
    """Time several things in turn, after `warm` rounds that do not count; see `take_turns`."""
    for _ in range(warm):
        for run in runs.values():
            seconds(run, device)
    clocks = {name: partial(seconds, run, device) for name, run in runs.items()}
    return take_turns(clocks, repeats, budget_s=budget_s, advance=advance)


def take_turns(
    clocks: Mapping[str, Callable[[], float]],
    repeats: int,
    *,
    budget_s: float = math.inf,
    advance: Advance | None = None,
) -> dict[str, list[float]]:
    """Call several things that time themselves in turn; the order turns round from one round to the next.

    What runs second finds warmer caches, so the order must not favour one of them.

    Args:
        clocks: each does its work and returns its seconds, by name.
        repeats: how often each is called.
        budget_s: no further round begins after this many seconds; there is always one.
        advance: called after each call, and for those that the budget leaves out.

    Returns:
        The seconds of each, one of each round.
    """
    found: dict[str, list[float]] = {name: [] for name in clocks}
    began = time.perf_counter()
    for k in range(repeats):
        late = k > 0 and time.perf_counter() - began > budget_s
        for name in list(clocks) if k % 2 == 0 else reversed(list(clocks)):
            if not late:
                found[name].append(clocks[name]())
            if advance is not None:
                advance()
    return found


def counter(total: int, progress: Progress | None) -> Advance:
    """Return a function that reports one more step of `total` done."""
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(min(done, total), total)

    return advance
