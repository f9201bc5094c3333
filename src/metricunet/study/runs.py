"""The runs of a study: what each is, where it lies, whether it is finished, and how it is carried out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from metricunet.cohort.splits import Fold
from metricunet.errors import InputError
from metricunet.evaluation.summary import CaseRow
from metricunet.files.atomic import write_json
from metricunet.files.model import read_card
from metricunet.files.record import RECORD_NAME, RunRecord, sha256
from metricunet.study.beyond import (
    FEATURES_FILE,
    SMOOTHNESS_FILE,
    Line,
    feature_lines,
    no_features,
    smoothness_lines,
    write_beyond,
)
from metricunet.study.data import TRUTH, ScoredCase
from metricunet.study.one_stage import score_whole_scans, train_one_stage
from metricunet.study.score import ScoredCut, cases_name, cut_predictor, score_cases, write_rows
from metricunet.study.stage_one import LOCATE_NAME, FoldReady, read_located
from metricunet.training.callbacks import Watch
from metricunet.training.config import TrainConfig, differences
from metricunet.training.fit import MODEL_NAME, open_run, run_facts, train_segment
from metricunet.training.run import Run, state_file

KEY_NAME = "key.json"
#: Files of a run beside its rows.
BEYOND = (SMOOTHNESS_FILE, FEATURES_FILE)


@dataclass(frozen=True)
class RunJob:
    """One arm, fold and seed. It holds all that a process needs to carry it out.

    Attributes:
        folder: of the run.
        arm: name.
        fold: that stage 1 was trained on.
        seed: of the training.
        config: every setting, the seed included.
        cohort: that training reads.
        stage_one: folder of stage 1 and the cuts.
        cases: to score.
        fitting: training cases that probes of features are fitted on.
        references: whose contours they are scored against.
        ready: hashes and labels of the fold.
        spare: folder for prepared cases where the cohort is read-only.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        whole_scans: the cases to score, where the arm has one stage and reads them whole; None where it has two.
    """

    folder: Path
    arm: str
    fold: Fold
    seed: int
    config: TrainConfig
    cohort: Path
    stage_one: Path
    cases: tuple[str, ...]
    fitting: tuple[str, ...]
    references: tuple[str, ...]
    ready: FoldReady
    spare: Path
    device: str
    whole_scans: tuple[ScoredCase, ...] | None = None

    @property
    def title(self) -> str:
        """Name for people."""
        return f"{self.arm}, fold {self.fold}, seed {self.seed}"

    def key(self) -> dict[str, Any]:
        """Return what the results depend on; the shared stage 1 is no part of that where there is one stage."""
        own = {"locate_sha256": self.ready.locate_sha256} if self.whole_scans is None else {"stages": 1}
        return own | {
            "config": self.config.model_dump(mode="json"),
            "version": version("metricunet"),
            "data_sha256": self.ready.data_sha256,
            "scored_sha256": self.ready.scored_sha256,
        }


#: Told the run and what a `Watch` is told.
RunWatch = Callable[[RunJob, str, int, int, float | None], None]


@dataclass(frozen=True)
class RunDone:
    """What became of a run.

    Attributes:
        job: the run.
        val_dice: best mean Dice of the validation cases in their crops; None without any.
        seconds: that it took, since it was last begun or gone on with.
        error: why it failed; None where it is finished.
    """

    job: RunJob
    val_dice: float | None
    seconds: float
    error: str | None = None


def hand_out(jobs: Sequence[RunJob], watch: RunWatch | None = None) -> Iterator[RunDone]:
    """Carry out runs and yield each as it is done; here one after the other, in this process.

    This is the seam for an engine that has many machines: `carry_out` and the jobs can be pickled, the order in
    which runs are done does not matter, and all that they share is the study's folder and the cohort's.

    Args:
        jobs: the runs.
        watch: told the run, the stage, the updates done and in all, and the latest validation Dice.
    """
    for job in jobs:
        yield carry_out(job, None if watch is None else partial(watch, job))


def run_folder(output: Path, arm: str, fold: Fold, seed: int) -> Path:
    """Return where a run lies in a study's folder."""
    return output / "runs" / arm / f"fold-{fold}" / f"seed-{seed}"


