"""From the measures of many cases to means, and to text and files that hold them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metricunet.evaluation.cases import RecordedQuality
from metricunet.evaluation.measures import (
    ALL_DEFINITIONS,
    CONTOUR_NAMES,
    DEFINITIONS,
    MEASURE_NAMES,
    Definition,
    Measures,
    RowOutcome,
)

CSV_COLUMNS: tuple[str, ...] = ("case", "structure", *MEASURE_NAMES)
#: The columns that an evaluation has beside these, at the end.
CONTOUR_COLUMNS: tuple[str, ...] = ("tolerance_mm", *CONTOUR_NAMES)


@dataclass(frozen=True)
class CaseRow:
    """One structure in one case: a row of cases.csv.

    Where the structure was not contoured in the reference, `contoured` is False and all measures are None.
    """

    case: str
    structure: str
    measures: Measures
    contoured: bool = True

    @property
    def outcome(self) -> RowOutcome:
        """Return what became of the structure."""
        return self.measures.outcome if self.contoured else "not_contoured"


@dataclass(frozen=True)
class Statistics:
    """One measure over the cases of one structure.

    Attributes:
        mean, median: over all values; None without values.
        std: standard deviation of the sample (n - 1 below the line); None with fewer than two values.
        n: cases for which the measure could exist: for distances, sensitivity, added path length and volume ratio
            those with a reference, for the other measures those with a reference or a prediction.
        missed: those of n whose reference is present and whose prediction is empty. They count as 0 in ratios,
            as minus the reference's volume in the volume difference and with the whole contour in the added path
            length. They have no distances, whose mean, std and median are over n - missed.
    """

    mean: float | None
    std: float | None
    median: float | None
    n: int
    missed: int


@dataclass(frozen=True)
class StructureSummary:
    """All measures of one structure, and the cases without any.

    Attributes:
        measures: the measures by their names.
        true_absent: cases in which the structure was rightly not predicted.
        not_contoured: cases whose reference says nothing of the structure; they count nowhere else.
        tolerance_mm: the tolerance of its measures of contour review; None where these were not measured.
    """

    measures: dict[str, Statistics]
    true_absent: int
    not_contoured: int = 0
    tolerance_mm: float | None = None

    @property
    def n(self) -> int:
        """Cases in which the reference or the prediction holds the structure."""
        return self.measures["dice"].n

    @property
    def missed(self) -> int:
        """Cases in which the reference holds the structure and the prediction does not."""
        return self.measures["dice"].missed

    @property
    def false_positive(self) -> int:
        """Cases in which the prediction holds the structure and the reference does not; none of them is missed."""
        return self.n - self.measures["sensitivity"].n

    def to_json(self) -> dict[str, Any]:
        """Return measure to statistics, and beside these `true_absent`, `not_contoured` and any `tolerance_mm`."""
        rest: dict[str, Any] = {"true_absent": self.true_absent, "not_contoured": self.not_contoured}
        if self.tolerance_mm is not None:
            rest["tolerance_mm"] = self.tolerance_mm
        return {name: asdict(s) for name, s in self.measures.items()} | rest


@dataclass(frozen=True)
class CaseFault:
    """What went wrong with one case, where the others were done.

    Attributes:
        case: its name.
        reason: one line.
        error: the exception as it was raised, with the lines of its traceback.
        scored: whether the case has its rows nevertheless: its picture failed, or one of several structures.
        structure: the structure that has no row; empty where the whole case, or its picture, failed.
    """

    case: str
    reason: str
    error: Exception
    scored: bool = False
    structure: str = ""


@dataclass(frozen=True)
class Evaluation:
    """What came out of comparing predictions with references.

    Attributes:
        rows: one row for each case and structure, ordered by case name, then by label.
        summary: the statistics of each structure.
        unpredicted: cases that have a reference and no predicted mask.
        unmatched: predictions that have no reference; they are not in the rows.
        quality: for each case that was scored what the predictor said of it.
        faults: cases, or structures of a case, that could not be scored, and cases whose picture could not be
            drawn. What was not scored is in no mean, and counts nowhere else.
        notes: sentences on what is not compared, and on what was odd in structure sets.
        model: the model file that was written with the scores in its card; None where none was asked for.
    """

    rows: tuple[CaseRow, ...]
    summary: dict[str, StructureSummary]
    unpredicted: tuple[str, ...]
    unmatched: tuple[str, ...]
    quality: dict[str, RecordedQuality]
    faults: tuple[CaseFault, ...] = ()
    model: Path | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        means = ((name, entry.measures["dice"].mean) for name, entry in self.summary.items())
        dice = (f"{name} {'none' if mean is None else f'{mean:.3f}'}" for name, mean in means)
        return f"Evaluation({len(self.cases)} cases, mean Dice: {', '.join(dice)})"

    @property
    def cases(self) -> tuple[str, ...]:
        """The names of all cases that were scored."""
        return tuple(self.quality)

    @property
    def failed(self) -> tuple[str, ...]:
        """Cases in which a structure of the reference was missed altogether, for lack of a mask or in it.

        A command that evaluates ends with status 1 if there are any, or any faults. A case without a mask whose
        reference is empty too has not failed.
        """
        missed = {row.case for row in self.rows if row.measures.outcome == "missed"}
        return tuple(case for case in self.cases if case in missed)


def summarise(
    rows: Iterable[CaseRow],
    definitions: Sequence[Definition] = DEFINITIONS,
    tolerances_mm: Mapping[str, float] | None = None,
) -> dict[str, StructureSummary]:
    """Summarise every structure, in the order in which they first appear.

    Args:
        rows: one for each case and structure.
        definitions: the measures to summarise.
        tolerances_mm: structure to the tolerance of its measures of contour review.
    """
    by_structure: dict[str, list[CaseRow]] = {}
    for row in rows:
        by_structure.setdefault(row.structure, []).append(row)
    return {
        structure: StructureSummary(
            measures={d.name: _statistics(d, [row.measures for row in own]) for d in definitions},
            true_absent=sum(row.outcome == "true_absent" for row in own),
            not_contoured=sum(row.outcome == "not_contoured" for row in own),
            tolerance_mm=(tolerances_mm or {}).get(structure),
        )
        for structure, own in by_structure.items()
    }


def _statistics(definition: Definition, measured: list[Measures]) -> Statistics:
    values = np.array([v for m in measured if (v := m.value(definition.name)) is not None])
    missed = sum(m.outcome == "missed" for m in measured)
    return Statistics(
        mean=float(values.mean()) if values.size else None,
        std=float(values.std(ddof=1)) if values.size > 1 else None,
        median=float(np.median(values)) if values.size else None,
        n=values.size + (missed if definition.is_distance else 0),
        missed=missed,
    )


def cases_csv(rows: Iterable[CaseRow], more: Sequence[str] = ()) -> str:
    """Return cases.csv: a line for each row, blank where a measure has no value.

    Args:
        rows: what to write.
        more: columns after `CSV_COLUMNS`, such as `CONTOUR_COLUMNS`.
    """
    columns = (*CSV_COLUMNS, *more)
    return table_csv(
        columns,
        ([row.case, row.structure, *(csv_number(row.measures.value(n)) for n in columns[2:])] for row in rows),
    )


def table_csv(columns: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Return a table as CSV.

    Args:
        columns: the heading.
        lines: values in the order of the columns; None is blank.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(lines)
    return text.getvalue()


def csv_number(value: float | None) -> str:
    """Write a value for programs, with six decimals; blank where there is none, or none that is finite."""
    return "" if value is None or not math.isfinite(value) else f"{value:.6f}"


def number(value: float | None, definition: Definition, *, signed: bool = False) -> str:
    """Write a value for people: three decimals for a ratio, two for mm, one for mL; a dash for None.

    Args:
        value: value of the measure, or its mean, std or median.
        definition: the measure whose value it is.
        signed: write the sign of a difference, plus included.
    """
    if value is None or not math.isfinite(value):
        return "–"
    decimals = 3 if definition.is_ratio else 2 if definition.is_distance else 1
    text = f"{value:+.{decimals}f}" if signed and definition.is_signed else f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def mean_and_std(statistics: Statistics, definition: Definition) -> str:
    """Write mean ± standard deviation for people; the mean alone where one value has no deviation."""
    mean = number(statistics.mean, definition, signed=True)
    if statistics.std is None:
        return mean
    return f"{mean} ± {number(statistics.std, definition)}"


def counted(statistics: Statistics, definition: Definition) -> str:
    """Write over how many cases a mean is: `7`, or `6 of 7` where missed ones have no distance."""
    if definition.is_distance and statistics.missed:
        return f"{statistics.n - statistics.missed} of {statistics.n}"
    return str(statistics.n)


def heading(definition: Definition, summary: StructureSummary) -> str:
    """Return the heading of a measure, with the structure's tolerance where it depends on that."""
    depends = definition.name in ("added_path_length_mm", "surface_dice")
    unit = f" [{definition.unit}]" if definition.unit else ""
    if not depends or summary.tolerance_mm is None:
        return f"{definition.full_title}{unit}"
    return f"{definition.full_title.removesuffix(', own tolerance')}, tolerance {summary.tolerance_mm:g} mm{unit}"


