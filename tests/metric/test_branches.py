"""The branches: gradients, empty batches, heads, several maps, precision, and that they learn.

First comes VoxelMetricLoss; then the control, which is cross-entropy on its very voxels, heads and features; then
the adapter, which runs any miner and loss of pytorch-metric-learning on its voxels.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses, miners
from torch import Tensor, nn

from metricunet.metric import (
    SAMPLERS,
    AdaptedMetricLoss,
    EmbeddingBank,
    HardEasySampler,
    IntensityKinds,
    MetricOutput,
    Sample,
    TupleOptions,
    VoxelBranch,
    VoxelClassLoss,
    VoxelMetricLoss,
    build_sampler,
)
from metricunet.metric.branches import spread


def blob(batch: int = 2, side: int = 16) -> Tensor:
    labels = torch.zeros(batch, side, side, dtype=torch.uint8)
    labels[:, 4:11, 5:12] = 1
    return labels


def test_the_five_lines_of_the_readme() -> None:
    metric = VoxelMetricLoss()
    features = torch.randn(2, 8, 16, 16, requires_grad=True)
    out = metric(features, blob(), logits=torch.randn(2, 2, 16, 16), spacing_mm=(1.0, 1.0))
    assert out.loss.item() == pytest.approx(out.parts["triplet"].item() + out.parts["pair"].item())
    out.loss.backward()
    assert features.grad is not None
    assert features.grad.abs().sum() > 0
    names = {"active_triplets", "positive_distance", "negative_distance", "spread", "hard_voxels", "valid_voxels"}
    assert set(out.statistics) == names
    assert not any(value.requires_grad for value in out.statistics.values())


@pytest.mark.parametrize("labels", [torch.zeros(2, 8, 8), torch.ones(2, 8, 8), torch.full((2, 8, 8), 255)])
def test_a_batch_of_one_class_or_none_gives_a_finite_loss_with_a_gradient(labels: Tensor) -> None:
    metric = VoxelMetricLoss(head=4, channels=[6], ignore_index=255)
    features = torch.randn(2, 6, 8, 8, requires_grad=True)
    out = metric(features, labels.to(torch.uint8))
    assert torch.isfinite(out.loss)
    assert out.parts["triplet"].item() == 0
    out.loss.backward()
    for gradient in [features.grad, *[p.grad for p in metric.parameters()]]:
        assert gradient is not None
        assert torch.isfinite(gradient).all()


def test_ignored_images_give_exactly_zero() -> None:
    metric = VoxelMetricLoss(ignore_index=255)
    out = metric(torch.randn(1, 6, 8, 8), torch.full((1, 8, 8), 255, dtype=torch.uint8))
    assert out.loss.item() == 0


def test_identical_features_have_finite_gradients() -> None:
    features = torch.ones(1, 4, 16, 16, requires_grad=True)
    out = VoxelMetricLoss()(features, blob(1))
    out.loss.backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()
    assert out.statistics["spread"].item() == pytest.approx(0, abs=1e-6)


def test_the_gradient_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    metric = VoxelMetricLoss(HardEasySampler(voxels=16)).double()
    labels = blob(1, 12)

    def loss(features: Tensor) -> Tensor:
        torch.manual_seed(5)
        return metric(features, labels).loss

    features = torch.randn(1, 3, 12, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (features,))


def test_three_dimensions_and_a_coarser_map() -> None:
    labels = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    labels[:, 2:6, 2:6, 2:6] = 1
    maps = [torch.randn(1, 4, 8, 8, 8, requires_grad=True), torch.randn(1, 6, 4, 4, 4, requires_grad=True)]
    metric = VoxelMetricLoss(head=5, channels=[4, 6])
    out = metric(maps, labels, spacing_mm=(2.0, 1.0, 1.0))
    out.loss.backward()
    assert all(m.grad is not None and m.grad.abs().sum() > 0 for m in maps)


def test_several_maps_are_averaged() -> None:
    torch.manual_seed(0)
    features, metric = torch.randn(2, 8, 16, 16), VoxelMetricLoss(pairs="hard")
    torch.manual_seed(1)
    one = metric(features, blob())
    torch.manual_seed(1)
    # Unit length is the loss's business, so a scaled map is the same map: its mined pairs are, too.
    both = metric([features, features * 3], blob())
    assert both.parts["pair"].item() == pytest.approx(one.parts["pair"].item(), abs=1e-5)


def test_the_weights_and_kinds_of_pairs() -> None:
    features = torch.randn(1, 8, 16, 16)
    torch.manual_seed(1)
    out = VoxelMetricLoss(triplet_weight=0.5, pair_weight=2.0)(features, blob(1))
    assert out.loss.item() == pytest.approx(0.5 * out.parts["triplet"].item() + 2 * out.parts["pair"].item())
    torch.manual_seed(1)
    assert VoxelMetricLoss(pairs="hard")(features, blob(1)).parts["pair"] > out.parts["pair"]
    with pytest.raises(ValueError, match="random, hard"):
        VoxelMetricLoss(pairs="some")  # type: ignore[arg-type]


def test_bf16_features_are_close_to_float32() -> None:
    features = torch.randn(2, 16, 16, 16)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(2)
        found.append(VoxelMetricLoss()(features.to(dtype), blob()).loss)
    assert found[1].dtype == torch.float32
    assert found[0].item() == pytest.approx(found[1].item(), rel=0.02)


HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", [VoxelMetricLoss, VoxelClassLoss])
def test_features_of_half_precision_go_through_heads_without_autocast(kind: Any, dtype: torch.dtype) -> None:
    """As after a forward pass in mixed precision; the answer is that for the very values in float32."""
    torch.manual_seed(0)
    branch = kind(HardEasySampler(32), head=4, channels=[6])
    features = torch.randn(2, 6, 16, 16).to(dtype)
    found = []
    for given in (features, features.float()):
        torch.manual_seed(2)
        values = given.clone().requires_grad_()
        out = branch(values, blob())
        out.loss.backward()
        assert values.grad is not None
        assert values.grad.dtype == given.dtype
        assert values.grad.abs().sum() > 0
        found.append(out.loss)
    assert found[0].dtype == torch.float32
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", [VoxelMetricLoss, VoxelClassLoss])
def test_a_branch_of_half_precision_itself(kind: Any) -> None:
    """As where a whole model is: nothing but the head computes in it."""
    torch.manual_seed(0)
    branch = kind(HardEasySampler(32), head=4, channels=[6]).to(torch.bfloat16)
    features = torch.randn(2, 6, 16, 16, dtype=torch.bfloat16)
    found = []
    for one, given in ((branch, features), (copy.deepcopy(branch).float(), features.float())):
        torch.manual_seed(2)
        found.append(one(given, blob()).loss)
    assert found[0].dtype == torch.float32
    assert found[0].item() == pytest.approx(found[1].item(), rel=0.05)


@pytest.mark.parametrize(
    ("classes", "said"), [(1, "give those of the background, too"), (3, "logits of 3 classes for a sampler of 2")]
)
def test_logits_of_other_classes_are_refused(classes: int, said: str) -> None:
    """A third class would never be drawn, and of one channel every voxel of the structure would count as wrong."""
    features, logits = torch.randn(2, 6, 16, 16), torch.randn(2, classes, 16, 16)
    with pytest.raises(ValueError, match=said):
        VoxelMetricLoss()(features, blob(), logits=logits)
    one = torch.randn(2, 1, 16, 16)
    both = torch.cat([torch.zeros_like(one), one], dim=1)  # what is advised for one class
    assert torch.allclose(both.softmax(dim=1)[:, 1:], one.sigmoid())
    assert torch.isfinite(VoxelMetricLoss()(features, blob(), logits=both).loss)
    assert torch.isfinite(VoxelMetricLoss()(features, blob()).loss)
    three = VoxelMetricLoss(build_sampler("mixture", classes=3))(features, blob(), torch.randn(2, 3, 16, 16))
    assert torch.isfinite(three.loss)


def test_the_spread_is_the_mean_over_the_images_that_hold_voxels() -> None:
    """All in one place: 0; as many at either pole: 1. An image without a voxel is neither."""
    pole = torch.tensor([1.0, 0.0, 0.0])
    embeddings = torch.stack([pole.expand(4, 3), torch.stack([pole, -pole, pole, -pole]), pole.expand(4, 3)])
    valid = torch.ones(3, 4, dtype=torch.bool)
    valid[2] = False
    assert spread(embeddings, valid).item() == pytest.approx(0.5)
    assert spread(embeddings[[0, 2]], valid[[0, 2]]).item() == 0
    assert spread(embeddings, torch.zeros_like(valid)).item() == 0


def test_training_on_the_loss_separates_the_classes() -> None:
    torch.manual_seed(0)
    labels = blob(2)
    images = labels[:, None].float() + 0.5 * torch.randn(2, 1, 16, 16)
    net = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1))
    metric = VoxelMetricLoss(HardEasySampler(voxels=64))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    first = last = None
    for _ in range(80):
        out = metric(net(images), labels)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        first, last = (out if first is None else first), out
    assert first is not None
    assert last is not None
    gap = [o.statistics["negative_distance"] - o.statistics["positive_distance"] for o in (first, last)]
    assert last.loss < 0.5 * first.loss
    assert gap[1] > gap[0] + 0.1


def test_wrong_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="channels="):
        VoxelMetricLoss(head=32)
    with pytest.raises(ValueError, match="2 feature maps for 1 heads"):
        VoxelMetricLoss(head=4, channels=[3])([torch.zeros(1, 3, 8, 8)] * 2, blob(1, 8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bank_share": 1.5}, "bank_share must be between 0 and 1; got 1.5"),
        ({"unsure_mm": -1.0}, "unsure_mm and left_out_mm must not be negative; got -1 and 0"),
        ({"left_out_mm": -2.0}, "unsure_mm and left_out_mm must not be negative; got 0 and -2"),
    ],
)
def test_impossible_values_are_refused(settings: dict[str, float], message: str) -> None:
    """Beyond 1 the loss would reward what it punishes in this batch; a negative distance would do nothing."""
    with pytest.raises(ValueError, match=message):
        VoxelMetricLoss(bank=EmbeddingBank(16, 2, 4), **settings)


@pytest.mark.parametrize("side", [16, 8])
def test_maps_of_other_images_are_refused(side: int) -> None:
    """As where a batch also holds images without labels, which may stand before the others."""
    with pytest.raises(ValueError, match="features are of 4 images, labels of 2"):
        VoxelMetricLoss()(torch.randn(4, 3, side, side), blob(2))


@pytest.mark.parametrize("shape", [(2, 32, 32), (4, 16, 16), (2, 3, 16, 16)])
def test_intensities_on_another_grid_are_refused(shape: tuple[int, ...]) -> None:
    metric = VoxelMetricLoss(background=IntensityKinds([0.0]))
    with pytest.raises(ValueError, match=r"image \(.*\) does not lie on the grid of labels \(2, 16, 16\)"):
        metric(torch.randn(2, 3, 16, 16), blob(2), image=torch.randn(shape))


OBJECTIVES = [
    {},
    {"triplets": "random", "triplet_form": "soft"},
    {"triplets": "hardest", "pairs": "hard"},
    {"triplets": "distance_weighted", "across": True},
    {"pairs": "all"},
    {"triplet_weight": 0.0, "pair_weight": 0.0, "supcon_weight": 1.0},
]


@pytest.mark.parametrize("settings", OBJECTIVES)
@pytest.mark.parametrize("case", ["random", "identical", "absent"])
def test_every_objective_passes_gradcheck(settings: dict[str, Any], case: str) -> None:
    """Also with identical embeddings, and with a class that one image does not hold."""
    if case == "identical" and settings.get("triplets") == "hardest":
        pytest.skip("which of identical voxels is the hardest changes under the differences themselves")
    torch.manual_seed(0)
    metric = VoxelMetricLoss(HardEasySampler(voxels=12), head=4, channels=[3], **settings).double()
    labels = blob(2, 12)
    features = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    if case == "identical":
        features[:, :, 4:, :7] = features[:, :, :1, :1]
    if case == "absent":
        labels[1] = 0

    def loss(values: Tensor) -> Tensor:
        torch.manual_seed(5)
        return metric(values, labels).loss

    assert torch.autograd.gradcheck(loss, (features.requires_grad_(),), fast_mode=True)


@pytest.mark.parametrize("settings", OBJECTIVES)
@pytest.mark.parametrize("labels", [torch.zeros(2, 8, 8), torch.ones(2, 8, 8), torch.full((2, 8, 8), 255)])
def test_every_objective_bears_one_class_or_none(settings: dict[str, Any], labels: Tensor) -> None:
    metric = VoxelMetricLoss(ignore_index=255, **settings)
    for value in (torch.randn(2, 6, 8, 8), torch.ones(2, 6, 8, 8), torch.zeros(2, 6, 8, 8)):
        features = value.requires_grad_()
        out = metric(features, labels.to(torch.uint8))
        assert torch.isfinite(out.loss)
        out.loss.backward()
        assert features.grad is not None
        assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize("settings", OBJECTIVES)
def test_voxels_without_features_spoil_no_gradient(settings: dict[str, Any]) -> None:
    """After a ReLU many voxels have none; a gradient that is not finite would have a scaler skip every update."""
    torch.manual_seed(0)
    before = (torch.randn(2, 4, 8, 8) - 1.2).to(torch.float16).requires_grad_()
    features = before.relu()
    assert 0.4 < (features == 0).all(dim=1).float().mean().item() < 0.8
    VoxelMetricLoss(HardEasySampler(voxels=256), **settings)(features, blob(2)).loss.backward()
    assert before.grad is not None
    assert 0 < before.grad.abs().max().item() < 1


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float64])
def test_what_is_drawn_does_not_depend_on_the_default_type(default: torch.dtype) -> None:
    """Lightning sets it while a network trains in half precision, whose few numbers pass many voxels over."""
    labels, features = blob(2, 64), torch.randn(2, 4, 64, 64)
    spacing_mm = (0.7, 1.3)

    def voxels_and_losses() -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(0)
        bank = EmbeddingBank(512, 2, 4, new=200)
        metric = VoxelMetricLoss(bank=bank.float(), unsure_mm=3.0, triplets="random").float()
        outputs = [metric(features, labels, spacing_mm=spacing_mm) for _ in range(3)]
        samples = [out.sample for out in outputs if out.sample is not None]
        certainty = [sample.certainty for sample in samples if sample.certainty is not None]
        index = torch.stack([sample.index for sample in samples])
        return index, torch.stack(certainty), torch.stack([out.loss for out in outputs])

    wanted = voxels_and_losses()
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        found = voxels_and_losses()
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(one, other) for one, other in zip(wanted, found, strict=True))


def test_an_empty_image_does_not_outweigh_the_others() -> None:
    """Its normalised features are rounding errors, and compared with those of other images."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.InstanceNorm2d(4, affine=True), nn.LeakyReLU(0.01))
    labels, images = blob(2), torch.randn(2, 1, 16, 16)
    images[1], labels[1] = 0, 0
    metric = VoxelMetricLoss(bank=EmbeddingBank(64, 2, 4))
    for _ in range(3):
        network.zero_grad()
        metric(network(images), labels).loss.backward()
        assert all(p.grad is not None and p.grad.abs().max() < 10 for p in network.parameters())


