"""What is found in a case once it is segmented: the numbers that verdicts are made of, and nothing of the images.

Whole scans are only ever looked at slice by slice, and only on the slices of the crop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from metricunet.hu import level_hu, noise_hu
from metricunet.quality.masks import (
    face_names,
    gaps_of,
    holes_of,
    inner_faces,
    outer_faces,
    pieces_of,
    reached_faces,
)
from metricunet.quality.prediction import OrgansPart, Prediction, StructureMask
from metricunet.stages.locate import Localisation
from metricunet.volume import Volume

Range = tuple[float, float]
#: Along three axes.
Millimetres = tuple[float, float, float]

#: From here on it is metal: the hardest bone ends near 2000, and scanners of 12 bits end at 3071.
METAL_HU = 2500.0
#: A gland's voxel beyond these is gas, a streak, contrast medium, a marker or stone: no tissue, even with noise.
TISSUE_HU = (-100.0, 200.0)


@dataclass(frozen=True)
class StructureFindings:
    """What the mask of one structure is like, on the scan's own grid.

    Attributes:
        volume_ml: of all its voxels.
        centre_mm: LPS centroid.
        extent_mm: sides of its box, voxels' faces included: head-foot, front-back, left-right.
        pieces: connected parts; of the target and the organs before all but the largest were removed.
        loose_ml: volume outside the largest part; of the target and the organs, what was removed.
        holes: parts of slices that it encloses.
        holes_ml: their volume.
        empty_slices: without a voxel of it, between its first and its last.
        scan_faces: edges of the scan that it reaches.
        cropped: whether a crop may cut it: any of stage 2's structures, but the target only where it reaches an
            inner face of its crop after all; and an organ that reaches the edge of what its network looked at,
            where the scan goes on.
    """

    volume_ml: float
    centre_mm: Millimetres
    extent_mm: Millimetres
    pieces: int
    loose_ml: float
    holes: int
    holes_ml: float
    empty_slices: int
    scan_faces: tuple[str, ...]
    cropped: bool

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary, rounded."""
        return {
            "volume_ml": round(self.volume_ml, 2),
            "centre_mm": [round(v, 1) for v in self.centre_mm],
            "extent_mm": [round(v, 1) for v in self.extent_mm],
            "pieces": self.pieces,
            "loose_ml": round(self.loose_ml, 2),
            "holes": self.holes,
            "holes_ml": round(self.holes_ml, 3),
            "empty_slices": self.empty_slices,
            "cropped": self.cropped,
        }


