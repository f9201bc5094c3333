"""Tasks that are done in this process, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from metricunet.engine.interface import Claim, Engine, Needs, Result, Task, Tell, Watch, Worker, untold
from metricunet.errors import without_frames


class Serial(Engine):
    """Does all tasks in this process, one after the other."""

    def each(
        self,
        tasks: Sequence[Task],
        make: Callable[[], Worker[Task, Result]],
        needs: Needs,
        *,
        claim: Claim[Task] | None = None,
        watch: Watch | None = None,
    ) -> Generator[tuple[Task, Result | Exception], None, None]:
        """Yield each task with its result in their order; see `Engine.each`."""
        worker = make()
        for task in tasks:
            yield task, _done(worker, task, claim, untold if watch is None else partial(watch, task))

    def submit(self, needs: Needs, function: Callable[..., Result], *arguments: object) -> Future[Result]:
        """Call the function now."""
        future: Future[Result] = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def check_folders(self, written: Path | None, read: Sequence[Path]) -> None:
        """Refuse nothing: this process sees what it sees."""

    def device(self, needs: Needs) -> str:
        """Return the name as it is."""
        return needs.device


def _done(worker: Worker[Task, Result], task: Task, claim: Claim[Task] | None, tell: Tell) -> Result | Exception:
    """Do a task while its claim is held; return its result, or whatever went wrong with it."""
    # Caught where no generator's frame is in the traceback: to clear that frame would end the generator.
    try:
        with nullcontext() if claim is None else claim(task):
            return worker.do(task, tell)
    except Exception as error:
        return without_frames(error)
