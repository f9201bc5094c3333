"""Limits of control charts by hand, and by the example of the handbook that the formulas are from."""

from __future__ import annotations

import math

import pytest

from metricunet.ledger.control import average_chart, share_chart

#: NIST/SEMATECH e-Handbook of Statistical Methods, 6.3.2.4: values, and their average with λ = 0.3 from 50.
VALUES = "52.0 47.0 53.0 49.3 50.1 47.0 51.0 50.1 51.2 50.5 49.6 47.6 49.9 51.3 47.8 51.2 52.6 52.4 53.6 52.1"
AVERAGES = (
    "50.60 49.52 50.56 50.18 50.16 49.21 49.75 49.85 50.26 50.33 50.11 49.36 49.52 50.05 49.38 49.92 50.73 51.23 "
    "51.94 51.99"
)
SPREAD = 2.0539


def numbered(count: int) -> list[str]:
    return [str(k) for k in range(count)]


def test_the_handbooks_example_of_a_moving_average() -> None:
    # A baseline with the handbook's mean of 50 and standard deviation of 2.0539.
    step = SPREAD * math.sqrt(19 / 20)
    values = [50 + step, 50 - step] * 10 + [float(word) for word in VALUES.split()]
    chart = average_chart(values, numbered(40), baseline=20, weight=0.3, width=3.0)
    judged = [point for point in chart.points if not point.in_baseline]
    assert chart.centre == pytest.approx(50)
    assert [round(point.value, 2) for point in judged] == pytest.approx(
        [float(word) for word in AVERAGES.split()], abs=0.011
    )
    assert judged[-1].upper == pytest.approx(52.5884, abs=0.002)
    assert judged[-1].lower == pytest.approx(47.4115, abs=0.002)
    assert judged[0].upper == pytest.approx(50 + 3 * 0.3 * SPREAD)  # of the first value alone
    assert chart.first_outside is None
    assert all(point.upper is None for point in chart.points if point.in_baseline)


def test_a_moving_average_that_leaves_its_limits() -> None:
    values = [1.0, 3.0] * 10 + [5.0] * 10
    chart = average_chart(values, numbered(30), baseline=20)
    found = chart.first_outside
    assert found is not None
    # z = 2 + 3 (1 - 0.9^t); the limit is 2 + 2.814 s √(0.1 / 1.9 (1 - 0.81^t)) with s = √(20 / 19).
    spread = math.sqrt(20 / 19)
    first = next(
        t for t in range(1, 11) if 3 * (1 - 0.9**t) > 2.814 * spread * math.sqrt(0.1 / 1.9 * (1 - 0.9 ** (2 * t)))
    )
    assert found.label == str(20 + first - 1)
    assert chart.is_outside_now


def test_shares_in_groups_by_hand() -> None:
    hits = [True, False, False, False, False] * 8 + [True] * 13 + [False] * 7 + [True] * 5
    chart = share_chart(hits, numbered(65), group=20, baseline=40)
    assert chart.centre == pytest.approx(0.2)
    assert [point.value for point in chart.points] == [0.2, 0.2, 0.65, 1.0]
    assert [point.cases for point in chart.points] == [20, 20, 20, 5]
    assert chart.points[2].upper == pytest.approx(0.2 + 3 * 0.4 / math.sqrt(20))
    assert chart.points[2].lower == 0
    assert chart.points[3].upper == pytest.approx(0.2 + 3 * 0.4 / math.sqrt(5))
    assert [point.is_outside for point in chart.points] == [False, False, True, True]
    assert chart.points[2].label == "59"


@pytest.mark.parametrize(
    ("baseline", "cases"), [(10, [10, 20, 15]), (19, [19, 20, 6]), (20, [20, 20, 5]), (30, [20, 10, 15])]
)
def test_a_baseline_is_as_long_as_it_was_asked_for(baseline: int, cases: list[int]) -> None:
    hits = [k % 3 == 0 for k in range(baseline)] + [k % 2 == 0 for k in range(45 - baseline)]
    chart = share_chart(hits, numbered(45), group=20, baseline=baseline)
    assert (chart.problem, chart.baseline) == ("", baseline)
    assert chart.centre == pytest.approx(sum(hits[:baseline]) / baseline)
    assert [point.cases for point in chart.points] == cases
    assert sum(point.cases for point in chart.points if point.in_baseline) == baseline
    assert [point.label for point in chart.points][-1] == "44"


def test_a_baseline_that_says_nothing_gives_no_limits_and_says_why() -> None:
    few = share_chart([True] * 30, numbered(30), group=20, baseline=40)
    assert "30 of the 40 cases" in few.problem
    assert (few.centre, few.first_outside) == (None, None)
    assert len(few.points) == 2
    assert "all alike" in average_chart([1.0] * 50, numbered(50)).problem
    for alike in (False, True):
        chart = share_chart([alike] * 40 + [not alike, *[alike] * 19], numbered(60), group=20, baseline=40)
        assert "all alike" in chart.problem
        assert (chart.centre, chart.baseline, chart.first_outside) == (None, 0, None)
        assert [point.value for point in chart.points] == [alike, alike, abs(alike - 0.05)]
    assert "at least 10" in average_chart([1.0, 2.0] * 50, numbered(100), baseline=5).problem
    assert average_chart([], []).points == ()
    assert share_chart([], []).points == ()
