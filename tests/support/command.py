"""Calling the command line in this process, as a user would in theirs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from metricunet.cli import main


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


Command = Callable[..., Ended]


def run_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> Ended:
    """Run `metricunet WORDS` and return its status and what it printed."""
    monkeypatch.setattr(sys, "argv", ["metricunet", *map(str, words)])
    capsys.readouterr()
    try:
        main()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    printed = capsys.readouterr()
    return Ended(status, printed.out, printed.err)
