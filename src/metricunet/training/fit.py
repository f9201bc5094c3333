"""A training run, from a cohort to one model file. It reads downward: set up, stage 1, stage 2, organs, write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning.fabric.loggers.logger import Logger
from torch import Tensor

from metricunet.cohort.layout import read_cohort
from metricunet.cohort.names import mirrored_classes, standard_name
from metricunet.cohort.prepare import PreparedCase, cohort_sha256
from metricunet.cohort.splits import Fold, Split, split_for
from metricunet.cohort.uncontoured import unseen_cases
from metricunet.engine import Engine
from metricunet.errors import InputError, argument
from metricunet.files.claim import CLAIM_NAME, claimed, refuse_claimed
from metricunet.files.model import halved, joined, of_stage, read_card, write_model
from metricunet.files.own import OwnFiles
from metricunet.files.record import RECORD_NAME, RunRecord
from metricunet.inference.models import MODEL_NAME
from metricunet.networks import Network, build_network
from metricunet.networks.device import keep_freed_memory
from metricunet.progress import Progress, Say, silent
from metricunet.specs import LocateSpec, SegmentSpec
from metricunet.stages.device import device_named
from metricunet.stages.forward import class_probabilities
from metricunet.stages.locate import localise, locate_spec
from metricunet.stages.segment import segment_spec
from metricunet.structures import without
from metricunet.training.batches import (
    BlockBatches,
    BoxedCase,
    CoarseCase,
    LocateBatches,
    SegmentBatches,
    Supply,
)
from metricunet.training.branch import PatchBatches
from metricunet.training.calibrate import calibration
from metricunet.training.card import model_card
from metricunet.training.checks import check_settings, check_shares
from metricunet.training.config import BoxConfig, TrainConfig, load_config, plain
from metricunet.training.log import Watch
from metricunet.training.loggers import check_names, named_loggers
from metricunet.training.loop import fit
from metricunet.training.objectives import LocateModule, OrgansModule, SegmentModule
from metricunet.training.ranks import ALONE, Ranks, each_on_one_rank, together
from metricunet.training.run import (
    Run,
    begin,
    check_cases,
    check_folder,
    check_results,
    prepared_cases,
    uncontoured_scans,
)
from metricunet.training.start import Structures, check_networks, first_weights, read_parent, refuse_seen
from metricunet.training.stream import PhantomStream, StreamedBatches
from metricunet.training.uncontoured import MixedBatches, uncontoured_rows

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
        errors_mm: localisation errors along slice, row and column of those validation cases (training cases where
            there are none) in which it finds the target [cases found, 3].
    """

    network: Network
    errors_mm: np.ndarray

    def weights(self) -> dict[str, Tensor]:
        """Return the weights by their names in a model file."""
        return joined(self.network.state_dict(), {})


