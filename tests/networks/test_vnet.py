"""The V-Net against MONAI's, weight for weight, and against the original's table of stages."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from benchmarks.network_cost import parameters
from metricunet.networks import VNet


def shapes(network: nn.Module) -> list[tuple[int, ...]]:
    return sorted(tuple(p.shape) for p in network.parameters())


def test_stages_of_the_original_at_full_width() -> None:
    """Stages of 16 to 256 channels and 1, 2, 3, 3, 3 convolutions; decoder stages of 32 to 256 channels."""
    with torch.device("meta"):
        network = VNet(1, 2)
        out = network.forward_with_maps(torch.empty(1, 1, 64, 128, 128))
    assert out.logits.shape == (1, 2, 64, 128, 128)
    assert out.bottleneck.shape == (1, 256, 4, 8, 8)
    assert [m.shape[1:] for m in out.decoder_maps] == [
        (32, 64, 128, 128), (64, 32, 64, 64), (128, 16, 32, 32), (256, 8, 16, 16),
    ]  # fmt: skip
    assert network.decoder_channels == (32, 64, 128, 256)
    assert (network.bottleneck_channels, network.divisor) == (256, 16)
    # By hand: kernels of 5, and three numbers a channel for norm and PReLU of each convolution.
    total = 125 * 16 + 3 * 16
    for width, convolutions in ((32, 2), (64, 3), (128, 3), (256, 3)):
        total += 8 * width // 2 * width + 3 * width  # the strided convolution
        total += convolutions * (125 * width * width + 3 * width)
    below = 256
    for width, convolutions in ((256, 3), (128, 3), (64, 2), (32, 1)):
        total += 8 * below * width // 2 + 3 * width // 2  # the transposed convolution
        total += convolutions * (125 * width * width + 3 * width)
        below = width
    assert parameters(network) == total + 32 * 2 + 2


def copy_monai(ours: VNet, theirs: nn.Module) -> None:
    """Give our V-Net the weights of MONAI's, which hold the same tensors in another order."""

    def move(mine: Iterable[nn.Module], other: Iterable[nn.Module]) -> None:
        kinds = (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d)
        one, two = ([m for m in part if isinstance(m, kinds)] for part in (mine, other))
        for a, b in zip(one, two, strict=True):
            a.load_state_dict(b.state_dict())

    def stage(down: nn.Module, residual: nn.Module, transition: nn.Module, name: str) -> None:
        move(down.modules(), (getattr(transition, name), transition.bn1))
        move(residual.modules(), transition.ops.modules())

    move(ours.first.modules(), theirs.in_tr.conv_block.modules())
    for down, encoder, width in zip(ours.down, ours.encoder, (32, 64, 128, 256), strict=True):
        stage(down, encoder, getattr(theirs, f"down_tr{width}"), "down_conv")
    for up, decoder, width in zip(ours.up, ours.decoder, (256, 128, 64, 32), strict=True):
        stage(up, decoder, getattr(theirs, f"up_tr{width}"), "up_conv")


def test_every_map_is_that_of_monai() -> None:
    """With MONAI's numbers of convolutions and batch norm, the same weights give the same maps.

    MONAI activates the last convolution of a stage before the sum as well, which the original does not, and puts a
    convolution of side 5 before the last of side 1; the first is switched off, the second left out.
    """
    nets = pytest.importorskip("monai.networks.nets.vnet")
    torch.manual_seed(0)
    theirs = nets.VNet(3, 1, 2, act="prelu").eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
        if isinstance(module, nn.ConvTranspose3d):
            module.bias = None
    for transition in theirs.children():
        if hasattr(transition, "ops"):
            transition.ops[-1].act_function = nn.Identity()
    ours = VNet(
        1, 2, norm="batch", encoder_convolutions=(1, 1, 2, 3, 2), decoder_convolutions=(1, 1, 2, 2)
    ).eval()  # fmt: skip
    without_output = nn.ModuleList(m for name, m in theirs.named_children() if name != "out_tr")
    head = [(2,), (2, 32, 1, 1, 1)]
    assert shapes(ours) == sorted([*shapes(without_output), *head])
    assert parameters(ours) == parameters(without_output) + 2 * 32 + 2
    copy_monai(ours, theirs)

    caught: dict[str, Tensor] = {}
    for name, module in theirs.named_children():
        module.register_forward_hook(lambda m, i, out, name=name: caught.__setitem__(name, out))
    x = torch.randn(1, 1, 16, 32, 16)
    with torch.no_grad():
        theirs(x)
        found = ours.forward_with_maps(x)
        encoded = ours.encode(x)
    for mine, name in zip(encoded, ("in_tr", "down_tr32", "down_tr64", "down_tr128", "down_tr256"), strict=True):
        torch.testing.assert_close(mine, caught[name], rtol=1e-4, atol=1e-4)
    for mine, name in zip(found.decoder_maps, ("up_tr32", "up_tr64", "up_tr128", "up_tr256"), strict=True):
        torch.testing.assert_close(mine, caught[name], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.bottleneck, caught["down_tr256"], rtol=1e-4, atol=1e-4)


def test_a_stage_learns_a_residual() -> None:
    """With zero convolutions a stage hands on what came in."""
    network = VNet(2, 2, 4, levels=2)
    for module in network.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size == (5, 5, 5):
            nn.init.zeros_(module.weight)
    x = torch.rand(1, 2, 4, 4, 4)
    torch.testing.assert_close(network.encode(x)[0], x.repeat(1, 2, 1, 1, 1))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="spatial_dims must be 3; got 2"):
        VNet(1, 2, spatial_dims=2)
    with pytest.raises(ValueError, match="multiple of in_channels 3"):
        VNet(3, 2, 4)
    with pytest.raises(ValueError, match="encoder_convolutions must be 3 numbers"):
        VNet(1, 2, 4, levels=3, encoder_convolutions=(1, 2))
    with pytest.raises(ValueError, match="4 divides"):
        VNet(1, 2, 4, levels=3)(torch.zeros(1, 1, 8, 8, 6))
