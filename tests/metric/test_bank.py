"""The memory bank: first in, first out, the same in every process; its tuples and losses are plain loops'."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metricunet.metric import BalancedSampler, EmbeddingBank, TupleOptions, VoxelMetricLoss
from metricunet.metric.bank import Held, bank_losses, draw_partners, mine_triplets

SIZE, CLASSES, DIMENSIONS = 6, 3, 4


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def some_held(filled: tuple[int, ...] = (6, 4, 2)) -> Held:
    """A bank that is filled in part; what is not filled holds junk that must not count."""
    return Held(
        unit(CLASSES * SIZE, DIMENSIONS),
        torch.arange(CLASSES).repeat_interleave(SIZE),
        (torch.arange(SIZE) < torch.tensor(filled)[:, None]).flatten(),
        torch.rand(CLASSES * SIZE, dtype=torch.float64),
        torch.tensor(filled),
    )


def some_voxels(batch: int = 2, voxels: int = 10) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings, classes, validity and certainty."""
    return (
        unit(batch, voxels, DIMENSIONS),
        torch.randint(CLASSES, (batch, voxels)),
        torch.rand(batch, voxels) < 0.8,
        torch.rand(batch, voxels, dtype=torch.float64),
    )


def mean(terms: list[float], over: str) -> float:
    kept = [t for t in terms if t > 0] if over == "violators" else terms
    return sum(kept) / max(1, len(kept))


def distance(a: Tensor, b: Tensor) -> float:
    return math.dist(a.tolist(), b.tolist())


def looped(
    embeddings: Tensor, classes: Tensor, valid: Tensor, held: Held, options: TupleOptions, certainty: Tensor | None
) -> dict[str, float]:
    """The losses by plain loops; random partners are those that the seed gives."""
    e, k, v = embeddings.flatten(0, 1), classes.flatten(), valid.flatten()
    drawn = draw_partners(torch.where(v, k, 0), v, held)
    c = [1.0] * len(k) if certainty is None else certainty.flatten().tolist()
    cb = [1.0] * len(held.classes) if certainty is None else held.certainty.tolist()
    b = held.embeddings
    own = [[j for j in range(len(b)) if held.valid[j] and held.classes[j] == k[i]] for i in range(len(k))]
    others = [[j for j in range(len(b)) if held.valid[j] and held.classes[j] != k[i]] for i in range(len(k))]
    triplets, pulls, pushes, contrasts = [], [], [], []
    for i in range(len(k)):
        if not v[i]:
            continue
        if own[i] and others[i]:
            p, n = int(drawn.positive[i]), int(drawn.negative[i])
            if options.triplets == "hardest":
                p = max(own[i], key=lambda j: distance(e[i], b[j]))
                n = min(others[i], key=lambda j: distance(e[i], b[j]))
            elif options.triplets == "semi_hard":
                farther = [j for j in others[i] if distance(e[i], b[j]) > distance(e[i], b[p])]
                n = min(farther, key=lambda j: distance(e[i], b[j])) if farther else -1
            if n >= 0:
                violation = distance(e[i], b[p]) - distance(e[i], b[n])
                violation += options.margin * min(c[i], cb[p], cb[n])
                triplets.append(max(0.0, violation))
            logits = [float(e[i] @ b[j]) / options.temperature for j in own[i] + others[i]]
            likely = math.log(sum(math.exp(x) for x in logits))
            contrasts.append(likely - sum(logits[: len(own[i])]) / len(own[i]))
        near = {"random": [int(drawn.positive[i])], "all": own[i]}.get(options.pairs)
        far = {"random": [int(drawn.negative[i])], "all": others[i]}.get(options.pairs)
        if options.pairs == "hard":
            near = [max(own[i], key=lambda j: distance(e[i], b[j]))] if own[i] else []
            far = [min(others[i], key=lambda j: distance(e[i], b[j]))] if others[i] else []
        gap = options.negative_margin - options.positive_margin
        for j in near if own[i] else []:
            low = options.negative_margin - gap * min(c[i], cb[j])
            pulls.append(max(0.0, distance(e[i], b[j]) - low))
        for j in far if others[i] else []:
            pushes.append(max(0.0, options.negative_margin * min(c[i], cb[j]) - distance(e[i], b[j])))
    return {
        "triplet": mean(triplets, options.mean_over),
        "pair": mean(pulls, options.mean_over) + mean(pushes, options.mean_over),
        "supcon": mean(contrasts, "violators"),
    }


