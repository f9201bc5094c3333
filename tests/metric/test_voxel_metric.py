"""VoxelMetricLoss as a whole: gradients, empty batches, heads, several maps, precision, and that it learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metricunet.metric import HardEasySampler, VoxelMetricLoss


def blob(batch: int = 2, side: int = 16) -> Tensor:
    labels = torch.zeros(batch, side, side, dtype=torch.uint8)
    labels[:, 4:11, 5:12] = 1
    return labels


def test_the_five_lines_of_the_readme() -> None:
    metric = VoxelMetricLoss()
    features = torch.randn(2, 8, 16, 16, requires_grad=True)
    out = metric(features, blob(), logits=torch.randn(2, 2, 16, 16), spacing_mm=(1.0, 1.0))
    assert out.loss.item() == pytest.approx(out.triplet.item() + out.pair.item())
    out.loss.backward()
    assert features.grad is not None
    assert features.grad.abs().sum() > 0
    names = {"active_triplets", "positive_distance", "negative_distance", "spread", "hard_voxels", "valid_voxels"}
    assert set(out.statistics) == names
    assert not any(value.requires_grad for value in out.statistics.values())


@pytest.mark.parametrize("labels", [torch.zeros(2, 8, 8), torch.ones(2, 8, 8), torch.full((2, 8, 8), 255)])
def test_a_batch_of_one_class_or_none_gives_a_finite_loss_with_a_gradient(labels: Tensor) -> None:
    metric = VoxelMetricLoss(head=4, channels=[6], ignore_index=255)
    features = torch.randn(2, 6, 8, 8, requires_grad=True)
    out = metric(features, labels.to(torch.uint8))
    assert torch.isfinite(out.loss)
    assert out.triplet.item() == 0
    out.loss.backward()
    for gradient in [features.grad, *[p.grad for p in metric.parameters()]]:
        assert gradient is not None
        assert torch.isfinite(gradient).all()


def test_ignored_images_give_exactly_zero() -> None:
    metric = VoxelMetricLoss(ignore_index=255)
    out = metric(torch.randn(1, 6, 8, 8), torch.full((1, 8, 8), 255, dtype=torch.uint8))
    assert out.loss.item() == 0


def test_identical_features_have_finite_gradients() -> None:
    features = torch.ones(1, 4, 16, 16, requires_grad=True)
    out = VoxelMetricLoss()(features, blob(1))
    out.loss.backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()
    assert out.statistics["spread"].item() == pytest.approx(0, abs=1e-6)


def test_the_gradient_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    metric = VoxelMetricLoss(HardEasySampler(voxels=16)).double()
    labels = blob(1, 12)

    def loss(features: Tensor) -> Tensor:
        torch.manual_seed(5)
        return metric(features, labels).loss

    features = torch.randn(1, 3, 12, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (features,))


def test_three_dimensions_and_a_coarser_map() -> None:
    labels = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    labels[:, 2:6, 2:6, 2:6] = 1
    maps = [torch.randn(1, 4, 8, 8, 8, requires_grad=True), torch.randn(1, 6, 4, 4, 4, requires_grad=True)]
    metric = VoxelMetricLoss(head=5, channels=[4, 6])
    out = metric(maps, labels, spacing_mm=(2.0, 1.0, 1.0))
    out.loss.backward()
    assert all(m.grad is not None and m.grad.abs().sum() > 0 for m in maps)


def test_several_maps_are_averaged() -> None:
    torch.manual_seed(0)
    features, metric = torch.randn(2, 8, 16, 16), VoxelMetricLoss(pairs="hard")
    torch.manual_seed(1)
    one = metric(features, blob())
    torch.manual_seed(1)
    # Unit length is the loss's business, so a scaled map is the same map: its mined pairs are, too.
    both = metric([features, features * 3], blob())
    assert both.pair.item() == pytest.approx(one.pair.item(), abs=1e-5)


def test_the_weights_and_kinds_of_pairs() -> None:
    features = torch.randn(1, 8, 16, 16)
    torch.manual_seed(1)
    out = VoxelMetricLoss(triplet_weight=0.5, pair_weight=2.0)(features, blob(1))
    assert out.loss.item() == pytest.approx(0.5 * out.triplet.item() + 2 * out.pair.item())
    torch.manual_seed(1)
    assert VoxelMetricLoss(pairs="hard")(features, blob(1)).pair > out.pair
    with pytest.raises(ValueError, match="random, hard"):
        VoxelMetricLoss(pairs="some")  # type: ignore[arg-type]


def test_bf16_features_are_close_to_float32() -> None:
    features = torch.randn(2, 16, 16, 16)
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(2)
        losses.append(VoxelMetricLoss()(features.to(dtype), blob()).loss)
    assert losses[1].dtype == torch.float32
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=0.02)


def test_training_on_the_loss_separates_the_classes() -> None:
    torch.manual_seed(0)
    labels = blob(2)
    images = labels[:, None].float() + 0.5 * torch.randn(2, 1, 16, 16)
    net = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1))
    metric = VoxelMetricLoss(HardEasySampler(voxels=64))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    first = last = None
    for _ in range(80):
        out = metric(net(images), labels)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        first, last = (out if first is None else first), out
    assert first is not None
    assert last is not None
    gap = [o.statistics["negative_distance"] - o.statistics["positive_distance"] for o in (first, last)]
    assert last.loss < 0.5 * first.loss
    assert gap[1] > gap[0] + 0.1


def test_wrong_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="channels="):
        VoxelMetricLoss(head=32)
    with pytest.raises(ValueError, match="2 feature maps for 1 heads"):
        VoxelMetricLoss(head=4, channels=[3])([torch.zeros(1, 3, 8, 8)] * 2, blob(1, 8))
