"""What a study came to in text: tables.md for people, tables.csv for programs, and a table for each subject."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

import numpy as np

from metricunet.cohort.splits import Fold
from metricunet.evaluation.features import FEATURE_NAMES
from metricunet.evaluation.measures import MEASURE_NAMES, SIGNED, Definition
from metricunet.evaluation.smoothness import SMOOTHNESS_NAMES
from metricunet.evaluation.summary import Statistics, counted, csv_number, mean_and_std, number, table_csv
from metricunet.study.comparisons import ARM, CONTROL, Compared
from metricunet.study.data import READER, TRUTH, StudyData, patients_seen
from metricunet.study.design import Labels, Study
from metricunet.study.folds import PreparedFold
from metricunet.study.results import DEFINITIONS, ArmSummary, Row, summarise_arms
from metricunet.study.runs import RunResult, recorded_as
from metricunet.study.statistics import Comparison, FoldSeed
from metricunet.study.verdicts import Conclusions, Judged, signed
from metricunet.training.config import TrainConfig
from metricunet.volume import FloatArray

#: What the folds were trained on, and which, to what was prepared for their runs.
PreparedFolds = dict[tuple[Labels | None, Fold], PreparedFold]

TABLE_COLUMNS = (
    *("reference", "structure", "arm", "seed", "measure", "n", "missed", "mean", "std", "median"),
    "not_contoured",
)
#: What stands for the seed in the line over all of them.
ALL_SEEDS = "all"
NETWORKS = {"unet": "U-Net", "fcn": "FCN", "vnet": "V-Net"}
#: Columns of the tables of arms.
SHOWN = tuple(name for name in MEASURE_NAMES if name not in SIGNED)
READER_SHOWN = ("dice", "asd_mm", "surface_dice_2mm")
#: How to read the tables of runs.
READING = (
    "Seeds are kept apart: each line is one training, mean ± standard deviation over its cases. *All* is the "
    "mean of the seeds' means ± their standard deviation.",
    "A missed organ counts as 0 in ratios. It has no distances, whose means are over the rest; where any was "
    "missed, the number of cases stands in brackets.",
)
#: Of the sections that follow a study's tables.
HEADINGS = {
    "smoothness": "Smoothness: excess over the true shape",
    "features": "Features near the surface, in the finest decoder map",
    "comparisons": "Comparisons: pairs",
    "arms": "Comparisons: other arms, exploratory",
    "verdicts": "Verdicts",
    "reasons": "Reasons",
}


def tables_csv(rows: Mapping[str, Sequence[Row]]) -> str:
    """Return every number of the tables, a line each; blank where a number does not exist.

    Args:
        rows: whose contours the cases are scored against to the rows.
    """
    lines: list[list[object]] = []
    for reference, scored in rows.items():
        for arm in summarise_arms(scored):
            of_what = [reference, arm.structure, arm.arm]
            for seed, summary in arm.of_seed.items():
                for name, s in summary.measures.items():
                    numbers = map(csv_number, (s.mean, s.std, s.median))
                    lines.append([*of_what, seed, name, s.n, s.missed, *numbers, summary.not_contoured])
            unknown = sum(s.not_contoured for s in arm.of_seed.values())
            for name in MEASURE_NAMES:
                of_seeds = [s.measures[name] for s in arm.of_seed.values()]
                n, missed = sum(s.n for s in of_seeds), sum(s.missed for s in of_seeds)
                mean, std = map(csv_number, arm.between_seeds(name))
                lines.append([*of_what, ALL_SEEDS, name, n, missed, mean, std, "", unknown])
    return table_csv(TABLE_COLUMNS, lines)


def tables_text(
    name: str, rows: Mapping[str, Sequence[Row]], measures: Sequence[str], notes: Sequence[str]
) -> str:
    """Return the tables in Markdown.

    Args:
        name: name of the study.
        rows: whose contours the cases are scored against to the rows.
        measures: names of the measures that have a column, of `MEASURE_NAMES`.
        notes: what a reader of the tables has to know.
    """
    columns = [DEFINITIONS[measure] for measure in measures]
    lines = [f"# {name}", ""]
    lines += [f"- {note}" for note in [*notes, *READING]] + [""]
    for reference, scored in rows.items():
        arms = summarise_arms(scored)
        for structure in dict.fromkeys(arm.structure for arm in arms):
            own = [arm for arm in arms if arm.structure == structure]
            lines += [f"## {structure}, against the {reference}", ""]
            if unknown := max(s.not_contoured for arm in own for s in arm.of_seed.values()):
                lines += [f"Not contoured, and so not scored, in {unknown} of the cases.", ""]
            lines += [_runs_table(own, columns), ""]
    return "\n".join(lines).rstrip() + "\n"


def _runs_table(arms: Sequence[ArmSummary], columns: Sequence[Definition]) -> str:
    """Return a line for each run, and one over the seeds of an arm that has several."""
    lines = []
    for arm in arms:
        for seed, summary in arm.of_seed.items():
            cells = [_mean_over_cases(summary.measures[d.name], d) for d in columns]
            lines.append([arm.arm, str(seed), str(summary.n), str(summary.missed), *cells])
        if len(arm.of_seed) > 1:
            cells = [_mean_over_seeds(arm, d) for d in columns]
            n, missed = (sum(getattr(s, kind) for s in arm.of_seed.values()) for kind in ("n", "missed"))
            lines.append([f"**{arm.arm}**", "**all**", str(n), str(missed), *(f"**{c}**" for c in cells)])
    keys = {isinstance(run, FoldSeed) for arm in arms for run in arm.of_seed}
    return _markdown(
        ["arm", "fold/seed" if True in keys else "seed", "cases", "missed", *(d.heading for d in columns)],
        lines,
        left=2,
    )


def _mean_over_cases(statistics: Statistics, definition: Definition) -> str:
    text = mean_and_std(statistics, definition)
    return f"{text} ({counted(statistics, definition)})" if definition.is_distance and statistics.missed else text


def _mean_over_seeds(arm: ArmSummary, definition: Definition) -> str:
    mean, std = arm.between_seeds(definition.name)
    text = number(mean, definition, signed=True)
    return text if std is None else f"{text} ± {number(std, definition)}"


def notes_of(plan: Study, data: StudyData, folds: PreparedFolds, runs: Sequence[RunResult]) -> list[str]:
    """Return what a reader of a study's tables has to know.

    Args:
        plan: the study file.
        data: the cases of the study.
        folds: the folds that were prepared.
        runs: all runs of the study.
    """
    notes = []
    if (main := plan.content.primary) is not None:
        control = f"; control: {main.control}" if main.control else ""
        notes.append(f"Main comparison: {main.method} against {main.baseline}{control}.")
    if len(data.cohorts) > 1:
        for labels in data.cohorts:
            arms = [arm for arm in plan.arms if plan.labels(arm) == labels]
            notes.append(f"Trained on {labels} labels: {', '.join(arms)}.")
    if data.has_test:
        kind = None if plan.content.data.phantom is None else plan.content.data.phantom.test_difficulty
        other = "" if kind is None else f" of difficulty {kind}"
        notes.append(f"{len(runs[0].spec.cases)} test cases{other}, which no training has seen.")
        if (known := patients_seen(data)) is not None:
            notes.append(f"{known}.")
    else:
        notes.append(
            "Scored on the validation cases of each fold. They also chose each training's best epoch, so the "
            "scores are somewhat too good, in every arm alike."
        )
    if plan.replicates is not None:
        phantom = plan.content.data.phantom
        assert phantom is not None
        done = len({run.spec.fold for run in runs})
        notes.append(
            f"{done} of {plan.replicates} replicates, each a fold: trained on {phantom.contoured} contoured cases "
            f"of its own out of {phantom.n_train}, scored on the same test cases. A run is written fold/seed."
        )
    elif len(plan.folds) > 1 and data.has_test:
        notes.append(
            f"The {len(plan.folds)} folds score the same test cases, so each is a run of its own, written "
            "fold/seed."
        )
    elif len(plan.folds) > 1:
        notes.append(f"The {len(plan.folds)} folds are taken together.")
    shared = "all arms" if all(plan.stages(arm) == 2 for arm in plan.arms) else "all arms of two stages"
    for (labels, fold), prepared in folds.items():
        stage = stage_title(labels, fold, data).capitalize()
        notes.append(f"{stage}, shared by {shared}, {_located(prepared.off_mm, plan.base.target)}.")
    notes += _computed(runs)
    notes += [f"Failed, and not in the tables: {r.spec.title}: {r.error}" for r in runs if r.error is not None]
    return notes


def _computed(runs: Sequence[RunResult]) -> list[str]:
    """Name the folds of which not all runs were computed in one way, though their settings ask for one."""
    found: dict[tuple[Fold, str], dict[str, list[str]]] = {}
    for run in runs:
        if run.error is None and (how := recorded_as(run.spec.folder)) is not None:
            ways = found.setdefault((run.spec.fold, run.spec.config.precision), {})
            ways.setdefault(how, []).append(f"{run.spec.arm} (seed {run.spec.seed})")
    return [
        f"The runs of fold {fold} differ in more than their settings, for they were not computed alike: "
        + "; ".join(f"in {how} {', '.join(names)}" for how, names in ways.items())
        + "."
        for (fold, _), ways in found.items()
        if len(ways) > 1
    ]


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


def sections(conclusions: Conclusions) -> dict[str, str]:
    """Return name to table; those that have nothing to show are left out.

    `ablation`: the arms with the main method's network. `comparison`: the arms without metric learning, those with
    tuples made before training, and the methods of the pairs. `reader`: all arms, against the unseen reader.
    `smoothness`, `features`: all arms. `comparisons`: the pairs; `primary`: the primary one alone. `arms`: the
    other arms against their baseline. `verdicts`: what is concluded of the claims; `reasons`: why; `why`: that of
    the primary pair alone.
    """
    pairs = conclusions.plan.content.pairs
    target = conclusions.plan.base.target
    found = {
        "ablation": arms_table(conclusions, SHOWN, arms=_ablated(conclusions), described=True),
        "comparison": arms_table(conclusions, SHOWN, arms=_usual(conclusions), described=True),
        "reader": arms_table(conclusions, READER_SHOWN, READER) if READER in conclusions.results.cases else "",
        "smoothness": arms_table(conclusions, SMOOTHNESS_NAMES),
        "features": arms_table(conclusions, FEATURE_NAMES),
        "comparisons": _pairs_tables(conclusions, list(pairs)),
        "primary": _pairs_tables(conclusions, list(pairs)[:1]),
        "arms": contrasts_table(
            [
                c
                for c in conclusions.comparisons.compared
                if c.contrast.role == ARM and c.reference == TRUTH and c.structure in (target, None)
                if c.measure in (*conclusions.plan.content.measures.primary, *SMOOTHNESS_NAMES, *FEATURE_NAMES)
            ]
        ),
        "verdicts": verdicts_table(conclusions.judged),
        "reasons": reasons_text(conclusions.judged),
        "why": reasons_text([one for one in conclusions.judged if one.role == "primary"]),
    }
    return {name: text for name, text in found.items() if text}


def conclusions_text(conclusions: Conclusions) -> str:
    """Return what follows the measures of all runs: smoothness, features, comparisons and verdicts."""
    found = sections(conclusions)
    lines: list[str] = []
    for name, heading in HEADINGS.items():
        if name in found:
            lines += [f"## {heading}", "", found[name], ""]
    if conclusions.comparisons.left_out:
        lines += ["Not compared:", "", *(f"- {reason}" for reason in conclusions.comparisons.left_out), ""]
    return "\n".join(lines)


def arms_table(
    conclusions: Conclusions,
    measures: Sequence[str],
    reference: str = TRUTH,
    *,
    arms: Sequence[str] | None = None,
    described: bool = False,
) -> str:
    """Return every arm's measures of the target: the mean of the seeds' means ± their standard deviation.

    Args:
        conclusions: what the study came to.
        measures: names of the measures that have a column.
        reference: whose contours to compare with.
        arms: names of the arms; default: all.
        described: whether the table says of every arm what it is.
    """
    plan, results = conclusions.plan, conclusions.results
    titles = [DEFINITIONS[name].heading for name in measures]
    described_as = ["network", "loss", "metric learning", "labels"] if described else []
    lines = []
    for arm in results.arms if arms is None else arms:
        scores = [results.scores(arm, name, plan.base.target, reference) for name in measures]
        if all(s is None for s in scores):
            continue
        words = (
            [*describe(plan.arms[arm], plan.stages(arm)), plan.labels(arm) or "as contoured"] if described else []
        )
        counted = next(s for s in scores if s is not None)
        cells = [_mean_of_seeds(s.values, name) if s else "–" for s, name in zip(scores, measures, strict=True)]
        held = counted.values[:, ~counted.is_empty].size  # what a case does not hold cannot be missed
        counts = [str(len(counted.seeds)), str(len(counted.cases)), f"{counted.n_missed} of {held}"]
        lines.append([arm, *words, *counts, *cells])
    repeats = "runs" if results.by_fold else "seeds"
    head = ["arm", *described_as, repeats, "cases", "missed", *titles]
    return _markdown(head, lines, left=1 + len(described_as)) if lines else ""


def _ablated(conclusions: Conclusions) -> list[str]:
    """Return the arms whose network is that of the main method: all of them, if there is none."""
    plan = conclusions.plan
    main = plan.content.primary
    networks = {arm: describe(plan.arms[arm], plan.stages(arm))[0] for arm in conclusions.results.arms}
    if main is None:
        return list(networks)
    own = describe(plan.arms[main.method], plan.stages(main.method))[0]
    return [arm for arm, network in networks.items() if network == own]


def _usual(conclusions: Conclusions) -> list[str]:
    """Return the arms to compare with, and the methods."""
    plan = conclusions.plan
    methods = {pair.method for pair in plan.content.pairs.values()}
    return [
        arm
        for arm in conclusions.results.arms
        if arm in methods
        or plan.stages(arm) == 1
        or plan.arms[arm].metric.mode in ("none", "offline")
        or plan.arms[arm].metric.weight == 0
    ]


def describe(config: TrainConfig, stages: int = 2) -> tuple[str, str, str]:
    """Return network, loss and metric learning of an arm in words."""
    segment, metric = config.segment, config.metric
    if stages == 1:
        steps = config.locate.spacing_mm
        spacing = " x ".join(f"{step:g}" for step in (steps if len(set(steps)) > 1 else steps[:1]))
        return f"U-Net, 3D, one stage at {spacing} mm", "Dice + cross-entropy", "–"
    network = f"{NETWORKS[segment.network]}, {'3D' if segment.spatial_dims == 3 else '2.5D'}"
    terms = (("Dice", segment.dice_weight), ("cross-entropy", segment.cross_entropy_weight))
    loss = " + ".join(name for name, weight in terms if weight > 0)
    if metric.mode == "none" or metric.weight == 0:
        return network, loss, "–"
    if metric.mode == "control":
        return network, loss, "control: cross-entropy on the sampled voxels"
    weights = {"triplets": metric.triplet_weight, "pairs": metric.pair_weight}
    tuples = " + ".join(name for name, weight in weights.items() if weight > 0)
    details = [tuples]
    if metric.mode == "online" and metric.sampler != "mixture":
        details.append(metric.sampler)
    if metric.mode == "online" and metric.taps != (0,):
        details.append(f"taps {', '.join(map(str, metric.taps))}")
    return network, loss, f"{metric.mode}: {', '.join(d for d in details if d)}"


def contrasts_table(compared: Iterable[Compared]) -> str:
    """Return comparisons, a line each."""
    lines, training = [], "seed"
    for one in compared:
        c = one.comparison
        training = c.training
        holm = "" if c.p_holm is None else p_value(c.p_holm)
        seeds = " ".join("–" if d is None else _signed(d, c.unit) for d in c.difference_of_seed)
        effect = "–" if c.d_z is None else f"{c.d_z:+.2f}".replace("-", "−")
        missed = f"{c.missed_a}, {c.missed_b}"
        lines.append(
            [
                one.contrast.title,
                DEFINITIONS[c.measure].heading,
                "↑" if c.better == "higher" else "↓",
                _number(c.mean_a, c.measure),
                _number(c.mean_b, c.measure),
                difference(c),
                p_value(c.p),
                holm,
                effect,
                f"{c.superiority:.2f}",
                seeds,
                missed,
            ]
        )
    head = ["B − A", "measure", "better", "A", "B", "difference (95 % interval)", "p", "p, Holm"]
    head += ["d_z", "superiority", f"difference of each {training}", "missed A, B"]
    return _markdown(head, lines, left=3) if lines else ""


def verdicts_table(judged: Sequence[Judged]) -> str:
    """Return what is concluded of every claim about every pair."""
    lines = []
    for one in judged:
        parts = "; ".join(f"{DEFINITIONS[name].heading}: {verdict.heading}" for name, verdict in one.parts)
        lines.append([f"({one.claim.letter}) {one.claim.text}", f"**{one.verdict.heading}**", parts])
    return _markdown(["claim", "verdict", "by measure"], lines, left=3) if lines else ""


def reasons_text(judged: Sequence[Judged]) -> str:
    """Return the reasons of every verdict, with the numbers."""
    paragraphs = []
    for one in judged:
        paragraphs.append(f"**({one.claim.letter}) {one.claim.text}: {one.verdict.heading}.**")
        reasons = [f"- *{verdict.heading}.* {' '.join(verdict.reasons)}" for _, verdict in one.parts]
        paragraphs.append("\n".join(reasons))
    return "\n\n".join(paragraphs)


def difference(c: Comparison) -> str:
    """Write a difference with its interval for people."""
    if c.difference is None:
        return "–"
    text = _signed(c.difference, c.unit)
    if c.interval is None:
        return text
    return f"{text} ({_signed(c.interval.low, c.unit)} to {_signed(c.interval.high, c.unit)})"


def p_value(p: float) -> str:
    """Write a p value for people."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _pairs_tables(conclusions: Conclusions, pairs: Sequence[str]) -> str:
    """Return a table for each of the pairs: its method against its baseline and its control, in every measure."""
    target = conclusions.plan.base.target
    parts = []
    for role in pairs:
        pair = conclusions.plan.content.pairs[role]
        roles = (role, f"{role} {CONTROL}")
        for reference in conclusions.results.cases:
            own = [
                c
                for c in conclusions.comparisons.compared
                if c.contrast.role in roles and c.reference == reference and c.structure in (target, None)
            ]
            if own:
                control = f", control {pair.control}" if pair.control else ""
                title = f"**{pair.method} against {pair.baseline}{control}; against the {reference}**"
                parts += [title, contrasts_table(own)]
    return "\n\n".join(parts)


def _signed(value: float, unit: str) -> str:
    """Write a signed number without its unit, which the heading has; percent as fine as percentage points."""
    return signed(value, "pp" if unit == "%" else unit).removesuffix("pp").removesuffix(unit).rstrip()


def _number(value: float | None, measure: str) -> str:
    """Write a value for people; smoothness finer than other measures, for its differences are small."""
    if value is None or measure not in SMOOTHNESS_NAMES:
        return number(value, DEFINITIONS[measure])
    return _signed(value, "%").removeprefix("+")


def _mean_of_seeds(values: FloatArray, measure: str) -> str:
    found = [row[~np.isnan(row)] for row in values]
    means = np.array([row.mean() for row in found if row.size])
    if not means.size:
        return "–"
    text = _number(float(means.mean()), measure)
    return f"{text} ± {_number(float(means.std(ddof=1)), measure)}" if means.size > 1 else text


def _markdown(head: Sequence[str], lines: Iterable[Sequence[str]], left: int) -> str:
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))