@dataclass(frozen=True)
class HuFindings:
    """What the HU in and around the target are like.

    Attributes:
        target_hu: median in the target.
        crop_hu: median of the body in the crop.
        noise_hu: standard deviation of the noise there.
        odd_share: of the target's voxels whose HU no gland has.
        metal_ml: volume of metal on the crop's slices, to the edge of the scan.
    """

    target_hu: float
    crop_hu: float | None
    noise_hu: float | None
    odd_share: float
    metal_ml: float

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary, rounded."""
        digits = {"odd_share": 4, "metal_ml": 2}
        return {k: None if v is None else round(v, digits.get(k, 1)) for k, v in vars(self).items()}


@dataclass(frozen=True)
class Findings:
    """All that the checks of a case look at. The number that a new check needs is one more field with a default.

    Attributes:
        target: name of the structure that steers localisation and crop.
        status: of stage 1.
        confidence: of stage 1, 0 to 1.
        reason: of stage 1, in words.
        held_back: why no verdict on the models' masks is better than `review`; empty where one may be.
        structures: of each structure that has a voxel, what its mask is like.
        standard_names: of all structures (TG-263).
        ranges: smallest and largest value seen in training, by quantity. What is not there is not checked.
        spacing_mm: of the scan: slice, row, column.
        stage_distance_mm: between stage 1's centre and stage 2's centroid.
        stage_overlap: Dice of stage 1's candidate and stage 2's mask; None where the candidate was not kept.
        touched: inner faces of the crop that the target reaches after all.
        looks: how often stage 2 ran.
        hu: None where there is no target.
        repeated_slices: of the target's slices and their neighbours, those that are copies of another or blank.
        notes: what reading the scan has to say of it, a sentence each.
        patient_sex: as the scan's header states it; empty where it says nothing.
        boundary_mm: expected error of the target's boundary; None where no model was calibrated for it.
        boundary_seen_mm: smallest and largest of the validation cases.
        organs: the structures of the organs' network, which are wanted whole.
    """

    target: str
    status: str
    confidence: float
    reason: str
    held_back: str = ""
    structures: Mapping[str, StructureFindings] = field(default_factory=dict)
    standard_names: Mapping[str, str] = field(default_factory=dict)
    ranges: Mapping[str, Range] = field(default_factory=dict)
    spacing_mm: Millimetres = (1.0, 1.0, 1.0)
    stage_distance_mm: float | None = None
    stage_overlap: float | None = None
    touched: tuple[str, ...] = ()
    looks: int = 1
    hu: HuFindings | None = None
    repeated_slices: int = 0
    notes: tuple[str, ...] = ()
    patient_sex: str = ""
    boundary_mm: float | None = None
    boundary_seen_mm: Range | None = None
    organs: tuple[str, ...] = ()


def findings_of(
    scan: Volume, prediction: Prediction, notes: tuple[str, ...] = (), patient_sex: str = ""
) -> Findings:
    """Measure a prediction and its scan.

    Args:
        scan: HU, as it was predicted.
        prediction: what the predictor made of it.
        notes: what reading the scan has to say of it, a sentence each.
        patient_sex: as the scan's header states it; empty where it says nothing.
    """
    card, localisation = prediction.card, prediction.localisation
    image = scan.canonical()
    common: dict[str, Any] = {
        "target": card.target,
        "status": localisation.status,
        "confidence": localisation.confidence,
        "reason": localisation.reason,
        "held_back": card.held_back,
        "standard_names": card.tg263,
        "ranges": card.ranges,
        # In the order of the canonical axes, as the training cases' are.
        "spacing_mm": image.spacing_mm,
        "looks": max(1, len(prediction.crops)),
        "notes": notes,
        "patient_sex": patient_sex,
        "organs": card.organs_structures,
    }
    if prediction.region is None:
        return Findings(**common)
    region = prediction.region
    structures = {
        name: _structure(name, mask, region, prediction, image) for name, mask in prediction.masks.items()
    }
    mask = prediction.masks.get(card.target)
    if mask is None:
        return Findings(**common, structures=structures)
    distance = None
    if localisation.centre_mm is not None:
        distance = float(np.linalg.norm(localisation.centre_mm - np.asarray(structures[card.target].centre_mm)))
    begin = _within(mask, prediction)
    target = Volume(mask.array, region.geometry.crop(begin, mask.array.shape))
    first, last = mask.box[0].start, mask.box[0].stop - 1
    return Findings(
        **common,
        structures=structures,
        stage_distance_mm=distance,
        stage_overlap=stage_overlap(localisation, target),
        touched=_touched(prediction),
        hu=_hu(image, prediction, mask),
        repeated_slices=repeated_slices(image, max(0, first - 1), min(image.geometry.shape[0] - 1, last + 1)),
        boundary_mm=None if prediction.boundary is None else prediction.boundary.case_mm,
        boundary_seen_mm=None if prediction.boundary is None else prediction.boundary.validation_mm,
    )


def stage_overlap(found: Localisation, target: Volume) -> float | None:
    """Return the Dice of stage 1's candidate and a mask on the scan's grid, which is read on the coarse one.

    Args:
        found: what stage 1 found.
        target: stage 2's mask, or a part of the grid that holds it.
    """
    if found.candidate is None:
        return None
    coarse = found.candidate
    # Beyond the part there is nothing of the mask, where resampling would go on with the values at its border.
    room = [math.ceil(wide / step) for wide, step in zip(coarse.spacing_mm, target.spacing_mm, strict=True)]
    shape = [n + 2 * more for n, more in zip(target.array.shape, room, strict=True)]
    around = target.with_array(target.array.astype(np.float32)).crop([-more for more in room], shape)
    share = around.resample(coarse.geometry).array
    both = float(share[coarse.array].sum()) * coarse.geometry.voxel_volume_ml
    one = float(coarse.array.sum()) * coarse.geometry.voxel_volume_ml
    two = float(target.array.sum()) * target.geometry.voxel_volume_ml
    return 2 * both / (one + two)


def metal_ml(image: Volume, first: int, last: int) -> float:
    """Return the volume of metal on slices from `first` up to `last`, both counted in."""
    voxels = sum(int(np.count_nonzero(image.array[k] >= METAL_HU)) for k in range(first, last + 1))
    return voxels * image.geometry.voxel_volume_ml


def repeated_slices(image: Volume, first: int, last: int) -> int:
    """Count slices from `first` up to `last` that are blank or equal to the one before: fillers of gaps.

    Which of two equal slices is the filler nobody can tell, so the last one counts where the next is its equal.
    """

    def is_equal(k: int, other: int) -> bool:
        return 0 <= other < len(image.array) and np.array_equal(image.array[k], image.array[other])

    count = 0
    for k in range(first, last + 1):
        current = image.array[k]
        blank = bool((current == current.flat[0]).all())
        count += blank or is_equal(k, k - 1) or (k == last and is_equal(k, k + 1))
    return count


def _touched(prediction: Prediction) -> tuple[str, ...]:
    """Return the inner faces that the target reaches of the crop whose mask it is."""
    return next((crop.touched for crop in prediction.crops if crop.used), ())


def _within(mask: StructureMask, prediction: Prediction) -> list[int]:
    """Return where a mask's box begins in the region that stage 2 looked at."""
    return [first - start for first, start in zip(mask.start, prediction.region_start, strict=True)]


