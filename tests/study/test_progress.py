"""What a running study shows on a terminal and elsewhere."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, cast

import pytest
from rich.console import Console

from metricunet.study.progress import RunProgress, duration
from metricunet.study.runs import RunResult, RunSpec


@dataclass(frozen=True)
class Shown:
    """As much of a run as is shown."""

    arm: str
    seed: int
    fold: int = 0

    @property
    def title(self) -> str:
        return f"{self.arm}, fold {self.fold}, seed {self.seed}"


def spec(arm: str, seed: int, fold: int = 0) -> RunSpec:
    return cast(RunSpec, Shown(arm, seed, fold))


SPECS = [spec("unet", 0), spec("unet", 1), spec("metricunet", 0)]


def shown(progress: RunProgress) -> str:
    """What the terminal shows at this moment."""
    console = Console(file=io.StringIO(), width=100)
    console.print(progress._table())
    return cast(Any, console.file).getvalue()


def test_lines_where_there_is_no_terminal() -> None:
    said: list[str] = []
    stream = io.StringIO()
    with RunProgress(SPECS, said.append, Console(file=stream, force_terminal=False)) as progress:
        progress.before([RunResult(SPECS[0], 0.8, 61)])
        progress.watch(SPECS[1], "segment", 5, 10, 0.7)
        progress.finish(RunResult(SPECS[1], 0.853, 151))
        progress.finish(RunResult(SPECS[2], None, 3, "stage segment diverged"))
    assert said == [
        "1 of 3 runs were finished before",
        "unet, fold 0, seed 1: finished, validation Dice 0.853, 3 min (2 of 3)",
        "metricunet, fold 0, seed 0: failed: stage segment diverged (3 of 3)",
    ]
    assert stream.getvalue() == ""


def test_a_table_on_a_terminal() -> None:
    said: list[str] = []
    stream = io.StringIO()
    with RunProgress(SPECS, said.append, Console(file=stream, force_terminal=True, width=100)) as progress:
        assert shown(progress).count("·") == 3
        progress.before([RunResult(SPECS[0], 0.8, 61)])
        progress.watch(SPECS[1], "segment", 41, 100, 0.7)
        table = shown(progress)
        assert "0.800, 1 min" in table
        assert "41 %  0.700" in table
        assert "1 of 3 runs done" in table
        progress.watch(SPECS[1], "scoring", 0, 20, None)
        assert "scoring" in shown(progress)
        progress.finish(RunResult(SPECS[1], None, 7))
        progress.finish(RunResult(SPECS[2], None, 3, "it broke"))
    assert said == []
    table = shown(progress)
    assert "failed" in table
    assert "7 s" in table
    assert "seed 0" in table
    assert "fold" not in table
    assert "3 of 3 runs done" in stream.getvalue()


def test_folds_have_rows_of_their_own() -> None:
    progress = RunProgress([spec("unet", 0, 0), spec("unet", 0, 1)], print, Console(file=io.StringIO()))
    progress.finish(RunResult(spec("unet", 0, 1), 0.9, 5))
    lines = [line for line in shown(progress).splitlines() if "unet" in line]
    assert len(lines) == 2
    assert "0.900" in lines[1]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.8, "1 min"), (3599, "1 h 00 min"), (4000, "1 h 07 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
