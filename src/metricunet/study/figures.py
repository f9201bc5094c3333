"""Pictures of what a study came to, drawn from its tables alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metricunet.evaluation.features import FEATURE_NAMES
from metricunet.evaluation.smoothness import SMOOTHNESS_NAMES
from metricunet.files.atomic import written_whole
from metricunet.study.comparisons import ARM, CONTROL, Compared
from metricunet.study.data import TRUTH
from metricunet.study.results import DEFINITIONS, better_of
from metricunet.study.verdicts import Conclusions
from metricunet.volume import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURES = DIFFERENCES, ARMS, SMOOTHNESS, FEATURES = "differences.png", "arms.png", "smoothness.png", "features.png"
#: Told apart by people with any colour vision (Okabe and Ito's palette).
BETTER, WORSE, NEUTRAL, SEED, PAIR = "#009e73", "#d55e00", "#7f7f7f", "#56b4e9", "#0072b2"
DPI = 110
#: Panels beside each other in the picture of all comparisons.
ARM_COLUMNS = 4
#: An axis of differences reaches this many times as far as this share of them, and no further.
OUTER, USUAL_SHARE = 2.0, 0.97
#: The same where arms lie side by side, of which a few may be far off: of all intervals, and of all cases.
USUAL_ARMS, USUAL_CASES = 0.75, 0.9
#: Points of one line of cases lie in a band of this height.
SPREAD = 0.5


def draw_figures(conclusions: Conclusions, folder: Path) -> tuple[Path, ...]:
    """Draw the pictures for which there are numbers, and return their files.

    `differences.png`: what every case gains in each pair; `arms.png`: every comparison with its interval;
    `smoothness.png` and `features.png`: how the cases of each arm are spread.

    Args:
        conclusions: of the study.
        folder: for the pictures.
    """
    primary = conclusions.plan.content.measures.primary
    drawn = [
        _differences(conclusions, primary, folder / DIFFERENCES),
        _arms(conclusions, (*primary, *SMOOTHNESS_NAMES, *FEATURE_NAMES), folder / ARMS),
        _spread(conclusions, SMOOTHNESS_NAMES, folder / SMOOTHNESS, "as smooth as the true shape"),
        _spread(conclusions, FEATURE_NAMES, folder / FEATURES, None),
    ]
    return tuple(path for path in drawn if path is not None)


def _differences(conclusions: Conclusions, measures: Sequence[str], path: Path) -> Path | None:
    """Draw each pair's differences, a bar a case and a point a seed, from the worst case to the best."""
    target = conclusions.plan.base.target
    pairs = conclusions.plan.content.pairs
    roles = [role for pair in pairs for role in (pair, f"{pair} {CONTROL}")]
    rows: list[list[Compared]] = []
    told: set[tuple[str, str]] = set()
    for role in roles:
        asked = [conclusions.comparisons.find(role, measure, target) for measure in measures]
        found = [one for one in asked if one is not None]
        if len(found) == len(measures) and (key := (found[0].contrast.arm_a, found[0].contrast.arm_b)) not in told:
            told.add(key)
            rows.append(found)
    if not rows:
        return None
    figure = _figure(4.6 * len(measures), 2.5 * len(rows))
    panels = figure.subplots(len(rows), len(measures), squeeze=False)
    for row, across in zip(rows, panels, strict=True):
        for one, panel in zip(row, across, strict=True):
            _sorted_cases(panel, one)
    _save(figure, path)
    return path


def _sorted_cases(panel: Axes, one: Compared) -> None:
    c = one.comparison
    difference = _aligned(one)
    counts = np.count_nonzero(~np.isnan(difference), axis=0)
    mean = np.where(counts > 0, np.nansum(difference, axis=0) / np.maximum(counts, 1), np.nan)
    order = np.argsort(c.sign * np.where(counts > 0, mean, 0.0), kind="stable")
    order = order[counts[order] > 0]
    ranks = np.arange(len(order))
    colours = [BETTER if c.sign * v > 0 else WORSE if c.sign * v < 0 else NEUTRAL for v in mean[order]]
    panel.bar(ranks, mean[order], width=1.0, color=colours, alpha=0.55, linewidth=0)
    for row in difference:
        panel.plot(ranks, row[order], ".", markersize=2.5, color="black", alpha=0.35, markeredgewidth=0)
    panel.axhline(0, color="black", linewidth=0.8)
    if c.difference is not None:
        panel.axhline(c.difference, color=PAIR, linewidth=1.4)
        if c.interval is not None:
            panel.axhspan(c.interval.low, c.interval.high, color=PAIR, alpha=0.18, linewidth=0)
    panel.set_title(one.contrast.title, fontsize=9)
    unit = f" [{c.unit}]" if c.unit else ""
    panel.set_ylabel(
        f"difference in {c.title}{unit},\n{'above' if c.sign > 0 else 'below'} 0 is better", fontsize=8
    )
    without = len(mean) - len(order)
    lost = f"; {without} without a value in both" if without else ""
    missed = f"; missed: {c.missed_a} and {c.missed_b}" if c.missed_a or c.missed_b else ""
    panel.set_xlabel(
        f"{len(order)} cases, worst first{lost}{missed}\nline: mean and 95 % interval; points: {c.training}s",
        fontsize=8,
    )
    panel.set_xticks([])
    panel.margins(x=0.01)
    _cut_off(panel, mean[order], difference[:, order])
    _bare(panel)


