"""A study whose runs are shared out by Ray comes to the tables that it comes to here."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from metricunet.engine import opened
from metricunet.study.run import StudyResult, study

TABLES = ("cases.csv", "smoothness.csv", "features.csv", "comparisons.csv", "tables.csv", "tables.md")


@pytest.mark.usefixtures("no_pictures")
def test_the_tables_of_two_machines_are_those_of_one(
    machines: Any,
    whole_study: tuple[Path, Path, StudyResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file, here, _ = whole_study
    # Of a study that was stopped: two of its four runs are there, and stage 1 is not.
    for run in ("plain/fold-0/seed-0", "metric/fold-0/seed-1"):
        shutil.copytree(here / "runs" / run, tmp_path / "out" / "runs" / run)
    shutil.copy(here / "study.yaml", tmp_path / "out")
    shutil.copy(here / ".study-file.json", tmp_path / "out")
    told: list[str] = []
    with opened(f"ray://{machines.address}") as engine:
        result = study(file, tmp_path / "out", device="cpu", engine=engine, say=told.append)
    assert not result.failed
    assert told[0].startswith("stage 1")
    assert "2 of 4 runs were finished before" in told
    assert {name: (tmp_path / "out" / name).read_bytes() for name in TABLES} == {
        name: (here / name).read_bytes() for name in TABLES
    }
    # Run again without Ray, nothing is left to do.
    monkeypatch.setattr("metricunet.study.runs.carry_out", lambda *_: pytest.fail("carried out again"))
    assert study(file, tmp_path / "out", device="cpu").text == result.text
