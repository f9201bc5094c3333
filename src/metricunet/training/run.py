"""The folder of a run: what its stages share, the cases they read, and what a resumed run must keep to."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.loggers.logger import Logger
from torch import Tensor

from metricunet.cohort.layout import Case, Cohort, DatasetInfo, read_cohort
from metricunet.cohort.prepare import OrgansSettings, PreparedCase, PrepareSettings, prepare
from metricunet.cohort.splits import Fold, Split
from metricunet.cohort.uncontoured import uncontoured_cases
from metricunet.engine import GIB, Needs
from metricunet.errors import InputError, argument, told
from metricunet.files.atomic import UNFINISHED, write_json, write_text
from metricunet.files.claim import CLAIM_NAME
from metricunet.files.json_file import read_json
from metricunet.files.own import FILES, STAGING, OwnFiles
from metricunet.files.record import RECORD_NAME
from metricunet.inference.models import MODEL_NAME
from metricunet.progress import Progress
from metricunet.structures import class_of, without
from metricunet.training.checkpoints import check_checkpoints
from metricunet.training.config import TrainConfig, differences, dump_config, plain
from metricunet.training.log import Watch, check_log
from metricunet.training.ranks import ALONE, Ranks
from metricunet.training.start import Inheritance
from metricunet.training.uncontoured import UncontouredScans

if TYPE_CHECKING:
    from metricunet.training.stream import PhantomStream

#: The folder of prepared cases, in a cohort or in a run folder, and how their files end.
PREPARED, CASE_SUFFIX = "prepared", ".npz"
#: A target seen in fewer scans than this cannot be learned.
FEWEST_CASES = 2
#: What the training of a stage takes, cases apart; and each case in the cache that training reads.
TRAINING_BYTES, CASE_BYTES = 3 * GIB, 6 << 20


@dataclass(frozen=True, eq=False)
class Run:
    """What all stages of a run share.

    Attributes:
        folder: folder of the run.
        config: every setting.
        info: what the cohort's dataset.json says.
        split: names of the training and validation cases.
        train: training cases.
        val: validation cases; may be none.
        data_sha256: hash of all their files.
        device: device to compute on.
        resume: whether the folder holds a run that was stopped.
        watch: told how far a stage is, in place of a progress bar.
        start: weights to begin from, by their names in a model file; None for random ones.
        loggers: told the numbers of each epoch, beside log.csv; they stay open.
        stream: makes the patients of later epochs, where there is no cohort; `train` are the first ones.
        inheritance: the model that `start` comes from, and what each stage has of it; None for random weights.
        uncontoured: scans without contours of the target that stage 2 learns from; None for none.
        ranks: the processes that train together.
    """

    folder: Path
    config: TrainConfig
    info: DatasetInfo
    split: Split
    train: list[PreparedCase]
    val: list[PreparedCase]
    data_sha256: str
    device: torch.device
    resume: bool
    watch: Watch | None = None
    start: dict[str, Tensor] | None = None
    loggers: tuple[Logger, ...] = ()
    stream: PhantomStream | None = None
    inheritance: Inheritance | None = None
    uncontoured: UncontouredScans | None = None
    ranks: Ranks = ALONE

    @property
    def labels(self) -> dict[str, int]:
        """Structures and their values in the label files."""
        return self.info.labels

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    @property
    def staged_labels(self) -> dict[str, int]:
        """Structures of the two stages and their values: all but those of the organs' network."""
        return without(self.labels, self.config.organs.structures)

    @property
    def classes(self) -> int:
        """Classes of the two stages, background included."""
        return len(self.staged_labels) + 1

    @property
    def target(self) -> int:
        """Class of the target in the two stages."""
        return class_of(self.staged_labels, self.config.target)

    @property
    def images_sha256(self) -> tuple[str, ...]:
        """Hash of each training image, contoured or not, in the order of hashes; what was no file has none."""
        return _images_sha256([*self.train, *(() if self.uncontoured is None else self.uncontoured.prepared)])

    @property
    def validation_images_sha256(self) -> tuple[str, ...]:
        """Hash of each validation image, as `images_sha256`."""
        return _images_sha256(self.val)


def _images_sha256(scans: Sequence[PreparedCase]) -> tuple[str, ...]:
    return tuple(sorted({case.image_sha256 for case in scans if case.image_sha256}))


