"""A study from its file to its tables. It reads downward: data, stage 1 of each fold, the runs, the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console

from metricunet.cohort.layout import read_cohort
from metricunet.cohort.splits import Fold, split_for
from metricunet.errors import InputError
from metricunet.files.atomic import write_text
from metricunet.files.claim import CLAIM_NAME, claimed
from metricunet.files.own import OwnFiles
from metricunet.files.record import RunRecord, sha256
from metricunet.networks.device import pick_device
from metricunet.study.beyond import FITTING_CASES
from metricunet.study.board import Board
from metricunet.study.conclusions import STUDY_NAME
from metricunet.study.data import StudyData, fitting_cases, scored_cases, study_data
from metricunet.study.job import RunJob
from metricunet.study.outcome import (
    OUTPUTS,
    STUDY_RECORD,
    TABLES_TEXT,
    Ready,
    refuse_foreign,
    stage_title,
    write_outcome,
)
from metricunet.study.runs import RunDone, check_settings_of, finished, hand_out, in_one_line, run_folder
from metricunet.study.settings import Labels, Study, load_study
from metricunet.study.sharing import in_turn, taken_up
from metricunet.study.stage_one import FoldJob, FoldReady, prepare_fold, reach_mm
from metricunet.training.checks import check_settings
from metricunet.training.run import is_scratch

Progress = Callable[[int, int], None]
Engine = Callable[[Sequence[RunJob]], Iterable[RunDone]]
Place = tuple[Labels | None, Fold]

#: Record of the copy of the study file, which is there from the beginning.
MARK_RECORD = ".study-file.json"
#: In place of a stage 1 that failed.
NOT_READY = FoldReady(0, "", "", "", {}, None, ())


@dataclass(frozen=True)
class StudyResult:
    """What a study ended with.

    Attributes:
        tables: file with the tables.
        text: its content.
        runs: all of them.
    """

    tables: Path
    text: str
    runs: tuple[RunDone, ...]

    @property
    def failed(self) -> tuple[RunDone, ...]:
        """Runs that did not come to an end."""
        return tuple(run for run in self.runs if run.error is not None)


def study(
    file: Path,
    output: Path,
    *,
    device: str = "auto",
    engine: Engine | None = None,
    say: Callable[[str], None] = lambda message: None,
    bar: Callable[[str], Progress] = lambda name: lambda done, total: None,
) -> StudyResult:
    """Carry out a study: arms times folds times seeds, each trained and scored. What is finished is kept.

    Several processes that are called with one folder share the work, run by run, and end with the same tables.

    Args:
        file: STUDY.yaml; see `metricunet.study.settings.StudyFile`.
        output: folder of data/ and data-displaced/ (phantoms), stage-one/[LABELS/]fold-K/ (stage 1 and the scans
            cut around what it finds), runs/ARM/fold-K/seed-S/, cases.csv against the truth (and cases-reader.csv
            against an unseen reader, on phantoms), smoothness.csv, features.csv, comparisons.csv and .json (with
            the verdicts), tables.md, tables.csv, figures/, study.yaml and study.json.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        engine: carries out the runs in place of `metricunet.study.runs.hand_out`. Those that it leaves out count
            as failed, and the tables are of the others.
        say: told what comes next, and what became of a run where no table is shown.
        bar: opens a progress bar by its name.

    Raises:
        InputError: a study file, cohort or folder that cannot work, or results in the folder that another study
            file, version or cohort led to, named.
    """
    plan = load_study(file)
    record = RunRecord("study", {"file": file, "output": output, "device": device})
    output = output.absolute()
    _check_folder(output, device)
    own = OwnFiles(output, STUDY_RECORD, record.command, inputs=[file])
    with in_turn(output / CLAIM_NAME, "the beginning or the end of a study", say):
        _check_folder(output, device)  # a rival may have begun between the two
        refuse_foreign(own, OUTPUTS)
        _mark(plan, file, output)
        data = study_data(plan, output, bar("phantoms"))
    _check(plan, data, output)
    jobs_of = {
        (labels, fold): _fold_job(plan, data, labels, fold, output, device)
        for labels in data.cohorts
        for fold in plan.folds
    }
    ready, faults = _prepared(jobs_of, data, say, bar)
    jobs, without = [], []
    for arm in plan.arms:
        for fold in plan.folds:
            place = plan.labels(arm), fold
            for seed in plan.seeds(arm):
                job = _run_job(plan, jobs_of[place], ready.get(place, NOT_READY), arm, seed, output)
                jobs.append(job)
                if place in faults:
                    without.append(
                        RunDone(job, None, 0.0, f"stage 1: {in_one_line(faults[place])}", faults[place])
                    )
    runs = _carried_out(jobs, without, engine, say)
    record.facts = {
        "study": plan.content.model_dump(mode="json"),
        "study_sha256": sha256([file]),
        "runs": [
            {"arm": r.job.arm, "fold": r.job.fold, "seed": r.job.seed, "seconds": r.seconds, "error": r.error}
            for r in runs
        ],
    }
    with in_turn(output / CLAIM_NAME, "the beginning or the end of a study", say):
        text = write_outcome(plan, data, ready, runs, own, record.content())
    return StudyResult(output / TABLES_TEXT, text, tuple(runs))


def _check_folder(output: Path, device: str) -> None:
    """Refuse what cannot work before anything is made."""
    try:
        pick_device(device)
    except ValueError as error:
        raise InputError(str(error)) from error
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; expected a folder for the study")
    filled = output.is_dir() and not all(map(is_scratch, output.iterdir()))
    if filled and not (output / STUDY_NAME).is_file():
        raise InputError(f"{output}: holds other files and no study; choose a new or empty folder with -o")


def _mark(plan: Study, file: Path, output: Path) -> None:
    """Mark the folder as this study's with a copy of its file; one that lies there itself stays as it is.

    Raises:
        InputError: another file has that name, or the copy was changed.
    """
    content = plan.content.model_dump(mode="json", exclude_none=True)
    if plan.cohort is not None:
        content["data"]["cohort"] = str(plan.cohort)  # the file is elsewhere now
    text, copy = yaml.safe_dump(content, sort_keys=False), output / STUDY_NAME
    if copy.is_file() and (copy.samefile(file) or copy.read_bytes() == text.encode("utf-8")):
        return
    own = OwnFiles(output, MARK_RECORD, "study", inputs=[file])
    refuse_foreign(own, [STUDY_NAME])
    write_text(own.stage(STUDY_NAME), text)
    own.commit({})


def _prepared(
    jobs: dict[Place, FoldJob], data: StudyData, say: Callable[[str], None], bar: Callable[[str], Progress]
) -> tuple[Ready, dict[Place, Exception]]:
    """Prepare the folds; return those that are ready, and what went wrong in the others.

    Raises:
        InputError: none is ready; of the first.
    """

    faults: dict[Place, Exception] = {}

    def prepare(place: Place) -> tuple[Place, FoldReady | None]:
        job = jobs[place]
        with claimed(job.folder / CLAIM_NAME, "stage 1 of a study"):
            say(stage_title(*place, data))
            try:
                return place, prepare_fold(job, bar)
            except Exception as error:  # one fold must not cost the others their results
                faults[place] = error
                return place, None

    found = dict(taken_up(list(jobs), prepare, say))
    ready = {place: fold for place in jobs if (fold := found[place]) is not None}
    if not ready:
        first = next(iter(faults.values()))
        raise first if isinstance(first, InputError) else InputError(f"stage 1: {in_one_line(first)}") from first
    return ready, faults


def _check(plan: Study, data: StudyData, output: Path) -> None:
    """Check every arm and fold, and every run that an earlier call began, before any work."""
    cohort = read_cohort(data.cohort)
    for arm, config in plan.arms.items():
        try:
            check_settings(config, len(cohort.info.labels) + 1)
        except InputError as error:
            raise InputError(f"{plan.path}: arm {arm}: {error}") from error
    for fold in plan.folds:
        try:
            split_for(cohort, fold)
        except InputError as error:
            raise InputError(f"{plan.path}: folds: {error}") from error
        for arm, config in plan.arms.items():
            for seed in plan.seeds(arm):
                check_settings_of(
                    run_folder(output, arm, fold, seed),
                    config.model_copy(update={"seed": seed}),
                    plan.stages(arm),
                )


def _fold_job(
    plan: Study, data: StudyData, labels: Labels | None, fold: Fold, output: Path, device: str
) -> FoldJob:
    return FoldJob(
        folder=output / "stage-one" / (labels or "") / f"fold-{fold}",
        cohort=data.cohorts[labels],
        config=plan.base,
        fold=fold,
        cases=scored_cases(data, fold),
        fitting=fitting_cases(data, fold, FITTING_CASES),
        half_mm=reach_mm(list(plan.arms.values())),
        spare=output,
        device=device,
    )


def _run_job(plan: Study, fold: FoldJob, ready: FoldReady, arm: str, seed: int, output: Path) -> RunJob:
    return RunJob(
        folder=run_folder(output, arm, fold.fold, seed),
        arm=arm,
        fold=fold.fold,
        seed=seed,
        config=plan.arms[arm].model_copy(update={"seed": seed}),
        cohort=fold.cohort,
        stage_one=fold.folder,
        cases=fold.cases,
        fitting=tuple(case.name for case in fold.fitting),
        references=tuple(fold.cases[0].references),
        ready=ready,
        spare=fold.spare,
        device=fold.device,
        stages=plan.stages(arm),
    )


def _carried_out(
    jobs: list[RunJob], without: list[RunDone], engine: Engine | None, say: Callable[[str], None]
) -> list[RunDone]:
    """Return what became of each run, in the order of the jobs; those without a stage 1 have failed before."""
    results = {run.job.folder: run for run in without}
    before = [done for job in jobs if job.folder not in results and (done := finished(job)) is not None]
    results |= {run.job.folder: run for run in before}
    with Board(jobs, say, Console(stderr=True)) as board:
        board.before(before)
        for run in without:
            board.finish(run)
        missing = [job for job in jobs if job.folder not in results]
        for done in hand_out(missing, board.watch, say) if engine is None else engine(missing):
            results[done.job.folder] = done
            board.finish(done)
    return [results.get(job.folder) or RunDone(job, None, 0.0, "not carried out") for job in jobs]
