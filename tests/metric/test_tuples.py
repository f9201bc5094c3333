"""Mining against plain Python loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metricunet.metric.tuples import (
    FARTHEST_WEIGHTED,
    TRIPLETS,
    distance_weighted_triplets,
    hard_pairs,
    hardest_triplets,
    mixed_rows,
    negative_log_density,
    random_pairs,
    random_triplets,
    semi_hard_triplets,
)

ROWS, VOXELS = 2, 24


def random_sample(seed: int, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    embeddings = F.normalize(torch.randn(ROWS, VOXELS, 5), dim=-1)
    return embeddings, torch.randint(classes, (ROWS, VOXELS)), torch.rand(ROWS, VOXELS) < 0.8


def loop(
    embeddings: Tensor, classes: Tensor, valid: Tensor, b: int, a: int
) -> tuple[list[float], list[int], list[int]]:
    """Distances from anchor a, the other valid voxels of its class, and those of other classes."""
    d = [math.dist(embeddings[b, a].tolist(), embeddings[b, k].tolist()) for k in range(classes.shape[1])]
    there = [k for k in range(classes.shape[1]) if valid[b, k] and valid[b, a]]
    same = [k for k in there if k != a and classes[b, k] == classes[b, a]]
    return d, same, [k for k in there if classes[b, k] != classes[b, a]]


seeds_and_classes = given(st.integers(0, 10_000), st.integers(2, 5))


@settings(max_examples=25, deadline=None)
@seeds_and_classes
def test_semi_hard_triplets_equal_a_plain_loop(seed: int, n_classes: int) -> None:
    embeddings, classes, valid = random_sample(seed, n_classes)
    drawn = random_pairs(classes, valid)
    mined = semi_hard_triplets(embeddings, classes, valid, n_classes, drawn)
    for b in range(ROWS):
        for a in range(VOXELS):
            d, same, other = loop(embeddings, classes, valid, b, a)
            p, n = int(mined.positive[b, a]), int(mined.negative[b, a])
            farther = [k for k in other if same and d[k] > d[p]]
            assert bool(mined.valid[b, a]) == bool(farther)
            if farther:
                assert p == int(drawn.positive[b, a])
                assert p in same
                assert n in other
                assert d[n] > d[p]
                assert d[n] == pytest.approx(min(d[k] for k in farther), abs=1e-5)


@settings(max_examples=25, deadline=None)
@seeds_and_classes
def test_hard_pairs_and_hardest_triplets_equal_a_plain_loop(seed: int, n_classes: int) -> None:
    embeddings, classes, valid = random_sample(seed, n_classes)
    pairs = hard_pairs(embeddings, classes, valid, n_classes)
    triplets = hardest_triplets(embeddings, classes, valid, n_classes, random_pairs(classes, valid))
    for b in range(ROWS):
        for a in range(VOXELS):
            d, same, other = loop(embeddings, classes, valid, b, a)
            assert bool(pairs.positive_valid[b, a]) == bool(same)
            assert bool(pairs.negative_valid[b, a]) == bool(other)
            assert bool(triplets.valid[b, a]) == bool(same and other)
            if same:
                assert int(pairs.positive[b, a]) in same
                assert d[int(pairs.positive[b, a])] == pytest.approx(max(d[k] for k in same), abs=1e-5)
            if other:
                assert int(pairs.negative[b, a]) in other
                assert d[int(pairs.negative[b, a])] == pytest.approx(min(d[k] for k in other), abs=1e-5)
            if same and other:
                assert triplets.positive[b, a] == pairs.positive[b, a]
                assert triplets.negative[b, a] == pairs.negative[b, a]


def test_random_triplets_are_the_random_pairs() -> None:
    embeddings, classes, valid = random_sample(0)
    drawn = random_pairs(classes, valid)
    triplets = random_triplets(embeddings, classes, valid, 3, drawn)
    assert torch.equal(triplets.positive, drawn.positive)
    assert torch.equal(triplets.negative, drawn.negative)
    assert torch.equal(triplets.valid, drawn.positive_valid & drawn.negative_valid)


@pytest.mark.parametrize("dimensions", [3, 8, 32])
def test_the_density_of_distances_is_that_of_random_points(dimensions: int) -> None:
    """Weighted by the inverse density, distances of random points are spread evenly."""
    torch.manual_seed(0)
    a, b = F.normalize(torch.randn(2, 200_000, dimensions, dtype=torch.float64), dim=-1)
    squared = (a - b).square().sum(dim=-1)
    low, high = (1.1, 1.7) if dimensions == 32 else (0.5, 1.5)
    kept = squared[(squared > low**2) & (squared < high**2)]
    weight = negative_log_density(kept, dimensions).exp()
    edges = torch.linspace(low, high, 6, dtype=torch.float64)
    bins = torch.bucketize(kept.sqrt(), edges[1:-1])
    mass = torch.zeros(5, dtype=torch.float64).index_add_(0, bins, weight)
    assert (mass / mass.sum() - 0.2).abs().max() < 0.02


def test_distance_weighted_negatives_are_drawn_in_proportion_to_their_weights() -> None:
    torch.manual_seed(3)
    embeddings = F.normalize(torch.randn(1, 8, 4), dim=-1)
    classes = torch.tensor([[0, 0, 1, 1, 2, 1, 2, 1]])
    valid = torch.ones(1, 8, dtype=torch.bool)
    valid[0, 7] = False
    draws = 4000
    many = [t.expand(draws, *t.shape[1:]) for t in (embeddings, classes, valid)]
    mined = distance_weighted_triplets(*many, 3, random_pairs(many[1], many[2]))
    for a in range(7):
        d, _, other = loop(embeddings, classes, valid, 0, a)
        weights = torch.zeros(8)
        for k in other:
            if d[k] <= FARTHEST_WEIGHTED:
                near = torch.tensor(max(d[k], 0.5)) ** 2
                weights[k] = negative_log_density(near, 4).exp()
        assert bool(mined.valid[:, a].all()) == bool(mined.valid[:, a].any()) == bool(weights.sum() > 0)
        if weights.sum() > 0:
            counts = torch.bincount(mined.negative[:, a], minlength=8) / draws
            assert (counts - weights / weights.sum()).abs().max() < 0.04


def test_each_partner_has_the_same_chance() -> None:
    torch.manual_seed(1)
    classes = torch.tensor([[0, 1, 0, 0, 1, 0, 2]])
    valid = torch.tensor([[True, True, True, False, True, True, True]])
    draws = 4000
    pairs = random_pairs(classes.expand(draws, -1), valid.expand(draws, -1))
    # Voxel 3 does not exist; voxel 6 is alone in its class.
    groups = [[0, 2, 5], [1, 4], [6]]
    for index, exists, same in (
        (pairs.positive, pairs.positive_valid, True),
        (pairs.negative, pairs.negative_valid, False),
    ):
        counts = torch.stack([torch.bincount(index[:, a][exists[:, a]], minlength=7) for a in range(7)])
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


@pytest.mark.parametrize("kind", TRIPLETS)
def test_no_voxel_and_one_class_alone_make_no_triplet(kind: str) -> None:
    embeddings = F.normalize(torch.randn(2, 6, 4), dim=-1)
    classes = torch.zeros(2, 6, dtype=torch.long)
    valid = torch.tensor([[False] * 6, [True] * 6])
    drawn = random_pairs(classes, valid)
    assert not (drawn.positive_valid[0] | drawn.negative_valid[0]).any()
    assert not TRIPLETS[kind](embeddings, classes, valid, 2, drawn).valid.any()


def test_identical_embeddings_give_no_semi_hard_triplet() -> None:
    embeddings = torch.zeros(1, 6, 4)
    embeddings[..., 0] = 1
    classes = torch.tensor([[0, 0, 0, 1, 1, 1]])
    valid = torch.ones(1, 6, dtype=torch.bool)
    drawn = random_pairs(classes, valid)
    assert not semi_hard_triplets(embeddings, classes, valid, 2, drawn).valid.any()
    # They are the hardest there are, all the same.
    assert hardest_triplets(embeddings, classes, valid, 2, drawn).valid.all()


def test_opposite_embeddings_are_told_apart_from_no_candidates() -> None:
    """The largest distances there are: positives and negatives at both ends of a diameter."""
    embeddings = torch.tensor([[[1.0, 0], [-1, 0], [-1, 0], [1, 0]]])
    classes = torch.tensor([[0, 0, 1, 1]])
    valid = torch.ones(1, 4, dtype=torch.bool)
    pairs = hard_pairs(embeddings, classes, valid, 2)
    assert pairs.positive.tolist() == [[1, 0, 3, 2]]
    assert pairs.negative.tolist() == [[3, 2, 1, 0]]
    assert not semi_hard_triplets(embeddings, classes, valid, 2, random_pairs(classes, valid)).valid.any()


def test_mixed_rows_deal_every_voxel_out_once_and_keep_the_slots() -> None:
    torch.manual_seed(0)
    row = mixed_rows(4, 50, torch.device("cpu"))
    assert torch.equal(row.sort(dim=0).values, torch.arange(4)[:, None].expand(4, 50))
    # Each new row holds voxels of every image.
    assert all(len(set(r.tolist())) == 4 for r in row)
    assert torch.equal(mixed_rows(1, 5, torch.device("cpu")), torch.zeros(1, 5, dtype=torch.long))
