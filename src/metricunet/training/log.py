"""What a training shows and leaves behind while it runs: the progress bar, log.csv, and Lightning's loggers."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from lightning.fabric.loggers.logger import Logger
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from metricunet.errors import InputError, told
from metricunet.files.atomic import write_json, write_text
from metricunet.files.record import sha256

#: Told the stage, the updates done, the updates in all, and the latest validation Dice.
Watch = Callable[[str, int, int, float | None], None]

LOG_NAME = "log.csv"
#: Beside the checkpoints: the hashes of log.csv as it is, and as it was before the last epoch.
LOG_HASHES = "log-sha256.json"


class StageProgress:
    """Shows how far a stage is: a bar on the terminal, if there is one, or what a watch makes of it.

    Args:
        stage: name of the stage.
        updates: number of updates in all.
        watch: the function that is told, in place of a bar.
    """

    def __init__(self, stage: str, updates: int, watch: Watch | None = None) -> None:
        self.stage, self.updates, self.watch = stage, updates, watch
        self._bar: Progress | None = None
        self._dice: float | None = None

    def __enter__(self) -> StageProgress:
        console = Console(stderr=True)
        if self.watch is None and console.is_terminal:
            self._bar = Progress(
                TextColumn(f"{self.stage:<12}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task("", total=self.updates, facts="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, val_dice: float | None = None) -> None:
        """Say how many updates are done, and the validation Dice if there is a new one."""
        self._dice = self._dice if val_dice is None else val_dice
        if self.watch is not None:
            self.watch(self.stage, done, self.updates, self._dice)
        elif self._bar is not None:
            facts = "" if self._dice is None else f"validation Dice {self._dice:.3f}"
            self._bar.update(self._task, completed=done, facts=facts)


@contextmanager
def stage_loggers(folder: Path, stage: str, others: Sequence[Logger]) -> Iterator[list[Logger]]:
    """Yield the loggers of a stage: the caller's own, and TensorBoard's where that is installed.

    Args:
        folder: folder of the run; TensorBoard's events go into `tensorboard/STAGE`.
        stage: name of the stage.
        others: loggers of Lightning that somebody else opened, and closes.
    """
    ours: list[Logger] = []
    if find_spec("tensorboard") is not None:
        ours.append(TensorBoardLogger(folder, name="tensorboard", version=stage))
    status = "failed"
    try:
        yield [*others, *ours]
        status = "success"
    finally:
        for logger in ours:
            close_logger(logger, partial(logger.finalize, status))


def close_logger(logger: Logger, close: Callable[[], object]) -> None:
    """Close a logger. One that fails then is named, and costs no model and hides no other error.

    Args:
        logger: the logger.
        close: closes it.
    """
    try:
        close()
    except Exception as error:  # whatever its library raises where a server is away or a disk is full
        logging.getLogger(__name__).warning(
            "the logger %s could not be told how the training ended: %s", type(logger).__name__, told(error)
        )


def write_epoch(path: Path, row: Mapping[str, str]) -> None:
    """Add the row of an epoch to log.csv, in place of those that a resumed run repeats: of this epoch and later.

    Args:
        path: path of log.csv, which all stages share.
        row: the texts of the row by their columns, `stage` and `epoch` among them.
    """
    rows = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
    kept = [r for r in rows if r["stage"] != row["stage"] or int(r["epoch"]) < int(row["epoch"])]
    _write(path, [*kept, row])


def _write(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, *([row.get(name) or "" for name in columns] for row in rows)]
    text = "".join(",".join(line) + "\n" for line in lines)
    before = [sha256([path])] if path.is_file() else []
    # First, so that a kill between the two leaves no log that looks like somebody else's.
    write_json(_hashes_of(path), [*before, hashlib.sha256(text.encode("utf-8")).hexdigest()])
    write_text(path, text)


def check_log(folder: Path) -> None:
    """Refuse to resume a run whose log.csv somebody changed: resuming rewrites it.

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
            f"{path}: was changed since this training wrote it, or an earlier version wrote it, whose runs cannot "
            "be resumed; going on would rewrite it: move it elsewhere, or start anew in another folder"
        )


def _hashes_of(log: Path) -> Path:
    return log.parent / "checkpoints" / LOG_HASHES
