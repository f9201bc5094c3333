"""DICOM segmentations in, from any program: each frame goes to the slice of the scan on which it lies."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.utils import iter_pixels

from metricunet.errors import InputError, unlike_limits
from metricunet.files.dicom.codestream import has_codestreams
from metricunet.files.dicom.decode import frames_apart
from metricunet.files.dicom.file import read_dataset, state_syntax
from metricunet.files.dicom.header import DAMAGE, one_line, optional_number, text_of
from metricunet.files.dicom.series import CtSeries
from metricunet.volume import SAME_GRID_TOLERANCE_MM, FloatArray, Geometry, Volume

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"
#: A voxel of a fractional segment belongs to it from this probability (or share) on.
FRACTION = 0.5
#: Slices that lie less than so many times as far apart as the scan's are none of a series with thicker slices.
SAME_STEP = 1.5

_BAD = (*DAMAGE, RuntimeError)


@dataclass(frozen=True, eq=False)
class _Frame:
    """Where one frame lies, and the segment that it belongs to (None: its values are segment numbers)."""

    index: int
    segment: int | None
    #: LPS position of the centre of pixel [0, 0].
    position_mm: FloatArray
    #: LPS step to the next row and to the next column, as columns: [3, 2].
    steps_mm: FloatArray


@dataclass(frozen=True, eq=False)
class Segment:
    """A segment as read: its number, its label, and its mask, uint8 of 0 and 1 on the scan's own grid."""

    number: int
    name: str
    mask: Volume


@dataclass(frozen=True)
class SegDescription:
    """What a segmentation says of itself.

    Attributes:
        names: labels of its segments, in the order of the file; one may occur twice.
        frame_uid: frame of reference, if it states one.
        series_uids: SeriesInstanceUID of each series that it refers to.
    """

    names: tuple[str, ...]
    frame_uid: str | None
    series_uids: tuple[str, ...]


def describe_seg(path: Path) -> SegDescription:
    """Read which segments a segmentation has, and what it was made on, but no voxel.

    Raises:
        InputError: not a DICOM segmentation, or damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd but harmless values in others' files
        dataset = _open(path, stop_before_pixels=True)
        return SegDescription(
            tuple(_segments(path, dataset).values()),
            text_of(dataset, "FrameOfReferenceUID") or None,
            _referenced_series(dataset),
        )


def read_seg(path: Path, series: CtSeries, names: Collection[str] | None = None) -> dict[str, Volume]:
    """Read the masks of a segmentation, binary, fractional or label map, on a scan's own grid.

    A fractional segment counts from 0.5 on. Slices without a frame are empty, and so is a segment without any.
    Frames may be smaller than the slices, and their rows and columns may run another way, but their pixels must
    be the scan's pixels: nothing is resampled.

    Args:
        path: the file.
        series: the scan that it was made on.
        names: the segments to read, by label; all by default.

    Returns:
        For each segment's label its mask, uint8 of 0 and 1, on `series.geometry`.

    Raises:
        InputError: as `read_segments`; none of a name that is asked for, or two.
    """
    found = read_segments(path, series, names)
    masks: dict[str, Segment] = {}
    for one in found:
        other = masks.setdefault(one.name, one)
        if other is not one:
            raise InputError(
                f"{path}: segments {other.number} and {one.number} are both named '{one.name}'; give each a name "
                "of its own"
            )
    return {name: one.mask for name, one in masks.items()}


def read_segments(path: Path, series: CtSeries, names: Collection[str] | None = None) -> tuple[Segment, ...]:
    """Read the segments of a segmentation, in the order of the file, as `read_seg` does; a label may occur twice.

    Args:
        path: the file.
        series: the scan that it was made on.
        names: the segments to read, by label; all by default.

    Raises:
        InputError: not a DICOM segmentation, damaged, none of a name, in another frame of reference than
            `series`, with voxels on slices or a grid that the scan does not have, or made on another series with
            thicker slices.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd but harmless values in others' files
        dataset = _open(path)
        segments = _segments(path, dataset)
        for name in names or ():
            if name not in segments.values():
                raise InputError(
                    f"{path}: has no segment '{name}'; it has {', '.join(segments.values()) or 'none'}"
                )
        _check_frame_of_reference(path, dataset, series)
        wanted = {number: name for number, name in segments.items() if names is None or name in names}
        masks = {number: np.zeros(series.geometry.shape, dtype=np.uint8) for number in wanted}
        try:
            _fill(path, dataset, series.geometry, masks)
        except InputError:
            raise
        except _BAD as error:
            raise _damaged(path, error) from error
        _check_no_slices_between(path, dataset, series, masks.values())
    return tuple(Segment(n, name, Volume(masks[n], series.geometry)) for n, name in wanted.items())


