"""What a department asks over time: how often is corrected, where, how much, by what, and whether it drifts."""

from __future__ import annotations

import itertools
import statistics
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from metricunet.ledger.control import BASELINE, GROUP, ControlChart, average_chart, share_chart
from metricunet.ledger.edits import HALVES, THIRDS, Edit
from metricunet.ledger.table import Case, Decided

#: The structure that is spoken of unless another is chosen, where it is there.
TARGET = "prostate"
#: What the parts of a prostate are called.
PROSTATE_PARTS = {"foot": "apex", "middle": "middle", "head": "base"}


@dataclass(frozen=True)
class Group:
    """How the cases of a group went; medians are over the structure's masks that were changed.

    Attributes:
        name: of the group.
        cases: how many there are.
        accepted: how many were accepted as they were.
        corrected: how many were corrected.
        rejected: how many were rejected.
        measured: in how many the structure's mask was accepted or corrected.
        changed: in how many of them it was changed.
        dice: median of the changed ones; None where there are none.
        added_path_length_mm: likewise.
        seconds: median time on the screen; None where nothing was decided.
    """

    name: str
    cases: int
    accepted: int
    corrected: int
    rejected: int
    measured: int
    changed: int
    dice: float | None
    added_path_length_mm: float | None
    seconds: float | None

    @property
    def decided(self) -> int:
        """How many were decided."""
        return self.accepted + self.corrected + self.rejected

    @property
    def corrected_share(self) -> float | None:
        """Share of the decided ones that were corrected or rejected."""
        return (self.corrected + self.rejected) / self.decided if self.decided else None


@dataclass(frozen=True)
class NamedChart:
    """A control chart and what it shows.

    Attributes:
        title: what it follows.
        unit: of its values; empty for a share.
        chart: the chart.
        turns: index of the first point of each model after the first, with the model's name.
        worse: in which direction it is bad news, `up` or `down`.
    """

    title: str
    unit: str
    chart: ControlChart
    turns: tuple[tuple[int, str], ...]
    worse: str

    @property
    def sentence(self) -> str:
        """Whether it drifts, in a sentence."""
        if self.chart.problem:
            return f"No limits yet: {self.chart.problem}."
        first = self.chart.first_outside
        if first is None:
            return f"Within the limits of the first {self.chart.baseline} cases."
        above = first.upper is not None and first.value > first.upper
        then = "still outside" if self.chart.is_outside_now else "within them again since"
        meaning = "more" if above == (self.worse == "up") else "less"
        return (
            f"{'Above' if above else 'Below'} the limits of the first {self.chart.baseline} cases "
            f"from {first.label} on ({meaning} was changed than at first), {then}."
        )


@dataclass(frozen=True)
class Overview:
    """All that the page and the terminal show.

    Attributes:
        structure: that is spoken of; empty where none has an edit.
        structures: all that have edits.
        models: of all cases.
        scanners: of all cases.
        total: of all chosen cases.
        by_month: of the chosen ones, by the month of the decision.
        by_model: likewise by model.
        by_scanner: likewise by scanner.
        where: part of the structure to its share of the volume that was changed; empty where nothing was.
        charts: of the chosen cases.
    """

    structure: str
    structures: tuple[str, ...]
    models: tuple[str, ...]
    scanners: tuple[str, ...]
    total: Group
    by_month: tuple[Group, ...]
    by_model: tuple[Group, ...]
    by_scanner: tuple[Group, ...]
    where: dict[str, float]
    charts: tuple[NamedChart, ...]


