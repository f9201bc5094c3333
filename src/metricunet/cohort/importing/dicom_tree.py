"""A tree of DICOM patients: each CT series with the structure sets that were drawn on it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from metricunet.cohort.importing.names_file import listed
from metricunet.cohort.importing.privacy import Privacy, hashed, shown
from metricunet.cohort.importing.source import Found, LeftOut, Named, Region, RegionStatus, SourceCase
from metricunet.errors import InputError, told
from metricunet.files.dicom.file import read_dataset
from metricunet.files.dicom.header import DAMAGE, one_line
from metricunet.files.dicom.series import CtSeries, RefusedSeries, SeriesSearch, search_series
from metricunet.files.dicom.stack import Allow
from metricunet.files.rtstruct.model import RtStruct, RtStructure
from metricunet.files.rtstruct.read import read_rtstruct
from metricunet.files.rtstruct.references import OTHER_FRAME_ADVICE
from metricunet.progress import Bars
from metricunet.volume import Volume

LAYOUT = "dicom"
_IDENTITY = [
    *("PatientName", "OtherPatientNames", "PatientBirthName", "PatientBirthDate", "PatientID"),
    *("IssuerOfPatientID", "StudyInstanceUID", "SOPInstanceUID"),
]


#: What tells a patient from others: the kind of identifier, its issuer or the name, and the identifier.
Person = tuple[str, str, str]


class NoDicomError(InputError):
    """A folder without CT series and structure sets: it may be of another layout."""


@dataclass(frozen=True, eq=False)
class StructureSet:
    """The part of a structure set that is drawn on one series: its file and the names in it, without the contours.

    Attributes:
        path: path of the structure set's file.
        structures: the structures that are drawn on that series.
        drawings: a hash of each structure's contours, in the same order; empty where it has none.
    """

    path: Path
    structures: tuple[Named, ...]
    drawings: tuple[str, ...]

    @property
    def content(self) -> tuple[tuple[str, bool, str], ...]:
        """What two copies of a set have in common: each name, whether it is drawn, and the drawing."""
        named = zip(self.structures, self.drawings, strict=True)
        return tuple((one.spelling, one.drawn, drawing) for one, drawing in named)


@dataclass(frozen=True)
class _Origin:
    """What a structure says of the scan that it was drawn on."""

    frame_uid: str | None
    series_uid: str | None
    image_uids: frozenset[str]


class DicomCase(SourceCase):
    """A CT series and the structure sets drawn on it."""

    def __init__(self, series: CtSeries, sets: Sequence[StructureSet], patient: str, root: Path) -> None:
        self.series = series
        self.identity = series.series_uid
        self.patient = patient
        self.location = shown(series.folder, root)
        self._use(tuple(sets))

    def _use(self, sets: tuple[StructureSet, ...]) -> None:
        self.sets = sets
        self.structures, repeats = _without_repeats(sets)
        self.notes = tuple(repeats)
        # A file of many frames stands for each of its slices, and is hashed once.
        self.files = tuple(dict.fromkeys((*self.series.files, *(found.path for found in sets))))

    def take_sets(self, other: DicomCase) -> tuple[str, ...]:
        """Take over the structure sets that another source has of this series, but for those that are here.

        Returns:
            A sentence for each oddity that comes with them.
        """
        here = {one.content for one in self.sets}
        new = [one for one in other.sets if one.content not in here]
        if not new:
            return ()
        before = set(self.notes) | set(other.notes)
        self._use((*self.sets, *new))
        return tuple(note for note in self.notes if note not in before)

    def read_image(self) -> Volume:
        """Decode the series."""
        return self.series.read()

    def read_regions(self, wanted: Sequence[Named], image: Volume) -> Iterator[Region]:
        """Fill the contours of structures, by the even-odd rule at voxels' centres."""
        opened: dict[Path, RtStruct] = {}
        for named in wanted:
            path, position = named.key
            general: list[str] = []
            if path not in opened:
                opened = {path: read_rtstruct(path, self.series)}
                general = [text for text in opened[path].warnings if ": ROI '" not in text]
            structures = opened[path].structures
            if position >= len(structures) or _location(path, structures[position]) != named.location:
                raise InputError(f"{path}: was changed during the import; run the import again")
            structure = structures[position]
            # What makes a structure unusable is its reason already.
            own = [t for t in opened[path].warnings if f": ROI '{structure.name}':" in t and not structure.fault]
            mask = opened[path].filled(structure, image.geometry)
            notes = (*general, *own, *mask.notes)
            if mask.mask is not None:
                yield Region(named, "contoured", mask.mask.array != 0, "", notes)
            else:
                status: RegionStatus = "unusable" if mask.status == "unusable" else "not contoured"
                yield Region(named, status, None, mask.reason, notes)


