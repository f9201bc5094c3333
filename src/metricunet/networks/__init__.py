"""The networks: plain torch modules that know nothing of files or training."""

from metricunet.networks.base import Network, NetworkOutput
from metricunet.networks.build import NETWORKS, build_network
from metricunet.networks.fcn import FCN
from metricunet.networks.unet import UNet
from metricunet.networks.vnet import VNet

__all__ = ["FCN", "NETWORKS", "Network", "NetworkOutput", "UNet", "VNet", "build_network"]
