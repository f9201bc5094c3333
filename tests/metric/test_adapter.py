"""The adapter: any miner and loss of pytorch-metric-learning, on our voxels; and what a missing extra says."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses, miners

from metricunet.metric import HardEasySampler
from metricunet.metric.adapter import AdaptedMetricLoss


def blob() -> torch.Tensor:
    labels = torch.zeros(3, 16, 16, dtype=torch.uint8)
    labels[:2, 4:11, 5:12] = 1
    return labels


def test_it_is_the_mean_of_the_library_over_the_images() -> None:
    torch.manual_seed(0)
    features = torch.randn(3, 6, 16, 16, requires_grad=True)
    loss, miner = (
        losses.TripletMarginLoss(margin=0.1),
        miners.TripletMarginMiner(margin=0.2, type_of_triplets="all"),
    )
    out = AdaptedMetricLoss(loss, miner, HardEasySampler(40))(features, blob())
    expected = torch.zeros(())
    for b in range(2):  # the third image holds one class, so it adds nothing
        e = features[b].flatten(1).T[out.sample.index[b]]
        c = out.sample.classes[b]
        expected = expected + loss(e, c, miner(F.normalize(e, dim=-1), c)) / 3
    torch.testing.assert_close(out.loss, expected)
    out.loss.backward()
    assert features.grad is not None
    assert features.grad[:2].abs().sum() > 0
    assert features.grad[2].abs().sum() == 0


@pytest.mark.parametrize(
    ("loss", "miner"),
    [
        ("SupConLoss", None),
        ("ContrastiveLoss", "PairMarginMiner"),
        ("TripletMarginLoss", "DistanceWeightedMiner"),
        ("MultiSimilarityLoss", "MultiSimilarityMiner"),
        ("CircleLoss", "BatchHardMiner"),
        (losses.ProxyAnchorLoss(num_classes=2, embedding_size=4), None),
    ],
)
@pytest.mark.parametrize("across", [False, True])
def test_many_losses_and_miners_run(loss: torch.nn.Module | str, miner: str | None, across: bool) -> None:
    torch.manual_seed(0)
    metric = AdaptedMetricLoss(loss, miner, HardEasySampler(32), head=4, channels=[6], across=across)
    features = torch.randn(3, 6, 16, 16, requires_grad=True)
    out = metric(features, blob())
    assert torch.isfinite(out.loss)
    out.loss.backward()
    assert features.grad is not None
    assert features.grad.abs().sum() > 0


def test_one_class_alone_gives_zero_with_a_gradient() -> None:
    features = torch.randn(1, 6, 8, 8, requires_grad=True)
    out = AdaptedMetricLoss("SupConLoss")(features, torch.zeros(1, 8, 8, dtype=torch.uint8))
    assert out.loss.item() == 0
    out.loss.backward()
    assert features.grad is not None


def test_unknown_names_and_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="has no 'BestLoss'"):
        AdaptedMetricLoss("BestLoss")
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(ImportError, match=r'pip install "metricunet\[metric-learning\]"$'):
        AdaptedMetricLoss("SupConLoss")