def find_dicom(root: Path, privacy: Privacy, bars: Bars) -> Found:
    """Find the CT series below a folder and the structure sets on them.

    A structure belongs to the series whose images its contours name. Where they name none that is there, it
    belongs to the series that its set names, else to the one series in its frame of reference, and without a
    frame to the one series of its study. Whatever goes wrong with a series or a set costs no other.

    Raises:
        NoDicomError: a folder without CT series and structure sets.
    """
    search, people = _learned(search_series(root, Allow(offered=False), progress=bars("reading")), privacy)
    found = Found(LAYOUT)
    if not search.series and not search.refused and not search.structure_sets:
        raise NoDicomError(f"{root}: holds no CT series and no structure set; give a folder of DICOM patients")
    for refused in search.refused:
        described = f" ({refused.description})" if refused.description else ""
        what = refused.series_uid or shown(refused.folder, root)
        found.left_out.append(
            LeftOut(f"{what}{described}", refused.reason, refused.is_scan, refused.file_count, refused.error)
        )
    owned: dict[str, list[StructureSet]] = {series.series_uid: [] for series in search.series}
    for uid, one in _sets(search, root, privacy, found):
        owned[uid].append(one)
    patients = patient_hashes(search.series, people)
    for series in search.series:
        own = owned[series.series_uid]
        if own:
            try:
                case = DicomCase(series, own, patients[series.series_uid], root)
            except Exception as error:  # whatever it is, it costs this series alone
                reason = f"{series.folder}: {told(error)}"
                found.left_out.append(LeftOut(series.series_uid, reason, True, len(series.files), error))
                continue
            found.cases.append(case)
            found.notes += case.notes
        else:
            reason = (
                f"{series.folder}: no structure set was drawn on this series; nothing is known of its structures"
            )
            found.left_out.append(LeftOut(series.series_uid, reason, False, len(series.files)))
    return found


def _learned(search: SeriesSearch, privacy: Privacy) -> tuple[SeriesSearch, dict[str, Person]]:
    """Take note of all patients before anything is said of one; return whose each series is.

    A series whose header shows no patient is refused: nobody could tell what must not be said.
    """
    for refused in search.refused:
        for path in refused.files[:1]:
            with suppress(Exception):  # it is refused as it is, and named by its file
                privacy.learn(_identity(path))
    usable: list[CtSeries] = []
    lost: list[RefusedSeries] = []
    people: dict[str, Person] = {}
    for series in search.series:
        uid, files = series.series_uid, series.files
        try:
            privacy.learn(series.header)
            people[uid] = person_of(series)
        except Exception as error:  # whatever it is, it costs this series alone
            reason = f"{series.folder}: {told(error)}"
            lost.append(RefusedSeries(uid, "", series.folder, len(files), reason, True, files, error))
        else:
            usable.append(series)
    return replace(search, series=tuple(usable), refused=(*search.refused, *lost)), people


def _sets(search: SeriesSearch, root: Path, privacy: Privacy, found: Found) -> Iterator[tuple[str, StructureSet]]:
    """Open structure sets: each with the series that it, or a part of it, was drawn on.

    A damaged one, a second copy of one, and what was drawn on no series that is here, are left out.
    """
    copies: dict[tuple[str, str], Path] = {}
    series_of = {uid: series.series_uid for series in search.series for uid in series.sop_uids}
    for path in search.structure_sets:
        try:
            opened = _opened(path, search, series_of, root, privacy, found, copies)
        except InputError as error:
            found.left_out.append(LeftOut(shown(path, root), str(error)))
        except Exception as error:  # whatever it is, it costs this set alone
            found.left_out.append(LeftOut(shown(path, root), f"{path}: {told(error)}", error=error))
        else:
            yield from opened


