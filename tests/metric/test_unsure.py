"""Labels that are unsure near a surface: how far it is, what is left out, and what the losses then ask."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metricunet.metric import BalancedSampler, HardEasySampler, TupleOptions, VoxelClassLoss, VoxelMetricLoss
from metricunet.metric.losses import tuple_losses
from metricunet.metric.sampling import surface_distance
from metricunet.metric.tuples import random_pairs

IGNORED = 9


@pytest.mark.parametrize(("shape", "spacing_mm"), [((7, 9), (1.0, 1.5)), ((4, 6, 5), (2.0, 1.0, 1.0))])
@pytest.mark.parametrize("reach_mm", [1.0, 3.0])
def test_the_distance_equals_a_plain_loop(
    shape: tuple[int, ...], spacing_mm: tuple[float, ...], reach_mm: float
) -> None:
    torch.manual_seed(0)
    labels = (torch.rand(2, *shape) < 0.15).to(torch.uint8) + (torch.rand(2, *shape) < 0.1).to(torch.uint8)
    labels[torch.rand(2, *shape) < 0.05] = IGNORED
    voxels = math.prod(shape)
    index = torch.randint(voxels, (2, 25))
    found = surface_distance(labels, index, reach_mm, spacing_mm, IGNORED)
    places = list(torch.cartesian_prod(*(torch.arange(n) for n in shape)).tolist())
    for b in range(2):
        flat = labels[b].flatten().tolist()
        for slot, i in enumerate(index[b].tolist()):
            near = [
                math.dist(
                    *([x * step for x, step in zip(p, spacing_mm, strict=True)] for p in (places[i], places[j]))
                )
                for j in range(voxels)
                if flat[j] not in (flat[i], IGNORED)
            ]
            wanted = min((d for d in near if d <= reach_mm + 1e-5), default=math.inf)
            assert found[b, slot].item() == pytest.approx(wanted, abs=1e-5)


def disc(n: int = 16) -> Tensor:
    labels = torch.zeros(1, n, n, dtype=torch.long)
    labels[:, 4:12, 4:12] = 1
    return labels


def test_the_nearest_millimetre_is_left_out_and_the_rest_is_weighed() -> None:
    branch = VoxelMetricLoss(BalancedSampler(200), unsure_mm=3.0, left_out_mm=1.0)
    torch.manual_seed(0)
    sample = branch(torch.randn(1, 4, 16, 16), disc(), spacing_mm=(1.0, 1.0)).sample
    assert sample is not None
    assert sample.certainty is not None
    distance = surface_distance(disc(), sample.index, 99.0)
    valid = sample.valid[0]
    assert (distance[0, valid] > 1.5 - 1e-5).logical_or(distance[0, valid] > 1.0).all()
    assert (distance[0, valid] >= math.sqrt(2) - 1e-5).all()
    torch.testing.assert_close(sample.certainty[0, valid], (distance[0, valid] / 3).clamp(max=1))
    plain = VoxelMetricLoss(BalancedSampler(200))
    torch.manual_seed(0)
    drawn = plain(torch.randn(1, 4, 16, 16), disc(), spacing_mm=(1.0, 1.0)).sample
    assert drawn is not None
    assert drawn.certainty is None
    assert torch.equal(drawn.index, sample.index)
    assert drawn.valid.sum() > sample.valid.sum()


def test_voxels_that_are_left_out_do_not_count_as_hard() -> None:
    """All that are hard without a prediction lie within the band, and all of these are left out."""
    found = [
        VoxelMetricLoss(HardEasySampler(64, band_mm=2.0), left_out_mm=mm)(
            torch.randn(1, 4, 16, 16), disc(), spacing_mm=(1.0, 1.0)
        ).statistics["hard_voxels"]
        for mm in (0.0, 2.0)
    ]
    assert found[0] >= 0.5
    assert found[1] == 0


def some(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    embeddings = F.normalize(torch.randn(2, 12, 4, dtype=torch.float64), dim=-1)
    certainty = torch.rand(2, 12, dtype=torch.float64)
    return embeddings, torch.randint(3, (2, 12)), torch.rand(2, 12) < 0.8, certainty


@pytest.mark.parametrize("over", ["violators", "all"])
@pytest.mark.parametrize("pairs", ["random", "all"])
@pytest.mark.parametrize("sure", [True, False])
def test_losses_within_an_image_equal_plain_loops(pairs: Any, over: Any, sure: bool) -> None:
    options = TupleOptions(triplets="random", pairs=pairs, mean_over=over)
    for seed in range(4):
        e, classes, valid, certainty = some(seed)
        torch.manual_seed(seed)
        drawn = random_pairs(classes, valid)
        torch.manual_seed(seed)
        out = tuple_losses(e, classes, valid, 3, options, None if sure else certainty)
        c = torch.ones_like(certainty) if sure else certainty
        triplets, pulls, pushes = [], [], []
        for b in range(2):
            for i in range(12):
                p, n = int(drawn.positive[b, i]), int(drawn.negative[b, i])
                if drawn.positive_valid[b, i] and drawn.negative_valid[b, i]:
                    least = float(min(c[b, i], c[b, p], c[b, n]))
                    gap = math.dist(e[b, i].tolist(), e[b, p].tolist()) - math.dist(
                        e[b, i].tolist(), e[b, n].tolist()
                    )
                    triplets.append(max(0.0, gap + 0.2 * least))
                others = [j for j in range(12) if j != i and valid[b, i] and valid[b, j]]
                if pairs == "random":
                    others = [p] * bool(drawn.positive_valid[b, i]) + [n] * bool(drawn.negative_valid[b, i])
                for j in others:
                    d, least = math.dist(e[b, i].tolist(), e[b, j].tolist()), float(min(c[b, i], c[b, j]))
                    if classes[b, i] == classes[b, j]:
                        pulls.append(max(0.0, d - (1.0 - 0.8 * least)))
                    else:
                        pushes.append(max(0.0, 1.0 * least - d))

        def mean(terms: list[float]) -> float:
            kept = [t for t in terms if t > 0] if over == "violators" else terms
            return sum(kept) / max(1, len(kept))

        assert out.parts["triplet"].item() == pytest.approx(mean(triplets), abs=1e-7)
        assert out.parts["pair"].item() == pytest.approx(mean(pulls) + mean(pushes), abs=1e-7)


def test_unsure_losses_pass_gradcheck() -> None:
    raw, classes, valid, certainty = some(0)
    options = TupleOptions(triplets="random", pairs="all", mean_over="all", across=True)

    def loss(x: Tensor) -> Tensor:
        torch.manual_seed(1)
        return tuple_losses(F.normalize(x, dim=-1), classes, valid, 3, options, certainty).loss

    assert torch.autograd.gradcheck(loss, (raw.requires_grad_(),))


def test_the_control_weighs_voxels_by_how_sure_they_are() -> None:
    torch.manual_seed(0)
    branch = VoxelClassLoss(BalancedSampler(60), channels=[4], unsure_mm=3.0, left_out_mm=1.0).double()
    features = torch.randn(1, 4, 16, 16, dtype=torch.float64, requires_grad=True)
    out = branch(features, disc(), spacing_mm=(1.0, 1.0))
    sample = out.sample
    assert sample is not None
    assert sample.certainty is not None
    scores = branch.classifiers[0](features.flatten(2)[0].T)
    total = weight = 0.0
    for slot in sample.valid[0].nonzero().flatten().tolist():
        i, c = int(sample.index[0, slot]), float(sample.certainty[0, slot])
        total += c * F.cross_entropy(scores[i], sample.classes[0, slot]).item()
        weight += c
    assert out.loss.item() == pytest.approx(total / weight, rel=1e-6)


def test_what_a_branch_draws_does_not_depend_on_how_sure_labels_are() -> None:
    """A control sees the voxels of its method, also where all is left out."""
    branch = VoxelMetricLoss(BalancedSampler(20), left_out_mm=9.0)
    features = torch.randn(1, 4, 16, 16, requires_grad=True)
    out = branch(features, disc(), spacing_mm=(1.0, 1.0))
    assert not out.sample.valid.any()
    out.loss.backward()
    assert out.loss.item() == 0
    assert torch.isfinite(features.grad).all()
