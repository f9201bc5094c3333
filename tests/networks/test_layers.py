"""Small 3D maps in bf16: the weights' gradient is that of float32, where a CPU's own kernel makes it up."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from metricunet.networks import UNet, VNet
from metricunet.networks.layers import SafeConv3d


def test_gradients_of_small_maps() -> None:
    torch.manual_seed(0)
    for side, space in product((3, 5), [(1, 1, 1), (2, 6, 6), (3, 4, 1), (4, 6, 6), (2, 1, 3)]):
        layer = SafeConv3d(8, 16, side, padding=side // 2)
        images = torch.randn(2, 8, *space)
        plain = nn.functional.conv3d(images, layer.weight, layer.bias, padding=side // 2)
        outward = torch.randn_like(plain)
        (wanted,) = torch.autograd.grad(plain, layer.weight, outward)
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                out = layer(images)
            assert out.dtype == torch.bfloat16
            torch.testing.assert_close(out.float(), plain, rtol=0.02, atol=0.02)
            (found,) = torch.autograd.grad(out, layer.weight, outward.bfloat16())
            assert float((found - wanted).abs().max() / wanted.abs().max()) < 0.02


def test_elsewhere_it_is_the_plain_layer() -> None:
    """No other precision, and no other tensors in a model file, than nn.Conv3d has."""
    layer, plain = SafeConv3d(2, 3, 3, padding=1), nn.Conv3d(2, 3, 3, padding=1)
    plain.load_state_dict(layer.state_dict())
    images = torch.randn(1, 2, 2, 4, 4)
    assert torch.equal(layer(images), plain(images))
    assert layer(images).dtype == torch.float32
    large = torch.randn(1, 2, 6, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(large), plain(large))


@pytest.mark.parametrize("kind", [UNet, VNet])
def test_whole_networks_have_the_gradient_of_float32(kind: type[UNet] | type[VNet]) -> None:
    """The blocks of training end in two slices at the coarsest level."""
    torch.manual_seed(0)
    network = kind(1, 2, 8, levels=3, spatial_dims=3)
    images = torch.randn(2, 1, 8, 32, 32)
    target = (images[:, 0] > 0.5).long()
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = network(images)
        loss = nn.functional.cross_entropy(logits.float(), target)
        gradients.append(torch.autograd.grad(loss, list(network.parameters())))
    for wanted, found in zip(*gradients, strict=True):
        assert torch.isfinite(found).all()
        if wanted.norm() > 1e-4:
            assert torch.cosine_similarity(wanted.flatten(), found.flatten(), dim=0) > 0.9