def state_file(folder: Path) -> Path:
    """Return the file that marks a folder as a run's; a run begins with it and is resumed by it."""
    return folder / "checkpoints" / "state.json"


def check_folder(output: Path, resume: bool) -> None:
    """Refuse a folder that holds something else, and one that holds no run to resume."""
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; expected a folder for the run")
    filled = output.is_dir() and not all(map(_is_before_a_run, output.iterdir()))
    begun = state_file(output).is_file()
    if filled and begun and not resume:
        raise InputError(
            f"{output}: is not empty; resume the run in it ({argument('resume', True)}), or choose another folder"
        )
    if filled and not begun and not resume:
        raise InputError(f"{output}: is not empty and holds no run; choose a new or empty folder")
    if resume and not begun:
        where = "in a new or empty folder" if filled else "there"
        raise InputError(
            f"{output}: holds no run to resume; start one {where}, without {argument('resume', True)}"
        )
    if resume:
        check_log(output)
        check_checkpoints(output / "checkpoints")


def check_results(own: OwnFiles, model: str) -> None:
    """Refuse a run whose end would replace a model or a record that somebody else put there.

    Args:
        own: the outputs of the run.
        model: name of the model file.

    Raises:
        InputError: it names the file.
    """
    own.check([model], advice="move it elsewhere and run again")


def finished_record(folder: Path) -> dict[str, Any] | None:
    """Return the record of a finished run; None where there is none, or its files are not as it wrote them.

    Args:
        folder: run folder.
    """
    own = OwnFiles(folder, RECORD_NAME, "train")
    record = own.content()
    return record if record is not None and MODEL_NAME in record[FILES] and own.is_whole() else None


def is_scratch(path: Path) -> bool:
    """Tell whether a path is a claim, or what a process that was killed left of unfinished work."""
    return path.name == CLAIM_NAME or path.match(UNFINISHED) or path.name.startswith(STAGING)


def _is_before_a_run(path: Path) -> bool:
    """Tell whether a path is scratch, or what a process leaves that ends before a run has begun in its folder.

    These are prepared cases, where the cohort is read-only, and a folder of checkpoints without a run's state.
    Which of the prepared cases may be replaced is seen when they are read.
    """
    if path.is_symlink() or not path.is_dir():
        return is_scratch(path)
    if path.name == PREPARED:
        below = (one for one in path.rglob("*") if one.is_symlink() or not one.is_dir())
        return all(one.suffix == CASE_SUFFIX or is_scratch(one) for one in below)
    if path == state_file(path.parent).parent:
        return all(map(is_scratch, path.iterdir()))
    return is_scratch(path)


def prepare_settings(config: TrainConfig) -> PrepareSettings:
    """Return the grids on which a training reads its cases."""
    organs = config.organs
    return PrepareSettings(
        config.target,
        config.locate.spacing_mm,
        config.segment.spacing_mm,
        config.segment.box_mm,
        OrgansSettings(organs.structures, organs.spacing_mm, organs.box_mm) if organs.structures else None,
    )


def prepared_cases(
    cohort: Cohort, split: Split, config: TrainConfig, cache_fallback: Path, progress: Progress | None
) -> tuple[list[PreparedCase], list[PreparedCase]]:
    """Return the training and the validation cases of a split; see `cache_folder` for where they are kept."""
    settings = prepare_settings(config)
    wanted = {*split.train, *split.val}
    cases: list[Case] = [case for case in cohort.training if case.name in wanted]
    prepared = prepare(
        cases, cohort.info, settings, cache_folder(cohort.folder, settings, cache_fallback), progress
    )
    by_name = {case.name: case for case in prepared}
    return [by_name[n] for n in split.train], [by_name[n] for n in split.val]


def uncontoured_scans(
    cohort: Cohort, split: Split, config: TrainConfig, cache_fallback: Path, progress: Progress | None
) -> UncontouredScans | None:
    """Return the scans without contours that a training learns from; None where it learns from none.

    Raises:
        InputError: it is to learn from such scans, and there is none.
    """
    if config.teacher.share == 0:
        return None
    cases = uncontoured_cases(cohort, split, config.target)
    if not cases:
        raise InputError(
            f"{cohort.folder}: setting teacher.share is {config.teacher.share:g}, but there is no scan without "
            f"contours of {config.target} to learn from; put some into imagesUnlabeled (CASE_0000.nii.gz), or set "
            "teacher.share to 0"
        )
    settings = prepare_settings(config)
    # Apart from the contoured ones: a case may be one of these in a fold, and one of those in another.
    cache = cache_folder(cohort.folder, settings, cache_fallback) / "uncontoured"
    return UncontouredScans(cases, prepare(cases, cohort.info, settings, cache, progress), settings, cache)