@pytest.mark.parametrize("settings", OBJECTIVES)
def test_every_objective_learns(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    labels = blob(2)
    images = labels[:, None].float() + 0.3 * torch.randn(2, 1, 16, 16)
    net = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1))
    metric = VoxelMetricLoss(HardEasySampler(voxels=64), **settings)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    gaps = []
    for _ in range(60):
        features = net(images)
        out = metric(features, labels)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        e = F.normalize(features.detach(), dim=1)
        inside, outside = (e.permute(0, 2, 3, 1)[labels == c].mean(dim=0) for c in (1, 0))
        gaps.append((inside - outside).norm().item())
    assert gaps[-1] > gaps[0] + 0.3


def test_tuples_across_the_batch_reach_images_that_lack_a_class() -> None:
    torch.manual_seed(0)
    labels = blob(2)
    labels[0] = 0
    labels[1] = 1
    features = torch.randn(2, 6, 16, 16)
    assert VoxelMetricLoss()(features, labels).parts["triplet"].item() == 0
    assert VoxelMetricLoss(across=True)(features, labels).parts["triplet"].item() > 0


def test_losses_that_are_left_out_are_zero() -> None:
    out = VoxelMetricLoss(triplet_weight=0.0, pair_weight=0.0, supcon_weight=2.0)(
        torch.randn(1, 8, 16, 16), blob(1)
    )
    assert (out.parts["triplet"].item(), out.parts["pair"].item()) == (0, 0)
    assert out.loss.item() == pytest.approx(2 * out.parts["supcon"].item())
    assert out.parts["supcon"].item() > 0


