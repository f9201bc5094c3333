"""What is known of a case once it is segmented: the numbers that verdicts are made of, and nothing of the images.

Whole scans are only ever looked at slice by slice, and only on the slices of the crop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metricunet.hu import level_hu, noise_hu
from metricunet.inference.crops import face_names, outer_faces, reached_faces
from metricunet.inference.masks import gaps_of, holes_of, pieces_of
from metricunet.stages.classes import Box, box_of
from metricunet.stages.locate import Localisation
from metricunet.volume import Volume

if TYPE_CHECKING:
    from metricunet.inference.predictor import Prediction, Predictor

Range = tuple[float, float]
Point = tuple[float, float, float]

#: From here on it is metal: the hardest bone ends near 2000, and scanners of 12 bits end at 3071.
METAL_HU = 2500.0
#: A gland's voxel beyond these is gas, a streak, contrast medium, a marker or stone: no tissue, even with noise.
TISSUE_HU = (-100.0, 200.0)


@dataclass(frozen=True)
class StructureFacts:
    """One structure's mask, on the scan's own grid.

    Attributes:
        volume_ml: of all its voxels.
        centre_mm: LPS centroid.
        extent_mm: sides of its box, voxels' faces included: head-foot, front-back, left-right.
        pieces: connected parts; of the target before all but the largest were removed.
        loose_ml: volume outside the largest part; of the target, what was removed.
        holes: parts of slices that it encloses.
        holes_ml: their volume.
        empty_slices: without a voxel of it, between its first and its last.
        scan_faces: edges of the scan that it reaches.
        cropped: whether stage 2's crop may cut it, as it may every structure but the target.
    """

    volume_ml: float
    centre_mm: Point
    extent_mm: Point
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
class HuFacts:
    """HU in and around the target.

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
class Facts:
    """All that the checks of a case look at. A new check's number is one more field with a default.

    Attributes:
        target: name of the structure that steers localisation and crop.
        status: of stage 1.
        confidence: of stage 1, 0 to 1.
        reason: of stage 1, in words.
        synthetic: whether any model was trained on synthetic scans only.
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
        boundary_mm: expected error of the target's boundary; None where no model was calibrated for it.
        boundary_seen_mm: smallest and largest of the validation cases.
    """

    target: str
    status: str
    confidence: float
    reason: str
    synthetic: bool = False
    structures: Mapping[str, StructureFacts] = field(default_factory=dict)
    standard_names: Mapping[str, str] = field(default_factory=dict)
    ranges: Mapping[str, Range] = field(default_factory=dict)
    spacing_mm: Point = (1.0, 1.0, 1.0)
    stage_distance_mm: float | None = None
    stage_overlap: float | None = None
    touched: tuple[str, ...] = ()
    looks: int = 1
    hu: HuFacts | None = None
    repeated_slices: int = 0
    notes: tuple[str, ...] = ()
    boundary_mm: float | None = None
    boundary_seen_mm: Range | None = None


def facts_of(scan: Volume, prediction: Prediction, predictor: Predictor, notes: tuple[str, ...] = ()) -> Facts:
    """Collect the facts of a prediction.

    Args:
        scan: as it was predicted.
        prediction: of it.
        predictor: that made it.
        notes: see `Facts`.
    """
    card, found = predictor.card, prediction.localisation
    ranges = {name: predictor.range_of(name) for model in predictor.models for name in model.card.ranges}
    image = scan.canonical()
    common: dict[str, Any] = {
        "target": card.target,
        "status": found.status,
        "confidence": found.confidence,
        "reason": found.reason,
        "synthetic": predictor.synthetic,
        "standard_names": card.tg263,
        "ranges": {name: limits for name, limits in ranges.items() if limits is not None},
        # In the order of the canonical axes, as the training cases' are.
        "spacing_mm": image.spacing_mm,
        "looks": max(1, len(prediction.crops)),
        "notes": notes,
    }
    if prediction.region is None:
        return Facts(**common)
    structures = dict(_structures(prediction, predictor, image))
    if card.target not in structures:
        return Facts(**common, structures=structures)
    mask = prediction.region.array == card.labels[card.target]
    box = box_of(mask)
    assert box is not None
    target = Volume(mask[box], prediction.region.geometry.crop([s.start for s in box], mask[box].shape))
    distance = None
    if found.centre_mm is not None:
        distance = float(np.linalg.norm(found.centre_mm - np.asarray(structures[card.target].centre_mm)))
    return Facts(
        **common,
        structures=structures,
        stage_distance_mm=distance,
        stage_overlap=stage_overlap(found, target),
        touched=next((crop.touched for crop in prediction.crops if crop.used), ()),
        hu=_hu(image, prediction, target),
        repeated_slices=repeated_slices(image, *_span(image, target, 1)),
        boundary_mm=None if prediction.boundary is None else prediction.boundary.case_mm,
        boundary_seen_mm=None if prediction.boundary is None else prediction.boundary.validation_mm,
    )