@pytest.mark.parametrize("over", ["violators", "all"])
@pytest.mark.parametrize("sure", [True, False])
@pytest.mark.parametrize(
    ("triplets", "pairs"), [("random", "random"), ("semi_hard", "random"), ("hardest", "hard"), ("random", "all")]
)
def test_losses_equal_plain_loops(triplets: Any, pairs: Any, sure: bool, over: Any) -> None:
    for seed, filled in ((0, (6, 4, 2)), (1, (6, 6, 6)), (2, (3, 0, 1)), (3, (0, 5, 0))):
        torch.manual_seed(seed)
        embeddings, classes, valid, certainty = some_voxels()
        held, told = some_held(filled), None if sure else certainty
        held = held._replace(certainty=torch.ones_like(held.certainty)) if sure else held
        options = TupleOptions(triplets=triplets, pairs=pairs, mean_over=over, supcon_weight=0.7, pair_weight=0.5)
        torch.manual_seed(seed)
        out = bank_losses(embeddings, classes, valid, held, options, told)
        torch.manual_seed(seed)
        wanted = looped(embeddings, classes, valid, held, options, told)
        assert {name: part.item() for name, part in out.parts.items()} == pytest.approx(wanted, abs=1e-7)
        total = wanted["triplet"] + 0.5 * wanted["pair"] + 0.7 * wanted["supcon"]
        assert out.loss.item() == pytest.approx(total, abs=1e-7)


@pytest.mark.parametrize("pairs", ["random", "all"])
def test_losses_pass_gradcheck(pairs: Any) -> None:
    torch.manual_seed(0)
    raw, classes, valid, certainty = some_voxels(1, 6)
    held = some_held()
    options = TupleOptions(triplets="random", pairs=pairs, supcon_weight=1, mean_over="all")

    def loss(x: Tensor) -> Tensor:
        torch.manual_seed(1)
        return bank_losses(F.normalize(x, dim=-1), classes, valid, held, options, certainty).loss

    assert torch.autograd.gradcheck(loss, (raw.requires_grad_(),))


def test_partners_are_drawn_alike_from_what_is_filled() -> None:
    torch.manual_seed(0)
    held = some_held((3, 0, 2))
    classes = torch.tensor([0, 1, 2]).repeat(4000)
    drawn = draw_partners(classes, torch.ones_like(classes, dtype=torch.bool), held)
    assert drawn.positive_valid.view(-1, 3).all(dim=0).tolist() == [True, False, True]
    assert drawn.negative_valid.all()
    filled = [0, 1, 2, 12, 13]
    for k, own in ((0, [0, 1, 2]), (2, [12, 13])):
        for found, wanted in (
            (drawn.positive[classes == k], own),
            (drawn.negative[classes == k], [j for j in filled if j not in own]),
        ):
            values, counts = found.unique(return_counts=True)
            assert values.tolist() == wanted
            assert (counts / len(found)).tolist() == pytest.approx([1 / len(wanted)] * len(wanted), abs=0.03)
    assert sorted(drawn.negative[classes == 1].unique().tolist()) == filled


def test_distance_weighted_negatives_are_entries_of_another_class_within_reach() -> None:
    torch.manual_seed(0)
    embeddings, classes, valid, _ = some_voxels(1, 200)
    held = some_held()
    e, k, v = embeddings[0], classes[0], valid[0]
    drawn = draw_partners(k, v, held)
    found = mine_triplets(e, k, v, held, TupleOptions(triplets="distance_weighted"), drawn)
    assert found.valid.any()
    for i in found.valid.nonzero().flatten().tolist():
        j = int(found.negative[i])
        assert held.valid[j]
        assert held.classes[j] != k[i]
        assert distance(e[i], held.embeddings[j]) <= 1.4 + 1e-6


def test_an_empty_bank_gives_zero_with_a_gradient() -> None:
    embeddings, classes, valid, _ = some_voxels()
    embeddings.requires_grad_()
    out = bank_losses(embeddings, classes, valid, some_held((0, 0, 0)), TupleOptions(supcon_weight=1))
    out.loss.backward()
    assert out.loss.item() == 0
    assert embeddings.grad is not None
    assert (embeddings.grad == 0).all()


def test_the_first_in_is_the_first_out() -> None:
    """Against a plain queue for each class."""
    torch.manual_seed(0)
    bank = EmbeddingBank(SIZE, CLASSES, 2, new=3).double()
    queues: list[list[float]] = [[] for _ in range(CLASSES)]
    number = 0.0
    for _ in range(12):
        classes, valid = torch.randint(CLASSES, (5, 1)), torch.rand(5, 1) < 0.7
        embeddings = torch.zeros(5, 1, 2, dtype=torch.float64)
        entered: list[tuple[int, float]] = []
        for i in range(4):  # the fifth image is not contoured
            number += 1
            embeddings[i, 0, 0] = number
            if valid[i, 0]:
                entered.append((int(classes[i, 0]), number))
        bank.enter(0, embeddings, classes, valid, images=4)
        for k, value in entered:
            queues[k] = [*queues[k], value][-SIZE:]
        held = bank.held(0)
        for k, queue in enumerate(queues):
            assert int(held.filled[k]) == len(queue)
            stored = held.embeddings.view(CLASSES, SIZE, 2)[k, : len(queue), 0]
            assert sorted(stored.tolist()) == queue