def test_options_are_one_object_and_single_settings_go_over_it() -> None:
    options = TupleOptions(pairs="hard", margin=0.3)
    assert VoxelMetricLoss(options=options).options == options
    assert VoxelMetricLoss(options=options, margin=0.4).options == TupleOptions(pairs="hard", margin=0.4)
    with pytest.raises(TypeError, match="unexpected keyword argument 'margn'"):
        VoxelMetricLoss(margn=0.4)


def test_a_loss_of_ones_own() -> None:
    """A branch that defines its objective alone: here the variance of the embeddings."""

    class Variance(VoxelBranch):
        def objective(self, projected: Tensor, embeddings: Tensor, sample: Sample, tap: int) -> MetricOutput:
            loss = embeddings.var()
            return MetricOutput(loss, {"variance": loss}, {"longest": projected.detach().norm(dim=-1).max()})

    maps = [torch.randn(2, 6, 16, 16, requires_grad=True), torch.randn(2, 3, 8, 8, requires_grad=True)]
    out = Variance(head=4, channels=[6, 3])(maps, blob())
    assert set(out.statistics) == {"longest", "spread", "hard_voxels", "valid_voxels"}
    assert out.loss.item() == out.parts["variance"].item() > 0
    out.loss.backward()
    assert all(m.grad is not None and m.grad.abs().sum() > 0 for m in maps)


