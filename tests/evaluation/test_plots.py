from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricunet.evaluation.cases import RecordedQuality
from metricunet.evaluation.measures import DEFINITIONS, Measures
from metricunet.evaluation.plots import MARGIN, WIDTH, Distribution, distribution
from metricunet.evaluation.summary import CaseRow, Evaluation, summarise

ratios = st.floats(0, 1)
distances_mm = st.floats(0, 500)
measured = st.builds(Measures, ratios, distances_mm, ratios, ratios, distances_mm, ratios, st.floats(-900, 900))
missed = st.builds(
    Measures, st.just(0.0), st.none(), st.just(0.0), st.just(0.0), st.none(), st.just(0.0), st.floats(-900, -1)
)
absent = st.just(Measures(None, None, None, None, None, None, None))


def evaluation(measures: list[Measures], structures: int = 1) -> Evaluation:
    rows = tuple(CaseRow(f"c{i}", f"s{i % structures}", m) for i, m in enumerate(measures))
    return Evaluation(rows, summarise(rows), (), (), {row.case: RecordedQuality() for row in rows})


def values_of(plot: Distribution) -> list[float]:
    """Read the ticks back: a tick's place against its text."""
    (x0, text0), (x1, text1) = plot.ticks[0], plot.ticks[-1]
    low, high = (float(t.replace("−", "-")) for t in (text0, text1))
    return [low + (p.x - x0) / (x1 - x0) * (high - low) for strip in plot.strips for p in strip.points]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(measured, missed, absent), min_size=1, max_size=9), st.integers(1, 3))
def test_every_value_is_drawn_inside_the_frame_where_it_belongs(found: list[Measures], structures: int) -> None:
    result = evaluation(found, structures)
    for definition in DEFINITIONS:
        plot = distribution(result, definition)
        values = sorted(v for m in found if (v := m.value(definition.name)) is not None)
        if plot is None:
            assert not values
            continue
        assert sorted(values_of(plot)) == pytest.approx(values, abs=1e-6 * max(1, *map(abs, values)))
        assert 3 <= len(plot.ticks) <= 8
        assert MARGIN - 1e-6 <= plot.best_x <= WIDTH - MARGIN + 1e-6
        for strip in plot.strips:
            for point in strip.points:
                assert MARGIN - 1e-6 <= point.x <= WIDTH - MARGIN + 1e-6
                assert 0 <= point.y <= plot.axis_y
            if strip.box:
                box = strip.box
                assert box.low <= box.first <= box.median <= box.third <= box.high


def test_missed_cases_are_marked_in_ratios_and_counted_in_distances() -> None:
    good = Measures(0.9, 1.0, 0.9, 0.9, 3.0, 0.9, 1.0)
    lost = Measures(0.0, None, 0.0, 0.0, None, 0.0, -30.0)
    result = evaluation([good, lost, good])
    dice, asd = (distribution(result, d) for d in DEFINITIONS[:2])
    assert dice is not None
    assert asd is not None
    assert [p.missed for p in dice.strips[0].points] == [True, False, False]
    assert (dice.blank, asd.blank) == (0, 1)
    assert len(asd.strips[0].points) == 2
    assert dice.strips[0].points[0].text == "c1: 0.000"


def test_a_box_needs_five_values() -> None:
    good = Measures(0.9, 1.0, 0.9, 0.9, 3.0, 0.9, 1.0)
    for count, has_box in ((4, False), (5, True)):
        plot = distribution(evaluation([good] * count), DEFINITIONS[0])
        assert plot is not None
        assert (plot.strips[0].box is not None) is has_box


def test_axis_reads_well() -> None:
    scores = [0.81, 0.84, 0.86, 0.9, 0.93]
    plot = distribution(evaluation([Measures(d, 1.0, d, d, 3.0, d, 1.0) for d in scores]), DEFINITIONS[0])
    assert plot is not None
    assert [text for _, text in plot.ticks] == ["0.80", "0.85", "0.90", "0.95", "1.00"]
