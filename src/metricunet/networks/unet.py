"""The U-Net of both stages, in two or three dimensions.

Ronneberger, Fischer, Brox: U-Net (MICCAI 2015), with instance or batch normalisation and leaky ReLU in place
of bare ReLU, and padded convolutions so that input and output have one size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metricunet.networks.base import Network, NetworkOutput
from metricunet.networks.layers import CONV, UP, HalvingMaxPool, Norm, check_arguments, conv_norm_act, initialise


class UNet(Network):
    """A U-Net whose decoder maps can be read, for a second branch to learn from.

    Args:
        in_channels: channels of the input (neighbouring slices in 2.5D).
        classes: channels of the logits, background included.
        base_channels: channels of the finest level; each coarser level has twice as many.
        levels: number of resolutions.
        spatial_dims: 2 or 3.
        norm: `instance` for inputs of one fixed size, `batch` for inputs of any size (its statistics are
            frozen at inference, so a large field is treated as a small one).
        max_channels: upper bound of the channels of coarse levels.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        base_channels: int = 32,
        levels: int = 5,
        spatial_dims: int = 2,
        norm: Norm = "instance",
        max_channels: int = 512,
    ) -> None:
        super().__init__()
        check_arguments(spatial_dims, (2, 3), norm, base_channels, levels, 2)
        self.in_channels = in_channels
        self.spatial_dims = spatial_dims
        self.divisor = self.normalised_stride = 2 ** (levels - 1)
        widths = [min(base_channels * 2**k, max_channels) for k in range(levels)]
        self.decoder_channels = tuple(widths[:-1])
        self.bottleneck_channels = widths[-1]

        def block(before: int, after: int) -> nn.Sequential:
            return nn.Sequential(
                *conv_norm_act(before, after, spatial_dims, norm),
                *conv_norm_act(after, after, spatial_dims, norm),
            )

        self.encoder = nn.ModuleList(
            block(before, after) for before, after in zip([in_channels, *widths[:-1]], widths, strict=True)
        )
        self.pool = HalvingMaxPool(spatial_dims)
        coarse_to_fine = list(reversed(range(levels - 1)))
        self.up = nn.ModuleList(
            UP[spatial_dims](widths[k + 1], widths[k], kernel_size=2, stride=2) for k in coarse_to_fine
        )
        self.decoder = nn.ModuleList(block(2 * widths[k], widths[k]) for k in coarse_to_fine)
        self.classify = CONV[spatial_dims](widths[0], classes, kernel_size=1)
        self.apply(initialise)

    def forward_with_maps(self, images: Tensor) -> NetworkOutput:
        """Return the logits, the decoder's maps and the bottleneck."""
        skips = self.encode(images)
        x = skips[-1]
        maps: list[Tensor] = []
        for up, block, skip in zip(self.up, self.decoder, reversed(skips[:-1]), strict=True):
            x = block(torch.cat([up(x), skip], dim=1))
            maps.append(x)
        return NetworkOutput(self.classify(x), maps[::-1], skips[-1])

    @property
    def encoder_parts(self) -> Sequence[nn.Module]:
        """The blocks of all levels on the way down, the bottleneck among them."""
        return (self.encoder,)

    def encode(self, images: Tensor) -> list[Tensor]:
        """Return the encoder's maps, the finest first; the last is the bottleneck."""
        self._check(images.shape)
        skips: list[Tensor] = []
        x = images
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else self.pool(x))
            skips.append(x)
        return skips
