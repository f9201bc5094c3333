"""The FCN-8s against the layers of the publication, and its scores against what they are made of."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.network_cost import multiply_adds, parameters
from metricunet.networks import FCN

#: The 13 convolutions of side 3 of the 16-layer network: channels in and out, in its five stages.
VGG_STAGES = (
    ((3, 64), (64, 64)),
    ((64, 128), (128, 128)),
    ((128, 256), (256, 256), (256, 256)),
    ((256, 512), (512, 512), (512, 512)),
    ((512, 512), (512, 512), (512, 512)),
)


def published_parameters(classes: int) -> int:
    """Count weights and biases by the publication's layers: 13 convolutions, fc6, fc7, three scores."""
    convolutions = sum(9 * a * b + b for stage in VGG_STAGES for a, b in stage)
    assert convolutions == 14_714_688  # the published number of the network without its classifier
    classifier = 49 * 512 * 4096 + 4096 + 4096 * 4096 + 4096
    scores = sum(c * classes + classes for c in (256, 512, 4096))
    assert round((convolutions + classifier + 4096 * 21 + 21) / 1e6) == 134  # as published, in millions
    return convolutions + classifier + scores


def test_full_width_against_the_published_layers() -> None:
    """A normalised convolution has two numbers for each channel where the original's has one bias."""
    with torch.device("meta"):
        network = FCN(3, 21)
        out = network.forward_with_maps(torch.empty(1, 3, 96, 128))
    offsets = sum(b for stage in VGG_STAGES for _, b in stage)
    # Two transposed convolutions of side 4 are learned; the enlargement by 8 is fixed.
    assert parameters(network) == published_parameters(21) + offsets + 2 * 16 * 21 * 21
    assert out.logits.shape == (1, 21, 96, 128)
    assert [m.shape[1:] for m in out.decoder_maps] == [(256, 12, 16), (512, 6, 8), (4096, 3, 4)]
    assert (network.decoder_channels, network.bottleneck_channels) == ((256, 512, 4096), 4096)
    assert network.divisor == 32


def test_multiply_adds_by_hand() -> None:
    places, total = 96 * 96, 0
    for stage in VGG_STAGES:
        total += places * sum(9 * a * b for a, b in stage)
        places //= 4
    total += 9 * (49 * 512 * 4096 + 4096 * 4096 + 4096 * 2) + 36 * 512 * 2 + 144 * 256 * 2
    total += (9 + 36) * 16 * 2 * 2  # transposed: each input voxel is spread over 16
    with torch.device("meta"):
        assert multiply_adds(FCN(3, 2), (1, 3, 96, 96)) == total


def with_random_scores(network: FCN) -> FCN:
    for score in network.score:
        nn.init.normal_(score.weight)
    return network


def test_scores_begin_at_zero() -> None:
    assert not FCN(1, 2, 4, levels=3)(torch.randn(1, 1, 16, 16)).any()


def test_the_logits_are_the_sum_of_three_scores() -> None:
    torch.manual_seed(0)
    network = with_random_scores(FCN(1, 3, 4, levels=4)).eval()
    out = network.forward_with_maps(torch.randn(2, 1, 32, 48))
    fine, middle, coarse = (s(m) for s, m in zip(network.score, out.decoder_maps, strict=True))
    joined = network.up[0](network.up[1](coarse) + middle) + fine
    expected = F.interpolate(joined, scale_factor=4, mode="bilinear")
    torch.testing.assert_close(out.logits, expected)
    assert out.bottleneck is out.decoder_maps[-1]


def test_scores_begin_as_bilinear_enlargement_class_by_class() -> None:
    network = FCN(1, 2, 4, levels=3)
    score = torch.randn(1, 2, 6, 6)
    found = network.up[0](score)[..., 2:-2, 2:-2]
    expected = F.interpolate(score, scale_factor=2, mode="bilinear")[..., 2:-2, 2:-2]
    torch.testing.assert_close(found, expected)


def test_dropout_acts_in_training_alone() -> None:
    network = with_random_scores(FCN(1, 2, 4, levels=3))
    drops = [m for m in network.modules() if isinstance(m, nn.Dropout)]
    assert [d.p for d in drops] == [0.5, 0.5]
    x = torch.randn(1, 1, 16, 16)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="spatial_dims must be 2; got 3"):
        FCN(1, 2, spatial_dims=3)
    with pytest.raises(ValueError, match="levels must be 3 or more"):
        FCN(1, 2, levels=2)
    with pytest.raises(ValueError, match="8 divides"):
        FCN(1, 2, 4, levels=3)(torch.zeros(1, 1, 8, 12))
