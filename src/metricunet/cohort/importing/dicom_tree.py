"""A tree of DICOM patients: each CT series with the structure sets that were drawn on it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from metricunet.cohort.importing.privacy import Privacy, hashed, shown
from metricunet.cohort.importing.source import Bars, Found, LeftOut, Named, Region, SourceCase, Status
from metricunet.errors import InputError
from metricunet.files.dicom.file import read_dataset
from metricunet.files.dicom.header import DAMAGE, one_line
from metricunet.files.dicom.series import CtSeries, RefusedSeries, SeriesSearch, search_series
from metricunet.files.rtstruct.model import RtStruct
from metricunet.files.rtstruct.read import check_frames, read_rtstruct
from metricunet.volume import Volume

LAYOUT = "dicom"
_IDENTITY = [
    *("PatientName", "OtherPatientNames", "PatientBirthName", "PatientBirthDate", "PatientID"),
    *("IssuerOfPatientID", "StudyInstanceUID", "SOPInstanceUID"),
]


@dataclass(frozen=True, eq=False)
class StructureSet:
    """A structure set whose contours are not kept: its place, what it refers to, and the names in it."""

    path: Path
    header: Dataset
    frame_uid: str | None
    series_uid: str | None
    structures: tuple[Named, ...]


class DicomCase(SourceCase):
    """A CT series and the structure sets drawn on it."""

    def __init__(self, series: CtSeries, sets: Sequence[StructureSet], patient: str, root: Path) -> None:
        self.series = series
        self.identity = series.series_uid
        self.patient = patient
        self.place = shown(series.folder, root)
        self.structures = tuple(named for found in sets for named in found.structures)
        self.files = (*series.files, *(found.path for found in sets))

    def read_image(self) -> Volume:
        """Decode the series."""
        return self.series.read()

    def read_regions(self, wanted: Sequence[Named], image: Volume) -> Iterator[Region]:
        """Fill the contours of structures, by the even-odd rule at voxels' centres."""
        opened: dict[Path, RtStruct] = {}
        for named in wanted:
            path, number = named.key
            general: list[str] = []
            if path not in opened:
                opened = {path: read_rtstruct(path, self.series)}
                general = [text for text in opened[path].warnings if ": ROI '" not in text]
            (structure,) = (s for s in opened[path].structures if s.number == number)
            own = [text for text in opened[path].warnings if f": ROI '{structure.name}':" in text]
            mask = opened[path].filled(structure, image.geometry)
            notes = (*general, *own, *mask.notes)
            if mask.mask is not None:
                yield Region(named, "contoured", mask.mask.array != 0, "", notes)
            else:
                status: Status = "unusable" if mask.status == "unusable" else "not contoured"
                yield Region(named, status, None, mask.reason, notes)


def find_dicom(root: Path, privacy: Privacy, bars: Bars) -> Found:
    """Find the CT series below a folder and the structure sets on them.

    A structure set belongs to the series that it names. Where it names none that is there, it belongs to the one
    series in its frame of reference, and without a frame to the one series of its study.

    Raises:
        InputError: a folder without CT series and structure sets.
    """
    search = search_series(root, progress=bars("reading"))
    for refused in search.refused:
        for path in refused.files[:1]:
            privacy.learn(_identity(path))
    for series in search.series:
        privacy.learn(series.header)
    found = Found(LAYOUT)
    sets = list(_sets(search.structure_sets, root, privacy, found))
    if not search.series and not search.refused and not search.structure_sets:
        raise InputError(f"{root}: holds no CT series and no structure set; give a folder of DICOM patients")
    for refused in search.refused:
        described = f" ({refused.description})" if refused.description else ""
        what = refused.series_uid or shown(refused.folder, root)
        entry = LeftOut(f"{what}{described}", refused.reason, refused.is_scan, refused.file_count)
        found.left_out.append(entry)
    owned: dict[str, list[StructureSet]] = {series.series_uid: [] for series in search.series}
    for one in sets:
        owner = _owner(one, search)
        if isinstance(owner, str):
            found.left_out.append(LeftOut(shown(one.path, root), f"{one.path}: {owner}"))
            found.loose += one.structures
        else:
            owned[owner.series_uid].append(one)
    patients = _patients(search.series)
    for series in search.series:
        own = owned[series.series_uid]
        if own:
            found.cases.append(DicomCase(series, own, patients[series.series_uid], root))
        else:
            reason = (
                f"{series.folder}: no structure set was drawn on this series; nothing is known of its structures"
            )
            found.left_out.append(LeftOut(series.series_uid, reason, False, len(series.files)))
    return found


