"""Losses: equal to pytorch-metric-learning on the same tuples, value and gradient; safe where it hurts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.losses import ContrastiveLoss, SupConLoss, TripletMarginLoss
from torch import Tensor

from metricunet.metric.losses import (
    TupleOptions,
    all_distances,
    contrastive_loss,
    distances,
    mean_of_positive,
    supervised_contrastive_loss,
    triplet_margin_loss,
)

voxels_and_classes = given(
    st.integers(0, 10_000), st.integers(2, 40), st.integers(1, 5), st.integers(2, 16), st.floats(0.01, 1.5)
)


def assert_equal_to(theirs: Tensor, ours: Tensor, raw: Tensor) -> None:
    """Hold value and gradient to 1e-6."""
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    (one,) = torch.autograd.grad(ours, raw)
    two = torch.autograd.grad(theirs, raw, allow_unused=True)[0]
    torch.testing.assert_close(one, torch.zeros_like(raw) if two is None else two, atol=1e-6, rtol=0)


def drawn(seed: int, voxels: int, classes: int, dimensions: int) -> tuple[Tensor, Tensor, Tensor]:
    """Raw features, the embeddings of unit length that their library makes of them itself, and classes."""
    torch.manual_seed(seed)
    raw = torch.randn(voxels, dimensions, dtype=torch.float64, requires_grad=True)
    return raw, F.normalize(raw, dim=-1), torch.randint(classes, (voxels,))


@settings(max_examples=30, deadline=None)
@voxels_and_classes
@pytest.mark.parametrize("form", ["hinge", "soft"])
def test_triplet_loss_equals_pytorch_metric_learning(
    form: str, seed: int, voxels: int, classes: int, dimensions: int, margin: float
) -> None:
    raw, embeddings, labels = drawn(seed, voxels, classes, dimensions)
    a, p, n = torch.randint(voxels, (3, 200))
    kept = (labels[a] == labels[p]) & (labels[a] != labels[n]) & (a != p)
    near, far = distances(embeddings[a], embeddings[p]), distances(embeddings[a], embeddings[n])
    ours = triplet_margin_loss(near, far, kept, margin, form)  # type: ignore[arg-type]
    theirs = TripletMarginLoss(margin=margin, smooth_loss=form == "soft")
    assert_equal_to(theirs(raw, labels, (a[kept], p[kept], n[kept])), ours, raw)


@settings(max_examples=30, deadline=None)
@voxels_and_classes
def test_contrastive_loss_equals_pytorch_metric_learning(
    seed: int, voxels: int, classes: int, dimensions: int, margin: float
) -> None:
    raw, embeddings, labels = drawn(seed, voxels, classes, dimensions)
    low, high = 0.5 * margin, margin + 0.2
    a, b = torch.randint(voxels, (2, 200))
    same, kept = labels[a] == labels[b], a != b
    ours = contrastive_loss(distances(embeddings[a], embeddings[b]), same, kept, low, high)
    positive, negative = kept & same, kept & ~same
    tuples = (a[positive], b[positive], a[negative], b[negative])
    assert_equal_to(ContrastiveLoss(pos_margin=low, neg_margin=high)(raw, labels, tuples), ours, raw)


@settings(max_examples=30, deadline=None)
@voxels_and_classes
def test_all_pairs_equal_pytorch_metric_learning(
    seed: int, voxels: int, classes: int, dimensions: int, margin: float
) -> None:
    raw, embeddings, labels = drawn(seed, voxels, classes, dimensions)
    low, high = 0.5 * margin, margin + 0.2
    same = labels[:, None] == labels
    others = ~torch.eye(voxels, dtype=torch.bool)
    ours = contrastive_loss(all_distances(embeddings[None])[0], same, others, low, high)
    assert_equal_to(ContrastiveLoss(pos_margin=low, neg_margin=high)(raw, labels), ours, raw)


@settings(max_examples=40, deadline=None)
@voxels_and_classes
def test_supervised_contrastive_loss_equals_pytorch_metric_learning(
    seed: int, voxels: int, classes: int, dimensions: int, temperature: float
) -> None:
    raw, embeddings, labels = drawn(seed, voxels, classes, dimensions)
    temperature = max(temperature, 0.05)
    # Slots without a voxel must not count, whatever they hold.
    padded = torch.cat([embeddings, F.normalize(torch.randn(3, dimensions, dtype=torch.float64), dim=-1)])
    kinds = torch.cat([labels, torch.tensor([0, 1, 0])])
    valid = torch.arange(voxels + 3) < voxels
    ours = supervised_contrastive_loss(padded[None], kinds[None], valid[None], max(2, classes), temperature)
    assert_equal_to(SupConLoss(temperature=temperature)(raw, labels), ours, raw)


def test_supervised_contrastive_loss_by_hand() -> None:
    """Two voxels at one pole, one of another class at the other: e^1 against e^1 + e^-1."""
    e = torch.tensor([[[1.0, 0], [1, 0], [-1, 0]]])
    loss = supervised_contrastive_loss(e, torch.tensor([[0, 0, 1]]), torch.ones(1, 3, dtype=torch.bool), 2, 1.0)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-2)))


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


def test_losses_pass_gradcheck_with_two_identical_embeddings() -> None:
    torch.manual_seed(0)
    e = F.normalize(torch.randn(6, 4, dtype=torch.float64), dim=-1)
    e[1], e[4] = e[0], e[0]
    classes, valid = torch.tensor([0, 0, 0, 1, 1, 1]), torch.ones(6, dtype=torch.bool)
    same, others = classes[:, None] == classes, ~torch.eye(6, dtype=torch.bool)
    near, far = torch.tensor([1, 0, 0, 4, 3, 3]), torch.tensor([4, 3, 5, 0, 0, 1])

    def every_loss(raw: Tensor) -> Tensor:
        x = F.normalize(raw, dim=-1)
        a, b, d = distances(x, x[near]), distances(x, x[far]), all_distances(x[None])[0]
        hinge, soft = (triplet_margin_loss(a, b, valid, 0.2, form) for form in ("hinge", "soft"))  # type: ignore[arg-type]
        pair = contrastive_loss(d, same, others, 0.2, 1.0)
        return torch.stack(
            [hinge, soft, pair, supervised_contrastive_loss(x[None], classes[None], valid[None], 2, 0.1)]
        )

    assert torch.autograd.gradcheck(every_loss, (e.requires_grad_(),))


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


@pytest.mark.parametrize("valid", [[False] * 4, [True, True, False, False], [True, False, True, False]])
def test_supervised_contrastive_loss_bears_what_is_absent(valid: list[bool]) -> None:
    """No voxel, one class alone, and no positive: zero, with a finite gradient."""
    e = F.normalize(torch.ones(1, 4, 3), dim=-1).requires_grad_()
    loss = supervised_contrastive_loss(e, torch.tensor([[0, 0, 1, 1]]), torch.tensor([valid]), 2, 0.05)
    assert loss.item() == 0
    loss.backward()
    assert e.grad is not None
    assert (e.grad == 0).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"triplets": "easy"},
            "triplets must be one of semi_hard, random, hardest, distance_weighted; got 'easy'",
        ),
        ({"pairs": "some"}, "pairs must be one of random, hard, all"),
        ({"triplet_form": "flat"}, "triplet_form must be one of hinge, soft"),
        ({"temperature": 0.0}, "temperature must be above 0"),
    ],
)
def test_impossible_options_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TupleOptions(**settings)
