"""Label maps, folders of masks, structure sets and segmentations into each other, on the scan they belong to.

Nothing is resampled and nothing is lost in silence: every structure of the source is among the outcomes, with what
became of it. What one file cannot hold is left out of that file alone, named, and counts as a failure.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import combinations, count
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from metricunet.cohort.delineations import Delineations, Drawn, Held, ScanGrid, open_delineations
from metricunet.cohort.importing.names_file import NamesFile, listed, read_names
from metricunet.cohort.importing.source import RegionStatus
from metricunet.cohort.layout import BACKGROUND, dataset_content, read_dataset_json
from metricunet.errors import InputError, argument
from metricunet.files.atomic import write_json
from metricunet.files.claim import claimed
from metricunet.files.dicom.stack import Allow
from metricunet.files.names import check_name_fits
from metricunet.files.nifti import is_nifti, write_nifti, write_nifti_part
from metricunet.files.own import OwnFiles
from metricunet.files.record import RunRecord, sha256
from metricunet.files.rtstruct.dicom_items import LONG_STRING
from metricunet.files.rtstruct.outlines import LARGEST_SMOOTHING_MM, Holes, Outline, Structure, Style
from metricunet.files.rtstruct.write import write_rtstruct
from metricunet.files.scan import read_scan
from metricunet.files.seg.write import write_seg
from metricunet.inference.case_files import OTHER_WORDS
from metricunet.inference.inputs import find_inputs
from metricunet.inference.structure_set import COLOURS
from metricunet.progress import Progress
from metricunet.volume import Geometry, Volume

COMMAND = "convert"
CONVERT_RECORD = "convert.json"
NAMES = "dataset.json"
Target = Literal["nifti", "masks", "rtstruct", "seg"]
TARGETS: tuple[Target, ...] = get_args(Target)
SUFFIXES: dict[Target, str] = {"nifti": ".nii.gz", "rtstruct": ".rtstruct.dcm", "seg": ".seg.dcm"}
#: What refers to the images of a DICOM series.
OF_DICOM: tuple[Target, ...] = ("rtstruct", "seg")
#: Characters that no file system, or not every one, takes in a name.
UNFIT = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')
#: Names that Windows keeps for devices, whatever follows their first dot.
DEVICES = re.compile(r"(?:con|prn|aux|nul|(?:com|lpt)[0-9])(?:\..*)?", re.IGNORECASE)
#: Planning systems show so many characters of a name (Eclipse takes no more).
SHOWN_CHARACTERS = 16
#: The label of nnU-Net for voxels that nobody contoured.
IGNORE = "ignore"
LARGEST_VALUE = 65535
#: RTROIInterpretedType of names that state it: TG-263 begins those of targets so.
TYPES = (("GTV", "GTV"), ("CTV", "CTV"), ("PTV", "PTV"))
#: Names of the outline of the patient. Planning systems take one alone; what only begins so (BODY-PTV) is none.
OUTLINES = ("External", "BODY")

Status = Literal["converted", "empty", "not contoured", "ignored", "left out"]


@dataclass(frozen=True)
class Outcome:
    """What became of a structure.

    Attributes:
        name: its name in the outputs.
        spelling: its name in the source.
        status: `converted`; `empty`, as the source says of it; `not contoured`, since a structure set names it and
            holds no contour of it; `ignored`, as the names file asks; or `left out`, of one output or of all.
        volume_ml: of its voxels.
        reason: why it is left out, one line.
        notes: what was odd about it, a line each.
    """

    name: str
    spelling: str
    status: Status
    volume_ml: float = 0.0
    reason: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Converted:
    """A conversion that was done.

    Attributes:
        case: name of its outputs.
        structures: what became of each structure of the source, in its order.
        files: that were written, the names of a label map's values (dataset.json) among them.
        notes: what was odd about the source as a whole, a line each.
    """

    case: str
    structures: tuple[Outcome, ...]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether a structure that the source holds is not in every output."""
        return any(outcome.status == "left out" for outcome in self.structures)

    def __repr__(self) -> str:
        states = [outcome.status for outcome in self.structures]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        return f"Converted({self.case}: {counts})"

    def text(self) -> str:
        """Return a line for each structure and for each file."""
        lines = [
            f"{outcome.name}: {outcome.status}"
            + (f", {outcome.volume_ml:.2f} mL" if outcome.volume_ml >= 0.1 else "")
            + (f", {outcome.volume_ml:.3f} mL" if 0 < outcome.volume_ml < 0.1 else "")
            + (f" (from {outcome.spelling})" if outcome.spelling != outcome.name else "")
            for outcome in self.structures
        ]
        return "\n".join([*lines, *(f"file: {path}" for path in self.files)])

    def to_json(self) -> dict[str, Any]:
        """Return what the command prints for other programs."""
        return {
            "case": self.case,
            "structures": [asdict(outcome) for outcome in self.structures],
            "files": [str(path) for path in self.files],
            "notes": list(self.notes),
        }


