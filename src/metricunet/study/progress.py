"""What a running study shows: a table of arms and seeds on a terminal, a line for each finished run elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from metricunet.cohort.splits import Fold
from metricunet.progress import Say
from metricunet.study.runs import RunResult, RunSpec

Cell = tuple[str, Fold, int]


class RunProgress:
    """Use it as a context; tell it what happens.

    Args:
        specs: all runs, in the order in which they are carried out.
        say: told a line, where there is no terminal.
        console: on standard error.
    """

    def __init__(self, specs: Sequence[RunSpec], say: Say, console: Console) -> None:
        self._specs, self._say = list(specs), say
        self._cells: dict[Cell, Text] = {_cell(spec): Text("·", style="dim") for spec in specs}
        self._done = 0
        self._live = (
            Live(get_renderable=self._table, console=console, refresh_per_second=2)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> RunProgress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.refresh()
            self._live.stop()

    def before(self, done: Sequence[RunResult]) -> None:
        """Show the runs that an earlier call finished."""
        for run in done:
            self._cells[_cell(run.spec)] = _result(run)
        self._done += len(done)
        if done and self._live is None:
            self._say(f"{len(done)} of {len(self._specs)} runs were finished before")

    def watch(self, spec: RunSpec, stage: str, done: int, total: int, val_dice: float | None) -> None:
        """Show how far a run is."""
        score = "" if val_dice is None else f"  {val_dice:.3f}"
        state = "scoring" if stage == "scoring" else f"{100 * done // max(total, 1):3d} %"
        self._cells[_cell(spec)] = Text(state + score, style="cyan")

    def finish(self, run: RunResult) -> None:
        """Show what became of a run."""
        self._done += 1
        self._cells[_cell(run.spec)] = _result(run)
        if self._live is None:
            state = (
                f"failed: {run.error}" if run.error else f"finished, {_score_and_time(run, 'validation Dice ')}"
            )
            self._say(f"{run.spec.title}: {state} ({self._done} of {len(self._specs)})")

    def _table(self) -> RenderableType:
        seeds = list(dict.fromkeys(spec.seed for spec in self._specs))
        folds = len({spec.fold for spec in self._specs}) > 1
        table = Table(header_style="bold", title_justify="left")
        table.add_column("arm")
        if folds:
            table.add_column("fold")
        for seed in seeds:
            table.add_column(f"seed {seed}", justify="right", no_wrap=True)
        for arm, fold in dict.fromkeys((spec.arm, spec.fold) for spec in self._specs):
            cells = [self._cells.get((arm, fold, seed), Text("")) for seed in seeds]
            table.add_row(arm, *([str(fold)] if folds else []), *cells)
        return Group(table, Text(f"{self._done} of {len(self._specs)} runs done; cells: validation Dice, time"))


def _cell(spec: RunSpec) -> Cell:
    return spec.arm, spec.fold, spec.seed


def _result(run: RunResult) -> Text:
    return Text("failed", style="bold red") if run.error else Text(_score_and_time(run), style="green")


def _score_and_time(run: RunResult, title: str = "") -> str:
    score = "" if run.val_dice is None else f"{title}{run.val_dice:.3f}, "
    return score + duration(run.seconds)


def duration(seconds: float) -> str:
    """Write a duration for people."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
