"""Adding machine-made structures to a structure set that another program wrote, leaving what is there as it is."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Literal, get_args

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, generate_uid

from metricunet.errors import InputError
from metricunet.files.atomic import written_whole
from metricunet.files.dicom.file import state_syntax
from metricunet.files.dicom.header import DAMAGE, one_line, text_of
from metricunet.files.dicom.series import CtSeries
from metricunet.files.rtstruct.dicom_items import (
    LONG_STRING,
    check_structures,
    contour_item,
    dicom_date,
    dicom_time,
    file_items,
    observation_item,
    reference_item,
    roi_item,
)
from metricunet.files.rtstruct.model import RtStructure
from metricunet.files.rtstruct.outlines import (
    Drawing,
    Holes,
    Outline,
    Structure,
    Style,
    WrittenStructure,
    drawn,
    written,
)
from metricunet.files.rtstruct.read import RT_STRUCTURE_SET, open_structure_set
from metricunet.files.rtstruct.references import check_frames, listed_references, stated_references
from metricunet.files.rtstruct.rois import numbers_of, structures_of

OnClash = Literal["refuse", "suffix"]

#: The largest number that DICOM's integer strings (IS) hold.
LARGEST_NUMBER = 2**31 - 1

#: How a time zone is stated: its sign, hours and minutes.
_OFFSET = re.compile(r"([+-])(0[0-9]|1[0-4])([0-5][0-9])")

#: What the standard allows in an approved or rejected set alone, and what the new content makes untrue.
_NO_LONGER_TRUE = (
    *("ReviewDate", "ReviewTime", "ReviewerName"),
    *("DigitalSignaturesSequence", "MACParametersSequence"),
)


def add_to_rtstruct(
    path_in: Path,
    path_out: Path,
    series: CtSeries,
    structures: Sequence[Structure],
    *,
    description: str,
    on_clash: OnClash = "refuse",
    made: datetime | None = None,
    outline: Outline = "surface",
    holes: Holes = "keep",
    smoothing_mm: float = 0.0,
) -> tuple[WrittenStructure, ...]:
    """Write a structure set with all that is in another one, and more structures.

    What is there stays as it is, to the byte: structures, contours, observations, attributes, private ones too.
    What changes: the set is a new object (SOPInstanceUID, instance and structure set date and time), it is
    UNAPPROVED, names the set that it was made from (PredecessorStructureSetSequence), carries no reviewer and
    no digital signature, and its list of referenced images gains the slices of `series` that it lacks.

    Args:
        path_in: the structure set to begin with.
        path_out: the file to write; not `path_in`.
        series: the scan that both sets are drawn on.
        structures: the structures to add, as for `write_rtstruct`.
        description: goes into the description of each new structure, and ought to say how it was made.
        on_clash: what to do where the set has a structure of the same name (upper or lower case alike):
            "refuse", or "suffix" to write "NAME_2", "NAME_3" and so on.
        made: the new set's date and time; now by default.
        outline: how outlines are drawn, as for `write_rtstruct`.
        holes: how holes are written, as for `write_rtstruct`.
        smoothing_mm: how far smoothing may move an outline, as for `write_rtstruct`.

    Returns:
        For each new structure what was written, with the name and number that it got.

    Raises:
        InputError: as for reading `path_in` and for `write_rtstruct`; another frame of reference, series or
            patient; a name that is taken, or cannot be written in the set's character set.
    """
    style = Style(outline, holes, smoothing_mm)
    if on_clash not in get_args(OnClash):
        raise InputError(f"on_clash is '{on_clash}', expected one of {', '.join(get_args(OnClash))}")
    if path_out.exists() and path_in.exists() and path_out.samefile(path_in):
        raise InputError(f"{path_out}: is the structure set to add to; give another file to write")
    check_structures(path_out, series, structures, description)
    drawings = [drawn(structure, series, style) for structure in structures]
    # pydicom converts what is looked at, and would write it in words of its own: so one copy is read, and the
    # other is written as it stands, odd as it may be.
    read, dataset = open_structure_set(path_in), open_structure_set(path_in)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            there = structures_of(path_in, read)
            _check_same_scan(path_in, read, there, series)
            named = _renamed(path_in, read, structures, on_clash)
            _check_characters(path_in, read, named, description)
            numbers = _new_numbers(_numbers(read), len(named))
            observations = _new_numbers(_observation_numbers(read), len(named))
            for n, k, structure, drawing in zip(numbers, observations, named, drawings, strict=True):
                _append(dataset, "StructureSetROISequence", roi_item(n, structure, drawing, series, description))
                _append(dataset, "ROIContourSequence", contour_item(n, structure, drawing, series))
                _append(dataset, "RTROIObservationsSequence", observation_item(k, n, structure))
            _refer_to(dataset, series)
            _make_new(dataset, _in_its_zone(read, made or datetime.now()))
            with written_whole(path_out) as temporary:
                dataset.save_as(temporary, enforce_file_format=True)
                _check_written(path_in, temporary, there, drawings)
    except (*DAMAGE, AttributeError, OverflowError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path_in}: the structure set is damaged ({one_line(error)}); export it again"
        ) from error
    return tuple(written(s, n, d) for n, s, d in zip(numbers, named, drawings, strict=True))


def check_addable(path: Path, series: CtSeries) -> None:
    """Refuse, before any work, a structure set that nothing drawn on the series could be added to.

    Raises:
        InputError: not a structure set, damaged, or drawn on another scan or patient than `series`.
    """
    dataset = open_structure_set(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _check_same_scan(path, dataset, structures_of(path, dataset), series)
    except (*DAMAGE, AttributeError, OverflowError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: the structure set is damaged ({one_line(error)}); export it again") from error


def _check_written(path: Path, temporary: Path, there: Sequence[RtStructure], drawings: Sequence[Drawing]) -> None:
    """Read the new file once more: in a damaged set, what is passed on unread may have swallowed the rest."""
    expected = [len(structure.contours) for structure in there] + [len(drawing.contours) for drawing in drawings]
    try:
        found = [len(s.contours) for s in structures_of(temporary, open_structure_set(temporary))]
    except (*DAMAGE, AttributeError, OverflowError, RecursionError):
        found = []
    if found != expected:
        raise InputError(f"{path}: the structure set is damaged (it cannot be written anew); export it again")


def _check_same_scan(path: Path, dataset: Dataset, structures: Sequence[RtStructure], series: CtSeries) -> None:
    """Refuse a set that was drawn on another scan than `series`."""
    frame, series_uid = stated_references(dataset, structures)
    structures = check_frames(path, structures, frame, series)
    if series_uid is not None and series_uid != series.series_uid:
        raise InputError(
            f"{path}: refers to series {series_uid}, but the structures to add to series {series.series_uid}; "
            "choose the set that was drawn on this scan"
        )
    named = {uid for structure in structures for uid in structure.image_uids if uid is not None}
    if frame is None and not named & set(series.sop_uids):
        raise InputError(
            f"{path}: states no frame of reference and no image of series {series.series_uid}, so nothing says "
            "that it was drawn on this scan; export it again with its references"
        )
    # What the set lists under other series, it may hold too: a second CT of the same frame, say.
    elsewhere = {uid for r in listed_references(dataset) if r.series_uid != series_uid for uid in r.image_uids}
    unknown = sorted(named - set(series.sop_uids) - elsewhere)
    if unknown:
        raise InputError(
            f"{path}: names image {unknown[0]} and {len(unknown) - 1} more that series {series.series_uid} lacks; "
            "give the whole series that it was drawn on"
        )
    patients = [str(part.get("PatientID") or "").strip() for part in (dataset, series.header)]
    if all(patients) and patients[0] != patients[1]:
        raise InputError(
            f"{path}: its PatientID is not that of series {series.series_uid}; choose the patient's own set"
        )


def _renamed(path: Path, dataset: Dataset, structures: Sequence[Structure], on_clash: OnClash) -> list[Structure]:
    taken = {text_of(roi, "ROIName").casefold() for roi in _items(dataset, "StructureSetROISequence")}
    wanted = {structure.name.strip().casefold() for structure in structures}
    result = []
    for structure in structures:
        name = structure.name.strip()
        if name.casefold() in taken:
            if on_clash == "refuse":
                raise InputError(
                    f"{path}: has a structure named '{name}' already; rename the new one, or have it suffixed"
                )
            name = next(new for new in _suffixed(name) if new.casefold() not in taken | wanted)
        taken.add(name.casefold())
        result.append(replace(structure, name=name))
    return result


def _suffixed(name: str) -> Iterator[str]:
    n = 2
    while True:
        suffix = f"_{n}"
        yield name[: LONG_STRING - len(suffix)] + suffix
        n += 1


def _check_characters(path: Path, dataset: Dataset, structures: Sequence[Structure], description: str) -> None:
    """Refuse text beyond the set's own character set, which cannot change without changing what is there."""
    stated = text_of(dataset, "SpecificCharacterSet") or "ISO_IR 6"
    encoding = {"ISO_IR 192": "utf-8", "ISO_IR 100": "latin-1"}.get(stated, "ascii")
    for structure in structures:
        try:
            f"{structure.text}{description}".encode(encoding)
        except UnicodeEncodeError as error:
            raise InputError(
                f"{path}: structure '{structure.name}': its name, description or code has characters that the "
                f"set's character set ({stated}) may not hold; use plain ASCII"
            ) from error