def _damaged(path: Path, error: BaseException) -> InputError:
    return InputError(f"{path}: the segmentation is damaged ({one_line(error)}); copy or export it again")


def _open(path: Path, **options: Any) -> Dataset:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        dataset = read_dataset(path, **options)
        state_syntax(dataset)
        kind = text_of(dataset, "SOPClassUID")
        modality = text_of(dataset, "Modality") or "unknown"
    except InvalidDicomError as error:
        raise InputError(f"{path}: is not a DICOM file, expected a segmentation (SEG)") from error
    except _BAD as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}); copy or export it again") from error
    if kind not in (SEGMENTATION, LABEL_MAP_SEGMENTATION):
        what = "a surface segmentation" if modality == "SEG" else f"of modality {modality}"
        raise InputError(f"{path}: is {what}, expected a segmentation of voxels (SEG)")
    return dataset


def _segments(path: Path, dataset: Dataset) -> dict[int, str]:
    """Return the label of each segment number; the background of a label map is no segment."""
    found: dict[int, str] = {}
    try:
        for item in dataset.get("SegmentSequence") or []:
            number = int(item.SegmentNumber)
            label = text_of(item, "SegmentLabel") or f"segment {number}"
            if number == 0 and text_of(dataset, "SOPClassUID") == LABEL_MAP_SEGMENTATION:
                continue
            if number in found:
                raise InputError(f"{path}: two segments have the number {number}; export it again")
            found[number] = label
    except InputError:
        raise
    except _BAD as error:
        raise _damaged(path, error) from error
    if not found:
        raise InputError(f"{path}: describes no segment (SegmentSequence is missing); export it again")
    return found


def _check_frame_of_reference(path: Path, dataset: Dataset, series: CtSeries) -> None:
    stated, wanted = text_of(dataset, "FrameOfReferenceUID"), series.frame_of_reference_uid
    if stated and stated != wanted:
        raise InputError(
            f"{path}: frame of reference is {stated}, but {wanted} in series {series.series_uid}; "
            "choose the segmentation that was made on this scan, or register the two first"
        )
    if not stated and series.series_uid not in _referenced_series(dataset):
        raise InputError(
            f"{path}: states no frame of reference and does not refer to series {series.series_uid}, so its "
            "place is unknown; choose the segmentation that was made on this scan"
        )


def _check_no_slices_between(
    path: Path, dataset: Dataset, series: CtSeries, masks: Iterable[NDArray[np.uint8]]
) -> None:
    """Refuse a segmentation of a series with thicker slices than the scan's, both of one acquisition.

    Each of its frames lies on a slice of the scan, and the slices between would be empty.
    """
    named = _referenced_series(dataset)
    own_mm = series.geometry.spacing_mm[0]
    if not named or series.series_uid in named or 0 < _stated_step_mm(dataset) < SAME_STEP * own_mm:
        return
    for mask in masks:
        gaps = np.diff(np.flatnonzero(mask.any(axis=(1, 2))))
        if len(gaps) and gaps.min() > 1:
            raise InputError(
                f"{path}: was made on series {named[0]}, with slices {gaps.min() * own_mm:.4g} mm apart or more "
                f"where those of series {series.series_uid} lie {own_mm:.4g} mm apart, so slices between them "
                "would stay empty; choose the scan that it was made on"
            )


