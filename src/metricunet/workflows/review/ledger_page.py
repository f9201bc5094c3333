"""The page of the ledger: tables and control charts, drawn here, so that the browser runs no script for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from metricunet.ledger import Ledger
from metricunet.ledger.control import BASELINE, GROUP, LEAST_BASELINE
from metricunet.ledger.edits import HALVES, THIRDS
from metricunet.ledger.overview import NamedChart, Overview, overview_of, part_name
from metricunet.ledger.table import read_cases

if TYPE_CHECKING:
    from jinja2 import Template

#: Sides of a chart in its user units, and the room for its axes.
WIDTH, HEIGHT = 900.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 12.0, 14.0, 26.0
#: A baseline that somebody asks for is no longer than this.
MOST_BASELINE = 10_000
#: Labels along the time axis.
DATES = 6
#: Heights of a value axis are chosen of these, times a power of ten.
STEPS = (1.0, 2.0, 5.0)


@dataclass(frozen=True)
class Dot:
    """A point of a chart: where it is, how it looks and what to say of it."""

    x: float
    y: float
    kind: str
    text: str


@dataclass(frozen=True)
class Drawing:
    """A control chart in the user units of its picture. Lines are lists of `x,y`."""

    title: str
    sentence: str
    drifts: bool
    dots: tuple[Dot, ...]
    line: str
    limits: tuple[str, ...]
    centre_y: float | None
    ticks: tuple[tuple[float, str], ...]
    dates: tuple[tuple[float, str], ...]
    turns: tuple[tuple[float, str], ...]
    baseline_x: float | None


@dataclass(frozen=True)
class Choice:
    """A link that chooses what is shown."""

    name: str
    address: str
    chosen: bool


def render_ledger(ledger: Ledger, query: Mapping[str, str]) -> str:
    """Return the page of a ledger.

    Args:
        ledger: the ledger.
        query: what is asked for: `structure`, `model`, `scanner` (in words) and `baseline`; what is not known is
            passed over.

    Raises:
        InputError: the ledger cannot be read.
    """
    asked = {name: query.get(name, "") for name in ("structure", "model", "scanner")}
    baseline = _whole(query.get("baseline", ""), BASELINE)
    cases = read_cases(ledger)
    everything = overview_of(cases)
    for name, known in (("model", everything.models), ("scanner", everything.scanners)):
        if asked[name] not in known:
            asked[name] = ""
    overview = overview_of(
        cases, structure=asked["structure"], model=asked["model"], scanner=asked["scanner"], baseline=baseline
    )
    words = {**asked, "structure": overview.structure}
    return _template().render(
        problem="",
        overview=overview,
        drawings=[draw(chart) for chart in overview.charts],
        choices={
            "Structure": _choices("structure", overview.structures, words, baseline, ""),
            "Model": _choices("model", everything.models, words, baseline, "all"),
            "Scanner": _choices("scanner", everything.scanners, words, baseline, "all"),
            "Baseline": [
                Choice(f"{n} cases", _address({**words, "baseline": str(n)}), n == baseline)
                for n in sorted({20, BASELINE, 100, baseline})
            ],
        },
        thirds=_parts(overview, THIRDS),
        halves=_parts(overview, HALVES),
        group=GROUP,
        width=WIDTH,
        height=HEIGHT,
        edges=(LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM),
    )


def render_no_ledger(problem: str) -> str:
    """Return the page that says why there is no ledger to see."""
    return _template().render(problem=problem)


def draw(named: NamedChart) -> Drawing:
    """Return a control chart as it is drawn."""
    chart, points = named.chart, named.chart.points
    values = [v for p in points for v in (p.value, p.lower, p.upper) if v is not None]
    low, high, step = _axis(min(values, default=0.0), max(values, default=1.0), is_share=not named.unit)
    digits = 0 if step >= 1 else len(f"{step:.6f}".rstrip("0").partition(".")[2])

    def x(k: float) -> float:
        return LEFT + (k + 0.5) * (WIDTH - LEFT - RIGHT) / max(1, len(points))

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    dots = tuple(
        Dot(
            x(k),
            y(point.value),
            "outside" if point.is_outside else "known" if point.in_baseline else "inside",
            f"{point.label}: {point.value:.3f}"
            + (
                ""
                if point.lower is None or point.upper is None
                else f" (limits {point.lower:.3f} to {point.upper:.3f})"
            )
            + (f", {point.cases} cases" if point.cases > 1 else ""),
        )
        for k, point in enumerate(points)
    )
    limits = []
    for name in ("lower", "upper"):
        at = [(k, limit) for k, point in enumerate(points) if (limit := getattr(point, name)) is not None]
        # Limits hold for the whole width of a point.
        limits.append(_line([(x(k + side), y(limit)) for k, limit in at for side in (-0.5, 0.5)]))
    stride = max(1, -(-len(points) // DATES))
    judged = next((k for k, point in enumerate(points) if not point.in_baseline), None)
    return Drawing(
        title=f"{named.title}{f' [{named.unit}]' if named.unit else ''}",
        sentence=named.sentence,
        drifts=chart.is_outside_now,
        dots=dots,
        line=_line([(dot.x, dot.y) for dot in dots]),
        limits=tuple(limits),
        centre_y=None if chart.centre is None else y(chart.centre),
        ticks=tuple((y(v), f"{v:.{digits}f}") for v in _ticks(low, high, step)),
        dates=tuple((x(k), points[k].label) for k in range(0, len(points), stride)),
        turns=tuple((x(k - 0.5), name) for k, name in named.turns),
        baseline_x=x(judged - 0.5) if judged and not chart.problem else None,
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("metricunet.workflows.review"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["percent"] = lambda share: "–" if share is None else f"{100 * share:.0f} %"
    return environment.get_template("ledger.html.j2")


def _choices(
    field: str, names: tuple[str, ...], words: Mapping[str, str], baseline: int, every: str
) -> list[Choice]:
    given = [("", every)] if every else []
    return [
        Choice(shown, _address({**words, "baseline": str(baseline), field: name}), words[field] == name)
        for name, shown in [*given, *((name, name) for name in names)]
    ]


def _address(words: Mapping[str, str]) -> str:
    return f"ledger?{urlencode({name: word for name, word in words.items() if word})}"


def _parts(overview: Overview, parts: tuple[str, ...]) -> list[tuple[str, float]]:
    where = overview.where
    return [(part_name(part, overview.structure), where[part]) for part in parts if part in where]


def _axis(low: float, high: float, *, is_share: bool) -> tuple[float, float, float]:
    """Return the ends of an axis that holds the values, and the step of its ticks."""
    if is_share:
        if high == low:  # one value fills no axis
            low, high = low - 0.05, high + 0.05
            low, high = (0.0, high - low) if low < 0 else (1.0 - (high - low), 1.0) if high > 1 else (low, high)
        low, high = max(0.0, low), min(1.0, high)
    wide = max(high - low, 0.02 if is_share else 1.0)
    power = 1.0
    while power > wide / 4:
        power /= 10
    while power * 10 <= wide / 4:
        power *= 10
    step = next((power * s for s in STEPS if power * s >= wide / 4), power * 10)
    first = step * (low // step)
    last = first
    while last < high or last == first:
        last += step
    return first, last, step


def _ticks(low: float, high: float, step: float) -> list[float]:
    return [low + k * step for k in range(round((high - low) / step) + 1)]


def _line(points: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _number(value: float | None, decimals: int) -> str:
    return "–" if value is None else f"{value:.{decimals}f}"


def _whole(text: str, otherwise: int) -> int:
    known = text.isascii() and text.isdecimal() and len(text) < 6
    return min(MOST_BASELINE, max(LEAST_BASELINE, int(text))) if known else otherwise
