"""Networks by the names that a configuration and a model's card use."""

from __future__ import annotations

from typing import Any

from metricunet.networks.base import Network
from metricunet.networks.fcn import FCN
from metricunet.networks.unet import UNet
from metricunet.networks.vnet import VNet

#: A new network is one entry here.
NETWORKS: dict[str, type[Network]] = {"unet": UNet, "fcn": FCN, "vnet": VNet}


def build_network(architecture: str = "unet", **arguments: Any) -> Network:
    """Build a network by its name in `NETWORKS`, such as `build_network("vnet", in_channels=1, classes=2)`.

    Raises:
        ValueError: unknown architecture, or a value that it cannot take.
        TypeError: an argument that it does not know.
    """
    if architecture not in NETWORKS:
        raise ValueError(f"architecture must be one of {', '.join(NETWORKS)}; got {architecture!r}")
    return NETWORKS[architecture](**arguments)
