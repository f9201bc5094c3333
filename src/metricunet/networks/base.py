"""What every segmentation network offers; training, metric branch and prediction need not know which one it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Self

from torch import Tensor, nn


class NetworkOutput(NamedTuple):
    """Logits [batch, classes, *space], the maps a second branch may tap (finest first), and the coarsest map."""

    logits: Tensor
    decoder_maps: list[Tensor]
    bottleneck: Tensor


class Network(nn.Module, ABC):
    """A segmentation network whose feature maps can be read, for a second branch to learn from.

    Input [batch, in_channels, *space], output [batch, classes, *space]; every side of the space must be a multiple
    of `divisor`.

    Attributes:
        in_channels: channels of the input (neighbouring slices in 2.5D).
        spatial_dims: 2 or 3.
        divisor: how often a side is divided on the way to the coarsest map.
        decoder_channels: channels of each map in `NetworkOutput.decoder_maps`, the finest first.
        bottleneck_channels: channels of the coarsest map.
        normalised_stride: stride of the coarsest map that is normalised. An instance norm needs more than one
            voxel there.
    """

    in_channels: int
    spatial_dims: int
    divisor: int
    decoder_channels: tuple[int, ...]
    bottleneck_channels: int
    normalised_stride: int
    _encoder_is_frozen = False

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [batch, classes, *space]."""
        return self.forward_with_maps(images).logits

    @abstractmethod
    def forward_with_maps(self, images: Tensor) -> NetworkOutput:
        """Return the logits, the maps of the decoder and the bottleneck."""

    @abstractmethod
    def encode(self, images: Tensor) -> list[Tensor]:
        """Return the encoder's maps, the finest first; the last is the bottleneck."""

    @property
    @abstractmethod
    def encoder_parts(self) -> Sequence[nn.Module]:
        """The parts of the network that hold the encoder's weights."""

    def freeze_encoder(self) -> None:
        """Keep the encoder as it is: its weights take no gradient, and its normalisation gathers no statistics."""
        self._encoder_is_frozen = True
        for part in self.encoder_parts:
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the network for training or evaluation; a frozen encoder stays in evaluation."""
        super().train(mode)
        if self._encoder_is_frozen:
            for part in self.encoder_parts:
                part.eval()
        return self

    def _check(self, shape: Sequence[int]) -> None:
        sides = tuple(shape[2:])
        if len(sides) != self.spatial_dims or any(n % self.divisor for n in sides):
            raise ValueError(
                f"expected [batch, channels, *space], {self.spatial_dims} sides that {self.divisor} divides; "
                f"got shape {tuple(shape)}"
            )
