"""The loop that trains a stage: epochs of updates, a score and a row of the log after each, and a checkpoint.

It reads downward: `fit`, `set_up`, `train_updates`, `validate`, and the checkpoints, all over one state. Lightning
Fabric places the module and the optimiser and runs the backward pass. The precision is that of
`metricunet.stages.network_input`: Fabric's would compute the losses in it, too, and cast what the branch reads.

A run that was stopped goes on from the end of an epoch, to the very weights of an unbroken one: the number of an
update decides its random numbers and its learning rate, and a checkpoint holds all else.
"""

from __future__ import annotations

import io
import logging
import math
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers.logger import Logger
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from metricunet.errors import InputError, argument, is_out_of_memory, told
from metricunet.files.atomic import UNFINISHED
from metricunet.metric.gathering import one_batch, processes
from metricunet.training.batches import Batches, Supply, update_generator, update_seed
from metricunet.training.checkpoints import written_checkpoint
from metricunet.training.log import LOG_NAME, StageProgress, stage_loggers, write_epoch
from metricunet.training.objectives import StageModule
from metricunet.training.ranks import ALONE, Ranks, add_up_gradients, each_on_one_rank, mean_of_all, share
from metricunet.training.run import Run

WARM_UP_UPDATES = 50
WEIGHT_DECAY = 1e-2
#: Raised whenever a checkpoint must be read differently.
CHECKPOINT_FORMAT = 1


@dataclass(eq=False)
class StageState:
    """A stage in training.

    Attributes:
        fabric: Lightning's Fabric on the device of the run.
        module: the stage itself: weights, loss and score.
        trained: the module as Fabric wraps it; to be called for the loss.
        optimizer: the optimizer as Fabric wraps it.
        epochs: number of epochs that are done.
        best_dice: highest mean Dice of the validation cases after any of them; None without one.
    """

    fabric: Fabric
    module: StageModule
    trained: nn.Module
    optimizer: Optimizer
    epochs: int = 0
    best_dice: float | None = None


