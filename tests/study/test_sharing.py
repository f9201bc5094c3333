"""Processes that share a study: each run is computed once, and the tables are those of one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from metricunet.errors import InputError
from metricunet.files.claim import CLAIM_NAME
from metricunet.study import run
from metricunet.study.run import StudyResult, study
from metricunet.study.runs import RunResult, RunSpec
from metricunet.study.sharing import refuse_others
from tests.study.test_run import RESULTS

Whole = tuple[Path, Path, StudyResult]

#: Takes part in a study; says what it carries out, and waits there for a line.
PARTNER = """
import sys
from pathlib import Path
from metricunet.study import run, runs

train, fold = runs._train_and_score, run.prepare_fold

def train_and_score(pipeline):
    print(f"run {pipeline.spec.arm} {pipeline.spec.seed}", flush=True)
    sys.stdin.readline()
    train(pipeline)

def prepare(spec, bar):
    print("stage 1", flush=True)
    sys.stdin.readline()
    return fold(spec, bar)

runs._train_and_score, run.prepare_fold = train_and_score, prepare
run.draw_figures = run.draw_examples = lambda *_: None
run.study(Path(sys.argv[1]), Path(sys.argv[2]), device="cpu", say=lambda line: print(line, flush=True))
print("done", flush=True)
"""


@contextmanager
def partner(file: Path, output: Path) -> Iterator[subprocess.Popen[str]]:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
    with subprocess.Popen(
        [sys.executable, "-c", PARTNER, str(file), str(output)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def until(child: subprocess.Popen[str], start: str) -> str:
    """Read what a partner says up to a line that begins so."""
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith(start):
            return line.strip()
    raise AssertionError(f"it ended without saying {start!r}")


def go_on(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


def assert_same_results(output: Path, whole: Path) -> None:
    for name in RESULTS:
        assert (output / name).read_bytes() == (whole / name).read_bytes(), name
    assert not [path for path in output.rglob("*") if path.name == CLAIM_NAME or ".partial-" in path.name]


def test_two_processes_share_the_runs_and_both_end_with_the_tables_of_one(
    whole_study: Whole, tmp_path: Path
) -> None:
    file, whole, _ = whole_study
    output = tmp_path / "out"
    with partner(file, output) as one, partner(file, output) as two:
        for child in (one, two):
            go_on(child)  # with stage 1, in whatever order they come to it
        held = [until(child, "run") for child in (one, two)]
        assert sorted(held) == ["run plain 0", "run plain 1"]  # both at work, on different runs
        for child in (one, two) * 4:  # both, for in the end each waits for the other
            go_on(child)
        rest = [child.communicate()[0] for child in (one, two)]
        assert (one.returncode, two.returncode) == (0, 0)
    runs = held + [line for text in rest for line in text.splitlines() if line.startswith("run ")]
    assert sorted(runs) == ["run metric 0", "run metric 1", "run plain 0", "run plain 1"]
    assert_same_results(output, whole)


@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_another_process_has_is_passed_over_and_taken_over_when_that_is_killed(
    whole_study: Whole, tmp_path: Path
) -> None:
    file, whole, _ = whole_study
    output = tmp_path / "out"
    with partner(file, output) as other:
        until(other, "stage 1")
        go_on(other)
        assert until(other, "run") == "run plain 0"
        said: list[str] = []

        def say(line: str) -> None:
            said.append(line)
            if line.startswith("waiting: "):
                os.kill(other.pid, signal.SIGKILL)

        result = study(file, output, device="cpu", say=say)
    assert not result.failed
    told = [line.split(":")[0] for line in said if "finished, " in line or line.startswith("waiting")]
    assert told == [
        "plain, fold 0, seed 1",
        "metric, fold 0, seed 0",
        "metric, fold 0, seed 1",
        "waiting",
        "plain, fold 0, seed 0",
    ]
    waiting = next(line for line in said if line.startswith("waiting"))
    assert f"(process {other.pid} on " in waiting
    assert_same_results(output, whole)


@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_failed_here_counts_where_another_process_finishes_it(
    copied_study: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where memory did not suffice for two: rules and tables are of the same runs in both processes."""
    file, output = copied_study
    before = {name: (output / name).read_bytes() for name in RESULTS}
    (output / "runs/metric/fold-0/seed-1").rename(tmp_path / "by-another")

    def failing(specs: Sequence[RunSpec], *rest: object) -> Iterator[RunResult]:
        for spec in specs:
            (tmp_path / "by-another").rename(spec.folder)
            yield RunResult(spec, None, 1.0, "there was not enough memory")

    monkeypatch.setattr(run, "hand_out", failing)
    said: list[str] = []
    result = study(file, output, device="cpu", say=said.append)
    assert not result.failed
    assert said[-1] == "metric, fold 0, seed 1: failed here, and is finished all the same: it counts"
    assert {name: (output / name).read_bytes() for name in RESULTS} == before
    assert not list(output.rglob(CLAIM_NAME))


def test_a_folder_of_somebody_else_is_not_worked_in(tmp_path: Path) -> None:
    folder = tmp_path / "seed-0"
    refuse_others(folder, folder / "key.json", "a run")
    (folder / "checkpoints").mkdir(parents=True)
    (folder / CLAIM_NAME).touch()
    (folder / "checkpoints" / ".partial-1-0.json").touch()
    refuse_others(folder, folder / "key.json", "a run")
    (folder / "checkpoints" / "notes.txt").touch()
    with pytest.raises(InputError, match=r"holds checkpoints/notes\.txt, and nothing that says that it is a run"):
        refuse_others(folder, folder / "key.json", "a run")
    (folder / "key.json").touch()
    refuse_others(folder, folder / "key.json", "a run")