def cache_folder(cohort: Path, settings: PrepareSettings, cache_fallback: Path) -> Path:
    """Return the folder of prepared cases: in the cohort, for every run to share, if that can be written.

    Args:
        cohort: the folder of the cohort.
        settings: the settings that the cases are prepared with; each has a folder of its own.
        cache_fallback: the folder that holds the cases where that of the cohort cannot be written.
    """
    key = hashlib.sha256(json.dumps(settings.to_json()).encode()).hexdigest()[:12]
    shared = cohort / PREPARED
    # The cohort may be for many to write, and its cache another user's. What is there already is read in any case.
    taken = shared.is_dir() and not (shared / key).is_dir() and not os.access(shared, os.W_OK)
    home = cohort if os.access(cohort, os.W_OK) and not taken else cache_fallback
    return home / PREPARED / key


def training_needs(cohort: Path, device: str) -> Needs:
    """Return what a training takes of its machine; it holds the cases of its cohort.

    Args:
        cohort: folder of the cohort.
        device: where it computes.
    """
    return Needs(TRAINING_BYTES + CASE_BYTES * len(read_cohort(cohort).training), device)


def check_cases(run: Run, cohort: Path | str) -> None:
    """Fail early on a cohort that cannot work; it is named in the message."""
    target = run.config.target
    holding = sum("centre_mm" in case.facts for case in run.train)
    if holding < FEWEST_CASES:
        advice = "Check the labels with `metricunet check`"
        if holding + sum("centre_mm" in case.facts for case in run.val) >= FEWEST_CASES:
            advice = f"Train without validation ({argument('fold', 'all')}), or add cases"
        raise InputError(
            f"{cohort}: {holding} of {len(run.train)} training cases contain {target}; at least {FEWEST_CASES} "
            f"are needed. {advice}"
        )
    if run.val and not any("centre_mm" in case.facts for case in run.val):
        raise InputError(f"{cohort}: no validation case contains {target}; choose another fold")


def begin(run: Run, fold: Fold | None) -> None:
    """Leave the run's identity in its folder; when resuming, refuse to continue another run."""
    path = state_file(run.folder)
    state = {
        "fold": fold,
        "data_sha256": run.data_sha256,
        "labels": list(run.info.labels),  # their order is that of the classes
        "values": [*run.info.labels.values(), run.info.ignore],
        # The hash above is of all cases, whichever of them are validated on.
        "split": {side: list(names) for side, names in asdict(run.split).items()},
        # The weights and not the path: the file may be moved, and another may come in its place.
        "init": None if run.inheritance is None else run.inheritance.parent.weights_sha256,
        "config": plain(run.config),
    }
    if run.resume:
        check_log(run.folder)
        check_checkpoints(run.checkpoints)
        try:
            before = dict(read_json(path))
            config = TrainConfig.model_validate(before.pop("config"))
            other_split = before.pop("split", state["split"]) != state["split"]  # earlier versions stated none
            changes = [f"{k} was {v}, is {state[k]}" for k, v in before.items() if v != state[k]]
            if before.get("data_sha256", run.data_sha256) != run.data_sha256:
                changes.insert(0, "the training or validation cases are others")
            elif other_split:
                changes.insert(0, "others of the cases are validated on, by splits.json or patients.json")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: damaged, or of another version of metricunet ({told(error)}); resume with that version, "
                "or start anew in another folder"
            ) from error
        changes += differences(config, run.config)  # last: of another model they follow, and are many
        if changes:
            raise InputError(
                f"{run.folder}: cannot resume with other settings ({'; '.join(changes[:3])}); resume with the "
                "settings it was started with, or start anew in another folder"
            )
    else:
        write_json(path, state)
    settings = run.folder / "config.yaml"
    if not (run.resume and settings.exists()):  # else it says the same, or somebody changed it
        write_text(settings, dump_config(run.config))
