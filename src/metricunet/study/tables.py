"""Tables of a study: every arm's measures, seeds kept apart, and the way from rows to paired statistics.

All is computed from the rows on disk, so a study that was stopped and went on ends with the same tables.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from metricunet.evaluation.measures import DEFINITIONS, Definition
from metricunet.evaluation.summary import Statistics, StructureSummary, counted, mean_and_std, number, summarise
from metricunet.study.score import StudyRow

TABLE_COLUMNS = (
    *("reference", "structure", "arm", "seed", "measure", "n", "missed", "mean", "std", "median"),
    "not_contoured",
)
#: What stands for the seed in the line over all of them.
ALL_SEEDS = "all"


@dataclass(frozen=True)
class ArmTable:
    """One structure of one arm against one reference.

    Attributes:
        arm: name.
        structure: name.
        of_seed: seed to its summary over the cases.
    """

    arm: str
    structure: str
    of_seed: dict[int, StructureSummary]

    def between_seeds(self, measure: str) -> tuple[float | None, float | None]:
        """Return mean and standard deviation (n - 1) of the seeds' means; None where there is none."""
        found = [s.measures[measure].mean for s in self.of_seed.values()]
        means = np.array([m for m in found if m is not None])
        if not means.size:
            return None, None
        return float(means.mean()), float(means.std(ddof=1)) if means.size > 1 else None


def arm_tables(rows: Iterable[StudyRow]) -> list[ArmTable]:
    """Summarise every arm and structure, in the order in which they first appear; folds are taken together."""
    grouped: dict[str, dict[int, list[StudyRow]]] = {}
    for row in rows:
        grouped.setdefault(row.arm, {}).setdefault(row.seed, []).append(row)
    tables = []
    for arm, by_seed in grouped.items():
        summaries = {seed: summarise(r.row for r in of_seed) for seed, of_seed in by_seed.items()}
        structures = dict.fromkeys(name for summary in summaries.values() for name in summary)
        tables += [
            ArmTable(arm, name, {seed: s[name] for seed, s in summaries.items() if name in s})
            for name in structures
        ]
    return tables


def paired_values(
    rows: Iterable[StudyRow], arm: str, structure: str, measure: str
) -> tuple[dict[tuple[int, str], float | None], frozenset[tuple[int, str]]]:
    """Return an arm's values of a measure by seed and case, and where the structure was missed.

    Cases in which the structure is neither there nor predicted, or was not contoured, have no value in any measure
    and are missed by nobody. Where several folds score one case, its value is the mean over those that have one,
    and it counts as missed if any of them missed it.

    Args:
        rows: of the whole study, against one reference.
        arm: whose.
        structure: which.
        measure: a name of `MEASURE_NAMES`.
    """
    found: dict[tuple[int, str], list[float]] = {}
    missed: set[tuple[int, str]] = set()
    for row in rows:
        if row.arm != arm or row.row.structure != structure:
            continue
        place = row.seed, row.row.case
        values = found.setdefault(place, [])
        if (value := row.row.measures.value(measure)) is not None:
            values.append(value)
        if row.row.measures.outcome == "missed":
            missed.add(place)
    return {p: float(np.mean(v)) if v else None for p, v in found.items()}, frozenset(missed)


def tables_csv(rows: Mapping[str, Sequence[StudyRow]]) -> str:
    """Return every number of the tables, a line each; blank where a number does not exist.

    Args:
        rows: whose contours to the rows against them.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(TABLE_COLUMNS)
    for reference, scored in rows.items():
        for table in arm_tables(scored):
            place = [reference, table.structure, table.arm]
            for seed, summary in table.of_seed.items():
                for name, s in summary.measures.items():
                    numbers = map(_number, (s.mean, s.std, s.median))
                    writer.writerow([*place, seed, name, s.n, s.missed, *numbers, summary.not_contoured])
            for d in DEFINITIONS:
                of_seeds = [s.measures[d.name] for s in table.of_seed.values()]
                mean, std = table.between_seeds(d.name)
                n, missed = sum(s.n for s in of_seeds), sum(s.missed for s in of_seeds)
                unknown = sum(s.not_contoured for s in table.of_seed.values())
                writer.writerow([*place, ALL_SEEDS, d.name, n, missed, _number(mean), _number(std), "", unknown])
    return text.getvalue()


def tables_text(
    name: str, rows: Mapping[str, Sequence[StudyRow]], measures: Sequence[str], notes: Sequence[str]
) -> str:
    """Return the tables in Markdown.

    Args:
        name: of the study.
        rows: whose contours to the rows against them.
        measures: the columns, names of `MEASURE_NAMES`.
        notes: what a reader of the tables has to know.
    """
    by_name = {d.name: d for d in DEFINITIONS}
    columns = [by_name[measure] for measure in measures]
    lines = [f"# {name}", ""]
    lines += [f"- {note}" for note in [*notes, *_notes()]] + [""]
    for reference, scored in rows.items():
        tables = arm_tables(scored)
        for structure in dict.fromkeys(table.structure for table in tables):
            own = [table for table in tables if table.structure == structure]
            lines += [f"## {structure}, against the {reference}", ""]
            if unknown := max(s.not_contoured for table in own for s in table.of_seed.values()):
                lines += [f"Not contoured, and so not scored, in {unknown} of the cases.", ""]
            lines += _markdown(own, columns)
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _notes() -> list[str]:
    return [
        "Seeds are kept apart: each line is one training, mean ± standard deviation over its cases. *All* is the "
        "mean of the seeds' means ± their standard deviation.",
        "A missed organ counts as 0 in ratios. It has no distances, whose means are over the rest; where any was "
        "missed, the number of cases stands in brackets.",
    ]


def _markdown(tables: Sequence[ArmTable], columns: Sequence[Definition]) -> list[str]:
    titles = [f"{d.title} [{d.unit}]" if d.unit else d.title for d in columns]
    lines = ["| " + " | ".join(["arm", "seed", "cases", "missed", *titles]) + " |"]
    lines.append("| --- | --- | ---: | ---: |" + " ---: |" * len(titles))
    for table in tables:
        for seed, summary in table.of_seed.items():
            cells = [_cell(summary.measures[d.name], d) for d in columns]
            lines.append(_line([table.arm, str(seed), str(summary.n), str(summary.missed), *cells]))
        if len(table.of_seed) > 1:
            cells = [_between(table, d) for d in columns]
            n, missed = (sum(getattr(s, kind) for s in table.of_seed.values()) for kind in ("n", "missed"))
            lines.append(_line([f"**{table.arm}**", "**all**", str(n), str(missed), *(f"**{c}**" for c in cells)]))
    return lines


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(statistics: Statistics, definition: Definition) -> str:
    text = mean_and_std(statistics, definition)
    return f"{text} ({counted(statistics, definition)})" if definition.is_distance and statistics.missed else text


def _between(table: ArmTable, definition: Definition) -> str:
    mean, std = table.between_seeds(definition.name)
    text = number(mean, definition, signed=True)
    return text if std is None else f"{text} ± {number(std, definition)}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"
