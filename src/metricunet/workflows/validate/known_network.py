"""A model whose answer is known: both stages call a voxel the target where its HU lies above a threshold.

The networks are U-Nets of one channel, wired by hand: the input runs over the finest skip to the last layer and
nothing else does. What is left to go wrong is what lies around them: resampling, crop, paste, axes, files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metricunet import __version__
from metricunet.files.model import ModelCard, write_model
from metricunet.networks import build_network
from metricunet.specs import LocateSpec, SegmentSpec

STRUCTURE = "prostate"
#: HU that map to -1 and 1, and the HU from which on a voxel is the target. In that window no voxel's value in bf16
#: is the threshold, so there are no ties.
WINDOW_HU = (-150.0, 250.0)
THRESHOLD_HU = 0.625
#: Of the last layer: logits over the window.
STEEPNESS = 10.0
COARSE_MM, FINE_MM = (4.0, 4.0, 4.0), (2.0, 1.0, 1.0)
#: Stage 2's crop: larger than the target, smaller than the scan.
CROP_VOXELS = (28, 60, 60)
NEIGHBOURS = 5


def write_known_model(path: Path) -> None:
    """Write a model file whose two stages are the threshold."""
    common = {"architecture": "unet", "classes": 2, "base_channels": 1, "levels": 2, "norm": "batch"}
    arguments: dict[str, dict[str, Any]] = {
        "locate": {**common, "in_channels": 1, "spatial_dims": 3},
        "segment": {**common, "in_channels": NEIGHBOURS, "spatial_dims": 2},
    }
    weights: dict[str, Tensor] = {}
    for stage, own in arguments.items():
        network = build_network(**own)
        _wire(network)
        weights |= {f"{stage}.{name}": value for name, value in network.state_dict().items()}
    card = ModelCard(
        locate=LocateSpec(arguments["locate"], COARSE_MM, WINDOW_HU),
        segment=SegmentSpec(arguments["segment"], FINE_MM, CROP_VOXELS, WINDOW_HU),
        labels={STRUCTURE: 1},
        tg263={STRUCTURE: "Prostate"},
        target=STRUCTURE,
        ranges={},
        validation={},
        trained_on="synthetic",
        data_sha256="",
        seed=0,
        version=__version__,
    )
    write_model(path, card, weights)


@torch.no_grad()
def _wire(network: Any) -> None:
    """Let the middle slice's HU, plus one so that no ReLU bends them, reach the last layer unchanged."""
    for parameter in network.parameters():
        parameter.zero_()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.weight.fill_(1.0)
            module.running_var.fill_(1.0 - module.eps)  # type: ignore[union-attr]
    first, last = network.encoder[0], network.decoder[-1]
    _pass_on(first[0], first[0].in_channels // 2)
    first[1].bias.fill_(1.0)
    _pass_on(first[3], 0)
    _pass_on(last[0], 1)  # the skip follows the channel that comes from below
    _pass_on(last[3], 0)
    low, high = WINDOW_HU
    edge = 1 + (THRESHOLD_HU - (low + high) / 2) / ((high - low) / 2)
    network.classify.weight[1] = STEEPNESS
    network.classify.bias[1] = -STEEPNESS * edge


def _pass_on(convolution: Any, channel: int) -> None:
    """Make a convolution hand one input channel on as it is."""
    kernel = torch.zeros(convolution.weight.shape[2:])
    kernel[tuple(n // 2 for n in kernel.shape)] = 1
    convolution.weight[0, channel] = kernel
