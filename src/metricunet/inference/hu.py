"""What the HU of a crop tell of its scan: level and noise, compared with what a model has seen in training.

Both are measured on stage 2's own grid, in prediction as in training, so that they compare.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: What is lighter is air, gas or lung, and no part of the level.
LIGHTEST_TISSUE_HU = -300.0
#: Fat, muscle and fluids; beyond are gas, contrast medium, bone and metal.
SOFT_TISSUE_HU = (-150.0, 200.0)
#: Noise is read from voxels this many columns apart: nearer ones are alike, for reconstruction smooths.
NOISE_STEP = 3
#: Fewer voxels than this say nothing.
LEAST_VOXELS = 1000
#: Standard deviation of a normal distribution over its median absolute value.
NORMAL_SPREAD = 1.4826


def level_hu(crop: NDArray[Any]) -> float | None:
    """Return the median HU of the body in a crop; None where hardly any of it is body."""
    body = crop[crop > LIGHTEST_TISSUE_HU]
    return float(np.median(body)) if body.size >= LEAST_VOXELS else None


def noise_hu(crop: NDArray[Any]) -> float | None:
    """Return the standard deviation of the soft tissue's noise, edges of organs left out by robustness.

    Half of all differences between voxels `NOISE_STEP` columns apart are smaller than their median, and come from
    within organs. Streaks of metal raise it as well as a low dose.

    Args:
        crop: HU [slice, row, column].
    """
    low, high = SOFT_TISSUE_HU
    soft = (crop > low) & (crop < high)
    both = soft[..., NOISE_STEP:] & soft[..., :-NOISE_STEP]
    if np.count_nonzero(both) < LEAST_VOXELS:
        return None
    differences = crop[..., NOISE_STEP:][both].astype(np.float32) - crop[..., :-NOISE_STEP][both]
    return float(NORMAL_SPREAD * np.median(np.abs(differences)) / np.sqrt(2))
