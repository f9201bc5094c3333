"""A branch called through CUDA graphs is the same branch, whatever the device."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from metricunet.metric import (
    BackgroundClusters,
    EmbeddingBank,
    GraphedBranch,
    HardEasySampler,
    VoxelClassLoss,
    VoxelMetricLoss,
)
from metricunet.metric.graphed import GraphStep, unpacked

# The graphs are captured on a stream of their own, which torch tells once.
pytestmark = pytest.mark.filterwarnings("ignore:.*AccumulateGrad node's stream does not match.*")

BRANCHES = {
    "tuples": lambda: VoxelMetricLoss(HardEasySampler(32), head=4, channels=[6, 3]),
    "tuples across": lambda: VoxelMetricLoss(HardEasySampler(32), head=4, channels=[6, 3], across=True),
    "control": lambda: VoxelClassLoss(HardEasySampler(32), head=4, channels=[6, 3]),
}
#: Their buffers change with every call.
REMEMBERING = {
    "bank": lambda: VoxelMetricLoss(
        HardEasySampler(32), head=4, channels=[6, 3], bank=EmbeddingBank(20, 2, 4, maps=2, new=6), unsure_mm=3.0
    ),
    "bank and clusters": lambda: VoxelMetricLoss(
        HardEasySampler(32),
        head=4,
        channels=[6, 3],
        background=BackgroundClusters(2, 4, maps=2),
        bank=EmbeddingBank(20, 3, 4, maps=2, new=6),
    ),
}
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")),
]


def batch(device: str, seed: int, side: int = 16) -> tuple[list[Tensor], Tensor, Tensor]:
    """Two maps, labels and logits."""
    generator = torch.Generator().manual_seed(seed)
    sides = ((6, side), (3, side // 2))
    maps = [torch.randn(2, channels, n, n, generator=generator) for channels, n in sides]
    labels = torch.zeros(2, side, side, dtype=torch.uint8)
    labels[:, 3 : 3 + side // 2, 4 : 4 + side // 2] = 1
    logits = torch.randn(2, 2, side, side, generator=generator)
    return [m.to(device).requires_grad_() for m in maps], labels.to(device), logits.to(device)


def results(call: Any, branch: torch.nn.Module, device: str, seed: int, side: int = 16) -> list[Tensor]:
    """Everything that a call gives, and every gradient."""
    maps, labels, logits = batch(device, seed, side)
    branch.zero_grad()
    torch.manual_seed(seed)
    out = call(maps, labels, logits, (1.0, 2.0))
    out.loss.backward()
    found = [out.loss, out.sample.index, out.sample.classes, out.sample.valid, out.sample.hard]
    found += out.statistics.values()
    gradients = [t.grad for t in (*maps, *branch.parameters())]
    assert not any(value.requires_grad for value in out.statistics.values())
    assert all(g is not None for g in gradients)
    return [t.detach().clone() for t in (*found, *gradients)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", BRANCHES)
def test_the_same_voxels_loss_and_gradients(name: str, device: str) -> None:
    torch.manual_seed(0)
    branch = BRANCHES[name]().to(device)
    graphed = GraphedBranch(branch)
    # The third call has another layout, for which there is no graph; the fourth has the first one's again.
    for seed, side in ((1, 16), (2, 16), (3, 24), (4, 16)):
        found = results(graphed, branch, device, seed, side)
        wanted = results(branch, branch, device, seed, side)
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", BRANCHES)
def test_what_is_captured_is_the_branch(name: str) -> None:
    """On any device: the step that a graph is made of, with its results put together again."""
    branch = BRANCHES[name]()

    def call(maps: Any, labels: Tensor, logits: Tensor, spacing_mm: Any) -> Any:
        return unpacked(GraphStep(branch, spacing_mm)(labels, logits, *maps))

    torch.testing.assert_close(results(call, branch, "cpu", 1), results(branch, branch, "cpu", 1))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", REMEMBERING)
def test_what_a_branch_remembers(name: str, device: str) -> None:
    """Nothing of the capture, and everything of the calls."""
    torch.manual_seed(0)
    branch = REMEMBERING[name]().to(device)
    twin = copy.deepcopy(branch)
    graphed = GraphedBranch(branch)
    for seed in (1, 2, 3):
        torch.testing.assert_close(
            results(graphed, branch, device, seed), results(twin, twin, device, seed), atol=1e-5, rtol=1e-4
        )
        for ours, theirs in zip(branch.buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("device", DEVICES)
def test_one_map_as_a_tensor_and_no_logits(device: str) -> None:
    branch = VoxelMetricLoss(HardEasySampler(32), head=4, channels=[6]).to(device)
    graphed = GraphedBranch(branch)
    (features, _), labels, logits = batch(device, 1)
    for more in ((), (logits,), (logits, [1.0, 2.0]), (logits, (1.0, 2.0))):
        torch.manual_seed(0)
        found = graphed(features, labels, *more).loss.clone()
        torch.manual_seed(0)
        torch.testing.assert_close(found, branch(features, labels, *more).loss)


def test_the_parts_of_a_branch_keep_their_mode() -> None:
    head = torch.nn.BatchNorm1d(6).eval()
    branch = VoxelMetricLoss(HardEasySampler(32), head=head)
    GraphStep(branch, None)
    assert branch.training
    assert not head.training


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_is_part_of_the_call(device: str) -> None:
    branch = BRANCHES["tuples"]().to(device)
    graphed = GraphedBranch(branch)
    for seed in (1, 2):
        with torch.autocast(device, dtype=torch.bfloat16):
            found = results(graphed, branch, device, seed)
            wanted = results(branch, branch, device, seed)
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(results(graphed, branch, device, 3), results(branch, branch, device, 3))


@pytest.mark.parametrize("device", DEVICES)
def test_parameters_that_move(device: str) -> None:
    branch = BRANCHES["tuples"]().to(device)
    graphed = GraphedBranch(branch)
    results(graphed, branch, device, 1)
    for parameter in branch.parameters():
        parameter.data = parameter.data * 2
    torch.testing.assert_close(results(graphed, branch, device, 2), results(branch, branch, device, 2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
def test_capturing_leaves_the_generator_as_it_was() -> None:
    branch = BRANCHES["tuples"]().to("cuda")
    graphed = GraphedBranch(branch)
    maps, labels, logits = batch("cuda", 1)
    torch.manual_seed(5)
    first = graphed(maps, labels, logits).sample.index.clone()
    torch.manual_seed(5)
    assert torch.equal(first, graphed(maps, labels, logits).sample.index)


def test_a_capture_that_fails_leaves_the_generator_and_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory, say. The voxels of a call that is repeated are those that it would have drawn."""
    branch = BRANCHES["control"]()
    graphed = GraphedBranch(branch)
    restored: list[Tensor] = []
    before = torch.arange(4)

    def fails(step: Any, samples: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("metricunet.metric.graphed._on_current_gpu", lambda tensor: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: before)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: restored.append(state))
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fails)
    maps, labels, logits = batch("cpu", 0)
    for calls in (1, 2):
        with pytest.raises(RuntimeError, match="out of memory"):
            graphed(maps, labels, logits, (1.0, 2.0))
        assert len(restored) == calls
        assert restored[-1] is before
