"""Cross-validation: a training for each fold, each case scored by the model that has not seen it, and an ensemble.

It reads downward: `cross_validate`, the folds and who trains them, one fold, the scores. A fold is a run folder
like that of any training; `folds.json` beside them says which folds there are, and with which settings.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from metricunet.cohort.layout import CHANNEL_SUFFIX, Cohort, image_path, label_path, read_cohort
from metricunet.cohort.splits import Split, cross_validation_splits
from metricunet.engine import Engine, Serial, Tell
from metricunet.errors import InputError, argument, told, without_frames
from metricunet.evaluation.cases import match_cases
from metricunet.evaluation.compare import COMMAND, check_output, evaluate_matched
from metricunet.evaluation.summary import Evaluation, fault_line, format_summary
from metricunet.files.atomic import write_json
from metricunet.files.claim import CLAIM_NAME, AlreadyClaimed, claimed
from metricunet.files.json_file import read_json
from metricunet.files.model import read_card
from metricunet.files.own import OwnFiles
from metricunet.files.record import RECORD_NAME, RunRecord, hash_if_readable, sha256
from metricunet.files.scan import case_name, scan_files
from metricunet.files.sharing import in_turn, shared_out
from metricunet.inference.models import FOLDS_NAME, MODEL_NAME, fold_name
from metricunet.inference.predict import predict
from metricunet.progress import Bars, Say, no_bars, silent
from metricunet.training.config import TrainConfig, differences, load_config, plain
from metricunet.training.fit import train
from metricunet.training.loggers import check_names
from metricunet.training.ranks import refuse_group
from metricunet.training.run import finished_record, is_scratch, state_file, training_needs
from metricunet.training.start import read_parent

#: In the folder of a fold: its validation cases, as its model segments them.
VALIDATION = "validation"
A_FOLD, THE_FOLDS = "a fold of a cross-validation", "the beginning or the end of a cross-validation"


@dataclass(frozen=True)
class FoldSpec:
    """One fold. It holds all that a process needs to train it, and can be pickled.

    Attributes:
        folder: run folder of the fold.
        fold: its number.
        cohort: folder of the cohort.
        images: the scans of its validation cases.
        config: every setting.
        init: model file to begin from; None for random weights.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, `gpu`, `gpu:N` or `mps`.
        loggers: names of loggers that are told the numbers of each epoch.
    """

    folder: Path
    fold: int
    cohort: Path
    images: tuple[Path, ...]
    config: TrainConfig
    init: Path | None
    device: str
    loggers: tuple[str, ...] = ()

    @property
    def model(self) -> Path:
        """Path of its model file."""
        return self.folder / MODEL_NAME

    @property
    def claim(self) -> Path:
        """Path of the claim of the process that has taken up this fold."""
        return self.folder.with_name(f".{self.folder.name}{CLAIM_NAME}")


@dataclass(frozen=True)
class FoldResult:
    """What became of a fold.

    Attributes:
        spec: the fold.
        seconds: how long it took this time.
        refused: of each validation case that could not be segmented, why.
        error: why the fold failed; None where it is finished.
        cause: what was raised then, where it was in this process; it holds nothing of the run but its lines.
    """

    spec: FoldSpec
    seconds: float
    refused: tuple[str, ...] = ()
    error: str | None = None
    cause: Exception | None = None


@dataclass(frozen=True)
class CrossValidation:
    """What a cross-validation ended with.

    Attributes:
        folder: its folder, which `predict` takes as a model where no fold failed.
        folds: what became of each.
        evaluation: the scores of all cases that a fold was validated on.
        unscored: training cases that no fold is validated on.
    """

    folder: Path
    folds: tuple[FoldResult, ...]
    evaluation: Evaluation
    unscored: tuple[str, ...]

    @property
    def failed(self) -> tuple[FoldResult, ...]:
        """Folds that did not come to an end."""
        return tuple(fold for fold in self.folds if fold.error is not None)

    @property
    def lost(self) -> tuple[str, ...]:
        """A sentence for each case of a finished fold that could not be segmented or scored."""
        refused = [f"fold {fold.spec.fold}: {reason}" for fold in self.folds for reason in fold.refused]
        return (*refused, *(fault_line(fault) for fault in self.evaluation.faults if not fault.scored))

    @property
    def incomplete(self) -> bool:
        """Whether a fold failed, or a case could not be segmented or scored."""
        return bool(self.failed or self.lost)


def cross_validate(
    cohort: Path | None,
    output: Path,
    *,
    config: TrainConfig | None = None,
    init: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    loggers: Sequence[str] = (),
    engine: Engine | None = None,
    bar: Bars = no_bars,
    say: Say = silent,
) -> CrossValidation:
    """Train every fold of a cohort, and score each case by the model that has not seen it.

    Several processes that are called with one folder, all but the first with `resume`, share the folds. A fold
    that fails does not cost the others theirs.

    Args:
        cohort: folder of the cohort, in nnU-Net's raw data layout.
        output: folder of fold-K/ (a run each, and its validation cases as its model segments them in validation/),
            folds.json, cases.csv, summary.json, report.html, evaluate.json and run.json.
        config: every setting; default: as `metricunet.training.fit.train`.
        init: model file to begin from.
        resume: whether to continue what was stopped, or to share what is going on; finished folds are kept.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, `gpu`, `gpu:N` or `mps`.
        loggers: names of loggers that are told the numbers of each epoch, as in `metricunet.training.fit.train`.
        engine: trains the folds; None for one after the other, in this process.
        bar: opens a progress bar by its name.
        say: told in one line what comes next, and what became of a fold.

    Raises:
        InputError: a cohort, configuration or folder that cannot work, or not one fold could be trained, named.
    """
    if config is None:
        config = load_config(parent=None if init is None else read_card(init))
    if cohort is None or config.phantoms is not None:
        raise InputError(
            f"{argument('fold', 'each')}: takes a cohort; phantoms that are made beside a training have no folds"
        )
    refuse_group(argument("fold", "each"))
    check_names(loggers)
    arguments = {"cohort": cohort, "output": output, "fold": "each", "init": init, "resume": resume}
    record = RunRecord("train", arguments)
    content = read_cohort(cohort)
    splits = cross_validation_splits(content)
    _check_files(content, splits)
    _check_folder(output, resume)
    own = OwnFiles(output, RECORD_NAME, record.command)
    with in_turn(output / CLAIM_NAME, THE_FOLDS, say):
        _check_folder(output, resume)  # a rival may have begun between the two
        own.check([], advice="move it elsewhere and run again")
        check_output(output)  # not only when all folds are trained
        _begin(output, config, content, splits, init, resume)
    specs = _specs(content, output, config, splits, init, device, loggers)
    if engine is not None:
        engine.check_folders(output, [cohort, *([] if init is None else [init])])
        device = engine.device(training_needs(cohort, device))
        specs = [replace(spec, device=device) for spec in specs]
    results = {result.spec.fold: result for result in hand_out(specs, bar, say, engine)}
    folds = tuple(results[spec.fold] for spec in specs)
    finished = [fold for fold in folds if fold.error is None]
    if not finished:
        raise InputError(f"{output}: no fold could be trained; fold 0: {folds[0].error}") from folds[0].cause
    with in_turn(output / CLAIM_NAME, THE_FOLDS, say):
        evaluation = _evaluate(cohort, output, finished, splits, bar)
        record.facts = _facts(folds, splits, config)
        own.commit(record.content())
    scored = {name for split in splits for name in split.val}
    unscored = tuple(case.name for case in content.training if case.name not in scored)
    return CrossValidation(output, folds, evaluation, unscored)


def lines_of(result: CrossValidation) -> list[str]:
    """Say what a cross-validation came to, for people."""
    lines = format_summary(result.evaluation).splitlines()
    for fold in result.folds:
        if fold.error is not None:
            lines.append(f"fold {fold.spec.fold} failed, and its cases are not scored: {fold.error}")
        lines += [f"fold {fold.spec.fold}: {reason}" for reason in fold.refused]
    if result.unscored:
        some = ", ".join(result.unscored[:3]) + (", ..." if len(result.unscored) > 3 else "")
        lines.append(f"not scored, for no fold is validated on them: {len(result.unscored)} cases ({some})")
    lines.append(f"report: {result.folder / 'report.html'}")
    if not result.failed:
        lines.append(f"models: {result.folder} (all {len(result.folds)} together are a model for predict)")
    return lines


def _check_files(cohort: Cohort, splits: Sequence[Split]) -> None:
    """Refuse cases that could not be scored: a prediction has the name of its scan, and so has the reference.

    Raises:
        InputError: dataset.json lists the files of such a case under other names, or elsewhere.
    """
    validated = {name for split in splits for name in split.val}
    for case in cohort.training:
        if case.name not in validated or case.label is None:
            continue
        named = case_name(case.image).removesuffix(CHANNEL_SUFFIX), case_name(case.label)
        usual = label_path(cohort.folder, case.name)
        if named != (case.name, case.name) or case.label.parent.resolve() != usual.parent.resolve():
            raise InputError(
                f"{cohort.folder / 'dataset.json'}: case {case.name} has the files {case.image} and {case.label}; "
                f"{argument('fold', 'each')} scores cases by the names of their files, and needs "
                f"{image_path(Path(), case.name)} and {usual.relative_to(cohort.folder)}: make such a cohort of "
                "this one with `metricunet import`, or train its folds singly"
            )


def _check_folder(output: Path, resume: bool) -> None:
    """Refuse a folder that holds something else, and one that holds no cross-validation to resume."""
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; expected a folder for the cross-validation")
    filled = output.is_dir() and not all(map(is_scratch, output.iterdir()))
    begun = (output / FOLDS_NAME).is_file()
    if resume and not begun:
        where = "in a new or empty folder" if filled else "there"
        raise InputError(
            f"{output}: holds no cross-validation to resume ({FOLDS_NAME}); start one {where}, without "
            f"{argument('resume', True)}"
        )
    if filled and not begun:
        raise InputError(f"{output}: is not empty and holds no cross-validation; choose a new or empty folder")
    if filled and not resume:
        raise InputError(
            f"{output}: is not empty; resume the cross-validation in it, or take part in it "
            f"({argument('resume', True)}), or choose another folder"
        )


def _begin(
    output: Path, config: TrainConfig, cohort: Cohort, splits: Sequence[Split], init: Path | None, resume: bool
) -> None:
    """Leave in the folder what all folds must have in common; when resuming, refuse anything else."""
    path = output / FOLDS_NAME
    start = None if init is None else read_parent(init).weights_sha256
    now: dict[str, Any] = {
        "splits": [{name: list(cases) for name, cases in asdict(split).items()} for split in splits],
        "data_sha256": _data_sha256(cohort, splits),
        "init": start,
        "config": plain(config),
    }
    if not resume:
        write_json(path, now)
        return
    try:
        before = dict(read_json(path))
        changes = differences(TrainConfig.model_validate(before["config"]), config)
        if before["init"] != start:
            changes.insert(0, f"init was {before['init']}, is {start}")
        if before.get("data_sha256", now["data_sha256"]) != now["data_sha256"]:  # earlier versions stated none
            changes.insert(0, "labels or scans of the cohort were changed since")
        if before["splits"] != now["splits"]:
            changes.insert(0, "the cohort's folds are others")
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"{path}: damaged ({told(error)}); start anew in another folder") from error
    if changes:
        raise InputError(
            f"{output}: cannot resume with other settings ({'; '.join(changes[:3])}); resume with the settings it "
            "was started with, or start anew in another folder"
        )


def _data_sha256(cohort: Cohort, splits: Sequence[Split]) -> str:
    """Hash the labels of all folds, what they mean, and the lengths of the scans' files.

    A finished fold is not opened again, so nothing else would see that the others learn something else. Scans are
    not read for this: it would take long, and the folds that are left do so.
    """
    wanted = {name for split in splits for name in (*split.train, *split.val)}
    digest = hashlib.sha256(json.dumps([list(cohort.info.labels.items()), cohort.info.ignore]).encode())
    for case in sorted(cohort.training, key=lambda case: case.name):
        if case.name in wanted:
            lengths = [path.stat().st_size for path in scan_files(case.image)]
            labels = [] if case.label is None else [hash_if_readable(path) for path in scan_files(case.label)]
            digest.update(json.dumps([case.name, lengths, labels, case.not_contoured]).encode())
    return digest.hexdigest()


def _specs(
    cohort: Cohort,
    output: Path,
    config: TrainConfig,
    splits: Sequence[Split],
    init: Path | None,
    device: str,
    loggers: Sequence[str],
) -> list[FoldSpec]:
    image = {case.name: case.image for case in cohort.training}
    return [
        FoldSpec(
            output / fold_name(fold),
            fold,
            cohort.folder,
            tuple(image[name] for name in split.val),
            config,
            init,
            device,
            tuple(loggers),
        )
        for fold, split in enumerate(splits)
    ]


def hand_out(
    specs: Sequence[FoldSpec], bar: Bars = no_bars, say: Say = silent, engine: Engine | None = None
) -> Iterator[FoldResult]:
    """Train folds and yield each as it is done.

    A fold that another process is at comes last, when that process is done with it or dead.

    Args:
        specs: folds to train.
        bar: opens a progress bar by its name, for folds that are trained in this process.
        say: told which fold is at hand, what became of it, and what is waited for.
        engine: trains them; None for one after the other, in this process.
    """
    # Lines and bars of a fold that is trained elsewhere would have nobody to read them.
    make = partial(_FoldTrainer, bar, say) if engine is None else _FoldTrainer
    sharing = engine or Serial()

    def claim(spec: FoldSpec) -> AbstractContextManager[object]:
        return claimed(spec.claim, A_FOLD)

    needs = training_needs(specs[0].cohort, specs[0].device)

    def each(left: Sequence[FoldSpec]) -> Iterator[tuple[FoldSpec, FoldResult | AlreadyClaimed]]:
        for spec, result in sharing.each(left, make, needs, claim=claim):
            if isinstance(result, Exception) and not isinstance(result, AlreadyClaimed):
                yield spec, FoldResult(spec, 0.0, (), told(result), without_frames(result))
            else:
                yield spec, result

    for spec, result in shared_out(specs, each, say):
        if result.error is None:
            say(f"fold {spec.fold}: finished, {result.seconds:.0f} s")
        else:
            say(f"fold {spec.fold}: failed: {result.error}")
        yield result


class _FoldTrainer:
    """A worker that trains folds.

    Args:
        bar: opens a progress bar by its name.
        say: told which fold is at hand, and what its training keeps of the model that it begins from.
    """

    def __init__(self, bar: Bars = no_bars, say: Say = silent) -> None:
        self.bar, self.say = bar, say

    def do(self, spec: FoldSpec, tell: Tell) -> FoldResult:
        """Train a fold."""
        return train_fold(spec, self.bar, self.say)


def train_fold(spec: FoldSpec, bar: Bars = no_bars, say: Say = silent) -> FoldResult:
    """Train a fold, or continue its training, and segment its validation cases. What is there already is kept.

    The caller holds the claim of the fold.

    Args:
        spec: the fold.
        bar: opens a progress bar by its name.
        say: told which fold is at hand, and what its training keeps of the model that it begins from.

    Returns:
        What became of it. Whatever goes wrong is in there, so that other folds go on.
    """
    began = time.perf_counter()
    say(f"fold {spec.fold}: {spec.folder}")
    try:
        if finished_record(spec.folder) is None:
            train(
                spec.cohort,
                spec.folder,
                config=spec.config,
                fold=spec.fold,
                init=spec.init,
                resume=state_file(spec.folder).is_file(),
                device=spec.device,
                loggers=spec.loggers,
                progress=bar("preparing"),
                say=say,
            )
        outcome = predict(
            spec.images,
            [spec.model],
            spec.folder / VALIDATION,
            device=spec.device,
            overwrite=None,
            progress=bar("segmenting"),
        )
        refused = tuple(entry.reason for entry in outcome.refused)
        return FoldResult(spec, time.perf_counter() - began, refused)
    except Exception as error:  # a fold must not cost the others theirs, foreseen or not
        return FoldResult(spec, time.perf_counter() - began, (), told(error), without_frames(error))


def _evaluate(
    cohort: Path, output: Path, folds: Sequence[FoldResult], splits: Sequence[Split], bar: Bars
) -> Evaluation:
    """Score the validation cases of the folds together, as `metricunet evaluate` scores a folder."""
    matched = []
    # Not the cohort, of which unseen cases may have the same names.
    labels = label_path(cohort, "").parent
    for fold in folds:
        wanted = splits[fold.spec.fold].val
        found = match_cases(fold.spec.folder / VALIDATION, labels)
        matched.append(replace(found, pairs=tuple(pair for pair in found.pairs if pair.case in wanted)))
    pairs = sorted((pair for one in matched for pair in one.pairs), key=lambda pair: pair.case)
    matching = replace(matched[0], pairs=tuple(pairs), unmatched=())
    predictions = [fold.spec.folder / VALIDATION for fold in folds]
    record = RunRecord(COMMAND, {"predictions": predictions, "references": cohort, "output": output})
    return evaluate_matched(matching, output, cohort, output, record, overwrite=None, progress=bar("scoring"))


def _facts(folds: Sequence[FoldResult], splits: Sequence[Split], config: TrainConfig) -> dict[str, Any]:
    """Return what run.json says of a cross-validation."""
    told_of: dict[str, Any] = {}
    for fold, split in zip(folds, splits, strict=True):
        facts: dict[str, Any] = {"validated_on": split.val, "error": fold.error, "refused": fold.refused}
        if fold.error is None:
            model = fold.spec.model
            facts |= {
                "model": f"{fold.spec.folder.name}/{model.name}",
                "sha256": sha256([model]),
                "validation": dict(read_card(model).validation),
            }
        told_of[str(fold.spec.fold)] = facts
    return {"folds": told_of, "config": plain(config), "seed": config.seed}
