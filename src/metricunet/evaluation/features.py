"""Are voxel features representative? Measures on a decoder map, for voxels in a band around the surface.

They hold arms of a comparison against each other, so everything is the same for every arm: the decoder map (never
an embedding head, which some arms lack), the voxels (drawn by a seed from the labels alone), and the probes, which
are fitted on training cases and scored on others. Scaling is fitted on training cases, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from metricunet.evaluation.measures import Definition
from metricunet.metric import build_sampler, read_features
from metricunet.metric.sampling import seeded
from metricunet.networks import Network
from metricunet.stages.network_input import neighbouring_slices, normalise_hu
from metricunet.volume import FloatArray

#: Slices that go through the network at once.
SLICES_AT_ONCE = 16
#: A channel that varies less than this over the training voxels says nothing.
SILENT = 1e-12
#: Rows of a table of distances that are held at once.
ROWS_AT_ONCE = 1024

DEFINITIONS: tuple[Definition, ...] = (
    Definition(
        "fisher_ratio",
        "Fisher ratio",
        "",
        math.inf,
        "Scatter between the classes over scatter within them, tr(S_B) / tr(S_W), each class weighted alike.",
    ),
    Definition(
        "knn_accuracy",
        "Nearest neighbours' accuracy",
        "",
        1.0,
        "Share of voxels whose class the 15 nearest voxels of training cases tell; the mean over the classes.",
    ),
    Definition(
        "probe_accuracy",
        "Linear probe's accuracy",
        "",
        1.0,
        "Share of voxels whose class a linear classifier tells that was fitted on training cases; the mean over "
        "the classes.",
    ),
)

FEATURE_NAMES: tuple[str, ...] = tuple(definition.name for definition in DEFINITIONS)


@dataclass(frozen=True, eq=False)
class VoxelFeatures:
    """Features of voxels.

    Attributes:
        values: float64 [voxels, channels].
        classes: int64 [voxels].
    """

    values: FloatArray
    classes: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.classes.shape != self.values.shape[:1]:
            raise ValueError(f"features {self.values.shape} do not belong to classes {self.classes.shape}")

    @staticmethod
    def joined(parts: Sequence[VoxelFeatures]) -> VoxelFeatures:
        """Put the voxels of several cases into one list."""
        return VoxelFeatures(np.concatenate([p.values for p in parts]), np.concatenate([p.classes for p in parts]))


@dataclass(frozen=True)
class FeatureMeasures:
    """How well features of held-out cases tell the classes apart; larger is better.

    Attributes:
        fisher_ratio: what `fisher_ratio` gives for the held-out voxels.
        knn_accuracy: share of held-out voxels whose class the nearest training voxels give rightly, mean over the
            classes.
        probe_accuracy: the same for a linear classifier fitted on training voxels.
    """

    fisher_ratio: float
    knn_accuracy: float
    probe_accuracy: float

    def value(self, name: str) -> float:
        """Return the measure with a name of `FEATURE_NAMES`."""
        found: float = getattr(self, name)
        return found


@torch.inference_mode()
def band_features(
    network: Network,
    hu: torch.Tensor,
    labels: torch.Tensor,
    hu_window: tuple[float, float],
    slices: int,
    spacing_mm: Sequence[float],
    *,
    band_mm: float = 3.0,
    voxels: int = 512,
    classes: int = 2,
    tap: int = 0,
    seed: int = 0,
    ignore_index: int = 255,
) -> VoxelFeatures:
    """Read a decoder map of stage 2 at voxels around the surface of one case, the same number from each class.

    Args:
        network: a 2.5D network in evaluation mode.
        hu: [slice, row, column], sides that the network can halve; on the network's device.
        labels: [slice, row, column], integer classes.
        hu_window: HU window of stage 2.
        slices: number of neighbouring slices that the network takes.
        spacing_mm: slice, row, column.
        band_mm: largest distance to a voxel of another class.
        voxels: largest number of voxels; fewer are taken where the band of a class holds fewer.
        classes: background included.
        tap: number of the decoder map; 0 is the finest.
        seed: the same seed gives the same voxels, whatever the network.
        ignore_index: label of voxels that count for no class.
    """
    with seeded(seed, labels.device):
        sampler = build_sampler("boundary", voxels=voxels, classes=classes, band_mm=band_mm)
        sample = sampler(labels[None], None, spacing_mm, ignore_index)
    index = sample.index[sample.hard]
    in_plane = labels.shape[1] * labels.shape[2]
    plane, position = index // in_plane, index % in_plane
    stacks = neighbouring_slices(normalise_hu(hu, hu_window), slices)
    values = torch.zeros((len(index), network.decoder_channels[tap]), device=hu.device)
    # The other slices need not go through the network.
    used, plane = torch.unique(plane, return_inverse=True)
    for first in range(0, len(used), SLICES_AT_ONCE):
        here = ((plane >= first) & (plane < first + SLICES_AT_ONCE)).nonzero()[:, 0]
        stack = stacks[used[first : first + SLICES_AT_ONCE]]
        feature_map = network.forward_with_maps(stack).decoder_maps[tap].float()
        chosen = feature_map.new_zeros((len(stack), len(here)), dtype=torch.int64) + position[here]
        read = read_features(feature_map, chosen, labels.shape[1:])
        values[here] = read[plane[here] - first, torch.arange(len(here), device=hu.device)]
    kinds = sample.classes[sample.hard].cpu().numpy().astype(np.int64)
    return VoxelFeatures(values.cpu().numpy().astype(np.float64), kinds)


@dataclass(frozen=True, eq=False)
class FittedProbes:
    """Scaling and probes that were fitted on training voxels, to score as many held-out cases as there are.

    Attributes:
        training: the voxels.
        scaled: their standardised values [voxels, channels].
        linear: the linear probe.
        neighbours: k of the nearest-neighbour classifier.
    """

    training: VoxelFeatures
    scaled: FloatArray
    linear: LinearProbe
    neighbours: int

    def measure(self, held_out: VoxelFeatures) -> FeatureMeasures:
        """Score the voxels of other cases.

        Raises:
            ValueError: fewer than two classes among them.
        """
        _check_classes(held_out, "held-out")
        scored = standardised(held_out.values, self.training.values)
        nearest = nearest_classes(self.scaled, self.training.classes, scored, self.neighbours)
        return FeatureMeasures(
            fisher_ratio(scored, held_out.classes),
            balanced_accuracy(nearest, held_out.classes),
            balanced_accuracy(self.linear.predict(scored), held_out.classes),
        )


def fit_probes(training: VoxelFeatures, neighbours: int = 15) -> FittedProbes:
    """Fit scaling and probes on voxels of training cases.

    Args:
        training: the voxels.
        neighbours: k of the nearest-neighbour classifier.

    Raises:
        ValueError: fewer than two classes among them.
    """
    _check_classes(training, "training")
    scaled = standardised(training.values, training.values)
    return FittedProbes(training, scaled, linear_probe(scaled, training.classes), neighbours)


def _check_classes(part: VoxelFeatures, name: str) -> None:
    if len(np.unique(part.classes)) < 2:
        raise ValueError(f"the {name} voxels are of one class; choose cases that hold the structure")


def standardised(values: FloatArray, by: FloatArray) -> FloatArray:
    """Shift and scale each channel so that `by` has mean 0 and variance 1; one constant there becomes 0."""
    spread = by.std(axis=0)
    silent = spread < SILENT
    scaled: FloatArray = np.where(silent, 0.0, (values - by.mean(axis=0)) / np.where(silent, 1.0, spread))
    return scaled


def fisher_ratio(values: FloatArray, classes: NDArray[np.int64]) -> float:
    """Scatter between the classes over scatter within them, tr(S_B) / tr(S_W), each class weighted alike.

    S_B is the mean over classes of the squared distance of the class's mean from the mean of those means, S_W the
    mean over classes of the mean squared distance from the class's mean (Fukunaga, Introduction to Statistical
    Pattern Recognition, 1990, section 10.2, with equal priors). 0: the means coincide.

    Args:
        values: [voxels, channels].
        classes: [voxels], two or more of them.
    """
    groups = [values[classes == c] for c in np.unique(classes)]
    means = np.stack([g.mean(axis=0) for g in groups])
    between = float(np.square(means - means.mean(axis=0)).sum(axis=1).mean())
    within = float(np.mean([np.square(g - m).sum(axis=1).mean() for g, m in zip(groups, means, strict=True)]))
    return between / within if within > 0 else float("inf") if between > 0 else 0.0


def nearest_classes(
    fitted: FloatArray, classes: NDArray[np.int64], scored: FloatArray, neighbours: int = 15
) -> NDArray[np.int64]:
    """Return the commonest class among each scored voxel's nearest fitted ones [voxels]; ties: the smaller."""
    kinds = np.unique(classes)
    k = min(neighbours, len(fitted))
    length = np.square(fitted).sum(axis=1)
    parts = []
    for first in range(0, len(scored), ROWS_AT_ONCE):
        rows = scored[first : first + ROWS_AT_ONCE]
        # The squared length of the row itself is the same for all, so it changes no order.
        nearest = np.argpartition(length - 2 * rows @ fitted.T, k - 1, axis=1)[:, :k]
        votes = np.stack([(classes[nearest] == c).sum(axis=1) for c in kinds], axis=1)
        parts.append(kinds[votes.argmax(axis=1)])
    return np.concatenate(parts)


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A linear classifier: scores are values @ weights + offsets.

    Attributes:
        classes: [classes], what the scores' columns stand for.
        weights: [channels, classes].
        offsets: [classes].
    """

    classes: NDArray[np.int64]
    weights: FloatArray
    offsets: FloatArray

    def predict(self, values: FloatArray) -> NDArray[np.int64]:
        """Return the class of the largest score [voxels]."""
        return np.asarray(self.classes[(values @ self.weights + self.offsets).argmax(axis=1)], dtype=np.int64)


def linear_probe(values: FloatArray, classes: NDArray[np.int64], penalty: float = 1e-3) -> LinearProbe:
    """Fit multinomial logistic regression: the mean cross-entropy plus penalty / 2 times the squared weights.

    Each class counts alike, however many voxels it has. The problem is convex, so there is one answer.

    Args:
        values: [voxels, channels], standardised.
        classes: [voxels].
        penalty: keeps the weights finite where the classes are separable.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    kinds, column = np.unique(classes, return_inverse=True)
    wanted = np.eye(len(kinds))[column]
    share = (wanted / wanted.sum(axis=0)).sum(axis=1) / len(kinds)
    channels = values.shape[1]

    def loss(parameters: FloatArray) -> tuple[float, FloatArray]:
        weights, offsets = parameters[: channels * len(kinds)].reshape(channels, -1), parameters[-len(kinds) :]
        logs = log_softmax(values @ weights + offsets, axis=1)
        error = (np.exp(logs) - wanted) * share[:, None]
        slope = np.concatenate([(values.T @ error + penalty * weights).ravel(), error.sum(axis=0)])
        return float(-(share * (logs * wanted).sum(axis=1)).sum() + penalty / 2 * np.square(weights).sum()), slope

    found = minimize(
        loss, np.zeros((channels + 1) * len(kinds)), jac=True, method="L-BFGS-B", options={"maxiter": 500}
    )
    weights = found.x[: channels * len(kinds)].reshape(channels, -1)
    return LinearProbe(kinds.astype(np.int64), weights, found.x[-len(kinds) :])


def balanced_accuracy(found: NDArray[np.int64], wanted: NDArray[np.int64]) -> float:
    """Share of voxels that were found right, the mean over the classes: 1 / classes is chance."""
    return float(np.mean([(found[wanted == c] == c).mean() for c in np.unique(wanted)]))


def principal_axes(values: FloatArray, axes: int = 2) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Principal component analysis by singular values.

    Args:
        values: [voxels, channels].
        axes: how many to return.

    Returns:
        The mean [channels], the axes [axes, channels] of unit length (the largest entry of each is positive, so
        that the picture does not flip from run to run), and the share of the variance along each [axes].
    """
    mean = values.mean(axis=0)
    _, singular, rows = np.linalg.svd(values - mean, full_matrices=False)
    first = rows[:axes]
    first = first * np.sign(first[np.arange(len(first)), np.abs(first).argmax(axis=1)])[:, None]
    variance = np.square(singular)
    return mean, first, variance[:axes] / max(float(variance.sum()), SILENT)
