"""A model that has learned nothing, but whose mask looks like one: for benchmarks without a trained model.

How fast a network is does not depend on what it has learned, but whether stage 2 runs at all depends on stage 1
finding something. So all weights are fresh, apart from one channel of each layer, wired by hand. In stage 1 that
channel hands the HU through, and the last layer answers "body": its middle becomes the middle of the crop. In
stage 2 it starts from a constant and feels the zeros around the picture at every level, so that it is highest in
the middle; the last layer adds the fresh features to it, and a region about as wide as a gland comes out, on every
slice of the crop, its edge as the fresh features have it. What comes out has no meaning.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metricunet.networks import UNet
from metricunet.stages.network_input import normalise_hu
from metricunet.training.config import TrainConfig
from metricunet.workflows.bench.untrained import fresh_model, write_networks

#: What is denser than this is body to stage 1.
BODY_HU = -150.0
#: Radius of the region that stage 2 answers with.
RADIUS_MM = 24.0
#: How much the fresh features move that region's edge, against the wired channel's own spread.
UNREST = 0.05
#: Of the last layer, so that its probabilities are sure of themselves.
STEEPNESS = 10.0


def write_stand_in(path: Path, config: TrainConfig) -> None:
    """Write a model file whose stage 1 finds the body and whose stage 2 a region in the middle of the crop.

    Args:
        path: of the model file.
        config: of the networks.
    """
    card, locate, segment = fresh_model(config)
    assert isinstance(locate, UNet)
    assert isinstance(segment, UNet)
    crop = [round(mm / step) for mm, step in zip(config.segment.crop_mm, config.segment.spacing_mm, strict=True)]
    with torch.no_grad():
        wire_locate(locate, config.locate.hu_window)
        wire_segment(segment, (crop[1], crop[2]), config.segment.spacing_mm[1:])
    write_networks(path, card, locate, segment)


def wire_locate(network: UNet, window: tuple[float, float]) -> None:
    """Let channel 0 hand the HU from the input over the finest skip to the last layer."""
    first: Any = network.encoder[0]
    last: Any = network.decoder[-1]
    answer: Any = network.classify
    _only(first[0].weight, 0, _pick(first[0].weight))
    first[1].bias[0] = 1.0
    _only(first[3].weight, 0, _pick(first[3].weight))
    # The skip follows the channels that come from below.
    _only(last[0].weight, last[0].weight.shape[1] // 2, _pick(last[0].weight))
    _only(last[3].weight, 0, _pick(last[3].weight))
    edge = 1 + float(normalise_hu(torch.tensor(BODY_HU), window))
    _answer(answer, torch.eye(answer.weight.shape[1])[0] * STEEPNESS, -STEEPNESS * edge)


def wire_segment(network: UNet, sides: tuple[int, int], spacing_mm: tuple[float, float]) -> None:
    """Let channel 0 tell how far it is to the picture's edge, and add the fresh features to it.

    Args:
        network: stage 2.
        sides: voxels of the crop in the slice.
        spacing_mm: of these.
    """
    encoder: Any = network.encoder
    decoder: Any = zip(network.up, network.decoder, strict=True)
    for block in encoder:
        _only(block[0].weight, 0, torch.zeros(block[0].weight.shape[2:]))
        block[1].bias[0] = 1.0
        _smooth(block[3])
    for up, block in decoder:
        up.weight[:, 0] = 0
        up.weight[0, 0] = 1
        up.bias[0] = 0
        _smooth(block[0])
        _smooth(block[3])
    features = network.forward_with_maps(torch.randn(1, encoder[0][0].in_channels, *sides)).decoder_maps[0]
    spread = features[0].flatten(1).std(dim=1)
    weights = torch.randn(len(spread)) * UNREST * spread[0] / (spread * math.sqrt(len(spread)))
    weights[0] = 1.0
    score = (features[0] * weights[:, None, None]).sum(dim=0)
    share = math.pi * RADIUS_MM**2 / math.prod(n * step for n, step in zip(sides, spacing_mm, strict=True))
    threshold = float(torch.quantile(score, max(0.0, 1 - share)))
    scale = STEEPNESS / float(score.std())
    _answer(network.classify, weights * scale, -threshold * scale)


def _pick(weight: Tensor) -> Tensor:
    """A kernel that takes the middle voxel alone."""
    kernel = torch.zeros(weight.shape[2:])
    kernel[tuple(n // 2 for n in kernel.shape)] = 1
    return kernel


def _only(weight: Tensor, channel: int, kernel: Tensor) -> None:
    """Make output channel 0 of a convolution depend on one input channel alone."""
    weight[0] = 0
    weight[0, channel] = kernel


def _smooth(convolution: Any) -> None:
    """Average channel 0 over the kernel, zeros beyond the edge counted in."""
    sides = convolution.weight.shape[2:]
    _only(convolution.weight, 0, torch.full(sides, 1 / math.prod(sides)))


def _answer(layer: Any, weights: Tensor, bias: float) -> None:
    """Let the last layer give class 1 this score, and class 0 the score 0."""
    layer.weight.zero_()
    layer.weight[1] = weights.reshape(layer.weight[1].shape)
    layer.bias.copy_(torch.tensor([0.0, bias]))