def _sets(paths: Sequence[Path], root: Path, privacy: Privacy, found: Found) -> Iterator[StructureSet]:
    """Open structure sets; a damaged one, and a second copy of one, are left out."""
    copies: dict[str, Path] = {}
    for path in paths:
        try:
            header = _identity(path)
            privacy.learn(header)
            read = read_rtstruct(path)
        except InputError as error:
            found.left_out.append(LeftOut(shown(path, root), str(error)))
            continue
        uid = str(header.get("SOPInstanceUID", "") or path)
        if uid in copies:
            reason = f"{path}: is the same structure set as {copies[uid]}; it counts once"
            found.left_out.append(LeftOut(shown(path, root), reason, False))
            continue
        copies[uid] = path
        names = tuple(
            Named(privacy.spoken(s.name), f"{path}: ROI {s.number} '{s.name}'", bool(s.contours), (path, s.number))
            for s in read.structures
        )
        # Contours are read again when they are wanted: all of a cohort's would not fit into memory.
        yield StructureSet(path, header, read.frame_of_reference_uid, read.series_uid, names)


def _identity(path: Path) -> Dataset:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = read_dataset(path, stop_before_pixels=True, specific_tags=list(_IDENTITY))
            for _ in dataset:  # odd values are converted, and warned of, here and not where they are used
                pass
            return dataset
    except (*DAMAGE, InvalidDicomError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}); copy or export it again") from error


def _owner(one: StructureSet, search: SeriesSearch) -> CtSeries | str:
    """Return the series that a set was drawn on, or why there is none."""
    named = [series for series in search.series if series.series_uid == one.series_uid]
    if named:
        try:
            check_frames(one.path, (), one.frame_uid, named[0])
        except InputError as error:
            return str(error).removeprefix(f"{one.path}: ")
        return named[0]
    refused: list[RefusedSeries] = [r for r in search.refused if r.series_uid and r.series_uid == one.series_uid]
    if refused:
        return f"the series that it was drawn on, {one.series_uid}, was refused ({refused[0].reason})"
    if one.frame_uid is not None:
        near = [s for s in search.series if s.frame_of_reference_uid == one.frame_uid]
        where = f"in its frame of reference, {one.frame_uid}"
    else:
        study = str(one.header.get("StudyInstanceUID", "") or "")
        near = [s for s in search.series if s.study_uid == study]
        where = "in its study; it states neither series nor frame of reference"
    if len(near) == 1:
        return near[0]
    drawn = f"was drawn on series {one.series_uid}, which is not here, and " if one.series_uid else ""
    if not near:
        return f"{drawn}there is no CT series {where}; add the scan that it was drawn on"
    return f"{drawn}{len(near)} CT series are {where}; import the one that it was drawn on by itself"


def _patients(series: Sequence[CtSeries]) -> dict[str, str]:
    """Return a patient for each series, by PatientID; by name and birth date, or study, where there is none.

    A patient ID is a short number that a hash does not hide. So the patient's first study goes into the hash:
    nobody can guess its UID.
    """
    keys: dict[str, tuple[str, str, str]] = {}
    first: dict[tuple[str, str, str], str] = {}
    for one in series:
        header = one.header
        identifier = str(header.get("PatientID", "") or "").strip()
        name, born = (
            str(header.get(keyword, "") or "").strip() for keyword in ("PatientName", "PatientBirthDate")
        )
        if identifier:
            key = ("id", str(header.get("IssuerOfPatientID", "") or ""), identifier)
        elif name:
            key = ("name", name, born)
        else:
            key = ("study", "", one.study_uid)
        keys[one.series_uid] = key
        first[key] = min(first.get(key, one.study_uid), one.study_uid)
    return {uid: hashed(*key, first[key]) for uid, key in keys.items()}
