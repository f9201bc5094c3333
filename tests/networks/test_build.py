"""One interface for every network: shapes of all maps, gradients into the encoder, and the registry."""

from __future__ import annotations

import inspect

import pytest
import torch

from metricunet.metric import VoxelMetricLoss, build_sampler
from metricunet.networks import NETWORKS, Network, UNet, build_network

SMALL = {
    "unet-2.5d": ("unet", {"in_channels": 5, "spatial_dims": 2}),
    "unet-3d": ("unet", {"in_channels": 1, "spatial_dims": 3}),
    "fcn": ("fcn", {"in_channels": 5, "spatial_dims": 2}),
    "vnet": ("vnet", {"in_channels": 1, "spatial_dims": 3}),
}


def small(name: str) -> Network:
    torch.manual_seed(0)
    architecture, arguments = SMALL[name]
    return build_network(architecture, classes=3, base_channels=4, levels=3, norm="instance", **arguments)


@pytest.mark.parametrize("name", SMALL)
def test_what_a_network_says_of_itself_is_so(name: str) -> None:
    network = small(name).eval()
    space = (8, 16, 24)[-network.spatial_dims :]
    images = torch.randn(2, network.in_channels, *space)
    with torch.no_grad():
        out, encoded = network.forward_with_maps(images), network.encode(images)
        assert torch.equal(network(images), out.logits)
    assert out.logits.shape == (2, 3, *space)
    assert tuple(m.shape[1] for m in out.decoder_maps) == network.decoder_channels
    sizes = [m[0, 0].numel() for m in out.decoder_maps]
    assert sizes == sorted(sizes, reverse=True)
    assert out.bottleneck.shape[1] == network.bottleneck_channels
    assert out.bottleneck.shape[2:] == tuple(n // network.divisor for n in space)
    assert torch.equal(encoded[-1], out.bottleneck)


@pytest.mark.parametrize("name", SMALL)
def test_the_metric_branch_reaches_the_encoder_from_every_map(name: str) -> None:
    """Its gradient arrives at the first layer, whichever map it taps."""
    network = small(name)
    space = (8, 16, 16)[-network.spatial_dims :]
    images = torch.randn(2, network.in_channels, *space)
    labels = (images[:, 0] > 0).long() if network.spatial_dims == 3 else (images[:, 2] > 0).long()
    first = next(network.parameters())
    for tap, channels in enumerate(network.decoder_channels):
        branch = VoxelMetricLoss(build_sampler("uniform", voxels=64, classes=3), 8, [channels])
        out = network.forward_with_maps(images)
        loss = branch([out.decoder_maps[tap]], labels, out.logits, (1.0,) * network.spatial_dims).loss
        (gradient,) = torch.autograd.grad(loss, first)
        assert torch.isfinite(gradient).all()
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_frozen_encoder_stays_what_it_is_while_the_rest_learns(name: str, norm: str) -> None:
    architecture, arguments = SMALL[name]
    network = build_network(architecture, classes=3, base_channels=4, levels=3, norm=norm, **arguments)
    for weights in network.parameters():  # the scores of an FCN begin at zero, and nothing would pass them
        torch.nn.init.normal_(weights, std=0.1)
    network.freeze_encoder()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    learned = [weights for weights in network.parameters() if weights.requires_grad]
    optimizer = torch.optim.AdamW(learned, 0.01)
    images = torch.randn(2, network.in_channels, *(8, 16, 16)[-network.spatial_dims :])
    for _ in range(2):
        optimizer.zero_grad()
        network(images).square().mean().backward()
        optimizer.step()
        network.eval().train()  # as after each epoch
    encoder = {id(t) for part in network.encoder_parts for t in (*part.parameters(), *part.buffers())}
    for key, tensor in network.state_dict(keep_vars=True).items():
        assert torch.equal(tensor, before[key]) == (id(tensor) in encoder), key
    first = next(network.parameters())
    assert id(first) in encoder
    assert not first.requires_grad


def test_the_registry() -> None:
    assert isinstance(build_network(in_channels=1, classes=2), UNet)
    with pytest.raises(ValueError, match="architecture must be one of unet, fcn, vnet; got 'resnet'"):
        build_network("resnet", in_channels=1, classes=2)
    shared = {"in_channels", "classes", "base_channels", "levels", "spatial_dims", "norm"}
    assert all(shared <= set(inspect.signature(n).parameters) for n in NETWORKS.values())
