"""What a study file says beforehand of its outcome: when to stop early, and what is to be shown.

Both look at the target, in the first primary measure, against the truth. They are written into the tables,
whatever they come to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from metricunet.cohort.splits import Fold
from metricunet.study.comparisons import CONTROL
from metricunet.study.data import TRUTH
from metricunet.study.design import FutilityRule, Study
from metricunet.study.results import DEFINITIONS, Results, Row, better_of
from metricunet.study.statistics import compare
from metricunet.study.verdicts import Conclusions, signed


@dataclass(frozen=True)
class Finding:
    """What a rule to stop by came to.

    Attributes:
        stops: whether the study stops.
        text: the rule and what was found, for the tables.
    """

    stops: bool
    text: str


def rounds(plan: Study, folds: Sequence[Fold]) -> list[tuple[Fold, ...]]:
    """Part the folds where a rule looks at what was found: what is run between two looks."""
    ends = sorted({rule.after for rule in plan.content.futility if rule.after < len(folds)} | {len(folds)})
    return [tuple(folds[begin:end]) for begin, end in zip([0, *ends], ends, strict=False)]


def look(plan: Study, rule: FutilityRule, rows: Iterable[Row]) -> Finding:
    """Apply a rule to the first replicates of a study.

    Args:
        plan: the study file.
        rule: one of its rules.
        rows: rows against the truth of the runs that are finished; those of later replicates are left out.
    """
    measure, unit = _measure(plan)
    first = [row for row in rows if row.fold in plan.folds[: rule.after]]
    results = Results({TRUTH: first}, [], [], replicates=True)
    found, futile, known = [], [], []
    for baseline, method in _pairs(plan, rule):
        benefit = _benefit(plan, results, baseline, method)
        against = f"{method} over {baseline}"
        found.append(f"{against} {'not known' if benefit is None else signed(benefit, unit, rule.below)}")
        if benefit is not None:
            known.append(benefit)
            if benefit < rule.below:
                futile.append(against)
    said = (
        f"Rule to stop by, from the study file: after {_counted(rule.after)}, if the mean benefit in {measure} "
        f"is below {signed(rule.below, unit, *known)}. Found: {', '.join(found)}. "
    )
    if futile:
        return Finding(True, f"{said}**The study stopped there**, for {' and '.join(futile)}.")
    return Finding(False, f"{said}The study went on.")


def success_text(conclusions: Conclusions, findings: Sequence[Finding] = ()) -> str | None:
    """Say whether the study showed what its file wanted; None where the file wants nothing.

    Nothing is judged before all runs of the primary arms are done, in every replicate: who looks again and again
    finds what he looks for by chance.

    Args:
        conclusions: what the study came to, as far as its runs go.
        findings: what the rules to stop by came to.
    """
    plan, comparisons = conclusions.plan, conclusions.comparisons
    wanted, pair = plan.content.success, plan.content.primary
    if wanted is None or pair is None:
        return None
    measure, unit = _measure(plan)
    name = plan.content.measures.primary[0]
    roles = ("primary", f"primary {CONTROL}")
    main, control = (comparisons.find(role, name, plan.base.target) for role in roles)
    said = (
        f"Success, from the study file: a mean benefit in {measure} of {signed(wanted.over_baseline, unit)} or "
        f"more of {pair.method} over {pair.baseline}, and a 95 % interval above 0 over {pair.control}. "
    )
    if any(finding.stops for finding in findings):
        return f"{said}**Not met**: the study stopped before."
    missing = _missing_runs(conclusions, pair.arms)
    if missing:
        are = "is" if len(missing) == 1 else "are"
        lacking = f"{_counted(len(missing), 'run')} of {', '.join(pair.arms)} {are} missing"
        done = len(plan.folds) - len({fold for _, fold, _ in missing})
        of_all = "" if plan.replicates is None else f"{done} of {plan.replicates} replicates are done, and "
        return f"{said}**Not judged yet**: {of_all}{lacking}."
    if (
        main is None
        or control is None
        or main.comparison.difference is None
        or control.comparison.interval is None
    ):
        return f"{said}**Not known**: there are too few values for it."
    benefit = main.comparison.sign * main.comparison.difference
    interval = control.comparison.interval.scaled(control.comparison.sign)
    met = benefit >= wanted.over_baseline and interval.low > 0
    ends = f"{signed(interval.low, unit, 0.0)} to {signed(interval.high, unit)}"
    repeats = _counted(main.comparison.repeats, main.comparison.repeated)
    over = signed(benefit, unit, wanted.over_baseline)
    return f"{said}Found in {repeats}: {over}, and {ends}: **{'met' if met else 'not met'}**."


def _missing_runs(conclusions: Conclusions, arms: Sequence[str]) -> set[tuple[str, Fold, int]]:
    """Return the runs of some arms that the study file asks for and the tables do not hold: arm, fold, seed."""
    plan = conclusions.plan
    wanted = {(arm, fold, seed) for arm in arms for fold in plan.folds for seed in plan.seeds(arm)}
    return wanted - {(row.arm, row.fold, row.seed) for row in conclusions.results.cases[TRUTH]}


def _counted(count: int, noun: str = "replicate") -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _measure(plan: Study) -> tuple[str, str]:
    """Return title and unit of the measure that rules look at."""
    definition = DEFINITIONS[plan.content.measures.primary[0]]
    return definition.title, definition.unit


def _pairs(plan: Study, rule: FutilityRule) -> list[tuple[str, str]]:
    """Return the arms that a rule looks at, the one to beat first."""
    if rule.baseline is not None and rule.method is not None:
        return [(rule.baseline, rule.method)]
    pair = plan.content.primary
    assert pair is not None
    return [(arm, pair.method) for arm in (pair.baseline, pair.control) if arm is not None]


def _benefit(plan: Study, results: Results, baseline: str, method: str) -> float | None:
    """Return the mean benefit over the runs that both arms have; None without any."""
    name = plan.content.measures.primary[0]
    a, b = (results.scores(arm, name, plan.base.target) for arm in (baseline, method))
    if a is None or b is None or not set(a.seeds) & set(b.seeds) or set(a.cases) != set(b.cases):
        return None
    found = compare(a, b, DEFINITIONS[name], better_of(name))
    return None if found.difference is None else found.sign * found.difference