@dataclass(eq=False)
class _Item:
    """A structure on its way.

    Attributes:
        held: as its source names it.
        name: in the outputs; None where it is ignored.
        stem: name of its file in a folder of masks.
        fault: why no output can hold it; empty where nothing is wrong.
        notes: what is to be said of its name.
        drawn: as read.
        lacking: for each output that cannot hold it, the reason.
    """

    held: Held
    name: str | None
    stem: str = ""
    fault: str = ""
    notes: list[str] = field(default_factory=list)
    drawn: Drawn | None = None
    lacking: dict[Target, str] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """What its source says of it; `ignored` where it was not asked."""
        return "ignored" if self.drawn is None else self.drawn.status

    @property
    def mask(self) -> Volume | None:
        return None if self.drawn is None else self.drawn.mask

    def outcome(self) -> Outcome:
        """Say what became of it."""
        name = self.name if self.name is not None else self.held.name
        if self.drawn is None:
            return Outcome(name, self.held.name, "ignored")
        notes = (*self.notes, *self.drawn.notes)
        if self.drawn.status == "unusable":
            return Outcome(name, self.held.name, "left out", 0.0, self.drawn.reason, notes)
        mask = self.drawn.mask
        volume_ml = 0.0 if mask is None else np.count_nonzero(mask.array) * mask.geometry.voxel_volume_ml
        reasons = "; ".join(f"not in {target}: {reason}" for target, reason in self.lacking.items())
        status: Status = "left out" if reasons else "converted"
        if not reasons and mask is None:
            status = "empty" if self.drawn.status == "absent" else "not contoured"
        return Outcome(name, self.held.name, status, round(volume_ml, 3), reasons, notes)


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    scan: str | os.PathLike[str],
    to: str | Sequence[str],
    names: str | os.PathLike[str] | None = None,
    series: str | None = None,
    case: str | None = None,
    contours: Outline = "voxel",
    smooth: bool = False,
    holes: Holes = "keep",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Convert the structures of a file or folder, on the scan that they belong to.

    The outputs are CASE.nii.gz with dataset.json, CASE/STRUCTURE.nii.gz, CASE.rtstruct.dcm and CASE.seg.dcm, as
    asked for, and convert.json, the record. Files of an earlier conversion are replaced while they are as they
    were written, and only by a conversion of the same source.

    Args:
        source: a label map (NIfTI, NRRD, MetaImage), a folder of masks as TotalSegmentator writes it, a structure
            set or a segmentation.
        output: folder that the outputs are written into; made where it is missing.
        scan: the scan that the structures belong to: a folder of DICOM or one of its files. For `nifti` and
            `masks` from label maps it may be a NIfTI, NRRD or MetaImage file.
        to: one or several of `nifti` (a label map), `masks` (a folder with a file for each structure), `rtstruct`
            and `seg`; several may be separated by commas.
        names: a names file: which spelling means which structure, and which are ignored. Every spelling must be in
            it. By default structures keep their names.
        series: take the series with this SeriesInstanceUID, where `scan` holds several.
        case: name of the outputs; by default that of the source.
        contours: of a structure set: `voxel` draws along voxels' edges, `surface` halfway between voxels' centres.
            Filled again, either gives the very mask.
        smooth: smooth the contours of a structure set, no point by more than 0.5 mm. Filled again, they do not
            give the mask.
        holes: of a structure set: `keep` them as contours, `close` them, or join them by a line (`keyhole`).
        overwrite: replace files of others that have an output's name. Inputs are never replaced.
        progress: called with the structures read and the structures in all.

    Returns:
        What became of each structure. A structure that cannot be read, or that an output cannot hold, is left out
        of it, and costs the others nothing.

    Raises:
        InputError: nothing can be converted: the source does not fit the scan, is damaged or of another scan, a
            name is in no list or two mean one structure, two structures share voxels that a label map is to hold,
            or an output would replace an input or somebody else's file. Nothing is written then.
    """
    source, output, scan = Path(source), Path(output), Path(scan)
    names = None if names is None else Path(names)
    targets = _targets(to)
    style = Style(contours, holes, LARGEST_SMOOTHING_MM if smooth else 0.0)
    if "rtstruct" not in targets and style != Style("voxel"):
        raise InputError(
            f"{argument('contours')}, {argument('smooth')} and {argument('holes')} shape a structure set, and "
            f"none is asked for; add rtstruct to {argument('to')}"
        )
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; expected a folder for the outputs")
    arguments = {
        "source": source,
        "scan": scan,
        "output": output,
        "to": list(targets),
        "names": names,
        "series": series,
        "contours": contours,
        "smooth": smooth,
        "holes": holes,
    }
    record = RunRecord(COMMAND, arguments)
    grid = _grid_of(scan, series, targets)
    given = None if names is None else read_names(names)
    found = open_delineations(source, grid)
    items = _named(source, found, given)
    if "masks" in targets:
        _name_files(items)
    conversion = _Conversion(
        source.resolve(), grid, found, items, targets, given, style, _case_name(case, found.case)
    )
    inputs = [*grid.files, *found.files, *([names] if names is not None else [])]
    own = OwnFiles(output, CONVERT_RECORD, COMMAND, overwrite=overwrite, inputs=inputs)
    for name in conversion.known_files():
        check_name_fits(output / name)
    if "masks" in targets and (output / conversion.case).exists() and not (output / conversion.case).is_dir():
        raise InputError(
            f"{output / conversion.case}: is a file where the folder of masks is to be written; choose another "
            "folder"
        )
    own.check(conversion.known_files())
    with claimed(own.claim, "a conversion"):
        try:
            own.tidy()  # what a killed process placed and did not state is no names of values to go by
            conversion.check_source(own)
            read = found.read([item.held for item in conversion.asked])
            for done, (item, drawn) in enumerate(zip(conversion.asked, read, strict=True), start=1):
                item.drawn = drawn
                if progress is not None:
                    progress(done, len(conversion.asked))
            conversion.find_lacking()
            files = conversion.write(own, record)
        finally:
            own.discard()
    outcomes = tuple(item.outcome() for item in items)
    return Converted(conversion.case, outcomes, files, (*found.notes, *conversion.notes))


@dataclass(eq=False)
class _Conversion:
    """One conversion: what it reads, what it writes."""

    source: Path
    grid: ScanGrid
    found: Delineations
    items: list[_Item]
    targets: tuple[Target, ...]
    names: NamesFile | None
    style: Style
    case: str
    notes: list[str] = field(default_factory=list)
    #: Of the structures in the label maps of the output folder; empty where none is written.
    values: dict[str, int] = field(default_factory=dict)

    @property
    def asked(self) -> list[_Item]:
        """The structures that are to be converted."""
        return [item for item in self.items if item.name is not None]

    def in_(self, target: Target, *, empty: bool = False) -> list[_Item]:
        """Return the structures that an output holds; those without a voxel where it can say so."""
        wanted = ("contoured", "absent") if empty else ("contoured",)
        return [item for item in self.asked if item.status in wanted and target not in item.lacking]

    def known_files(self) -> list[str]:
        """Return the names of the outputs, before anything is read: all that there may be."""
        files = [f"{self.case}{SUFFIXES[target]}" for target in self.targets if target in SUFFIXES]
        if "masks" in self.targets:
            files += [self.mask_file(item) for item in self.asked]
        return files

    def mask_file(self, item: _Item) -> str:
        """Return the name of a structure's own file."""
        return f"{self.case}/{item.stem}{SUFFIXES['nifti']}"

    def earlier(self, own: OwnFiles) -> dict[str, Any]:
        """Return what the record says of this case: output to what it was made of."""
        cases: dict[str, Any] = (own.content() or {}).get("cases", {})
        return dict(cases.get(self.case, {}))

    def check_source(self, own: OwnFiles) -> None:
        """Refuse to replace what was made of another source.

        Raises:
            InputError: it is named.
        """
        for target, entry in self.earlier(own).items():
            if target in self.targets and entry["source"] != str(self.source):
                raise InputError(
                    f"{own.folder}: holds case {self.case} already, converted from {entry['source']}; choose "
                    f"another folder, or another name with {argument('case')}"
                )

    def find_lacking(self) -> None:
        """Find out which output cannot hold which structure, and refuse what nothing is left of.

        Raises:
            InputError: two structures share voxels that a label map is to hold, or an output would be empty.
        """
        for target in self.targets:
            for item in self.in_(target, empty=target not in OF_DICOM):
                if fault := item.fault or _name_fault(item.name or "", target):
                    item.lacking[target] = fault
            if target in OF_DICOM:
                self._note_cut_names(target)
            if not self.in_(target, empty=target not in OF_DICOM):
                raise InputError(self._nothing_for(target))
        if "nifti" in self.targets:
            self._refuse_overlaps()

    def _nothing_for(self, target: Target) -> str:
        reasons = [item.drawn.reason for item in self.asked if item.drawn is not None and item.drawn.reason]
        reasons += [reason for item in self.asked for reason in item.lacking.values()]
        if not reasons:
            empty = listed(repr(item.held.name) for item in self.asked) or "nothing"
            return f"{self.source}: holds no structure with a voxel for {target}; it names {empty}"
        more = f" ({len(reasons) - 1} more structures cannot be converted)" if len(reasons) > 1 else ""
        return f"{self.source}: nothing can be written to {target}: {reasons[0]}{more}"

    def _note_cut_names(self, target: Target) -> None:
        """Say which structures a planning system may show under one name."""
        shown: dict[str, list[str]] = {}
        for item in self.in_(target):
            assert item.name is not None
            shown.setdefault(item.name[:SHOWN_CHARACTERS].casefold(), []).append(item.name)
        for alike in shown.values():
            note = (
                f"{' and '.join(alike)} begin with the same {SHOWN_CHARACTERS} characters, and planning systems "
                f"that show no more (Eclipse) cannot tell them apart; shorten them with {argument('names')}"
            )
            if len(alike) > 1 and note not in self.notes:
                self.notes.append(note)

    def _refuse_overlaps(self) -> None:
        for first, second in combinations(self.in_("nifti"), 2):
            assert first.mask is not None
            assert second.mask is not None
            shared = _shared(first.mask, second.mask, self.grid.geometry)
            if shared:
                volume_ml = shared * self.grid.geometry.voxel_volume_ml
                raise InputError(
                    f"{self.source}: {first.name} and {second.name} share {shared} voxels ({volume_ml:.3g} mL), "
                    f"and a voxel of a label map has one value; use {argument('to', ['masks'])}, which keeps "
                    f"both, or ignore one with {argument('names')}"
                )

    def write(self, own: OwnFiles, record: RunRecord) -> tuple[Path, ...]:
        """Stage every output, and place them together.

        Raises:
            InputError: something cannot be written, or a file of somebody else is in its place.
        """
        made: dict[Target, list[str]] = {}
        writers = {
            "nifti": self._write_labels,
            "masks": self._write_masks,
            "rtstruct": self._write_rtstruct,
            "seg": self._write_seg,
        }
        for target in self.targets:
            made[target] = writers[target](own)
        before = self.earlier(own)
        gone = [name for target in made for name in before.get(target, {}).get("outputs", [])]
        entry = {
            "source": str(self.source),
            "source_sha256": sha256(self.found.files),
            "scan_sha256": sha256(dict.fromkeys(self.grid.files)),
            "structures": [asdict(item.outcome()) for item in self.items],
        }
        cases = dict((own.content() or {}).get("cases", {}))
        cases[self.case] = {**before, **{target: {**entry, "outputs": files} for target, files in made.items()}}
        files = [name for names in made.values() for name in names]
        shared = [NAMES] if "nifti" in made and not (own.folder / NAMES).is_file() else []
        labels = self.values or (own.content() or {}).get("labels", {})
        dropped = [name for name in gone if name not in files]
        own.add({**record.content(), "cases": cases, "labels": labels}, drop=dropped)
        return tuple(own.folder / name for name in [*files, *dict.fromkeys(shared)])

    def _write_labels(self, own: OwnFiles) -> list[str]:
        items = self.in_("nifti", empty=True)
        values = self._values(own, items)
        geometry = self.grid.geometry
        most = max(values.values())
        array = np.zeros(geometry.shape, dtype=np.uint8 if most <= 255 else np.uint16)
        for item in items:
            if item.mask is not None:
                box = _box(item.mask, geometry)
                array[box][item.mask.array != 0] = values[item.name or ""]
        name = f"{self.case}{SUFFIXES['nifti']}"
        write_nifti(own.stage(name), Volume(array, geometry), self._like)
        return [name]

    def _values(self, own: OwnFiles, items: Sequence[_Item]) -> dict[str, int]:
        """Give each structure its value, and stage the names of values.

        Values are those of the dataset.json that is in the folder already, those of the names file (in its order),
        or the source's own; what has none gets the next that is free.
        """
        path = own.folder / NAMES
        # The record knows them too, should a process be killed after it placed new names for old ones.
        there = dict(
            read_dataset_json(own.folder).labels if path.is_file() else (own.content() or {}).get("labels", {})
        )
        stated = dict(self.names.labels) if self.names is not None else {}
        for name, value in stated.items():
            other = next((n for n, v in there.items() if v == value and n != name), None)
            if there.get(name, value) != value or (name not in there and other is not None):
                raise InputError(
                    f"{path}: names {other or name} {value if other else there[name]}, and the names file {name} "
                    f"{value}; choose another folder"
                )
        values = there | stated
        wanted = {item.name or "": item.held.value for item in items}
        for name, own_value in wanted.items():
            if name not in values:
                free = own_value is not None and own_value not in values.values() and own_value <= LARGEST_VALUE
                taken = {*values.values(), *(v for v in wanted.values() if v is not None)}
                values[name] = own_value if free and own_value else next(v for v in count(1) if v not in taken)
        if values != there or not path.is_file():
            ours = any(own.holds(NAMES, value) for value in own.stated().get(NAMES, ()))
            if path.is_file() and not ours and not own.overwrite:
                new = listed(name for name in values if name not in there)
                raise InputError(
                    f"{path}: does not name {new}, and was not written by this program; choose another folder, or "
                    f"name the structures as it does with {argument('names')}"
                )
            content = dataset_content(values, 0, "Structures converted by metricunet", "converted structures")
            write_json(own.stage(NAMES), content)
        self.values = values
        return values

    def _write_masks(self, own: OwnFiles) -> list[str]:
        made: list[str] = []
        for item in self.in_("masks", empty=True):
            name = self.mask_file(item)
            write_nifti_part(own.stage(name), item.mask, self.grid.geometry, self._like)
            made.append(name)
        return made

    def _write_rtstruct(self, own: OwnFiles) -> list[str]:
        assert self.grid.series is not None
        name = f"{self.case}{SUFFIXES['rtstruct']}"
        write_rtstruct(
            own.stage(name),
            self.grid.series,
            list(self._structures("rtstruct")),
            description=self._description,
            label="converted",
            set_name="Converted, origin not stated",
            outline=self.style.outline,
            holes=self.style.holes,
            smoothing_mm=self.style.smoothing_mm,
        )
        return [name]

    def _write_seg(self, own: OwnFiles) -> list[str]:
        assert self.grid.series is not None
        name = f"{self.case}{SUFFIXES['seg']}"
        structures = list(self._structures("seg"))
        write_seg(own.stage(name), self.grid.series, structures, description=self._description)
        return [name]

    def _structures(self, target: Target) -> Iterator[Structure]:
        for number, item in enumerate(self.in_(target)):
            assert item.name is not None
            assert item.mask is not None
            stated = item.held.interpreted_type or ""
            wide = _padded(item.mask, self.grid.geometry) if self.style.outline == "surface" else None
            yield Structure(
                name=item.name,
                mask=item.mask,
                colour=item.held.colour or COLOURS[number % len(COLOURS)],
                interpreted_type=stated if re.fullmatch(r"[A-Z][A-Z0-9_ ]{,15}", stated) else _type_of(item.name),
                # Of a mask nothing more is known than that the surface runs between its centres.
                probability=wide if target == "rtstruct" else None,
                code=self.names.codes.get(item.name) if self.names is not None else None,
                generation="",  # nobody knows
            )

    @property
    def _description(self) -> str:
        return (
            f"Converted by metricunet {version('metricunet')} from {self.found.kind}; who drew it is not stated."
        )

    @property
    def _like(self) -> Path | None:
        """The file whose axis order a NIfTI output takes over."""
        path = self.grid.files[0]
        return path if self.grid.series is None and is_nifti(path) else None


