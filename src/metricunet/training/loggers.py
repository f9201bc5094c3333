"""Loggers by their names: MLflow and Weights & Biases, through Lightning's loggers, into the folder of the run.

Nothing leaves the machine unless the environment asks for it, as users of these programs know: with
`MLFLOW_TRACKING_URI` numbers go to that server, with `WANDB_MODE=online` to wandb's. Of themselves both would tell
their makers how they are used. `MLFLOW_DISABLE_TELEMETRY=true` and, where wandb is not online,
`WANDB_ERROR_REPORTING=false` keep them from it, unless the user has set these variables otherwise.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import Logger

from metricunet.errors import InputError, argument, told
from metricunet.files.atomic import write_json
from metricunet.training.log import close_logger

#: Loggers that a training can be told by name. TensorBoard's are of a stage (`metricunet.training.log`).
NAMES = ("tensorboard", "mlflow", "wandb")
#: Experiment of MLflow, project of wandb.
PROJECT = "metricunet"
#: Beside the checkpoints: which run of each logger a resumed training goes on with.
IDS_NAME = "loggers.json"


def check_names(names: Sequence[str]) -> None:
    """Refuse loggers that are unknown, or not installed.

    Raises:
        InputError: it names the logger, and the line that installs it.
    """
    for name in names:
        if name not in NAMES:
            raise InputError(f"{argument('loggers')} must be among {', '.join(NAMES)}; got {name!r}")
        if find_spec(name) is None:
            raise InputError(f'{argument("loggers")} {name}: not installed; run: pip install "metricunet[{name}]"')


@contextmanager
def named_loggers(
    names: Sequence[str], folder: Path, settings: Mapping[str, Any], resume: bool
) -> Iterator[list[Logger]]:
    """Yield the loggers of these names, told the settings; as the block ends they are told how, and closed.

    Args:
        names: names that `check_names` let pass; `tensorboard` opens nothing here.
        folder: folder of the run; MLflow writes into its folder `mlruns`, wandb into `wandb`.
        settings: settings of the training, as plain values.
        resume: whether to go on with the runs of a training that was stopped.

    Raises:
        InputError: a logger cannot be opened, such as one whose server does not answer.
    """
    ids_file = folder / "checkpoints" / IDS_NAME
    ids = _read(ids_file) if resume else {}
    opened: dict[str, Logger] = {}
    status = "failed"
    try:
        for name in dict.fromkeys(names):
            if name != "tensorboard":
                try:
                    logger, ids[name] = (_mlflow if name == "mlflow" else _wandb)(folder, ids.get(name))
                    opened[name] = logger
                    logger.log_hyperparams(dict(settings))
                except Exception as error:  # whatever a library raises where its server or store fails
                    raise InputError(f"{argument('loggers')} {name}: cannot be opened ({told(error)})") from error
        if opened:
            write_json(ids_file, ids)
        yield list(opened.values())
        status = "success"
    finally:
        for name, logger in opened.items():
            close_logger(logger, partial(_close, name, logger, status))


def _close(name: str, logger: Logger, status: str) -> None:
    logger.finalize(status)
    if name == "wandb":
        # Lightning leaves it open, for others that may write to it.
        logger.experiment.finish(exit_code=0 if status == "success" else 1)  # type: ignore[attr-defined]


def _read(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _mlflow(folder: Path, run_id: str | None) -> tuple[Logger, str]:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read where MLflow is imported
    from lightning.pytorch.loggers import MLFlowLogger

    store = os.environ.get("MLFLOW_TRACKING_URI")
    if store is None:
        store = (folder.resolve() / "mlruns").as_uri()
        # MLflow wants to be told that a folder, in place of a database, is meant.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger(PROJECT, run_name=folder.resolve().name, tracking_uri=store, run_id=run_id)
    found = logger.run_id
    assert found is not None
    return logger, found


def _wandb(folder: Path, run_id: str | None) -> tuple[Logger, str]:
    online = os.environ.get("WANDB_MODE", "offline") == "online"
    if not online:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    logger = WandbLogger(
        name=folder.resolve().name,
        save_dir=folder,
        offline=not online,
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=run_id,
        settings=wandb.Settings(silent=True),
    )
    assert logger.experiment is not None, "it begins the run, which has no id before"
    return logger, str(logger.version)
