"""Mining against plain Python loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metricunet.metric.tuples import (
    hard_pairs,
    other_class,
    random_positives,
    semi_hard_triplets,
    squared_distances,
)


def random_sample(seed: int, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    embeddings = F.normalize(torch.randn(2, 24, 5), dim=-1)
    return embeddings, torch.randint(classes, (2, 24)), torch.rand(2, 24) < 0.8


@pytest.mark.parametrize("seed", range(8))
def test_semi_hard_triplets_equal_a_plain_loop(seed: int) -> None:
    embeddings, classes, valid = random_sample(seed)
    squared = squared_distances(embeddings)
    mined = semi_hard_triplets(squared, classes, valid, other_class(classes, valid))
    for b in range(2):
        for a in range(24):
            if not mined.valid[b, a]:
                continue
            p, n = int(mined.positive[b, a]), int(mined.negative[b, a])
            assert p != a
            assert valid[b, [a, p, n]].all()
            assert classes[b, a] == classes[b, p] != classes[b, n]
            d = [math.dist(embeddings[b, a].tolist(), embeddings[b, k].tolist()) for k in range(24)]
            farther = [k for k in range(24) if valid[b, k] and classes[b, k] != classes[b, a] and d[k] > d[p]]
            assert d[n] > d[p]
            assert d[n] == pytest.approx(min(d[k] for k in farther), abs=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_a_triplet_is_missing_only_where_none_exists(seed: int) -> None:
    embeddings, classes, valid = random_sample(seed)
    squared = squared_distances(embeddings)
    mined = semi_hard_triplets(squared, classes, valid, other_class(classes, valid))
    for b in range(2):
        for a in range(24):
            partners = [k for k in range(24) if k != a and valid[b, k] and classes[b, k] == classes[b, a]]
            if not valid[b, a] or not partners:
                assert not mined.valid[b, a]
            elif not mined.valid[b, a]:
                others = [k for k in range(24) if valid[b, k] and classes[b, k] != classes[b, a]]
                p = int(mined.positive[b, a])
                assert p in partners
                assert all(squared[b, a, k] <= squared[b, a, p] for k in others)


@pytest.mark.parametrize("seed", range(8))
def test_hard_pairs_equal_a_plain_loop(seed: int) -> None:
    embeddings, classes, valid = random_sample(seed)
    pairs = hard_pairs(squared_distances(embeddings), valid, other_class(classes, valid))
    for b in range(2):
        for a in range(24):
            d = [math.dist(embeddings[b, a].tolist(), embeddings[b, k].tolist()) for k in range(24)]
            there = [k for k in range(24) if valid[b, k] and valid[b, a]]
            same = [d[k] for k in there if k != a and classes[b, k] == classes[b, a]]
            other = [d[k] for k in there if classes[b, k] != classes[b, a]]
            assert bool(pairs.positive_valid[b, a]) == bool(same)
            assert bool(pairs.negative_valid[b, a]) == bool(other)
            if same:
                assert d[int(pairs.positive[b, a])] == pytest.approx(max(same), abs=1e-5)
            if other:
                assert d[int(pairs.negative[b, a])] == pytest.approx(min(other), abs=1e-5)


def test_each_positive_has_the_same_chance() -> None:
    torch.manual_seed(1)
    classes = torch.tensor([[0, 1, 0, 0, 1, 0, 0]])
    valid = torch.tensor([[True, True, True, False, True, True, True]])
    counts = torch.zeros(7, 7)
    draws = 4000
    for _ in range(draws):
        positive, exists = random_positives(classes, valid)
        counts[torch.arange(7), positive[0]] += exists[0].float()
    # Voxel 0 has the partners 2, 5, 6; voxel 3 does not exist; voxels 1 and 4 have each other.
    expected = torch.zeros(7, 7)
    for group in ([0, 2, 5, 6], [1, 4]):
        for a in group:
            for p in group:
                expected[a, p] = 0 if a == p else draws / (len(group) - 1)
    assert (counts[expected == 0] == 0).all()
    spread = 5 * math.sqrt(draws)
    assert ((counts - expected).abs() < spread).all()


def test_a_lone_voxel_has_no_positive() -> None:
    positive, exists = random_positives(torch.tensor([[0, 0, 1]]), torch.tensor([[True, True, True]]))
    assert exists.tolist() == [[True, True, False]]
    assert positive[0, :2].tolist() == [1, 0]


def test_identical_embeddings_give_no_semi_hard_triplet() -> None:
    embeddings = F.normalize(torch.ones(1, 6, 4), dim=-1)
    classes = torch.tensor([[0, 0, 0, 1, 1, 1]])
    valid = torch.ones(1, 6, dtype=torch.bool)
    squared = torch.zeros_like(squared_distances(embeddings))
    assert not semi_hard_triplets(squared, classes, valid, other_class(classes, valid)).valid.any()