def train(
    cohort: Path | None,
    output: Path,
    *,
    config: TrainConfig | None = None,
    fold: Fold = 0,
    init: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
    loggers: Sequence[Logger | str] = (),
    workers: int = 1,
    devices: int = 1,
    nodes: int = 1,
    engine: Engine | None = None,
    say: Say = silent,
) -> Path:
    """Train on a cohort, or on phantoms that are made beside it: both stages, and an organs' network if wanted.

    Args:
        cohort: folder of the cohort, in nnU-Net's raw data layout; None where the configuration has a section
            `phantoms`, and there alone.
        output: run folder: config.yaml, log.csv, checkpoints, model.safetensors, run.json.
        config: every setting; default: the preset `default`, or what `load_config` makes of the model's card.
        fold: number of the fold to validate on; `all` trains on every case.
        init: model file to begin from.
        resume: whether to continue a run that was stopped.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, `gpu`, `gpu:N` or `mps`.
        progress: called with (done, all) while the cohort is prepared.
        loggers: told the numbers of each epoch beside log.csv: loggers of Lightning, which stay open, or names of
            `metricunet.training.loggers.NAMES`.
        workers: number of processes that make phantoms beside the training, in place of a cohort; the model does
            not depend on it.
        devices: number of devices of this computer to train on, with a process for each; see
            `metricunet.training.ranks.together`. All but the first end with this function.
        nodes: number of computers that train together.
        engine: makes the phantoms in place of these processes.
        say: told in one line what the training keeps of the model that it begins from.

    Returns:
        The path of the model file.

    Raises:
        InputError: a cohort, configuration, model or folder that cannot work, named.
    """
    if config is None:
        config = load_config(parent=None if init is None else read_card(init))
    if workers < 1:
        raise InputError(f"{argument('workers')} must be 1 or more; got {workers}")
    refuse_idle(cohort, fold, workers=workers, engine=engine)
    if config.phantoms is not None and fold != 0:
        raise InputError(
            f"{argument('fold', fold)}: is of a cohort; phantoms that are made beside a training have no folds; "
            "leave it out"
        )
    names = [one for one in loggers if isinstance(one, str)]
    check_names(names)
    record = RunRecord("train", {"cohort": cohort, "output": output, "fold": fold, "init": init, "resume": resume})
    own = OwnFiles(output, RECORD_NAME, record.command, inputs=[] if init is None else [init])
    with together(device, devices, nodes) as ranks, ExitStack() as held:

        def enter() -> None:
            refuse_claimed(output / CLAIM_NAME, A_TRAINING)
            # Before anything, and be it a claim, is written into somebody else's folder.
            check_folder(output, resume)
            held.enter_context(claimed(output / CLAIM_NAME, A_TRAINING))
            check_folder(output, resume)  # a rival may have begun between the two
            check_results(own, MODEL_NAME)

        ranks.first(enter)
        source = held.enter_context(_patients(cohort, config, workers, engine))
        run = ranks.first_then_others(
            lambda: open_run(
                source,
                output,
                config,
                fold,
                resume=resume,
                device=device,
                init=init,
                progress=progress if ranks.is_first else None,
                loggers=[one for one in loggers if isinstance(one, Logger)],
                ranks=ranks,
            )
        )
        if run.inheritance is not None and ranks.is_first:
            say(run.inheritance.text())
        if not ranks.is_first:
            return train_segment(run, train_locate(run))
        try:
            with named_loggers(names, output, plain(config), resume) as named:
                run = replace(run, loggers=(*run.loggers, *named))
                staged = train_segment(run, train_locate(run), own.stage(MODEL_NAME))
            record.facts = run_facts(run, read_card(staged).validation)
            own.commit(record.content())
        finally:
            own.discard()
    return output / MODEL_NAME


def refuse_idle(cohort: Path | None, fold: int | str, *, workers: int, engine: object) -> None:
    """Refuse helpers for which a training has no work.

    Args:
        cohort: folder of the cohort; None where phantoms are made beside the training.
        fold: number of the fold to validate on, `all`, or `each` for a training of each.
        workers: number of processes that would make phantoms.
        engine: would make phantoms, or train the folds; None for none.

    Raises:
        InputError: it names the one that would do nothing.
    """
    if cohort is None:
        return
    if workers != 1:
        raise InputError(
            f"{argument('workers')} says how many processes make the synthetic scans of {argument('phantoms')}; "
            f"leave it out with the cohort {cohort}"
        )
    if engine is not None and fold != "each":
        raise InputError(
            f"{argument('engine')} trains the folds of {argument('fold', 'each')}, or makes the synthetic scans "
            f"of {argument('phantoms')}; leave it out with the cohort {cohort} and fold {fold}"
        )


@contextmanager
def _patients(
    cohort: Path | None, config: TrainConfig, workers: int, engine: Engine | None
) -> Iterator[Path | PhantomStream]:
    """Yield the cohort, or the stream that takes its place while the block lasts."""
    if (cohort is None) == (config.phantoms is None):
        found = "neither was given" if cohort is None else f"{cohort} was given, and settings of phantoms, too"
        raise InputError(f"a training takes a cohort, or {argument('phantoms', 'varied')} in its place; {found}")
    if cohort is not None:
        yield cohort
    else:
        with PhantomStream(config, workers, engine).open() as stream:
            yield stream