def test_distances_keep_their_precision_under_autocast() -> None:
    features, metric = torch.randn(2, 8, 16, 16), VoxelMetricLoss(supcon_weight=1.0, pairs="all")
    found = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            found.append(metric(features, blob()).loss)
    assert torch.equal(*found)


@pytest.mark.parametrize("settings", OBJECTIVES)
def test_the_whole_loss_is_one_graph(settings: dict[str, Any]) -> None:
    """Nothing in it asks the device for a value, or the compiler could not trace it in one piece."""
    torch.manual_seed(0)
    metric = VoxelMetricLoss(head=4, channels=[6], ignore_index=255, **settings)
    compiled = torch.compile(metric, backend="eager", fullgraph=True)
    features, logits = torch.randn(2, 6, 16, 16, requires_grad=True), torch.randn(2, 2, 16, 16)
    found = []
    for run in (metric, compiled):
        torch.manual_seed(2)
        found.append(run(features, blob(), logits, (1.0, 3.0)).loss)
    torch.testing.assert_close(found[1], found[0])
    found[1].backward()
    assert features.grad is not None


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_one_graph(name: str) -> None:
    sampler = build_sampler(name, voxels=32, classes=2)

    def index(labels: Tensor, logits: Tensor) -> Tensor:
        return sampler(labels, logits, (1.0, 3.0), 255).index

    torch.manual_seed(0)
    expected = index(blob(), torch.ones(2, 2, 16, 16))
    torch.manual_seed(0)
    found = torch.compile(index, backend="eager", fullgraph=True)(blob(), torch.ones(2, 2, 16, 16))
    assert torch.equal(found, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here, so no CUDA graph to capture")
@pytest.mark.parametrize("settings", OBJECTIVES)
def test_one_cuda_graph_captures_the_whole_loss(settings: dict[str, Any]) -> None:
    """Forward and backward; a synchronisation or a shape that depends on values would end the capture."""
    device = torch.device("cuda")
    sampler = HardEasySampler(voxels=32)  # few of the image's, so that each replay draws others
    metric = VoxelMetricLoss(sampler, head=4, channels=[6], **settings).to(device)
    features = torch.randn(2, 6, 16, 16, device=device, requires_grad=True)
    labels, logits = blob().to(device), torch.randn(2, 2, 16, 16, device=device)

    def step() -> Tensor:
        loss: Tensor = metric(features, labels, logits, (1.0, 1.0)).loss
        torch.autograd.backward(loss, inputs=[features])
        return loss

    warm = torch.cuda.Stream()
    with torch.cuda.stream(warm):
        step()
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    features.grad = None
    with torch.cuda.graph(graph):
        loss = step()
    values = []
    for _ in range(3):
        graph.replay()
        values.append(loss.item())
    assert all(value > 0 for value in values)
    assert len(set(values)) == 3


def framed() -> Tensor:
    """Labels whose first row nobody knows."""
    labels = blob()
    labels[:, 0] = 255
    return labels


def test_the_control_is_the_cross_entropy_of_the_valid_voxels() -> None:
    torch.manual_seed(0)
    control = VoxelClassLoss(HardEasySampler(400), head=8, channels=[6], ignore_index=255).double()
    features = torch.randn(2, 6, 16, 16, dtype=torch.float64, requires_grad=True)
    out = control(features, framed())
    assert control.heads is not None
    found, right = [], 0
    for b in range(2):
        for n in range(400):
            if out.sample.valid[b, n]:
                voxel = features[b].flatten(1)[:, out.sample.index[b, n]]
                scores = control.classifiers[0](control.heads[0](voxel))
                label = out.sample.classes[b, n]
                found.append(F.cross_entropy(scores, label))
                right += int(scores.argmax() == label)
    torch.testing.assert_close(out.loss, torch.stack(found).mean())
    assert out.statistics["voxel_accuracy"].item() == pytest.approx(right / len(found))
    out.loss.backward()
    assert features.grad is not None
    assert features.grad.abs().sum() > 0


def test_the_control_draws_the_voxels_that_the_metric_branch_draws() -> None:
    features, labels, logits = torch.randn(2, 6, 16, 16), framed(), torch.randn(2, 2, 16, 16)
    torch.manual_seed(4)
    one = VoxelMetricLoss(ignore_index=255)(features, labels, logits, (1.0, 3.0)).sample
    control = VoxelClassLoss(channels=[6], ignore_index=255)
    torch.manual_seed(4)
    two = control(features, labels, logits, (1.0, 3.0)).sample
    assert torch.equal(one.index, two.index)
    assert torch.equal(one.valid, two.valid)


def test_the_control_without_a_voxel_gives_zero_with_a_gradient() -> None:
    control = VoxelClassLoss(head=4, channels=[6, 6], ignore_index=255)
    features = torch.randn(1, 6, 8, 8, requires_grad=True)
    out = control([features, features], torch.full((1, 8, 8), 255, dtype=torch.uint8))
    assert out.loss.item() == 0
    out.loss.backward()
    for gradient in [features.grad, *[p.grad for p in control.parameters()]]:
        assert gradient is not None
        assert (gradient == 0).all()


def test_wrong_maps_of_the_control_are_refused() -> None:
    with pytest.raises(ValueError, match="channels="):
        VoxelClassLoss()
    with pytest.raises(ValueError, match="2 feature maps for 1 classifiers"):
        VoxelClassLoss(channels=[3])([torch.zeros(1, 3, 8, 8)] * 2, torch.zeros(1, 8, 8, dtype=torch.uint8))


def two_of_three() -> Tensor:
    """Three images, the last of which holds one class alone."""
    labels = blob(3)
    labels[2] = 0
    return labels


def test_the_adapter_is_the_mean_of_the_library_over_the_images() -> None:
    torch.manual_seed(0)
    features = torch.randn(3, 6, 16, 16, requires_grad=True)
    loss, miner = (
        losses.TripletMarginLoss(margin=0.1),
        miners.TripletMarginMiner(margin=0.2, type_of_triplets="all"),
    )
    out = AdaptedMetricLoss(loss, miner, HardEasySampler(40))(features, two_of_three())
    expected = torch.zeros(())
    for b in range(2):  # the third image holds one class, so it adds nothing
        e = features[b].flatten(1).T[out.sample.index[b]]
        c = out.sample.classes[b]
        expected = expected + loss(e, c, miner(F.normalize(e, dim=-1), c)) / 3
    torch.testing.assert_close(out.loss, expected)
    out.loss.backward()
    assert features.grad is not None
    assert features.grad[:2].abs().sum() > 0
    assert features.grad[2].abs().sum() == 0


@pytest.mark.parametrize(
    ("loss", "miner"),
    [
        ("SupConLoss", None),
        ("ContrastiveLoss", "PairMarginMiner"),
        ("TripletMarginLoss", "DistanceWeightedMiner"),
        ("MultiSimilarityLoss", "MultiSimilarityMiner"),
        ("CircleLoss", "BatchHardMiner"),
        (losses.ProxyAnchorLoss(num_classes=2, embedding_size=4), None),
    ],
)
@pytest.mark.parametrize("across", [False, True])
def test_many_losses_and_miners_run(loss: torch.nn.Module | str, miner: str | None, across: bool) -> None:
    torch.manual_seed(0)
    metric = AdaptedMetricLoss(loss, miner, HardEasySampler(32), head=4, channels=[6], across=across)
    features = torch.randn(3, 6, 16, 16, requires_grad=True)
    out = metric(features, two_of_three())
    assert torch.isfinite(out.loss)
    out.loss.backward()
    assert features.grad is not None
    assert features.grad.abs().sum() > 0


def test_the_adapter_on_one_class_alone_gives_zero_with_a_gradient() -> None:
    features = torch.randn(1, 6, 8, 8, requires_grad=True)
    out = AdaptedMetricLoss("SupConLoss")(features, torch.zeros(1, 8, 8, dtype=torch.uint8))
    assert out.loss.item() == 0
    out.loss.backward()
    assert features.grad is not None


def test_the_adapter_gives_what_its_loss_learns_a_gradient_also_without_tuples() -> None:
    """Else processes that train together would wait for one whose images hold one class."""
    loss = losses.ProxyAnchorLoss(num_classes=2, embedding_size=6)
    out = AdaptedMetricLoss(loss)(torch.randn(2, 6, 8, 8), torch.zeros(2, 8, 8, dtype=torch.uint8))
    out.loss.backward()
    assert out.loss.item() == 0
    assert loss.proxies.grad is not None
    assert (loss.proxies.grad == 0).all()


def test_unknown_names_and_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="has no 'BestLoss'"):
        AdaptedMetricLoss("BestLoss")
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(ImportError, match=r'pip install "metricunet\[metric-learning\]"$'):
        AdaptedMetricLoss("SupConLoss")
