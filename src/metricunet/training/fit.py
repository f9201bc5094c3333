"""A training run, from a cohort to one model file. It reads downward: set up, stage 1, stage 2, write."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from metricunet.cohort.case import HIGHEST_MINIMUM_HU
from metricunet.cohort.layout import Case, Cohort, read_cohort
from metricunet.cohort.names import has_sides
from metricunet.cohort.prepare import PreparedCase, PrepareSettings, cohort_sha256, prepare
from metricunet.cohort.splits import Fold, Split, split_for
from metricunet.errors import InputError
from metricunet.files.atomic import write_json, write_text
from metricunet.files.model import read_model, write_model
from metricunet.files.record import RunRecord
from metricunet.inference.locate import class_probabilities, localise
from metricunet.networks import Network, build_network
from metricunet.networks.device import keep_freed_memory, pick_device
from metricunet.training.batches import LocateBatches, SegmentBatches
from metricunet.training.blocks import BlockBatches
from metricunet.training.branch import PatchBatches, build_metric
from metricunet.training.callbacks import EpochLog, ProgressBar
from metricunet.training.card import locate_network, model_card, segment_network
from metricunet.training.checks import check_field, check_network
from metricunet.training.config import TrainConfig, differences, dump_config, load_config
from metricunet.training.modules import LocateModule, SegmentModule, StageModule

Progress = Callable[[int, int], None]
MODEL_NAME = "model.safetensors"
#: A target seen in fewer scans than this cannot be learned.
FEWEST_CASES = 2


@dataclass(frozen=True, eq=False)
class Run:
    """What both stages of a run share."""

    folder: Path
    config: TrainConfig
    labels: dict[str, int]
    train: list[PreparedCase]
    val: list[PreparedCase]
    device: torch.device
    resume: bool

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    @property
    def classes(self) -> int:
        """Classes of the networks, background included."""
        return len(self.labels) + 1

    @property
    def target(self) -> int:
        """Class of the target."""
        return list(self.labels).index(self.config.target) + 1


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
) -> Path:
    """Train both stages on a cohort.

    Args:
        cohort: nnU-Net raw data set.
        output: run folder: config.yaml, log.csv, checkpoints, model.safetensors, run.json.
        config: every setting; default: the preset `default`.
        fold: which fold to validate on; `all` trains on every case.
        init: model file to begin from.
        resume: go on with a run that was stopped.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        progress: called with (done, all) while the cohort is prepared.

    Returns:
        The path of the model file.

    Raises:
        InputError: a cohort, configuration, model or folder that cannot work, named.
    """
    config = load_config() if config is None else config
    record = RunRecord("train", {"cohort": cohort, "output": output, "fold": fold, "init": init, "resume": resume})
    try:
        where = pick_device(device)
    except ValueError as error:
        raise InputError(str(error)) from error
    content = read_cohort(cohort)
    _check_settings(config, len(content.info.labels) + 1)
    split = split_for(content, fold)
    _check_folder(output, resume)
    cases = _prepare(content, split, config, output, progress)
    run = Run(output, config, content.info.labels, cases[0], cases[1], where, resume)
    _check_cases(run, cohort)
    data_sha256 = cohort_sha256([*run.train, *run.val])
    start = None if init is None else _initial_weights(init, run)
    _begin(run, fold, data_sha256, init)

    keep_freed_memory()
    locate = _fit_locate(run, start)
    errors_mm = localisation_errors_mm(locate, run.val or run.train, config, run.target)
    segment, score = _fit_segment(run, start, errors_mm)

    model = output / MODEL_NAME
    card = model_card(config, content.info, run.train, run.val, data_sha256, score, errors_mm)
    weights = {f"locate.{k}": v for k, v in locate.state_dict().items()}
    weights |= {f"segment.{k}": v for k, v in segment.state_dict().items()}
    write_model(model, card, weights)
    record.facts = {
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "split": asdict(split),
        "data_sha256": data_sha256,
        "device": str(where),
        "validation": card.validation,
    }
    record.write(output)
    return model


def _check_settings(config: TrainConfig, classes: int) -> None:
    """Fail before any work on settings that do not fit each other."""
    segment, locate = config.segment, config.locate
    check_network(segment)
    with torch.device("meta"):
        network = build_network(**segment_network(config, classes))
        build_metric(network, config, classes)
    if segment.slices % 2 == 0:
        raise InputError(f"setting segment.slices is {segment.slices}; expected an odd number: one middle slice")
    for crop, box, step in zip(segment.crop_mm, segment.box_mm, segment.spacing_mm, strict=True):
        if crop > box:
            raise InputError(
                f"setting segment.crop_mm is {crop:g} where segment.box_mm is {box:g}; enlarge the box"
            )
        if step > crop:
            raise InputError(f"setting segment.spacing_mm is {step:g} where segment.crop_mm is {crop:g}")
    for crop, step in zip(segment.crop_mm[1:], segment.spacing_mm[1:], strict=True):
        if round(crop / step) % network.divisor:
            raise InputError(
                f"setting segment.crop_mm gives {round(crop / step)} voxels in the slice; with segment.levels "
                f"{segment.levels} it must be a multiple of {network.divisor}"
            )
    check_field(segment, network)
    divisor = 2 ** (locate.levels - 1)
    if any(side % divisor for side in locate.patch_voxels):
        raise InputError(
            f"setting locate.patch_voxels is {list(locate.patch_voxels)}; with locate.levels {locate.levels} each "
            f"side must be a multiple of {divisor}"
        )


def _check_folder(output: Path, resume: bool) -> None:
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; expected a folder for the run")
    filled = output.is_dir() and any(output.iterdir())
    if filled and not resume:
        raise InputError(f"{output}: is not empty; go on with --resume, or choose another folder")
    if resume and not (output / "checkpoints" / "state.json").is_file():
        raise InputError(f"{output}: holds no run to resume; start it without --resume")


def _prepare(
    cohort: Cohort, split: Split, config: TrainConfig, output: Path, progress: Progress | None
) -> tuple[list[PreparedCase], list[PreparedCase]]:
    settings = PrepareSettings(
        config.target, config.locate.spacing_mm, config.segment.spacing_mm, config.segment.box_mm
    )
    wanted = {*split.train, *split.val}
    cases: list[Case] = [case for case in cohort.training if case.name in wanted]
    prepared = prepare(cases, cohort.info, settings, cache_folder(cohort.folder, settings, output), progress)
    by_name = {case.name: case for case in prepared}
    return [by_name[n] for n in split.train], [by_name[n] for n in split.val]


def cache_folder(cohort: Path, settings: PrepareSettings, output: Path) -> Path:
    """Where prepared cases lie: in the cohort, for every run to share, or with the run if that is read-only."""
    key = hashlib.sha256(json.dumps(asdict(settings)).encode()).hexdigest()[:12]
    home = cohort if os.access(cohort, os.W_OK) else output
    return home / "prepared" / key


def _check_cases(run: Run, cohort: Path) -> None:
    """Fail early on a cohort that cannot work."""
    target = run.config.target
    holding = sum(case.fine is not None for case in run.train)
    if holding < FEWEST_CASES:
        raise InputError(
            f"{cohort}: {holding} of {len(run.train)} training cases contain {target}; at least {FEWEST_CASES} "
            "are needed. Check the labels with `metricunet check`"
        )
    if run.val and not any(case.fine is not None for case in run.val):
        raise InputError(f"{cohort}: no validation case contains {target}; choose another --fold")
    for case in (*run.train, *run.val):
        if int(case.coarse.array.min()) > HIGHEST_MINIMUM_HU:
            raise InputError(
                f"{cohort}: case {case.name} has no value below {int(case.coarse.array.min())}, so these are no "
                "Hounsfield units (air is -1000); apply the rescale slope and intercept"
            )


def _begin(run: Run, fold: Fold, data_sha256: str, init: Path | None) -> None:
    """Leave the run's identity in its folder; when resuming, refuse to go on with another one."""
    path = run.checkpoints / "state.json"
    state = {
        "fold": fold,
        "data_sha256": data_sha256,
        "init": None if init is None else str(init),
        "config": run.config.model_dump(mode="json"),
    }
    if run.resume:
        before = json.loads(path.read_text(encoding="utf-8"))
        changes = differences(TrainConfig.model_validate(before.pop("config")), run.config)
        changes += [f"{k} was {v}, is {state[k]}" for k, v in before.items() if v != state[k]]
        if changes:
            raise InputError(
                f"{run.folder}: cannot resume with other settings ({'; '.join(changes[:3])}); resume with the "
                "settings it was started with, or start anew in another folder"
            )
        return
    write_json(path, state)
    write_text(run.folder / "config.yaml", dump_config(run.config))