def _stated_step_mm(dataset: Dataset) -> float:
    """Return how far apart a segmentation says that its slices lie, else how thick they are; 0 for neither."""
    shared, each = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
    for group in (*(dataset.get(shared) or [])[:1], *(dataset.get(each) or [])[:1]):
        for measures in (group.get("PixelMeasuresSequence") or [])[:1]:
            step = optional_number(measures, "SpacingBetweenSlices") or optional_number(measures, "SliceThickness")
            if step:
                return step
    return 0.0


def _referenced_series(dataset: Dataset) -> tuple[str, ...]:
    named = (text_of(item, "SeriesInstanceUID") for item in dataset.get("ReferencedSeriesSequence") or [])
    return tuple(uid for uid in named if uid)


def _fill(path: Path, dataset: Dataset, geometry: Geometry, masks: dict[int, NDArray[np.uint8]]) -> None:
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows * columns > geometry.shape[1] * geometry.shape[2]:
        raise InputError(
            f"{path}: its frames have {rows} x {columns} pixels, more than the {geometry.shape[1]} x "
            f"{geometry.shape[2]} of the scan; choose the segmentation that was made on this scan"
        )
    kind = text_of(dataset, "SegmentationType") or "nothing"
    frames = [f for f in _frames(path, dataset, kind) if f.segment is None or f.segment in masks]
    fractional = kind == "FRACTIONAL"
    lowest = FRACTION * int(dataset.MaximumFractionalValue) if fractional else 1
    if not frames:
        return
    for frame, values in zip(frames, _pixels(path, dataset, [frame.index for frame in frames]), strict=True):
        if values.shape != (rows, columns):
            raise InputError(f"{path}: frame {frame.index + 1} has shape {values.shape}; export it again")
        if frame.segment is not None:
            _paint(path, frame, values >= lowest, geometry, masks[frame.segment])
            continue
        for number in np.unique(values).tolist():
            if number in masks:
                _paint(path, frame, values == number, geometry, masks[number])


