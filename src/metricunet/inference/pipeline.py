"""The pipeline of cases: while one is computed, the next is read and the one before it is written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from metricunet.errors import without_frames

Item = TypeVar("Item")
Read = TypeVar("Read")
Computed = TypeVar("Computed")
Outcome = TypeVar("Outcome")


class Finished(Exception):  # noqa: N818 - it is an outcome, not an error
    """Raised by the reading stage for an item that needs no further work; carries its outcome."""

    def __init__(self, outcome: Any) -> None:
        super().__init__()
        self.outcome = outcome


def run_pipeline(
    items: Sequence[Item],
    read: Callable[[Item], Read],
    compute: Callable[[Item, Read], Computed],
    write: Callable[[Item, Computed], Outcome],
    load: Callable[[], object],
) -> Generator[tuple[Item, Outcome | Exception], None, None]:
    """Yield each item with its outcome, or with what one of its stages raised, in order.

    At any time at most one item is being read, one computed and one written, and no more are kept in memory.
    Whatever goes wrong with an item, foreseen or not, is its own: the others go on.
    Closed early, it ends when what is being read and written is done.

    Args:
        items: what to work on, at least one.
        read: runs in a thread of its own; may raise `Finished`.
        compute: runs in the caller's thread.
        write: runs in a thread of its own.
        load: called once in the caller's thread, while the first item is being read. What it raises ends all.
    """
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:

        def after_reading(item: Item, reading: Future[Read]) -> Future[Outcome] | Exception:
            try:
                return writer.submit(write, item, compute(item, reading.result()))
            except Exception as reason:
                return reason

        try:
            coming = deque(items)
            reading = reader.submit(read, items[0])
            load()
            last: tuple[Item, Future[Outcome] | Exception] | None = None
            while coming:
                item, current = coming.popleft(), reading
                wait([current])
                if coming:
                    reading = reader.submit(read, coming[0])
                result = after_reading(item, current)
                if isinstance(result, Exception):
                    without_frames(result)  # now: what they hold may be wanting for the next item
                del current  # it holds a whole scan
                if last is not None:
                    yield last[0], _settled(last[1])
                last = item, result
            if last is not None:
                yield last[0], _settled(last[1])
        except BaseException:
            reader.shutdown(wait=False, cancel_futures=True)
            raise


def _settled(result: Future[Any] | Exception) -> Any:
    if isinstance(result, Finished):
        return result.outcome
    if isinstance(result, Exception):
        return result
    error = result.exception()
    if isinstance(error, Exception):
        return without_frames(error)
    return result.result()
