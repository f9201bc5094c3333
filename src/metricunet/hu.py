"""Hounsfield units: whether values are any, what lies beyond a scan, and what the HU of a crop tell of its scan.

Level and noise are compared with what a model has seen in training. Both are measured on stage 2's own grid, in
prediction as in training, so that they compare.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: HU of what lies outside a scan.
AIR_HU = -1024
#: HU that the padding within a scan (outside the scanner's circle) is read as.
PADDING_HU = -1000.0
#: A CT holds air, so its lowest value is no higher than this.
HIGHEST_MINIMUM_HU = -500.0
#: Values above this are no Hounsfield units (metal saturates well below).
HIGHEST_HU = 32000.0
#: Values below this are no padding that 16 bits can hold, whatever their slope and intercept. The lowest number of
#: float32, with which some programs fill what was not measured, would overflow where it is averaged.
LOWEST_HU = -1e6
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


def why_not_hu(low: float, high: float | None = None) -> str | None:
    """Say why values cannot be Hounsfield units, and what to do about it; None where they can be.

    Args:
        low: the lowest value of a scan; NaN where any of its values is.
        high: the highest value; None leaves it unchecked.

    Returns:
        The rest of a sentence that begins with the file and a colon.
    """
    if low > HIGHEST_MINIMUM_HU:
        found = f"the lowest value is {low:g}"
    elif high is not None and high > HIGHEST_HU:
        found = f"the highest value is {high:g}"
    elif not low >= LOWEST_HU:  # so that NaN is none, either
        return (
            f"the lowest value is {low:g}, so these are no Hounsfield units (air is -1000); give the voxels that "
            "were not measured, such as those outside the scan circle, the value of air"
        )
    else:
        return None
    return (
        f"{found}, so these are no Hounsfield units (air is -1000, every CT has some, and metal stays below "
        f"{HIGHEST_HU:g}); expected a CT with its rescale slope and intercept applied, and not normalised"
    )


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
