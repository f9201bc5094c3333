"""The command: which parts run, what is printed, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metricunet.errors import InputError
from metricunet.workflows.bench import PARTS, bench, metric, predict, train
from metricunet.workflows.bench.result import MeasuredOn, Result, Row
from metricunet.workflows.bench.timing import Ratio, Times
from tests.support.command import Command


def result(name: str) -> Result:
    rows = {
        "step": Row("a step", Times.of([1.0, 2.0, 3.0]), against="2 s elsewhere"),
        "ratio": Row("with / without", Ratio.of([2.0], [1.0])),
        "peak": Row("memory", 1.5, "GiB"),
    }
    return Result(name, MeasuredOn.of(torch.device("cpu")), {"scan": "none"}, rows)


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """Parts that note the device they are to run on and are done."""
    seen: list[tuple[str, object]] = []

    def done(name: str, device: object) -> Result:
        seen.append((name, device))
        return result(name)

    monkeypatch.setattr(
        predict, "bench_predict", lambda scan, model, preset, where, **rest: done("predict", where)
    )
    monkeypatch.setattr(train, "bench_train", lambda preset, where, **rest: done("train", where))
    monkeypatch.setattr(metric, "bench_metric", lambda preset, where, **rest: done("metric", where))
    return seen


def test_all_parts_in_their_order(instant: list[tuple[str, object]], metricunet: Command) -> None:
    ended = metricunet("bench", "--device", "cpu", "--json")
    assert ended.status == 0
    assert list(json.loads(ended.out)) == list(PARTS) == ["predict", "train", "metric"]
    assert instant == [(name, torch.device("cpu")) for name in PARTS]


def test_one_part_is_its_own_object(instant: list[tuple[str, object]], metricunet: Command) -> None:
    found = json.loads(metricunet("bench", "train", "--device", "cpu", "--json").out)
    assert found["part"] == "train"
    assert found["rows"]["step"]["found"]["median_s"] == 2
    assert found["rows"]["peak"]["found"] == 1.5


def test_what_people_read(instant: list[tuple[str, object]], metricunet: Command) -> None:
    printed = metricunet("bench", "metric", "--device", "cpu").out.splitlines()
    assert printed[0].startswith("metric: ")
    assert [" ".join(line.split()) for line in printed[1:] if line] == [
        "scan: none",
        "a step 2.00 s (1.50 s to 2.50 s, n 3); 2 s elsewhere",
        "with / without 2.00 (2.00 to 2.00)",
        "memory 1.5 GiB",
    ]


def test_wrong_arguments_are_named_before_any_work(metricunet: Command, tmp_path: Path) -> None:
    parts = "predict, train, metric, all"
    ended = metricunet("bench", "speed")
    assert (ended.status, ended.err.strip()) == (2, f"error: bench must be one of {parts}; got 'speed'")
    with pytest.raises(InputError, match=f"bench must be one of {parts}; got 'locate'"):
        bench("locate")
    with pytest.raises(InputError, match="preset must be one of default, small; got 'huge'"):
        bench("metric", preset="huge")
    with pytest.raises(InputError, match="sees no GPU"):
        bench("train", device="cuda:99")
    with pytest.raises(InputError, match="repeats must be 1 or more; got 0"):
        bench("train", repeats=0)
    idle = metricunet("bench", "metric", "--model", "my.safetensors")
    words = "error: -m my.safetensors is for the part predict, and metric reads no scan or model; leave it out"
    assert (idle.status, idle.err.strip()) == (2, words)
    twice = metricunet("bench", "predict", "--model", "my.safetensors", "--preset", "small")
    words = "--preset small is for networks made here, and -m my.safetensors brings its own; leave one of them out"
    assert (twice.status, twice.err.strip()) == (2, f"error: {words}")
    missing = metricunet("bench", "predict", "--scan", tmp_path / "none.nii.gz")
    assert (missing.status, missing.err.strip()) == (2, f"error: {tmp_path}/none.nii.gz: no such file or folder")
    model = metricunet("bench", "predict", "--model", tmp_path / "none.safetensors")
    assert model.status == 2
    assert "no such model file" in model.err


def test_help_brings_no_heavy_library() -> None:
    code = "import sys, metricunet.cli, metricunet.workflows.bench; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"