def _targets(to: str | Sequence[str]) -> tuple[Target, ...]:
    words = [part.strip() for part in to.split(",")] if isinstance(to, str) else list(to)
    wanted = [OTHER_WORDS.get(word, word) for word in words]
    for name in wanted:
        if name not in TARGETS:
            raise InputError(f"{argument('to')} must be of {', '.join(TARGETS)}; got {name!r}")
    if not wanted:
        raise InputError(f"{argument('to')} names none; expected one or several of {', '.join(TARGETS)}")
    return tuple(name for name in TARGETS if name in wanted)


def _grid_of(path: Path, series: str | None, targets: Sequence[Target]) -> ScanGrid:
    """Find the one scan at a path; of a DICOM series the headers alone are read."""
    inputs, _ = find_inputs([path], series, allow=Allow(offered=False))
    of_series = [entry for entry in inputs if entry.series is not None]
    inputs = of_series or inputs  # masks and copies of the scan may lie beside it
    if len(inputs) > 1:
        uids = [entry.series.series_uid for entry in inputs if entry.series is not None]
        advice = f"choose one with {argument('series')}: {', '.join(uids)}" if uids else "name the file of one"
        raise InputError(f"{path}: holds {len(inputs)} scans, and structures belong to one; {advice}")
    (entry,) = inputs
    if entry.series is None:
        for target in OF_DICOM:
            if target in targets:
                raise InputError(
                    f"{entry.path}: {argument('to', [target])} needs a DICOM series to refer to, and this is "
                    f"none; give the folder of the series with {argument('scan')}"
                )
        return ScanGrid(entry.path.name, read_scan(entry.path).geometry, entry.files, None)
    return ScanGrid(f"series {entry.series.series_uid}", entry.series.geometry, entry.files, entry.series)


