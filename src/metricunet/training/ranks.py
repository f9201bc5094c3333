"""Several processes that train one model: who they are, what the first does alone, and what they have in common.

Lightning Fabric starts them and connects them, or torchrun does. Each computes some rows of every batch
(`metricunet.metric.gathering`), so that their number changes neither what is drawn nor the loss. Each finds the
gradient of the whole batch by way of its own rows; these are added up (`add_up_gradients`), where DDP would
average, and the weights stay equal. The first process alone writes files, shows progress and says what is wrong.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from torch import Tensor, distributed, nn

from metricunet.errors import InputError, argument, told
from metricunet.metric.gathering import drawn, processes, rank, sharing, summed_for_rows
from metricunet.stages.device import device_named

Item = TypeVar("Item")
Value = TypeVar("Value")

#: The first process may prepare a large cohort while the others wait.
LONGEST_WAIT = timedelta(days=2)
#: So long the others have to end by themselves where the first one fails.
PATIENCE_S = 2.0
#: How a process ends that leaves it to the first to say what went wrong.
ENDED, INTERRUPTED = 2, 130
#: What Lightning's launcher tells the processes that it starts, and leaves behind.
LAUNCHED_BY = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")

_launched = False


@dataclass(frozen=True, eq=False)
class Ranks:
    """The processes of a training, seen by one of them.

    Attributes:
        fabric: connects them; None where there is one alone.
        rank: number of this process, from 0.
        count: number of processes.
    """

    fabric: Fabric | None = None
    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes and tells."""
        return self.rank == 0

    def first(self, do: Callable[[], Value]) -> Value:
        """Let the first process do something while the others wait, and give all of them what it returns.

        Raises:
            Exception: in the first process what it raised. The others end.
        """
        if self.fabric is None:
            return do()
        value: Value | None = None
        failure: BaseException | None = None
        if self.is_first:
            try:
                value = do()
            except BaseException as error:
                failure = error
        value, failed = self.fabric.broadcast((value, failure is not None))
        if failure is not None:
            raise failure
        if failed:
            sys.exit(ENDED)
        return value  # type: ignore[return-value]

    def first_then_others(self, do: Callable[[], Value]) -> Value:
        """Let the first process do something, then all others; what it left on the disk they find there.

        Raises:
            InputError: it went wrong in another process alone; it is named.
            Exception: in the first process what it raised. The others end.
        """
        if self.fabric is None:
            return do()
        found: list[Value] = []
        self.first(lambda: found.append(do()))
        failure = ""
        if not self.is_first:
            try:
                found.append(do())
            except Exception as error:
                failure = f"process {self.rank} of {self.count}: {told(error)}"
        failures = [one for one in everywhere(failure) if one]
        if failures:
            raise InputError(failures[0])
        return found[0]

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.fabric is not None:
            self.fabric.barrier()


#: One process, as in most trainings.
ALONE = Ranks()


