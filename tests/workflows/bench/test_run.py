"""The command: which parts run, what is printed, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from metricunet.errors import InputError
from metricunet.workflows.bench import PARTS
from metricunet.workflows.bench import run as run_module
from metricunet.workflows.bench.run import bench
from tests.support.command import Command


class Result:
    def __init__(self, name: str) -> None:
        self.name = name

    def to_json(self) -> dict[str, object]:
        return {"measured": self.name}

    def text(self) -> str:
        return f"{self.name}: 1 s"


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch, tiny_presets: None, tiny_cohort: Path) -> Path:
    monkeypatch.setattr(run_module, "_on_subject", lambda name, *rest: Result(name))
    monkeypatch.setattr(run_module, "_on_training", lambda name, *rest: Result(name))
    return tiny_cohort / "imagesTr" / "case_00_0000.nii.gz"


def test_all_parts_in_their_order(instant: Path, metricunet: Command) -> None:
    ended = metricunet("bench", "--scan", instant, "--device", "cpu", "--json")
    assert ended.status == 0
    assert json.loads(ended.out) == {name: {"measured": name} for name in PARTS}
    printed = metricunet("bench", "all", "--scan", instant, "--device", "cpu")
    assert [line for line in printed.out.splitlines() if line] == [f"{name}: 1 s" for name in PARTS]


def test_one_part_is_its_own_object(instant: Path, metricunet: Command) -> None:
    ended = metricunet("bench", "train", "--device", "cpu", "--json")
    assert json.loads(ended.out) == {"measured": "train"}


def test_a_part_on_a_scan(tiny_presets: None, small_peak: None, tiny_cohort: Path, metricunet: Command) -> None:
    scan = tiny_cohort / "imagesTr" / "case_01_0000.nii.gz"
    ended = metricunet("bench", "locate", "--scan", scan, "--repeats", 1, "--device", "cpu", "--json")
    assert ended.status == 0, ended.err
    assert json.loads(ended.out)["ours"]["n"] == 1


def test_wrong_arguments_are_named_before_any_work(metricunet: Command, tmp_path: Path) -> None:
    parts = "locate, segment, predict, train, metric, io, all"
    ended = metricunet("bench", "speed")
    assert (ended.status, ended.err.strip()) == (2, f"error: bench must be one of {parts}; got 'speed'")
    with pytest.raises(InputError, match=f"bench must be one of {parts}; got 'speed'"):
        bench("speed")
    with pytest.raises(InputError, match="--preset must be one of default, small; got 'huge'"):
        bench("metric", preset="huge")
    with pytest.raises(InputError, match="--device cuda:99"):
        bench("locate", device="cuda:99")
    with pytest.raises(InputError, match="--repeats must be 1 or more; got 0"):
        bench("locate", repeats=0)
    missing = metricunet("bench", "locate", "--scan", tmp_path / "none.nii.gz")
    assert (missing.status, missing.err.strip()) == (2, f"error: {tmp_path}/none.nii.gz: no such file or folder")
    model = metricunet("bench", "segment", "--model", tmp_path / "none.safetensors")
    assert model.status == 2
    assert "no such model file" in model.err


def test_help_brings_no_heavy_library() -> None:
    code = "import sys, metricunet.cli, metricunet.workflows.bench; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"