def fit(run: Run, module: StageModule, supply: Supply) -> float | None:
    """Train a stage of a run, or continue it, and leave its best weights in the module; unscored, the last ones.

    Args:
        run: the run, as `open_run` returned it; its folder is this process's own.
        module: the stage, with the weights to begin from.
        supply: the batches to train on.

    Returns:
        The mean Dice of the validation cases under these weights; None where there are none.

    Raises:
        InputError: the loss is no number any more, a checkpoint cannot be used, or the folder cannot be written.
    """
    stage, settings, ranks = module.stage, module.settings, run.ranks
    last, best = (run.checkpoints / f"{stage}-{which}.ckpt" for which in ("last", "best"))
    log: AbstractContextManager[list[Logger]] = nullcontext([])
    if ranks.is_first:
        for left in run.checkpoints.glob(f"{UNFINISHED}.ckpt"):  # by a process that was killed
            left.unlink()
        log = stage_loggers(run.folder, stage, run.loggers)
    with (
        ended_by_sigterm(),
        log as loggers,
        StageProgress(stage, module.updates, run.watch if ranks.is_first else _unwatched) as progress,
        warnings.catch_warnings(),
    ):
        # The metric branch's CUDA graphs were captured on a stream of their own (GraphedBranch).
        warnings.filterwarnings("ignore", message=".*AccumulateGrad node's stream does not match.*")
        state = set_up(module, run.device, ranks)
        if run.resume:
            restore(state, ranks.first(lambda: read_checkpoint(last) if last.is_file() else None))
        progress.show(state.epochs * settings.updates_per_epoch)
        for epoch in range(state.epochs, settings.epochs):
            began = time.perf_counter()
            updates = range(epoch * settings.updates_per_epoch, (epoch + 1) * settings.updates_per_epoch)
            means = train_updates(state, supply.at_epoch(epoch), updates, progress.show)
            if not math.isfinite(means["loss"]):
                raise InputError(
                    f"stage {stage} diverged in epoch {epoch}: loss {means['loss']}; lower {stage}.learning_rate, "
                    "or check the cohort with `metricunet check`"
                )
            dice = validate(module)
            if dice is not None:
                means["val_dice"] = dice
                progress.show(updates.stop, dice)
            row = {
                "stage": stage,
                "epoch": str(epoch),
                "updates": str(updates.stop),
                "learning_rate": f"{learning_rate(module, updates.stop):.3g}",
                "seconds": f"{time.perf_counter() - began:.2f}",
                **{name: f"{value:.5g}" for name, value in means.items()},
            }
            state.epochs = epoch + 1
            is_best = dice is not None and (state.best_dice is None or dice > state.best_dice)
            state.best_dice = dice if is_best else state.best_dice
            # The best first: killed between the two, the run repeats this epoch, and finds it the best again.
            files = [best, last] if is_best else [last]
            ranks.first(partial(keep_epoch, run, state, row, loggers, means, files))
    if state.best_dice is not None:
        # Weights and score of one file: a run that was killed repeats an epoch, on a GPU to other digits.
        content = ranks.first(lambda: read_checkpoint(best))
        module.load_state_dict(content["module"])
        state.best_dice = content["best_dice"]
    module.eval()
    return state.best_dice


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let a SIGTERM end the block as Ctrl-C does, with status 143, so that claims are given back.

    A cluster that wants its machine back sends one, and the run may go on at another.
    """
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _unwatched(stage: str, done: int, total: int, dice: float | None) -> None:
    """Show nothing: the first process does."""


def keep_epoch(
    run: Run,
    state: StageState,
    row: Mapping[str, str],
    loggers: Sequence[Logger],
    means: Mapping[str, float],
    checkpoints: Sequence[Path],
) -> None:
    """Leave what an epoch came to in the run's folder, and tell it to the loggers.

    Args:
        run: the run.
        state: the stage after the epoch.
        row: the texts of its row in log.csv, by their columns.
        loggers: are told the numbers.
        means: the numbers, by their names.
        checkpoints: are written in this order.
    """
    write_epoch(run.folder / LOG_NAME, row)
    for path in checkpoints:
        save(state, path)
    numbers = {f"{state.module.stage}/{name}": value for name, value in means.items()}
    for logger in loggers:
        try:
            logger.log_metrics(metrics=numbers, step=int(row["updates"]))
        except Exception as error:  # whatever its library raises where a server is away
            raise InputError(
                f"the logger {type(logger).__name__} failed ({told(error)}). Nothing of the training is lost: go "
                f"on with {argument('resume', True)}, without this logger if need be"
            ) from error


def set_up(module: StageModule, device: torch.device, ranks: Ranks = ALONE) -> StageState:
    """Bring a stage to a device, with its optimiser: AdamW, of all weights that are not frozen."""
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)  # it has tips, for those who write programs
    fabric = ranks.fabric
    if fabric is None:
        # This process alone, whatever Slurm or MPI says of others: a job of several tasks would be refused.
        fabric = Fabric(
            accelerator=device.type,
            devices=[device.index or 0] if device.type == "cuda" else 1,
            plugins=[LightningEnvironment()],
        )
        fabric.launch()
    trained = fabric.setup_module(module)
    share(module)
    learned = [weights for weights in module.parameters() if weights.requires_grad]
    optimizer = AdamW(learned, module.settings.learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
    return StageState(fabric, module, trained, cast(Optimizer, fabric.setup_optimizers(optimizer)))


def train_updates(
    state: StageState, batches: Batches, updates: range, done: Callable[[int], None]
) -> dict[str, float]:
    """Take updates, each on its own batch, without waiting for the device.

    Args:
        state: state of the stage.
        batches: what the updates draw from.
        updates: numbers of the updates.
        done: called after each, with the number of updates done in all.

    Returns:
        The means over the updates: `loss`, and what the stage says of it.
    """
    module, sums = state.module, dict[str, Tensor]()
    for update in updates:
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(module, update)
        # The metric branch draws its voxels from torch's own generator, so that has a seed for each update, too.
        torch.manual_seed(update_seed(module.config.seed, module.stream, update))
        generator = update_generator(module.config.seed, module.stream, update, module.device)
        with one_batch():
            batch = batches.draw(generator)
        with one_batch(*batch.parts):
            loss, facts = state.trained(batch, update)
        state.optimizer.zero_grad()
        state.fabric.backward(loss)
        add_up_gradients(weights for group in state.optimizer.param_groups for weights in group["params"])
        state.optimizer.step()
        for name, value in {"loss": loss.detach(), **facts}.items():
            sums[name] = sums.get(name, torch.zeros((), device=loss.device)) + value
        done(update + 1)
    if processes() > 1:
        sums = dict(zip(sums, mean_of_all(torch.stack(list(sums.values()))), strict=True))
    return {name: float(value / len(updates)) for name, value in sums.items()}


def learning_rate(module: StageModule, update: int) -> float:
    """Return the rate of an update: it rises over the first ones, and falls as a cosine to zero."""
    height, updates = module.settings.learning_rate, module.updates
    warm_up = min(WARM_UP_UPDATES, max(1, updates // 10))
    if update < warm_up:
        return height * ((update + 1) / warm_up)
    return height * (0.5 * (1 + math.cos(math.pi * min(1.0, (update - warm_up) / max(1, updates - warm_up)))))


@torch.inference_mode()
def validate(module: StageModule) -> float | None:
    """Return the mean Dice of the validation cases, in single precision; None where no case has one.

    Where several processes train, each scores its share of the cases.
    """
    module.eval()
    scores = [score for score in each_on_one_rank(module.score, module.validation_cases) if score is not None]
    module.train()
    return float(torch.tensor(sum(scores) / len(scores))) if scores else None


def save(state: StageState, path: Path) -> None:
    """Write a checkpoint, whole or not at all.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    buffer = io.BytesIO()
    content = {
        "format": CHECKPOINT_FORMAT,
        "module": state.module.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "epochs": state.epochs,
        "best_dice": state.best_dice,
    }
    torch.save(content, buffer)
    with written_checkpoint(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def restore(state: StageState, content: Mapping[str, Any] | None) -> None:
    """Take up a stage where a checkpoint left it.

    Args:
        state: the stage as it begins.
        content: what `read_checkpoint` returned; None where there is no checkpoint yet.
    """
    if content is None:
        return
    state.module.load_state_dict(content["module"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.epochs, state.best_dice = content["epochs"], content["best_dice"]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        InputError: it cannot be read, or another version of this package wrote it.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file torch raises whatever its unpickler stumbles over
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"{path}: missing or damaged, so this run cannot go on; start anew in another folder"
        ) from error
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
        raise InputError(
            f"{path}: another version of metricunet wrote this checkpoint, and this one cannot go on with it; go "
            "on with that version, or start anew in another folder"
        )
    return content
