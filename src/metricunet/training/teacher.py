"""The teacher of stage 2: what it is, what it is sure of, and what a network loses that says something else."""

from __future__ import annotations

import copy
import math
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metricunet.metric.gathering import mean_of_shares
from metricunet.networks import Network
from metricunet.structures import IGNORE_CLASS
from metricunet.training.config import TeacherConfig


def has_teacher(settings: TeacherConfig) -> bool:
    """Tell whether a training keeps a teacher: to learn from it, or for its weights alone."""
    return settings.share > 0 or settings.final == "teacher"


class Teacher(nn.Module):
    """The moving average of a network's weights, which has no gradient of its own.

    It is a part of its stage, so that a checkpoint holds it.

    Args:
        network: the network to follow.
        settings: settings of the teacher.
    """

    def __init__(self, network: Network, settings: TeacherConfig) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.settings = settings

    def train(self, mode: bool = True) -> Self:
        """Set the mode, but for the network: it is asked and not trained, so nothing is dropped in it."""
        super().train(mode)
        self.network.eval()
        return self

    @torch.no_grad()
    def follow(self, network: Network, update: int) -> None:
        """Move towards a network: to be called once at the beginning of each update.

        The first updates move it further, so that it soon forgets the random weights it began with.

        Args:
            network: the network as the update before left it.
            update: number of the update.
        """
        kept = min(self.settings.decay, update / (update + 10))
        mine: list[Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(mine, [one.detach() for one in network.parameters()], 1 - kept)
        for own, other in zip(self.network.buffers(), network.buffers(), strict=True):
            own.copy_(other)

    def probabilities(self, images: Tensor) -> Tensor:
        """Return what the teacher makes of images [batch, channels, *space]: float32 [batch, classes, *space]."""
        with torch.inference_mode():
            logits: Tensor = self.network(images)
            found = logits.float().softmax(dim=1)
        return found.clone()  # what comes out of inference mode cannot be in a loss


@torch.no_grad()
def pseudo_labels(probabilities: Tensor, labels: Tensor, settings: TeacherConfig) -> Tensor:
    """Return the labels of uncontoured images: what was contoured of them, and what the teacher is sure of.

    Args:
        probabilities: [batch, classes, *space], the teacher's.
        labels: [batch, *space], uint8: what was contoured of other structures; `IGNORE_CLASS` elsewhere.
        settings: the thresholds.

    Returns:
        uint8 [batch, *space]; `IGNORE_CLASS` where nobody is sure.
    """
    best = probabilities.max(dim=1)
    enough = torch.where(best.indices == 0, settings.background_threshold, settings.threshold)
    sure = torch.where(best.values >= enough, best.indices, IGNORE_CLASS).to(labels.dtype)
    return torch.where(labels == IGNORE_CLASS, sure, labels)


def squared_difference(logits: Tensor, probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over voxels and classes of the squared difference of a network's and its teacher's shares.

    Args:
        logits: [batch, classes, *space], the network's.
        probabilities: [batch, classes, *space], the teacher's.
        labels: [batch, *space]; where they are not `IGNORE_CLASS` they take the teacher's part.
    """
    known = labels != IGNORE_CLASS
    contoured = F.one_hot(labels.long() * known, probabilities.shape[1]).movedim(-1, 1)
    wanted = torch.where(known[:, None], contoured.to(probabilities.dtype), probabilities)
    return mean_of_shares((logits.to(probabilities.dtype).softmax(dim=1) - wanted).square().mean())


def rise(update: int, updates: int) -> float:
    """Return the share of its full weight that a loss on a teacher's word has: exp(-5 (1 - t)^2), t up to 1.

    Laine, Aila: Temporal ensembling for semi-supervised learning (ICLR 2017).

    Args:
        update: number of the update.
        updates: number of updates after which the weight is full.
    """
    return math.exp(-5 * (1 - min(1.0, update / updates)) ** 2) if updates else 1.0
