"""What a study came to as tables in Markdown, one for each subject."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from metricunet.evaluation.features import FEATURE_NAMES
from metricunet.evaluation.measures import MEASURE_NAMES, SIGNED
from metricunet.evaluation.smoothness import SMOOTHNESS_NAMES
from metricunet.evaluation.summary import number
from metricunet.study.claims import Judged
from metricunet.study.comparisons import ARM, CONTROL, Compared
from metricunet.study.conclusions import Conclusions
from metricunet.study.data import READER, TRUTH
from metricunet.study.results import DEFINITIONS
from metricunet.study.statistics import Comparison
from metricunet.study.verdict import signed
from metricunet.training.config import TrainConfig
from metricunet.volume import FloatArray

NETWORKS = {"unet": "U-Net", "fcn": "FCN", "vnet": "V-Net"}
#: Columns of the tables of arms.
SHOWN = tuple(name for name in MEASURE_NAMES if name not in SIGNED)
READER_SHOWN = ("dice", "asd_mm", "surface_dice_2mm")
#: Of the sections that follow a study's tables.
HEADINGS = {
    "smoothness": "Smoothness: excess over the true shape",
    "features": "Features near the surface, in the finest decoder map",
    "comparisons": "Comparisons: pairs",
    "arms": "Comparisons: other arms, exploratory",
    "verdicts": "Verdicts",
    "reasons": "Reasons",
}


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
        "reader": arms_table(conclusions, READER_SHOWN, READER) if READER in conclusions.results.rows else "",
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
        "why": reasons_text([one for one in conclusions.judged if one.place == "primary"]),
    }
    return {name: text for name, text in found.items() if text}


def report_text(conclusions: Conclusions) -> str:
    """Return what follows the tables of a study: measures beyond overlap, comparisons and verdicts."""
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
        conclusions: of the study.
        measures: the columns.
        reference: whose contours.
        arms: which; default: all.
        described: say of every arm what it is.
    """
    plan, results = conclusions.plan, conclusions.results
    titles = [_title(name) for name in measures]
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
        counts = [str(len(counted.seeds)), str(len(counted.cases)), f"{counted.n_missed} of {counted.values.size}"]
        lines.append([arm, *words, *counts, *cells])
    head = ["arm", *described_as, "seeds", "cases", "missed", *titles]
    return _table(head, lines, left=1 + len(described_as)) if lines else ""


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
    lines = []
    for one in compared:
        c = one.comparison
        holm = "" if c.p_holm is None else p_value(c.p_holm)
        seeds = " ".join("–" if d is None else _signed(d, c.unit) for d in c.difference_of_seed)
        effect = "–" if c.d_z is None else f"{c.d_z:+.2f}".replace("-", "−")
        missed = f"{c.missed_a}, {c.missed_b}"
        lines.append(
            [
                one.contrast.title,
                _title(c.measure),
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
    head += ["d_z", "superiority", "difference of each seed", "missed A, B"]
    return _table(head, lines, left=3) if lines else ""


def verdicts_table(judged: Sequence[Judged]) -> str:
    """Return what is concluded of every claim about every pair."""
    lines = []
    for one in judged:
        parts = "; ".join(f"{_title(name)}: {verdict.heading}" for name, verdict in one.parts)
        lines.append([f"({one.claim.letter}) {one.claim.text}", f"**{one.verdict.heading}**", parts])
    return _table(["claim", "verdict", "by measure"], lines, left=3) if lines else ""


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


def _pairs_tables(conclusions: Conclusions, places: Sequence[str]) -> str:
    """Return a table for each of the pairs: its method against its baseline and its control, in every measure."""
    target = conclusions.plan.base.target
    parts = []
    for place in places:
        pair = conclusions.plan.content.pairs[place]
        roles = (place, f"{place} {CONTROL}")
        for reference in conclusions.results.rows:
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


def _title(measure: str) -> str:
    definition = DEFINITIONS[measure]
    return f"{definition.title} [{definition.unit}]" if definition.unit else definition.title


def _table(head: Sequence[str], lines: Iterable[Sequence[str]], left: int) -> str:
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))
