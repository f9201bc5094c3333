"""The runs of a study: what each is, whether it is finished, and how its tables come about.

A run is one arm, fold and seed. Its pipeline trains the arm's networks, in two stages or in one, and puts them to
use; what it measures is written alike whatever the pipeline.
"""

from __future__ import annotations

import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from metricunet.cohort.splits import Fold
from metricunet.engine import Engine, Serial, Tell
from metricunet.errors import InputError, is_out_of_memory, told, without_frames
from metricunet.files.atomic import write_json
from metricunet.files.claim import CLAIM_NAME, AlreadyClaimed, claimed
from metricunet.files.model import read_card
from metricunet.files.own import read_sealed, write_sealed
from metricunet.files.record import RECORD_NAME, RunRecord, sha256
from metricunet.files.sharing import shared_out
from metricunet.inference.models import MODEL_NAME
from metricunet.inference.predictor import Predictor
from metricunet.progress import Say, silent
from metricunet.stages.network_input import pick_precision
from metricunet.study.data import TRUTH, ScoredCase
from metricunet.study.folds import LOCATE_NAME, PreparedFold, read_cut, shared_stage_one, trained_in
from metricunet.study.results import FEATURES, SMOOTHNESS, Row, Table, cases_table, write_table
from metricunet.study.scoring import (
    Measured,
    ScoredCut,
    cut_predictor,
    no_features,
    score_features,
    segment_cut,
    segment_whole_scan,
)
from metricunet.study.sharing import refuse_others
from metricunet.training.config import TrainConfig, differences, plain
from metricunet.training.fit import Located, open_run, run_facts, train_segment
from metricunet.training.log import Watch
from metricunet.training.run import Run, state_file, training_needs

KEY_NAME = "key.json"


@dataclass(frozen=True)
class RunSpec:
    """One arm, fold and seed. It holds all that a process needs to carry it out.

    Attributes:
        folder: folder of the run.
        arm: name of the arm.
        fold: fold that stage 1 was trained on.
        seed: seed of the training.
        config: every setting, the seed included.
        cohort: folder of the cohort that training reads.
        stage_one: folder of stage 1 and the cuts.
        cases: cases to score.
        fitting: training cases that probes of features are fitted on.
        references: whose contours the cases are scored against.
        prepared: the fold as it was prepared, with hashes and labels.
        cache_fallback: folder for prepared cases where the cohort is read-only.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, `gpu`, `gpu:N` or `mps`.
        stages: number of stages: 2, or 1 where the arm segments whole scans.
    """

    folder: Path
    arm: str
    fold: Fold
    seed: int
    config: TrainConfig
    cohort: Path
    stage_one: Path
    cases: tuple[ScoredCase, ...]
    fitting: tuple[str, ...]
    references: tuple[str, ...]
    prepared: PreparedFold
    cache_fallback: Path
    device: str
    stages: int = 2

    @property
    def title(self) -> str:
        """Name for people."""
        return f"{self.arm}, fold {self.fold}, seed {self.seed}"

    @property
    def case_names(self) -> tuple[str, ...]:
        """Names of the cases to score."""
        return tuple(case.name for case in self.cases)

    @property
    def tables(self) -> tuple[Table, ...]:
        """The tables that the run writes."""
        return run_tables(self.references)

    @property
    def model(self) -> Path:
        """The file of the trained networks: of both stages, or of the only one."""
        return self.folder / (MODEL_NAME if self.stages == 2 else LOCATE_NAME)

    def key(self) -> dict[str, Any]:
        """Return what the results depend on; the shared stage 1 is no part of that where there is one stage."""
        own: dict[str, Any] = {"locate_sha256": self.prepared.locate_sha256} if self.stages == 2 else {"stages": 1}
        if self.config.teacher.share > 0:
            own["uncontoured_sha256"] = self.prepared.uncontoured_sha256
        if self.config.teacher.reveal:
            own["revealed_sha256"] = self.prepared.revealed_sha256
        return own | {
            "config": plain(self.config),
            "version": version("metricunet"),
            "data_sha256": self.prepared.data_sha256,
            "scored_sha256": self.prepared.scored_sha256,
        }


@dataclass(frozen=True)
class RunResult:
    """What became of a run.

    Attributes:
        spec: the run.
        val_dice: best mean Dice of the validation cases in their crops; None without any.
        seconds: how long it took since it was last begun or resumed.
        error: why it failed; None where it is finished.
        cause: what was raised then, where it was in this process; it holds nothing of the run but its lines.
    """

    spec: RunSpec
    val_dice: float | None
    seconds: float
    error: str | None = None
    cause: Exception | None = None


#: Told the run and what a `Watch` is told.
RunWatch = Callable[[RunSpec, str, int, int, float | None], None]


