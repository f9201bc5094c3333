"""Overlap and surface measures of one structure in one scan, each with one stated definition.

P is the set of predicted voxels, R the set of reference voxels, both on one grid.

The surface of a mask is the set of its voxel faces: every face between a voxel inside and a voxel outside, the
outside of the scan included. A face stands at its centre and weighs its area in mm². The distance of a face
is the Euclidean distance in mm from its centre to the nearest face centre of the other surface. Face centres
are the points where the 0.5 level of the mask, interpolated along grid lines, crosses them; so equal masks
are at distance 0, and masks whose flat sides lie k voxels apart are at exactly k voxels. Curved surfaces are
steps of voxels: the average distance of concentric spheres comes out short by up to a quarter of the coarsest
spacing; distances to the nearest point of any face would fall short two to three times as much.

The contour of a mask, slice by slice, is the set of its voxel edges: every edge in the plane of a slice between a
voxel inside and a voxel outside, the outside of the scan included. It is what a structure set draws along voxels.
Slices are those across the axis that is nearest to head-foot.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from metricunet.errors import InputError
from metricunet.files.grids import difference
from metricunet.volume import FloatArray, Geometry, Volume

BoolArray = NDArray[np.bool_]
Outcome = Literal["measured", "missed", "false_positive", "true_absent"]
#: `not_contoured`: nobody drew the structure in the reference, so nothing can be said of the prediction.
RowOutcome = Literal[Outcome, "not_contoured"]

#: What `surface_dice_2mm` forgives, and unless another tolerance is chosen also the measures of contour review.
SURFACE_TOLERANCE_MM = 2.0
#: Spacings come from float32 headers; a distance is within a tolerance if it exceeds it by no more than this.
ROUNDING_MM = 1e-4


@dataclass(frozen=True)
class Definition:
    """What a measure is called and what it means, for people.

    Attributes:
        name: the field of `Measures` and the column of cases.csv.
        title: short heading.
        unit: empty for a ratio.
        best: the value of a perfect prediction.
        text: the definition in a sentence or two.
        is_signed: whether it is best at 0 and lies on either side of it.
        is_length: whether its millimetres are a length of contour, which a missed structure has, too.
        also: what others call it; empty where there is no such name.
    """

    name: str
    title: str
    unit: str
    best: float
    text: str
    is_signed: bool = False
    is_length: bool = False
    also: str = ""

    @property
    def full_title(self) -> str:
        """Title with the other name, as in `ASD (ASSD)` or `Surface Dice (NSD), 2 mm`."""
        head, comma, rest = self.title.partition(",")
        return f"{head} ({self.also}){comma}{rest}" if self.also else self.title

    @property
    def heading(self) -> str:
        """Title with the unit in brackets, as over a column."""
        return f"{self.title} [{self.unit}]" if self.unit else self.title

    @property
    def is_ratio(self) -> bool:
        """Tell whether the measure runs from 0 to 1 (best)."""
        return not self.unit

    @property
    def is_distance(self) -> bool:
        """Tell whether the measure is a distance, which a missed structure does not have."""
        return self.unit == "mm" and not self.is_length


#: What every comparison measures.
DEFINITIONS: tuple[Definition, ...] = (
    Definition("dice", "Dice", "", 1.0, "2 |P ∩ R| / (|P| + |R|), counted in voxels. Also called DSC."),
    Definition(
        "asd_mm",
        "ASD",
        "mm",
        0.0,
        "Average symmetric surface distance, also called ASSD: the area-weighted mean of the distances of all "
        "faces of P to R and of all faces of R to P, taken together.",
        also="ASSD",
    ),
    Definition(
        "sensitivity",
        "Sensitivity",
        "",
        1.0,
        "|P ∩ R| / |R|: the share of the reference that was found, also called recall. Blank where the "
        "reference is empty.",
    ),
    Definition(
        "ppv",
        "PPV",
        "",
        1.0,
        "Positive predictive value, also called precision, |P ∩ R| / |P|: the share of the prediction that is "
        "right; 0 for a missed structure.",
    ),
    Definition(
        "hd95_mm",
        "HD95",
        "mm",
        0.0,
        "The larger of two numbers: the distance to R within which 95 % of the surface area of P lies, and "
        "the distance to P within which 95 % of the surface area of R lies.",
    ),
    Definition(
        "surface_dice_2mm",
        "Surface Dice, 2 mm",
        "",
        1.0,
        "The share of the area of both surfaces together that lies within 2 mm of the other surface. Also called "
        "NSD, normalised surface Dice (or distance), at 2 mm.",
        also="NSD",
    ),
    Definition(
        "volume_difference_ml",
        "Volume difference",
        "mL",
        0.0,
        "Volume of P minus volume of R: positive where too much was predicted.",
        is_signed=True,
    ),
)

MEASURE_NAMES: tuple[str, ...] = tuple(definition.name for definition in DEFINITIONS)
#: Measures that are best at 0 and can lie on either side of it, so that neither larger nor smaller is better.
SIGNED = tuple(definition.name for definition in DEFINITIONS if definition.is_signed)

#: What those ask who review contours; measured where a tolerance is given.
CONTOUR_DEFINITIONS: tuple[Definition, ...] = (
    Definition(
        "added_path_length_mm",
        "Added path length",
        "mm",
        0.0,
        "The length of R's contour that P lacks, summed over all slices: of the voxel edges of R whose centre is "
        "farther than the tolerance from the centre of every voxel edge of P in that slice. All of R's contour "
        "for a missed structure; blank where the reference is empty.",
        is_length=True,
    ),
    Definition(
        "surface_dice",
        "Surface Dice, own tolerance",
        "",
        1.0,
        "The share of the area of both surfaces together that lies within the structure's tolerance of the other "
        "surface. Also called NSD, normalised surface Dice (or distance).",
        also="NSD",
    ),
    Definition(
        "shift_left_mm",
        "Shift to the left",
        "mm",
        0.0,
        "How far the centre of P's voxels lies from that of R's to the patient's left; negative: to the right.",
        is_signed=True,
    ),
    Definition(
        "shift_back_mm",
        "Shift to the back",
        "mm",
        0.0,
        "How far it lies to the patient's back; negative: to the front.",
        is_signed=True,
    ),
    Definition(
        "shift_head_mm",
        "Shift to the head",
        "mm",
        0.0,
        "How far it lies to the patient's head; negative: to the feet.",
        is_signed=True,
    ),
    Definition(
        "volume_ratio",
        "Volume ratio",
        "",
        1.0,
        "Volume of P over volume of R; 0 for a missed structure, blank where the reference is empty.",
    ),
)
CONTOUR_NAMES: tuple[str, ...] = tuple(definition.name for definition in CONTOUR_DEFINITIONS)
#: In the order of the columns of an evaluation's cases.csv.
ALL_DEFINITIONS = (*DEFINITIONS, *CONTOUR_DEFINITIONS)


@dataclass(frozen=True)
class Measures:
    """The measures of one structure in one scan; None where a measure has no value.

    | reference | prediction | overlap and surface Dice     | distances, shifts | volume difference |
    | --------- | ---------- | ---------------------------- | ----------------- | ----------------- |
    | present   | present    | measured                     | measured          | measured          |
    | present   | empty      | 0 (missed)                   | None              | minus R's volume  |
    | empty     | present    | 0, but sensitivity None      | None              | P's volume        |
    | empty     | empty      | None (truly absent)          | None              | None              |

    Added path length and volume ratio are measured wherever there is a reference. The measures of contour review,
    from `tolerance_mm` on, are None where no tolerance was given.
    """

    dice: float | None
    asd_mm: float | None
    sensitivity: float | None
    ppv: float | None
    hd95_mm: float | None
    surface_dice_2mm: float | None
    volume_difference_ml: float | None
    tolerance_mm: float | None = None
    added_path_length_mm: float | None = None
    surface_dice: float | None = None
    shift_left_mm: float | None = None
    shift_back_mm: float | None = None
    shift_head_mm: float | None = None
    volume_ratio: float | None = None

    def __repr__(self) -> str:
        values = (f"{name}={value:.4g}" for name in MEASURE_NAMES if (value := self.value(name)) is not None)
        words = [] if self.outcome == "measured" else [self.outcome]
        return f"Measures({', '.join([*words, *values])})"

    @property
    def outcome(self) -> Outcome:
        """Return which row of the table above this is."""
        if self.dice is None:
            return "true_absent"
        if self.sensitivity is None:
            return "false_positive"
        return "missed" if self.asd_mm is None else "measured"

    def value(self, name: str) -> float | None:
        """Return the measure with a name of `MEASURE_NAMES` or `CONTOUR_NAMES`."""
        found: float | None = getattr(self, name)
        return found


#: Of what cannot be measured, for there is nothing or no reference.
NOTHING = Measures(None, None, None, None, None, None, None)


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """For each face of either surface: its distance to the other surface [faces], and its area [faces]."""

    prediction_mm: FloatArray
    prediction_area_mm2: FloatArray
    reference_mm: FloatArray
    reference_area_mm2: FloatArray


def measure(prediction: Volume, reference: Volume, tolerance_mm: float | None = None) -> Measures:
    """Measure a predicted mask against a reference mask; what is not 0 is inside.

    The masks may be stored in different axis orders and directions, as long as the voxels are the same.

    Args:
        prediction: mask.
        reference: mask on the same grid.
        tolerance_mm: by how much a contour may be off before anybody would draw it again. The measures of contour
            review are measured where it is given.

    Raises:
        InputError: if the two grids do not hold the same voxels.
    """
    prediction, reference = crop_to_content(align(prediction, reference), reference)
    p, r = prediction.array != 0, reference.array != 0
    n_p, n_r, n_both = (int(np.count_nonzero(m)) for m in (p, r, p & r))
    volume_difference_ml = (n_p - n_r) * reference.geometry.voxel_volume_ml
    if not n_p and not n_r:
        return NOTHING
    if not n_p:
        found = Measures(0.0, None, 0.0, 0.0, None, 0.0, volume_difference_ml)
    elif not n_r:
        found = Measures(0.0, None, None, 0.0, None, 0.0, volume_difference_ml)
    else:
        distances = surface_distances(p, r, reference.spacing_mm)
        found = Measures(
            dice=2 * n_both / (n_p + n_r),
            asd_mm=average_surface_distance_mm(distances),
            sensitivity=n_both / n_r,
            ppv=n_both / n_p,
            hd95_mm=percentile_surface_distance_mm(distances, 95),
            surface_dice_2mm=surface_dice(distances, SURFACE_TOLERANCE_MM),
            volume_difference_ml=volume_difference_ml,
        )
        if tolerance_mm is not None:
            left, back, head = _shift_mm(prediction.with_array(p), reference.with_array(r))
            found = replace(
                found,
                surface_dice=surface_dice(distances, tolerance_mm),
                shift_left_mm=left,
                shift_back_mm=back,
                shift_head_mm=head,
            )
    if tolerance_mm is None:
        return found
    return replace(
        found,
        tolerance_mm=tolerance_mm,
        added_path_length_mm=added_path_length_mm(prediction, reference, tolerance_mm) if n_r else None,
        surface_dice=0.0 if found.surface_dice is None else found.surface_dice,
        volume_ratio=n_p / n_r if n_r else None,
    )


def added_path_length_mm(prediction: Volume, reference: Volume, tolerance_mm: float = 0.0) -> float:
    """Return the length of the reference's contour that the prediction lacks, over all slices.

    The measure is that of Vaassen et al. (Physics and Imaging in Radiation Oncology 2020), which has no tolerance,
    counted in voxel edges and in millimetres. An edge of the reference counts with its length where its centre is
    farther than the tolerance from the centre of every edge of the prediction in that slice.

    Args:
        prediction: mask; what is not 0 is inside.
        reference: mask on the same grid.
        tolerance_mm: by how much a contour may be off and still count as drawn; at 0 each edge must be the
            prediction's, too.

    Raises:
        InputError: if the two grids do not hold the same voxels.
    """
    from scipy.spatial import cKDTree  # slow to import

    prediction, reference = crop_to_content(align(prediction, reference), reference)
    prediction, reference = prediction.canonical(), reference.canonical()
    limit_mm = tolerance_mm + ROUNDING_MM
    # Slices are set so far apart that no edge is within reach of one in another slice.
    apart_mm = 2 * limit_mm + 1
    wanted = _edges(reference.array != 0, reference.spacing_mm, apart_mm)
    there = np.concatenate(_edges(prediction.array != 0, reference.spacing_mm, apart_mm))
    # Edges between two rows run along the columns, and the other way round.
    lengths_mm = reference.spacing_mm[2], reference.spacing_mm[1]
    if not len(there):
        return sum(len(centres) * length for centres, length in zip(wanted, lengths_mm, strict=True))
    tree = cKDTree(there, balanced_tree=False, compact_nodes=False)
    total_mm = 0.0
    for centres, length_mm in zip(wanted, lengths_mm, strict=True):
        distances_mm, _ = tree.query(centres, distance_upper_bound=2 * limit_mm)
        total_mm += int(np.count_nonzero(distances_mm > limit_mm)) * length_mm
    return total_mm


def surface_distances(
    prediction: BoolArray, reference: BoolArray, spacing_mm: tuple[float, float, float]
) -> SurfaceDistances:
    """Measure how far the faces of two surfaces are from each other.

    Args:
        prediction: mask [slice, row, column], not empty.
        reference: mask of the same shape, not empty.
        spacing_mm: along slice, row and column.
    """
    from scipy.spatial import cKDTree  # slow to import

    p, p_area = _faces(prediction, spacing_mm)
    r, r_area = _faces(reference, spacing_mm)
    # Points on a lattice come evenly spread: an unbalanced tree is as quick to search, and quicker to build.
    to_r, _ = cKDTree(r, balanced_tree=False, compact_nodes=False).query(p)
    to_p, _ = cKDTree(p, balanced_tree=False, compact_nodes=False).query(r)
    return SurfaceDistances(to_r, p_area, to_p, r_area)


def average_surface_distance_mm(distances: SurfaceDistances) -> float:
    """Average the distances of both surfaces: Σ area · distance / Σ area over the faces of both."""
    weighted = np.dot(distances.prediction_mm, distances.prediction_area_mm2) + np.dot(
        distances.reference_mm, distances.reference_area_mm2
    )
    return float(weighted / (distances.prediction_area_mm2.sum() + distances.reference_area_mm2.sum()))


def percentile_surface_distance_mm(distances: SurfaceDistances, percent: float) -> float:
    """Return the larger of both surfaces' area-weighted percentiles; at 100 the Hausdorff distance.

    The percentile of a surface is the smallest of its distances within which at least `percent` of its area
    lies.
    """
    return max(
        _weighted_percentile(distances.prediction_mm, distances.prediction_area_mm2, percent),
        _weighted_percentile(distances.reference_mm, distances.reference_area_mm2, percent),
    )


def surface_dice(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Return the share of both surfaces' area whose distance is at most `tolerance_mm`."""
    limit = tolerance_mm + ROUNDING_MM
    near_mm2 = (
        distances.prediction_area_mm2[distances.prediction_mm <= limit].sum()
        + distances.reference_area_mm2[distances.reference_mm <= limit].sum()
    )
    return float(near_mm2 / (distances.prediction_area_mm2.sum() + distances.reference_area_mm2.sum()))


