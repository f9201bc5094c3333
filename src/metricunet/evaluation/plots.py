"""How a measure is spread over the cases: one point for each case and a box over them, as numbers to draw.

The report's template turns these into SVG. All positions are in its user units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metricunet.evaluation.measures import Definition
from metricunet.evaluation.summary import CaseRow, Evaluation, number

WIDTH = 280.0
MARGIN = 16.0
STRIP_HEIGHT = 64.0
#: Height of a structure's name over its strip, where there is more than one.
NAME_HEIGHT = 18.0
AXIS_HEIGHT = 24.0
#: Points lie in a band of this height, so that equal values can be told apart.
SPREAD = 28.0
#: A box over fewer values would claim more than they say.
LEAST_FOR_BOX = 5
#: The least range of an axis, so that nearly equal cases look nearly equal: ratio, mm, mL.
LEAST_RANGE = {"": 0.1, "mm": 1.0, "mL": 4.0}


@dataclass(frozen=True)
class Point:
    """A case: where it stands, what to say of it, and whether the structure was missed."""

    x: float
    y: float
    text: str
    missed: bool


@dataclass(frozen=True)
class Box:
    """Quartiles, median, and the outermost values within 1.5 times the box's width of it."""

    low: float
    first: float
    median: float
    third: float
    high: float


@dataclass(frozen=True)
class Strip:
    """The cases of one structure; `y` is the middle of its band."""

    structure: str
    y: float
    points: tuple[Point, ...]
    box: Box | None


@dataclass(frozen=True)
class Distribution:
    """A plot of one measure.

    Attributes:
        definition: the measure.
        ticks: position and text of each.
        best_x: position at which a perfect prediction stands.
        strips: one for each structure that has values.
        blank: cases that have no distance because the structure was missed.
        axis_y, height: where the axis lies, and the height of the whole.
    """

    definition: Definition
    ticks: tuple[tuple[float, str], ...]
    best_x: float
    strips: tuple[Strip, ...]
    blank: int
    axis_y: float
    height: float


def distribution(evaluation: Evaluation, definition: Definition) -> Distribution | None:
    """Lay out the plot of one measure over all structures; None where no case has a value."""
    rows = [row for row in evaluation.rows if row.measures.value(definition.name) is not None]
    if not rows:
        return None
    low, high, step = _axis([_value(row, definition) for row in rows], definition)

    def position(value: float) -> float:
        return MARGIN + (value - low) / (high - low) * (WIDTH - 2 * MARGIN)

    structures = [s for s in evaluation.summary if any(row.structure == s for row in rows)]
    above = NAME_HEIGHT if len(evaluation.summary) > 1 else 0.0
    strips: list[Strip] = []
    for k, structure in enumerate(structures):
        own = sorted(
            (row for row in rows if row.structure == structure),
            key=lambda row: (_value(row, definition), row.case),
        )
        middle = k * (STRIP_HEIGHT + above) + above + STRIP_HEIGHT / 2
        points = tuple(
            Point(
                x=position(_value(row, definition)),
                y=middle + SPREAD * _scatter(i),
                text=f"{row.case}: {number(_value(row, definition), definition, signed=True)}",
                missed=row.measures.outcome == "missed",
            )
            for i, row in enumerate(own)
        )
        values = [position(_value(row, definition)) for row in own]
        strips.append(Strip(structure, middle, points, _box(values) if len(values) >= LEAST_FOR_BOX else None))
    count = round((high - low) / step)
    axis_y = len(strips) * (STRIP_HEIGHT + above)
    return Distribution(
        definition=definition,
        ticks=tuple((position(low + i * step), _tick(low + i * step, step)) for i in range(count + 1)),
        best_x=position(definition.best),
        strips=tuple(strips),
        blank=sum(row.measures.outcome == "missed" for row in evaluation.rows) if definition.is_distance else 0,
        axis_y=axis_y,
        height=axis_y + AXIS_HEIGHT,
    )


def _value(row: CaseRow, definition: Definition) -> float:
    value = row.measures.value(definition.name)
    assert value is not None  # rows without a value were left out
    return value


def _axis(values: Sequence[float], definition: Definition) -> tuple[float, float, float]:
    """Choose an axis that holds all values and the best one: low, high and the step of its ticks."""
    low, high = min(*values, definition.best), max(*values, definition.best)
    missing = LEAST_RANGE[definition.unit] - (high - low)
    if missing > 0 and definition.is_signed:
        low, high = low - missing / 2, high + missing / 2
    elif missing > 0 and definition.is_ratio:
        low -= missing
    elif missing > 0:
        high += missing
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step


def _tick(value: float, step: float) -> str:
    decimals = next(d for d in range(12) if abs(step * 10**d - round(step * 10**d)) < 1e-6)
    text = f"{value:.{decimals}f}"
    return (text.lstrip("-") if float(text) == 0 else text).replace("-", "−")


def _scatter(i: int) -> float:
    """Return a place in -0.5 .. 0.5 that neighbours in rank do not share (golden-ratio sequence)."""
    return (0.5 + i * 0.6180339887498949) % 1.0 - 0.5


def _box(values: Sequence[float]) -> Box:
    array = np.asarray(values)
    first, median, third = (float(q) for q in np.percentile(array, (25, 50, 75)))
    reach = 1.5 * (third - first)
    # A quartile lies between two values, so the outermost value within reach may lie inside the box.
    return Box(
        low=min(first, float(array[array >= first - reach].min())),
        first=first,
        median=median,
        third=third,
        high=max(third, float(array[array <= third + reach].max())),
    )
