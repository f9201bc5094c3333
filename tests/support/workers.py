"""Workers that a test of an engine has made in other processes; they import little, so they are there soon."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from metricunet.engine import Tell
from metricunet.errors import InputError


class Doubling:
    """Doubles numbers. It dies of 3, cannot do 4, and says where it was made."""

    def __init__(self) -> None:
        self.made_in = os.getpid()

    def do(self, task: int, tell: Tell) -> tuple[int, int, str, str]:
        if task == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if task == 4:
            raise KeyError("four")
        return 2 * task, self.made_in, os.environ["OMP_NUM_THREADS"], str(Path.cwd())


class Waiting:
    """Notes in a folder that a task has begun, tells on which machine, and goes on when it may."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def do(self, task: int, tell: Tell) -> int:
        import ray

        (self.folder / f"begun-{task}-{os.getpid()}").touch()
        tell(ray.get_runtime_context().get_node_id())
        while not (self.folder / "go").exists():
            time.sleep(0.05)  # in another process; nothing tells it more directly
        return task


class Unmade:
    """Cannot be made."""

    def __init__(self) -> None:
        raise KeyError("no model")

    def do(self, task: int, tell: Tell) -> int:
        raise AssertionError


def killed(*_: object) -> None:
    """Be killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(words: str) -> None:
    """Raise an error that is meant for the user."""
    raise InputError(words)