def overview_of(
    cases: Sequence[Case],
    *,
    structure: str = "",
    model: str = "",
    scanner: str = "",
    baseline: int = BASELINE,
    group: int = GROUP,
) -> Overview:
    """Sum up what is in a ledger.

    Each case counts once, by what was decided on it last.

    Args:
        cases: as `metricunet.ledger.table.read_cases` gives them.
        structure: that edits are told of; empty: the prostate, or the first there is.
        model: only cases of this model, in words as in `Overview.models`; empty for all.
        scanner: only cases of this scanner, likewise.
        baseline: cases that the limits of charts are made from.
        group: cases of a point of the chart of shares.
    """
    structures = tuple(sorted({name for case in cases if case.decided for name in case.decided.edits}))
    if structure not in structures:
        structure = TARGET if TARGET in structures else next(iter(structures), "")
    models = tuple(sorted({case.model for case in cases}))
    scanners = tuple(sorted({case.scanner for case in cases}))
    chosen = [c for c in cases if model in ("", c.model) and scanner in ("", c.scanner)]

    def split(key: Callable[[Case], str]) -> tuple[Group, ...]:
        names = sorted({key(case) for case in chosen})
        return tuple(
            _group(name, [case for case in chosen if key(case) == name], structure) for name in names if name
        )

    return Overview(
        structure=structure,
        structures=structures,
        models=models,
        scanners=scanners,
        total=_group("all", chosen, structure),
        by_month=split(lambda case: case.decided.decided[:7] if case.decided else ""),
        by_model=split(lambda case: case.model),
        by_scanner=split(lambda case: case.scanner),
        where=_where(chosen, structure),
        charts=_charts(chosen, structure, baseline, group),
    )


def part_name(part: str, structure: str) -> str:
    """Return what a part of a structure is called."""
    names = PROSTATE_PARTS if structure == TARGET else {}
    return names.get(part, part)


def is_changed(edit: Edit) -> bool:
    """Tell whether a reviewer changed the mask at all."""
    return edit.added_ml + edit.removed_ml > 0


def _group(name: str, cases: Sequence[Case], structure: str) -> Group:
    decided = [case.decided for case in cases if case.decided is not None]
    words = [one.decision for one in decided]
    edits = [one.edits[structure] for one in decided if structure in one.edits]
    changed = [edit for edit in edits if is_changed(edit)]
    return Group(
        name,
        len(cases),
        words.count("accepted"),
        words.count("corrected"),
        words.count("rejected"),
        len(edits),
        len(changed),
        _median([edit.dice for edit in changed]),
        _median([edit.added_path_length_mm for edit in changed]),
        _median([one.seconds for one in decided]),
    )


def _where(cases: Sequence[Case], structure: str) -> dict[str, float]:
    edits = [case.decided.edits[structure] for case in cases if case.decided and structure in case.decided.edits]
    total = sum(edit.added_ml + edit.removed_ml for edit in edits)
    if not total:
        return {}
    return {part: sum(getattr(edit, f"{part}_ml") for edit in edits) / total for part in (*THIRDS, *HALVES)}


def _charts(cases: Sequence[Case], structure: str, baseline: int, group: int) -> tuple[NamedChart, ...]:
    decided = [(case, case.decided) for case in cases if case.decided is not None]
    days = [one.decided[:10] for _, one in decided]
    shares = share_chart([one.decision != "accepted" for _, one in decided], days, group=group, baseline=baseline)
    # Where each point's cases end, so that the group is known in which another model begins.
    ends = list(itertools.accumulate(point.cases for point in shares.points))
    charts = [
        NamedChart(
            "Share of cases corrected or rejected",
            "",
            shares,
            tuple((bisect_right(ends, k), name) for k, name in _turns([case for case, _ in decided])),
            "up",
        )
    ]
    for title, unit, name, worse in (
        ("Added path length", "mm", "added_path_length_mm", "up"),
        ("Dice", "", "dice", "down"),
    ):
        values = [(case, one, _value(one, structure, name)) for case, one in decided]
        known = [(case, one, value) for case, one, value in values if value is not None]
        chart = average_chart(
            [value for *_, value in known], [one.decided[:10] for _, one, _ in known], baseline=baseline
        )
        of = f" of the {structure}" if structure else ""
        charts.append(
            NamedChart(
                f"{title}{of}, moving average", unit, chart, tuple(_turns([case for case, *_ in known])), worse
            )
        )
    return tuple(charts)


def _value(decided: Decided, structure: str, name: str) -> float | None:
    edit = decided.edits.get(structure)
    value: float | None = None if edit is None else getattr(edit, name)
    return value


def _turns(cases: Sequence[Case]) -> list[tuple[int, str]]:
    """Return where another model begins, and its name."""
    pairs = enumerate(itertools.pairwise(cases), start=1)
    return [(k, new.model) for k, (old, new) in pairs if old.model != new.model]


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
