"""Losses: equal to pytorch-metric-learning on the same tuples, value and gradient; safe where it hurts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import ContrastiveLoss, TripletMarginLoss

from metricunet.metric.losses import contrastive_loss, distances, mean_of_positive, triplet_margin_loss


@pytest.mark.parametrize("seed", range(6))
def test_triplet_loss_equals_pytorch_metric_learning(seed: int) -> None:
    torch.manual_seed(seed)
    margin = 0.05 + 0.1 * seed
    raw = torch.randn(30, 8, dtype=torch.float64, requires_grad=True)
    embeddings = F.normalize(raw, dim=-1)  # theirs does so itself
    classes = torch.randint(3, (30,))
    a, p, n = torch.randint(30, (3, 200))
    kept = (classes[a] == classes[p]) & (classes[a] != classes[n]) & (a != p)
    ours = triplet_margin_loss(
        distances(embeddings[a], embeddings[p]), distances(embeddings[a], embeddings[n]), kept, margin
    )
    theirs = TripletMarginLoss(margin=margin)(raw, classes, (a[kept], p[kept], n[kept]))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    (one,) = torch.autograd.grad(ours, raw)
    (two,) = torch.autograd.grad(theirs, raw)
    torch.testing.assert_close(one, two, atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", range(6))
def test_contrastive_loss_equals_pytorch_metric_learning(seed: int) -> None:
    torch.manual_seed(seed)
    low, high = 0.1 * seed, 0.7 + 0.15 * seed
    raw = torch.randn(30, 8, dtype=torch.float64, requires_grad=True)
    embeddings = F.normalize(raw, dim=-1)  # theirs does so itself
    classes = torch.randint(3, (30,))
    a, b = torch.randint(30, (2, 200))
    same, kept = classes[a] == classes[b], a != b
    ours = contrastive_loss(distances(embeddings[a], embeddings[b]), same, kept, low, high)
    positive, negative = kept & same, kept & ~same
    tuples = (a[positive], b[positive], a[negative], b[negative])
    theirs = ContrastiveLoss(pos_margin=low, neg_margin=high)(raw, classes, tuples)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    (one,) = torch.autograd.grad(ours, raw)
    (two,) = torch.autograd.grad(theirs, raw)
    torch.testing.assert_close(one, two, atol=1e-6, rtol=0)


def test_known_values() -> None:
    positive, negative = torch.tensor([0.5, 0.2, 0.3]), torch.tensor([0.4, 0.9, 0.2])
    valid = torch.tensor([True, True, False])
    # Only the first triplet violates the margin and exists: 0.5 - 0.4 + 0.2.
    assert float(triplet_margin_loss(positive, negative, valid, 0.2)) == pytest.approx(0.3)
    distance, same = torch.tensor([0.5, 0.1, 0.4, 2.0]), torch.tensor([True, True, False, False])
    # Pull 0.5 to 0.2, push 0.4 to 1.0; the others are where they should be.
    assert float(contrastive_loss(distance, same, torch.ones(4).bool(), 0.2, 1.0)) == pytest.approx(0.3 + 0.6)


def test_nothing_gives_zero_with_a_gradient() -> None:
    embeddings = torch.randn(4, 3, requires_grad=True)
    loss = triplet_margin_loss(
        distances(embeddings[:2], embeddings[2:]),
        distances(embeddings[2:], embeddings[:2]),
        torch.zeros(2).bool(),
        0.2,
    )
    assert loss.item() == 0
    loss.backward()
    assert embeddings.grad is not None
    assert (embeddings.grad == 0).all()


def test_equal_embeddings_have_a_finite_gradient() -> None:
    a = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    b = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    distances(a, b).sum().backward()
    assert a.grad is not None
    assert torch.isfinite(a.grad).all()


def test_distances_pass_gradcheck() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 4, 3, dtype=torch.float64).requires_grad_().unbind(0)
    assert torch.autograd.gradcheck(distances, (a.detach().requires_grad_(), b.detach().requires_grad_()))


def test_invalid_terms_do_not_leak_even_if_not_finite() -> None:
    terms = torch.tensor([1.0, float("nan"), float("inf")], requires_grad=True)
    loss = mean_of_positive(terms, torch.tensor([True, False, False]))
    loss.backward()
    assert loss.item() == 1
    assert terms.grad is not None
    assert terms.grad.tolist() == [1, 0, 0]
