"""From the slices of one scan to the grid that they make up: even, axial and without gaps, or refused.

What is refused for its positions alone can be allowed: slices that are missing or uneven, and a tilted gantry. The
scan is then resampled by the true position of each slice, and every such repair is a note.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median_low

import numpy as np
from numpy.typing import NDArray

from metricunet.errors import InputError, argument
from metricunet.files.dicom.resample import GapFilling, Untilting
from metricunet.files.dicom.slice import SliceHeader
from metricunet.volume import SHEAR_TOLERANCE, FloatArray, Geometry

#: The slice normal, and the rows and columns, may lie off the patient's axes by this much.
AXIAL_TOLERANCE_DEGREES = 1.0
#: No gantry leans further than this; what does is a sagittal, coronal or oblique reformat.
LARGEST_TILT_DEGREES = 35.0
#: A slice may lie this far from its place on the even grid: rounding of positions in the files, not more.
POSITION_TOLERANCE_MM = 0.05
#: Two slices nearer to each other than this lie at one position.
DUPLICATE_TOLERANCE_MM = 0.05
#: A gap of more than this many slice distances means that slices are missing, not that spacing is uneven.
MISSING_SLICE_RATIO = 1.5
#: A wider gap is not bridged, whatever is allowed: organs begin and end within it.
LARGEST_GAP_MM = 20.0
#: Of all distances between slices this share may be short by mistake before the next longer counts as regular.
IRREGULAR_SHARE = 0.25
#: Of many gaps in one scan the first are told one by one.
MOST_NOTES = 4
#: Room for rounding in the tolerances above.
ROUNDING_MM = 1e-6

_TOLERANCE = POSITION_TOLERANCE_MM + ROUNDING_MM
_EVEN = f"differences up to {POSITION_TOLERANCE_MM} mm are accepted"


@dataclass(frozen=True)
class Allow:
    """Faults of position that are repaired rather than refused.

    Attributes:
        gaps: slices that are missing, or lie unevenly.
        tilt: slices that lean, or are shifted evenly against each other, as those of a tilted gantry.
        offered: the command has options for these; a refusal then advises them.
    """

    gaps: bool = False
    tilt: bool = False
    offered: bool = True

    @property
    def gaps_advice(self) -> str:
        """The end of a refusal for gaps."""
        return (
            f", or interpolate between the slices there are with {argument('allow_gaps', True)}"
            if self.offered
            else ""
        )

    @property
    def tilt_advice(self) -> str:
        """The end of a refusal for a tilt."""
        return f", or resample to axial slices with {argument('allow_tilt', True)}" if self.offered else ""


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices in order, feet to head, and the grid that they are read on.

    Attributes:
        slices: the slices, from feet to head.
        geometry: the even grid.
        resampling: how the slices are brought onto the grid; None where they are the grid's slices.
        notes: a sentence for each repair.
    """

    slices: tuple[SliceHeader, ...]
    geometry: Geometry
    resampling: GapFilling | Untilting | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Fault:
    """What keeps slices from lying evenly: the refusal, and the note where it is repaired instead."""

    refusal: str
    note: str


def stack_slices(slices: Sequence[SliceHeader], allow: Allow) -> Stack:
    """Sort at least three slices of one scan by position, and make a grid of them.

    Raises:
        InputError: slices that are not axial, doubled, missing, uneven or shifted within their plane, as far as
            that is not allowed; two acquisitions interleaved.
    """
    normal, tilt_degrees = _normal(slices[0], allow)
    ordered = sorted(slices, key=lambda s: (float(s.position_mm @ normal), str(s.path), s.frame or 0))
    positions = np.array([s.position_mm for s in ordered])
    heights = positions @ normal
    heights = heights - heights[0]
    _check_acquisitions(ordered)
    _check_duplicates(ordered, heights)
    faults = _gap_faults(ordered, heights, allow)
    nodes, step_mm = _even_nodes(heights) if faults else (None, float(heights[-1] / (len(ordered) - 1)))
    faults += _skipped(ordered, heights, step_mm, allow)
    if faults and not allow.gaps:
        raise InputError(faults[0].refusal)
    notes = _notes(faults)
    lean, sheared_degrees = _lean(ordered, positions, heights, normal, allow)
    if tilt_degrees > AXIAL_TOLERANCE_DEGREES or sheared_degrees > 0:
        stack = _untilted(ordered, positions, normal, step_mm)
        what = (
            f"are tilted by {tilt_degrees:.1f} degrees from axial"
            if tilt_degrees > AXIAL_TOLERANCE_DEGREES
            else f"are sheared by {sheared_degrees:.1f} degrees, as from a tilted gantry"
        )
        notes.append(
            f"the slices {what}; the scan was resampled to axial slices "
            f"{stack.geometry.spacing_mm[0]:.3f} mm apart"
        )
        return Stack(tuple(ordered), stack.geometry, stack, tuple(notes))
    count = len(ordered) if nodes is None else round(float(nodes[-1])) + 1
    geometry = _grid(ordered, normal, step_mm, count, lean)
    return Stack(tuple(ordered), geometry, None if nodes is None else GapFilling(geometry, nodes), tuple(notes))