def align(
    prediction: Volume,
    reference: Volume,
    prediction_name: str = "the prediction",
    reference_name: str = "the reference",
) -> Volume:
    """Bring a prediction to the axis order and directions of its reference. A view, not a copy.

    Raises:
        InputError: if the two grids do not hold the same voxels; both are named.
    """
    try:
        return prediction.reordered_like(reference.geometry)
    except InputError:
        raise InputError(
            f"{prediction_name}: its grid is not that of its reference: "
            f"{difference(prediction.geometry, reference.geometry, reference_name)}. Resample the prediction to "
            "that grid, or predict on the scan that the reference was drawn on"
        ) from None


def on_grid(labels: Volume, grid: Geometry, name: str, grid_name: str) -> Volume:
    """Bring a label map to the axis order and directions of its scan. A view, not a copy.

    Raises:
        InputError: if its grid does not hold the scan's voxels; both are named.
    """
    try:
        return labels.reordered_like(grid)
    except InputError:
        raise InputError(
            f"{name}: its grid is not that of its scan: {difference(labels.geometry, grid, grid_name)}. Choose "
            "the scan that it belongs to, or resample it to that grid"
        ) from None


def crop_to_content(first: Volume, second: Volume) -> tuple[Volume, Volume]:
    """Cut two volumes of one grid to the smallest box that holds all voxels of either that are not 0."""
    start, stop = [], []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        used = np.flatnonzero(first.array.any(axis=others) | second.array.any(axis=others))
        start.append(int(used[0]) if used.size else 0)
        stop.append(int(used[-1]) + 1 if used.size else 1)
    shape = [high - low for low, high in zip(start, stop, strict=True)]
    return first.crop(start, shape), second.crop(start, shape)


