"""Work that is shared out: to processes of Ray on this machine or on many, or done here, one after the other.

Whoever has tasks hands them to an `Engine`, with a function that makes a worker: an object that holds what all its
tasks need, such as a model. The engine makes one in each process, gives it one task at a time, and yields what
came of each task as it is done. So no more comes back at once than the caller takes, and nothing but tasks and
results goes from machine to machine: a scan is read where it is segmented.

The claim of a task is held here, by the process that shares it out, and not by the worker: a machine that is lost
takes no claim with it. Ray is an extra. It is imported when an engine of it is opened.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TypeVar

from metricunet.errors import InputError, WorkerDied, argument, told, without_frames
from metricunet.files.atomic import UNFINISHED

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

NAME, INSTALL = "ray", "pip install 'metricunet[ray]'"
#: A task that has cost its worker's life so often has failed.
MOST_DEATHS = 2
#: Workers that die one after the other before any of them was ready are no accident.
MOST_FALSE_STARTS = 3
#: How often it is looked for new machines, and for how far tasks are.
POLL_S = 2.0
#: A machine that has not said within this time what it sees is not at work.
ANSWER_S = 120.0
#: So much of a file tells it from another one of its name.
HEAD_BYTES = 1 << 16
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
        """Have a function called somewhere, in the order of these calls."""

    @abstractmethod
    def check_folders(self, written: Path, read: Sequence[Path]) -> None:
        """Refuse, before any work, a folder or file that a machine does not see as it is seen here.

        Args:
            written: folder that results go into. It may be missing.
            read: files and folders that are read.

        Raises:
            InputError: naming the machine and the first such path.
        """

    @abstractmethod
    def device(self, needs: Needs) -> str:
        """Return the name of the device that workers compute on.

        Raises:
            InputError: a device that no machine has, or a GPU by its number.
        """


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
            yield task, _done(worker, task, claim, _untold if watch is None else partial(watch, task))

    def submit(self, needs: Needs, function: Callable[..., Result], *arguments: object) -> Future[Result]:
        """Call the function now."""
        future: Future[Result] = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def check_folders(self, written: Path, read: Sequence[Path]) -> None:
        """Refuse nothing: this process sees what it sees."""

    def device(self, needs: Needs) -> str:
        """Return the name as it is."""
        return needs.device


@contextmanager
def opened(name: str | None) -> Iterator[Engine | None]:
    """Open the engine that a user names; it ends with the block, and its workers with it.

    Args:
        name: `ray` for workers on this machine; `ray://ADDRESS` for a cluster that is running, by the address of
            its head as in `ray start --address`, or `ray://auto` for the one that this machine is part of; None
            for no engine.

    Raises:
        InputError: another name, Ray is not installed, or there is no such cluster.
    """
    if name is None:
        yield None
        return
    kind, _, address = name.partition("://")
    if kind != NAME or (not address and name != NAME):
        raise InputError(f"{argument('engine')} must be {NAME} or {NAME}://ADDRESS; got {name!r}")
    ray = _ray()
    try:
        with _without_pages(ray):
            _start(ray, address)
            yield RayEngine(ray, alone=not address)
    finally:
        ray.shutdown()


def threads() -> int:
    """Return the threads of a worker, and so its cores: as many as OMP_NUM_THREADS says, else one.

    The last bits of a network's sums depend on this number, and on nothing else here.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return max(1, int(first)) if first.isdecimal() else 1


