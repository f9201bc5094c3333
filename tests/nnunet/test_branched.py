"""The branch beside nnU-Net's loss, on networks of the shape of nnU-Net's; the real one is in tests/e2e."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metricunet.errors import InputError
from metricunet.nnunet.branched import BranchedLoss, Taps, class_labels, region_scores, tapped_modules
from metricunet.structures import IGNORE_CLASS
from metricunet.training.config import MetricConfig
from metricunet.training.voxel_branch import voxel_branch


class Decoder(nn.Module):
    """Two stages, the coarser one first, each with a layer that segments, as in nnU-Net."""

    def __init__(self, axes: int, heads: int) -> None:
        super().__init__()
        conv = nn.Conv2d if axes == 2 else nn.Conv3d
        self.stages = nn.ModuleList([conv(1, 6, 3, stride=2, padding=1), conv(1, 4, 3, padding=1)])
        self.seg_layers = nn.ModuleList([conv(6, heads, 1), conv(4, heads, 1)])

    def forward(self, images: Tensor) -> list[Tensor]:
        return [head(stage(images)) for stage, head in zip(self.stages, self.seg_layers, strict=True)][::-1]


class Network(nn.Module):
    def __init__(self, axes: int, heads: int) -> None:
        super().__init__()
        self.decoder = Decoder(axes, heads)

    def forward(self, images: Tensor) -> list[Tensor]:
        output: list[Tensor] = self.decoder(images)
        return output


class Zero(nn.Module):
    def forward(self, output: list[Tensor], target: list[Tensor]) -> Tensor:
        return output[0].sum() * 0


def branched(network: Network, classes: int, regions: int = 0, ignore: int | None = None) -> BranchedLoss:
    metric = MetricConfig(taps=(0, 1), voxels=32, warm_up_updates=0, weight=0.5, embedding=4)
    modules, channels = tapped_modules(network, metric.taps)
    axes = network.decoder.stages[0].weight.dim() - 2
    branch = voxel_branch(metric, channels, classes, IGNORE_CLASS)
    return BranchedLoss(Zero(), branch, Taps(modules), metric, [1.0] * axes, regions, ignore)


@pytest.mark.parametrize("axes", [2, 3])
def test_the_branch_reads_the_decoder_while_it_trains_and_never_otherwise(axes: int) -> None:
    torch.manual_seed(0)
    network = Network(axes, 2)
    loss = branched(network, 2)
    target = torch.zeros(2, 1, *[16] * axes)
    target[:, :, 4:10, 4:10] = 1
    images = target + 0.1 * torch.randn_like(target)
    total = loss(network(images), [target, target])
    total.backward()
    assert loss.facts["segmentation"] == 0
    assert total.item() == pytest.approx(0.5 * loss.facts["loss"].item())
    assert all(float(stage.weight.grad.abs().sum()) > 0 for stage in network.decoder.stages)
    assert loss.updates == 1
    network.eval()
    loss.eval()
    assert loss(network(images), [target, target]) == 0
    assert loss.updates == 1
    assert loss.taps.take() == [], "an evaluation keeps no maps"


def test_voxels_that_nobody_annotated_are_never_drawn() -> None:
    network = Network(2, 2)
    loss = branched(network, 2, ignore=2)
    target = torch.zeros(1, 1, 16, 16)
    target[:, :, :, 8:] = 2
    target[:, :, 4:10, 3:7] = 1
    loss(network(torch.randn(1, 1, 16, 16)), [target])
    drawn = loss.branch.sampler(class_labels(target, 0, 2), None, None, IGNORE_CLASS)
    assert set(drawn.classes[drawn.valid].tolist()) == {0, 1}
    assert bool((drawn.index[drawn.valid] % 16 < 8).all())


def test_labels_of_regions_are_those_that_nnu_net_predicts_from_them() -> None:
    target = torch.tensor([[[1, 1, 0, 1, 0]], [[0, 1, 0, 1, 1]], [[0, 0, 0, 1, 0]]]).transpose(0, 1)
    expected = [1, 2, 0, IGNORE_CLASS, 2]
    for values in (target.bool(), target.to(torch.uint8), target.float()):
        labels = class_labels(values[:, :, None], 2, 7)
        assert labels.shape == (1, 1, 5)
        assert labels.flatten().tolist() == expected
    assert class_labels(target[:, :2, None], 2).flatten().tolist() == [1, 2, 0, 2, 2]
    assert class_labels(torch.tensor([[[0.0, 2.0, 3.0]]]), 0, 3).tolist() == [[0, 2, IGNORE_CLASS]]


def test_the_largest_score_of_regions_is_the_class_that_nnu_net_predicts() -> None:
    torch.manual_seed(1)
    logits = torch.randn(2, 3, 40)
    labels = class_labels((logits > 0).float(), 3)
    scores = region_scores(logits)
    assert torch.equal(scores.argmax(dim=1), labels)
    assert torch.equal((scores > 0).sum(dim=1), torch.ones_like(labels))


def test_regions_train_with_a_class_more_than_the_network_has_outputs() -> None:
    network = Network(2, 2)
    loss = branched(network, 3, regions=2, ignore=5)
    target = torch.zeros(2, 3, 16, 16, dtype=torch.bool)
    target[:, 0, 2:12, 2:12] = True
    target[:, 1, 4:8, 4:8] = True
    target[:, 2, 14:] = True
    total = loss(network(torch.randn(2, 1, 16, 16)), [target])
    assert torch.isfinite(total)
    assert float(loss.facts["valid_voxels"]) > 0.9


def test_networks_without_such_a_decoder_and_taps_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match="Linear has no decoder with stages"):
        tapped_modules(nn.Linear(1, 1), [0])
    with pytest.raises(InputError, match="decoder maps 0 to 1"):
        tapped_modules(Network(2, 2), [0, 2])
    modules, channels = tapped_modules(Network(2, 2), [0, 1])
    assert channels == [4, 6]
    assert len(modules) == 2


def test_gradient_share_weighs_the_branch_by_what_it_measures() -> None:
    torch.manual_seed(0)
    network = Network(2, 2)
    metric = MetricConfig(voxels=32, warm_up_updates=0, weight=0.5, weight_as="gradient_share", embedding=4)
    modules, channels = tapped_modules(network, metric.taps)

    class Square(nn.Module):
        def forward(self, output: list[Tensor], target: list[Tensor]) -> Tensor:
            return output[0].square().mean()

    branch = voxel_branch(metric, channels, 2, IGNORE_CLASS)
    loss = BranchedLoss(Square(), branch, Taps(modules), metric, [1.0, 1.0])
    target = torch.zeros(1, 1, 16, 16)
    target[:, :, 4:10, 4:10] = 1
    weights = []
    for _ in range(2):
        loss(network(target + torch.randn_like(target)), [target]).backward()
        weights.append(float(loss.facts["weight"]))
    assert weights[0] == pytest.approx(0.5)
    assert weights[1] != pytest.approx(0.5)
