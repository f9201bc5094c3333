"""What a study leaves in the end: the rows of all runs, tables, figures and the record, all of one moment."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from metricunet.cohort.layout import read_cohort
from metricunet.cohort.splits import Fold
from metricunet.errors import InputError
from metricunet.files.atomic import write_text
from metricunet.files.own import FILES, OwnFiles, write_sealed
from metricunet.study.beyond import COLUMNS
from metricunet.study.conclusions import COMPARISONS_CSV, COMPARISONS_JSON, conclude, write_conclusions
from metricunet.study.data import READER, TRUTH, StudyData
from metricunet.study.examples import EXAMPLES, FEATURE_AXES, FEATURE_MAPS, Pictured, draw_examples
from metricunet.study.figures import ARMS, DIFFERENCES, FEATURES, SMOOTHNESS, draw_figures
from metricunet.study.job import RunJob
from metricunet.study.runs import RunDone
from metricunet.study.score import StudyRow, cases_name, join_rows, read_rows
from metricunet.study.sections import report_text
from metricunet.study.settings import Labels, Study
from metricunet.study.stage_one import FoldReady
from metricunet.study.tables import tables_csv, tables_text
from metricunet.training.fit import MODEL_NAME

#: What stage 1 of each kind of labels and fold led to.
Ready = dict[tuple[Labels | None, Fold], FoldReady]

STUDY_RECORD, TABLES_TEXT, TABLES_CSV, PICTURES = "study.json", "tables.md", "tables.csv", "figures"
#: All that `write_outcome` may write beside the record.
OUTPUTS = (
    *(cases_name(whose) for whose in (TRUTH, READER)),
    *COLUMNS,
    COMPARISONS_CSV,
    COMPARISONS_JSON,
    *(
        f"{PICTURES}/{name}"
        for name in (DIFFERENCES, ARMS, SMOOTHNESS, FEATURES, EXAMPLES, FEATURE_AXES, FEATURE_MAPS)
    ),
    TABLES_CSV,
    TABLES_TEXT,
)


def refuse_foreign(own: OwnFiles, names: Sequence[str]) -> None:
    """Refuse to go on where a file of somebody else would be replaced.

    Args:
        own: the outputs.
        names: of those that are to be written.

    Raises:
        InputError: the first such file, named.
    """
    own.check(names, advice="move it elsewhere and run again, or choose another folder with -o")


def write_outcome(
    plan: Study, data: StudyData, ready: Ready, runs: Sequence[RunDone], own: OwnFiles, record: Mapping[str, Any]
) -> str:
    """Write the rows of all runs, what follows from them, and the record; return the tables.

    Args:
        plan: the study file.
        data: where the cases lie.
        ready: stage 1 of the folds.
        runs: all of them.
        own: the study's outputs.
        record: what the record says.

    Raises:
        InputError: no run came to an end, which the record says all the same.
    """
    whole = [run for run in runs if run.error is None]
    if not whole:
        before = own.content()
        if before is not None or not os.path.lexists(own.path):
            write_sealed(own.path, {**record, "command": own.command}, {} if before is None else before[FILES])
        raise InputError(f"all {len(runs)} runs failed; the first, {runs[0].job.title}: {runs[0].error}")
    tables = own.stage(TABLES_TEXT)
    drafts = tables.parent / "drafts"  # figures and verdicts are made from the tables under their names
    shutil.rmtree(drafts, ignore_errors=True)  # of a process that was killed
    try:
        text = _draft(plan, data, ready, runs, whole, drafts)
        write_text(tables, text)
        for path in sorted(path for path in drafts.rglob("*") if path.is_file()):
            os.replace(path, own.stage(path.relative_to(drafts).as_posix()))
        shutil.rmtree(drafts)
        own.commit(record)
    finally:
        shutil.rmtree(drafts, ignore_errors=True)
        own.discard()
    return text


def _draft(
    plan: Study, data: StudyData, ready: Ready, runs: Sequence[RunDone], whole: Sequence[RunDone], output: Path
) -> str:
    """Write everything but the tables for people, which are returned."""
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
    draw_figures(conclusions, output / PICTURES)
    if (pictured := _pictured(plan, whole)) is not None:
        draw_examples(
            pictured, conclusions.comparisons.find("primary", "dice", plan.base.target), output / PICTURES
        )
    write_text(output / TABLES_CSV, tables_csv(rows))
    text = tables_text(plan.content.name, rows, plan.content.measures.all, _notes(plan, data, ready, runs))
    return f"{text}\n{report_text(conclusions)}".rstrip() + "\n"


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


def _notes(plan: Study, data: StudyData, ready: Ready, runs: Sequence[RunDone]) -> list[str]:
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
        stage = stage_title(labels, fold, data).capitalize()
        notes.append(f"{stage}, shared by {shared}, {_located(done.off_mm, plan.base.target)}.")
    notes += [f"Failed, and not in the tables: {r.job.title}: {r.error}" for r in runs if r.error is not None]
    return notes


def stage_title(labels: Labels | None, fold: Fold, data: StudyData) -> str:
    """Name a stage 1."""
    return f"stage 1, fold {fold}" + (f", {labels} labels" if len(data.cohorts) > 1 else "")


def _located(off_mm: Sequence[float | None], target: str) -> str:
    """Say how well stage 1 does on the scored cases."""
    found = [mm for mm in off_mm if mm is not None]
    said = f"finds the {target} in {len(found)} of the {len(off_mm)} scored cases that hold it"
    if not found:
        return said
    return f"{said}, its centre {median(found):.1f} mm off (median; most {max(found):.1f} mm)"
