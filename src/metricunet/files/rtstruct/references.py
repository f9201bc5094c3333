"""What a structure set refers to: frames of reference, series and images; and which of these it was drawn on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from metricunet.errors import InputError
from metricunet.files.dicom.header import text_of
from metricunet.files.dicom.series import CtSeries
from metricunet.files.rtstruct.model import RtStructure
from metricunet.volume import FloatArray

#: A contour may lie this far from the plane of the image that it names.
NAMED_IMAGE_MM = 0.1
#: No command takes a registration: only the program that made it can move contours.
OTHER_FRAME_ADVICE = (
    "choose the set that was drawn on this scan, or copy its contours to this scan in the program that registered "
    "the two"
)


@dataclass(frozen=True)
class Reference:
    """A series that a set lists, with its frame of reference and its images; or a frame without a series."""

    frame_uid: str | None
    series_uid: str | None
    image_uids: frozenset[str]


def listed_references(dataset: Dataset) -> tuple[Reference, ...]:
    """Return every series of every frame of reference that a set lists, in its order."""
    found = []
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []:
        uid = text_of(frame, "FrameOfReferenceUID") or None
        series = [
            images
            for study in frame.get("RTReferencedStudySequence") or []
            for images in study.get("RTReferencedSeriesSequence") or []
        ]
        for images in series:
            named = (text_of(i, "ReferencedSOPInstanceUID") for i in images.get("ContourImageSequence") or [])
            found.append(Reference(uid, text_of(images, "SeriesInstanceUID") or None, frozenset(named) - {""}))
        if not series:
            found.append(Reference(uid, None, frozenset()))
    return tuple(found)


def stated_references(dataset: Dataset, structures: Sequence[RtStructure]) -> tuple[str | None, str | None]:
    """Return the frame of reference and the series that a set was drawn on, as far as it says so.

    Of several that it lists, the images that most contours name decide; without such images, the frame that most
    structures state; else the first counts. Of several series in that frame none is the one, without such images.
    """
    listed = listed_references(dataset)
    frames = Counter(s.frame_of_reference_uid for s in structures if s.frame_of_reference_uid is not None)
    drawn = Counter(s.frame_of_reference_uid for s in structures if s.frame_of_reference_uid and s.contours)
    if not listed:
        return next(iter(frames)) if len(frames) == 1 else text_of(dataset, "FrameOfReferenceUID") or None, None
    named = Counter(uid for s in structures for uid in s.image_uids if uid is not None)
    counts = [(sum(named[uid] for uid in r.image_uids), drawn[r.frame_uid or ""]) for r in listed]
    best = listed[counts.index(max(counts))]  # the first of equals, in the order of the set
    equals = {r.series_uid for r in listed if r.series_uid is not None and r.frame_uid == best.frame_uid}
    if len(equals) > 1 and not max(counts)[0]:
        return best.frame_uid, None
    return best.frame_uid, best.series_uid


def with_frames(
    path: Path, dataset: Dataset, structures: Sequence[RtStructure], frame: str | None
) -> tuple[RtStructure, ...]:
    """Give structures that state no frame of reference the one that the set says of them.

    That is the frame under which the set lists the images that their contours name, or the set's only frame.
    Where it lists several and names no image, the structure cannot be placed.
    """
    listed = listed_references(dataset)
    frames: set[str | None] = {r.frame_uid for r in listed if r.frame_uid is not None} or {frame}
    result = []
    for structure in structures:
        if structure.frame_of_reference_uid is None and structure.contours:
            named = {uid for uid in structure.image_uids if uid is not None}
            own: set[str | None] = {r.frame_uid for r in listed if named & r.image_uids} or set(frames)
            if len(own) == 1:
                structure = replace(structure, frame_of_reference_uid=own.pop())
            elif not named:
                fault = (
                    f"states no frame of reference and names no image, and the set lists {len(own)} frames, so "
                    "nothing says which it lies in; export it again with its references"
                )
                structure = without_contours(structure, fault)
        result.append(structure)
    return tuple(result)


def without_contours(structure: RtStructure, fault: str) -> RtStructure:
    """A structure that cannot be used, for the reason given."""
    return replace(structure, contours=(), image_uids=(), image_frames=(), fault=fault)


def check_frames(
    path: Path,
    structures: Sequence[RtStructure],
    frame: str | None,
    series: CtSeries,
    notes: list[str] | None = None,
) -> tuple[RtStructure, ...]:
    """Keep what lies in a scan's frame of reference; what lies in another cannot be used on it.

    A structure's own frame counts before the set's.

    Args:
        path: path of the structure set, for messages.
        structures: the structures as they were read.
        frame: the set's frame.
        series: the scan.
        notes: gets a line for each structure that lies elsewhere.

    Raises:
        InputError: naming both frames, where nothing that is drawn lies in that of the scan.
    """
    wanted = series.frame_of_reference_uid
    result = []
    first = ""
    for structure in structures:
        uid = structure.frame_of_reference_uid or frame
        if uid is None or uid == wanted or structure.fault:
            result.append(structure)
            continue
        where = f"frame of reference is {uid}, but {wanted} in series {series.series_uid}"
        own = f"ROI '{structure.name}': " if structure.frame_of_reference_uid else ""
        first = first or f"{path}: {own}{where}; {OTHER_FRAME_ADVICE}"
        if not structure.contours:
            result.append(structure)
            continue
        if notes is not None:
            notes.append(f"{path}: ROI '{structure.name}': {where}; it cannot be used on this scan")
        result.append(
            without_contours(structure, f"cannot be used on this scan: its {where}; {OTHER_FRAME_ADVICE}")
        )
    if first and not any(s.contours for s in result):
        raise InputError(first)
    if not structures and frame not in (None, wanted):
        raise InputError(
            f"{path}: frame of reference is {frame}, but {wanted} in series {series.series_uid}; "
            f"{OTHER_FRAME_ADVICE}"
        )
    return tuple(result)


def image_notes(path: Path, structure: RtStructure, series: CtSeries) -> Iterator[str]:
    """Compare the images that contours name with those of the scan."""
    place = {image: k for k, image in enumerate(zip(series.sop_uids, series.frames, strict=True))}
    # Files of one frame are their frame 1; a file of many that is named as a whole tells nothing of the plane.
    place |= {(uid, 1): k for (uid, frame), k in place.items() if frame is None}
    unknown = [uid for uid in structure.image_uids if uid is not None and uid not in set(series.sop_uids)]
    if unknown:
        yield (
            f"{path}: ROI '{structure.name}': {len(unknown)} of its contours name images that series "
            f"{series.series_uid} lacks, the first {unknown[0]}"
        )
    normal: FloatArray = np.cross(series.geometry.directions[:, 1], series.geometry.directions[:, 2])
    off = [
        abs(float((points.mean(axis=0) - series.positions_mm[place[uid, frame]]) @ normal))
        for points, uid, frame in zip(
            structure.contours, structure.image_uids, structure.image_frames, strict=False
        )
        if uid is not None and (uid, frame) in place
    ]
    if off and max(off) > NAMED_IMAGE_MM:
        count = sum(value > NAMED_IMAGE_MM for value in off)
        yield (
            f"{path}: ROI '{structure.name}': {count} of its contours lie up to {max(off):.2f} mm from the plane "
            "of the image that they name; their coordinates count"
        )
