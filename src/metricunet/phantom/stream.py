"""Phantoms as a training reads them, made straight on the grids of its stages, with no scan in between.

A patient is drawn and his scan is planned as for a cohort, but only what a stage will see is rendered: the box
around the gland on the scan's own grid, and the whole field on a grid that is at least twice as fine as stage 1's.
Both are read from there by the code that reads a real scan. What a scan on disk would have given differs in the
noise, which is drawn anew, and a little in the coarse image and the organs' box, where voxels are larger.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from metricunet.cohort.prepare import BoxName, PrepareSettings, TargetBox, hu_on
from metricunet.phantom.cohort import RECIPE_VERSION, is_absent
from metricunet.phantom.imaging import NOISE_GRAIN, NOISE_SLICE_MM
from metricunet.phantom.make import Drawn, draw_phantom
from metricunet.phantom.scanner import Difficulty, Scan
from metricunet.phantom.shapes import Point
from metricunet.phantom.variety import VARIED_VERSION, Variety
from metricunet.stages.locate import coarse_grid
from metricunet.volume import FloatArray, Volume, resample_labels, voxels_of

#: What a network sees of a patient: the whole field on stage 1's grid, or a box around the target.
Part = Literal["coarse", "fine", "organs"]
#: A patient is drawn for training or for validation; no patient of the one is one of the other, or of a cohort.
Use = Literal["train", "validate"]
#: Where stage 2 is shown scans without the target.
Mistaken = Literal["anywhere", "elsewhere"]
_KEYS: dict[Use, int] = {"train": 2, "validate": 3}
#: Raised whenever a stream makes other patients, or boxes, of the same phantoms.
STREAM_VERSION = 3
#: The centroid of what a scan shows of the gland lies within this of the middle of its extent.
OFF_CENTRE_MM = 10.0
#: Without a gland, stage 1 may see one this far from where it would lie (standard deviation along each axis), or
#: anywhere in this much of the field on either side of its middle.
MISTAKEN_MM, MISTAKEN_SHARE = 8.0, (0.3, 0.25, 0.5)


@dataclass(frozen=True)
class StreamRecipe:
    """What all patients of a stream share.

    Attributes:
        seed: seed of the stream.
        difficulty: difficulty of all patients, as in `make_phantom`.
        structures: names from `STRUCTURES`; they become the classes 1, 2, ... in this order.
        target: the structure that the fine box is centred on.
        absent_fraction: share of the patients whose scan does not reach the prostate.
        variety: groups that `varied` patients draw; None for all.
        coarse_variety: groups that they draw where stage 1 sees them; None for those of `variety`. The gland lies
            in the same place only if what differs does not move it. Tissues that `tissues` draws anew are for
            training alone: a network is to be judged by what is real.
        mistaken: where stage 2 is shown scans without the target: `anywhere` that stage 1 might see one, which in
            a scan that shows the place of a gland is that place, or `elsewhere`, in scans that do not show it.
    """

    seed: int
    difficulty: Difficulty
    structures: tuple[str, ...]
    target: str
    absent_fraction: float
    variety: Variety | None = None
    coarse_variety: Variety | None = None
    mistaken: Mistaken = "anywhere"

    def sha256(self, **more: Any) -> str:
        """Return a hash of the recipe and of what else decides which patients there are."""
        versions = (RECIPE_VERSION, STREAM_VERSION, *((VARIED_VERSION,) if self.difficulty == "varied" else ()))
        content = {"version": versions, **asdict(self), **more}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()

    def reaches_target(self, number: int) -> bool:
        """Tell whether the scan of a patient reaches the prostate."""
        return not is_absent(number, self.absent_fraction)

    def patient_seed(self, use: Use, number: int) -> int:
        """Return the seed that `draw_phantom` gets for a patient."""
        return int(np.random.SeedSequence((self.seed, _KEYS[use], number)).generate_state(1)[0])


@dataclass(frozen=True, eq=False)
class StreamedCase:
    """A patient as the stages read him. Axes run to the head, the back and the left.

    Attributes:
        name: name of the patient.
        coarse: int16 HU [slice, row, column] of the whole scan; None where it was not asked for.
        coarse_labels: uint8 classes of the two stages on the same grid.
        boxes: the boxes around the target that were asked for. Where the scan holds no target there is none for
            the organs' network; for stage 2 a training patient has one in its place, where nothing is to be found.
        facts: as of `metricunet.cohort.prepare.PreparedCase`; and `bed_mm`, where the gland would lie, if the scan
            shows that place and no gland.
        staged_unknown: none; every structure of a phantom is known.
    """

    name: str
    coarse: Volume | None
    coarse_labels: Volume | None
    boxes: Mapping[BoxName, TargetBox]
    facts: dict[str, Any]
    staged_unknown: tuple[int, ...] = ()

    def box(self, name: BoxName) -> TargetBox | None:
        """Return a box around the target, or in its place; None where there is none, or it was not asked for."""
        return self.boxes.get(name)


def streamed_case(
    recipe: StreamRecipe, settings: PrepareSettings, use: Use, number: int, parts: Sequence[Part]
) -> StreamedCase:
    """Make one patient. The same arguments give the same bytes every time.

    Args:
        recipe: what all patients share.
        settings: grids of the stages.
        use: whether he is drawn for training or for validation.
        number: his number, from 0.
        parts: what is wanted of him.
    """
    seed, reaches = recipe.patient_seed(use, number), recipe.reaches_target(number)
    drawn = draw_phantom(seed, recipe.difficulty, reaches, _shown(recipe.variety, use))
    staged = tuple(name for name in recipe.structures if name not in settings.organs_structures)
    facts: dict[str, Any] = {"spacing_mm": list(drawn.scan.spacing_mm)}
    bed_mm = None if reaches else _bed_mm(drawn)
    if bed_mm is not None:
        facts["bed_mm"] = [float(v) for v in bed_mm + drawn.scan.world_shift_mm]
    coarse = coarse_labels = None
    if "coarse" in parts:
        slices, rows, columns = settings.coarse_spacing_mm
        seen = drawn
        if recipe.coarse_variety is not None:
            seen = draw_phantom(seed, recipe.difficulty, reaches, _shown(recipe.coarse_variety, use))
        scan = coarser(seen.scan, (slices / 2, rows / 2, columns / 2))
        grid = coarse_grid(seen.scan.geometry, settings.coarse_spacing_mm)
        coarse = hu_on(seen.image(scan), grid)
        coarse_labels = resample_labels(seen.labels(_numbered(staged), scan), grid)
    boxes: dict[BoxName, TargetBox] = {}
    if "fine" in parts or "organs" in parts:
        found = _target(drawn, recipe.target, settings)
        shown = use == "train" and "fine" in parts and (recipe.mistaken == "anywhere" or bed_mm is None)
        if found is None and shown:
            centre_mm = _mistaken_mm(drawn, seed)
            near = _around(drawn.scan, centre_mm - drawn.scan.world_shift_mm, settings)
            assert near is not None
            boxes["fine"] = _box(
                drawn, drawn.image(near), near, centre_mm, staged, settings.fine_spacing_mm, settings.box_mm
            )
        elif found is not None:
            target_scan, target = found
            centre_mm = target.geometry.to_world(np.argwhere(target.array).mean(axis=0))
            facts["volume_ml"] = float(target.array.sum()) * target.geometry.voxel_volume_ml
            facts["centre_mm"] = [float(v) for v in centre_mm]
            if "fine" in parts:
                image = drawn.image(target_scan)
                facts["target_hu"] = float(np.median(image.array[target.array > 0]))
                boxes["fine"] = _box(
                    drawn, image, target_scan, centre_mm, staged, settings.fine_spacing_mm, settings.box_mm
                )
            if "organs" in parts:
                assert settings.organs is not None
                reach = np.array(settings.organs.box_mm[::-1]) / 2 + max(settings.organs.spacing_mm)
                middle = centre_mm - drawn.scan.world_shift_mm
                part = within(drawn.scan, (middle - reach).tolist(), (middle + reach).tolist())
                assert part is not None
                part = coarser(part, settings.organs.spacing_mm)
                organs = settings.organs
                boxes["organs"] = _box(
                    drawn, drawn.image(part), part, centre_mm, organs.structures, organs.spacing_mm, organs.box_mm
                )
    name = f"{'phantom' if use == 'train' else 'validation'}_{number:06d}"
    return StreamedCase(name, coarse, coarse_labels, boxes, facts)


def _shown(variety: Variety | None, use: Use) -> Variety | None:
    """Return the groups that a patient draws; one for validation has tissues as they are."""
    return variety if variety is None or use == "train" else replace(variety, tissues=False)


def _target(drawn: Drawn, target: str, settings: PrepareSettings) -> tuple[Scan, Volume] | None:
    """Return the part of the scan that stage 2's box lies in, and the target's mask there; None without target."""
    low, high = (np.clip(corner, drawn.scan.start_mm, drawn.scan.end_mm) for corner in drawn.gland_mm)
    scan = _around(drawn.scan, (low + high) / 2, settings)
    if scan is None:
        return None
    mask = drawn.labels({target: 1}, scan)
    return (scan, mask) if mask.array.any() else None


def _around(scan: Scan, middle_mm: FloatArray, settings: PrepareSettings) -> Scan | None:
    """Return the part of the scan that stage 2's box lies in, near a point in the body frame; None without any."""
    reach = np.array(settings.box_mm[::-1]) / 2 + OFF_CENTRE_MM
    return within(scan, (middle_mm - reach).tolist(), (middle_mm + reach).tolist())