def _numbers(dataset: Dataset) -> set[int]:
    """Every ROI number that the set mentions, named or not."""
    taken = numbers_of(list(_items(dataset, "StructureSetROISequence")), "ROINumber")
    for sequence in ("ROIContourSequence", "RTROIObservationsSequence"):
        taken += numbers_of(list(_items(dataset, sequence)), "ReferencedROINumber")
    return {number for number in taken if number is not None}


def _observation_numbers(dataset: Dataset) -> set[int]:
    taken = numbers_of(list(_items(dataset, "RTROIObservationsSequence")), "ObservationNumber")
    return {number for number in taken if number is not None}


def _new_numbers(taken: set[int], count: int) -> list[int]:
    """Numbers that are free: those after the highest, or the lowest free ones where these would be too large."""
    first = 1 + max(taken, default=0)
    if first < 1 or first + count - 1 > LARGEST_NUMBER:
        first = 1
    return list(itertools.islice((n for n in itertools.count(first) if n not in taken), count))


def _items(dataset: Dataset, keyword: str) -> Iterable[Dataset]:
    return dataset.get(keyword) or []


def _append(dataset: Dataset, keyword: str, item: Dataset) -> None:
    if dataset.get(keyword) is None:
        setattr(dataset, keyword, DicomSequence([]))
    dataset[keyword].value.append(item)


