"""`train`: from a cohort, or from synthetic scans, to a model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from metricunet.api.plain import in_one_line
from metricunet.engine import Engine
from metricunet.errors import InputError, argument
from metricunet.progress import Progress, no_progress

if TYPE_CHECKING:
    from lightning.fabric.loggers.logger import Logger

    from metricunet.cohort.splits import Fold

#: Cases that a warning names.
MOST_LOST = 3


@in_one_line
def train(
    cohort: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    *,
    phantoms: Literal["easy", "real", "varied"] | None = None,
    workers: int = 1,
    preset: str | None = None,
    config: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | Sequence[str] = (),
    fold: int | Literal["all", "each"] = 0,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    init: str | os.PathLike[str] | None = None,
    freeze: Literal["encoder"] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    loggers: Sequence[Logger | str] | str = (),
    engine: Engine | None = None,
) -> Path:
    """Train both stages on a cohort, as `metricunet train` does, and return the path of the model file.

    Args:
        cohort: This is an nnU-Net raw data set: dataset.json, imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz. It
            is None with `phantoms`.
        output: The run's folder is new or empty, and receives config.yaml, log.csv, checkpoints,
            model.safetensors and run.json.
        phantoms: Synthetic scans of this difficulty are made beside the training, in place of a cohort.
        workers: This many processes make these scans; the model does not depend on it.
        preset: The settings begin with `default`, or with `small` for a CPU. Where none is named they begin with
            `default` or, with `init`, with the networks of the model and a short training.
        config: The settings of this YAML file replace the preset's.
        settings: Single settings replace both: `{"segment.epochs": 20}`, or `["segment.epochs=20"]` as on the
            command line.
        fold: The run is validated on this fold; `all` trains on every case. `each` trains every fold in a folder
            of its own and scores each case by the model that has not seen it, with a `UserWarning` where one could
            not be segmented or scored. The path that comes back is then that of `output`, which `load_model` and
            `predict` take for the models of all folds.
        device: It computes; see `load_model`.
        devices: This many devices of this computer train together. With more than one your script is run once for
            each, up to this call, after which the first process goes on alone.
        nodes: This many computers train together, on each of which the script is started.
        init: The training begins from this model file, or from the model that comes with the package: `base`.
            Structures that it lacks begin with random weights; run.json lists them.
        freeze: With `init`, `encoder` keeps the encoders of all networks as they are.
        resume: A run that was stopped is continued.
        progress: It is called with (done, all) while the cohort is prepared.
        loggers: These are told the numbers of each epoch as log.csv has them. `mlflow` and `wandb` write into the
            run's folder; `tensorboard` does wherever it is installed. Loggers of Lightning, such as
            `lightning.fabric.loggers.CSVLogger`, stay open: finalize them when you are done. `fold="each"` takes
            names alone, each of which opens a logger for each fold.
        engine: It trains the folds of `fold="each"`, or makes the synthetic scans of `phantoms`; it is what
            `metricunet.engine.opened` yields.

    Raises:
        InputError: A cohort, setting, model or folder cannot work, or a fold of several failed; the message names
            it.
    """
    from metricunet.files.model import read_card
    from metricunet.training.config import load_config
    from metricunet.training.cross_validation import cross_validate
    from metricunet.training.fit import refuse_idle
    from metricunet.training.fit import train as train_model
    from metricunet.training.start import initial_model

    start = None if init is None else initial_model(init)
    # A preset that is named decides, and the card is not asked.
    parent = None if start is None or preset is not None else read_card(start)
    resolved = load_config(
        preset,
        None if config is None else Path(config),
        settings,
        phantoms=phantoms,
        freeze=freeze,
        parent=parent,
    )
    source = None if cohort is None else Path(cohort)
    chosen = _fold_of(fold)
    loggers = [loggers] if isinstance(loggers, str) else loggers
    refuse_idle(source, chosen, workers=workers, engine=engine)
    if chosen == "each":
        if devices * nodes > 1:
            raise InputError("devices and nodes are for one fold; fold='each' trains each fold on one device")
        named = [one for one in loggers if isinstance(one, str)]
        if len(named) < len(loggers):
            raise InputError(
                "loggers: an open logger cannot tell the folds of fold='each' apart; give names such as 'mlflow', "
                "or train the folds singly with it"
            )
        crossed = cross_validate(
            source,
            Path(output),
            config=resolved,
            init=start,
            resume=resume,
            device=device,
            loggers=named,
            engine=engine,
            bar=lambda name: progress or no_progress,
        )
        if lost := crossed.lost:
            more = f"; and {len(lost) - MOST_LOST} more" if len(lost) > MOST_LOST else ""
            some = "; ".join(lost[:MOST_LOST])
            warnings.warn(
                f"{crossed.folder}: cases that could not be segmented or scored: {some}{more}",
                stacklevel=3,  # at the line that called train
            )
        for failed in crossed.failed:
            raise InputError(
                f"{failed.spec.folder}: fold {failed.spec.fold} failed ({failed.error}); the others are finished: "
                f"{argument('resume', True)} tries it again"
            ) from failed.cause
        return crossed.folder
    return train_model(
        source,
        Path(output),
        config=resolved,
        workers=workers,
        devices=devices,
        nodes=nodes,
        fold=chosen,
        init=start,
        resume=resume,
        device=device,
        progress=progress,
        loggers=loggers,
        engine=engine,
    )


def _fold_of(fold: object) -> Fold | Literal["each"]:
    """Return a fold as a training takes it; one of numpy's whole numbers is a whole number."""
    if isinstance(fold, int | np.integer) and not isinstance(fold, bool):
        return int(fold)
    if isinstance(fold, str):
        if fold == "all":
            return "all"
        if fold == "each":
            return "each"
    raise InputError(f"fold must be a whole number, 'all' or 'each'; got {fold!r}")
