"""What the networks are made of: layers by the number of spatial dimensions, and their first weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["instance", "batch"]


class SafeConv3d(nn.Conv3d):
    """A 3D convolution that computes in float32 where the bf16 kernel of a CPU goes wrong.

    Seen with torch 2.13 on processors with AMX: with fewer slices than the kernel is deep, the weights' gradient
    is memory that nobody wrote, finite or not, and other memory is damaged. The result and the images' own
    gradient are right. Such maps are small, so float32 costs little there. 2D is not affected.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Convolve [batch, channels, slices, rows, columns]."""
        low = images.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
        if images.device.type == "cpu" and low and images.shape[2] < self.kernel_size[0]:
            bias = None if self.bias is None else self.bias.float()
            with torch.autocast("cpu", enabled=False):
                out: Tensor = self._conv_forward(images.float(), self.weight.float(), bias)
            return out.to(torch.bfloat16)
        return super().forward(images)


CONV: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: SafeConv3d}
UP: dict[int, type[nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_POOL: dict[int, Callable[..., Tensor]] = {2: F.max_pool2d, 3: F.max_pool3d}
_NORM: dict[tuple[int, str], type[nn.Module]] = {
    (2, "instance"): nn.InstanceNorm2d,
    (3, "instance"): nn.InstanceNorm3d,
    (2, "batch"): nn.BatchNorm2d,
    (3, "batch"): nn.BatchNorm3d,
}
#: Weight of the newest batch in the running statistics. Batches of patches are few and unlike each other, so the
#: mean runs over many of them.
BATCH_NORM_MOMENTUM = 0.03
INSTANCE_NORM_MOMENTUM = 0.1
#: Slope of the leaky ReLU below zero.
SLOPE = 0.01


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


def check_arguments(
    spatial_dims: int, known_dims: tuple[int, ...], norm: str, base_channels: int, levels: int, least_levels: int
) -> None:
    """Check what every network takes.

    Raises:
        ValueError: a number of dimensions or levels that the network cannot have, or an unknown norm.
    """
    if spatial_dims not in known_dims:
        raise ValueError(f"spatial_dims must be {' or '.join(map(str, known_dims))}; got {spatial_dims}")
    if norm not in ("instance", "batch"):
        raise ValueError(f"norm must be one of instance, batch; got {norm!r}")
    if levels < least_levels or base_channels < 1:
        raise ValueError(
            f"levels must be {least_levels} or more and base_channels 1 or more; got {levels}, {base_channels}"
        )


def norm_layer(channels: int, dims: int, norm: Norm) -> nn.Module:
    """Build a normalisation with a learned scale and offset for each channel."""
    momentum = BATCH_NORM_MOMENTUM if norm == "batch" else INSTANCE_NORM_MOMENTUM
    return _NORM[dims, norm](channels, affine=True, momentum=momentum)


def conv_norm_act(before: int, after: int, dims: int, norm: Norm) -> list[nn.Module]:
    """Build a padded convolution of side 3, its normalisation, and a leaky ReLU."""
    return [
        CONV[dims](before, after, kernel_size=3, padding=1, bias=False),
        norm_layer(after, dims, norm),
        nn.LeakyReLU(SLOPE, inplace=True),
    ]


def initialise(module: nn.Module) -> None:
    """Give a convolution the first weights of He et al. (ICCV 2015), and no bias."""
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        if module.weight.is_meta:
            return  # it has no values; to draw some all the same, torch imports its compiler, for a second
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
