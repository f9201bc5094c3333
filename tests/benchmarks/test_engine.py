"""What was measured of an engine stays measured; the rest begins anew."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import engine
from metricunet.errors import InputError


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have no command called and no node started; return the folders that commands were to write, as they come."""
    called: list[str] = []

    def command(*words: str) -> float:
        output = Path(words[words.index("-o") + 1])
        output.mkdir(parents=True)
        for name in engine.TABLES:
            (output / name).write_text("table")
        called.append(output.name)
        return 10.0 * len(called)

    @contextmanager
    def nodes() -> Iterator[Any]:
        yield SimpleNamespace(address="127.0.0.1:1", worker_nodes=[object()])

    monkeypatch.setattr(engine, "_command", command)
    monkeypatch.setattr(engine, "two_nodes", nodes)
    return called


def test_a_part_that_was_measured_is_not_measured_again(
    commands: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.measure_study(tmp_path / "study.yaml", tmp_path / "out", ["serial"])
    (tmp_path / "out" / "nodes").mkdir()
    (tmp_path / "out" / "nodes" / "cut short").touch()
    engine.measure_study(tmp_path / "study.yaml", tmp_path / "out")
    assert commands == ["serial", "nodes", "lost"]
    assert not (tmp_path / "out" / "nodes" / "cut short").exists()
    kept = json.loads((tmp_path / "out" / "measured.json").read_text())
    assert kept["serial"] == {"seconds": 10.0}
    assert kept["lost"]["killed_after_s"] == 10.0  # the middle of the twenty seconds without a loss
    found = capsys.readouterr().out.splitlines()
    assert found[-2] == "nodes: 2.00 of the time of one process; 6 of 6 tables byte for byte the same"


def test_the_middle_of_what_was_not_measured_is_not_known(commands: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="part nodes has not been measured; measure it first"):
        engine.measure_study(tmp_path / "study.yaml", tmp_path / "out", ["lost"])
    with pytest.raises(InputError, match="part 'node' is none of serial, nodes, lost"):
        engine.measure_study(tmp_path / "study.yaml", tmp_path / "out", ["node"])
    assert not commands