def _cut_off(panel: Axes, mean: FloatArray, difference: FloatArray) -> None:
    """Keep far cases, such as missed ones, from flattening all others: those beyond the frame are marked."""
    if not len(mean):
        return
    reach = OUTER * float(np.nanquantile(np.abs(difference), USUAL_SHARE))
    if reach <= 0 or np.nanmax(np.abs(difference)) <= reach:
        return
    panel.set_ylim(-reach, reach)
    for rank, value in enumerate(mean):
        if abs(value) > reach:
            above = 1 if value > 0 else -1
            panel.plot([rank], [0.94 * above * reach], "^" if above > 0 else "v", color="black", markersize=5)
            panel.annotate(
                f"{value:+.2f}",
                (rank, 0.94 * above * reach),
                xytext=(6 if rank < len(mean) / 2 else -6, 0),
                textcoords="offset points",
                ha="left" if rank < len(mean) / 2 else "right",
                va="center",
                fontsize=7,
            )


def _cut_sideways(panel: Axes, means: Mapping[int, float], values: FloatArray, usual: float) -> None:
    """Keep one arm that is far off from flattening all others: means beyond the frame are marked with their value.

    Args:
        panel: to cut.
        means: line to mean.
        values: all that is drawn.
        usual: share of them that the frame is made for.
    """
    if not len(values):  # such as a surface distance where no arm found anything
        return
    low, high = float(np.min(values)), float(np.max(values))
    reach = OUTER * float(np.quantile(np.abs(values), usual))
    if reach <= 0 or max(-low, high) <= reach:
        return
    left, right = max(low, -reach), min(high, reach)
    room = 0.04 * (right - left)
    panel.set_xlim(left - room, right + room)
    for y, mean in means.items():
        if left - room <= mean <= right + room:
            continue
        edge, marker, side = (right, ">", -1) if mean > right else (left, "<", 1)
        panel.plot([edge], [y], marker, color="black", markersize=5)
        panel.annotate(
            f"{mean:+.2f}".replace("-", "−"),
            (edge, y),
            xytext=(6 * side, 0),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=7,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )


def _arms(conclusions: Conclusions, measures: Sequence[str], path: Path) -> Path | None:
    """Draw every comparison with its interval, a line for each two arms."""
    target = conclusions.plan.base.target
    told: dict[tuple[str, str], dict[str, Compared]] = {}
    for one in conclusions.comparisons.compared:
        if one.reference == TRUTH and one.structure in (target, None) and one.measure in measures:
            told.setdefault((one.contrast.arm_a, one.contrast.arm_b), {}).setdefault(one.measure, one)
    if not told:
        return None
    shown = [m for m in measures if any(m in line for line in told.values())]
    columns = min(ARM_COLUMNS, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = _figure(1.8 + 2.9 * columns, 0.5 + lines * (0.8 + 0.3 * len(told)))
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for panel in grid.flat[len(shown) :]:
        panel.set_axis_off()
    for measure, panel in zip(shown, grid.flat, strict=False):
        panel.axvline(0, color="black", linewidth=0.8)
        for y, line in enumerate(told.values()):
            if measure in line:
                _interval(panel, y, line[measure])
        own = [(y, line[measure].comparison) for y, line in enumerate(told.values()) if measure in line]
        means = {y: c.difference for y, c in own if c.difference is not None}
        bounds = [b for _, c in own if c.interval is not None for b in (c.interval.low, c.interval.high)]
        _cut_sideways(panel, means, np.array([*bounds, *means.values()]), USUAL_ARMS)
        d = DEFINITIONS[measure]
        better = "right" if better_of(measure) == "higher" else "left"
        panel.set_xlabel(f"{d.heading}, better to the {better}", fontsize=8)
        panel.locator_params(axis="x", nbins=5)
        _bare(panel)
        panel.tick_params(axis="y", length=0)
    titles = [next(iter(line.values())).contrast.title for line in told.values()]
    grid[0, 0].set_yticks(range(len(told)), titles)
    grid[0, 0].set_ylim(len(told) - 0.5, -0.5)
    figure.suptitle("Difference of two arms: mean, 95 % interval over cases and seeds, and each seed", fontsize=9)
    _save(figure, path)
    return path


def _interval(panel: Axes, y: int, one: Compared) -> None:
    c = one.comparison
    colour = NEUTRAL if one.contrast.role == ARM else PAIR
    seeds = [d for d in c.difference_of_seed if d is not None]
    panel.plot(seeds, [y] * len(seeds), "|", color=SEED, markersize=9, markeredgewidth=1.5)
    if c.difference is not None:
        panel.plot([c.difference], [y], "o", color=colour, markersize=5)
        if c.interval is not None:
            panel.plot([c.interval.low, c.interval.high], [y, y], color=colour, linewidth=1.8)


def _spread(conclusions: Conclusions, measures: Sequence[str], path: Path, zero: str | None) -> Path | None:
    """Draw how the cases of each arm are spread: a point a case (mean of its seeds), quartiles and mean.

    Args:
        conclusions: of the study.
        measures: a panel each, but for those without any value.
        path: of the PNG.
        zero: what a value of 0 means, if that is worth a line.
    """
    target = conclusions.plan.base.target
    values: dict[str, dict[str, FloatArray]] = {}
    for arm in conclusions.results.arms:
        for measure in measures:
            scores = conclusions.results.scores(arm, measure, target)
            if scores is not None and (of_case := _case_means(scores.values)).size:
                values.setdefault(arm, {})[measure] = of_case
    if not values:
        return None
    shown = [measure for measure in measures if any(measure in own for own in values.values())]
    figure = _figure(1.6 + 3.0 * len(shown), 1.2 + 0.5 * len(values))
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for measure, panel in zip(shown, panels, strict=True):
        if zero is not None:
            panel.axvline(0, color=WORSE, linewidth=1.0, linestyle="--")
        for y, own in enumerate(values.values()):
            if measure in own:
                _strip(panel, y, own[measure])
        of_measure = {y: own[measure] for y, own in enumerate(values.values()) if measure in own}
        means = {y: float(v.mean()) for y, v in of_measure.items()}
        _cut_sideways(panel, means, np.concatenate([*of_measure.values()]), USUAL_CASES)
        panel.set_xlabel(DEFINITIONS[measure].heading, fontsize=8)
        _bare(panel)
        panel.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(values)), list(values))
    panels[0].set_ylim(len(values) - 0.5, -0.5)
    line = f"; dashed: {zero}" if zero is not None else ""
    figure.suptitle(f"A point a case, mean of its seeds; bar: quartiles; diamond: mean{line}", fontsize=9)
    _save(figure, path)
    return path


def _strip(panel: Axes, y: int, values: FloatArray) -> None:
    # Neighbours in rank lie apart (golden-ratio sequence).
    apart = (np.arange(len(values)) * 0.6180339887498949 % 1 - 0.5) * SPREAD
    panel.plot(np.sort(values), y + apart, ".", color=SEED, markersize=4, alpha=0.7, markeredgewidth=0)
    first, middle, third = np.percentile(values, (25, 50, 75))
    panel.plot([first, third], [y, y], color=PAIR, linewidth=3.5, solid_capstyle="butt", alpha=0.8)
    panel.plot([middle], [y], "|", color="white", markersize=5, markeredgewidth=1.2)
    panel.plot([values.mean()], [y], "D", color="black", markersize=4)


def _case_means(values: FloatArray) -> FloatArray:
    """Return the mean of each case over the seeds that have a value; cases without any are left out."""
    found = ~np.isnan(values)
    counts = found.sum(axis=0)
    sums = np.where(found, values, 0.0).sum(axis=0)
    return np.asarray(sums[counts > 0] / counts[counts > 0], dtype=np.float64)


def _aligned(one: Compared) -> FloatArray:
    """Return B - A [seeds, cases] of the seeds that both arms have, in the order of A's cases."""
    seeds, cases = one.comparison.seeds, one.a.cases
    a, b = (
        s.values[np.ix_([s.seeds.index(seed) for seed in seeds], [s.cases.index(case) for case in cases])]
        for s in (one.a, one.b)
    )
    return np.asarray(b - a, dtype=np.float64)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=DPI)


def _bare(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)


def _save(figure: Figure, path: Path) -> None:
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png")
