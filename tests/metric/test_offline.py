"""The conventional baseline: tuples drawn once, patches cut where they are asked for, losses as online."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metricunet.metric import HardEasySampler, PatchMetricLoss, draw_patch_tuples, read_patches
from metricunet.metric.losses import contrastive_loss, distances, triplet_margin_loss


def boxes() -> Tensor:
    labels = torch.zeros(3, 6, 20, 24, dtype=torch.uint8)
    labels[:2, 1:5, 6:14, 8:17] = 1
    labels[1, 2:4, 8:10, 10:12] = 2
    labels[2, :, :4] = 255
    return labels


def test_tuples_are_what_they_say() -> None:
    labels = boxes()
    drawn = draw_patch_tuples(labels, 300, 5, sampler=HardEasySampler(60, 3), ignore_index=255)
    assert drawn.centres.shape == (300, 3, 4)
    assert torch.equal(labels[drawn.centres.unbind(-1)].long(), drawn.classes)
    anchor, positive, negative = drawn.classes.unbind(1)
    assert (anchor == positive).all()
    assert (anchor != negative).all()
    assert (drawn.centres[:, 0] != drawn.centres[:, 1]).any(dim=1).all()
    assert torch.bincount(anchor).tolist() == [100, 100, 100]
    # They reach across images.
    assert (drawn.centres[:, 0, 0] != drawn.centres[:, 1, 0]).any()


def test_the_same_seed_gives_the_same_tuples_and_leaves_the_random_state_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also that of GPUs, on which nothing is drawn here."""
    torch.manual_seed(9)
    gpus_seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", gpus_seeded.append)
    before = torch.get_rng_state()
    one, two, other = (draw_patch_tuples(boxes(), 50, seed, ignore_index=255) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert not gpus_seeded
    assert torch.equal(one.centres, two.centres)
    assert not torch.equal(one.centres, other.centres)


def test_updates_go_through_the_list_in_its_order() -> None:
    drawn = draw_patch_tuples(boxes(), 10, 0, ignore_index=255)
    assert torch.equal(drawn.of_update(0, 4).centres, drawn.centres[:4])
    assert torch.equal(drawn.of_update(2, 4).centres, drawn.centres[[8, 9, 0, 1]])


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"two classes .* found classes \[0\]"):
        draw_patch_tuples(torch.zeros(2, 8, 8, dtype=torch.uint8), 4, 0)


def test_patches_are_cut_about_their_middle_and_moved_back_inside() -> None:
    images = torch.arange(2 * 5 * 8 * 9).reshape(2, 5, 8, 9)
    centres = torch.tensor([[1, 2, 4, 4], [0, 0, 0, 8]])
    patches = read_patches(images, centres, (3, 4, 2))
    assert torch.equal(patches[0], images[1, 1:4, 2:6, 3:5])
    assert torch.equal(patches[1], images[0, 0:3, 0:4, 7:9])
    with pytest.raises(ValueError, match="do not fit"):
        read_patches(images, centres, (6, 4, 2))


def test_the_losses_are_those_of_the_pooled_bottleneck() -> None:
    torch.manual_seed(0)
    bottleneck = torch.randn(12, 6, 2, 2, dtype=torch.float64, requires_grad=True)
    loss = PatchMetricLoss(6, 4, margin=0.3, positive_margin=0.1, triplet_weight=0.5, pair_weight=2.0).double()
    out = loss(bottleneck)
    assert loss.heads is not None
    e = F.normalize(loss.heads[0](bottleneck.mean(dim=(2, 3))), dim=-1)
    near, far = distances(e[0::3], e[1::3]), distances(e[0::3], e[2::3])
    there = torch.ones(4, dtype=torch.bool)
    triplet = triplet_margin_loss(near, far, there, 0.3)
    pair = contrastive_loss(torch.cat([near, far]), torch.cat([there, ~there]), there.repeat(2), 0.1, 1.0)
    torch.testing.assert_close(out.loss, 0.5 * triplet + 2 * pair)
    assert torch.autograd.gradcheck(lambda b: loss(b).loss, (bottleneck,))


def test_training_on_patches_separates_the_classes() -> None:
    torch.manual_seed(0)
    labels = (boxes() % 255).clamp(max=1)
    images = labels.float() + 0.3 * torch.randn(labels.shape)
    drawn = draw_patch_tuples(labels, 200, 0, sampler=HardEasySampler(100))
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
    loss = PatchMetricLoss(8, 4)
    optimizer = torch.optim.Adam([*net.parameters(), *loss.parameters()], 1e-2)
    active = []
    for update in range(60):
        patches = read_patches(images, drawn.of_update(update, 20).centres.flatten(0, 1), (3, 5, 5))
        out = loss(net(patches))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        active.append(out.statistics["active_triplets"].item())
    assert active[0] > 0.9
    assert sum(active[-5:]) < 0.4 * 5


def test_means_are_over_what_the_setting_says() -> None:
    torch.manual_seed(0)
    bottleneck = torch.randn(30, 6, 2, 2, dtype=torch.float64)
    loss = PatchMetricLoss(6, 4, margin=0.3, positive_margin=0.5, negative_margin=0.5, mean_over="all").double()
    out = loss(bottleneck)
    assert loss.heads is not None
    e = F.normalize(loss.heads[0](bottleneck.mean(dim=(2, 3))), dim=-1)
    near, far = distances(e[0::3], e[1::3]), distances(e[0::3], e[2::3])
    torch.testing.assert_close(out.parts["triplet"], (near - far + 0.3).relu().mean())
    torch.testing.assert_close(out.parts["pair"], (near - 0.5).relu().mean() + (0.5 - far).relu().mean())


def test_a_bottleneck_of_half_precision_needs_no_autocast() -> None:
    torch.manual_seed(0)
    bottleneck, loss = torch.randn(12, 6, 2, 2, dtype=torch.bfloat16), PatchMetricLoss(6, 4)
    wanted = loss(bottleneck.flatten(2).mean(dim=2)[..., None].float()).loss
    torch.testing.assert_close(loss(bottleneck).loss, wanted)