def _notes(faults: Sequence[_Fault]) -> list[str]:
    notes = [fault.note for fault in faults[:MOST_NOTES]]
    more = len(faults) - len(notes)
    return [*notes, f"there are {more} more gaps like these"] if more else notes


def _normal(header: SliceHeader, allow: Allow) -> tuple[FloatArray, float]:
    """The unit normal of the slices, towards the head, and its angle with the head-foot axis in degrees.

    Raises:
        InputError: if the slices are not axial, or rows and columns do not follow the patient's axes.
    """
    rows_run, columns_run = header.orientation
    normal: FloatArray = np.cross(rows_run, columns_run)
    normal /= np.linalg.norm(normal)
    normal = normal if normal[2] > 0 else -normal
    tilt = _degrees(normal[2])
    found = f"{header.location}: ImageOrientationPatient tilts the slices by {tilt:.1f} degrees from axial"
    if tilt > LARGEST_TILT_DEGREES:
        raise InputError(
            f"{found}, at most {AXIAL_TOLERANCE_DEGREES:g} is accepted (a sagittal, coronal or oblique reformat); "
            "export an axial reconstruction"
        )
    if tilt > AXIAL_TOLERANCE_DEGREES and not allow.tilt:
        raise InputError(
            f"{found}, at most {AXIAL_TOLERANCE_DEGREES:g} is accepted (gantry tilt, or an oblique reformat); "
            f"export an axial reconstruction{allow.tilt_advice}"
        )
    # With the tilt undone the shortest way, what is left is a turn within the plane.
    upright = _rotation_between(normal, np.array([0.0, 0.0, 1.0]))
    turn = max(_degrees((upright @ rows_run)[0]), _degrees((upright @ columns_run)[1]))
    if turn > AXIAL_TOLERANCE_DEGREES:
        raise InputError(
            f"{header.location}: ImageOrientationPatient turns the image by {turn:.1f} degrees in its plane, "
            f"at most {AXIAL_TOLERANCE_DEGREES:g} is accepted; export slices whose rows run left-right "
            "and whose columns run front-back"
        )
    return normal, tilt


def _degrees(cosine: float) -> float:
    return float(np.degrees(np.arccos(min(1.0, abs(float(cosine))))))


def _rotation_between(a: FloatArray, b: FloatArray) -> FloatArray:
    """The smallest rotation that takes unit vector a to unit vector b, less than a right angle away."""
    axis = np.cross(a, b)
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.asarray(np.eye(3) + cross + cross @ cross / (1 + float(a @ b)), dtype=np.float64)


def _check_acquisitions(slices: Sequence[SliceHeader]) -> None:
    """Refuse acquisitions that take turns: each must be one block of neighbouring slices."""
    stated = [s for s in slices if s.acquisition]
    blocks = [number for number, _ in groupby(stated, key=lambda s: s.acquisition)]
    if len(blocks) == len(set(blocks)):
        return
    usual = Counter(s.acquisition for s in stated).most_common(1)[0][0]
    odd = next(s for s in stated if s.acquisition != usual)
    model = next(s for s in stated if s.acquisition == usual)
    raise InputError(
        f"{odd.location}: AcquisitionNumber is {odd.acquisition}, but {usual} in {model.name} and its like above "
        "and below: two acquisitions are interleaved; export one of them"
    )


def _check_duplicates(slices: Sequence[SliceHeader], heights: FloatArray) -> None:
    for k in np.flatnonzero(np.diff(heights) <= DUPLICATE_TOLERANCE_MM).tolist():
        raise InputError(
            f"{slices[k + 1].location}: lies at the position of {slices[k].name}; "
            "two acquisitions or phases share this series, export one of them"
        )


def _typical(gaps: FloatArray) -> float:
    """The regular distance of slices: the shortest that is not rare, so that no slice is lost on a grid of it."""
    shortest = float(np.quantile(gaps, IRREGULAR_SHARE, method="lower"))
    return float(np.median(gaps[np.abs(gaps - shortest) <= 0.2 * shortest]))


