"""Part `uncontoured`: steps with and without a teacher, in turn, on a tiny cohort."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import uncontoured as part
from benchmarks.uncontoured import (
    MOST_RATIO,
    WORDS,
    TrainingStep,
    UncontouredBench,
    bench_uncontoured,
    settings_of_steps,
)
from metricunet.cohort.prepare import PreparedCase
from metricunet.structures import IGNORE_CLASS
from metricunet.training.config import TrainConfig, load_config
from metricunet.workflows.bench.result import MeasuredOn
from metricunet.workflows.bench.timing import Ratio, Times
from tests.support.cohorts import TINY_SETTINGS

CPU = torch.device("cpu")
TINY = {
    name: json.loads(value)
    for name, value in (setting.split("=") for setting in TINY_SETTINGS)
    if not name.endswith(("epochs", "updates_per_epoch"))
} | {"segment.levels": 5}  # for the deep maps that are read


def config_of(name: str) -> TrainConfig:
    return load_config("small", settings={**TINY, **settings_of_steps()[name]})


@pytest.mark.parametrize("name", WORDS)
def test_a_step_trains_on_a_batch_of_one_size(name: str, cases: list[PreparedCase]) -> None:
    config = config_of(name)
    step = TrainingStep(config, cases, CPU)
    before = [weights.clone() for weights in step.module.network.parameters()]
    step()
    assert any(not torch.equal(a, b) for a, b in zip(before, step.module.network.parameters(), strict=True))
    assert len(step.batch.images) == config.segment.batch_size
    if name == "contoured":
        assert step.module.teacher is None
        assert step.batch.plain is None
        assert not (step.batch.labels == IGNORE_CLASS).any()
    else:
        assert step.module.teacher is not None
        half = config.segment.batch_size // 2
        assert step.batch.plain is not None
        assert len(step.batch.plain) == half
        assert (step.batch.labels[half:] == IGNORE_CLASS).all()
        assert not (step.batch.labels[:half] == IGNORE_CLASS).any()


def test_all_steps_take_turns(cases: list[PreparedCase], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "phantom_cases", lambda folder, config: cases)
    ticks: list[tuple[int, int]] = []
    found = bench_uncontoured(
        CPU, preset="small", repeats=2, settings=TINY, progress=lambda *tick: ticks.append(tick)
    )
    assert ticks[-1] == (8, 8)
    content = json.loads(json.dumps(found.to_json()))
    assert set(content["times"]) == set(WORDS)
    assert set(content["ratios"]) == set(WORDS) - {"contoured"}
    assert content["times"]["method"]["n"] == 2


@pytest.mark.parametrize(("ratio", "answer"), [(MOST_RATIO, "met"), (MOST_RATIO + 0.01, "MISSED")])
def test_the_target_is_that_of_the_method(ratio: float, answer: str) -> None:
    times = {name: Times(1.0, (1.0, 1.0), 1) for name in WORDS}
    ratios = {name: Ratio(9.0, (9.0, 9.0)) for name in WORDS if name != "contoured"}
    ratios["method"] = Ratio(ratio, (ratio, ratio))
    text = UncontouredBench(MeasuredOn.of(CPU), "default", 16, times, ratios).text()
    (line,) = (line for line in text.splitlines() if "target" in line)
    assert line.strip().startswith("method / contoured")
    assert line.endswith(answer)
    small = UncontouredBench(MeasuredOn.of(CPU), "small", 8, times, ratios).text()
    assert "target" not in small
