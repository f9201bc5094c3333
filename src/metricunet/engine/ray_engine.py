"""Tasks that are shared out to the machines of a Ray cluster."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from metricunet.engine.folders import check_folders
from metricunet.engine.interface import GIB, Claim, Engine, Needs, Result, Task, Watch, Worker
from metricunet.engine.ray_worker import actor_class, call
from metricunet.errors import InputError, WorkerDied, argument, told, without_frames

#: Ray, as a user names it.
NAME = "ray"
#: A task that has cost its worker's life so often has failed.
MOST_DEATHS = 2
#: Workers that die one after the other before any of them was ready are no accident.
MOST_FALSE_STARTS = 3
#: How often it is looked for new machines, and for how far tasks are.
POLL_S = 2.0
#: A machine that has not said within this time what it sees is not at work.
ANSWER_S = 120.0


def threads() -> int:
    """Return the threads of a worker, and so its cores: as many as OMP_NUM_THREADS says, else one.

    The last bits of a network's sums depend on this number, and on nothing else here.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return max(1, int(first)) if first.isdecimal() else 1


def _held(stack: ExitStack, claim: Claim[Task] | None, task: Task) -> Exception | None:
    """Take the claim of a task; return why it cannot be had."""
    # Caught where no generator's frame is in the traceback: to clear that frame would end the generator.
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
        self._actor = ray.remote(concurrency_groups={"watch": 1})(actor_class(ray))
        self._called = ray.remote(max_retries=MOST_DEATHS - 1)(call)

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
                                    f"the last: {why(loss)}"
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
        """Have a function called on any machine.

        Raises:
            InputError: no machine has what the call needs.
        """
        options = self._options(needs)
        self._fits(options)  # else Ray would wait for such a machine for ever
        called = self._called.options(**options).remote(function, *arguments)
        future: Future[Result] = Future()
        called.future().add_done_callback(partial(self._pass_on, future))
        return future

    def _pass_on(self, future: Future[Any], called: Future[tuple[bool, Any]]) -> None:
        """Let a future say what came of a call: its result, what it raised, or that its worker died."""
        loss = called.exception()
        worked, result = called.result() if loss is None else (False, loss)
        exceptions = self._ray.exceptions
        if isinstance(loss, exceptions.RayError) and not isinstance(loss, exceptions.RayTaskError):
            result = _died(loss)
        if worked:
            future.set_result(result)
        else:
            future.set_exception(result)

    def check_folders(self, written: Path | None, read: Sequence[Path]) -> None:
        """Refuse what a machine does not see; see `Engine.check_folders`."""
        if not self._alone:
            check_folders(self._asked, written, read)

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
                raise InputError(f"{argument('engine')}: machine {host}: {why(error)}") from error
            except self._ray.exceptions.RayError as error:
                raise InputError(
                    f"{argument('engine')}: machine {host} does not answer ({why(error)}); see `ray status`"
                ) from error


def _died(loss: Exception) -> WorkerDied:
    wanting = "OutOfMemory" in type(loss).__name__ or "NODE_OUT_OF_MEMORY" in str(loss)
    memory = ", for want of memory" if wanting else ""
    return WorkerDied(f"its worker process died{memory}, and the one of the second try, too")


def why(error: Exception) -> str:
    """Return the last line of what Ray says, which names the cause."""
    return told(InputError(str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__))
