"""The benchmark: it measures what it says, small; times themselves are never asserted, memory is."""

from __future__ import annotations

import json

import pytest
import torch

from metricunet.errors import InputError
from metricunet.training.config import load_config
from metricunet.workflows.bench import metric, metric_cost
from metricunet.workflows.bench.metric import bench_metric, format_bench
from metricunet.workflows.bench.metric_cost import MEMORY_TARGET_MIB, TrainingStep, ellipses, growth, memory_mib
from tests.support.cohorts import TINY_SETTINGS
from tests.support.command import Command

CPU = torch.device("cpu")


def test_memory_at_512_voxels_of_128_cubed() -> None:
    """At most 64 MiB beyond the features and their gradient: torch's own account, so no matter of the machine."""
    needed = memory_mib(CPU)
    assert 2 < needed <= MEMORY_TARGET_MIB


def test_the_account_sees_a_peak_that_is_gone_at_the_end() -> None:
    def run() -> torch.Tensor:
        large = torch.zeros(1 << 20)
        return large[:1].clone()

    assert metric_cost._peak_bytes(run, CPU) == pytest.approx(4 << 20, rel=0.01)


def test_a_step_with_the_branch_trains_it_and_one_without_does_not() -> None:
    step = TrainingStep(load_config("small", settings=TINY_SETTINGS), "fp32", CPU)
    before = [p.detach().clone() for p in step.branch.parameters()]
    step(False)
    assert all(torch.equal(a, b) for a, b in zip(before, step.branch.parameters(), strict=True))
    step(True)
    assert not any(torch.equal(a, b) for a, b in zip(before, step.branch.parameters(), strict=True))


def test_growth_is_the_exponent_of_the_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_cost, "_seconds", lambda run, times: [float(run()) ** 2 + 1e-9])
    found = growth((1, 2, 4), lambda size: lambda: torch.tensor(float(size)))
    assert found.exponent == pytest.approx(2)
    assert growth((1, 2), lambda size: lambda: torch.tensor(float(size**3)), power=3).exponent == pytest.approx(2)


def test_ellipses_hold_both_classes() -> None:
    labels = ellipses(4, [32, 24])
    assert labels.shape == (4, 32, 24)
    shares = labels.float().mean(dim=(1, 2))
    assert ((shares > 0.05) & (shares < 0.2)).all()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_cost, "load_config", lambda preset: load_config(preset, settings=TINY_SETTINGS))
    monkeypatch.setattr(metric_cost, "MEMORY_SIDE", 16)
    monkeypatch.setattr(metric, "SIDES", (8, 16))
    monkeypatch.setattr(metric, "VOXELS", (16, 32))


def test_the_command(tiny: None, metricunet: Command) -> None:
    ended = metricunet("bench", "metric", "--repeats", 2, "--device", "cpu", "--json")
    assert ended.status == 0
    found = json.loads(ended.out)
    steps = [(s["preset"], s["precision"], s["target"]) for s in found["steps"]]
    assert steps == [
        ("small", "bf16", 1.15), ("small", "fp32", 1.15), ("default", "bf16", 1.05), ("default", "fp32", 1.05),
    ]  # fmt: skip
    assert all(s["ratio"] > 0 and s["quartiles"][0] <= s["quartiles"][1] for s in found["steps"])
    assert found["cuda_graph"] is None
    assert set(found["theirs_s"]) == {"triplets", "triplets and all pairs"}
    assert found["image"]["sizes"] == [512, 4096]


def test_what_people_read(tiny: None) -> None:
    steps = []
    result = bench_metric(
        pairs=1, presets=["small"], precisions=["fp32"], device="cpu", progress=lambda *a: steps.append(a)
    )
    text = format_bench(result)
    assert steps[-1] == (6, 6)
    for words in ("small", "ratio", "memory beyond", "pytorch-metric-learning, triplets", "CUDA: not run"):
        assert words in text


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(InputError, match="preset must be one of default, small; got 'huge'"):
        bench_metric(presets=["huge"])
    with pytest.raises(InputError, match="--device"):
        bench_metric(device="cuda:99")
