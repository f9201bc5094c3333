"""The import itself: find the cases, decide on every one, then write them, each whole or not at all.

`import.json` says what became of everything that was found: of each case its structures, what overlapped and what
was odd, and of what was refused or left out the reason. It comes first, dataset.json last: an import that was
stopped can be gone on with, but not be trained on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from metricunet.cohort.case import HIGHEST_MINIMUM_HU
from metricunet.cohort.contoured import write_contoured
from metricunet.cohort.importing.layouts import AUTO, find_cases
from metricunet.cohort.importing.names_file import NamesFile, listed, read_names, skeleton
from metricunet.cohort.importing.plan import Plan, PlannedCase, default_names, make_plan, spellings
from metricunet.cohort.importing.privacy import Privacy, Uids
from metricunet.cohort.importing.source import Bars, Found, LeftOut, Region, SourceCase
from metricunet.cohort.layout import image_path, label_path, write_dataset_json
from metricunet.cohort.splits import PATIENTS_NAME
from metricunet.errors import InputError
from metricunet.files.atomic import write_json
from metricunet.files.nifti import write_nifti
from metricunet.files.record import RunRecord
from metricunet.volume import Volume

IMPORT_NAME = "import.json"
#: Raised whenever the same source begins to give other files.
IMPORT_VERSION = 1
OVERLAP_RULE = "a voxel of several structures belongs to the first of them in the names file"


@dataclass(frozen=True)
class Imported:
    """What became of an import. Its texts hold neither names nor birth dates of patients.

    Attributes:
        folder: of the cohort.
        cases: names of the cases.
        patients: how many there are.
        done_before: cases that an earlier run left there.
        structures: structure to status to the number of cases.
        overlaps: what overlapped, a line for each two structures.
        refused: what failed a check, a line each.
        left_out: what holds nothing that was asked for, a line each.
        notes: what a user of the cohort has to know, and what was odd about the contours, a line each.
    """

    folder: Path
    cases: tuple[str, ...]
    patients: int
    done_before: int
    structures: dict[str, dict[str, int]]
    overlaps: tuple[str, ...]
    refused: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def failed(self) -> bool:
        """Whether anything was refused, or a contoured structure could not be used."""
        return bool(self.refused) or any("unusable" in counts for counts in self.structures.values())

    def text(self) -> str:
        """Return a summary for the terminal."""
        before = f", {self.done_before} of them done before" if self.done_before else ""
        lines = [f"{len(self.cases)} cases of {self.patients} patients in {self.folder}{before}"]
        for name, counts in self.structures.items():
            lines.append(f"{name}: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
        return "\n".join([*lines, *self.overlaps])


@dataclass(frozen=True)
class Spellings:
    """The names of structures in some sources.

    Attributes:
        text: a names file to be completed, with the counts of spellings beside them.
        refused: what failed a check, a line each.
        left_out: what cannot be imported for another reason, a line each.
    """

    text: str
    refused: tuple[str, ...]
    left_out: tuple[str, ...]


def list_names(
    sources: Sequence[Path],
    *,
    layout: str = AUTO,
    bars: Bars = lambda name: lambda done, total: None,
) -> Spellings:
    """Count every spelling of every structure's name, as a names file to be completed.

    Args:
        sources: folders.
        layout: of all of them: dicom, totalsegmentator, nnunet, pairs, or auto.
        bars: opens a progress bar by its name.

    Raises:
        InputError: a folder that holds nothing of its layout.
    """
    privacy = Privacy()
    try:
        found = [find_cases(source, layout, privacy, bars) for source in sources]
        text = skeleton(spellings(found), sum(len(one.cases) for one in found))
        left_out = [entry for one in found for entry in one.left_out]
        return Spellings(text, _lines(left_out, True, privacy), _lines(left_out, False, privacy))
    except InputError as error:
        raise InputError(privacy.spoken(str(error))) from None


def import_cohort(
    sources: Sequence[Path],
    output: Path,
    *,
    names: Path | None = None,
    layout: str = AUTO,
    uids: Uids = "hash",
    bars: Bars = lambda name: lambda done, total: None,
) -> Imported:
    """Make a cohort of scans with contours. Run again, it goes on where it was stopped and skips what is done.

    Args:
        sources: folders of DICOM, TotalSegmentator's subjects, nnU-Net's or AMOS22's layout, or pairs of files.
        output: folder of the cohort: new, empty, or of an earlier import of the same sources.
        names: names file; may be left out for layouts with names of their own, which then give the prostate alone.
        layout: of all sources: dicom, totalsegmentator, nnunet, pairs, or auto.
        uids: whether import.json holds the identifiers of the source, or their hashes.
        bars: opens a progress bar by its name.

    Raises:
        InputError: sources, names or an output that cannot be used, a spelling that is not in the names file or
            stands for two structures, or nothing to import. Nothing was written then.
    """
    privacy = Privacy(uids)
    try:
        return _import(sources, output, names, layout, privacy, bars)
    except InputError as error:
        raise InputError(privacy.spoken(str(error))) from None


def _import(
    sources: Sequence[Path], output: Path, names: Path | None, layout: str, privacy: Privacy, bars: Bars
) -> Imported:
    record = RunRecord("import", {})
    earlier = _earlier(output)
    given = None if names is None else read_names(names)
    found = [find_cases(source, layout, privacy, bars) for source in sources]
    _drop_twins(found)
    layouts = [one.layout for one in found]
    if not any(one.cases for one in found):
        _refuse(sources, [entry for one in found for entry in one.left_out])
    chosen = given if given is not None else default_names(layouts)
    plan = make_plan(found, chosen)
    left_out = [*(entry for one in found for entry in one.left_out), *plan.left_out]
    if not plan.cases:
        _refuse(sources, left_out)
    stale = earlier.keys() - {case.source.name for case in plan.cases}
    if stale:
        raise InputError(
            f"{output}: holds {len(stale)} cases ({listed(sorted(stale))}) that the sources do not; name all its "
            "sources and the same structures again, or choose another folder with -o"
        )
    importer = _Importer(output, plan.names, privacy, dict(earlier), {})
    reports, failed = importer.run(plan.cases, bars("importing"))
    left_out += failed
    if not reports:
        (output / IMPORT_NAME).unlink(missing_ok=True)
        _refuse(sources, left_out)
    notes = [note for one in found for note in one.notes]
    arguments = {
        "sources": [privacy.written(str(source)) for source in sources],
        "output": privacy.written(str(output)),
        "names": None if names is None else privacy.written(str(names)),
        "layout": layout,
        "uids": privacy.uids,
    }
    _finish(output, plan, found, reports, left_out, notes, privacy)
    record.arguments = arguments
    record.facts = {"layouts": layouts, "cases": len(reports), "left_out": len(left_out)}
    record.write(output)
    _write_dataset(output, plan, found, reports)
    return _outcome(output, plan.names, reports, left_out, notes, privacy, importer.done_before)


def _earlier(output: Path) -> dict[str, dict[str, Any]]:
    """Return the cases that an earlier import left in a folder, by their names.

    Raises:
        InputError: a folder of anything else.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; expected a new or empty folder for the cohort")
    path = output / IMPORT_NAME
    if not path.is_file():
        if output.is_dir() and any(output.iterdir()):
            raise InputError(f"{output}: holds other files and no {IMPORT_NAME}; choose a new or empty folder")
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): dict(entry) for name, entry in content["cases"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not readable ({error}); delete the folder and run again") from error


def _drop_twins(found: Sequence[Found]) -> None:
    """Keep one of the cases that two sources share."""
    places: dict[str, str] = {}
    for one in found:
        kept: list[SourceCase] = []
        for case in one.cases:
            if case.name in places:
                reason = f"{case.place}: is the same scan as {places[case.name]}; it counts once"
                one.left_out.append(LeftOut(case.identity, reason, False, len(case.files)))
            else:
                places[case.name] = case.place
                kept.append(case)
        one.cases = kept


def _refuse(sources: Sequence[Path], left_out: Sequence[LeftOut]) -> NoReturn:
    reasons = "; ".join(entry.reason for entry in left_out[:5])
    more = f"; and {len(left_out) - 5} more" if len(left_out) > 5 else ""
    where = ", ".join(map(str, sources))
    raise InputError(f"{where}: nothing to import: {reasons}{more}" if left_out else f"{where}: nothing to import")


@dataclass
class _Importer:
    """Writes cases and keeps import.json as far as it is."""

    output: Path
    names: NamesFile
    privacy: Privacy
    before: dict[str, dict[str, Any]]
    reports: dict[str, dict[str, Any]]
    done_before: int = 0

    def run(self, cases: Sequence[PlannedCase], progress: Any) -> tuple[dict[str, dict[str, Any]], list[LeftOut]]:
        """Import what is not there yet; return a report for each case, and what was refused on the way."""
        failed: list[LeftOut] = []
        todo = [case for case in cases if not self._is_done(case)]
        if todo:
            # Without it nobody takes a part for the whole.
            (self.output / "dataset.json").unlink(missing_ok=True)
            self._save()
        done = self.done_before = len(cases) - len(todo)
        for case in todo:
            try:
                self.reports[case.source.name] = self._import_case(case)
            except InputError as error:
                if isinstance(error.__cause__, OSError) and str(self.output) in str(error):
                    raise  # the disk is full: that is no fault of the case
                failed.append(LeftOut(case.source.identity, str(error), True, len(case.source.files)))
                self._remove(case)
            self._save()
            done += 1
            progress(done, len(cases))
        return {c.source.name: self.reports[c.source.name] for c in cases if c.source.name in self.reports}, failed

    def _is_done(self, case: PlannedCase) -> bool:
        name = case.source.name
        report = self.before.get(name)
        if report is None or report.get("key") != self._key(case):
            return False
        if not all(path.is_file() for path in self._paths(case)):
            return False
        self.reports[name] = report
        return True

    def _key(self, case: PlannedCase) -> str:
        return case.key(self.names.labels, IMPORT_VERSION, self.privacy.uids)

    def _paths(self, case: PlannedCase) -> tuple[Path, Path]:
        name, split = case.source.name, case.source.split
        return image_path(self.output, name, split), label_path(self.output, name, split)

    def _remove(self, case: PlannedCase) -> None:
        for path in self._paths(case):
            path.unlink(missing_ok=True)

    def _save(self) -> None:
        unsure = {name: entry for name, entry in self.before.items() if name not in self.reports}
        write_json(self.output / IMPORT_NAME, {"complete": False, "cases": {**unsure, **self.reports}})

    def _import_case(self, case: PlannedCase) -> dict[str, Any]:
        source = case.source
        image = source.read_image()
        lowest = float(image.array.min())
        if lowest > HIGHEST_MINIMUM_HU:
            raise InputError(
                f"{source.place}: the lowest value is {lowest:g}, so these are no Hounsfield units (air is "
                "-1000); expected a CT"
            )
        labels, structures, overlaps = merged(case, image, self.names)
        if not any(entry["status"] in ("contoured", "absent") for entry in structures.values()):
            reasons = "; ".join(entry["reason"] for entry in structures.values() if entry.get("reason"))
            raise InputError(f"{source.place}: none of its structures can be used: {reasons}")
        image_file, label_file = self._paths(case)
        write_nifti(image_file, image)
        write_nifti(label_file, Volume(labels, image.geometry))
        for entry in structures.values():
            for field in ("spelling", "reason"):
                if field in entry:
                    entry[field] = self.privacy.written(entry[field])
            if "notes" in entry:
                entry["notes"] = [self.privacy.written(note) for note in entry["notes"]]
        return {
            "key": self._key(case),
            "source": self.privacy.written(source.identity),
            "patient": source.patient,
            "split": source.split,
            "structures": structures,
            "overlaps": overlaps,
        }


def merged(
    case: PlannedCase, image: Volume, names: NamesFile
) -> tuple[np.ndarray, dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Put the structures of a case into one label map; where several overlap, the first keeps the voxel.

    Returns:
        Labels on the scan's grid; structure to what became of it; and for each two structures what they shared.
    """
    largest = len(names.structures)
    labels = np.zeros(image.geometry.shape, dtype=np.uint8 if largest <= 255 else np.uint16)
    voxel_ml = image.geometry.voxel_volume_ml
    order = list(names.structures)
    structures: dict[str, dict[str, Any]] = {}
    overlaps: list[dict[str, Any]] = []
    regions = case.source.read_regions(list(case.structures.values()), image)
    for name, region in zip(case.structures, regions, strict=True):
        entry: dict[str, Any] = {"status": region.status, "spelling": region.named.spelling}
        if region.mask is not None:
            taken = labels[region.mask]
            for value, count in zip(*np.unique(taken[taken > 0], return_counts=True), strict=True):
                shared = {
                    "kept": order[int(value) - 1],
                    "lost": name,
                    "volume_ml": round(int(count) * voxel_ml, 3),
                }
                overlaps.append(shared)
            free = region.mask & (labels == 0)
            labels[free] = order.index(name) + 1
            entry["volume_ml"] = round(int(np.count_nonzero(free)) * voxel_ml, 3)
            if not free.any():
                within = ", ".join(shared["kept"] for shared in overlaps if shared["lost"] == name)
                region = Region(
                    region.named,
                    "unusable",
                    None,
                    f"{region.named.place} lies wholly within {within}, which stands before {name} in the names "
                    f"file; put {name} before it",
                )
                entry = {"status": region.status, "spelling": region.named.spelling}
        if region.reason:
            entry["reason"] = region.reason
        if region.notes:
            entry["notes"] = list(region.notes)
        structures[name] = entry
    for name in order:
        if name in structures:
            continue
        if name in case.absent:
            structures[name] = {"status": "absent", "reason": "stated in the names file"}
        elif name in case.undrawn:
            named = case.undrawn[name]
            structures[name] = {
                "status": "not contoured",
                "spelling": named.spelling,
                "reason": f"{named.place}: nothing is drawn",
            }
        else:
            structures[name] = {"status": "not contoured"}
    return labels, {name: structures[name] for name in order}, overlaps


def _known(report: dict[str, Any]) -> list[str]:
    """Return the structures of which a case's labels speak."""
    return [name for name, e in report["structures"].items() if e["status"] in ("contoured", "absent")]


def _finish(
    output: Path,
    plan: Plan,
    found: Sequence[Found],
    reports: dict[str, dict[str, Any]],
    left_out: Sequence[LeftOut],
    notes: Sequence[str],
    privacy: Privacy,
) -> None:
    write_json(output / PATIENTS_NAME, {name: report["patient"] for name, report in reports.items()})
    write_contoured(output, {name: _known(report) for name, report in reports.items()})
    entries = [
        {
            "what": privacy.written(entry.what),
            "refused": entry.refused,
            "files": entry.files,
            "reason": privacy.written(entry.reason),
        }
        for entry in left_out
    ]
    names = plan.names
    write_json(
        output / IMPORT_NAME,
        {
            "complete": True,
            "version": IMPORT_VERSION,
            "layouts": [one.layout for one in found],
            "uids": privacy.uids,
            "overlaps": OVERLAP_RULE,
            "structures": {
                name: [privacy.written(s) for s in names.structures[name]] for name in names.structures
            },
            "ignored": {privacy.written(spelling): count for spelling, count in plan.ignored.items()},
            "notes": [privacy.written(note) for note in notes],
            "left_out": entries,
            "cases": reports,
        },
    )


def _write_dataset(output: Path, plan: Plan, found: Sequence[Found], reports: dict[str, dict[str, Any]]) -> None:
    said = [one.trained_on for one in found if one.trained_on is not None]
    write_dataset_json(
        output,
        plan.names.labels,
        sum(report["split"] == "Tr" for report in reports.values()),
        f"imported from {', '.join(dict.fromkeys(one.layout for one in found))}; see {IMPORT_NAME}",
        "synthetic" if "synthetic" in said else (said[0] if said else "imported scans"),
    )


def _lines(left_out: Sequence[LeftOut], refused: bool, privacy: Privacy) -> tuple[str, ...]:
    return tuple(privacy.spoken(f"{e.reason} [{e.what}]") for e in left_out if e.refused == refused)


def _outcome(
    output: Path,
    names: NamesFile,
    reports: dict[str, dict[str, Any]],
    left_out: Sequence[LeftOut],
    notes: Sequence[str],
    privacy: Privacy,
    done_before: int,
) -> Imported:
    counts: dict[str, Counter[str]] = {name: Counter() for name in names.structures}
    shared: dict[tuple[str, str], list[float]] = {}
    odd: list[str] = []
    for case, report in reports.items():
        for name, entry in report["structures"].items():
            counts[name][entry["status"]] += 1
            if entry["status"] == "unusable":
                odd.append(f"{case}: {name} is unusable, and counts as not contoured: {entry['reason']}")
            odd += [f"{case}: {note}" for note in entry.get("notes", ())]
        for overlap in report["overlaps"]:
            shared.setdefault((overlap["kept"], overlap["lost"]), []).append(overlap["volume_ml"])
    overlaps = tuple(
        f"{kept} and {lost} overlap in {len(volumes)} cases, by up to {max(volumes):.2f} mL, which {kept} keeps"
        for (kept, lost), volumes in shared.items()
    )
    return Imported(
        output,
        tuple(reports),
        len({report["patient"] for report in reports.values()}),
        done_before,
        {name: dict(count) for name, count in counts.items()},
        overlaps,
        _lines(left_out, True, privacy),
        _lines(left_out, False, privacy),
        tuple(privacy.spoken(note) for note in [*notes, *odd]),
    )