def _ray() -> Any:
    """Import Ray, which then says nothing of this machine to its makers unless the user has asked for that."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning, where no GPU is asked for
    try:
        import ray
    except ModuleNotFoundError as error:
        raise InputError(f"{argument('engine', NAME)} needs Ray, which is not installed: {INSTALL}") from error
    return ray


@contextmanager
def _without_pages(ray: Any) -> Iterator[None]:
    """Keep from the screen the page that Ray prints of each lost worker; we say that in a line."""
    worker = ray._private.worker
    before, worker.print_to_stdstream = worker.print_to_stdstream, lambda *_, **__: None
    try:
        yield
    finally:
        worker.print_to_stdstream = before


def _start(ray: Any, address: str) -> None:
    """Connect to a cluster, or start one on this machine that nobody reaches from another."""
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise InputError(
                f"{argument('engine')} {NAME}://{address}: {_why(error)}; start Ray on this machine and the "
                "others with `ray start`, and give the address that it prints"
            ) from error
        return
    # Ray's word for: there are no other computers, so that its processes listen at 127.0.0.1 alone.
    ray_constants = ray._private.ray_constants
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        ray.init(address="local", num_cpus=_cores(), include_dashboard=False, **quiet)
    except Exception as error:  # its processes have half a minute to begin, which a busy machine may not give them
        raise InputError(
            f"{argument('engine', NAME)}: Ray did not start on this machine ({_why(error)}); try again when "
            "there is less going on"
        ) from error
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _untold(*facts: object) -> None:
    """Let nobody know."""


# An error is caught where no generator's frame is in its traceback: to clear that frame would end the generator.


def _done(worker: Worker[Task, Result], task: Task, claim: Claim[Task] | None, tell: Tell) -> Result | Exception:
    """Do a task while its claim is held; return its result, or whatever went wrong with it."""
    try:
        with nullcontext() if claim is None else claim(task):
            return worker.do(task, tell)
    except Exception as error:
        return without_frames(error)


def _held(stack: ExitStack, claim: Claim[Task] | None, task: Task) -> Exception | None:
    """Take the claim of a task; return why it cannot be had."""
    try:
        if claim is not None:
            stack.enter_context(claim(task))
        return None
    except Exception as error:
        return without_frames(error)


@dataclass(eq=False)
class _Hired:
    """A worker's process, and what it is at."""

    actor: Any
    pending: Any
    task: int | None = None
    said: Any = None


@dataclass(eq=False)
class _Open:
    """A task that is not done: how many workers died at it, and the claim that is held for it."""

    deaths: int = 0
    claim: ExitStack = field(default_factory=ExitStack)


