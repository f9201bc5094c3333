"""The networks: plain torch modules that know nothing of files or training."""

from metricunet.networks.unet import UNet

__all__ = ["UNet"]