def _shift_mm(prediction: Volume, reference: Volume) -> tuple[float, float, float]:
    """Return how far the centre of one mask lies from that of another on the same grid, in LPS millimetres."""
    apart = np.argwhere(prediction.array).mean(axis=0) - np.argwhere(reference.array).mean(axis=0)
    # What is less than a picometre is rounding, and must not carry a sign.
    left, back, head = np.round(reference.geometry.affine[:3, :3] @ apart, 9) + 0.0
    return float(left), float(back), float(head)


def _edges(
    mask: BoolArray, spacing_mm: tuple[float, float, float], apart_mm: float
) -> tuple[FloatArray, FloatArray]:
    """Return the centres [edges, 3] of a mask's edges: those between two rows, and those between two columns.

    Args:
        mask: [slice, row, column].
        spacing_mm: along slice, row and column.
        apart_mm: how far from each other slices shall be set.
    """
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    scale = np.array([apart_mm, *spacing_mm[1:]])
    centres: list[FloatArray] = []
    for axis in (1, 2):
        index = np.argwhere(np.diff(padded, axis=axis)).astype(np.float64)
        index[:, axis] += 0.5
        centres.append(index * scale)
    return centres[0], centres[1]


def _faces(mask: BoolArray, spacing_mm: tuple[float, float, float]) -> tuple[FloatArray, FloatArray]:
    """Return the centres in mm [faces, 3] and areas in mm² [faces] of a mask's faces."""
    padded = np.pad(mask, 1)
    centres: list[FloatArray] = []
    areas: list[FloatArray] = []
    for axis in range(3):
        index = np.argwhere(np.diff(padded, axis=axis)).astype(np.float64)
        index[:, axis] += 0.5
        centres.append(index * spacing_mm)
        area_mm2 = float(np.prod([s for a, s in enumerate(spacing_mm) if a != axis]))
        areas.append(np.full(len(index), area_mm2))
    return np.concatenate(centres), np.concatenate(areas)


def _weighted_percentile(values: FloatArray, weights: FloatArray, percent: float) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    # Summing rounds: a share that is reached exactly must count as reached.
    wanted = percent / 100 * reached[-1] * (1 - 1e-12)
    return float(values[order[min(int(np.searchsorted(reached, wanted)), len(order) - 1)]])
