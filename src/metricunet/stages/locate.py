"""Stage 1: a 3D network on a coarse grid of the whole scan finds where the target lies, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from metricunet.specs import LocateSpec
from metricunet.stages.classes import box_of, likeliest
from metricunet.stages.read import read_hu
from metricunet.volume import FloatArray, Geometry, Volume

LocateStatus = Literal["found", "uncertain", "absent"]

#: A voxel belongs to a candidate from this probability on; weaker candidates are looked for at the second.
CANDIDATE_PROBABILITY = 0.5
WEAK_PROBABILITY = 0.25
#: A candidate smaller than this is noise, not a gland.
SMALLEST_CANDIDATE_ML = 2.0
#: Below this mean probability, or share of all candidates, the best candidate is uncertain.
SURE_PROBABILITY = 0.65
SURE_SHARE = 0.7
#: A candidate this far outside the volumes seen in training is uncertain.
VOLUME_SLACK = 2.0


@dataclass(frozen=True, eq=False)
class Localisation:
    """What stage 1 found.

    Attributes:
        status: `found`, `uncertain` (a mask is made, and needs review) or `absent` (no mask).
        confidence: mean probability of the best candidate times its share of all candidates, 0 to 1.
        reason: the reason for this status, in words.
        centre_mm: LPS centre of the best candidate; None if absent.
        volume_ml: volume of the best candidate on the coarse grid.
        candidate: mask of the best candidate: bool, on the part of the coarse grid that holds it; None if absent,
            or where it was not kept.
    """

    status: LocateStatus
    confidence: float
    reason: str
    centre_mm: FloatArray | None
    volume_ml: float
    candidate: Volume | None = None


class LocateSettings(Protocol):
    """What a training chooses of stage 1."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel spacing of the coarse grid: slice, row, column."""

    @property
    def hu_window(self) -> tuple[float, float]:
        """HU that map to -1 and 1."""

    @property
    def base_channels(self) -> int:
        """Width of the finest level."""

    @property
    def levels(self) -> int:
        """Resolutions of the U-Net."""


def locate_spec(settings: LocateSettings, classes: int) -> LocateSpec:
    """Return stage 1 as a training has chosen it: a 3D U-Net with batch normalisation.

    Args:
        settings: settings of the training.
        classes: number of classes, background included.
    """
    network = {
        "architecture": "unet",
        "in_channels": 1,
        "classes": classes,
        "base_channels": settings.base_channels,
        "levels": settings.levels,
        "spatial_dims": 3,
        "norm": "batch",
    }
    return LocateSpec(network, settings.spacing_mm, settings.hu_window)


def coarse_grid(geometry: Geometry, spacing_mm: Sequence[float]) -> Geometry:
    """Return stage 1's grid: it covers the whole field of a scan.

    Args:
        geometry: grid of the scan, with axes to the head, the back and the left.
        spacing_mm: voxel spacing of stage 1: slice, row, column.
    """
    return geometry.with_spacing(spacing_mm)


def read_coarse(spec: LocateSpec, image: Volume) -> Volume:
    """Read a scan in HU on stage 1's grid.

    Args:
        spec: the spec of stage 1.
        image: the scan in HU, with axes to the head, the back and the left.
    """
    return read_hu(image, coarse_grid(image.geometry, spec.spacing_mm))


def classes_on(image: Volume, shares: Sequence[Volume]) -> NDArray[np.uint8]:
    """Interpolate probabilities onto a scan's grid, and return the likeliest class of each of its voxels.

    Args:
        image: a scan on the grid; its axes are those of the shares.
        shares: probability of each class but the background, on a grid of their own.
    """
    classes = np.zeros(image.geometry.shape, dtype=np.uint8)
    coarse = shares[0].geometry
    box = box_of(likeliest(np.stack([share.array for share in shares])) > 0)
    if box is None:
        return classes
    # Interpolation is linear, so a class wins near where it wins on the shares' grid and nowhere else; two voxels
    # are room enough, for voxels of a scan that are thicker than those.
    corners = coarse.to_world(np.array([[s.start - 2 for s in box], [s.stop + 1 for s in box]], dtype=np.float64))
    low, high = image.geometry.to_index(corners)
    first = np.clip(np.floor(low), 0, np.array(image.geometry.shape) - 1).astype(int)
    last = np.clip(np.ceil(high), first, np.array(image.geometry.shape) - 1).astype(int)
    part = image.geometry.crop(first.tolist(), (last - first + 1).tolist())
    fine = np.empty((len(shares), *part.shape), dtype=np.float32)
    for k, share in enumerate(shares):
        fine[k] = share.resample(part).array
    classes[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))] = likeliest(fine)
    return classes


