"""A study from its file to its tables. It reads downward: data, stage 1 of each fold, the runs, the tables."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from metricunet.cohort.layout import read_cohort
from metricunet.cohort.splits import Fold, split_for
from metricunet.engine import Engine, Serial, Tell
from metricunet.errors import InputError, argument, told
from metricunet.files.atomic import write_text
from metricunet.files.claim import CLAIM_NAME, claimed
from metricunet.files.own import FILES, OwnFiles, write_sealed
from metricunet.files.record import RunRecord, sha256
from metricunet.files.sharing import in_turn, shared_out
from metricunet.progress import Bars, Say, no_bars, silent
from metricunet.stages.device import device_named
from metricunet.study.comparisons import COMPARISONS_CSV, COMPARISONS_JSON, Compared
from metricunet.study.data import (
    READER,
    TRUTH,
    StudyData,
    fitting_cases,
    patients_seen,
    references_of,
    scored_cases,
    study_data,
)
from metricunet.study.design import MARK_RECORD, STUDY_NAME, Labels, Study, load_study
from metricunet.study.examples import EXAMPLE_PICTURES, Pictured, draw_examples
from metricunet.study.figures import FIGURES, draw_figures
from metricunet.study.folds import (
    FoldSpec,
    OtherScoredCases,
    PreparedFold,
    can_be_cut_from,
    fold_folder,
    prepare_fold,
    reach_mm,
)
from metricunet.study.kept import KeptResults
from metricunet.study.progress import RunProgress
from metricunet.study.report import PreparedFolds, conclusions_text, notes_of, stage_title, tables_csv, tables_text
from metricunet.study.results import FEATURES, SMOOTHNESS, cases_table, join_tables, read_table
from metricunet.study.rules import Finding, look, rounds, success_text
from metricunet.study.runs import (
    RunResult,
    RunSpec,
    check_settings_of,
    computed_as,
    finished,
    hand_out,
    has_results,
    in_one_line,
    recorded_as,
    run_folder,
)
from metricunet.study.scoring import FITTING_CASES
from metricunet.study.statistics import FoldSeed
from metricunet.study.verdicts import conclude, write_conclusions
from metricunet.training.checks import check_settings
from metricunet.training.run import is_scratch, training_needs

#: What a stage 1 is trained on, and the fold.
FoldKey = tuple[Labels | None, Fold]

STUDY_RECORD, TABLES_TEXT, TABLES_CSV, PICTURES = "study.json", "tables.md", "tables.csv", "figures"
#: In place of a stage 1 that failed.
NOT_PREPARED = PreparedFold(0, "", "", "", {}, None, ())
#: All that a study may leave beside its record: the joined tables of its runs, and what follows from them.
OUTPUTS = (
    *(table.name for table in (cases_table(TRUTH), cases_table(READER), SMOOTHNESS, FEATURES)),
    COMPARISONS_CSV,
    COMPARISONS_JSON,
    *(f"{PICTURES}/{name}" for name in (*FIGURES, *EXAMPLE_PICTURES)),
    TABLES_CSV,
    TABLES_TEXT,
)


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
    runs: tuple[RunResult, ...]

    @property
    def failed(self) -> tuple[RunResult, ...]:
        """Runs that did not come to an end."""
        return tuple(run for run in self.runs if run.error is not None)


def study(
    file: Path,
    output: Path,
    *,
    device: str = "auto",
    engine: Engine | None = None,
    replicates: int | None = None,
    keep: Path | None = None,
    say: Say = silent,
    bar: Bars = no_bars,
) -> StudyResult:
    """Carry out a study: arms times folds times seeds, each trained and scored. What is finished is kept.

    Several processes that are called with one folder share the work, run by run, and end with the same tables.
    Replicates are carried out one after the other, all arms of one before the next; where a rule of the study file
    says so, the rest of them are left out (`metricunet.study.design.FutilityRule`).

    Args:
        file: STUDY.yaml; see `metricunet.study.design.StudyFile`.
        output: folder of data/ and data-displaced/ (phantoms), stage-one/[LABELS/]fold-K/ (stage 1 and the scans
            cut around what it finds), runs/ARM/fold-K/seed-S/, cases.csv against the truth (and cases-reader.csv
            against an unseen reader, on phantoms), smoothness.csv, features.csv, comparisons.csv and .json (with
            the verdicts), tables.md, tables.csv, figures/, study.yaml and study.json.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, `gpu`, `gpu:N` or `mps`.
        engine: carries out the runs, and stage 1 of each fold before; None for one after the other, in this
            process.
        replicates: how many of the study's replicates to carry out, the first ones; None for all.
        keep: folder, apart from `output`, for the small files of finished runs and folds: `study.yaml`, keys,
            records, tables, and stage 1. What it holds and `output` lacks is taken up from it, so that the study
            can be continued where nothing else is left of it; the cohort must have the same bytes there. None
            for none.
        say: told what comes next, and what became of a run where no table is shown.
        bar: opens a progress bar by its name.

    Raises:
        InputError: a study file, cohort, folder or number of replicates that cannot work, or results in a folder
            that another study file, version or cohort led to, named.
    """
    plan = load_study(file)
    wanted = _wanted_folds(plan, replicates)
    arguments = {"file": file, "output": output, "device": device, "replicates": replicates, "keep": keep}
    record = RunRecord("study", arguments)
    output = output.absolute()
    kept = None if keep is None else KeptResults(keep.absolute(), output, plan, say)
    here = engine is None or isinstance(engine, Serial)
    engine = engine or Serial()
    if here:
        device_named(device)
    _check_folder(output)
    if kept is not None:
        kept.check()
    if not here:
        engine.check_folders(output, [] if plan.cohort is None else [plan.cohort / "dataset.json"])
    own = OwnFiles(output, STUDY_RECORD, record.command, inputs=[file])
    with in_turn(output / CLAIM_NAME, "the beginning or the end of a study", say):
        _check_folder(output)  # a rival may have begun between the two
        _refuse_foreign(own, OUTPUTS)
        _mark(plan, file, output)
        if kept is not None:
            if not kept.is_begun():
                _mark(plan, file, kept.folder)
            kept.take_up()
        data = study_data(plan, output, bar("phantoms"), engine)
    _check(plan, data, output)
    if (known := patients_seen(data)) is not None:
        say(f"note: {known}")
    computing = device if here else engine.device(training_needs(data.cohort, device))
    folds: PreparedFolds = {}
    runs: list[RunResult] = []
    findings: list[Finding] = []
    for part in rounds(plan, wanted):
        fold_specs = {
            (labels, fold): _fold_spec(plan, data, labels, fold, output, computing)
            for fold in part
            for labels in data.cohorts
        }
        found, faults = _prepared(fold_specs, data, engine, say, bar if here else no_bars, kept, needed=not folds)
        folds |= found
        specs, without = [], []
        for arm, fold in _in_order(plan, part):
            key = plan.labels(arm), fold
            for seed in plan.seeds(arm):
                spec = _run_spec(plan, fold_specs[key], folds.get(key, NOT_PREPARED), arm, seed, output)
                specs.append(spec)
                if key in faults:
                    reason = f"stage 1: {in_one_line(faults[key])}"
                    without.append(RunResult(spec, None, 0.0, reason, faults[key]))
        runs += _carried_out(specs, without, engine, say, kept)
        findings = _findings(plan, runs)
        stopping = [finding for finding in findings if finding.stops]
        for finding in stopping:
            say(finding.text.replace("*", ""))
        if stopping:
            break
    record.facts = {
        "study": plan.content.model_dump(mode="json"),
        "study_sha256": sha256([file]),
        "runs": [
            {"arm": r.spec.arm, "fold": r.spec.fold, "seed": r.spec.seed, "seconds": r.seconds, "error": r.error}
            for r in runs
        ],
        "rules": [finding.text for finding in findings],
    }
    with in_turn(output / CLAIM_NAME, "the beginning or the end of a study", say):
        text = _write_outputs(plan, data, folds, runs, findings, own, record.content(), device if here else "auto")
    if kept is not None:
        kept.finish()
    return StudyResult(output / TABLES_TEXT, text, tuple(runs))


def _wanted_folds(plan: Study, replicates: int | None) -> tuple[Fold, ...]:
    """Return the folds to carry out.

    Raises:
        InputError: a number of replicates for a study without, or more than it has.
    """
    if replicates is None:
        return plan.folds
    if plan.replicates is None:
        raise InputError(
            f"{plan.path}: {argument('replicates', replicates)} is for studies with replicates, and this one has "
            "none (data.phantom.replicates); leave it out"
        )
    if not 1 <= replicates <= plan.replicates:
        raise InputError(
            f"{plan.path}: {argument('replicates')} must be 1 to {plan.replicates}, as many as the study has; got "
            f"{replicates}"
        )
    return plan.folds[:replicates]


def _in_order(plan: Study, folds: Sequence[Fold]) -> list[tuple[str, Fold]]:
    """List arms and folds in the order of their runs: replicate by replicate, else arm by arm."""
    if plan.replicates is None:
        return [(arm, fold) for arm in plan.arms for fold in folds]
    return [(arm, fold) for fold in folds for arm in plan.arms]


def _findings(plan: Study, runs: Sequence[RunResult]) -> list[Finding]:
    """Apply the rules to stop by that look at no more replicates than were carried out, in their order."""
    rules = sorted(plan.content.futility, key=lambda rule: rule.after)
    done = len({run.spec.fold for run in runs})
    whole = [run.spec for run in runs if run.error is None] if rules else []
    rows = [row for spec in whole for row in read_table(spec.folder, cases_table(TRUTH))]
    return [look(plan, rule, rows) for rule in rules if rule.after <= done]


def _check_folder(output: Path) -> None:
    """Refuse what cannot work before anything is made."""
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; expected a folder for the study")
    filled = output.is_dir() and not all(map(is_scratch, output.iterdir()))
    if filled and not (output / STUDY_NAME).is_file():
        raise InputError(f"{output}: holds other files and no study; choose a new or empty folder")


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
    _refuse_foreign(own, [STUDY_NAME])
    write_text(own.stage(STUDY_NAME), text)
    own.commit({})


def _refuse_foreign(own: OwnFiles, names: Sequence[str]) -> None:
    """Refuse to go on where a file of somebody else would be replaced.

    Raises:
        InputError: the first such file, named.
    """
    own.check(names, advice="move it elsewhere and run again, or choose another folder")


class _FoldPreparer:
    """A worker that prepares folds.

    Args:
        bars: opens a progress bar by its name.
    """

    def __init__(self, bars: Bars) -> None:
        self.bars = bars

    def do(self, spec: FoldSpec, tell: Tell) -> PreparedFold:
        """Prepare a fold."""
        return prepare_fold(spec, self.bars)


def _prepared(
    specs: dict[FoldKey, FoldSpec],
    data: StudyData,
    engine: Engine,
    say: Say,
    bars: Bars,
    kept: KeptResults | None,
    *,
    needed: bool = True,
) -> tuple[PreparedFolds, dict[FoldKey, Exception]]:
    """Prepare the folds; return those that could be, and what went wrong in the others.

    Raises:
        InputError: none could be, and one is `needed`; of the first. Or the test cases are others than those of a
            finished fold.
    """

    keys = {spec.folder: key for key, spec in specs.items()}

    @contextmanager
    def claim(spec: FoldSpec) -> Iterator[None]:
        with claimed(spec.folder / CLAIM_NAME, "stage 1 of a study"):
            say(stage_title(*keys[spec.folder], data))
            yield

    needs = training_needs(data.cohort, next(iter(specs.values())).device)
    make = partial(_FoldPreparer, bars)

    def each(left: Sequence[FoldSpec]) -> Iterator[tuple[FoldSpec, PreparedFold | Exception]]:
        yield from engine.each(left, make, needs, claim=claim)

    found: dict[FoldKey, PreparedFold | Exception] = {}
    for spec, result in shared_out(list(specs.values()), each, say):
        assert isinstance(result, PreparedFold | Exception)
        if data.has_test and isinstance(result, OtherScoredCases):
            raise result  # all folds are scored on these: what follows could not stand beside what is finished
        found[keys[spec.folder]] = result
        if kept is not None and isinstance(result, PreparedFold):
            kept.keep_fold(spec.folder)
    # One fold must not cost the others their results.
    faults = {key: fault for key in specs if isinstance(fault := found[key], Exception)}
    folds = {key: fold for key in specs if isinstance(fold := found[key], PreparedFold)}
    if needed and not folds:
        first = next(iter(faults.values()))
        raise first if isinstance(first, InputError) else InputError(f"stage 1: {in_one_line(first)}") from first
    return folds, faults


def _check(plan: Study, data: StudyData, output: Path) -> None:
    """Check every arm and fold, and every run that an earlier call began, before any work."""
    cohort = read_cohort(data.cohort)
    for arm, config in plan.arms.items():
        try:
            check_settings(config, cohort.info.labels)
            if config.organs.structures:
                raise InputError(
                    "setting organs.structures is given; a study scores the structures of stage 2 alone"
                )
        except InputError as error:
            raise InputError(f"{plan.path}: arm {arm}: {error}") from error
    for fold in plan.folds:
        try:
            split = split_for(cohort, fold)
        except InputError as error:
            raise InputError(f"{plan.path}: folds: {error}") from error
        if not data.has_test and not split.val:
            raise InputError(
                f"{plan.path}: folds: fold {fold} validates on no case (val), and {data.cohort} has no test "
                "cases, so nothing of it would be scored; leave it out, or add imagesTs and labelsTs"
            )
        for arm in plan.arms:
            for seed in plan.seeds(arm):
                check_settings_of(
                    run_folder(output, arm, fold, seed),
                    plan.config(arm, fold, seed),
                    plan.stages(arm),
                )


def _fold_spec(
    plan: Study, data: StudyData, labels: Labels | None, fold: Fold, output: Path, device: str
) -> FoldSpec:
    references = references_of(plan)
    arms = [arm for arm in plan.arms if plan.labels(arm) == labels]
    runs = [run_folder(output, arm, fold, seed) for arm in arms for seed in plan.seeds(arm)]
    return FoldSpec(
        folder=fold_folder(output, labels, fold),
        cohort=data.cohorts[labels],
        config=plan.stage_one(fold),
        fold=fold,
        cases=scored_cases(data, fold),
        fitting=fitting_cases(data, fold, FITTING_CASES),
        half_mm=reach_mm(list(plan.arms.values())),
        cache_fallback=output,
        device=device,
        finished=all(has_results(folder, references) for folder in runs),
        further=any(plan.arms[arm].teacher.share > 0 or plan.arms[arm].teacher.reveal for arm in arms),
    )


def _run_spec(plan: Study, fold: FoldSpec, prepared: PreparedFold, arm: str, seed: int, output: Path) -> RunSpec:
    return RunSpec(
        folder=run_folder(output, arm, fold.fold, seed),
        arm=arm,
        fold=fold.fold,
        seed=seed,
        config=plan.config(arm, fold.fold, seed),
        cohort=fold.cohort,
        stage_one=fold.folder,
        cases=fold.cases,
        fitting=tuple(case.name for case in fold.fitting),
        references=tuple(fold.cases[0].references),
        prepared=prepared,
        cache_fallback=fold.cache_fallback,
        device=fold.device,
        stages=plan.stages(arm),
    )


def _carried_out(
    specs: list[RunSpec], without: list[RunResult], engine: Engine, say: Say, kept: KeptResults | None
) -> list[RunResult]:
    """Return what became of each run, in their order; those without a stage 1 have failed before."""
    results = {run.spec.folder: run for run in without}
    before = [done for spec in specs if spec.folder not in results and (done := finished(spec)) is not None]
    results |= {run.spec.folder: run for run in before}

    def keep(run: RunResult) -> None:
        if kept is not None and run.error is None:
            kept.keep_run(run.spec.folder)

    for run in before:
        keep(run)
    if isinstance(engine, Serial):
        _tell_of_other_machines([spec for spec in specs if spec.folder not in results], before, say)
    with RunProgress(specs, say, Console(stderr=True)) as progress:
        progress.before([run for run in before if run.error is None])
        for run in (*without, *(run for run in before if run.error is not None)):
            progress.finish(run)
        missing = [spec for spec in specs if spec.folder not in results]
        for done in hand_out(missing, progress.watch, say, engine):
            results[done.spec.folder] = done
            keep(done)
            progress.finish(done)
        for spec in missing:
            if results[spec.folder].error is not None and (since := _finished_since(spec, say)) is not None:
                results[spec.folder] = since
                keep(since)
                say(f"{spec.title}: failed here, and is finished all the same: it counts")
    return [results[spec.folder] for spec in specs]


def _tell_of_other_machines(missing: Sequence[RunSpec], before: Sequence[RunResult], say: Say) -> None:
    """Say that runs of a fold are finished which were computed in another way than those to come would be here.

    The arms of a fold are to differ in their settings alone.
    """
    for run in before:
        there = recorded_as(run.spec.folder)
        for spec in missing:
            alike = (spec.fold, spec.config.precision) == (run.spec.fold, run.spec.config.precision)
            here = computed_as(spec.config, device_named(spec.device))
            if alike and there not in (None, here):
                say(
                    f"{run.spec.title}: was computed in {there}, and what is left of the fold would be in {here} "
                    "here, so its arms differ in more than their settings; go on on a machine like the first, or "
                    "delete the runs of this fold and carry them out anew here"
                )
                return


def _finished_since(spec: RunSpec, say: Say) -> RunResult | None:
    """Return the result of a run that failed here, if its files are whole: another process began it once more.

    Without it, processes that share a study would judge its rules by different runs, and end with other tables.
    """
    try:
        with in_turn(spec.folder / CLAIM_NAME, "a run of a study", say):
            done = finished(spec)
    except InputError:  # whatever is wrong with its folder, the run has failed
        return None
    return None if done is None or done.error is not None else done


def _write_outputs(
    plan: Study,
    data: StudyData,
    folds: PreparedFolds,
    runs: Sequence[RunResult],
    findings: Sequence[Finding],
    own: OwnFiles,
    record: Mapping[str, Any],
    device: str,
) -> str:
    """Write the tables of all runs, what follows from them, and the record, all of one moment; return the text.

    Raises:
        InputError: no run came to an end, which the record says all the same.
    """
    whole = [run.spec for run in runs if run.error is None]
    if not whole:
        before = own.content()
        if before is not None or not os.path.lexists(own.path):
            write_sealed(own.path, {**record, "command": own.command}, {} if before is None else before[FILES])
        raise InputError(f"all {len(runs)} runs failed; the first, {runs[0].spec.title}: {runs[0].error}")
    tables = own.stage(TABLES_TEXT)
    drafts = tables.parent / "drafts"  # figures and verdicts are made from the tables under their names
    shutil.rmtree(drafts, ignore_errors=True)  # of a process that was killed
    try:
        notes = [*notes_of(plan, data, folds, runs), *(finding.text for finding in findings)]
        text = _draft(plan, data, notes, findings, whole, drafts, device)
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
    plan: Study,
    data: StudyData,
    notes: Sequence[str],
    findings: Sequence[Finding],
    whole: Sequence[RunSpec],
    output: Path,
    device: str,
) -> str:
    """Write everything but the tables for people, which are returned."""
    for table in whole[0].tables:
        write_text(output / table.name, join_tables((spec.folder for spec in whole), table))
    cohort = read_cohort(data.cohort)
    not_contoured = {case.name: case.not_contoured for case in (*cohort.training, *cohort.test)}
    conclusions = conclude(output, plan, not_contoured)
    write_conclusions(conclusions, output)
    if (success := success_text(conclusions, findings)) is not None:
        notes = [*notes, success]
    try:
        draw_figures(conclusions, output / PICTURES)
    except Exception as error:  # a picture must not cost the tables
        notes = [*notes, f"Not all figures are drawn: {told(error)}."]
    dice = conclusions.comparisons.find("primary", "dice", plan.base.target)
    if (pictured := _pictured(plan, whole, device, conclusions.results.by_fold, dice)) is not None:
        try:
            draw_examples(pictured, dice, output / PICTURES)
        except Exception as error:  # pictures of a model that cannot be read must not cost the tables
            notes = [*notes, f"No examples are drawn: {told(error)}."]
    cases = conclusions.results.cases
    write_text(output / TABLES_CSV, tables_csv(cases))
    text = tables_text(plan.content.name, cases, plan.content.measures.all, notes)
    return f"{text}\n{conclusions_text(conclusions)}".rstrip() + "\n"


def _pictured(
    plan: Study, whole: Sequence[RunSpec], device: str, by_fold: bool, dice: Compared | None
) -> Pictured | None:
    """Return what to draw examples of: the main pair in the first fold and seed in which all its arms are done.

    A seed that the comparison left out, as one of its folds failed, is left out here: nothing chooses its cases.
    So is one whose models or cuts are not here, as it was carried out elsewhere.
    """
    if (main := plan.content.primary) is None or any(plan.stages(arm) == 1 for arm in main.arms):
        return None
    done: dict[tuple[Fold, int], dict[str, RunSpec]] = {}
    for spec in whole:
        done.setdefault((spec.fold, spec.seed), {})[spec.arm] = spec
    for (fold, seed), of_arm in done.items():
        run = FoldSeed(fold, seed) if by_fold else seed
        if set(main.arms) <= of_arm.keys() and (dice is None or run in dice.comparison.seeds):
            one = of_arm[main.method]
            if not can_be_cut_from(one.stage_one) or not all(of_arm[a].model.is_file() for a in main.arms):
                continue
            return Pictured(
                models={arm: of_arm[arm].model for arm in main.arms},
                precisions={arm: of_arm[arm].config.precision for arm in main.arms},
                seed=run,
                folder=one.stage_one,
                cases=one.case_names,
                fitting=one.fitting,
                labels=one.prepared.labels,
                ignore=one.prepared.ignore,
                target=plan.base.target,
                device=device,  # this machine's, and not that of a worker
            )
    return None
