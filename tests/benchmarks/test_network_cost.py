"""Multiply-adds against counts by hand, networks left as they were, and equal costs where a study says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from benchmarks.network_cost import multiply_adds, multiply_adds_per_voxel, parameters
from metricunet.networks import UNet, build_network


def unet_by_hand(in_channels: int, classes: int, width: int, levels: int, dims: int) -> float:
    """Add up, for each voxel of the finest level, the kernels of a U-Net, level by level."""
    w = [width * 2**k for k in range(levels)]
    total = width * classes
    for k in range(levels):
        before = in_channels if k == 0 else w[k - 1]
        here = 3**dims * (before * w[k] + w[k] ** 2)
        if k < levels - 1:
            here += 3**dims * (2 * w[k] * w[k] + w[k] ** 2)
            here += w[k + 1] * w[k]  # a transposed convolution writes each fine voxel from one coarse voxel
        total += here / 2 ** (dims * k)
    return total


@pytest.mark.parametrize(("dims", "space"), [(2, (96, 96)), (3, (32, 96, 96))])
def test_the_unet_by_hand(dims: int, space: tuple[int, ...]) -> None:
    with torch.device("meta"):
        network = UNet(5, 2, 16, spatial_dims=dims)
    assert multiply_adds_per_voxel(network, space) == unet_by_hand(5, 2, 16, 5, dims)
    assert multiply_adds_per_voxel(network, (*space[:-2], 192, 96)) == unet_by_hand(5, 2, 16, 5, dims)


def test_layers_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, stride=2))
    assert multiply_adds(network, (2, 3, 6, 7)) == 2 * 42 * (25 * 3 * 8 + 4 * 8 * 4)
    assert multiply_adds(nn.Linear(5, 3), (7, 5)) == 7 * 5 * 3
    assert parameters(network) == 25 * 24 + 8 + 4 * 32 + 4


def test_the_network_is_left_as_it_is() -> None:
    network = UNet(1, 2, 4, levels=2, norm="batch")
    before = {k: v.clone() for k, v in network.state_dict().items()}
    assert multiply_adds(network, (1, 1, 8, 8)) > 0
    assert all(torch.equal(v, before[k]) and v.device.type == "cpu" for k, v in network.state_dict().items())
    with pytest.raises(ValueError, match="2 divides"):
        multiply_adds(network, (1, 1, 8, 9))


PAPER = yaml.safe_load((Path(__file__).parents[2] / "studies" / "paper.yaml").read_text(encoding="utf-8"))
COMPARED = ("fcn", "vnet", "unet-3d")


def segment_of(arm: str) -> dict[str, Any]:
    """Settings of stage 2 of an arm of studies/paper.yaml, over the preset `small`."""
    flat = {"network": "unet", "spatial_dims": 2, "slices": 5, "levels": 5, "base_channels": 16}
    return flat | PAPER["base"]["settings"]["segment"] | PAPER["arms"][arm].get("settings", {}).get("segment", {})


def cost_of(stage: dict[str, Any], wider: int = 0) -> float:
    with torch.device("meta"):
        network = build_network(
            stage["network"],
            in_channels=1 if stage["spatial_dims"] == 3 else stage["slices"],
            classes=2,
            base_channels=stage["base_channels"] + wider,
            levels=stage["levels"],
            spatial_dims=stage["spatial_dims"],
            norm="instance",
        )
    return multiply_adds_per_voxel(network, (32, 96, 96)[-network.spatial_dims :])


def test_the_papers_networks_are_equal_in_multiply_adds_and_voxels_seen() -> None:
    unet = segment_of("unet-dice-ce")
    assert cost_of(unet) == 46_576
    for arm in COMPARED:
        stage = segment_of(arm)
        ratio = cost_of(stage) / cost_of(unet)
        assert 0.9 < ratio < 1.1, arm
        # A width more or less is farther off: these are the nearest.
        assert all(abs(cost_of(stage, step) / cost_of(unet) - 1) > abs(ratio - 1) for step in (-1, 1))
        slices = stage["block_slices"] if stage["spatial_dims"] == 3 else 1
        seen = stage["batch_size"] * slices * stage["updates_per_epoch"]
        assert seen == unet["batch_size"] * unet["updates_per_epoch"]
