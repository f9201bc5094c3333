"""Bars of progress."""

from __future__ import annotations

import pytest
from rich.progress import Progress

from metricunet.cli import progress_bars


def test_a_bar_may_be_gone_through_again() -> None:
    with progress_bars() as bar:
        told = bar("preparing")
        for total in (2, 3):
            for done in range(1, total + 1):
                told(done, total)


def test_without_a_terminal_bars_print_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the version of rich: 13.9 ends bars that were never shown with an empty line."""
    monkeypatch.setattr(Progress, "stop", lambda progress: progress.console.print())
    with progress_bars() as bar:
        bar("preparing")(1, 1)
    assert capsys.readouterr().err == ""
