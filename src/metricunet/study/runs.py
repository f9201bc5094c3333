"""The runs of a study: where each lies, whether it is finished, and how its results come about."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from metricunet.cohort.splits import Fold
from metricunet.errors import InputError, told
from metricunet.evaluation.summary import CaseRow
from metricunet.files.atomic import write_json
from metricunet.files.claim import CLAIM_NAME, claimed
from metricunet.files.own import read_sealed, write_sealed
from metricunet.files.record import RECORD_NAME, RunRecord
from metricunet.study.beyond import FEATURES_FILE, SMOOTHNESS_FILE, Line, smoothness_lines, write_beyond
from metricunet.study.data import TRUTH
from metricunet.study.job import RunJob
from metricunet.study.score import cases_name, write_rows
from metricunet.study.sharing import Say, refuse_others, silent, taken_up
from metricunet.study.ways import way_of
from metricunet.training.config import TrainConfig, differences
from metricunet.training.fit import run_facts
from metricunet.training.log import Watch

KEY_NAME = "key.json"
#: Files of a run beside its rows.
BEYOND = (SMOOTHNESS_FILE, FEATURES_FILE)

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
        cause: what was raised then, where it was in this process.
    """

    job: RunJob
    val_dice: float | None
    seconds: float
    error: str | None = None
    cause: Exception | None = None


def hand_out(jobs: Sequence[RunJob], watch: RunWatch | None = None, say: Say = silent) -> Iterator[RunDone]:
    """Carry out runs and yield each as it is done; here one after the other, in this process.

    A run that another process is at comes last, when that process is done with it or dead.

    This is the seam for an engine that has many machines: `carry_out` and the jobs can be pickled, the order in
    which runs are done does not matter, and all that they share is the study's folder and the cohort's.

    Args:
        jobs: the runs.
        watch: told the run, the stage, the updates done and in all, and the latest validation Dice.
        say: told what is waited for.
    """
    return taken_up(jobs, lambda job: carry_out(job, None if watch is None else partial(watch, job)), say)


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
    check_settings_of(job.folder, job.config, job.stages)
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
    """Train the networks of a run, or go on with that, and score them. What is there already is kept.

    Args:
        job: the run.
        watch: told how far it is.

    Returns:
        What became of it. Whatever goes wrong is in there, so that other runs go on.

    Raises:
        AlreadyClaimed: another process is at it.
    """
    with claimed(job.folder / CLAIM_NAME, "a run of a study"):
        began = time.perf_counter()
        try:
            if (done := finished(job)) is not None:
                return done  # by another process, since it was handed out
            if set(_missing(job)) - set(BEYOND):
                _train_and_score(job, watch)
            _look_beyond(job, watch)
            return RunDone(job, _val_dice(job), _seconds(job.folder))
        except Exception as error:  # a run must not cost the others theirs, foreseen or not
            return RunDone(job, None, time.perf_counter() - began, in_one_line(error), error)


def in_one_line(error: Exception) -> str:
    """Say what went wrong with a training."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        said = " ".join(str(error).split())
        return f"memory does not suffice ({said}); use a smaller batch, crop or network, or a larger spacing"
    return told(error)


def _missing(job: RunJob) -> list[str]:
    """Return the files with results that a run has yet to write; with none of them it is finished."""
    names = [*(cases_name(whose) for whose in job.references), *BEYOND]
    return [name for name in names if not (job.folder / name).is_file()]


def _train_and_score(job: RunJob, watch: Watch | None) -> None:
    record = RunRecord("study", {"arm": job.arm, "fold": job.fold, "seed": job.seed, "device": job.device})
    refuse_others(job.folder, job.folder / KEY_NAME, "a run of a study")
    if not (job.folder / KEY_NAME).is_file():
        write_json(job.folder / KEY_NAME, job.key())
    way = way_of(job, watch)
    way.train()
    _tell_scoring(job, watch)
    rows: dict[str, list[CaseRow]] = {whose: [] for whose in job.references}
    lines: list[Line] = []
    for scored in way.scored():
        for whose, of_reference in rows.items():
            of_reference += scored.rows(whose)
        lines += smoothness_lines(scored)
    facts = {"locate_sha256": way.locate_sha256, "cases": list(job.case_names)}
    record.facts = run_facts(way.run, way.validation) | facts
    if not os.path.lexists(job.folder / RECORD_NAME) or read_sealed(job.folder / RECORD_NAME) is not None:
        write_sealed(job.folder / RECORD_NAME, record.content(), {})
    missing = _missing(job)  # what a kill left of them is the same, and what somebody put there is theirs
    for whose in sorted(job.references, key=lambda name: name == TRUTH):
        if cases_name(whose) in missing:
            write_rows(job.folder / cases_name(whose), job.arm, job.seed, job.fold, rows[whose])
    if SMOOTHNESS_FILE in missing:
        _write(job, SMOOTHNESS_FILE, lines)


def _look_beyond(job: RunJob, watch: Watch | None) -> None:
    """Write what a trained and scored run lacks of `BEYOND`: an older version, or a kill, left it without."""
    missing = _missing(job)
    if not missing:
        return
    _tell_scoring(job, watch)
    way = way_of(job, watch)
    if SMOOTHNESS_FILE in missing:
        _write(job, SMOOTHNESS_FILE, [line for scored in way.scored() for line in smoothness_lines(scored)])
    if FEATURES_FILE in missing:
        _write(job, FEATURES_FILE, way.features())


def _write(job: RunJob, name: str, lines: Iterable[Line]) -> None:
    write_beyond(job.folder / name, job.arm, job.seed, job.fold, lines)


def _tell_scoring(job: RunJob, watch: Watch | None) -> None:
    if watch is not None:
        watch("scoring", 0, len(job.cases), None)


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
    return way_of(job).validation.get("crop_dice")


def _seconds(folder: Path) -> float:
    """Return how long a finished run took; 0 where its record is gone."""
    try:
        content = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        return float(content["timings_s"]["total"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
