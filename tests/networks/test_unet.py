"""The U-Net: shapes, parameter counts against MONAI's building blocks, maps, and independence of slices."""

from __future__ import annotations

import pytest
import torch

from metricunet.networks import UNet
from metricunet.networks.unet import HalvingMaxPool


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def expected_parameters(in_channels: int, classes: int, width: int, levels: int, dims: int) -> int:
    """Count by hand: 3^d kernels without bias and two norm parameters a channel; 2^d kernels with bias."""
    w = [width * 2**k for k in range(levels)]

    def block(a: int, b: int) -> int:
        return 3**dims * (a * b + b * b) + 4 * b

    total = sum(block(a, b) for a, b in zip([in_channels, *w[:-1]], w, strict=True))
    total += sum(2**dims * w[k + 1] * w[k] + w[k] + block(2 * w[k], w[k]) for k in range(levels - 1))
    return total + w[0] * classes + classes


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_shapes_and_parameters(dims: int, norm: str) -> None:
    network = UNet(3, 4, 6, levels=3, spatial_dims=dims, norm=norm)  # type: ignore[arg-type]
    assert parameters(network) == expected_parameters(3, 4, 6, 3, dims)
    side = (8, 12, 16)[:dims]
    logits, maps, _ = network.forward_with_maps(torch.randn(2, 3, *side))
    assert logits.shape == (2, 4, *side)
    assert [m.shape for m in maps] == [(2, 6, *side), (2, 12, *(n // 2 for n in side))]
    assert network.decoder_channels == (6, 12)


def test_the_default_has_about_eight_million_parameters() -> None:
    assert parameters(UNet(5, 2)) == pytest.approx(7.8e6, rel=0.01)


def test_forward_is_the_logits_of_forward_with_maps() -> None:
    network = UNet(1, 2, 4, levels=3).eval()
    x = torch.randn(1, 1, 16, 16)
    assert torch.equal(network(x), network.forward_with_maps(x).logits)


def test_batch_norm_treats_a_large_field_as_a_small_one() -> None:
    """Frozen statistics: far from the borders a voxel does not know how large the scan is."""
    torch.manual_seed(0)
    network = UNet(1, 2, 4, levels=2, spatial_dims=2, norm="batch").eval()
    x = torch.randn(1, 1, 64, 64)
    large, small = network(x)[..., 24:40, 24:40], network(x[..., 8:56, 8:56])[..., 16:32, 16:32]
    torch.testing.assert_close(large, small)


def test_wrong_inputs_are_refused() -> None:
    network = UNet(1, 2, 4, levels=3)
    with pytest.raises(ValueError, match="4 divides"):
        network(torch.zeros(1, 1, 16, 18))
    with pytest.raises(ValueError, match="spatial_dims"):
        UNet(1, 2, spatial_dims=4)
    with pytest.raises(ValueError, match="norm"):
        UNet(1, 2, norm="layer")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="levels"):
        UNet(1, 2, levels=1)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_halving_gives_the_maxima_with_and_without_gradient(dims: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *[8, 6, 10][:dims]).to(dtype)
    pool = HalvingMaxPool(dims)
    expected = {2: torch.nn.functional.max_pool2d, 3: torch.nn.functional.max_pool3d}[dims](x.float(), 2)
    assert torch.equal(pool(x).float(), expected)
    with torch.inference_mode():
        assert torch.equal(pool(x).float(), expected)