class Pipeline(ABC):
    """How the networks of a run are trained and put to use. Each is loaded once, when it is first asked for.

    Args:
        spec: the run.
        watch: function that is told how far a training is; None where nobody looks.
    """

    def __init__(self, spec: RunSpec, watch: Watch | None = None) -> None:
        self.spec, self.watch = spec, watch

    @cached_property
    def training(self) -> Run:
        """The training, begun or resumed; its cases are read when it is first asked for."""
        spec = self.spec
        return open_run(
            spec.cohort,
            spec.folder,
            spec.config,
            spec.fold,
            resume=state_file(spec.folder).is_file(),
            device=spec.device,
            cache_fallback=spec.cache_fallback,
            watch=self.watch or _unwatched,
        )

    @abstractmethod
    def train(self) -> None:
        """Train what is not trained yet."""

    @abstractmethod
    def segmented(self) -> Iterator[ScoredCut]:
        """Segment the cases to score, one after the other."""

    @abstractmethod
    def features(self) -> list[Measured]:
        """Measure the features of the trained network."""

    @property
    @abstractmethod
    def validation(self) -> Mapping[str, float]:
        """Scores of the validation cases, as a model's card has them."""

    @property
    @abstractmethod
    def locate_sha256(self) -> str:
        """Hash of the stage 1 that was used."""


class TwoStages(Pipeline):
    """Stage 2 is trained; stage 1 is the fold's, and what it found has been cut out of the scans."""

    @cached_property
    def predictor(self) -> Predictor:
        """The trained model."""
        return cut_predictor(self.spec.folder / MODEL_NAME, self.spec.device, self.spec.config.precision)

    def train(self) -> None:
        """Train stage 2."""
        if not (self.spec.folder / MODEL_NAME).is_file():  # it is written when the training is done
            train_segment(self.training, shared_stage_one(self.spec.stage_one, self.locate_sha256))

    def segmented(self) -> Iterator[ScoredCut]:
        """Segment the cuts."""
        spec = self.spec
        for name in spec.case_names:
            cut = read_cut(spec.stage_one, name)
            yield segment_cut(self.predictor, cut, spec.prepared.labels, spec.prepared.ignore)

    def features(self) -> list[Measured]:
        """Measure the features of stage 2."""
        spec, fold = self.spec, self.spec.prepared
        return score_features(
            self.predictor, spec.stage_one, spec.fitting, spec.case_names, fold.labels, fold.ignore
        )

    @property
    def validation(self) -> Mapping[str, float]:
        """Scores in the crops."""
        return read_card(self.spec.folder / MODEL_NAME).validation

    @property
    def locate_sha256(self) -> str:
        """Hash of the fold's stage 1."""
        return self.spec.prepared.locate_sha256


class OneStage(Pipeline):
    """A network like stage 1's is trained, at settings of the arm's own, and segments whole scans.

    One that finds nothing is a result like any other: its masks are empty, and count as missed.
    """

    @cached_property
    def trained(self) -> Located:
        """The network; it is trained if it is not there yet."""
        return trained_in(self.spec.folder, self.training, may_find_nothing=True)

    def train(self) -> None:
        """Train the one stage."""
        _ = self.trained

    def segmented(self) -> Iterator[ScoredCut]:
        """Segment the scans."""
        for case in self.spec.cases:
            yield segment_whole_scan(self.training, self.trained, case)

    def features(self) -> list[Measured]:
        """Measure nothing: features of three dimensions depend on the window."""
        return no_features(self.spec.case_names)

    @property
    def validation(self) -> Mapping[str, float]:
        """Nothing: a Dice of whole scans is not to be set beside one of crops."""
        return {}

    @property
    def locate_sha256(self) -> str:
        """Hash of the run's own network."""
        return sha256([self.spec.folder / LOCATE_NAME])


def pipeline_of(spec: RunSpec, watch: Watch | None = None) -> Pipeline:
    """Return how a run is carried out; `watch` is told how far its training is."""
    return TwoStages(spec, watch) if spec.stages == 2 else OneStage(spec, watch)


class _Carrier:
    """A worker that carries out runs."""

    def do(self, spec: RunSpec, tell: Tell) -> RunResult:
        """Carry out a run."""
        return carry_out(spec, tell)


def hand_out(
    specs: Sequence[RunSpec], watch: RunWatch | None = None, say: Say = silent, engine: Engine | None = None
) -> Iterator[RunResult]:
    """Carry out runs and yield each as it is done.

    A run that another process is at comes last, when that process is done with it or dead.

    Args:
        specs: runs to carry out.
        watch: function that is told the run, the stage, the updates done and in all, and the latest validation
            Dice.
        say: function that is told what is waited for.
        engine: carries them out; None for one after the other, in this process.
    """
    engine = engine or Serial()

    def each(left: Sequence[RunSpec]) -> Iterator[tuple[RunSpec, RunResult | AlreadyClaimed]]:
        needs = training_needs(left[0].cohort, left[0].device)
        for spec, result in engine.each(left, _Carrier, needs, claim=_claim, watch=watch):
            if isinstance(result, Exception) and not isinstance(result, AlreadyClaimed):
                yield spec, RunResult(spec, None, 0.0, in_one_line(result), result)
            else:
                yield spec, result

    for _, done in shared_out(specs, each, say):
        yield done


