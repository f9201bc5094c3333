"""Processes that share work in one folder: what one of them does, the others leave to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from metricunet.files.claim import AlreadyClaimed, claimed
from metricunet.progress import Say, silent

Item = TypeVar("Item")
Result = TypeVar("Result")

#: How often a process looks whether another one is done.
POLL_S = 0.5


def taken_up(items: Sequence[Item], do: Callable[[Item], Result], say: Say = silent) -> Iterator[Result]:
    """Do in order what no other process is doing, and in the end what others have left by then.

    Args:
        items: things to do.
        do: does one. It raises `AlreadyClaimed`, before any work, where another process is at it.
        say: told what is waited for.

    Raises:
        AlreadyClaimed: a file lies in the claim's place that is none.
    """

    def one_by_one(left: Sequence[Item]) -> Iterator[tuple[Item, Result | AlreadyClaimed]]:
        for item in left:
            try:
                result = do(item)
            except AlreadyClaimed as claim:
                yield item, claim
            else:
                yield item, result

    for _, result in shared_out(items, one_by_one, say):
        yield result


def shared_out(
    items: Sequence[Item],
    each: Callable[[Sequence[Item]], Iterable[tuple[Item, Result | AlreadyClaimed]]],
    say: Say = silent,
) -> Iterator[tuple[Item, Result]]:
    """Do what no other process is doing, in whatever order, and in the end what others have left by then.

    Args:
        items: things to do.
        each: does things, and yields each with what came of it: `AlreadyClaimed` where another process is at it.
        say: told what is waited for.

    Raises:
        AlreadyClaimed: a file lies in the claim's place that is none.
    """
    left, told = list(items), False
    while left:
        held: list[Item] = []
        why = ""
        for item, result in each(left):
            if not isinstance(result, AlreadyClaimed):
                yield item, result
                continue
            if result.holder is None:
                raise result
            held.append(item)
            why = str(result)
        if len(held) == len(left):  # nothing to do meanwhile
            if not told:
                say(f"waiting: {why}")
                told = True
            time.sleep(POLL_S)
        left = held


@contextmanager
def in_turn(path: Path, what: str, say: Say = silent) -> Iterator[None]:
    """Hold a claim while the block runs, after waiting for the process that has it.

    Args:
        path: of the claim.
        what: is going on, for people.
        say: told what is waited for.
    """
    with ExitStack() as stack:
        for _ in taken_up([path], lambda one: stack.enter_context(claimed(one, what)), say):
            pass
        yield