def _even_nodes(heights: FloatArray) -> tuple[FloatArray, float]:
    """Where slices lie on the even grid that suits them, in its steps, and the step in millimetres.

    The nodes are whole numbers where every slice lies on the grid, within the tolerance.
    """
    gaps = np.diff(heights)
    typical = _typical(gaps)
    index = np.concatenate([[0.0], np.cumsum(np.maximum(1.0, np.rint(gaps / typical)))])
    step_mm = float(heights[-1] / index[-1])
    if np.abs(heights - index * step_mm).max() <= _TOLERANCE:
        return index, step_mm
    count = max(1, round(float(heights[-1]) / typical))
    step_mm = float(heights[-1] / count)
    return heights / step_mm, step_mm


def _gap_faults(slices: Sequence[SliceHeader], heights: FloatArray, allow: Allow) -> list[_Fault]:
    """What keeps slices from lying one step above the other: a refusal and a note for each."""
    gaps = np.diff(heights)
    mean_mm = float(heights[-1] / len(gaps))
    places = np.arange(len(heights)) * mean_mm
    if np.abs(gaps - mean_mm).max() <= _TOLERANCE and np.abs(heights - places).max() <= _TOLERANCE:
        return []
    typical = median_low(gaps.tolist())
    bad = np.abs(gaps - np.maximum(1.0, np.rint(gaps / typical)) * typical) > _TOLERANCE
    faults: list[_Fault] = []
    if (k := _displaced(bad)) is not None:
        apart = f"{gaps.min():.2f} to {gaps.max():.2f} mm apart"
        at, beside = (k, k - 1) if k > 0 and bad[k - 1] else (k, k + 1)
        faults.append(
            _Fault(
                f"{_location(slices, at)}: lies {abs(heights[at] - heights[beside]):.2f} mm from "
                f"{slices[beside].name}, most slices {typical:.2f} mm from the next, {_EVEN}; "
                f"export a reconstruction with even spacing{allow.gaps_advice}",
                f"the slices lie {apart}; the scan was resampled to even slices by the position of each",
            )
        )
    for k in np.flatnonzero(gaps > MISSING_SLICE_RATIO * typical).tolist():
        missing = max(1, round(gaps[k] / typical) - 1)
        are = "slice is" if missing == 1 else "slices are"
        refusal = (
            f"{_location(slices, k)}: the next slice, {slices[k + 1].name}, lies {gaps[k]:.2f} mm further on, "
            f"expected {typical:.2f} mm: {missing} {are} missing; export the whole series"
        )
        if gaps[k] > LARGEST_GAP_MM:
            raise InputError(
                f"{refusal}, for gaps over {LARGEST_GAP_MM:g} mm are not bridged" if allow.gaps else refusal
            )
        low, high = (slices[j].position_mm[2] for j in (k, k + 1))
        faults.append(
            _Fault(
                f"{refusal}{allow.gaps_advice}",
                f"{missing} {are} missing between z = {low:.2f} and {high:.2f} mm; the gap was filled by "
                "interpolation",
            )
        )
    if not faults:
        k = int(np.abs(heights - places).argmax())
        off = abs(float(heights[k] - places[k]))
        faults.append(
            _Fault(
                f"{_location(slices, k)}: lies {off:.2f} mm off its place on an even grid of {mean_mm:.3f} mm, "
                f"{_EVEN}; export a reconstruction with even spacing{allow.gaps_advice}",
                "the slices lie unevenly; the scan was resampled to even slices by the position of each",
            )
        )
    return faults


def _displaced(bad: NDArray[np.bool_]) -> int | None:
    """The first slice that lies off the others' steps: both its distances are bad, or the only one at an end."""
    last = len(bad)
    for k in range(1, last):
        if bad[k - 1] and bad[k]:
            return k
    if not bad.any():
        return None
    k = int(np.flatnonzero(bad)[0])
    return 0 if k == 0 else last if k == last - 1 else k


def _skipped(slices: Sequence[SliceHeader], heights: FloatArray, step_mm: float, allow: Allow) -> list[_Fault]:
    """Slices of a series that lie evenly, but at a multiple of the distance that their files state."""
    stated = [s.stated_step_mm for s in slices if s.stated_step_mm]
    if not stated or np.ptp(stated) > _TOLERANCE:
        return []
    skipped = round(step_mm / stated[0]) - 1
    if skipped < 1 or abs(step_mm - (skipped + 1) * stated[0]) > _TOLERANCE:
        return []
    return [
        _Fault(
            f"{_location(slices, 0)}: SpacingBetweenSlices is {stated[0]:g} mm, but the slices lie {step_mm:.2f} "
            f"mm apart: {skipped} of every {skipped + 1} are missing; export the whole series{allow.gaps_advice}",
            f"{skipped} of every {skipped + 1} slices are missing: they lie {step_mm:.2f} mm apart, and their "
            f"files state {stated[0]:g} mm",
        )
    ]