def what_failed(evaluation: Evaluation, case: str) -> str:
    """Say what is missing in a case that failed."""
    if case in evaluation.unpredicted:
        return "no mask"
    missed = [r.structure for r in evaluation.rows if r.case == case and r.measures.outcome == "missed"]
    return f"no {', '.join(missed)} in the mask"


def fault_line(fault: CaseFault) -> str:
    """Say what became of a case in which something went wrong."""
    if fault.structure:
        what = f"{fault.structure} failed, not scored"
    else:
        what = "scored, but its picture could not be drawn" if fault.scored else "failed, not scored"
    return f"{fault.case}: {what}: {fault.reason}"


def format_summary(evaluation: Evaluation) -> str:
    """Return a short table for the terminal, with every case that failed named below it."""
    lines: list[str] = []
    for structure, summary in evaluation.summary.items():
        counts = [_plural(summary.n, "case"), f"{summary.missed} missed"]
        if summary.false_positive:
            counts.append(f"{summary.false_positive} not in the reference")
        if summary.true_absent:
            counts.append(f"{summary.true_absent} truly absent")
        if summary.not_contoured:
            counts.append(f"{summary.not_contoured} not contoured")
        lines += [f"{structure}: {', '.join(counts)}", ""]
        table = [("", "mean ± std", "median", "cases")]
        for d in (d for d in ALL_DEFINITIONS if d.name in summary.measures):
            s = summary.measures[d.name]
            table.append(
                (heading(d, summary), mean_and_std(s, d), number(s.median, d, signed=True), counted(s, d))
            )
        widths = [max(len(line[column]) for line in table) for column in range(4)]
        for line in table:
            cells = [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
            lines.append(("  " + "   ".join(cells)).rstrip())
        lines.append("")
    for label, names in (
        ("Missed", [f"{case} ({what_failed(evaluation, case)})" for case in evaluation.failed]),
        ("Predictions without a reference, not counted", evaluation.unmatched),
    ):
        if names:
            lines.append(f"{label}: {', '.join(names)}")
    lines += [fault_line(fault) for fault in evaluation.faults]
    lines += [f"note: {note}" for note in evaluation.notes]
    if any(not fault.scored for fault in evaluation.faults):
        lines.append(f"All numbers are over the {_plural(len(evaluation.cases), 'case')} that could be scored.")
    return "\n".join(lines).rstrip() + "\n"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
