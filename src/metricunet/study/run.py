"""A study from its file to its tables. It reads downward: data, stage 1 of each fold, the runs, the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import yaml
from rich.console import Console

from metricunet.cohort.layout import read_cohort
from metricunet.cohort.splits import Fold, split_for
from metricunet.errors import InputError
from metricunet.files.atomic import write_text
from metricunet.files.record import RunRecord, sha256
from metricunet.networks.device import pick_device
from metricunet.study.beyond import COLUMNS, FITTING_CASES
from metricunet.study.board import Board
from metricunet.study.conclusions import STUDY_NAME, conclude, write_conclusions
from metricunet.study.data import StudyData, fitting_cases, scored_cases, study_data
from metricunet.study.examples import Pictured, draw_examples
from metricunet.study.figures import draw_figures
from metricunet.study.job import RunJob
from metricunet.study.runs import RunDone, check_settings_of, finished, hand_out, run_folder
from metricunet.study.score import StudyRow, cases_name, join_rows, read_rows
from metricunet.study.sections import report_text
from metricunet.study.settings import Labels, Study, load_study
from metricunet.study.stage_one import FoldJob, FoldReady, prepare_fold, reach_mm
from metricunet.study.tables import tables_csv, tables_text
from metricunet.training.fit import MODEL_NAME, check_settings

Progress = Callable[[int, int], None]
Engine = Callable[[Sequence[RunJob]], Iterable[RunDone]]
#: What stage 1 of each kind of labels and fold led to.
Ready = dict[tuple[Labels | None, Fold], FoldReady]

TABLES_TEXT, TABLES_CSV, FIGURES = "tables.md", "tables.csv", "figures"


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

    Args:
        file: STUDY.yaml; see `metricunet.study.settings.StudyFile`.
        output: folder of data/ and data-displaced/ (phantoms), stage-one/[LABELS/]fold-K/ (stage 1 and the scans
            cut around what it finds), runs/ARM/fold-K/seed-S/, cases.csv against the truth (and cases-reader.csv
            against an unseen reader, on phantoms), smoothness.csv, features.csv, comparisons.csv and .json (with
            the verdicts), tables.md, tables.csv, figures/, study.yaml and run.json.
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
    output = _begin(plan, output.absolute(), device)
    data = study_data(plan, output, bar("phantoms"))
    _check(plan, data, output)
    jobs_of = {
        (labels, fold): _fold_job(plan, data, labels, fold, output, device)
        for labels in data.cohorts
        for fold in plan.folds
    }
    ready: Ready = {}
    for (labels, fold), job in jobs_of.items():
        say(_stage(labels, fold, data))
        ready[labels, fold] = prepare_fold(job, bar)
    jobs = [
        _run_job(plan, jobs_of[plan.labels(arm), fold], ready[plan.labels(arm), fold], arm, seed, output)
        for arm in plan.arms
        for fold in plan.folds
        for seed in plan.seeds(arm)
    ]
    runs = _carried_out(jobs, engine, say)
    text = _write(plan, data, ready, runs, output)
    record.facts = {
        "study": plan.content.model_dump(mode="json"),
        "study_sha256": sha256([file]),
        "runs": [
            {"arm": r.job.arm, "fold": r.job.fold, "seed": r.job.seed, "seconds": r.seconds, "error": r.error}
            for r in runs
        ],
    }
    record.write(output)
    return StudyResult(output / TABLES_TEXT, text, tuple(runs))


def _begin(plan: Study, output: Path, device: str) -> Path:
    """Refuse what cannot work before anything is made, and mark the folder as this study's."""
    try:
        pick_device(device)
    except ValueError as error:
        raise InputError(str(error)) from error
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; expected a folder for the study")
    if output.is_dir() and any(output.iterdir()) and not (output / STUDY_NAME).is_file():
        raise InputError(f"{output}: holds other files and no study; choose a new or empty folder with -o")
    content = plan.content.model_dump(mode="json", exclude_none=True)
    if plan.cohort is not None:
        content["data"]["cohort"] = str(plan.cohort)  # the file is elsewhere now
    write_text(output / STUDY_NAME, yaml.safe_dump(content, sort_keys=False))
    return output


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


def _carried_out(jobs: list[RunJob], engine: Engine | None, say: Callable[[str], None]) -> list[RunDone]:
    """Return what became of each run, in the order of the jobs."""
    results = {job.folder: done for job in jobs if (done := finished(job)) is not None}
    with Board(jobs, say, Console(stderr=True)) as board:
        board.before(list(results.values()))
        missing = [job for job in jobs if job.folder not in results]
        for done in hand_out(missing, board.watch) if engine is None else engine(missing):
            results[done.job.folder] = done
            board.finish(done)
    return [results.get(job.folder) or RunDone(job, None, 0.0, "not carried out") for job in jobs]


