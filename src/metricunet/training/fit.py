"""A training run, from a cohort to one model file. It reads downward: set up, stage 1, stage 2, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning.fabric.loggers.logger import Logger
from torch import Tensor

from metricunet.cohort.layout import read_cohort
from metricunet.cohort.names import has_sides
from metricunet.cohort.prepare import PreparedCase, cohort_sha256
from metricunet.cohort.splits import Fold, split_for
from metricunet.errors import InputError
from metricunet.files.claim import CLAIM_NAME, claimed, refuse_claimed
from metricunet.files.model import joined, of_stage, read_card, read_model, write_model
from metricunet.files.own import OwnFiles
from metricunet.files.record import RECORD_NAME, RunRecord
from metricunet.networks import Network, build_network
from metricunet.networks.device import keep_freed_memory
from metricunet.progress import Progress
from metricunet.stages.device import device_named
from metricunet.stages.locate import class_probabilities, localise, locate_spec
from metricunet.stages.segment import segment_spec
from metricunet.training.batches import BlockBatches, LocateBatches, SegmentBatches
from metricunet.training.branch import PatchBatches
from metricunet.training.calibrate import calibration
from metricunet.training.card import model_card
from metricunet.training.checks import check_settings
from metricunet.training.config import TrainConfig, load_config
from metricunet.training.log import Watch
from metricunet.training.loop import Batches, fit
from metricunet.training.objectives import LocateModule, SegmentModule
from metricunet.training.run import (
    Run,
    begin,
    check_cases,
    check_folder,
    check_results,
    prepared_cases,
    uncontoured_scans,
)
from metricunet.training.uncontoured import MixedBatches, uncontoured_rows

MODEL_NAME = "model.safetensors"
A_TRAINING = "a training"


class StageOne(Protocol):
    """What stage 2 takes from a trained stage 1."""

    @property
    def errors_mm(self) -> np.ndarray:
        """Localisation errors [cases, 3]; see `Located`."""

    def weights(self) -> dict[str, Tensor]:
        """Return the weights by their names in a model file."""


@dataclass(frozen=True, eq=False)
class Located:
    """Stage 1 as trained, and how far from the true centres it puts the target.

    Attributes:
        network: the network of stage 1, in evaluation mode.
        errors_mm: localisation errors of the validation cases (the training cases where there are none) along
            slice, row and column [cases, 3].
    """

    network: Network
    errors_mm: np.ndarray

    def weights(self) -> dict[str, Tensor]:
        """Return the weights by their names in a model file."""
        return joined(self.network.state_dict(), {})


def train(
    cohort: Path,
    output: Path,
    *,
    config: TrainConfig | None = None,
    fold: Fold = 0,
    init: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
    loggers: Sequence[Logger] = (),
) -> Path:
    """Train both stages on a cohort.

    Args:
        cohort: folder of the cohort, in nnU-Net's raw data layout.
        output: run folder: config.yaml, log.csv, checkpoints, model.safetensors, run.json.
        config: every setting; default: the preset `default`.
        fold: number of the fold to validate on; `all` trains on every case.
        init: model file to begin from.
        resume: whether to continue a run that was stopped.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        progress: called with (done, all) while the cohort is prepared.
        loggers: loggers of Lightning, told the numbers of each epoch beside log.csv; they stay open.

    Returns:
        The path of the model file.

    Raises:
        InputError: a cohort, configuration, model or folder that cannot work, named.
    """
    config = load_config() if config is None else config
    record = RunRecord("train", {"cohort": cohort, "output": output, "fold": fold, "init": init, "resume": resume})
    refuse_claimed(output / CLAIM_NAME, A_TRAINING)
    check_folder(output, resume)  # so that nothing, not even a claim, is written into somebody else's folder
    with claimed(output / CLAIM_NAME, A_TRAINING):
        check_folder(output, resume)  # a rival may have begun between the two
        own = OwnFiles(output, RECORD_NAME, record.command, inputs=[] if init is None else [init])
        check_results(own, MODEL_NAME)
        run = open_run(
            cohort,
            output,
            config,
            fold,
            resume=resume,
            device=device,
            init=init,
            progress=progress,
            loggers=loggers,
        )
        try:
            staged = train_segment(run, train_locate(run), own.stage(MODEL_NAME))
            record.facts = run_facts(run, read_card(staged).validation)
            own.commit(record.content())
        finally:
            own.discard()
    return output / MODEL_NAME


def open_run(
    cohort: Path,
    output: Path,
    config: TrainConfig,
    fold: Fold,
    *,
    resume: bool,
    device: str = "auto",
    init: Path | None = None,
    cache_fallback: Path | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
    loggers: Sequence[Logger] = (),
) -> Run:
    """Read and check everything that a run needs, and mark the folder as its own.

    Args:
        cohort: folder of the cohort, in nnU-Net's raw data layout.
        output: run folder.
        config: every setting.
        fold: number of the fold to validate on; `all` trains on every case.
        resume: whether to continue the run that was stopped in the output folder.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        init: model file to begin from.
        cache_fallback: folder for the prepared cases where the cohort is read-only; default: the run folder.
        progress: called with (done, all) while the cohort is prepared.
        watch: told how far a stage is, in place of a progress bar.
        loggers: loggers of Lightning, told the numbers of each epoch beside log.csv; they stay open.

    Raises:
        InputError: a cohort, configuration or folder that cannot work, or a run of other settings, named.
    """
    where = device_named(device)
    content = read_cohort(cohort)
    check_settings(config, len(content.info.labels) + 1)
    split = split_for(content, fold)
    if config.teacher.reveal:
        split = split.revealed()
    cases, val = prepared_cases(content, split, config, cache_fallback or output, progress)
    uncontoured = uncontoured_scans(content, split, config, cache_fallback or output, progress)
    data_sha256 = cohort_sha256([*cases, *val, *(uncontoured.prepared if uncontoured is not None else ())])
    run = Run(
        output,
        config,
        content.info,
        split,
        cases,
        val,
        data_sha256,
        where,
        resume,
        watch,
        loggers=tuple(loggers),
        uncontoured=uncontoured,
    )
    check_cases(run, cohort)
    if init is not None:
        run = replace(run, start=_initial_weights(init, run))
    begin(run, fold, init)
    keep_freed_memory()
    return run


def train_locate(run: Run, *, may_find_nothing: bool = False) -> Located:
    """Train stage 1 of a run, or continue its training.

    Args:
        run: the run, as `open_run` returned it.
        may_find_nothing: whether a stage 1 that finds nothing is a valid result; no stage 2 could follow it.

    Raises:
        InputError: it finds the target in no case that it is validated on.
    """
    network = _fit_locate(run)
    cases = run.val or run.train
    errors_mm = localisation_errors_mm(network, cases, run.config, run.target)
    holding = sum("centre_mm" in case.facts for case in cases)
    if holding and not len(errors_mm) and not may_find_nothing:
        raise InputError(
            f"{run.folder}: stage 1 finds the {run.config.target} in none of the {holding} "
            f"{'validation' if run.val else 'training'} cases that hold it, so nothing could be segmented; train "
            "into another folder with a lower locate.learning_rate, or more locate.epochs"
        )
    return Located(network, errors_mm)


def trained_locate(run: Run, weights: dict[str, Tensor], errors_mm: np.ndarray) -> Located:
    """Return a stage 1 that was trained before.

    Args:
        run: a run on the same cases.
        weights: its weights, by their names in a model file.
        errors_mm: its localisation errors, as in `Located`.
    """
    network = _build("locate", run, weights)
    return Located(network.eval().to(run.device), errors_mm)


def train_segment(run: Run, located: StageOne, model: Path | None = None) -> Path:
    """Train stage 2 of a run, or continue its training, and write the model file with both stages.

    Args:
        run: the run, as `open_run` returned it.
        located: stage 1, of this run or of another on the same cases.
        model: file to write; default: model.safetensors in the run folder.

    Returns:
        The path of the model file.
    """
    segment, score = _fit_segment(run, located)
    model = run.folder / MODEL_NAME if model is None else model
    card = model_card(run.config, run.info, run.train, run.val, run.data_sha256, score, located.errors_mm)
    fitted = calibration(segment, card.segment, run.val, run.target, run.config.precision)
    card = replace(card, calibration=fitted)
    weights = located.weights() | joined({}, segment.state_dict())
    write_model(model, card, weights)
    return model


def run_facts(run: Run, validation: Mapping[str, float]) -> dict[str, Any]:
    """Return what run.json says of a training, the scores of its validation among it."""
    return {
        "config": run.config.model_dump(mode="json"),
        "seed": run.config.seed,
        "split": asdict(run.split),
        "data_sha256": run.data_sha256,
        "device": str(run.device),
        "validation": dict(validation),
    }


def _fit_locate(run: Run) -> Network:
    batches = LocateBatches(
        run.train,
        run.config.locate,
        run.config.augment,
        run.classes,
        run.target,
        not has_sides(run.labels),
        run.device,
    )
    network = _build("locate", run, run.start)
    fit(run, LocateModule(network, run.config, run.val, run.target), batches)
    return network


def _fit_segment(run: Run, located: StageOne) -> tuple[Network, float | None]:
    metric, apart = run.config.metric, uncontoured_rows(run.config)
    batches = _segment_batches(run, run.train, located, run.config.segment.batch_size - apart)
    patches = PatchBatches(batches, run.config) if metric.mode == "offline" and metric.weight else None
    mixed: Batches = batches
    if run.uncontoured is not None:
        locate = _build("locate", run, located.weights()).eval().to(run.device)
        scans = run.uncontoured.located(locate, run.config, run.info, run.target, run.folder)
        mixed = MixedBatches(batches, _segment_batches(run, scans, located, apart))
    # The last before the module: the seed that is set here is that of the branch's first weights, too.
    network = _build("segment", run, run.start)
    module = SegmentModule(network, run.config, run.val, run.classes, patches)
    score = fit(run, module, mixed)
    return module.judged, score


def _segment_batches(run: Run, cases: Sequence[PreparedCase], located: StageOne, size: int) -> SegmentBatches:
    stage = run.config.segment
    kind = BlockBatches if stage.spatial_dims == 3 else SegmentBatches
    return kind(
        cases,
        stage.model_copy(update={"batch_size": size}),
        run.config.augment,
        run.classes,
        not has_sides(run.labels),
        jitter_mm(located.errors_mm, stage.smallest_jitter_mm),
        run.device,
    )


def _build(stage: str, run: Run, start: Mapping[str, Tensor] | None) -> Network:
    torch.manual_seed(run.config.seed)
    network = build_network(**_networks(run)[stage])
    if start is not None:
        network.load_state_dict(of_stage(start, stage))
    return network


def _networks(run: Run) -> dict[str, dict[str, Any]]:
    """Return what the network of each stage is built of."""
    return {
        "locate": locate_spec(run.config.locate, run.classes).network,
        "segment": segment_spec(run.config.segment, run.classes).network,
    }


def _initial_weights(init: Path, run: Run) -> dict[str, Tensor]:
    card, weights = read_model(init)
    for stage, arguments in _networks(run).items():
        found = getattr(card, stage).network
        for key, value in arguments.items():
            if found.get(key) != value:
                raise InputError(
                    f"{init}: its {stage} network has {key} {found.get(key)}, this training {value}; use the "
                    "preset, settings and number of structures that the model was trained with"
                )
    return weights


def localisation_errors_mm(
    network: Network, cases: Sequence[PreparedCase], config: TrainConfig, target: int
) -> np.ndarray:
    """Return located minus true centre along slice, row and column [cases found, 3]."""
    errors = []
    network.eval()
    device = next(network.parameters()).device
    for case in cases:
        if "centre_mm" not in case.facts:
            continue
        probabilities = class_probabilities(
            network,
            torch.from_numpy(case.coarse.array).to(device),
            config.locate.hu_window,
            config.precision,
        )
        found = localise(case.coarse.with_array(probabilities[target].cpu().numpy()))
        if found.centre_mm is not None:
            gap = found.centre_mm - np.asarray(case.facts["centre_mm"])
            errors.append(case.coarse.geometry.directions.T @ gap)
    return np.array(errors).reshape(-1, 3)


def jitter_mm(errors_mm: np.ndarray, smallest_mm: float) -> tuple[float, float, float]:
    """Return the root mean square of localisation errors along each axis, at least `smallest_mm`."""
    spread = np.sqrt((errors_mm**2).mean(axis=0)) if len(errors_mm) else np.zeros(3)
    s, r, c = np.maximum(spread, smallest_mm)
    return float(s), float(r), float(c)
