"""The U-Net of both stages, in two or three dimensions.

Ronneberger, Fischer, Brox: U-Net (MICCAI 2015), with instance or batch normalisation and leaky ReLU in place
of bare ReLU, and padded convolutions so that input and output have one size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["instance", "batch"]

_CONV: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
_UP: dict[int, type[nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_POOL: dict[int, Callable[..., Tensor]] = {2: F.max_pool2d, 3: F.max_pool3d}
_NORM: dict[tuple[int, Norm], type[nn.Module]] = {
    (2, "instance"): nn.InstanceNorm2d,
    (3, "instance"): nn.InstanceNorm3d,
    (2, "batch"): nn.BatchNorm2d,
    (3, "batch"): nn.BatchNorm3d,
}
#: Weight of the newest batch in the running statistics. Batches of patches are few and unlike each other, so the
#: mean runs over many of them.
BATCH_NORM_MOMENTUM = 0.03


class UNetOutput(NamedTuple):
    """Logits [batch, classes, *space], the decoder's maps (the finest first), and the encoder's coarsest map."""

    logits: Tensor
    decoder_maps: list[Tensor]
    bottleneck: Tensor


class UNet(nn.Module):
    """A U-Net whose decoder maps can be read, for a second branch to learn from.

    Input [batch, in_channels, *space], output [batch, classes, *space]; every side of the space must be a
    multiple of `divisor`.

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
        if spatial_dims not in _CONV:
            raise ValueError(f"spatial_dims must be 2 or 3; got {spatial_dims}")
        if (spatial_dims, norm) not in _NORM:
            raise ValueError(f"norm must be one of instance, batch; got {norm!r}")
        if levels < 2 or base_channels < 1:
            raise ValueError(
                f"levels must be 2 or more and base_channels 1 or more; got {levels}, {base_channels}"
            )
        self.spatial_dims = spatial_dims
        self.divisor = 2 ** (levels - 1)
        widths = [min(base_channels * 2**k, max_channels) for k in range(levels)]
        self.decoder_channels: tuple[int, ...] = tuple(widths[:-1])
        """Channels of each decoder map, the finest first."""
        self.bottleneck_channels: int = widths[-1]
        """Channels of the encoder's coarsest map."""

        def block(before: int, after: int) -> nn.Sequential:
            return nn.Sequential(
                *_conv_norm_act(before, after, spatial_dims, norm),
                *_conv_norm_act(after, after, spatial_dims, norm),
            )

        self.encoder = nn.ModuleList(
            block(before, after) for before, after in zip([in_channels, *widths[:-1]], widths, strict=True)
        )
        self.pool = HalvingMaxPool(spatial_dims)
        coarse_to_fine = list(reversed(range(levels - 1)))
        self.up = nn.ModuleList(
            _UP[spatial_dims](widths[k + 1], widths[k], kernel_size=2, stride=2) for k in coarse_to_fine
        )
        self.decoder = nn.ModuleList(block(2 * widths[k], widths[k]) for k in coarse_to_fine)
        self.classify = _CONV[spatial_dims](widths[0], classes, kernel_size=1)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [batch, classes, *space]."""
        return self.forward_with_maps(images).logits

    def forward_with_maps(self, images: Tensor) -> UNetOutput:
        """Return the logits, the decoder's maps and the bottleneck."""
        skips = self.encode(images)
        x = skips[-1]
        maps: list[Tensor] = []
        for up, block, skip in zip(self.up, self.decoder, reversed(skips[:-1]), strict=True):
            x = block(torch.cat([up(x), skip], dim=1))
            maps.append(x)
        return UNetOutput(self.classify(x), maps[::-1], skips[-1])

    def encode(self, images: Tensor) -> list[Tensor]:
        """Return the encoder's maps, the finest first; the last is the bottleneck."""
        self._check(images.shape)
        skips: list[Tensor] = []
        x = images
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else self.pool(x))
            skips.append(x)
        return skips

    def _check(self, shape: Sequence[int]) -> None:
        sides = tuple(shape[2:])
        if len(sides) != self.spatial_dims or any(n % self.divisor for n in sides):
            raise ValueError(
                f"expected [batch, channels, *space], {self.spatial_dims} sides that {self.divisor} divides; "
                f"got shape {tuple(shape)}"
            )


class HalvingMaxPool(nn.Module):
    """Max pooling over 2 x 2 or 2 x 2 x 2 voxels; every side must be even.

    Without a gradient on a CPU the maximum is taken axis by axis, which gives the same values in a tenth of the
    time of torch's pooling (bfloat16, 128 x 128).
    """

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, channels, *space halved]."""
        if torch.is_grad_enabled() or x.device.type != "cpu":
            return _POOL[self.spatial_dims](x, 2)
        for axis in range(2, x.dim()):
            # Pairs of neighbours along one axis, as views.
            sides = (*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
            x = torch.maximum(*x.reshape(sides).unbind(axis + 1))
        return x


def _conv_norm_act(before: int, after: int, dims: int, norm: Norm) -> list[nn.Module]:
    momentum = BATCH_NORM_MOMENTUM if norm == "batch" else 0.1
    return [
        _CONV[dims](before, after, kernel_size=3, padding=1, bias=False),
        _NORM[dims, norm](after, affine=True, momentum=momentum),
        nn.LeakyReLU(0.01, inplace=True),
    ]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