class RayEngine(Engine):
    """Shares tasks out to the machines of a Ray cluster.

    Args:
        ray: the module, connected.
        alone: whether the cluster is this machine's own.
    """

    def __init__(self, ray: Any, alone: bool) -> None:
        self._ray, self._alone = ray, alone
        self._actor = ray.remote(concurrency_groups={"watch": 1})(_actor_class(ray))
        self._called = ray.remote(max_retries=MOST_DEATHS - 1)(_call)

    def each(
        self,
        tasks: Sequence[Task],
        make: Callable[[], Worker[Task, Result]],
        needs: Needs,
        *,
        claim: Claim[Task] | None = None,
        watch: Watch | None = None,
    ) -> Generator[tuple[Task, Result | Exception], None, None]:
        """Yield each task with its result as they are done; see `Engine.each`.

        A task whose worker or machine is lost is tried once more.

        Raises:
            InputError: no machine has what a worker needs.
        """
        if not tasks:
            return
        options = self._options(needs)
        self._fits(options)  # else an error before any work
        made = self._ray.put(make)
        hired: list[_Hired] = []
        coming: deque[int] = deque(range(len(tasks)))
        at_work: dict[int, _Open] = {}
        false_starts, looked = 0, float("-inf")
        try:
            while coming or at_work:
                if time.monotonic() - looked >= POLL_S:
                    looked = time.monotonic()
                    wanted = min(self._fits(options, left=bool(hired)), len(coming) + len(at_work))
                    while len(hired) < wanted:
                        actor = self._actor.options(**options).remote(os.getcwd(), options["num_cpus"])
                        hired.append(_Hired(actor, actor.begin.remote(made)))
                    if watch is not None:
                        self._listen(hired, tasks, watch)
                waited = {one.pending: one for one in hired if one.pending is not None}
                done, _ = self._ray.wait(list(waited), num_returns=1, timeout=POLL_S)
                for pending in done:
                    one = waited.pop(pending)
                    number, one.task, one.pending = one.task, None, None
                    try:
                        worked, result = self._ray.get(pending)
                    except self._ray.exceptions.RayError as loss:
                        hired.remove(one)
                        self._dismiss([one])
                        looked = float("-inf")  # another one comes in its stead
                        if number is None:
                            false_starts += 1
                            if false_starts >= MOST_FALSE_STARTS:
                                raise InputError(
                                    f"{argument('engine')}: {false_starts} workers died before they could begin; "
                                    f"the last: {_why(loss)}"
                                ) from loss
                            continue
                        at_work[number].deaths += 1
                        if at_work[number].deaths < MOST_DEATHS:
                            coming.appendleft(number)
                            continue
                        worked, result = False, _died(loss)
                    if number is None:
                        if not worked:
                            raise result
                        false_starts = 0
                    else:
                        at_work.pop(number).claim.close()
                        yield tasks[number], result
                for one in hired:
                    while one.pending is None and coming:
                        number = coming.popleft()
                        if number not in at_work:
                            at_work[number] = _Open()
                            refused = _held(at_work[number].claim, claim, tasks[number])
                            if refused is not None:
                                del at_work[number]
                                yield tasks[number], refused
                                continue
                        one.task, one.pending = number, one.actor.do.remote(tasks[number], watch is not None)
        finally:
            self._dismiss(hired)
            for left in at_work.values():
                left.claim.close()

    def submit(self, needs: Needs, function: Callable[..., Result], *arguments: object) -> Future[Result]:
        """Have a function called on any machine."""
        called = self._called.options(**self._options(needs)).remote(function, *arguments)
        future: Future[Result] = called.future()
        return future

    def check_folders(self, written: Path, read: Sequence[Path]) -> None:
        """Refuse what a machine does not see; see `Engine.check_folders`."""
        if self._alone:
            return
        here = os.getcwd()
        seen = {path.absolute(): _seen(path) for path in read}
        existing = next(folder for folder in (written.absolute(), *written.absolute().parents) if folder.is_dir())
        probe = existing / f"{UNFINISHED.rstrip('*')}{secrets.token_hex(8)}.probe"
        try:
            probe.write_text(here, encoding="utf-8")
        except OSError as error:
            raise InputError(f"{existing}: cannot be written ({error.strerror}); choose another folder") from error
        try:
            for node, answer in self._asked(_look, list(seen), probe):
                for path, other in answer["seen"].items():
                    if other != seen[path]:
                        raise InputError(
                            f"{path}: machine {node} sees {'another one' if other else 'none'}; every machine "
                            "must see it by this path: put it on storage that they share"
                        )
                if answer["writing"]:
                    raise InputError(
                        f"{written.absolute()}: machine {node} cannot write there ({answer['writing']}); the "
                        "results need a folder on storage that all machines share"
                    )
                if answer["version"] != version("metricunet"):
                    raise InputError(
                        f"machine {node} has metricunet {answer['version']}, and this one has "
                        f"{version('metricunet')}; install one version on all"
                    )
        finally:
            probe.unlink(missing_ok=True)

    def device(self, needs: Needs) -> str:
        """Return `cpu`, or `cuda` where the machines have GPUs and these are not declined."""
        kind, colon, _ = needs.device.partition(":")
        if colon:
            raise InputError(
                f"{argument('device', needs.device)}: {argument('engine', NAME)} chooses the number of the GPU; "
                f"use {argument('device', kind)}"
            )
        if kind == "auto":
            return "cuda" if self._gpus() else "cpu"
        if kind in ("cuda", "gpu") and not self._gpus():
            raise InputError(
                f"{argument('device', needs.device)}: no machine of {argument('engine', NAME)} has a GPU; use "
                f"{argument('device', 'cpu')}"
            )
        return "cuda" if kind == "gpu" else kind

    def _gpus(self) -> float:
        return float(max((node["Resources"].get("GPU", 0.0) for node in self._nodes()), default=0.0))

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def _options(self, needs: Needs) -> dict[str, Any]:
        """Return what Ray is asked for on behalf of a worker."""
        gpus = 1 / needs.per_gpu if self.device(needs) == "cuda" else 0
        return {"num_cpus": threads(), "num_gpus": gpus, "memory": needs.memory_bytes}

    def _fits(self, options: Mapping[str, Any], left: bool = False) -> int:
        """Return how many workers the machines hold that are there now.

        Args:
            options: what a worker takes.
            left: whether workers are there already, so that none more need fit.

        Raises:
            InputError: none.
        """
        wanted = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], "memory": options["memory"]}
        count, best = 0, ""
        for node in self._nodes():
            there = node["Resources"]
            count += min(int(there.get(name, 0) / amount + 1e-6) for name, amount in wanted.items() if amount)
            best = f"{there.get('CPU', 0):g} cores and {there.get('memory', 0) / GIB:.1f} GiB"
        if not count and not left:
            gpu = f", {wanted['GPU']:g} GPU" if wanted["GPU"] else ""
            raise InputError(
                f"{argument('engine')}: no machine has what a worker takes, {wanted['CPU']} cores{gpu} and "
                f"{wanted['memory'] / GIB:.1f} GiB of memory; the last of the machines has {best or 'nothing'}"
            )
        return count

    def _listen(self, hired: Sequence[_Hired], tasks: Sequence[Task], watch: Watch) -> None:
        """Tell how far the tasks are, as far as their workers have answered, and ask them again."""
        for one in hired:
            if one.said is not None:
                number, answer = one.said
                if not self._ray.wait([answer], timeout=0)[0]:
                    continue
                one.said = None
                with suppress(self._ray.exceptions.RayError):  # it has died, which is dealt with elsewhere
                    facts = self._ray.get(answer)
                    if facts is not None and number == one.task:
                        watch(tasks[number], *facts)
            if one.task is not None:
                one.said = one.task, one.actor.said.remote()

    def _dismiss(self, hired: Sequence[_Hired]) -> None:
        for one in hired:
            with suppress(Exception):  # it is dead already, or Ray is
                self._ray.kill(one.actor, no_restart=True)

    def _asked(self, function: Callable[..., Any], *arguments: object) -> Iterator[tuple[str, Any]]:
        """Yield the name of each machine that has cores, and what the function returns there."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        remote = self._ray.remote(num_cpus=0, max_retries=0)(function)
        answers = {}
        for node in self._nodes():
            if node["Resources"].get("CPU"):
                strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                answers[node["NodeManagerHostname"], node["NodeID"]] = remote.options(
                    scheduling_strategy=strategy
                ).remote(*arguments)
        for (host, _), answer in answers.items():
            try:
                yield host, self._ray.get(answer, timeout=ANSWER_S)
            except self._ray.exceptions.RayTaskError as error:
                raise InputError(f"{argument('engine')}: machine {host}: {_why(error)}") from error
            except self._ray.exceptions.RayError as error:
                raise InputError(
                    f"{argument('engine')}: machine {host} does not answer ({_why(error)}); see `ray status`"
                ) from error


def _call(function: Callable[..., Result], *arguments: object) -> Result:
    return function(*arguments)


def _actor_class(ray: Any) -> type:
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
                return True, self.worker.do(task, self.tell if watched else _untold)
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


def _died(loss: Exception) -> WorkerDied:
    wanting = "OutOfMemory" in type(loss).__name__ or "NODE_OUT_OF_MEMORY" in str(loss)
    memory = ", for want of memory" if wanting else ""
    return WorkerDied(f"its worker process died{memory}, and the one of the second try, too")


def _why(error: Exception) -> str:
    return told(InputError(str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__))


def _seen(path: Path) -> str:
    """Return what a file or folder looks like from here; empty where there is none."""
    try:
        if path.is_dir():
            return "folder"
        with path.open("rb") as handle:
            head = handle.read(HEAD_BYTES)
        return f"{path.stat().st_size} {hashlib.sha256(head).hexdigest()}"
    except OSError:
        return ""


def _look(paths: Sequence[Path], probe: Path) -> dict[str, Any]:
    """Say, on a machine, what it sees, and whether it can write beside a file that it must see, too."""
    writing = ""
    own = probe.with_name(f"{probe.name}.{secrets.token_hex(4)}")
    try:
        probe.read_text(encoding="utf-8")
        own.write_text("", encoding="utf-8")
        own.unlink()
    except OSError as error:
        writing = str(error.strerror or error)
    return {"seen": {path: _seen(path) for path in paths}, "writing": writing, "version": version("metricunet")}
