"""What runs in the processes of Ray. Little is imported here, for it comes before the number of threads is set."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from metricunet.engine.interface import Result, untold
from metricunet.errors import told, without_frames


def call(function: Callable[..., Result], *arguments: object) -> tuple[bool, Result | Exception]:
    """Call a function; return whether that went well, and what it returned or raised."""
    try:
        return True, function(*arguments)
    except Exception as error:
        return False, _carried(error)


def actor_class(ray: Any) -> type:
    """Return the class of the processes of workers."""

    class MetricunetWorker:
        def __init__(self, folder: str, cores: int) -> None:
            # Before numpy and torch are imported, which happens when `make` is unpickled.
            for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
                os.environ[name] = str(cores)
            with suppress(OSError):  # then the user gave no path that begins there, or was told before
                os.chdir(folder)
            self.worker: Any = None
            self.latest: tuple[object, ...] | None = None

        def begin(self, make: Callable[[], Any]) -> tuple[bool, Any]:
            try:
                self.worker = make()
            except Exception as error:
                return False, _carried(error)
            return True, None

        def do(self, task: Any, watched: bool) -> tuple[bool, Any]:
            self.latest = None
            try:
                return True, self.worker.do(task, self.tell if watched else untold)
            except Exception as error:
                return False, _carried(error)

        def tell(self, *facts: object) -> None:
            self.latest = facts

        @ray.method(concurrency_group="watch")  # type: ignore[untyped-decorator]
        def said(self) -> tuple[object, ...] | None:
            return self.latest

    return MetricunetWorker


def _carried(error: Exception) -> Exception:
    """Return an error as it can go to another process: with the lines where it was raised, as a note."""
    import pickle

    lines = "".join(traceback.format_exception(error))
    without_frames(error)
    error.__cause__ = error.__context__ = None
    error.add_note(f"raised by a worker of the engine:\n{lines}")
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:  # some libraries' errors cannot be
        return RuntimeError(told(error))