@contextmanager
def together(device: str, devices: int = 1, nodes: int = 1) -> Iterator[Ranks]:
    """Start the other processes of a training, or join those that torchrun started, while the block lasts.

    All but the first process end with the block.

    Args:
        device: `auto`, `cpu`, `cuda`, `gpu` or, for one process alone, any other device.
        devices: number of processes on each computer, each with a device of its own.
        nodes: number of computers.

    Raises:
        InputError: impossible numbers, fewer devices than processes, another number than Slurm has started, or a
            training on several devices that follows another one in this process.
    """
    global _launched
    devices, nodes, external = _counts(devices, nodes)
    if devices * nodes == 1:
        yield ALONE
        return
    where = _kind_of(device, devices)
    if _launched and not external:
        raise InputError(
            "this process has trained on several devices before, and its other processes have ended; start "
            "another process for another training"
        )
    for name in ("lightning.fabric", "lightning.pytorch"):  # whichever of them was imported last tells
        logging.getLogger(name).setLevel(logging.ERROR)
    before = {name: os.environ.get(name) for name in LAUNCHED_BY}
    strategy = _OwnGradients(timeout=LONGEST_WAIT)
    # Lightning takes every job of Slurm for one that has started all processes; one of a single task has not.
    own = os.environ.get("SLURM_NTASKS") == "1" and "TORCHELASTIC_RUN_ID" not in os.environ
    with warnings.catch_warnings():
        # A tip: where Slurm is installed, that programs should be started by it.
        warnings.filterwarnings("ignore", message="The `srun` command is available")
        try:
            fabric = Fabric(
                accelerator=where,
                devices=devices,
                num_nodes=nodes,
                strategy=strategy,
                plugins=[LightningEnvironment()] if own else None,
            )
        except RuntimeError as error:
            if "SLURM" not in str(error):
                raise
            raise InputError(
                f"{argument('devices')} is {devices} and {argument('nodes')} {nodes}, but this job of Slurm has "
                f"{os.environ.get('SLURM_NTASKS')} tasks without a number for each computer; start the processes "
                "with torchrun, or on one computer ask Slurm for a single task"
            ) from error
    _launched = True
    fabric.launch()
    ranks = Ranks(fabric, fabric.global_rank, fabric.world_size)
    if not ranks.is_first:
        logging.getLogger("metricunet").setLevel(logging.ERROR)  # the first one warns
    try:
        if ranks.count != devices * nodes:
            raise InputError(
                f"{argument('devices')} is {devices} and {argument('nodes')} {nodes}, but Slurm has started "
                f"{ranks.count} processes; ask it for as many tasks on each computer as there are devices"
            )
        yield ranks
        ranks.wait()  # the others need not outlive what the first leaves
        distributed.destroy_process_group()
    except BaseException as error:
        if not ranks.is_first:
            _end_quietly(error, ranks)
        _end(getattr(fabric.strategy.launcher, "procs", []))  # else they would wait for this one
        raise
    finally:
        if not external:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
    if not ranks.is_first:
        sys.exit(0)


