"""What a training shows and leaves behind while it runs: the progress bar and log.csv."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from metricunet.errors import InputError
from metricunet.files.atomic import write_json, write_text
from metricunet.files.record import sha256
from metricunet.training.checkpoints import written_checkpoint
from metricunet.training.modules import StageModule

#: Told the stage, the updates done, the updates in all, and the latest validation Dice.
Watch = Callable[[str, int, int, float | None], None]

LOG_NAME = "log.csv"
#: Beside the checkpoints: the hashes of log.csv as it is, and as it was before the last epoch.
LOG_HASHES = "log-sha256.json"


class EpochLog(Callback):
    """Adds a row to `log.csv` after each epoch. A resumed run drops the rows of epochs it repeats.

    Args:
        path: of log.csv, shared by both stages.
        stage: its name.
    """

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage
        self._began = time.perf_counter()

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Write the epoch's row and hand its means on to the other loggers."""
        assert isinstance(module, StageModule)
        means = module.epoch_means()
        if not math.isfinite(means["loss"]):
            raise InputError(
                f"stage {self.stage} diverged in epoch {trainer.current_epoch}: loss {means['loss']}; lower "
                f"{self.stage}.learning_rate, or check the cohort with `metricunet check`"
            )
        score = trainer.callback_metrics.get("val_dice")
        if score is not None:
            means["val_dice"] = float(score)
        for logger in trainer.loggers:
            logger.log_metrics({f"{self.stage}/{k}": v for k, v in means.items()}, trainer.global_step)
        row = {
            "stage": self.stage,
            "epoch": trainer.current_epoch,
            "updates": trainer.global_step,
            "learning_rate": f"{trainer.optimizers[0].param_groups[0]['lr']:.3g}",
            "seconds": f"{time.perf_counter() - self._began:.2f}",
            **{name: f"{value:.5g}" for name, value in means.items()},
        }
        rows = [r for r in _read(self.path) if r["stage"] != self.stage or int(r["epoch"]) < trainer.current_epoch]
        _write(self.path, [*rows, {k: str(v) for k, v in row.items()}])


class MovableCheckpoint(ModelCheckpoint):
    """Checkpoints that a run finds again after its folder moved; Lightning's own forgets which was the best."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of a run that was stopped, its paths in the folder as it is called now."""
        before, now = str(state_dict["dirpath"]), str(self.dirpath)

        def moved(value: Any) -> Any:
            if isinstance(value, dict):
                return {moved(key): content for key, content in value.items()}
            return (
                now + value.removeprefix(before) if isinstance(value, str) and value.startswith(before) else value
            )

        super().load_state_dict({key: moved(value) for key, value in state_dict.items()})

    def _save_checkpoint(self, trainer: lightning.Trainer, filepath: str) -> None:
        """State the hash of a checkpoint before it is placed."""
        with written_checkpoint(Path(filepath)) as temporary:
            super()._save_checkpoint(trainer, str(temporary))


class ProgressBar(Callback):
    """One bar for a stage: updates, loss, validation Dice, time left. Silent where there is no terminal.

    Args:
        stage: its name.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._progress: Progress | None = None

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Show the bar."""
        console = Console(stderr=True)
        if not console.is_terminal:
            return
        self._progress = Progress(
            TextColumn(f"{self.stage:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=console,
        )
        assert isinstance(module, StageModule)
        self._progress.start()
        self._task = self._progress.add_task("", total=module.updates, completed=trainer.global_step, facts="")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Move the bar on."""
        if self._progress is not None:
            self._progress.update(self._task, completed=trainer.global_step)

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Show the latest validation score."""
        score = trainer.callback_metrics.get("val_dice")
        if self._progress is not None and score is not None:
            self._progress.update(self._task, facts=f"validation Dice {float(score):.3f}")

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Leave the finished bar on the screen."""
        self._stop()

    def on_exception(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back."""
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class Watched(Callback):
    """Tells somebody how far a stage is, after each update.

    Args:
        stage: its name.
        watch: to be told.
    """

    def __init__(self, stage: str, watch: Watch) -> None:
        self.stage, self.watch = stage, watch

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Say where the stage begins, or goes on."""
        self._tell(trainer, module)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Say that one more update is done."""
        self._tell(trainer, module)

    def _tell(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        assert isinstance(module, StageModule)
        score = trainer.callback_metrics.get("val_dice")
        self.watch(self.stage, trainer.global_step, module.updates, None if score is None else float(score))


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, *([row.get(name) or "" for name in columns] for row in rows)]
    text = "".join(",".join(line) + "\n" for line in lines)
    before = [sha256([path])] if path.is_file() else []
    # First, so that a kill between the two leaves no log that looks like somebody else's.
    write_json(_hashes_of(path), [*before, hashlib.sha256(text.encode("utf-8")).hexdigest()])
    write_text(path, text)


def check_log(folder: Path) -> None:
    """Refuse to go on with a run whose log.csv somebody changed: going on rewrites it.

    Raises:
        InputError: it is not as the run left it.
    """
    path = folder / LOG_NAME
    if not path.is_file():
        return
    try:
        ours = sha256([path]) in json.loads(_hashes_of(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        ours = False
    if not ours:
        raise InputError(
            f"{path}: was not written by this training, or was changed since, and going on would rewrite it; move "
            "it elsewhere and run again"
        )


def _hashes_of(log: Path) -> Path:
    return log.parent / "checkpoints" / LOG_HASHES