def open_run(
    cohort: Path | PhantomStream,
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
    ranks: Ranks = ALONE,
) -> Run:
    """Read and check everything that a run needs, and mark the folder as its own.

    Args:
        cohort: folder of the cohort, in nnU-Net's raw data layout; or an open stream of phantoms.
        output: run folder.
        config: every setting.
        fold: number of the fold to validate on; `all` trains on every case. A stream has none.
        resume: whether to continue the run that was stopped in the output folder.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, `gpu`, `gpu:N` or `mps`.
        init: model file to begin from.
        cache_fallback: folder for the prepared cases where the cohort is read-only; default: the run folder.
        progress: called with (done, all) while the cohort is prepared.
        watch: told how far a stage is, in place of a progress bar.
        loggers: loggers of Lightning, told the numbers of each epoch beside log.csv; they stay open.
        ranks: the processes that train together, each of which opens the run, the first one first.

    Raises:
        InputError: a cohort, configuration, model or folder that cannot work, a validation case that the model
            was trained on, or a run of other settings, named.
    """
    where = device_named(device) if ranks.fabric is None else ranks.fabric.device
    check_shares(config, ranks.count)
    parent = None if init is None else read_parent(init)
    if parent is None and config.freeze is not None:
        raise InputError(
            f"setting freeze is {config.freeze}, but without a model to begin from there is nothing to keep; name "
            f"one ({argument('init')}), or leave the setting out"
        )
    stream = cohort if isinstance(cohort, PhantomStream) else None
    uncontoured = None
    if isinstance(cohort, PhantomStream):
        info = cohort.info
        check_settings(config, info.labels)
        if parent is not None:
            check_networks(parent, _specs(config, info.labels))
        cases, val = cohort.first(progress)
        split = Split(tuple(case.name for case in cases), tuple(case.name for case in val))
        data_sha256 = cohort.sha256
    else:
        if config.phantoms is not None:
            raise InputError(f"{cohort}: settings of phantoms were given, too; a training takes one or the other")
        if config.locate.aim_where_absent:
            raise InputError(
                "setting locate.aim_where_absent is true, but where a target would lie is known only of phantoms "
                f"that are made beside the training, not of the scans of {cohort}; leave the setting out"
            )
        content = read_cohort(cohort)
        info = content.info
        check_settings(config, info.labels)
        if parent is not None:
            check_networks(parent, _specs(config, info.labels))
        split = split_for(content, fold)
        if config.teacher.reveal:
            split = split.revealed(unseen_cases(content, split))
        cases, val = prepared_cases(content, split, config, cache_fallback or output, progress)
        uncontoured = uncontoured_scans(content, split, config, cache_fallback or output, progress)
        data_sha256 = cohort_sha256([*cases, *val, *(() if uncontoured is None else uncontoured.prepared)])
    run = Run(
        output,
        config,
        info,
        split,
        cases,
        val,
        data_sha256,
        where,
        resume,
        watch,
        loggers=tuple(loggers),
        stream=stream,
        uncontoured=uncontoured,
        ranks=ranks,
    )
    check_cases(run, "the phantoms of this training" if isinstance(cohort, PhantomStream) else cohort)
    if parent is not None:
        refuse_seen(parent, val)
        structures = _structures(config, run.labels)
        start, inheritance = first_weights(parent, _specs(config, run.labels), structures, config.seed)
        run = replace(run, start=start, inheritance=inheritance)
    if ranks.is_first:
        begin(run, None if stream else fold)
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
    errors = each_on_one_rank(lambda case: localisation_errors_mm(network, [case], run.config, run.target), cases)
    errors_mm = np.concatenate([np.zeros((0, 3)), *errors])
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
    """Train what follows stage 1 in a run, or continue its training, and write the model file with all of it.

    Args:
        run: the run, as `open_run` returned it.
        located: stage 1, of this run or of another on the same cases.
        model: file to write; default: model.safetensors in the run folder.

    Returns:
        The path of the model file, which the first of several processes writes.
    """
    segment, score = _fit_segment(run, located)
    model = run.folder / MODEL_NAME if model is None else model
    organs, organs_score = None, None
    if run.config.organs.structures:
        network, organs_score = train_organs(run, located)
        organs = network.state_dict()
    if not run.ranks.is_first:
        return model
    card = model_card(
        run.config, run.info, run.train, run.val, run.data_sha256, score, located.errors_mm, organs_score
    )
    fitted = calibration(segment, card.segment, run.val, run.target, run.config.precision)
    lineage = () if run.inheritance is None else run.inheritance.parent.lineage
    card = replace(
        card,
        calibration=fitted,
        cases=run.images_sha256,
        validation_cases=run.validation_images_sha256,
        lineage=lineage,
    )
    weights = located.weights() | joined({}, segment.state_dict(), organs)
    write_model(model, card, halved(weights) if run.config.weights == "float16" else weights)
    return model