def _claim(spec: RunSpec) -> AbstractContextManager[object]:
    return claimed(spec.folder / CLAIM_NAME, "a run of a study")


def computed_as(config: TrainConfig, device: torch.device) -> str:
    """Say in what precision a training computes, and on what kind of device; `auto` is another one elsewhere."""
    return f"{pick_precision(config.precision, device)} on {device.type}"


def recorded_as(folder: Path) -> str | None:
    """Return what a run's record says of how it was computed; None where it says nothing.

    Args:
        folder: folder of the run.
    """
    try:
        return str(json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))["computed"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def run_folder(output: Path, arm: str, fold: Fold, seed: int) -> Path:
    """Return where a run lies in a study's folder."""
    return output / "runs" / arm / f"fold-{fold}" / f"seed-{seed}"


def run_tables(references: Iterable[str]) -> tuple[Table, ...]:
    """Return the tables that a run writes.

    Args:
        references: whose contours the cases are scored against.
    """
    return (*(cases_table(whose) for whose in references), SMOOTHNESS, FEATURES)


def has_results(folder: Path, references: Iterable[str]) -> bool:
    """Tell whether a run's folder says what the run was, and holds all its tables.

    Args:
        folder: folder of the run.
        references: whose contours the cases are scored against.
    """
    return all((folder / name).is_file() for name in (KEY_NAME, *(table.name for table in run_tables(references))))


def check_settings_of(folder: Path, config: TrainConfig, stages: int) -> None:
    """Refuse a run that was begun with other settings or stages, or by another version.

    Raises:
        InputError: other settings, stages or another version, of which the first are named.
    """
    before = _read_key(folder)
    if before is None:
        return
    try:
        changes = differences(TrainConfig.model_validate(before["config"]), config)
        if before.get("stages", 2) != stages:
            changes.insert(0, f"stages was {before.get('stages', 2)}, is {stages}")
        if before["version"] != version("metricunet"):
            changes.append(f"version was {before['version']}, is {version('metricunet')}")
    except (KeyError, ValueError) as error:
        raise InputError(f"{folder / KEY_NAME}: damaged, or of another version; delete {folder}") from error
    if changes:
        raise _other(folder, changes)


def finished(spec: RunSpec) -> RunResult | None:
    """Return the result of a run that is finished, an error where its model is damaged; None of one that is not.

    Raises:
        InputError: a run that was begun with other settings, cases, stage 1 or version.
    """
    before = _read_key(spec.folder)
    if before is None:
        return None
    check_settings_of(spec.folder, spec.config, spec.stages)
    names = {
        "data_sha256": "training cases",
        "locate_sha256": "stage 1",
        "scored_sha256": "scored cases",
    }
    further = {
        "uncontoured_sha256": "scans without contours",
        "revealed_sha256": "cases whose labels this arm reads and others do not",
    }
    names |= {k: what for k, what in further.items() if k in before}  # runs of before do not state them
    after = spec.key()
    if changes := [f"other {what}" for k, what in names.items() if before.get(k) != after.get(k)]:
        raise _other(spec.folder, changes)
    if _missing(spec):
        return None
    try:
        return _result(pipeline_of(spec))
    except InputError as error:  # its model was damaged since: that costs this run alone
        return RunResult(spec, None, 0.0, in_one_line(error), error)


def carry_out(spec: RunSpec, watch: Watch | None = None) -> RunResult:
    """Train the networks of a run, or resume their training, and score them. What is there already is kept.

    Args:
        spec: run to carry out. The caller, or the engine, holds its claim.
        watch: function that is told how far it is.

    Returns:
        What became of it. Whatever goes wrong is in there, so that other runs go on.
    """
    result = _carried_out(spec, watch)
    if result.cause is not None:
        without_frames(result.cause)
    return result


def _carried_out(spec: RunSpec, watch: Watch | None) -> RunResult:
    began = time.perf_counter()
    try:
        if (done := finished(spec)) is not None:
            return done  # by another process, since it was handed out
        pipeline = pipeline_of(spec, watch)
        _refuse_half(spec)
        if set(_missing(spec)) - {SMOOTHNESS, FEATURES}:
            _train_and_score(pipeline)
        _measure_further(pipeline)
        return _result(pipeline)
    except Exception as error:  # a run must not cost the others theirs, foreseen or not
        return RunResult(spec, None, time.perf_counter() - began, in_one_line(error), error)


def in_one_line(error: Exception) -> str:
    """Say what went wrong with a training."""
    advice = "; use a smaller batch, crop or network, or a larger spacing" if is_out_of_memory(error) else ""
    return f"{told(error)}{advice}"


def _missing(spec: RunSpec) -> list[Table]:
    """Return the tables that a run has yet to write; with none of them it is finished."""
    return [table for table in spec.tables if not (spec.folder / table.name).is_file()]


def _refuse_half(spec: RunSpec) -> None:
    """Refuse to fill up tables of a model that is gone; another training need not end with the very same model.

    Raises:
        InputError: the run is such a one.
    """
    missing = _missing(spec)
    if 0 < len(missing) < len(spec.tables) and not os.path.lexists(spec.model):
        raise InputError(
            f"{spec.folder}: holds part of the tables of a run whose model is gone ({missing[0].name} is not "
            f"there); delete {spec.folder} and run the study again"
        )


def _train_and_score(pipeline: Pipeline) -> None:
    spec = pipeline.spec
    record = RunRecord("study", {"arm": spec.arm, "fold": spec.fold, "seed": spec.seed, "device": spec.device})
    refuse_others(spec.folder, spec.folder / KEY_NAME, "a run of a study")
    if not (spec.folder / KEY_NAME).is_file():
        write_json(spec.folder / KEY_NAME, spec.key())
    pipeline.train()
    _tell_scoring(pipeline)
    # Against the truth last: a run that has this table has the others.
    references = sorted(spec.references, key=lambda whose: whose == TRUTH)
    overlap: dict[str, list[Measured]] = {whose: [] for whose in references}
    smoothness: list[Measured] = []
    for scored in pipeline.segmented():
        for whose, measured in overlap.items():
            measured += scored.overlap(whose)
        smoothness += scored.smoothness()
    facts = {
        "locate_sha256": pipeline.locate_sha256,
        "cases": list(spec.case_names),
        "computed": computed_as(spec.config, pipeline.training.device),
    }
    record.facts = run_facts(pipeline.training, pipeline.validation) | facts
    if not os.path.lexists(spec.folder / RECORD_NAME) or read_sealed(spec.folder / RECORD_NAME) is not None:
        write_sealed(spec.folder / RECORD_NAME, record.content(), {})
    found = {cases_table(whose): measured for whose, measured in overlap.items()} | {SMOOTHNESS: smoothness}
    missing = _missing(spec)  # what a kill left of them is the same, and what somebody put there is theirs
    for table, measured in found.items():
        if table in missing:
            _write(spec, table, measured)


def _measure_further(pipeline: Pipeline) -> None:
    """Write what a trained and scored run lacks beside its cases: an older version, or a kill, left it without."""
    missing = _missing(pipeline.spec)
    if not missing:
        return
    _tell_scoring(pipeline)
    if SMOOTHNESS in missing:
        _write(pipeline.spec, SMOOTHNESS, (row for scored in pipeline.segmented() for row in scored.smoothness()))
    if FEATURES in missing:
        _write(pipeline.spec, FEATURES, pipeline.features())


def _write(spec: RunSpec, table: Table, measured: Iterable[Measured]) -> None:
    write_table(spec.folder, table, (Row(spec.arm, spec.seed, spec.fold, *row) for row in measured))


def _tell_scoring(pipeline: Pipeline) -> None:
    if pipeline.watch is not None:
        pipeline.watch("scoring", 0, len(pipeline.spec.cases), None)


def _unwatched(stage: str, done: int, total: int, val_dice: float | None) -> None:
    """Show nothing: a run of a study has no progress bar of its own."""


def _result(pipeline: Pipeline) -> RunResult:
    """Return the result of a run that is finished; it took no time where its record is gone.

    Its tables are its results. A model that is not here, as the run was carried out elsewhere, is not missed; one
    that is here and damaged is.
    """
    spec = pipeline.spec
    seconds = _recorded(spec.folder, "timings_s", "total") or 0.0
    if os.path.lexists(spec.model):
        return RunResult(spec, pipeline.validation.get("crop_dice"), seconds)
    return RunResult(spec, _recorded(spec.folder, "validation", "crop_dice"), seconds)


def _recorded(folder: Path, part: str, name: str) -> float | None:
    """Return a number of a run's record; None where the record is gone, or does not say it."""
    try:
        return float(json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))[part][name])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_key(folder: Path) -> dict[str, Any] | None:
    path = folder / KEY_NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); delete {folder} and run again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: damaged; delete {folder} and run again")
    return content


def _other(folder: Path, changes: list[str]) -> InputError:
    more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
    return InputError(
        f"{folder}: this run was begun with other settings or cases ({'; '.join(changes[:3])}{more}); results "
        "must not be mixed: put them back, delete that folder, or choose another study folder"
    )