def _named(source: Path, found: Delineations, names: NamesFile | None) -> list[_Item]:
    """Give each structure its name in the outputs.

    Raises:
        InputError: a spelling that the names file does not sort, or two drawn structures that mean one.
    """
    items: list[_Item] = []
    if names is None:
        items = [_Item(held, held.name) for held in found.structures]
    else:
        lost = [held.name for held in found.structures if _unsorted(held, names)]
        if names.undecided or lost:
            told = listed(map(repr, lost or names.undecided), 10)
            raise InputError(
                f"{names.source}: does not say what {told} of {source} means; put each under a structure or under "
                "ignore"
            )
        items = [_Item(held, names.structure_of(held.name)) for held in found.structures]
        _refuse_doubles(source, items, found.undrawn)
    _set_apart(items)
    if found.ignored is not None:
        held = Held(IGNORE, f"{source}: label {found.ignored}", True, found.ignored)
        fault = (
            f"{held.location} marks voxels that nobody contoured (nnU-Net's ignore label), which are no structure"
        )
        known = names is not None and names.ignores(IGNORE)
        items.append(_Item(held, None if known else IGNORE, fault=fault))
    if not any(item.name is not None for item in items):
        why = "the names file ignores all of its structures" if found.structures else "it holds no structure"
        raise InputError(f"{source}: {why}, so there is nothing to convert")
    return items