def _end(started: list[subprocess.Popen[bytes]]) -> None:
    """End processes: give them a while to do it themselves, and kill those that do not.

    One that waits for its GPU, and the GPU for what another process is to send, heeds no signal that Python is to
    handle. Left alone, it would hold the GPU for as long as it may wait.

    Args:
        started: the processes, as Lightning's launcher lists them. It is emptied, for Lightning kills this process
            as soon as it finds one in the list that has ended so.
    """
    processes = started.copy()
    started.clear()
    for process in processes:
        process.terminate()
    latest = time.monotonic() + PATIENCE_S
    for process in processes:
        try:
            process.wait(max(0.0, latest - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _OwnGradients(DDPStrategy):
    """Processes that Fabric starts and connects, whose gradients the training adds up itself."""

    def setup_module(self, module: nn.Module) -> Any:
        """Return the module as it is, without DDP around it."""
        return module


def _counts(devices: int, nodes: int) -> tuple[int, int, bool]:
    """Return the number of processes on each computer and of computers, and whether something else starts them.

    Raises:
        InputError: impossible numbers, or others than torchrun was given.
    """
    if devices < 1:
        raise InputError(f"{argument('devices')} must be 1 or more; got {devices}")
    if nodes < 1:
        raise InputError(f"{argument('nodes')} must be 1 or more; got {nodes}")
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return devices, nodes, "LOCAL_RANK" in os.environ
    here, everywhere_ = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if (devices, nodes) == (1, 1):
        return here, everywhere_ // here, True
    if devices != here or devices * nodes != everywhere_:
        raise InputError(
            f"{argument('devices')} is {devices} and {argument('nodes')} {nodes}, but torchrun has started "
            f"{everywhere_} processes, {here} of them here; leave both out under torchrun"
        )
    return devices, nodes, True


def refuse_group(what: str) -> None:
    """Refuse work that the processes of torchrun would take for one training, though each does another part of it.

    Args:
        what: the work, as the message is to name it.

    Raises:
        InputError: torchrun has started this process and others.
    """
    devices, nodes, _ = _counts(1, 1)
    if devices * nodes > 1:
        raise InputError(
            f"{what}: torchrun has started {devices * nodes} processes for one training, and here each would take "
            "another fold; start the command without torchrun, once for each device and all but the first with "
            f"{argument('resume', True)}"
        )


def _kind_of(device: str, devices: int) -> str:
    """Return the kind of device that several processes compute on.

    Raises:
        InputError: one device alone is named, or there are fewer than processes.
    """
    where = device_named(device)
    if ":" in device or where.type == "mps":
        raise InputError(
            f"{argument('device', device)} is one device, and {argument('devices')} is {devices}; name cuda or cpu"
        )
    if where.type == "cuda" and torch.cuda.device_count() < devices:
        raise InputError(
            f"{argument('devices')} is {devices}, but torch sees {torch.cuda.device_count()} GPUs here; ask for "
            f"that many, or compute on {argument('device', 'cpu')}"
        )
    return where.type


def _end_quietly(error: BaseException, ranks: Ranks) -> None:
    """End a process that is not the first, after an error that the first one tells, or that follows from its end.

    Raises:
        InputError: of an error that is this process's own.
        SystemExit: of any other.
    """
    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    lost = isinstance(error, distributed.DistError) or "gloo" in str(error)
    if lost or isinstance(error, InputError):
        sys.exit(ENDED)
    raise InputError(f"process {ranks.rank} of {ranks.count}: {told(error)}") from error


def everywhere(value: Value) -> list[Value]:
    """Return the values of all processes, in the order of their numbers."""
    if processes() == 1:
        return [value]
    found: list[Any] = [None] * processes()
    distributed.all_gather_object(found, value)
    return found


def each_on_one_rank(do: Callable[[Item], Value], items: Sequence[Item]) -> list[Value]:
    """Do something with each item, each in one process, and give all processes the results in the items' order."""
    own = everywhere([do(item) for item in items[rank() :: processes()]])
    return [own[k % processes()][k // processes()] for k in range(len(items))]


def mean_of_all(values: Tensor) -> Tensor:
    """Return the mean of values over the processes."""
    if processes() > 1:
        distributed.all_reduce(values)
    return values / processes()


def add_up_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients of parameters by their sums over the processes; alone they stay what they are.

    A parameter without a gradient has one of zeros, so that no process waits for what another does not have.
    """
    if processes() == 1:
        return
    learned = list(parameters)
    found = [torch.zeros_like(one) if one.grad is None else one.grad for one in learned]
    total = torch.cat([one.flatten() for one in found])
    distributed.all_reduce(total)
    begin = 0
    for one in learned:
        one.grad = total[begin : begin + one.numel()].view_as(one)
        begin += one.numel()


def share(module: nn.Module) -> None:
    """Let a module compute what it would in one process: equal weights, statistics and draws of the whole batch.

    Batch normalisation takes mean and variance over the rows of all processes, and dropout draws for all of them.
    On every device it is the same few operations, and torch's own SyncBatchNorm, which needs a GPU, is not used.
    """
    if processes() == 1:
        return
    for child in module.modules():
        if type(child) in (nn.BatchNorm2d, nn.BatchNorm3d):
            child.__class__ = SharedBatchNorm  # its weights are in the optimizer by then, or will be: they stay
        elif type(child) is nn.Dropout:
            child.__class__ = SharedDropout
    for tensor in module.state_dict().values():
        distributed.broadcast(tensor, 0)


class SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation whose mean and variance, in training, are those of the whole batch."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Take any number of sides, for it stands for that of 2D and of 3D."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [batch, channels, *space]."""
        if not (self.training and sharing()):
            return super().forward(input)
        x = input.float()
        over = [0, *range(2, x.dim())]
        each = (1, -1, *[1] * (x.dim() - 2))
        count = x.numel() // x.shape[1] * processes()
        mean = summed_for_rows(x.sum(dim=over)) / count
        x = x - mean.view(each)
        variance = summed_for_rows(x.square().sum(dim=over)) / count
        with torch.no_grad():
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr]
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)  # type: ignore[union-attr]
        scale = self.weight / (variance + self.eps).sqrt()
        return torch.addcmul(self.bias.view(each), x, scale.view(each)).to(input.dtype)


class SharedDropout(nn.Dropout):
    """Dropout that drops of each row what it would in one process."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop values of [batch, ...]."""
        if not (self.training and sharing()):
            return F.dropout(input, self.p, self.training)
        kept = drawn(lambda rows: input.new_empty((rows, *input.shape[1:])).bernoulli_(1 - self.p), len(input))
        return input * kept.div_(1 - self.p)
