"""Segmentation losses against plain sums."""

from __future__ import annotations

import math

import pytest
import torch

from metricunet.training.objectives import segmentation_loss, soft_dice_loss


def test_soft_dice_by_hand() -> None:
    # Two voxels, two classes: probability of class 1 is 0.5 on both; one of them is class 1.
    logits = torch.zeros(1, 2, 1, 2)
    labels = torch.tensor([[[1, 0]]])
    assert soft_dice_loss(logits, labels).item() == pytest.approx(1 - (2 * 0.5 + 1) / (1.0 + 1 + 1))


def test_a_perfect_prediction_costs_nothing() -> None:
    labels = torch.randint(3, (2, 6, 6))
    logits = 100 * torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    assert segmentation_loss(logits, labels, 1, 1).item() == pytest.approx(0, abs=1e-5)


def test_cross_entropy_is_the_mean_over_what_counts() -> None:
    logits = torch.zeros(1, 2, 1, 3)
    labels = torch.tensor([[[1, 0, 255]]], dtype=torch.uint8)
    assert segmentation_loss(logits, labels, 0, 1).item() == pytest.approx(math.log(2))


def test_ignored_voxels_have_no_gradient_and_no_weight() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 4, 4, requires_grad=True)
    labels = torch.randint(2, (2, 4, 4), dtype=torch.uint8)
    labels[:, 2:] = 255
    loss = segmentation_loss(logits, labels, 1, 1)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[:, :, 2:] == 0).all()
    assert gradient[:, :, :2].abs().sum() > 0
    part = segmentation_loss(logits[:, :, :2], labels[:, :2], 1, 1)
    assert loss.item() == pytest.approx(part.item(), rel=1e-6)


def test_classes_that_a_batch_lacks_can_be_left_out_of_the_dice() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 5, 5, requires_grad=True)
    labels = torch.randint(3, (2, 5, 5))  # class 3 is in none
    shares = logits.softmax(dim=1)
    by_hand = [
        1 - (2 * shares[:, k][labels == k].sum() + 1) / (shares[:, k].sum() + (labels == k).sum() + 1)
        for k in (1, 2)
    ]
    left_out = soft_dice_loss(logits, labels, count_absent=False)
    assert left_out.item() == pytest.approx(torch.stack(by_hand).mean().item(), rel=1e-6)
    everything = torch.full((2, 5, 5), 1)
    assert soft_dice_loss(logits, everything, count_absent=False) != soft_dice_loss(logits, everything)
    same = torch.arange(50).view(2, 5, 5) % 4  # each class is there
    assert soft_dice_loss(logits, same, count_absent=False).item() == soft_dice_loss(logits, same).item()


def test_a_batch_without_any_class_has_no_dice_and_cross_entropy_alone() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    labels = torch.zeros((1, 4, 4), dtype=torch.long)
    loss = segmentation_loss(logits, labels, 1, 1, count_absent=False)
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(soft_dice_loss(logits, labels, count_absent=False), logits)
    assert (gradient == 0).all()


@pytest.mark.parametrize("value", [0, 255])
def test_batches_without_a_structure_or_without_any_label(value: int) -> None:
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((1, 4, 4), value, dtype=torch.uint8), 1, 1)
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
