"""A model that has learned nothing, but finds something: for timing where the user brings no model.

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

import numpy as np
import torch
from torch import Tensor

from metricunet.cohort.layout import DatasetInfo
from metricunet.files.model import write_model
from metricunet.networks import UNet, build_network
from metricunet.stages.locate import locate_spec
from metricunet.stages.network_input import normalise_hu
from metricunet.stages.segment import segment_spec
from metricunet.training.card import model_card
from metricunet.training.config import TrainConfig

STRUCTURE = "prostate"
CLASSES = 2
#: What is denser than this is body to stage 1.
BODY_HU = -150.0
#: Radius of the region that stage 2 answers with.
RADIUS_MM = 24.0
#: How much the fresh features move that region's edge, against the wired channel's own spread.
UNREST = 0.05
#: Of the last layer, so that its probabilities are sure of themselves.
STEEPNESS = 10.0


def fresh_networks(config: TrainConfig) -> tuple[UNet, UNet]:
    """Build both stages with fresh weights, always the same, in evaluation mode."""
    torch.manual_seed(0)
    locate = build_network(**locate_spec(config.locate, CLASSES).network)
    segment = build_network(**segment_spec(config.segment, CLASSES).network)
    assert isinstance(locate, UNet)
    assert isinstance(segment, UNet)
    return locate.eval(), segment.eval()


def write_stand_in(path: Path, config: TrainConfig) -> None:
    """Write a model file whose stage 1 finds the body and whose stage 2 a region in the middle of the crop.

    Args:
        path: of the model file.
        config: of the networks.
    """
    info = DatasetInfo({STRUCTURE: 1}, trained_on="synthetic")
    card = model_card(config.model_copy(update={"target": STRUCTURE}), info, [], [], "", None, np.zeros((0, 3)))
    locate, segment = fresh_networks(config)
    with torch.no_grad():
        wire_locate(locate, card.locate.hu_window)
        wire_segment(segment, card.segment.crop_voxels[1:], card.segment.spacing_mm[1:])
    weights = {f"locate.{k}": v for k, v in locate.state_dict().items()}
    write_model(path, card, weights | {f"segment.{k}": v for k, v in segment.state_dict().items()})


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