def _pixels(path: Path, dataset: Dataset, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
    """Yield the stored values of frames [row, column], one frame at a time."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if has_codestreams(dataset.file_meta):
        yield from frames_apart(path, [index + 1 for index in indices])
        return
    if int(dataset.BitsAllocated) != 1 or syntax.is_encapsulated:
        yield from iter_pixels(dataset, raw=True, indices=indices)
        return
    if not syntax.is_little_endian:
        raise InputError(
            f"{path}: transfer syntax {syntax.name} is not supported for segmentations; export it again"
        )
    # Frames of single bits follow each other without a gap, so that most begin within a byte. pydicom cuts such
    # frames off where rows x columns is no multiple of 8.
    rows, columns, data = int(dataset.Rows), int(dataset.Columns), dataset.PixelData
    size = rows * columns
    if len(data) * 8 < size * int(dataset.NumberOfFrames):
        raise InputError(f"{path}: holds fewer pixels than its frames need; copy or export it again")
    for index in indices:
        first, last = index * size, (index + 1) * size
        packed = np.frombuffer(data[first // 8 : -(-last // 8)], dtype=np.uint8)
        bits = np.unpackbits(packed, bitorder="little")[first % 8 :][:size]
        yield bits.reshape(rows, columns)


def _frames(path: Path, dataset: Dataset, kind: str) -> Iterator[_Frame]:
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise InputError(f"{path}: SegmentationType is {kind}, expected BINARY, FRACTIONAL or LABELMAP")
    items = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    if len(items) != int(dataset.NumberOfFrames):
        raise InputError(
            f"{path}: places {len(items)} frames of {dataset.NumberOfFrames} (PerFrameFunctionalGroupsSequence); "
            "export it again, each frame with its position"
        )
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]

    def group(item: Dataset, name: str) -> Dataset:
        found = item.get(name) or shared.get(name)
        if not found:
            raise InputError(f"{path}: {name} is missing; export the segmentation again from its source")
        first: Dataset = found[0]
        return first

    for index, item in enumerate(items):
        segment = None
        if kind != "LABELMAP":
            segment = int(group(item, "SegmentIdentificationSequence").ReferencedSegmentNumber)
        position = _numbers(path, group(item, "PlanePositionSequence"), "ImagePositionPatient", 3)
        turn = _numbers(path, group(item, "PlaneOrientationSequence"), "ImageOrientationPatient", 6).reshape(2, 3)
        spacing = _numbers(path, group(item, "PixelMeasuresSequence"), "PixelSpacing", 2)
        # The first direction is that of a row, along which columns follow each other.
        yield _Frame(index, segment, position, np.stack([turn[1] * spacing[0], turn[0] * spacing[1]], axis=1))


def _numbers(path: Path, item: Dataset, keyword: str, count: int) -> FloatArray:
    found: Any = item.get(keyword)
    numbers = np.array([float(value) for value in (found if found is not None else [])])
    if numbers.size != count or not np.isfinite(numbers).all():
        raise InputError(
            f"{path}: {keyword} is {numbers[:8].tolist()}, expected {count} finite numbers; export it again"
        )
    return numbers


def _paint(
    path: Path, frame: _Frame, mask: NDArray[np.bool_], geometry: Geometry, target: NDArray[np.uint8]
) -> None:
    """Add a frame's mask to the slice on which it lies."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return
    at = f"{path}: frame {frame.index + 1} at z = {frame.position_mm[2]:.2f} mm"
    corners = np.array([[r, c] for r in (0, mask.shape[0] - 1) for c in (0, mask.shape[1] - 1)])
    corners_mm = frame.position_mm + corners @ frame.steps_mm.T
    origin = geometry.to_index(frame.position_mm)
    steps = np.rint(geometry.to_index(frame.position_mm + frame.steps_mm.T) - origin).astype(int)
    # Each axis of the frame runs along one axis of the slice, pixel by pixel.
    if (
        steps[:, 0].any()
        or (np.abs(steps).sum(axis=1) != 1).any()
        or (np.abs(steps[:, 1:]).sum(axis=0) != 1).any()
    ):
        raise InputError(
            f"{at}: its pixels have another size or direction than those of the scan; choose the scan it was "
            "made on, or resample it to this one"
        )
    placed = np.rint(origin).astype(int) + corners @ steps
    off_mm = float(np.linalg.norm(geometry.to_world(placed) - corners_mm, axis=1).max())
    if off_mm > SAME_GRID_TOLERANCE_MM:
        raise InputError(
            f"{at}: its pixels lie up to {unlike_limits(off_mm, SAME_GRID_TOLERANCE_MM)} mm beside those of the "
            f"scan, at most {SAME_GRID_TOLERANCE_MM} mm is accepted; choose the scan it was made on, or resample "
            "it to this one"
        )
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    begin, end = placed[0] + np.array([[rows[0], columns[0]], [rows[-1], columns[-1]]]) @ steps
    low, high = np.minimum(begin, end), np.maximum(begin, end) + 1
    if low.min() < 0 or (high > geometry.shape).any():
        where = "on a slice" if low[0] < 0 or high[0] > geometry.shape[0] else "in a part of the slice"
        raise InputError(f"{at}: has voxels {where} that the scan does not have; choose the scan it was made on")
    box = box.T if steps[0, 2] else box
    box = box[:: -1 if begin[1] > end[1] else 1, :: -1 if begin[2] > end[2] else 1]
    target[low[0], low[1] : high[1], low[2] : high[2]] |= box
