"""Bars of progress."""

from __future__ import annotations

from metricunet.cli import progress_bars


def test_a_bar_may_be_gone_through_again() -> None:
    with progress_bars() as bar:
        told = bar("preparing")
        for total in (2, 3):
            for done in range(1, total + 1):
                told(done, total)