def check_settings_of(folder: Path, config: TrainConfig, stages: int) -> None:
    """Refuse a run that was begun with other settings or stages, or by another version.

    Raises:
        InputError: the first differences, named.
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


def finished(job: RunJob) -> RunDone | None:
    """Return the result of a run that is finished; None of one that is not.

    Raises:
        InputError: it was begun with other settings, cases, stage 1 or version.
    """
    before = _read_key(job.folder)
    if before is None:
        return None
    check_settings_of(job.folder, job.config, 2 if job.whole_scans is None else 1)
    names = {
        "data_sha256": "training cases",
        "locate_sha256": "stage 1",
        "scored_sha256": "scored cases",
    }
    after = job.key()
    if changes := [f"other {what}" for k, what in names.items() if before.get(k) != after.get(k)]:
        raise _other(job.folder, changes)
    if _missing(job):
        return None
    return RunDone(job, _val_dice(job), _seconds(job.folder))


def carry_out(job: RunJob, watch: Watch | None = None) -> RunDone:
    """Train stage 2 of a run, or go on with it, and score it. What it left already is kept.

    Args:
        job: the run.
        watch: told how far it is.

    Returns:
        What became of it. A fault of the input or of the training is in there, so that other runs go on.
    """
    began = time.perf_counter()
    try:
        if set(_missing(job)) - set(BEYOND):
            _train_and_score(job, watch)
        _look_beyond(job, watch)
    except InputError as error:
        return RunDone(job, None, time.perf_counter() - began, str(error))
    except (MemoryError, torch.OutOfMemoryError) as error:
        lack = f"memory does not suffice ({error}); use a smaller batch, crop or network, or a larger spacing"
        return RunDone(job, None, time.perf_counter() - began, lack)
    return RunDone(job, _val_dice(job), _seconds(job.folder))


def _missing(job: RunJob) -> list[str]:
    """Return the files with results that a run has yet to write; with none of them it is finished."""
    names = [*(cases_name(whose) for whose in job.references), *BEYOND]
    return [name for name in names if not (job.folder / name).is_file()]


def _train_and_score(job: RunJob, watch: Watch | None) -> None:
    record = RunRecord("study", {"arm": job.arm, "fold": job.fold, "seed": job.seed, "device": job.device})
    write_json(job.folder / KEY_NAME, job.key())
    run = _open(job, watch)
    if job.whole_scans is not None:
        train_one_stage(run, job.folder)
    elif not (job.folder / MODEL_NAME).is_file():  # it is written when the training is done
        train_segment(run, read_located(job.stage_one, run))
    _tell_scoring(job, watch)
    rows: dict[str, list[CaseRow]] = {whose: [] for whose in job.references}
    lines: list[Line] = []
    for scored in _scored(job, run):
        for whose, of_reference in rows.items():
            of_reference += scored.rows(whose)
        lines += smoothness_lines(scored)
    validation = {} if job.whole_scans is not None else read_card(job.folder / MODEL_NAME).validation
    record.facts = run_facts(run, validation) | {
        "locate_sha256": (
            job.ready.locate_sha256 if job.whole_scans is None else sha256([job.folder / LOCATE_NAME])
        ),
        "cases": list(job.cases),
    }
    record.write(job.folder)
    for whose in sorted(job.references, key=lambda name: name == TRUTH):
        write_rows(job.folder / cases_name(whose), job.arm, job.seed, job.fold, rows[whose])
    _write(job, SMOOTHNESS_FILE, lines)


def _open(job: RunJob, watch: Watch | None) -> Run:
    return open_run(
        job.cohort,
        job.folder,
        job.config,
        job.fold,
        resume=state_file(job.folder).is_file(),
        device=job.device,
        spare=job.spare,
        watch=watch or _unwatched,
    )


def _look_beyond(job: RunJob, watch: Watch | None) -> None:
    """Write what a trained and scored run lacks of `BEYOND`: an older version, or a kill, left it without."""
    missing = _missing(job)
    if not missing:
        return
    _tell_scoring(job, watch)
    if SMOOTHNESS_FILE in missing:
        scored = _scored(job, None if job.whole_scans is None else _open(job, watch))
        _write(job, SMOOTHNESS_FILE, [line for one in scored for line in smoothness_lines(one)])
    if FEATURES_FILE in missing:
        _write(job, FEATURES_FILE, _features(job))


def _scored(job: RunJob, run: Run | None) -> Iterator[ScoredCut]:
    """Segment the cases; `run` is needed where they are read whole."""
    if job.whole_scans is not None:
        assert run is not None
        return score_whole_scans(run, train_one_stage(run, job.folder), job.whole_scans)
    predictor = cut_predictor(job.folder / MODEL_NAME, job.device)
    return score_cases(predictor, job.stage_one, job.cases, job.ready.labels, job.ready.ignore)


def _features(job: RunJob) -> list[Line]:
    if job.whole_scans is not None:
        return no_features(job.cases)
    predictor = cut_predictor(job.folder / MODEL_NAME, job.device)
    return feature_lines(predictor, job.stage_one, job.fitting, job.cases, job.ready.labels, job.ready.ignore)


def _write(job: RunJob, name: str, lines: Iterable[Line]) -> None:
    write_beyond(job.folder / name, job.arm, job.seed, job.fold, lines)


def _tell_scoring(job: RunJob, watch: Watch | None) -> None:
    if watch is not None:
        watch("scoring", 0, len(job.cases), None)


def _unwatched(stage: str, done: int, total: int, val_dice: float | None) -> None:
    """Show nothing: a run of a study has no progress bar of its own."""


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
        "must not be mixed: put them back, delete that folder, or choose another study folder with -o"
    )


def _val_dice(job: RunJob) -> float | None:
    if job.whole_scans is not None:
        return None  # of whole scans, which is not to be set beside those of crops
    return read_card(job.folder / MODEL_NAME).validation.get("crop_dice")


def _seconds(folder: Path) -> float:
    """Return how long a finished run took; 0 where its record is gone."""
    try:
        content = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        return float(content["timings_s"]["total"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
