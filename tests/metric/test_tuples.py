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
    random_pairs,
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
    mined = semi_hard_triplets(squared, random_pairs(classes, valid), other_class(classes, valid))
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
    mined = semi_hard_triplets(squared, random_pairs(classes, valid), other_class(classes, valid))
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


def test_each_partner_has_the_same_chance() -> None:
    torch.manual_seed(1)
    classes = torch.tensor([[0, 1, 0, 0, 1, 0, 2]])
    valid = torch.tensor([[True, True, True, False, True, True, True]])
    draws = 4000
    positives, negatives = torch.zeros(7, 7), torch.zeros(7, 7)
    for _ in range(draws):
        pairs = random_pairs(classes, valid)
        positives[torch.arange(7), pairs.positive[0]] += pairs.positive_valid[0].float()
        negatives[torch.arange(7), pairs.negative[0]] += pairs.negative_valid[0].float()
    # Voxel 3 does not exist; voxel 6 is alone in its class.
    groups = [[0, 2, 5], [1, 4], [6]]
    for counts, same in ((positives, True), (negatives, False)):
        expected = torch.zeros(7, 7)
        for group in groups:
            for a in group:
                partners = [p for g in groups for p in g if (g == group) == same and p != a]
                expected[a, partners] = draws / max(1, len(partners))
        assert (counts[expected == 0] == 0).all()
        assert ((counts - expected).abs() < 5 * math.sqrt(draws)).all()


def test_a_lone_voxel_has_no_positive_and_a_lone_class_no_negative() -> None:
    pairs = random_pairs(torch.tensor([[0, 0, 1], [2, 2, 2]]), torch.ones(2, 3, dtype=torch.bool))
    assert pairs.positive_valid.tolist() == [[True, True, False], [True, True, True]]
    assert pairs.negative_valid.tolist() == [[True, True, True], [False, False, False]]
    assert pairs.positive[0, :2].tolist() == [1, 0]
    assert pairs.negative[0, :2].tolist() == [2, 2]


def test_no_voxel_at_all() -> None:
    pairs = random_pairs(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 4, dtype=torch.bool))
    assert not pairs.positive_valid.any()
    assert not pairs.negative_valid.any()


def test_identical_embeddings_give_no_semi_hard_triplet() -> None:
    embeddings = F.normalize(torch.ones(1, 6, 4), dim=-1)
    classes = torch.tensor([[0, 0, 0, 1, 1, 1]])
    valid = torch.ones(1, 6, dtype=torch.bool)
    squared = torch.zeros_like(squared_distances(embeddings))
    assert not semi_hard_triplets(squared, random_pairs(classes, valid), other_class(classes, valid)).valid.any()
