"""Kinds of background: by intensity, and as clusters that follow the embeddings."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metricunet.metric import BackgroundClusters, BalancedSampler, IntensityKinds, VoxelClassLoss, VoxelMetricLoss
from metricunet.metric.background import far_apart
from metricunet.metric.sampling import Sample


def sample_of(classes: Tensor, valid: Tensor | None = None) -> Sample:
    index = torch.arange(classes.shape[1]).expand_as(classes)
    valid = torch.ones_like(classes, dtype=torch.bool) if valid is None else valid
    return Sample(index, classes, valid, torch.zeros_like(valid))


def test_intensities_part_the_kinds() -> None:
    kinds = IntensityKinds((-0.5, 0.5))
    image = torch.tensor([[[-1.0, -0.5, 0.0], [0.5, 0.6, 9.0]]])
    sample = sample_of(torch.zeros(1, 6, dtype=torch.long))
    assert kinds.kinds == 3
    assert kinds(torch.zeros(1, 6, 2), sample, 0, image).tolist() == [[0, 0, 1, 1, 2, 2]]
    with pytest.raises(ValueError, match="pass image="):
        kinds(torch.zeros(1, 6, 2), sample, 0, None)
    with pytest.raises(ValueError, match="rising"):
        IntensityKinds((1.0, 1.0))


def groups(seed: int, voxels: int = 60) -> tuple[Tensor, Tensor]:
    """Embeddings around three directions, and which of them each is of."""
    torch.manual_seed(seed)
    of_group = torch.randint(3, (1, voxels))
    return F.normalize(torch.eye(3)[of_group] + 0.1 * torch.randn(1, voxels, 3), dim=-1), of_group


def test_clusters_find_groups_and_keep_their_names() -> None:
    clusters = BackgroundClusters(3, 3)
    names: dict[int, int] = {}
    for seed in range(5):
        embeddings, of_group = groups(seed)
        kinds = clusters(embeddings, sample_of(torch.zeros_like(of_group)), 0, None)
        for group in range(3):
            (kind,) = kinds[of_group == group].unique().tolist()
            assert names.setdefault(group, kind) == kind
    assert sorted(names.values()) == [0, 1, 2]


def test_a_step_equals_a_plain_loop() -> None:
    embeddings, _ = groups(1, 20)
    classes, valid = (torch.rand(1, 20) < 0.3).long(), torch.rand(1, 20) < 0.8
    clusters = BackgroundClusters(3, 3, decay=0.7).double()
    start = F.normalize(torch.randn(3, 3, dtype=torch.float64), dim=-1)
    clusters.centres[0], clusters.begun[0] = start, True
    kinds = clusters(embeddings.double(), sample_of(classes, valid), 0, None)
    counted = [i for i in range(20) if valid[0, i] and classes[0, i] == 0]
    e = embeddings[0].double()
    nearest = [max(range(3), key=lambda k: float(e[i] @ start[k])) for i in range(20)]
    assert kinds[0].tolist() == nearest
    by_likeness = sorted(counted, key=lambda i: float(e[i] @ start[nearest[i]]))
    for k in range(3):
        members = [e[i] for i in counted if nearest[i] == k]
        if members:
            mean = F.normalize(torch.stack(members).sum(dim=0), dim=0)
            wanted = F.normalize(0.7 * start[k] + 0.3 * mean, dim=0)
        else:
            wanted = e[by_likeness[k]]
        torch.testing.assert_close(clusters.centres[0, k], wanted)


def test_centres_come_from_the_background_also_where_it_has_fewer_voxels_than_kinds() -> None:
    """One voxel of the background and three of the prostate, which must not become a kind of background."""
    clusters = BackgroundClusters(3, 2)
    clusters.centres[0], clusters.begun[0] = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]]), True
    embeddings = torch.tensor([[[0.6, 0.8], [0.0, 1.0], [-0.6, 0.8], [-0.8, 0.6]]])
    clusters(embeddings, sample_of(torch.tensor([[0, 1, 1, 1]])), 0, None)
    # The first centre has it, and it is all that there is for the other two.
    torch.testing.assert_close(clusters.centres[0, 1:], torch.tensor([[0.6, 0.8], [0.6, 0.8]]))


def test_centres_stay_where_there_is_no_background_and_in_evaluation() -> None:
    clusters = BackgroundClusters(2, 3)
    embeddings, of_group = groups(0)
    clusters(embeddings, sample_of(torch.ones_like(of_group)), 0, None)
    assert not clusters.begun.any()
    clusters(embeddings, sample_of(torch.zeros_like(of_group)), 0, None)
    before = clusters.centres.clone()
    clusters.eval()
    clusters(groups(3)[0], sample_of(torch.zeros_like(of_group)), 0, None)
    assert torch.equal(clusters.centres, before)


def test_a_voxel_that_overflowed_moves_no_centre() -> None:
    """A centre that is no number would be the nearest of all voxels, and stay so."""
    first, of_group = groups(0)
    classes = torch.zeros_like(of_group)
    second, spoilt = groups(1)[0], groups(1)[0]
    spoilt[0, 7] = torch.nan
    without = torch.arange(60)[None] != 7
    found = []
    for embeddings, valid in ((second, without), (spoilt, None)):
        clusters = BackgroundClusters(3, 3)
        for seen, counted in ((first, None), (embeddings, valid)):
            clusters(seen, sample_of(classes, counted), 0, None)
        found.append(clusters.centres)
    assert torch.isfinite(found[1]).all()
    torch.testing.assert_close(found[1], found[0])


def test_voxels_far_apart_equal_a_plain_loop() -> None:
    torch.manual_seed(0)
    e, counted = F.normalize(torch.randn(30, 4, dtype=torch.float64), dim=-1), torch.rand(30) < 0.7
    chosen = [int(counted.nonzero()[0])]
    for _ in range(3):
        rest = [i for i in range(30) if counted[i]]
        chosen.append(min(rest, key=lambda i: max(float(e[i] @ e[j]) for j in chosen)))
    assert torch.equal(far_apart(e, counted, 4), e[chosen])


@pytest.mark.parametrize("kind", [VoxelMetricLoss, VoxelClassLoss])
def test_kinds_become_classes_and_leave_the_sampling_alone(kind: type) -> None:
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[:, 2:6, 2:6] = 1
    image = torch.where(torch.arange(8) < 4, -1.0, 1.0).expand(1, 8, 8)
    seen: list[Tensor] = []

    class Watched(kind):  # type: ignore[misc]
        def objective(self, projected: Tensor, embeddings: Tensor, sample: Sample, tap: int) -> object:
            seen.append(sample.classes)
            return super().objective(projected, embeddings, sample, tap)

    plain = kind(BalancedSampler(32), head=4, channels=[3])
    branch = Watched(BalancedSampler(32), head=4, channels=[3], background=IntensityKinds([0.0]))
    assert (plain.classes, branch.classes) == (2, 3)
    features = torch.randn(1, 3, 8, 8, requires_grad=True)
    found = []
    for one in (plain, branch):
        torch.manual_seed(5)
        found.append(one(features, labels, image=image).sample)
    assert torch.equal(found[0].index, found[1].index)
    assert torch.equal(found[0].classes, found[1].classes)
    wanted = torch.where((found[1].classes == 0) & (found[1].index % 8 >= 4), 2, found[1].classes)
    assert torch.equal(seen[0], wanted)
