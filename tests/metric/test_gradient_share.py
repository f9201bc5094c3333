"""The weight of a branch as a share of the gradient of all else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metricunet.metric import GradientShare
from metricunet.metric.gradient_share import LARGEST_WEIGHT


def step(share: GradientShare, maps: list[Tensor], height: float, rise: float = 1.0) -> tuple[float, list[Tensor]]:
    """One update in which the branch's gradient is `height` and the rest's is 2 at each of the values."""
    raw = [one.detach().requires_grad_() for one in maps]
    seen = [one * 1 for one in raw]
    weight = share.weight(rise)
    read = share.watched(seen, weight)
    loss = sum(2 * one.sum() for one in seen) + weight * sum(height * one.sum() for one in read)
    assert isinstance(loss, Tensor)
    loss.backward()
    return float(weight), [one.grad for one in raw if one.grad is not None]


def test_the_weight_is_what_makes_the_share() -> None:
    share = GradientShare(0.25)
    maps = [torch.zeros(2, 3, 4), torch.zeros(5)]
    first, gradients = step(share, maps, 4.0)
    assert first == 0.25
    # Watching changes no gradient.
    assert all(torch.allclose(g, torch.full_like(g, 2 + 0.25 * 4)) for g in gradients)
    second, _ = step(share, maps, 4.0)
    assert second == pytest.approx(0.25 * 2 / 4)
    # A running mean of the ratios 0.5 (measured twice by now) and 0.2.
    step(share, maps, 10.0)
    assert step(share, maps, 10.0)[0] == pytest.approx(0.25 * (0.9 * 0.5 + 0.1 * 0.2))


def test_the_measure_does_not_depend_on_the_rise_and_needs_one() -> None:
    share = GradientShare(0.5)
    maps = [torch.zeros(3, 3)]
    assert step(share, maps, 8.0, rise=0.0)[0] == 0
    assert not share.measured
    step(share, maps, 8.0, rise=0.01)
    assert float(share.ratio) == pytest.approx(0.25)


def test_a_branch_that_fades_is_not_blown_up() -> None:
    share = GradientShare(0.5)
    maps = [torch.zeros(3, 3)]
    step(share, maps, 1e-6)
    assert step(share, maps, 0.0)[0] == LARGEST_WEIGHT
    assert torch.isfinite(share.ratio)


def test_maps_without_a_gradient_are_passed_on() -> None:
    share = GradientShare(0.5)
    maps = [torch.zeros(3)]
    assert share.watched(maps, share.weight())[0] is maps[0]


def test_it_goes_on_from_a_state() -> None:
    one, two = GradientShare(0.3), GradientShare(0.3)
    maps = [torch.zeros(4)]
    step(one, maps, 5.0)
    two.load_state_dict(one.state_dict())
    assert step(one, maps, 3.0)[0] == step(two, maps, 3.0)[0]
    assert torch.equal(one.ratio, two.ratio)