def _refer_to(dataset: Dataset, series: CtSeries) -> None:
    """List every slice of the series among the images that the set refers to."""
    for frame in _items(dataset, "ReferencedFrameOfReferenceSequence"):
        for study in frame.get("RTReferencedStudySequence") or []:
            for images in study.get("RTReferencedSeriesSequence") or []:
                if images.get("SeriesInstanceUID") != series.series_uid:
                    continue
                there = {str(i.get("ReferencedSOPInstanceUID")) for i in images.get("ContourImageSequence") or []}
                for item in file_items(series):
                    if item.ReferencedSOPInstanceUID not in there:
                        _append(images, "ContourImageSequence", item)
                return
    # The set says nothing of series: what the new structures refer to is stated in an item of its own.
    _append(dataset, "ReferencedFrameOfReferenceSequence", reference_item(series))


def _in_its_zone(dataset: Dataset, moment: datetime) -> datetime:
    """Return a moment in the time zone that the set states for all of its times, if it states one."""
    stated = _OFFSET.fullmatch(text_of(dataset, "TimezoneOffsetFromUTC"))
    if stated is None:
        return moment
    offset = timedelta(hours=int(stated[2]), minutes=int(stated[3]))
    return moment.astimezone(timezone(-offset if stated[1] == "-" else offset))


def _make_new(dataset: Dataset, moment: datetime) -> None:
    predecessor = Dataset()
    predecessor.ReferencedSOPClassUID = RT_STRUCTURE_SET
    predecessor.ReferencedSOPInstanceUID = dataset.SOPInstanceUID
    dataset.PredecessorStructureSetSequence = DicomSequence([predecessor])
    dataset.SOPInstanceUID = generate_uid()
    state_syntax(dataset)  # a set without a file header keeps its encoding
    dataset.file_meta.MediaStorageSOPClassUID = UID(RT_STRUCTURE_SET)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = dicom_date(moment), dicom_time(moment)
    dataset.StructureSetDate, dataset.StructureSetTime = dicom_date(moment), dicom_time(moment)
    dataset.ApprovalStatus = "UNAPPROVED"
    for keyword in _NO_LONGER_TRUE:
        if keyword in dataset:
            delattr(dataset, keyword)
