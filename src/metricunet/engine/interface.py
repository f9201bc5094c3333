"""What an engine is, and what it is told of workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

Task = TypeVar("Task")
TaskIn = TypeVar("TaskIn", contravariant=True)
Result = TypeVar("Result")
ResultOut = TypeVar("ResultOut", covariant=True)

#: Told how far a task is, in whatever terms its worker has.
Tell = Callable[..., None]
#: Told a task, and what its worker tells of it.
Watch = Callable[..., None]
#: Holds the claim of a task while it is worked on; raises where somebody else has it.
Claim = Callable[[Task], AbstractContextManager[object]]

GIB = 1 << 30


class Worker(Protocol[TaskIn, ResultOut]):
    """What is made once in each process, and does one task at a time there."""

    def do(self, task: TaskIn, tell: Tell) -> ResultOut:
        """Do a task, and tell how far it is. What it raises costs this task alone."""
        ...


@dataclass(frozen=True)
class Needs:
    """What a worker takes of its machine.

    Attributes:
        memory_bytes: the most memory that it was measured to take.
        device: where it computes, as the user names it: `auto`, `cpu`, `cuda`, `gpu` or `mps`.
        per_gpu: number of workers that share one GPU.
    """

    memory_bytes: int
    device: str = "cpu"
    per_gpu: int = 1


class Engine(ABC):
    """Shares tasks out."""

    @abstractmethod
    def each(
        self,
        tasks: Sequence[Task],
        make: Callable[[], Worker[Task, Result]],
        needs: Needs,
        *,
        claim: Claim[Task] | None = None,
        watch: Watch | None = None,
    ) -> Generator[tuple[Task, Result | Exception], None, None]:
        """Yield each task with its result, or with what went wrong, as they are done. Closed early, it ends them.

        Args:
            tasks: tasks to be done.
            make: makes a worker. Like tasks and results it can be pickled.
            needs: what a worker takes.
            claim: holds the claim of a task while it is worked on. What it raises is the task's.
            watch: told a task, and what its worker tells.

        Raises:
            Exception: what `make` raises ends all.
        """

    @abstractmethod
    def submit(self, needs: Needs, function: Callable[..., Result], *arguments: object) -> Future[Result]:
        """Have a function called somewhere, in the order of these calls.

        What the function raises the future raises, or `WorkerDied` where two workers were lost at it.

        Raises:
            InputError: no machine has what the call needs.
        """

    @abstractmethod
    def check_folders(self, written: Path | None, read: Sequence[Path]) -> None:
        """Refuse, before any work, a folder or file that a machine does not see as it is seen here.

        Args:
            written: folder that results go into. It may be missing. None where no machine writes any.
            read: files and folders that are read.

        Raises:
            InputError: naming the machine and the first such path, or the one that has another version of the
                program.
        """

    @abstractmethod
    def device(self, needs: Needs) -> str:
        """Return the name of the device that workers compute on.

        Raises:
            InputError: a device that no machine has, or a GPU by its number.
        """


def untold(*facts: object) -> None:
    """Let nobody know."""
