"""The most multiply-adds per second that this machine does: a large matrix product, and a friendly convolution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from metricunet.workflows.bench.timing import Run, seconds

#: Sides of the square matrices, by kind of device: large enough that nothing but arithmetic counts.
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
#: Images, channels and side of the convolution: 3 x 3, as many channels out as in, channels last.
CONVOLUTION = {"cpu": (8, 128, 96), "cuda": (64, 256, 128)}
REPEATS = 5
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Peak:
    """The most multiply-adds per second that were seen in one precision.

    Attributes:
        precision: `bf16` or `fp32`.
        matrix: of a matrix product.
        convolution: of a convolution.
    """

    precision: str
    matrix: float
    convolution: float

    @property
    def best(self) -> float:
        """The larger of the two."""
        return max(self.matrix, self.convolution)


def measure_peak(device: torch.device, precision: str) -> Peak:
    """Measure the peak; the best of several tries, for a peak is what was reached once.

    Args:
        device: to compute on.
        precision: `bf16` or `fp32` (on a GPU without TF32, unless torch was told otherwise).
    """
    kind = PRECISIONS[precision]
    side = MATRIX_SIDE[device.type]
    images, channels, width = CONVOLUTION[device.type]
    with torch.inference_mode():
        one, two = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
        into = torch.empty(side, side, device=device, dtype=kind)
        kernel = torch.randn(channels, channels, 3, 3, device=device).to(kind)
        kernel = kernel.contiguous(memory_format=torch.channels_last)
        picture = torch.randn(images, channels, width, width, device=device).to(kind)
        picture = picture.contiguous(memory_format=torch.channels_last)

        def product() -> Tensor:
            return torch.mm(one, two, out=into)

        def convolve() -> Tensor:
            return F.conv2d(picture, kernel, padding=1)

        matrix = side**3 / _least(product, device)
        convolution = images * width**2 * channels**2 * 9 / _least(convolve, device)
    return Peak(precision, matrix, convolution)


def _least(run: Run, device: torch.device) -> float:
    seconds(run, device)
    return min(seconds(run, device) for _ in range(REPEATS))