def stage_overlap(found: Localisation, target: Volume) -> float | None:
    """Return the Dice of stage 1's candidate and a mask on the scan's grid, which is read on the coarse one.

    Args:
        found: by stage 1.
        target: stage 2's mask, or a part of the grid that holds it.
    """
    if found.candidate is None:
        return None
    coarse = found.candidate
    share = target.with_array(target.array.astype(np.float32)).resample(coarse.geometry).array
    both = float(share[coarse.array].sum()) * coarse.geometry.voxel_volume_ml
    one = float(coarse.array.sum()) * coarse.geometry.voxel_volume_ml
    two = float(target.array.sum()) * target.geometry.voxel_volume_ml
    return 2 * both / (one + two)


def metal_ml(image: Volume, first: int, last: int) -> float:
    """Return the volume of metal on slices from `first` up to `last`, both counted in."""
    voxels = sum(int(np.count_nonzero(image.array[k] >= METAL_HU)) for k in range(first, last + 1))
    return voxels * image.geometry.voxel_volume_ml


def repeated_slices(image: Volume, first: int, last: int) -> int:
    """Count slices from `first` up to `last` that are blank or equal to the one before: fillers of gaps."""
    count = 0
    for k in range(first, last + 1):
        current = image.array[k]
        blank = bool((current == current.flat[0]).all())
        count += blank or (k > first and np.array_equal(current, image.array[k - 1]))
    return count


def _structures(
    prediction: Prediction, predictor: Predictor, image: Volume
) -> Iterator[tuple[str, StructureFacts]]:
    region = prediction.region
    assert region is not None
    start = _first_voxel(image, region)
    voxel_ml, spacing = region.geometry.voxel_volume_ml, region.spacing_mm
    for name, value in predictor.card.labels.items():
        whole = region.array == value
        box = box_of(whole)
        if box is None:
            continue
        mask = whole[box]
        begin = [part.start for part in box]
        middle = np.array([float(axis.mean()) for axis in np.nonzero(mask)]) + begin
        x, y, z = region.geometry.to_world(middle).tolist()
        s, r, c = (n * step for n, step in zip(mask.shape, spacing, strict=True))
        is_target = name == predictor.card.target
        holes = holes_of(mask)
        if is_target:
            count, loose_ml = prediction.pieces, prediction.removed_ml
        else:
            pieces = pieces_of(mask)
            count, loose_ml = pieces.count, pieces.loose_voxels * voxel_ml
        first = [int(a) + int(b) for a, b in zip(start, begin, strict=True)]
        edges = outer_faces(reached_faces(mask), first, mask.shape, image.geometry.shape)
        yield (
            name,
            StructureFacts(
                volume_ml=int(mask.sum()) * voxel_ml,
                centre_mm=(x, y, z),
                extent_mm=(s, r, c),
                pieces=count,
                loose_ml=loose_ml,
                holes=holes.count,
                holes_ml=holes.voxels * voxel_ml,
                empty_slices=gaps_of(mask),
                scan_faces=face_names(edges),
                cropped=not is_target,
            ),
        )


def _hu(image: Volume, prediction: Prediction, target: Volume) -> HuFacts:
    inside: Box = _box_in(image, target)
    values: NDArray[Any] = image.array[inside][target.array]
    low, high = TISSUE_HU
    odd = np.count_nonzero((values < low) | (values > high)) / values.size
    region, seen = prediction.region, prediction.seen
    assert region is not None
    return HuFacts(
        target_hu=float(np.median(values)),
        crop_hu=None if seen is None else level_hu(seen.array),
        noise_hu=None if seen is None else noise_hu(seen.array),
        odd_share=float(odd),
        metal_ml=metal_ml(image, *_span(image, region, 0)),
    )


def _span(image: Volume, part: Volume, more: int) -> tuple[int, int]:
    """Return the first and the last slice of the image that a part of its grid takes, and some more."""
    first = int(_first_voxel(image, part)[0])
    last = first + part.geometry.shape[0] - 1
    return max(0, first - more), min(image.geometry.shape[0] - 1, last + more)


def _box_in(image: Volume, part: Volume) -> Box:
    s, r, c = (
        slice(int(first), int(first) + n)
        for first, n in zip(_first_voxel(image, part), part.geometry.shape, strict=True)
    )
    return s, r, c


def _first_voxel(image: Volume, part: Volume) -> NDArray[np.int64]:
    """Return where a part of the image's grid begins."""
    return np.rint(image.geometry.to_index(part.geometry.origin_mm)).astype(np.int64)