def _structure(
    name: str, mask: StructureMask, region: Volume, prediction: Prediction, image: Volume
) -> StructureFindings:
    voxel_ml, spacing = region.geometry.voxel_volume_ml, region.spacing_mm
    middle = np.array([float(axis.mean()) for axis in np.nonzero(mask.array)]) + _within(mask, prediction)
    x, y, z = region.geometry.to_world(middle).tolist()
    s, r, c = (n * step for n, step in zip(mask.array.shape, spacing, strict=True))
    is_target, organs = name == prediction.card.target, prediction.organs
    holes = holes_of(mask.array)
    cropped = not is_target or bool(_touched(prediction))
    if is_target:
        count, loose_ml = prediction.pieces, prediction.removed_ml
    elif organs is not None and name in organs.structures:
        count, loose_ml = organs.pieces[name].count, organs.pieces[name].loose_voxels * voxel_ml
        cropped = _is_cut(mask, organs, image)
    else:
        pieces = pieces_of(mask.array)
        count, loose_ml = pieces.count, pieces.loose_voxels * voxel_ml
    edges = outer_faces(reached_faces(mask.array), mask.start, mask.array.shape, image.geometry.shape)
    return StructureFindings(
        volume_ml=int(mask.array.sum()) * voxel_ml,
        centre_mm=(x, y, z),
        extent_mm=(s, r, c),
        pieces=count,
        loose_ml=loose_ml,
        holes=holes.count,
        holes_ml=holes.voxels * voxel_ml,
        empty_slices=gaps_of(mask.array),
        scan_faces=face_names(edges),
        cropped=cropped,
    )


def _is_cut(mask: StructureMask, organs: OrgansPart, image: Volume) -> bool:
    """Tell whether an organ reaches a face of what its network looked at that is not also the edge of the scan."""
    ends = zip(mask.box, organs.start, organs.geometry.shape, strict=True)
    reached = tuple((part.start == first, part.stop == first + n) for part, first, n in ends)
    inner = inner_faces(reached, organs.start, organs.geometry.shape, image.geometry.shape)
    return any(low or high for low, high in inner)


def _hu(image: Volume, prediction: Prediction, target: StructureMask) -> HuFindings:
    values = image.array[target.box][target.array]
    low, high = TISSUE_HU
    odd = np.count_nonzero((values < low) | (values > high)) / values.size
    region, seen = prediction.region, prediction.seen
    assert region is not None
    first = prediction.region_start[0]
    return HuFindings(
        target_hu=float(np.median(values)),
        crop_hu=None if seen is None else level_hu(seen.array),
        noise_hu=None if seen is None else noise_hu(seen.array),
        odd_share=float(odd),
        metal_ml=metal_ml(image, first, first + region.geometry.shape[0] - 1),
    )
