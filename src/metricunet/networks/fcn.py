"""The fully convolutional network FCN-8s in two dimensions.

Long, Shelhamer, Darrell: Fully convolutional networks for semantic segmentation (CVPR 2015), on the 16-layer
network of Simonyan and Zisserman (VGG, ICLR 2015): stages of convolutions and pooling, the classifier's two layers
as convolutions, class scores from strides 32, 16 and 8, summed from coarse to fine. Differences to the original:
the stages are normalised, so that the network trains from scratch instead of from ImageNet's weights; every
convolution is padded, where the original pads the image by 100 pixels and cuts the scores; the last enlargement,
fixed and bilinear in the original too, goes on at the image's border where the original's falls to zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metricunet.networks.base import Network, NetworkOutput
from metricunet.networks.layers import HalvingMaxPool, Norm, check_arguments, conv_norm_act, initialise

#: Convolutions of the stages of the 16-layer network, and their widths in units of the first.
CONVOLUTIONS = (2, 2, 3, 3, 3)
WIDTHS = (1, 2, 4, 8, 8)
#: Width of the two layers after the last stage, in the same unit: 4096 where the first stage has 64.
CLASSIFIER_WIDTH = 64


class FCN(Network):
    """An FCN-8s whose features can be read, for a second branch to learn from.

    There is no decoder as in a U-Net: a score at each stride is a linear reading of an encoder's map, and scores,
    as many as classes, are too few to embed voxels with. So `decoder_maps` are the three maps that scores are read
    from: the stage of stride `divisor` / 4 (8 with five levels), the stage after it, and the classifier's last
    layer, which is the bottleneck as well. They stand to the logits as the last map of a U-Net does.

    Args:
        in_channels: channels of the input (neighbouring slices in 2.5D).
        classes: channels of the logits, background included.
        base_channels: channels of the finest stage, 64 in the original.
        levels: number of stages, each ending in a pooling.
        spatial_dims: 2.
        norm: `instance` or `batch`, of the stages; the classifier's layers have none, as in the original.
        dropout: share of values dropped after each of the classifier's two layers, in training.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        base_channels: int = 64,
        levels: int = 5,
        spatial_dims: int = 2,
        norm: Norm = "instance",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_arguments(spatial_dims, (2,), norm, base_channels, levels, 3)
        self.in_channels = in_channels
        self.spatial_dims = spatial_dims
        self.divisor = 2**levels
        self.normalised_stride = 2 ** (levels - 1)
        last = len(WIDTHS) - 1
        widths = [base_channels * WIDTHS[min(k, last)] for k in range(levels)]
        wide = base_channels * CLASSIFIER_WIDTH
        self.decoder_channels = (widths[-3], widths[-2], wide)
        self.bottleneck_channels = wide
        self.stages = nn.ModuleList()
        for k, (before, after) in enumerate(zip([in_channels, *widths[:-1]], widths, strict=True)):
            layers: list[nn.Module] = []
            for n in range(CONVOLUTIONS[min(k, last)]):
                layers += conv_norm_act(before if n == 0 else after, after, spatial_dims, norm)
            self.stages.append(nn.Sequential(*layers, HalvingMaxPool(spatial_dims)))
        self.classifier = nn.Sequential(
            nn.Conv2d(widths[-1], wide, kernel_size=7, padding=3),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Conv2d(wide, wide, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
        )
        scores = [nn.Conv2d(c, classes, kernel_size=1) for c in self.decoder_channels]
        self.score = nn.ModuleList(scores)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(classes, classes, kernel_size=4, stride=2, padding=1, bias=False) for _ in range(2)
        )
        self.apply(initialise)
        # As in the original, scores begin at zero.
        for score in scores:
            nn.init.zeros_(score.weight)
        for up in self.up:
            _make_bilinear(up)

    def forward_with_maps(self, images: Tensor) -> NetworkOutput:
        """Return the logits, the maps that scores are read from, and the bottleneck."""
        maps = self.encode(images)[-3:]
        score = self.score[2](maps[2])
        for finer in (1, 0):
            score = self.up[finer](score) + self.score[finer](maps[finer])
        logits = F.interpolate(score, scale_factor=self.divisor // 4, mode="bilinear", align_corners=False)
        return NetworkOutput(logits, maps, maps[2])

    @property
    def encoder_parts(self) -> Sequence[nn.Module]:
        """The stages; the classifier's layers, which read what they have found, are none of them."""
        return (self.stages,)

    def encode(self, images: Tensor) -> list[Tensor]:
        """Return the map of each stage but the last, the finest first, and the classifier's: the bottleneck."""
        self._check(images.shape)
        maps: list[Tensor] = []
        x = images
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        maps[-1] = self.classifier(x)
        return maps


@torch.no_grad()
def _make_bilinear(up: nn.Module) -> None:
    """Let a transposed convolution of side 4 and stride 2 begin as bilinear enlargement, class by class."""
    assert isinstance(up, nn.ConvTranspose2d)
    side = torch.tensor([0.25, 0.75, 0.75, 0.25])
    up.weight.zero_()
    for k in range(up.weight.shape[0]):
        up.weight[k, k] = side[:, None] * side
