"""Part `branch`: it measures what it says, small; times themselves are never asserted, memory is."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import branch
from benchmarks.branch import MEMORY_TARGET_MIB, bench_branch, growth, memory_mib

CPU = torch.device("cpu")


def test_memory_at_512_voxels_of_128_cubed() -> None:
    """At most 64 MiB beyond the features and their gradient: torch's own account, so no matter of the machine."""
    needed = memory_mib(CPU)
    assert 2 < needed <= MEMORY_TARGET_MIB


def test_the_account_sees_a_peak_that_is_gone_at_the_end() -> None:
    def run() -> torch.Tensor:
        large = torch.zeros(1 << 20)
        return large[:1].clone()

    assert branch._peak_bytes(run, CPU) == pytest.approx(4 << 20, rel=0.01)


def test_growth_is_the_exponent_of_the_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branch, "_seconds", lambda run, times: [float(run()) ** 2 + 1e-9])
    found = growth((1, 2, 4), lambda size: lambda: torch.tensor(float(size)))
    assert found.exponent == pytest.approx(2)
    assert growth((1, 2), lambda size: lambda: torch.tensor(float(size**3)), power=3).exponent == pytest.approx(2)


def test_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branch, "MEMORY_SIDE", 16)
    monkeypatch.setattr(branch, "SIDES", (8, 16))
    monkeypatch.setattr(branch, "VOXELS", (16, 32))
    ticks: list[tuple[int, int]] = []
    found = bench_branch(CPU, progress=lambda *tick: ticks.append(tick))
    assert ticks[-1] == (4, 4)
    content = json.loads(json.dumps(found.to_json()))
    assert content["cuda_graph"] is None
    assert set(content["theirs_s"]) == {"triplets", "triplets and all pairs"}
    assert content["image"]["sizes"] == [512, 4096]
    for words in ("memory, 512 voxels", "pytorch-metric-learning, triplets", "CUDA: not run"):
        assert words in found.text()