def _opened(
    path: Path,
    search: SeriesSearch,
    series_of: Mapping[str, str],
    root: Path,
    privacy: Privacy,
    found: Found,
    copies: dict[tuple[str, str], Path],
) -> list[tuple[str, StructureSet]]:
    header = _identity(path)
    privacy.learn(header)
    read = read_rtstruct(path)
    drawings = [_drawing(s) for s in read.structures]
    # Programs that add to a set may leave it its UID: two are the same only if what they hold is.
    copy = str(header.get("SOPInstanceUID", "") or path), _content(read, drawings)
    if copy in copies:
        reason = f"{path}: is the same structure set as {copies[copy]}; it counts once"
        found.left_out.append(LeftOut(shown(path, root), reason, False))
        return []
    names = [
        Named(privacy.spoken(s.name), _location(path, s), bool(s.contours or s.fault), (path, position), path)
        for position, s in enumerate(read.structures)
    ]
    shared = _shared_out(read, header, search, series_of, root, found, names)
    copies[copy] = path
    # Contours are read again when they are wanted: all of a cohort's would not fit into memory.
    return [
        (uid, StructureSet(path, tuple(names[n] for n in positions), tuple(drawings[n] for n in positions)))
        for uid, positions in shared.items()
    ]


def _location(path: Path, structure: RtStructure) -> str:
    number = "without a number" if structure.number is None else structure.number
    return f"{path}: ROI {number} '{structure.name}'"


def _drawing(structure: RtStructure) -> str:
    """A hash of a structure's contours; empty where it has none."""
    if not structure.contours:
        return ""
    digest = hashlib.sha256()
    for points in structure.contours:
        digest.update(len(points).to_bytes(8, "little") + points.tobytes())
    return digest.hexdigest()


def _content(read: RtStruct, drawings: Sequence[str]) -> str:
    """A hash of all that is read of a set."""
    said = [
        (s.number, s.name, s.fault, s.frame_of_reference_uid, s.image_uids, s.passed_over) for s in read.structures
    ]
    return hashed(str(read.series_uid), str(read.frame_of_reference_uid), str(said), *drawings)


def _shared_out(
    read: RtStruct,
    header: Dataset,
    search: SeriesSearch,
    series_of: Mapping[str, str],
    root: Path,
    found: Found,
    names: Sequence[Named],
) -> dict[str, list[int]]:
    """Return for each series the structures that were drawn on it; leave out those drawn on none that is here."""
    owners: dict[_Origin, CtSeries | str] = {}
    shared: dict[str, list[int]] = {}
    lost: dict[str, list[int]] = {}
    undrawn: list[int] = []
    for position, structure in enumerate(read.structures):
        if not structure.contours:
            undrawn.append(position)
            continue
        named = frozenset(uid for uid in structure.image_uids if uid is not None)
        frame = structure.frame_of_reference_uid or read.frame_of_reference_uid
        origin = _Origin(frame, read.series_uid, named)
        if origin not in owners:
            owners[origin] = _owner(origin, header, search, series_of)
        owner = owners[origin]
        if isinstance(owner, str):
            lost.setdefault(owner, []).append(position)
        else:
            shared.setdefault(owner.series_uid, []).append(position)
    if undrawn:
        # Nothing tells where these were to be drawn: they go with the most of the set.
        if shared:
            home = max(shared, key=lambda uid: len(shared[uid]))
            shared[home] = sorted([*shared[home], *undrawn])
        elif lost:
            home = max(lost, key=lambda reason: len(lost[reason]))
            lost[home] = sorted([*lost[home], *undrawn])
        else:
            origin = _Origin(read.frame_of_reference_uid, read.series_uid, frozenset())
            owner = _owner(origin, header, search, series_of)
            if isinstance(owner, str):
                lost[owner] = undrawn
            else:
                shared[owner.series_uid] = undrawn
    if not read.structures:
        lost["holds no ROI; export it again"] = []
    for reason, positions in lost.items():
        of = f"ROI {listed(repr(read.structures[n].name) for n in positions)}: " if shared else ""
        # A region of another scan beside those of this one, as a lesion drawn on the MR, is no fault of the set.
        found.left_out.append(LeftOut(shown(read.path, root), f"{read.path}: {of}{reason}", not shared))
        found.loose += [names[n] for n in positions]
    return shared


def _without_repeats(sets: Sequence[StructureSet]) -> tuple[tuple[Named, ...], list[str]]:
    """The structures of several sets on one series; one that is drawn alike in two sets counts once."""
    first: dict[tuple[str, str], tuple[int, Named]] = {}
    kept: list[Named] = []
    notes: list[str] = []
    for n, one in enumerate(sets):
        for named, drawing in zip(one.structures, one.drawings, strict=True):
            before = first.get((named.spelling, drawing)) if drawing else None
            if before is not None and before[0] != n:
                notes.append(f"{named.location} is drawn as in {before[1].location}; it counts once")
                continue
            first.setdefault((named.spelling, drawing), (n, named))
            kept.append(named)
    return tuple(kept), notes


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