def train_organs(run: Run, located: StageOne) -> tuple[Network, float | None]:
    """Train the organs' network of a run, or continue its training.

    Args:
        run: the run, as `open_run` returned it, with structures for this network.
        located: stage 1, of this run or of another on the same cases.

    Returns:
        The network, and its best mean Dice of the validation cases; None without one.
    """
    stage, names = run.config.organs, run.config.organs.structures
    partners = mirrored_classes(names)

    def build(cases: Sequence[BoxedCase]) -> SegmentBatches:
        return _kind_of(stage)(
            cases,
            stage.model_copy(update={"batch_size": stage.batch_size // run.ranks.count}),
            run.config.augment,
            len(names) + 1,
            partners is not None,
            jitter_mm(located.errors_mm, stage.smallest_jitter_mm),
            run.device,
            partners,
            "organs",
        )

    supply: Supply
    if run.stream is None:
        supply = build(run.train)
    else:
        supply = StreamedBatches(run.stream, "organs", stage.epochs, run.train, build)
    network = _build("organs", run, run.start)
    score = fit(run, OrgansModule(network, run.config, run.val, len(names) + 1), supply)
    return network, score


def run_facts(run: Run, validation: Mapping[str, float]) -> dict[str, Any]:
    """Return what run.json says of a training, the scores of its validation among it."""
    return {
        "start": None if run.inheritance is None else run.inheritance.facts(),
        "config": plain(run.config),
        "seed": run.config.seed,
        "split": asdict(run.split),
        "data_sha256": run.data_sha256,
        "device": str(run.device),
        "processes": run.ranks.count,
        "validation": dict(validation),
    }


def _fit_locate(run: Run) -> Network:
    partners = mirrored_classes(run.staged_labels)

    def build(cases: Sequence[CoarseCase]) -> LocateBatches:
        stage = run.config.locate
        return LocateBatches(
            cases,
            stage.model_copy(update={"batch_size": stage.batch_size // run.ranks.count}),
            run.config.augment,
            run.classes,
            run.target,
            partners is not None,
            run.device,
            partners,
        )

    supply: Supply
    if run.stream is None:
        supply = build(run.train)
    else:
        supply = StreamedBatches(run.stream, "coarse", run.config.locate.epochs, run.train, build)
    network = _build("locate", run, run.start)
    fit(run, LocateModule(network, run.config, run.val, run.target), supply)
    return network


def _fit_segment(run: Run, located: StageOne) -> tuple[Network, float | None]:
    stage, metric = run.config.segment, run.config.metric
    apart = uncontoured_rows(run.config)
    offline = metric.mode == "offline" and metric.weight > 0

    def build(cases: Sequence[BoxedCase], size: int = stage.batch_size - apart) -> SegmentBatches:
        partners = mirrored_classes(run.staged_labels)
        return _kind_of(stage)(
            cases,
            stage.model_copy(update={"batch_size": size // run.ranks.count}),
            run.config.augment,
            run.classes,
            partners is not None,
            jitter_mm(located.errors_mm, stage.smallest_jitter_mm),
            run.device,
            partners,
            whole=offline,
        )

    patches: PatchBatches | None = None
    supply: Supply
    if run.stream is None:
        supply = batches = build(run.train)
        patches = PatchBatches(batches, run.config) if offline else None
        if (uncontoured := run.uncontoured) is not None:
            locate = _build("locate", run, located.weights()).eval().to(run.device)
            scans = run.ranks.first_then_others(
                lambda: uncontoured.located(locate, run.config, run.info, run.target, run.folder)
            )
            supply = MixedBatches(batches, build(scans, apart))
    else:
        supply = StreamedBatches(run.stream, "fine", stage.epochs, run.train, build)
    # The last before the module: the seed that is set here is that of the branch's first weights, too.
    network = _build("segment", run, run.start)
    module = SegmentModule(network, run.config, run.val, run.classes, patches)
    score = fit(run, module, supply)
    return module.judged, score


def _kind_of(stage: BoxConfig) -> type[SegmentBatches]:
    return BlockBatches if stage.spatial_dims == 3 else SegmentBatches


def _build(stage: str, run: Run, start: Mapping[str, Tensor] | None) -> Network:
    torch.manual_seed(run.config.seed)
    network = build_network(**_specs(run.config, run.labels)[stage].network)
    weights = {} if start is None else of_stage(start, stage)
    if weights:
        network.load_state_dict(weights)
        if run.config.freeze == "encoder":
            network.freeze_encoder()
    return network


def _structures(config: TrainConfig, labels: Mapping[str, int]) -> dict[str, Structures]:
    """Return the structures of each network in the order of its classes, with their standard names."""
    named = {name: standard_name(name, config.tg263) for name in labels}
    organs = config.organs.structures
    staged = {name: named[name] for name in without(labels, organs)}
    structures: dict[str, Structures] = {"locate": staged, "segment": staged}
    if organs:
        structures["organs"] = {name: named[name] for name in organs}
    return structures


def _specs(config: TrainConfig, labels: Mapping[str, int]) -> dict[str, LocateSpec | SegmentSpec]:
    """Return what each network is built of."""
    classes = {stage: len(names) + 1 for stage, names in _structures(config, labels).items()}
    specs: dict[str, LocateSpec | SegmentSpec] = {
        "locate": locate_spec(config.locate, classes["locate"]),
        "segment": segment_spec(config.segment, classes["segment"]),
    }
    if config.organs.structures:
        specs["organs"] = segment_spec(config.organs, classes["organs"])
    return specs


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