def _lean(
    slices: Sequence[SliceHeader], positions: FloatArray, heights: FloatArray, normal: FloatArray, allow: Allow
) -> tuple[FloatArray, float]:
    """How far slices shift within their plane for each millimetre of height, and the angle of a shear in degrees.

    A lean within the volume's own tolerance is kept, so that both ends are exact; its angle is 0.

    Raises:
        InputError: a slice that is shifted by itself, or a shear that is not allowed.
    """
    offsets = positions - positions[0] - heights[:, None] * normal
    lean: FloatArray = offsets[-1] / heights[-1]
    # More can only be the rounding of a short stack, or is refused: there the normal is the truth.
    lean = lean if np.linalg.norm(lean) <= 0.5 * SHEAR_TOLERANCE else np.zeros(3)
    if np.linalg.norm(offsets - heights[:, None] * lean, axis=1).max() <= _TOLERANCE:
        return lean, 0.0
    slope, start = _line(heights, offsets)
    off = np.linalg.norm(offsets - start - heights[:, None] * slope, axis=1)
    k = int(off.argmax())
    if off[k] > _TOLERANCE:
        raise InputError(
            f"{_location(slices, k)}: is shifted by {off[k]:.2f} mm within its plane, at most "
            f"{POSITION_TOLERANCE_MM} mm is accepted; export the series again"
        )
    degrees = float(np.degrees(np.arctan(np.linalg.norm(slope))))
    found = f"{_location(slices, 0)}: each slice is shifted within its plane against the one below, sheared by "
    if degrees > LARGEST_TILT_DEGREES:
        raise InputError(
            f"{found}{degrees:.1f} degrees, more than any gantry tilts; export an axial reconstruction"
        )
    if not allow.tilt:
        raise InputError(
            f"{found}{degrees:.1f} degrees, as from a tilted gantry; "
            f"export an axial reconstruction{allow.tilt_advice}"
        )
    return slope, degrees


def _line(heights: FloatArray, offsets: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The line that most offsets follow: medians over all pairs (Theil and Sen), so that few do not count."""
    first, second = np.triu_indices(len(heights), k=1)
    run = heights[second] - heights[first]
    slope = np.array([np.median((column[second] - column[first]) / run) for column in offsets.T])
    return slope, np.median(offsets - heights[:, None] * slope, axis=0)


def _location(slices: Sequence[SliceHeader], k: int) -> str:
    return f"{slices[k].location} (slice {k + 1} of {len(slices)})"


def _grid(
    slices: Sequence[SliceHeader], normal: FloatArray, step_mm: float, count: int, lean: FloatArray
) -> Geometry:
    first = slices[0]
    rows_run, columns_run = first.orientation
    row_spacing, column_spacing = first.pixel_spacing_mm
    affine = np.eye(4)
    affine[:3, 0] = step_mm * (normal + lean)
    # PixelSpacing is the distance between rows, then between columns; a column runs along increasing rows.
    affine[:3, 1] = columns_run * row_spacing
    affine[:3, 2] = rows_run * column_spacing
    affine[:3, 3] = first.position_mm
    return Geometry((count, first.rows, first.columns), affine)


def _untilted(
    slices: Sequence[SliceHeader], positions: FloatArray, normal: FloatArray, step_mm: float
) -> Untilting:
    """An axial grid of the slices' own spacing that holds every pixel of every slice."""
    first = slices[0]
    rows_run, columns_run = (v / np.linalg.norm(v) for v in first.orientation)
    row_spacing, column_spacing = first.pixel_spacing_mm
    across, down = rows_run * column_spacing * (first.columns - 1), columns_run * row_spacing * (first.rows - 1)
    corners = np.concatenate([positions + i * across + j * down for i in (0, 1) for j in (0, 1)])
    low, high = corners.min(axis=0), corners.max(axis=0)
    # Rows and columns keep the sense in which they are stored.
    x_sign, y_sign = np.sign(rows_run[0]), np.sign(columns_run[1])
    directions = np.array([[0.0, 0.0, x_sign], [0.0, y_sign, 0.0], [1.0, 0.0, 0.0]])
    # Slices of a tilted gantry lie further apart along the table than across their planes.
    spacing = np.array([step_mm / normal[2], row_spacing, column_spacing])
    extent = np.array([high[2] - low[2], high[1] - low[1], high[0] - low[0]])
    shape = np.ceil(extent / spacing - 1e-6).astype(int) + 1
    origin = (low[0] if x_sign > 0 else high[0], low[1] if y_sign > 0 else high[1], low[2])
    return Untilting(
        geometry=Geometry.from_parts(shape.tolist(), spacing.tolist(), origin, directions),
        positions_mm=positions,
        rows_run=rows_run,
        columns_run=columns_run,
        pixel_spacing_mm=(row_spacing, column_spacing),
        reach_mm=0.5 * step_mm,
    )
