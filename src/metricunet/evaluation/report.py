"""report.html: one file that needs nothing else, to read on a screen or on paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from metricunet import __version__
from metricunet.evaluation.cases import DEFAULT_LABELS, RecordedQuality
from metricunet.evaluation.figures import VIEW_MM, WINDOW_HU, Overlay
from metricunet.evaluation.measures import ALL_DEFINITIONS, CONTOUR_DEFINITIONS, DEFINITIONS, Definition
from metricunet.evaluation.plots import MARGIN, WIDTH, distribution
from metricunet.evaluation.summary import (
    CaseRow,
    Evaluation,
    counted,
    fault_line,
    heading,
    mean_and_std,
    number,
    what_failed,
)

if TYPE_CHECKING:
    from jinja2 import Template

#: Cases shown in pictures, the worst ones.
MAX_OVERLAYS = 12
#: Told apart by people with any colour vision, on grey and on white (Okabe and Ito's palette).
REFERENCE_COLOUR = "#56b4e9"
PREDICTION_COLOUR = "#e69f00"
#: The measures on the tiles at the top.
HEADLINES = ("dice", "asd_mm", "hd95_mm", "surface_dice_2mm")


@dataclass(frozen=True)
class Tile:
    """A number at the top of the report."""

    title: str
    value: str
    unit: str
    notes: tuple[str, ...]
    alarm: bool = False


@dataclass(frozen=True)
class CaseLine:
    """All structures of a case in the table, the worst one first."""

    case: str
    anchor: str | None
    quality: RecordedQuality
    has_mask: bool
    rows: tuple[CaseRow, ...]


def worst_first(evaluation: Evaluation) -> list[CaseRow]:
    """Return each case's worst structure, ordered by Dice from worst to best, then by name.

    Cases in which no structure is present in reference or prediction are left out.
    """
    worst: dict[str, CaseRow] = {}
    for row in evaluation.rows:
        if row.measures.dice is not None and (row.case not in worst or _rank(row) < _rank(worst[row.case])):
            worst[row.case] = row
    return sorted(worst.values(), key=lambda row: (_rank(row), row.case))


def render_report(
    evaluation: Evaluation, overlays: Sequence[Overlay], *, predictions: Path, references: Path
) -> str:
    """Return the report's HTML.

    Args:
        evaluation: what to report.
        overlays: pictures of some cases, in the order to show them.
        predictions: folder or file of the predictions; its name heads the report.
        references: folder or file of the references; the report names it, too.
    """
    template = report_template("metricunet.evaluation", mean_and_std=mean_and_std, counted=counted, number=number)
    summary = next(iter(evaluation.summary.values()))
    measured = tuple(d for d in ALL_DEFINITIONS if d.name in summary.measures)
    plots = [distribution(evaluation, definition) for definition in measured]
    return template.render(
        version=__version__,
        predictions=predictions.resolve().name,
        references=references.resolve().name,
        evaluation=evaluation,
        definitions=DEFINITIONS,
        contour_definitions=[d for d in measured if d in CONTOUR_DEFINITIONS],
        measured=measured,
        heading=heading,
        target=_target(evaluation),
        tiles=_tiles(evaluation),
        plots=[plot for plot in plots if plot is not None],
        plot_width=WIDTH,
        plot_margin=MARGIN,
        lines=_lines(evaluation, overlays),
        has_quality=any(quality != RecordedQuality() for quality in evaluation.quality.values()),
        overlays=overlays,
        row_of={(row.case, row.structure): row for row in evaluation.rows},
        failures={case: what_failed(evaluation, case) for case in evaluation.failed},
        faults=[fault_line(fault) for fault in evaluation.faults],
        unscored=sum(not fault.scored for fault in evaluation.faults),
        drawable=len(worst_first(evaluation)),
        view_mm=VIEW_MM,
        window_hu=WINDOW_HU,
        reference_colour=REFERENCE_COLOUR,
        prediction_colour=PREDICTION_COLOUR,
    )


def report_template(package: str, **filters: Callable[..., str]) -> Template:
    """Return the template of a package's report.html. What it does not know is an error, all text is escaped.

    Args:
        package: with a folder `templates` that holds report.html.j2.
        filters: by the names that the template gives them.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template("report.html.j2")


def _rank(row: CaseRow) -> float:
    return 2.0 if row.measures.dice is None else row.measures.dice


def _target(evaluation: Evaluation) -> str:
    """Return the structure that the tiles speak of: the prostate, or else the first."""
    wanted = next(iter(DEFAULT_LABELS))
    return wanted if wanted in evaluation.summary else next(iter(evaluation.summary))


def _tiles(evaluation: Evaluation) -> list[Tile]:
    summary = evaluation.summary[_target(evaluation)]
    tiles = [_measure_tile(evaluation, d) for name in HEADLINES for d in DEFINITIONS if d.name == name]
    notes: tuple[str, ...] = ("each counts as 0",) if summary.missed else ()
    if summary.true_absent:
        notes += (f"{summary.true_absent} truly absent",)
    if summary.not_contoured:
        notes += (f"{summary.not_contoured} not contoured",)
    held = summary.n - summary.false_positive
    tiles.append(Tile("Missed", str(summary.missed), f"of {held}", notes, alarm=summary.missed > 0))
    if summary.false_positive:
        without = summary.false_positive + summary.true_absent
        note = ("the reference holds none; Dice counts as 0",)
        tiles.append(Tile("Not in the reference", str(summary.false_positive), f"of {without}", note, alarm=True))
    verdicts = [q.verdict for q in evaluation.quality.values() if q.verdict is not None]
    if verdicts:
        doubtful = sum(v != "pass" for v in verdicts)
        counts = tuple(f"{verdicts.count(v)} {v}" for v in sorted(set(verdicts) - {"pass"}))
        tiles.append(Tile("Not passed", str(doubtful), f"of {len(verdicts)}", counts, alarm=doubtful > 0))
    return tiles


def _measure_tile(evaluation: Evaluation, definition: Definition) -> Tile:
    statistics = evaluation.summary[_target(evaluation)].measures[definition.name]
    return Tile(
        definition.full_title,
        number(statistics.mean, definition),
        definition.unit,
        (
            f"± {number(statistics.std, definition)} std",
            f"median {number(statistics.median, definition)}",
            f"n = {counted(statistics, definition)}",
        ),
    )


def _lines(evaluation: Evaluation, overlays: Sequence[Overlay]) -> list[CaseLine]:
    anchors = {overlay.case: f"case-{i}" for i, overlay in enumerate(overlays, start=1)}
    order = [row.case for row in worst_first(evaluation)]
    order += [case for case in evaluation.cases if case not in set(order)]
    rows: dict[str, list[CaseRow]] = {case: [] for case in order}
    for row in evaluation.rows:
        rows[row.case].append(row)
    return [
        CaseLine(
            case=case,
            anchor=anchors.get(case),
            quality=evaluation.quality[case],
            has_mask=case not in evaluation.unpredicted,
            rows=tuple(sorted(rows[case], key=_rank)),
        )
        for case in order
    ]