def _bed_mm(drawn: Drawn) -> FloatArray | None:
    """Return where the gland would lie, in the body frame; None where the scan does not show that place."""
    bed = (np.array(drawn.gland_mm[0]) + np.array(drawn.gland_mm[1])) / 2
    shown = (np.array(drawn.scan.start_mm) <= bed) & (bed <= np.array(drawn.scan.end_mm))
    return np.asarray(bed, dtype=np.float64) if shown.all() else None


def _mistaken_mm(drawn: Drawn, seed: int) -> FloatArray:
    """Draw where stage 1 might see a gland in a scan without one: where it would lie, or anywhere."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(7,)))
    start, end = np.array(drawn.scan.start_mm), np.array(drawn.scan.end_mm)
    bed, beside = _bed_mm(drawn), rng.normal(0.0, MISTAKEN_MM, 3)
    anywhere = (start + end) / 2 + rng.uniform(-1.0, 1.0, 3) * np.array(MISTAKEN_SHARE) * (end - start)
    found = np.clip(anywhere if bed is None else bed + beside, start, end) + np.array(drawn.scan.world_shift_mm)
    return np.asarray(found, dtype=np.float64)


def _numbered(structures: Sequence[str]) -> dict[str, int]:
    """Return the class of each structure, from 1."""
    return {name: k for k, name in enumerate(structures, start=1)}


def _box(
    drawn: Drawn,
    image: Volume,
    scan: Scan,
    centre_mm: FloatArray,
    structures: Sequence[str],
    spacing_mm: tuple[float, float, float],
    box_mm: tuple[float, float, float],
) -> TargetBox:
    """Read a box around the target from the part of the scan that holds it, with the classes of its network."""
    grid = image.geometry.box_around(centre_mm, voxels_of(box_mm, spacing_mm), spacing_mm)
    return TargetBox(hu_on(image, grid), resample_labels(drawn.labels(_numbered(structures), scan), grid))


def within(scan: Scan, low_mm: Sequence[float], high_mm: Sequence[float]) -> Scan | None:
    """Return the part of an acquisition between two corners, on the same voxels; None where there is none.

    Args:
        scan: the acquisition.
        low_mm: the lowest x, y and z that are wanted, in the body frame.
        high_mm: the highest ones.
    """
    starts, counts = [], []
    for axis, (low, high) in enumerate(zip(low_mm, high_mm, strict=True)):
        step, count = scan.spacing_mm[2 - axis], scan.shape[2 - axis]
        first = max(0, int(np.floor((low - scan.start_mm[axis]) / step)))
        last = min(count - 1, int(np.ceil((high - scan.start_mm[axis]) / step)))
        if last < first:
            return None
        starts.append(scan.start_mm[axis] + first * step)
        counts.append(last - first + 1)
    return replace(scan, start_mm=(starts[0], starts[1], starts[2]), shape=(counts[2], counts[1], counts[0]))


def coarser(scan: Scan, most_mm: Point) -> Scan:
    """Return an acquisition whose voxels are each several of a finer one's, as a mean over them would look.

    Args:
        scan: the acquisition.
        most_mm: the spacing along slice, row and column that the new one does not exceed, unless the old one does.
    """
    joined = [
        min(max(1, int(most / step + 1e-6)), n)
        for most, step, n in zip(most_mm, scan.spacing_mm, scan.shape, strict=True)
    ]
    shape = [n // k for n, k in zip(scan.shape, joined, strict=True)]
    spacing = [step * k for step, k in zip(scan.spacing_mm, joined, strict=True)]
    start = [
        a + (k - 1) / 2 * step
        for a, k, step in zip(scan.start_mm, joined[::-1], scan.spacing_mm[::-1], strict=True)
    ]
    return replace(
        scan,
        shape=(shape[0], shape[1], shape[2]),
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        start_mm=(start[0], start[1], start[2]),
        noise_hu=scan.noise_hu * _noise_share(scan, joined),
    )


def _noise_share(scan: Scan, joined: Sequence[int]) -> float:
    """Return the standard deviation of the mean of joined voxels against that of one."""
    slices, rows, columns = joined
    step_mm, row_mm, column_mm = scan.spacing_mm
    along = _mean_variance(np.exp(-step_mm * np.arange(slices) / NOISE_SLICE_MM))
    plane = 0.0
    for grain_mm, share in NOISE_GRAIN:
        # What a Gaussian filter leaves of the correlation at a distance.
        wide_mm = 2 * grain_mm * scan.sharpness
        across = [
            _mean_variance(np.exp(-((np.arange(n) * step / wide_mm) ** 2)))
            for n, step in ((rows, row_mm), (columns, column_mm))
        ]
        plane += share * across[0] * across[1]
    return float(np.sqrt(along * plane))


def _mean_variance(correlation: NDArray[np.float64]) -> float:
    """Return the variance of the mean of values of variance 1 that correlate so at 0, 1, 2, ... steps."""
    count = len(correlation)
    return float((count + 2 * ((count - np.arange(1, count)) * correlation[1:]).sum()) / count**2)
