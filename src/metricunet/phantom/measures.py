"""What a scan of the pelvis comes to in numbers, measured as one real planning scan was: HU near the gland, noise.

A labelled real scan can be measured in the same way, so that phantoms and a cohort stand side by side.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from metricunet.phantom.make import STRUCTURES
from metricunet.volume import Volume

#: Mean HU, noise and its grain on one real planning scan of 1 mm pixels, contoured by clinicians.
CLINICAL: dict[str, float] = {
    "gland": 41.5,
    "around gland": 36.2,
    "rectal wall": 42.4,
    "bladder wall": 35.8,
    "urine": 10.0,
    "fat": -93.0,
    "muscle": 50.0,
    "noise": 15.0,
    "grain 1": 0.64,
    "grain 2": 0.18,
    "grain 3": 0.06,
}
#: The window around the gland that holds what is measured beside it.
MARGIN_MM = 22.0
#: Urine is measured this deep inside the bladder, clear of its wall.
URINE_DEPTH_MM = 6.5
#: Fewest voxels for a mean, and fewest of a slice of urine for its noise.
FEWEST, FEWEST_IN_SLICE = 50, 200


def measure_scan(image: Volume, labels: Volume, structures: Mapping[str, int] = STRUCTURES) -> dict[str, float]:
    """Measure a labelled scan.

    Args:
        image: the scan in HU.
        labels: the label map on the same grid.
        structures: values of `prostate`, `bladder` (urine and wall) and `rectum` (wall and content) in `labels`.

    Returns:
        Mean HU of `gland` (deeper than 3 mm), `around gland` (1 to 4 mm outside it, neither bladder nor rectum nor
        gas), `rectal wall` and `bladder wall` (0.8 to 3 mm inside the organ, within 10 mm of the gland), `urine`;
        the most frequent HU of `fat` and `muscle`; `noise`, the standard deviation in urine after each slice's
        quadratic trend is taken out; `grain 1`, `grain 2`, `grain 3`, its autocorrelation at so many pixels
        within the slice. What the scan does not show is left out.
    """
    found = _near_gland(image, labels, structures)
    hu, deep = _urine(image, labels, structures["bladder"])
    if deep.sum() >= FEWEST:
        found["urine"] = float(hu[deep].mean())
    found |= _peaks(image.array)
    return found | _noise(hu, deep)


def _depth_mm(mask: NDArray[np.bool_], spacing_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    from scipy import ndimage

    return np.asarray(ndimage.distance_transform_edt(mask, spacing_mm), dtype=np.float64)


def _near_gland(image: Volume, labels: Volume, structures: Mapping[str, int]) -> dict[str, float]:
    where = np.argwhere(labels.array == structures["prostate"])
    if len(where) == 0:
        return {}
    spacing = image.spacing_mm
    margin = np.ceil(MARGIN_MM / np.asarray(spacing)).astype(int)
    low, high = np.maximum(where.min(axis=0) - margin, 0), where.max(axis=0) + margin + 1
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    hu, near = image.array[box].astype(np.float64), labels.array[box]
    gland = near == structures["prostate"]
    outside = _depth_mm(~gland, spacing)
    clear = _depth_mm(hu > -250, spacing) > 2.5
    hollow = np.isin(near, [structures["bladder"], structures["rectum"]])
    parts = {
        "gland": _depth_mm(gland, spacing) > 3,
        "around gland": (outside > 1) & (outside < 4) & ~hollow & clear,
    }
    for name in ("rectum", "bladder"):
        inside = _depth_mm(near == structures[name], spacing)
        wall = (inside > 0.8) & (inside < 3) & (outside < 10)
        parts["rectal wall" if name == "rectum" else "bladder wall"] = wall & clear if name == "rectum" else wall
    return {name: float(hu[part].mean()) for name, part in parts.items() if part.sum() >= FEWEST}


def _urine(image: Volume, labels: Volume, bladder: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """HU of the box around the bladder, and whether each voxel lies deep inside it."""
    inside = labels.array == bladder
    if not inside.any():
        return np.zeros((1, 1, 1)), np.zeros((1, 1, 1), dtype=bool)
    box = tuple(
        slice(int(held[0]), int(held[-1]) + 1)
        for held in (np.flatnonzero(inside.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    )
    deep = _depth_mm(np.pad(inside[box], 1), image.spacing_mm)[1:-1, 1:-1, 1:-1] > URINE_DEPTH_MM
    return image.array[box].astype(np.float64), deep


def _peaks(hu: NDArray[np.generic]) -> dict[str, float]:
    """The two peaks of the histogram of soft tissue."""
    from scipy import ndimage

    bins = np.arange(-140, 121, 2.0)
    counts, _ = np.histogram(hu[::3, ::2, ::2], bins)
    smooth = ndimage.gaussian_filter1d(counts.astype(np.float64), 2)
    middle = (bins[:-1] + bins[1:]) / 2
    fat, muscle = middle < -50, middle > 25
    return {
        name: float(middle[part][smooth[part].argmax()])
        for name, part in (("fat", fat), ("muscle", muscle))
        if smooth[part].max() > 0
    }


def _noise(hu: NDArray[np.float64], deep: NDArray[np.bool_]) -> dict[str, float]:
    slices = [_detrended(*pair) for pair in zip(hu, deep, strict=True) if pair[1].sum() >= FEWEST_IN_SLICE]
    if not slices:
        return {}
    result = {"noise": float(np.concatenate([s[~np.isnan(s)] for s in slices]).std())}
    variance = np.mean([np.nanmean(s * s) for s in slices])
    for step in (1, 2, 3):
        along = [(s[:, step:] * s[:, :-step], s[step:] * s[:-step]) for s in slices]
        products = [np.concatenate([a.ravel(), b.ravel()]) for a, b in along]
        result[f"grain {step}"] = float(np.mean([np.nanmean(p) for p in products]) / variance)
    return result


def _detrended(hu: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """One slice without its quadratic trend; NaN outside the mask."""
    y, x = np.nonzero(mask)
    terms = np.stack([np.ones(len(x)), x, y, x * x, x * y, y * y], axis=1).astype(np.float64)
    terms /= np.abs(terms).max(axis=0)
    values = hu[mask]
    rest = np.full(mask.shape, np.nan)
    rest[mask] = values - terms @ np.linalg.lstsq(terms, values, rcond=None)[0]
    return rest
