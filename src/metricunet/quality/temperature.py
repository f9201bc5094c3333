"""Temperature: one number that makes the probabilities of a network as sure as they are right.

Log-probabilities are divided by it before they are normalised anew (Guo et al., On Calibration of Modern Neural
Networks, ICML 2017): p_k^(1/T) / Σ p_j^(1/T), which for one pass of a network is the softmax of its logits over T.
In a voxel the order of the classes stays as it was. With two classes the 0.5 level stays, too; with more, the
likeliest class stays, but the level at which one class has 0.5 against all others can move. Masks are cut from the
probabilities as they come out of the network, averaged over the models, so no temperature moves a mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Where the temperature is looked for. A network that errs in no voxel would have 0, and be sure of everything.
LOWEST, HIGHEST = 0.2, 20.0
#: How exactly it is found, as a share of itself.
EXACTNESS = 1e-4
#: Stands for a probability of 0, whose logarithm is not finite.
TINY = 1e-30


@dataclass(frozen=True)
class TemperatureFit:
    """A fitted temperature, and the mean negative log-likelihood of the voxels without and with it."""

    temperature: float
    nll_before: float
    nll_after: float


def tempered(probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Return probabilities at a temperature.

    Args:
        probabilities: [classes, *space], background included.
        temperature: 1 leaves them as they are.

    Returns:
        [classes, *space].
    """
    if temperature == 1:
        return probabilities
    powers = np.power(probabilities, np.float32(1 / temperature))
    powers /= powers.sum(axis=0)
    return powers


def fit_temperature(cases: Sequence[tuple[NDArray[np.float32], NDArray[np.integer]]]) -> TemperatureFit:
    """Find the temperature under which the true classes are likeliest.

    The negative log-likelihood is convex in 1 / T, so there is one answer. Cases are computed on one by one: of
    hundreds of them a copy in float64 would not fit into memory.

    Args:
        cases: of each the probabilities [classes, voxels] and the true class of each voxel [voxels]; at least one
            voxel among them.
    """
    from scipy.optimize import minimize_scalar  # slow to import

    voxels = sum(classes.size for _, classes in cases)

    def nll(log_temperature: float) -> float:
        total = 0.0
        for probabilities, classes in cases:
            scaled = np.log(np.maximum(probabilities, TINY), dtype=np.float64) * math.exp(-log_temperature)
            wanted = np.take_along_axis(scaled, classes[None].astype(np.intp), axis=0)[0]
            highest = scaled.max(axis=0)
            total += float((np.log(np.exp(scaled - highest).sum(axis=0)) + highest - wanted).sum())
        return total / voxels

    bounds = (math.log(LOWEST), math.log(HIGHEST))
    found = minimize_scalar(nll, bounds=bounds, method="bounded", options={"xatol": EXACTNESS})
    return TemperatureFit(math.exp(float(found.x)), nll(0.0), float(found.fun))