def _unsorted(held: Held, names: NamesFile) -> bool:
    return names.structure_of(held.name) is None and not names.ignores(held.name)


def _refuse_doubles(source: Path, items: Iterable[_Item], undrawn: RegionStatus) -> None:
    """Refuse two drawn structures that the names file takes for one; one that holds nothing gives way."""
    first: dict[str, _Item] = {}
    for item in items:
        if item.name is None:
            continue
        before = first.setdefault(item.name, item)
        if before is item:
            continue
        if before.held.drawn and item.held.drawn:
            raise InputError(
                f"{source}: {before.held.location} and {item.held.location} both mean {item.name}; put one of "
                "them under another structure or under ignore"
            )
        empty = before if not before.held.drawn else item
        first[item.name] = item if empty is before else before
        empty.name, empty.drawn = None, Drawn(undrawn)


def _set_apart(items: Iterable[_Item]) -> None:
    """Give structures of one name, capitals apart, names of their own."""
    taken = {item.name for item in items if item.name is not None}
    seen: set[str] = set()
    folded = {name.casefold() for name in taken}
    for item in items:
        if item.name is None:
            continue
        if item.name.strip().casefold() in seen:
            before = item.name
            item.name = next(
                n for n in _suffixed(before.strip()) if n.casefold() not in seen and n.casefold() not in folded
            )
            item.notes.append(
                f"{item.held.location}: another structure is named {before!r}; it becomes {item.name}"
            )
        seen.add(item.name.strip().casefold())