def _write(plan: Study, data: StudyData, ready: Ready, runs: list[RunDone], output: Path) -> str:
    """Write the rows of all runs and what follows from them; return the tables, which are written last."""
    whole = [run for run in runs if run.error is None]
    if not whole:
        raise InputError(f"all {len(runs)} runs failed; the first, {runs[0].job.title}: {runs[0].error}")
    cohort = read_cohort(data.cohort)
    not_contoured = {case.name: case.not_contoured for case in (*cohort.training, *cohort.test)}
    rows: dict[str, list[StudyRow]] = {}
    for reference in whole[0].job.references:
        name = cases_name(reference)
        write_text(output / name, join_rows(run.job.folder / name for run in whole))
        rows[reference] = read_rows(output / name, not_contoured)
    for name, columns in COLUMNS.items():
        write_text(output / name, join_rows((run.job.folder / name for run in whole), columns))
    conclusions = conclude(output, plan)
    write_conclusions(conclusions, output)
    draw_figures(conclusions, output / FIGURES)
    if (pictured := _pictured(plan, whole)) is not None:
        draw_examples(
            pictured, conclusions.comparisons.find("primary", "dice", plan.base.target), output / FIGURES
        )
    text = tables_text(plan.content.name, rows, plan.content.measures.all, _notes(plan, data, ready, runs))
    text = f"{text}\n{report_text(conclusions)}".rstrip() + "\n"
    write_text(output / TABLES_CSV, tables_csv(rows))
    write_text(output / TABLES_TEXT, text)
    return text


def _pictured(plan: Study, whole: Sequence[RunDone]) -> Pictured | None:
    """Return what to draw examples of: the main pair in the first fold and seed in which all its arms are done."""
    if (main := plan.content.primary) is None or any(plan.stages(arm) == 1 for arm in main.arms):
        return None
    done: dict[tuple[Fold, int], dict[str, RunJob]] = {}
    for run in whole:
        done.setdefault((run.job.fold, run.job.seed), {})[run.job.arm] = run.job
    for (_, seed), jobs in done.items():
        if set(main.arms) <= jobs.keys():
            one = jobs[main.method]
            return Pictured(
                models={arm: jobs[arm].folder / MODEL_NAME for arm in main.arms},
                seed=seed,
                folder=one.stage_one,
                cases=one.case_names,
                fitting=one.fitting,
                labels=one.ready.labels,
                ignore=one.ready.ignore,
                target=plan.base.target,
                device=one.device,
            )
    return None


def _notes(plan: Study, data: StudyData, ready: Ready, runs: list[RunDone]) -> list[str]:
    notes = []
    if (main := plan.content.primary) is not None:
        control = f"; control: {main.control}" if main.control else ""
        notes.append(f"Main comparison: {main.method} against {main.baseline}{control}.")
    if len(data.cohorts) > 1:
        for labels in data.cohorts:
            arms = [arm for arm in plan.arms if plan.labels(arm) == labels]
            notes.append(f"Trained on {labels} labels: {', '.join(arms)}.")
    if data.has_test:
        notes.append(f"{len(runs[0].job.cases)} test cases, which no training has seen.")
    else:
        notes.append(
            "Scored on the validation cases of each fold. They also chose each training's best epoch, so the "
            "scores are somewhat too good, in every arm alike."
        )
    if len(plan.folds) > 1:
        notes.append(f"The {len(plan.folds)} folds are taken together.")
    shared = "all arms" if all(plan.stages(arm) == 2 for arm in plan.arms) else "all arms of two stages"
    for (labels, fold), done in ready.items():
        stage = _stage(labels, fold, data).capitalize()
        notes.append(f"{stage}, shared by {shared}, {_located(done.off_mm, plan.base.target)}.")
    notes += [f"Failed, and not in the tables: {r.job.title}: {r.error}" for r in runs if r.error is not None]
    return notes


def _stage(labels: Labels | None, fold: Fold, data: StudyData) -> str:
    """Name a stage 1."""
    return f"stage 1, fold {fold}" + (f", {labels} labels" if len(data.cohorts) > 1 else "")


def _located(off_mm: Sequence[float | None], target: str) -> str:
    """Say how well stage 1 does on the scored cases."""
    found = [mm for mm in off_mm if mm is not None]
    said = f"finds the {target} in {len(found)} of the {len(off_mm)} scored cases that hold it"
    if not found:
        return said
    return f"{said}, its centre {median(found):.1f} mm off (median; most {max(found):.1f} mm)"