def test_an_image_adds_no_more_than_it_may_and_the_last_count() -> None:
    bank = EmbeddingBank(4, 2, 1, new=3)
    embeddings = torch.arange(1.0, 31.0).view(3, 10, 1)
    bank.enter(0, embeddings, torch.zeros(3, 10, dtype=torch.long), torch.ones(3, 10, dtype=torch.bool))
    held = bank.held(0)
    assert held.filled.tolist() == [4, 0]
    # Nine were drawn, three of each image: the last four are the third image's and one of the second's.
    images = sorted(((held.embeddings[:4, 0] - 1) // 10).tolist())
    assert images == [1, 2, 2, 2]


def test_voxels_that_overflowed_stay_out() -> None:
    """Each that were held would make no number of the losses of many updates, until it is the oldest."""
    torch.manual_seed(0)
    bank = EmbeddingBank(8, 2, DIMENSIONS, new=4)
    embeddings = unit(2, 4, DIMENSIONS).float()
    embeddings[0, 1, 2] = torch.nan
    embeddings[1, 3] = torch.inf
    bank.enter(0, embeddings, torch.zeros(2, 4, dtype=torch.long), torch.ones(2, 4, dtype=torch.bool))
    assert bank.held(0).filled.tolist() == [6, 0]
    assert torch.isfinite(bank.embeddings).all()


def test_the_branch_takes_up_contoured_images_alone_and_only_in_training() -> None:
    torch.manual_seed(0)
    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    labels[:, 2:5, 2:6] = 1
    features = torch.randn(2, 3, 8, 8, requires_grad=True)
    bank = EmbeddingBank(16, 2, 4, new=4)
    branch = VoxelMetricLoss(BalancedSampler(16), head=4, channels=[3], bank=bank)
    first = branch(features, labels, contoured=1)
    assert bank.entered.tolist() == [[4, 4]]
    assert first.parts["bank_triplet"].item() == 0
    assert first.statistics["bank_filled"].item() == 0
    second = branch(features, labels, contoured=1)
    assert second.statistics["bank_filled"].item() == pytest.approx(4 / 16)
    assert second.parts["bank_pair"].item() > 0
    here = second.parts["triplet"] + second.parts["pair"]
    there = second.parts["bank_triplet"] + second.parts["bank_pair"]
    torch.testing.assert_close(second.loss, 0.5 * here + 0.5 * there)
    second.loss.backward()
    branch.eval()
    branch(features, labels)
    assert bank.entered.tolist() == [[8, 8]]
    assert set(branch.state_dict()) >= {"bank.embeddings", "bank.certainty", "bank.entered"}


def test_a_bank_of_other_classes_and_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="a bank of 3 classes; this branch tells 2 apart"):
        VoxelMetricLoss(bank=EmbeddingBank(8, 3, 4, new=4))
    with pytest.raises(ValueError, match="new at most size"):
        EmbeddingBank(8, 2, 4, new=9)


WORKER = """
import sys
import torch
import torch.distributed as dist
from metricunet.metric import BackgroundClusters, BalancedSampler, EmbeddingBank, VoxelMetricLoss

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
kinds = BackgroundClusters(3, 4)
branch = VoxelMetricLoss(
    BalancedSampler(16), head=4, channels=[3], background=kinds, bank=EmbeddingBank(12, 4, 4, new=3)
)
model = torch.nn.parallel.DistributedDataParallel(branch)
optimizer = torch.optim.SGD(branch.parameters(), 0.1)
for update in range(4):
    torch.manual_seed(10 * update + rank)
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[:, 2:5, 2:6] = 1
    loss = model(torch.randn(1, 3, 8, 8), labels).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
torch.save(branch.state_dict(), f"{store}.{rank}.pt")
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_hold_one_bank_and_one_set_of_clusters(tmp_path: Path) -> None:
    if not torch.distributed.is_available():
        pytest.skip("this torch has no distributed package")
    store = tmp_path / "store"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(store)], env=environment, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    try:
        errors = [worker.communicate(timeout=600)[1].decode() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(errors)
    one, two = (torch.load(f"{store}.{rank}.pt", weights_only=True) for rank in range(2))
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name
    # Both images of each update entered: 3 voxels of the gland each, four times, in a bank of 12.
    assert one["bank.entered"][0, 1] == 24