def _name_files(items: Iterable[_Item]) -> None:
    """Give each structure the name of a file that every file system takes."""
    taken: set[str] = set()
    for item in items:
        if item.name is None:
            continue
        wanted = UNFIT.sub("_", item.name).strip().rstrip(". ")
        wanted = f"_{wanted[1:]}" if wanted.startswith(".") else wanted or "_"
        wanted = f"_{wanted}" if DEVICES.fullmatch(wanted) else wanted
        item.stem = next(stem for stem in _suffixed(wanted) if stem.casefold() not in taken)
        taken.add(item.stem.casefold())
        if item.stem != item.name:
            item.notes.append(f"{item.name!r} cannot be the name of a file; it is written as {item.stem}.nii.gz")


def _suffixed(name: str) -> Iterator[str]:
    yield name
    for number in count(2):
        yield f"{name}_{number}"


def _case_name(given: str | None, of_source: str) -> str:
    name = given if given is not None else of_source
    if not name.strip() or UNFIT.search(name) or name.startswith("."):
        raise InputError(
            f"{name!r} cannot be the name of a case, for files are named after it; give one with "
            f"{argument('case')}"
        )
    return name


def _name_fault(name: str, target: Target) -> str:
    """Say why an output cannot hold a structure of this name; empty where it can."""
    if target in OF_DICOM:
        stripped = name.strip()
        if not 0 < len(stripped) <= LONG_STRING or "\\" in stripped or not stripped.isprintable():
            return (
                f"the name {name[:80]!r} has {len(stripped)} characters; DICOM takes 1 to {LONG_STRING} "
                f"printable ones and no backslash; rename it with {argument('names')}"
            )
    if target == "nifti" and name.casefold() in (BACKGROUND, IGNORE):
        return f"dataset.json keeps the name {name!r} for itself; rename the structure with {argument('names')}"
    return ""