def _fit_locate(run: Run, start: dict[str, Tensor] | None) -> Network:
    stage = run.config.locate
    network = _build(locate_network(run.config, run.classes), run.config.seed, "locate.", start)
    module = LocateModule(network, run.config, run.val, run.target)
    module.batches = LocateBatches(
        run.train, stage, run.config.augment, run.classes, run.target, not has_sides(run.labels), run.device
    )
    _fit(run, module, "locate", stage.epochs, stage.updates_per_epoch, len(run.val))
    return network


def _fit_segment(run: Run, start: dict[str, Tensor] | None, errors_mm: np.ndarray) -> tuple[Network, float | None]:
    stage = run.config.segment
    network = _build(segment_network(run.config, run.classes), run.config.seed, "segment.", start)
    module = SegmentModule(network, run.config, run.val, run.classes)
    kind = BlockBatches if stage.spatial_dims == 3 else SegmentBatches
    module.batches = kind(
        run.train,
        stage,
        run.config.augment,
        run.classes,
        not has_sides(run.labels),
        jitter_mm(errors_mm, stage.smallest_jitter_mm),
        run.device,
    )
    if run.config.metric.mode == "offline" and module.metric is not None:
        module.patches = PatchBatches(module.batches, run.config)
    score = _fit(run, module, "segment", stage.epochs, stage.updates_per_epoch, len(module.validation_cases))
    return network, score


