"""The demo's whole way on a few small phantoms, with the training cut short."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metricunet.errors import InputError
from metricunet.workflows.demo import SETTINGS, demo
from tests.support.command import Command

SHORT = (
    *SETTINGS,
    "locate.base_channels=4",
    "locate.epochs=1",
    "locate.updates_per_epoch=2",
    "segment.base_channels=4",
    "segment.epochs=1",
    "segment.updates_per_epoch=2",
)


def test_the_demo_leaves_what_it_promises(tmp_path: Path) -> None:
    said: list[str] = []
    output = tmp_path / "demo"
    result = demo(output, training_cases=3, unseen_cases=1, settings=SHORT, say=said.append)
    assert {p.name for p in output.iterdir()} == {
        "cohort", "run", "prediction", "evaluation",
        "model.safetensors", "summary.json", "report.html", "demo.json",
    }  # fmt: skip
    assert result.report == output / "report.html"
    assert len(said) == 4
    assert set(json.loads((output / "summary.json").read_text())["prostate"]) >= {"dice", "asd_mm"}
    # A second run keeps what the first one made.
    model = (output / "run" / "model.safetensors").stat().st_mtime_ns
    demo(output, training_cases=3, unseen_cases=1, settings=SHORT)
    assert (output / "run" / "model.safetensors").stat().st_mtime_ns == model
    (output / "report.html").write_text("mine")
    with pytest.raises(InputError, match=r"report\.html: is there already"):
        demo(output, training_cases=3, unseen_cases=1, settings=SHORT)
    assert (output / "report.html").read_text() == "mine"


def test_the_demo_clears_nothing_but_a_demo(tmp_path: Path, metricunet: Command) -> None:
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / "dataset.json").write_text("{}")
    with pytest.raises(InputError, match="holds other files"):
        demo(tmp_path)
    assert (tmp_path / "cohort" / "dataset.json").is_file()
    ended = metricunet("demo", "-o", tmp_path)
    assert ended.status == 2
    assert ended.err.count("\n") == 1
