"""The control: cross-entropy on the very voxels, heads and features of the metric branch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from metricunet.metric import HardEasySampler, VoxelClassLoss, VoxelMetricLoss


def blob() -> torch.Tensor:
    labels = torch.zeros(2, 16, 16, dtype=torch.uint8)
    labels[:, 4:11, 5:12] = 1
    labels[:, 0] = 255
    return labels


def test_it_is_the_cross_entropy_of_the_valid_voxels() -> None:
    torch.manual_seed(0)
    control = VoxelClassLoss(HardEasySampler(400), head=8, channels=[6], ignore_index=255).double()
    features = torch.randn(2, 6, 16, 16, dtype=torch.float64, requires_grad=True)
    out = control(features, blob())
    assert control.heads is not None
    losses, right = [], 0
    for b in range(2):
        for n in range(400):
            if out.sample.valid[b, n]:
                voxel = features[b].flatten(1)[:, out.sample.index[b, n]]
                scores = control.classifiers[0](control.heads[0](voxel))
                label = out.sample.classes[b, n]
                losses.append(F.cross_entropy(scores, label))
                right += int(scores.argmax() == label)
    torch.testing.assert_close(out.loss, torch.stack(losses).mean())
    assert out.statistics["voxel_accuracy"].item() == pytest.approx(right / len(losses))
    out.loss.backward()
    assert features.grad is not None
    assert features.grad.abs().sum() > 0


def test_it_draws_the_voxels_that_the_metric_branch_draws() -> None:
    features, labels, logits = torch.randn(2, 6, 16, 16), blob(), torch.randn(2, 2, 16, 16)
    torch.manual_seed(4)
    one = VoxelMetricLoss(ignore_index=255)(features, labels, logits, (1.0, 3.0)).sample
    control = VoxelClassLoss(channels=[6], ignore_index=255)
    torch.manual_seed(4)
    two = control(features, labels, logits, (1.0, 3.0)).sample
    assert torch.equal(one.index, two.index)
    assert torch.equal(one.valid, two.valid)


def test_no_voxel_at_all_gives_zero_with_a_gradient() -> None:
    control = VoxelClassLoss(head=4, channels=[6, 6], ignore_index=255)
    features = torch.randn(1, 6, 8, 8, requires_grad=True)
    out = control([features, features], torch.full((1, 8, 8), 255, dtype=torch.uint8))
    assert out.loss.item() == 0
    out.loss.backward()
    for gradient in [features.grad, *[p.grad for p in control.parameters()]]:
        assert gradient is not None
        assert (gradient == 0).all()


def test_wrong_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="channels="):
        VoxelClassLoss()
    with pytest.raises(ValueError, match="2 feature maps for 1 classifiers"):
        VoxelClassLoss(channels=[3])([torch.zeros(1, 3, 8, 8)] * 2, torch.zeros(1, 8, 8, dtype=torch.uint8))
