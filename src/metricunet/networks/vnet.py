"""The V-Net: a residual network in three dimensions.

Milletari, Navab, Ahmadi: V-Net (3DV 2016): stages of convolutions of side 5, each stage learning a residual;
convolutions of stride 2 in place of pooling; PReLU. As in the original, a decoder's stage is as wide as the two
maps it joins, and the finest stage has `base_channels` = 16. Added here, as in later implementations: a
normalisation after every convolution but the last (without it the network trains from scratch only with care).
Input and output have one size, for the convolutions are padded, as in the original.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from metricunet.networks.base import Network, NetworkOutput
from metricunet.networks.layers import CONV, UP, Norm, check_arguments, initialise, norm_layer

#: Convolutions of the encoder's stages in the original, the finest first; the decoder's are the same but the last.
CONVOLUTIONS = (1, 2, 3, 3, 3)


class VNet(Network):
    """A V-Net whose decoder maps can be read, for a second branch to learn from.

    Args:
        in_channels: channels of the input; must divide `base_channels`, for the input is repeated to the width of
            the first stage, whose residual it is.
        classes: channels of the logits, background included.
        base_channels: channels of the encoder's finest stage; each coarser stage has twice as many.
        levels: number of resolutions.
        spatial_dims: must be 3.
        norm: `instance` for inputs of one fixed size, `batch` for inputs of any size.
        encoder_convolutions: number of convolutions of each stage, the finest first; None takes those of the
            original, and its last number for any further levels.
        decoder_convolutions: number of convolutions of each stage, the finest first; None takes those of the
            encoder.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        base_channels: int = 16,
        levels: int = 5,
        spatial_dims: int = 3,
        norm: Norm = "instance",
        encoder_convolutions: Sequence[int] | None = None,
        decoder_convolutions: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_arguments(spatial_dims, (3,), norm, base_channels, levels, 2)
        if base_channels % in_channels:
            raise ValueError(f"base_channels must be a multiple of in_channels {in_channels}; got {base_channels}")
        usual = [CONVOLUTIONS[min(k, len(CONVOLUTIONS) - 1)] for k in range(levels)]
        down = _counts("encoder_convolutions", encoder_convolutions, usual)
        up = _counts("decoder_convolutions", decoder_convolutions, usual[:-1])
        self.in_channels = in_channels
        self.spatial_dims = spatial_dims
        self.divisor = self.normalised_stride = 2 ** (levels - 1)
        widths = [base_channels * 2**k for k in range(levels)]
        self.decoder_channels = tuple(2 * width for width in widths[:-1])
        self.bottleneck_channels = widths[-1]
        self.base_channels = base_channels
        self.first = _ResidualStage(in_channels, widths[0], down[0], norm)
        self.down = nn.ModuleList(_resized(CONV[3], fine, coarse, norm) for fine, coarse in pairwise(widths))
        self.encoder = nn.ModuleList(
            _ResidualStage(w, w, count, norm) for w, count in zip(widths[1:], down[1:], strict=True)
        )
        coarse_to_fine = list(reversed(range(levels - 1)))
        # A decoder's stage is twice as wide as the encoder's at its level; the first reads the bottleneck.
        below = [widths[-1], *(2 * widths[k] for k in coarse_to_fine[:-1])]
        self.up = nn.ModuleList(
            _resized(UP[3], b, widths[k], norm) for b, k in zip(below, coarse_to_fine, strict=True)
        )
        self.decoder = nn.ModuleList(
            _ResidualStage(2 * widths[k], 2 * widths[k], up[k], norm) for k in coarse_to_fine
        )
        self.classify = CONV[3](2 * widths[0], classes, kernel_size=1)
        self.apply(initialise)

    def forward_with_maps(self, images: Tensor) -> NetworkOutput:
        """Return the logits, the decoder's maps (each twice as wide as the encoder's there) and the bottleneck."""
        skips = self.encode(images)
        x = skips[-1]
        maps: list[Tensor] = []
        for up, stage, skip in zip(self.up, self.decoder, reversed(skips[:-1]), strict=True):
            joined = torch.cat([up(x), skip], dim=1)
            x = stage(joined, joined)
            maps.append(x)
        return NetworkOutput(self.classify(x), maps[::-1], skips[-1])

    @property
    def encoder_parts(self) -> Sequence[nn.Module]:
        """The stages on the way down, and the convolutions between them."""
        return (self.first, self.down, self.encoder)

    def encode(self, images: Tensor) -> list[Tensor]:
        """Return the encoder's maps, the finest first; the last is the bottleneck."""
        self._check(images.shape)
        x = self.first(images, images.repeat(1, self.base_channels // self.in_channels, 1, 1, 1))
        skips = [x]
        for down, stage in zip(self.down, self.encoder, strict=True):
            x = down(x)
            x = stage(x, x)
            skips.append(x)
        return skips


class _ResidualStage(nn.Module):
    """Convolutions of side 5, each normalised and activated; their result is added to the residual's base."""

    def __init__(self, before: int, after: int, convolutions: int, norm: Norm) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for k in range(convolutions):
            layers += [
                CONV[3](before if k == 0 else after, after, kernel_size=5, padding=2, bias=False),
                norm_layer(after, 3, norm),
            ]
            # The last one is activated after the sum.
            layers += [nn.PReLU(after)] if k < convolutions - 1 else []
        self.layers = nn.Sequential(*layers)
        self.activate = nn.PReLU(after)

    def forward(self, x: Tensor, base: Tensor) -> Tensor:
        out: Tensor = self.activate(self.layers(x) + base)
        return out


def _resized(layer: type[nn.Module], before: int, after: int, norm: Norm) -> nn.Sequential:
    """Halve or double the sides by a convolution of stride 2, normalised and activated."""
    return nn.Sequential(
        layer(before, after, kernel_size=2, stride=2, bias=False), norm_layer(after, 3, norm), nn.PReLU(after)
    )


def _counts(name: str, given: Sequence[int] | None, usual: list[int]) -> list[int]:
    counts = usual if given is None else list(given)
    if len(counts) != len(usual) or any(n < 1 for n in counts):
        raise ValueError(f"{name} must be {len(usual)} numbers of 1 or more; got {counts}")
    return counts