def _type_of(name: str) -> str:
    if name.strip() in OUTLINES:
        return "EXTERNAL"
    return next((kind for beginning, kind in TYPES if name.startswith(beginning)), "ORGAN")


def _start(part: Volume, grid: Geometry) -> list[int]:
    return [int(v) for v in np.rint(grid.to_index(part.geometry.origin_mm))]


def _box(part: Volume, grid: Geometry) -> tuple[slice, ...]:
    """Return where a part lies on the grid."""
    return tuple(slice(s, s + n) for s, n in zip(_start(part, grid), part.array.shape, strict=True))


def _shared(first: Volume, second: Volume, grid: Geometry) -> int:
    """Count the voxels that two masks share."""
    boxes = _box(first, grid), _box(second, grid)
    low = [max(a.start, b.start) for a, b in zip(*boxes, strict=True)]
    high = [min(a.stop, b.stop) for a, b in zip(*boxes, strict=True)]
    if any(a >= b for a, b in zip(low, high, strict=True)):
        return 0
    parts = [
        volume.array[tuple(slice(a - s.start, b - s.start) for a, b, s in zip(low, high, box, strict=True))]
        for volume, box in zip((first, second), boxes, strict=True)
    ]
    return int(np.count_nonzero((parts[0] != 0) & (parts[1] != 0)))


def _padded(mask: Volume, grid: Geometry) -> Volume:
    """Return a mask as a probability, with a voxel more on each side where the grid has one."""
    box = _box(mask, grid)
    low = [max(0, s.start - 1) for s in box]
    high = [min(n, s.stop + 1) for n, s in zip(grid.shape, box, strict=True)]
    shape = [b - a for a, b in zip(low, high, strict=True)]
    array = np.zeros(shape, dtype=np.float32)
    array[tuple(slice(s.start - a, s.stop - a) for s, a in zip(box, low, strict=True))] = mask.array
    return Volume(array, grid.crop(low, shape))