def _build(arguments: dict[str, Any], seed: int, prefix: str, start: dict[str, Tensor] | None) -> Network:
    torch.manual_seed(seed)
    network = build_network(**arguments)
    if start is not None:
        own = {k.removeprefix(prefix): v for k, v in start.items() if k.startswith(prefix)}
        network.load_state_dict(own)
    return network


def _initial_weights(init: Path, run: Run) -> dict[str, Tensor]:
    card, weights = read_model(init)
    wanted = {
        "locate": locate_network(run.config, run.classes),
        "segment": segment_network(run.config, run.classes),
    }
    for stage, arguments in wanted.items():
        found = getattr(card, stage).network
        for key, value in arguments.items():
            if found.get(key) != value:
                raise InputError(
                    f"{init}: its {stage} network has {key} {found.get(key)}, this training {value}; use the "
                    "preset, settings and number of structures that the model was trained with"
                )
    return weights


def _fit(run: Run, module: StageModule, name: str, epochs: int, updates: int, validated: int) -> float | None:
    """Train one stage, and leave the best weights (the last ones without validation) in the module."""
    checkpoint = ModelCheckpoint(
        run.checkpoints,
        filename=f"{name}-best",
        monitor="val_dice" if validated else None,
        mode="max",
        save_last=True,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    checkpoint.CHECKPOINT_NAME_LAST = f"{name}-last"
    last = run.checkpoints / f"{name}-last.ckpt"
    loggers = []
    if find_spec("tensorboard") is not None:
        loggers.append(TensorBoardLogger(run.folder, name="tensorboard", version=name))
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # The loader only counts updates: the data is on the device already, so it wants no workers.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*have no `val_dataloader`.*")
        # Lightning's own use of a torch name that is on its way out.
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated.*")
        warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
        trainer = lightning.Trainer(
            accelerator="gpu" if run.device.type == "cuda" else "cpu",
            devices=[run.device.index or 0] if run.device.type == "cuda" else 1,
            max_epochs=epochs,
            logger=loggers,
            callbacks=[EpochLog(run.folder / "log.csv", name), ProgressBar(name), checkpoint],
            log_every_n_steps=updates,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=run.folder,
        )
        trainer.fit(
            module,
            DataLoader(range(updates), batch_size=None),  # type: ignore[arg-type]
            DataLoader(range(validated), batch_size=None) if validated else None,  # type: ignore[arg-type]
            ckpt_path=str(last) if run.resume and last.is_file() else None,
            weights_only=True,
        )
    best = Path(checkpoint.best_model_path) if checkpoint.best_model_path else last
    state = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
    module.load_state_dict(state)
    module.eval().to(run.device)
    score = checkpoint.best_model_score if validated else None
    return None if score is None else float(score)


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
            network.divisor,
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