def localise(probability: Volume, volume_range_ml: tuple[float, float] | None = None) -> Localisation:
    """Find the target in its probability on the coarse grid.

    Args:
        probability: probability of the target class.
        volume_range_ml: volumes of the smallest and the largest target seen in training.
    """
    peak = float(probability.array.max())
    best, share = _best_candidate(probability.array, probability.geometry.voxel_volume_ml, CANDIDATE_PROBABILITY)
    weak = best is None
    if best is None:
        best, share = _best_candidate(probability.array, probability.geometry.voxel_volume_ml, WEAK_PROBABILITY)
    if best is None:
        reason = f"no candidate of {SMALLEST_CANDIDATE_ML:g} mL; the highest probability in the scan is {peak:.2f}"
        return Localisation("absent", 0.0, reason, None, 0.0)
    inside = np.where(best, probability.array, 0)
    mean = float(inside.sum() / best.sum())
    volume_ml = float(best.sum()) * probability.geometry.voxel_volume_ml
    centre = probability.geometry.to_world(np.array(ndimage.center_of_mass(inside)))
    doubts = _doubts(best, mean, share, volume_ml, volume_range_ml, weak)
    status: LocateStatus = "uncertain" if doubts else "found"
    reason = "; ".join(doubts) if doubts else f"one candidate of {volume_ml:.0f} mL, mean probability {mean:.2f}"
    box = box_of(best)
    assert box is not None
    candidate = probability.with_array(best).crop([p.start for p in box], [p.stop - p.start for p in box])
    return Localisation(status, round(mean * share, 4), reason, centre, volume_ml, candidate)


def _best_candidate(
    probability: NDArray[Any], voxel_ml: float, threshold: float
) -> tuple[NDArray[np.bool_] | None, float]:
    """Return the connected candidate with the largest sum of probabilities, and its share of all sums.

    What is too small to be one is no candidate, however sure it is.
    """
    pieces, count = ndimage.label(probability >= threshold)
    if not count:
        return None, 0.0
    index = np.arange(1, count + 1)
    mass = ndimage.sum_labels(probability, pieces, index)
    large = np.bincount(pieces.ravel())[1:] * voxel_ml >= SMALLEST_CANDIDATE_ML
    if not large.any():
        return None, 0.0
    best = int(np.argmax(np.where(large, mass, -1)))
    return pieces == best + 1, float(mass[best] / mass.sum())


def _doubts(
    best: NDArray[np.bool_],
    mean: float,
    share: float,
    volume_ml: float,
    volume_range_ml: tuple[float, float] | None,
    weak: bool,
) -> list[str]:
    doubts = []
    if mean < SURE_PROBABILITY:
        doubts.append(f"the best candidate's mean probability is {mean:.2f}; {SURE_PROBABILITY} counts as sure")
    elif weak:
        doubts.append(
            f"no candidate of {SMALLEST_CANDIDATE_ML:g} mL has a probability of {CANDIDATE_PROBABILITY} throughout"
        )
    if share < SURE_SHARE:
        doubts.append(f"other candidates hold {1 - share:.0%} of the evidence")
    if best[0].any() or best[-1].any():
        doubts.append("the candidate touches the first or last slice of the scan, so part of it may be missing")
    if volume_range_ml is not None:
        low, high = volume_range_ml[0] / VOLUME_SLACK, volume_range_ml[1] * VOLUME_SLACK
        if not low <= volume_ml <= high:
            doubts.append(f"a candidate of {volume_ml:.0f} mL; {low:.0f} to {high:.0f} mL are plausible here")
    return doubts