def _owner(origin: _Origin, header: Dataset, search: SeriesSearch, series_of: Mapping[str, str]) -> CtSeries | str:
    """Return the series that something was drawn on, or why there is none."""
    by_images = {series_of[uid] for uid in origin.image_uids if uid in series_of}
    if len(by_images) > 1:
        return f"its contours name images of {len(by_images)} CT series; draw it on one of them alone"
    series_uid = next(iter(by_images), origin.series_uid)
    named = [series for series in search.series if series.series_uid == series_uid]
    if named:
        wanted = named[0].frame_of_reference_uid
        if origin.frame_uid not in (None, wanted):
            return (
                f"frame of reference is {origin.frame_uid}, but {wanted} in series {series_uid}; "
                f"{OTHER_FRAME_ADVICE}"
            )
        return named[0]
    refused: list[RefusedSeries] = [r for r in search.refused if r.series_uid and r.series_uid == series_uid]
    if refused:
        return f"the series that it was drawn on, {series_uid}, was refused ({refused[0].reason})"
    if origin.frame_uid is not None:
        near = [s for s in search.series if s.frame_of_reference_uid == origin.frame_uid]
        where = f"in its frame of reference, {origin.frame_uid}"
    else:
        study = str(header.get("StudyInstanceUID", "") or "")
        near = [s for s in search.series if s.study_uid == study]
        where = "in its study; it states neither series nor frame of reference"
    if len(near) == 1:
        return near[0]
    drawn = f"was drawn on series {origin.series_uid}, which is not here, and " if origin.series_uid else ""
    if not near:
        return f"{drawn}there is no CT series {where}; add the scan that it was drawn on"
    return f"{drawn}{len(near)} CT series are {where}; import the one that it was drawn on by itself"


def person_of(series: CtSeries) -> Person:
    """Return what tells a patient from others: PatientID; name and birth date, or study, where there is none."""
    return person_in(series.header, series.study_uid)


def person_in(header: Dataset | Mapping[str, str], study_uid: str) -> Person:
    """Return what `person_of` returns, of elements that are read already.

    Args:
        header: PatientID, IssuerOfPatientID, PatientName and PatientBirthDate by keyword, where they are there.
        study_uid: StudyInstanceUID.
    """
    identifier = str(header.get("PatientID", "") or "").strip()
    name, born = (str(header.get(keyword, "") or "").strip() for keyword in ("PatientName", "PatientBirthDate"))
    if identifier:
        return "id", str(header.get("IssuerOfPatientID", "") or ""), identifier
    return ("name", name, born) if name else ("study", "", study_uid)


def join_patients(cases: Iterable[SourceCase]) -> None:
    """Give the DICOM cases of one patient one hash, whichever sources they come from; other cases stay.

    Each source makes the hash from the studies that it holds itself, so those of two sources may differ.
    """
    people = {case: person_of(case.series) for case in cases if isinstance(case, DicomCase)}
    same = _whatever_issuer(people.values())
    by_person: dict[Person, list[DicomCase]] = {}
    for case, person in people.items():
        by_person.setdefault(same[person], []).append(case)
    for own in by_person.values():
        patient = min(case.patient for case in own)
        for case in own:
            case.patient = patient


def patient_hashes(series: Sequence[CtSeries], people: Mapping[str, Person]) -> dict[str, str]:
    """Return a hash of the patient for each series.

    A patient ID is a short number that a hash does not hide. So the patient's first study goes into the hash:
    nobody can guess its UID.
    """
    same = _whatever_issuer(people[one.series_uid] for one in series)
    first: dict[Person, str] = {}
    for one in series:
        person = same[people[one.series_uid]]
        first[person] = min(first.get(person, one.study_uid), one.study_uid)
    known = {one.series_uid: same[people[one.series_uid]] for one in series}
    return {uid: hashed(*person, first[person]) for uid, person in known.items()}


def _whatever_issuer(people: Iterable[Person]) -> dict[Person, Person]:
    """Return for each patient the one that it counts as: without an issuer, where any of this PatientID has none.

    The archive may state the issuer and the planning system leave it out. Two patients who are taken for one cost
    a fold some balance; one who is taken for two would be trained and validated on.
    """
    found = set(people)
    bare = {identifier for kind, issuer, identifier in found if kind == "id" and not issuer}
    return {one: ("id", "", one[2]) if one[0] == "id" and one[2] in bare else one for one in found}
