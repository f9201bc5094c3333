"""The regions of an open structure set. What is wrong with one of them is its own fault, and costs no other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from metricunet.errors import InputError
from metricunet.files.dicom.header import DAMAGE, one_line, text_of
from metricunet.files.rtstruct.model import RtStructure
from metricunet.volume import FloatArray

CLOSED_TYPES = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
#: What is known to enclose no area. Of any other type nobody knows, so nothing is to be left out for it.
OPEN_TYPES = ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR")
#: Coordinates beyond this are no place in a patient.
FARTHEST_MM = 1e6
#: Characters of a damaged number that a message shows.
LONGEST_SHOWN = 30


def structures_of(path: Path, dataset: Dataset, notes: list[str] | None = None) -> tuple[RtStructure, ...]:
    """Return the structures of an open set, in its order, each with its contours or its fault.

    Args:
        path: path of the structure set, for messages.
        dataset: the set.
        notes: gets a line for whatever is odd.

    Raises:
        Exception: one of `DAMAGE`, where the sequences themselves cannot be read.
    """
    return tuple(_structures(path, dataset, [] if notes is None else notes))


def numbers_of(items: Sequence[Dataset], keyword: str) -> list[int | None]:
    """For each item the whole number that an element holds; None where it is missing or none."""
    return [_number(item, keyword) for item in items]


def _structures(path: Path, dataset: Dataset, notes: list[str]) -> Iterator[RtStructure]:
    contours = _by_number(dataset, "ROIContourSequence")
    observations = _by_number(dataset, "RTROIObservationsSequence")
    nobodys = sum(_holds_contours(item) for item in contours.get(None, []))
    rois = list(dataset.get("StructureSetROISequence") or [])
    names = [_text(roi, "ROIName") for roi in rois]
    numbers = numbers_of(rois, "ROINumber")
    for name, count in Counter(names).items():
        if count > 1:
            notes.append(f"{path}: {count} ROIs are named '{name}'")
    for roi, name, number in zip(rois, names, numbers, strict=True):
        items = contours.get(number, []) if number is not None else []
        twins = [names[n] for n, other in enumerate(numbers) if other == number]
        at = f"{path}: ROI '{name}'"
        drawn: _Contours | None = None
        if number is None:
            fault = "has no ROINumber that can be read, so its contours cannot be found; export it again"
        elif len(twins) > 1 and any(_holds_contours(item) for item in items):
            told = " and ".join(f"'{twin}'" for twin in twins)
            fault = (
                f"has ROI number {number}, as have {len(twins)} ROIs ({told}), so nothing says whose the contours "
                "under this number are; give each a number of its own in the program that wrote the set"
            )
        elif not items and nobodys:
            fault = (
                f"has no contours under its number, {number}, and {nobodys} items of ROIContourSequence that hold "
                "contours name no ROI, so nothing says whether these are its own; export it again"
            )
        else:
            drawn, fault = _read_contours(items)
        if drawn is not None:
            if len(items) > 1:
                notes.append(
                    f"{at}: its contours lie in {len(items)} items of ROIContourSequence; they are joined"
                )
            for kind, count in drawn.others.items():
                notes.append(f"{at}: contours that enclose nothing ({kind}) are passed over: {count}")
            if not drawn.loops:
                notes.append(f"{at} has no contours")
        else:
            drawn = _Contours()
            notes.append(f"{at}: cannot be used: it {fault}")
        seen = [_text(item, "RTROIInterpretedType") for item in observations.get(number, [])]
        types = {kind for kind in seen if kind}
        yield RtStructure(
            number=number,
            name=name,
            contours=tuple(drawn.loops),
            image_uids=tuple(drawn.images),
            image_frames=tuple(drawn.frames),
            passed_over=tuple(drawn.others.items()),
            colour=next((colour for colour in map(_colour, items) if colour is not None), None),
            interpreted_type=types.pop() if len(types) == 1 and len(twins) == 1 else None,
            frame_of_reference_uid=_text(roi, "ReferencedFrameOfReferenceUID") or None,
            fault=fault,
        )
    if None in contours:
        notes.append(
            f"{path}: {len(contours[None])} items of ROIContourSequence name no ROI; they are passed over"
        )
    for number in contours:
        if number is not None and number not in numbers:
            notes.append(f"{path}: holds contours of ROI number {number}, which it does not name")


def _by_number(dataset: Dataset, keyword: str) -> dict[int | None, list[Dataset]]:
    """The items of a sequence by the ROI that they refer to; None for those that name none."""
    items = list(dataset.get(keyword) or [])
    found: dict[int | None, list[Dataset]] = {}
    for number, item in zip(numbers_of(items, "ReferencedROINumber"), items, strict=True):
        found.setdefault(number, []).append(item)
    return found


def _number(item: Dataset, keyword: str) -> int | None:
    try:
        return int(item[keyword].value)
    except DAMAGE:
        return None


def _text(item: Dataset, keyword: str) -> str:
    try:
        return text_of(item, keyword)
    except DAMAGE:
        return ""


def _colour(item: Dataset) -> tuple[int, int, int] | None:
    try:
        red, green, blue = (int(value) for value in item.get("ROIDisplayColor") or [])
    except DAMAGE:
        return None
    return (red, green, blue) if all(0 <= value <= 255 for value in (red, green, blue)) else None


def _holds_contours(item: Dataset) -> bool:
    try:
        return bool(item.get("ContourSequence"))
    except DAMAGE:
        return True


class _Contours:
    """What is drawn of one region: closed contours, the images that they name, and what encloses nothing."""

    def __init__(self) -> None:
        self.loops: list[FloatArray] = []
        self.images: list[str | None] = []
        self.frames: list[int | None] = []
        self.others: Counter[str] = Counter()


def _read_contours(items: Sequence[Dataset]) -> tuple[_Contours | None, str]:
    """Read the contours in all items of one region; without them, what is wrong with it."""
    try:
        drawn = _Contours()
        unknown: Counter[str] = Counter()
        for contour in (contour for item in items for contour in item.get("ContourSequence") or []):
            _add(contour, drawn, unknown)
    except EOFError:
        raise  # the file is cut off, which is no fault of one region
    except InputError as error:
        return None, str(error)
    except DAMAGE as error:
        return None, f"is damaged ({one_line(error)}); export it again"
    if unknown:
        kinds = ", ".join(f"{kind}: {count}" for kind, count in unknown.items())
        return None, (
            f"has contours of a type that DICOM does not define ({kinds}) beside {len(drawn.loops)} closed ones, "
            "so nothing says what area they enclose; export it with closed contours (CLOSED_PLANAR) on every slice"
        )
    return drawn, ""


def _add(contour: Dataset, drawn: _Contours, unknown: Counter[str]) -> None:
    kind = text_of(contour, "ContourGeometricType")
    if kind in OPEN_TYPES:
        drawn.others[kind] += 1
        return
    points = _points(contour)
    if len(points) > 1 and np.array_equal(points[0], points[-1]):
        points = points[:-1]
    if len(points) < 3:
        drawn.others["fewer than three points"] += 1
        return
    if kind not in CLOSED_TYPES:
        unknown[kind or "no type"] += 1
        return
    uid, frame = _image(contour)
    drawn.loops.append(points)
    drawn.images.append(uid)
    drawn.frames.append(frame)


def _image(contour: Dataset) -> tuple[str | None, int | None]:
    """The one image that a contour names, and its frame. Coordinates say where it is, so no fault counts."""
    try:
        references = contour.get("ContourImageSequence") or []
        uid = text_of(references[0], "ReferencedSOPInstanceUID") if len(references) == 1 else ""
    except DAMAGE:
        return None, None
    return (uid, _number(references[0], "ReferencedFrameNumber")) if uid else (None, None)


def _points(contour: Dataset) -> FloatArray:
    # The text is read at once: pydicom would make an object of every number.
    element: Any = contour.get_item("ContourData")
    value = element.value if element is not None else b""
    text = value.decode("ascii", "replace").strip(" \0").split("\\") if isinstance(value, bytes) else value
    try:
        numbers = np.array(text if value else [], dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise InputError(f"has ContourData that is not numbers{_first_odd(text)}; export it again") from error
    if numbers.size % 3:
        raise InputError(
            f"has ContourData that holds {numbers.size} numbers, expected three for each point; export it again"
        )
    far = numbers[~(np.abs(numbers) <= FARTHEST_MM)]
    if len(far):
        raise InputError(
            f"has ContourData that holds {far[0]:g}, expected lengths in millimetres; export it again"
        )
    return numbers.reshape(-1, 3)


def _first_odd(texts: Any) -> str:
    """What is no number among texts, to be told in a message."""
    for text in texts if isinstance(texts, list) else []:
        try:
            float(text)
        except (ValueError, TypeError):
            shown = one_line(text)
            return f", the first '{shown if len(shown) <= LONGEST_SHOWN else f'{shown[:LONGEST_SHOWN]}...'}'"
    return ""
