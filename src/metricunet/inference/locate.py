"""Stage 1: where the target lies, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from metricunet.networks.feeding import Precision, autocast, normalise_hu, pick_precision
from metricunet.volume import FloatArray, Volume

Status = Literal["found", "uncertain", "absent"]

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
        reason: why, in words.
        centre_mm: LPS centre of the best candidate; None if absent.
        volume_ml: of the best candidate on the coarse grid.
        candidate: where the best candidate lies: bool, on the part of the coarse grid that holds it; None if
            absent, or where it was not kept.
    """

    status: Status
    confidence: float
    reason: str
    centre_mm: FloatArray | None
    volume_ml: float
    candidate: Volume | None = None


@torch.inference_mode()
def class_probabilities(
    network: nn.Module,
    coarse: Tensor,
    hu_window: tuple[float, float],
    divisor: int,
    precision: Precision = "auto",
) -> Tensor:
    """Run stage 1 over a whole coarse scan.

    Args:
        network: in evaluation mode, on the device of `coarse`.
        coarse: HU [slice, row, column].
        hu_window: of stage 1.
        divisor: the sides are padded with air to multiples of this.
        precision: to compute in.

    Returns:
        float32 [classes, slice, row, column].
    """
    x = normalise_hu(coarse, hu_window)
    padding: list[int] = []
    for side in reversed(x.shape):
        padding += [0, -side % divisor]
    x = F.pad(x, padding, value=-1.0)[None, None]
    with autocast(pick_precision(precision, coarse.device), coarse.device):
        logits: Tensor = network(x)
    probabilities = logits.float().softmax(dim=1)[0]
    slices, rows, columns = coarse.shape
    return probabilities[:, :slices, :rows, :columns].clone()


def localise(probability: Volume, volume_range_ml: tuple[float, float] | None = None) -> Localisation:
    """Find the target in its probability on the coarse grid.

    Args:
        probability: of the target class.
        volume_range_ml: smallest and largest target seen in training.
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
    status: Status = "uncertain" if doubts else "found"
    reason = "; ".join(doubts) if doubts else f"one candidate of {volume_ml:.0f} mL, mean probability {mean:.2f}"
    candidate = probability.with_array(best).crop(*_box(best))
    return Localisation(status, round(mean * share, 4), reason, centre, volume_ml, candidate)


def _box(mask: NDArray[np.bool_]) -> tuple[list[int], list[int]]:
    """Return first voxel and sides of the smallest box around a mask that is not empty."""
    (box,) = ndimage.find_objects(mask.view(np.uint8))
    return [part.start for part in box], [part.stop - part.start for part in box]


def _best_candidate(
    probability: NDArray[Any], voxel_ml: float, threshold: float
) -> tuple[NDArray[np.bool_] | None, float]:
    """Return the connected candidate with the largest sum of probabilities, and its share of all sums."""
    pieces, count = ndimage.label(probability >= threshold)
    if not count:
        return None, 0.0
    index = np.arange(1, count + 1)
    mass = ndimage.sum_labels(probability, pieces, index)
    best = int(np.argmax(mass))
    mask = pieces == best + 1
    if float(mask.sum()) * voxel_ml < SMALLEST_CANDIDATE_ML:
        return None, 0.0
    return mask, float(mass[best] / mass.sum())


def _doubts(
    best: NDArray[np.bool_],
    mean: float,
    share: float,
    volume_ml: float,
    volume_range_ml: tuple[float, float] | None,
    weak: bool,
) -> list[str]:
    doubts = []
    if weak or mean < SURE_PROBABILITY:
        doubts.append(f"the best candidate's mean probability is {mean:.2f}; {SURE_PROBABILITY} counts as sure")
    if share < SURE_SHARE:
        doubts.append(f"other candidates hold {1 - share:.0%} of the evidence")
    if best[0].any() or best[-1].any():
        doubts.append("the candidate touches the first or last slice of the scan, so part of it may be missing")
    if volume_range_ml is not None:
        low, high = volume_range_ml[0] / VOLUME_SLACK, volume_range_ml[1] * VOLUME_SLACK
        if not low <= volume_ml <= high:
            doubts.append(f"a candidate of {volume_ml:.0f} mL; {low:.0f} to {high:.0f} mL are plausible here")
    return doubts
