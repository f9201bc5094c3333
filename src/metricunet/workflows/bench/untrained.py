"""A model that has learned nothing and says yes everywhere: for timing where the user brings no model.

How fast a network is does not depend on what it has learned, but stage 2 only runs where stage 1 finds something.
So all weights are fresh but those of each last layer, which answers "target" whatever it sees.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from metricunet.cohort.layout import DatasetInfo
from metricunet.files.model import ModelCard, joined, write_model
from metricunet.networks import Network, build_network
from metricunet.training.card import model_card
from metricunet.training.config import TrainConfig

STRUCTURE = "prostate"
CLASSES = 2
#: Logit of the target, so that its probability is sure of itself.
YES = 5.0


def fresh_model(config: TrainConfig) -> tuple[ModelCard, Network, Network]:
    """Build a card and both networks with fresh weights, always the same, in evaluation mode."""
    info = DatasetInfo({STRUCTURE: 1}, trained_on="synthetic")
    card = model_card(config.model_copy(update={"target": STRUCTURE}), info, [], [], "", None, np.zeros((0, 3)))
    torch.manual_seed(0)
    locate, segment = build_network(**card.locate.network), build_network(**card.segment.network)
    return card, locate.eval(), segment.eval()


def write_networks(path: Path, card: ModelCard, locate: Network, segment: Network) -> None:
    """Write a model file of two networks."""
    write_model(path, card, joined(locate.state_dict(), segment.state_dict()))


@torch.no_grad()
def write_untrained(path: Path, config: TrainConfig) -> None:
    """Write a model file whose stage 1 takes the whole scan for the target, and whose stage 2 the whole crop.

    Args:
        path: path of the model file.
        config: configuration of the networks.
    """
    card, locate, segment = fresh_model(config)
    for network in (locate, segment):
        last: Any = network.classify
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, YES]))
    write_networks(path, card, locate, segment)
