"""What a reviewer changed of an automatic mask: how much, and where it lies.

The automatic mask is measured against the reviewed one, by the definitions of `metricunet.evaluation.measures`:
Dice, added path length without a tolerance (contour that the reviewer drew and the automatic mask lacks), shift
of the centre and ratio of the volumes. Where the two masks differ is said of the box of the reviewed mask, that of
the automatic one where it is empty: its thirds from foot to head, its halves from left to right and from front to
back. What lies outside the box counts to the part that is nearest, a voxel between two parts to both by its share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metricunet.evaluation.measures import align, crop_to_content, measure
from metricunet.volume import Volume

#: Parts from foot to head; of a prostate they are apex, middle and base.
THIRDS = ("foot", "middle", "head")
HALVES = ("left", "right", "front", "back")


@dataclass(frozen=True)
class Edit:
    """What was changed of the mask of one structure; None where there is nothing to measure.

    Attributes:
        dice: of the automatic and the reviewed mask.
        added_path_length_mm: length of the reviewed contour that the automatic one lacks, over all slices.
        shift_left_mm: how far the automatic mask's centre lies to the patient's left of the reviewed one's.
        shift_back_mm: likewise to the back.
        shift_head_mm: likewise to the head.
        volume_ratio: volume of the automatic mask over that of the reviewed one.
        automatic_ml: volume of the automatic mask.
        reviewed_ml: volume of the reviewed mask.
        added_ml: volume that the reviewer has added.
        removed_ml: volume that the reviewer has taken away.
        foot_ml: of what was added and removed, the part in the third that is nearest to the feet.
        middle_ml: likewise in the middle third.
        head_ml: likewise in the third that is nearest to the head.
        left_ml: likewise in the half to the patient's left.
        right_ml: likewise to the right.
        front_ml: likewise in the half to the front.
        back_ml: likewise to the back.
    """

    dice: float | None
    added_path_length_mm: float | None
    shift_left_mm: float | None
    shift_back_mm: float | None
    shift_head_mm: float | None
    volume_ratio: float | None
    automatic_ml: float
    reviewed_ml: float
    added_ml: float
    removed_ml: float
    foot_ml: float = 0.0
    middle_ml: float = 0.0
    head_ml: float = 0.0
    left_ml: float = 0.0
    right_ml: float = 0.0
    front_ml: float = 0.0
    back_ml: float = 0.0


def edit_of(automatic: Volume, reviewed: Volume) -> Edit:
    """Measure what a reviewer changed of the mask of one structure.

    Args:
        automatic: mask; what is not 0 is inside.
        reviewed: mask on the same grid.

    Raises:
        InputError: the two grids do not hold the same voxels.
    """
    automatic, reviewed = crop_to_content(align(automatic, reviewed), reviewed)
    automatic, reviewed = automatic.canonical(), reviewed.canonical()
    before, after = automatic.array != 0, reviewed.array != 0
    voxel_ml = reviewed.geometry.voxel_volume_ml
    n_before, n_after = np.count_nonzero(before), np.count_nonzero(after)
    added, removed = after & ~before, before & ~after
    whole = bool(n_before)
    unchanged = not added.any() and not removed.any()
    if unchanged:
        # The same voxels are alike in every measure; an empty mask has none.
        zero = 0.0 if whole else None
        measures = (1.0 if whole else None, zero, zero, zero, zero, 1.0 if whole else None)
    else:
        found = measure(automatic, reviewed, tolerance_mm=0.0)
        measures = (
            found.dice,
            found.added_path_length_mm,
            found.shift_left_mm,
            found.shift_back_mm,
            found.shift_head_mm,
            found.volume_ratio,
        )
    return Edit(
        *measures,
        float(n_before * voxel_ml),
        float(n_after * voxel_ml),
        float(np.count_nonzero(added) * voxel_ml),
        float(np.count_nonzero(removed) * voxel_ml),
        **({} if unchanged else _parts(added | removed, after if n_after else before, voxel_ml)),
    )


def _parts(changed: NDArray[np.bool_], body: NDArray[np.bool_], voxel_ml: float) -> dict[str, float]:
    """Return the volume that changed in each part of a structure; axes run to the head, the back and the left."""
    ml: dict[str, float] = {}
    shares = _shares(changed, body, 0, len(THIRDS))
    ml |= {f"{name}_ml": share * voxel_ml for name, share in zip(THIRDS, shares, strict=True)}
    front, back = _shares(changed, body, 1, 2)
    right, left = _shares(changed, body, 2, 2)
    named = {"left": left, "right": right, "front": front, "back": back}
    return ml | {f"{name}_ml": named[name] * voxel_ml for name in HALVES}


def _shares(changed: NDArray[np.bool_], body: NDArray[np.bool_], axis: int, parts: int) -> list[float]:
    """Return how many voxels changed in each of the equal parts of a structure's extent along an axis."""
    others = tuple(a for a in range(3) if a != axis)
    counts = changed.sum(axis=others).astype(np.float64)
    used = np.flatnonzero(body.any(axis=others))
    first, stop = float(used[0]), float(used[-1]) + 1
    index = np.arange(len(counts))
    edges = first + (stop - first) * np.arange(1, parts) / parts
    # A voxel that an edge cuts counts to both sides by how much of it lies there.
    below = [np.clip(edge - index, 0.0, 1.0) for edge in edges]
    cumulative = [float(counts @ share) for share in below] + [float(counts.sum())]
    return [after - before for before, after in zip([0.0, *cumulative[:-1]], cumulative, strict=True)]
