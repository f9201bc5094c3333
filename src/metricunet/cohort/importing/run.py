"""The import itself: find the cases, decide on every one, then write them, each whole or not at all.

`import.json` says what became of everything that was found: of each case its structures, what overlapped and what
was odd, and of what was refused or left out the reason. It comes first, dataset.json last: an import that was
stopped can be continued, but not be trained on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from metricunet.cohort.case import refuse_no_hu
from metricunet.cohort.contoured import CONTOURED_NAME, contoured_content
from metricunet.cohort.importing.dicom_tree import DicomCase, join_patients
from metricunet.cohort.importing.layouts import AUTO, Finder, find_cases
from metricunet.cohort.importing.merge import merge
from metricunet.cohort.importing.names_file import NamesFile, listed, read_names, skeleton
from metricunet.cohort.importing.plan import ImportPlan, PlannedCase, default_names, plan_import, spellings
from metricunet.cohort.importing.privacy import Privacy, Uids
from metricunet.cohort.importing.report import (
    Imported,
    Report,
    Spellings,
    import_json,
    known_structures,
    lines,
    summarised,
)
from metricunet.cohort.importing.source import Found, LeftOut, SourceCase
from metricunet.cohort.layout import dataset_content, image_path, label_path
from metricunet.cohort.splits import PATIENTS_NAME
from metricunet.engine import GIB, Engine, Needs, Serial, Tell
from metricunet.errors import InputError, argument, told, without_frames
from metricunet.files.atomic import write_json
from metricunet.files.claim import claimed, refuse_claimed
from metricunet.files.names import check_name_fits
from metricunet.files.nifti import write_nifti
from metricunet.files.own import FILES, OwnFiles
from metricunet.files.record import RunRecord, hash_if_readable, sha256
from metricunet.progress import Bars, Progress, no_bars

COMMAND = "import"
IMPORT_NAME = "import.json"
#: What is going on in the folder, for another import that would work there.
IMPORTING = "an import"
#: Raised whenever the same source begins to give other files.
IMPORT_VERSION = 1
#: What describes the cohort beside its record.
DESCRIPTIONS = (PATIENTS_NAME, CONTOURED_NAME, "dataset.json")
#: Reasons named where nothing can be imported, or a case of an earlier import is missing.
MOST_REASONS = 5
#: Of so many cases an engine is asked whether all its machines see them.
MOST_SEEN = 64
#: A scan of 512 x 512 x 300, its masks and the label map.
NEEDS = Needs(round(1.5 * GIB))


def list_names(
    sources: Sequence[Path], *, names: Path | None = None, layout: str | Finder = AUTO, bars: Bars = no_bars
) -> Spellings:
    """Count every spelling of every structure's name, as a names file to be completed.

    Args:
        sources: folders with scans and contours.
        names: names file; then only the spellings that it does not sort are counted, to be added to it.
        layout: layout of all these folders: dicom, totalsegmentator, nnunet, pairs, or auto; or a function that
            finds the cases of another.
        bars: opens a progress bar by its name.

    Raises:
        InputError: a folder that holds nothing of its layout, or a names file that cannot be read.
    """
    privacy = Privacy()
    with privacy.guarding_errors():
        known = None if names is None else read_names(names)
        found = [find_cases(source, layout, privacy, bars) for source in sources]
        text = skeleton(spellings(found), sum(len(one.cases) for one in found), known)
        left_out = [entry for one in found for entry in one.left_out]
        return Spellings(text, lines(left_out, True, privacy), lines(left_out, False, privacy))


def import_cohort(
    sources: Sequence[Path],
    output: Path,
    *,
    names: Path | None = None,
    layout: str | Finder = AUTO,
    uids: Uids = "hash",
    overwrite: bool = False,
    bars: Bars = no_bars,
    engine: Engine | None = None,
) -> Imported:
    """Make a cohort of scans with contours. Run again, it continues where it was stopped.

    Args:
        sources: folders of DICOM, TotalSegmentator's subjects, nnU-Net's or AMOS22's layout, or pairs of files.
        output: folder of the cohort: new, empty, or of an earlier import of the same sources.
        names: names file; may be left out for layouts with names of their own: TotalSegmentator's and nnU-Net's
            then give the prostate alone.
        layout: layout of all sources: dicom, totalsegmentator, nnunet, pairs, or auto; or a function that finds
            the cases of another, such as `metricunet.workflows.review.learn.ReviewedCases`.
        uids: whether import.json holds the identifiers of the source, or their hashes.
        overwrite: whether files of others that have the outputs' names may be replaced; sources never are.
        bars: opens a progress bar by its name.
        engine: reads the cases and writes their files; None for one after the other, in this process.

    A case in which anything goes wrong is refused with its reason, and the others are imported. A label or an
    image of the cohort that was changed since is its owner's: it is neither replaced nor removed.

    Raises:
        InputError: sources, names or an output that cannot be used, an output in a source, a file of the cohort
            that is not an import's, another import that works there, a spelling that is not in the names file,
            or nothing to import. Nothing was written then; but where the sources have taken all cases of the
            cohort back, they are removed. The disk is full: what was imported is kept.
    """
    privacy = Privacy(uids)
    with privacy.guarding_errors(), ExitStack() as held:
        record = RunRecord(COMMAND, {})
        _refuse_output_in_sources(sources, output)
        claim = OwnFiles(output, IMPORT_NAME, COMMAND).claim
        refuse_claimed(claim, IMPORTING)
        _earlier(output, overwrite)  # in a folder of others not even a claim is left
        held.enter_context(claimed(claim, IMPORTING))
        earlier = _earlier(output, overwrite)
        given = None if names is None else read_names(names)
        found = [find_cases(source, layout, privacy, bars) for source in sources]
        _drop_twins(found)
        join_patients(case for one in found for case in one.cases)
        _note_one_patient(found)
        left_out = [entry for one in found for entry in one.left_out]
        withdrawn = {name for one in found for name in one.withdrawn}
        if not any(one.cases for one in found):
            if earlier and earlier.keys() <= withdrawn:
                _take_back(OwnFiles(output, IMPORT_NAME, COMMAND))
                raise InputError(
                    f"{output}: the sources have taken all its cases back since, so they are removed, and "
                    f"none is left to import: {_first(left_out)}"
                )
            _refuse(sources, left_out)
        plan = plan_import(found, default_names(found) if given is None else given)
        left_out += plan.left_out
        if not plan.cases:
            _refuse(sources, left_out)
        stale = earlier.keys() - {case.source.name for case in plan.cases}
        stale -= withdrawn
        if stale:
            refused = _first([entry for entry in left_out if entry.refused])
            raise InputError(
                f"{output}: holds {len(stale)} cases ({listed(sorted(stale))}) that the sources do not; name all "
                "its sources and the same structures again, or choose another folder"
                + (f". Refused were: {refused}" if refused else "")
            )
        inputs = [file for one in found for case in one.cases for file in case.files]
        inputs += [] if names is None else [names]
        importer = _Importer(
            OwnFiles(output, IMPORT_NAME, COMMAND, overwrite=overwrite, inputs=inputs), plan, privacy, earlier
        )
        try:
            left_out += importer.run(bars("importing"), engine or Serial())
            if not importer.reports:
                importer.own.clear()
                _refuse(sources, left_out)
            reports = {
                c.source.name: importer.reports[c.source.name]
                for c in plan.cases
                if c.source.name in importer.reports
            }
            record.arguments = {
                "sources": [privacy.written(str(source)) for source in sources],
                "output": privacy.written(str(output)),
                "names": None if names is None else privacy.written(str(names)),
                "layout": layout if isinstance(layout, str) else found[0].layout,
                "uids": privacy.uids,
                "overwrite": overwrite,
            }
            record.facts = {"names_sha256": None if names is None else hash_if_readable(names)}
            content = import_json(plan, found, reports, left_out, privacy, IMPORT_VERSION)
            importer.finish(found, reports, record.content() | content)
        except BaseException:
            importer.own.discard()
            raise
        result = summarised(output, plan.names, reports, left_out, found, privacy, importer.done_before)
        return replace(result, errors=tuple(without_frames(entry.error) for entry in left_out if entry.error))


def _refuse_output_in_sources(sources: Sequence[Path], output: Path) -> None:
    """Refuse an output that the next import of the same sources would search for scans."""
    for source in sources:
        if output.resolve().is_relative_to(source.resolve()):
            raise InputError(
                f"{output}: lies in the source {source}, so the cohort's own scans would be found there again; "
                "choose a folder outside"
            )


def _earlier(output: Path, overwrite: bool) -> dict[str, Report]:
    """Return the cases that an earlier import left in a folder, by their names.

    Raises:
        InputError: a folder of anything else.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; expected a new or empty folder for the cohort")
    own = OwnFiles(output, IMPORT_NAME, COMMAND)
    content = own.content()
    if content is None:
        if overwrite or own.is_new():
            return {}
        if own.path.exists():
            own.check([])  # says that it is not an import's record
        raise InputError(f"{output}: holds other files and no {IMPORT_NAME}; choose a new or empty folder")
    return {str(name): dict(entry) for name, entry in content["cases"].items()}


def _drop_twins(found: Sequence[Found]) -> None:
    """Keep one of the cases that two sources share; refuse those that share no more than a name.

    A DICOM series keeps the structure sets of all sources: none wins over a corrected one by coming first.
    """
    by_name: dict[str, SourceCase] = {}
    by_file: dict[Path, SourceCase] = {}
    for one in found:
        kept: list[SourceCase] = []
        for case in one.cases:
            try:
                file = case.files[0].resolve()
                same, namesake = by_file.get(file), by_name.get(case.name)
            except Exception as error:  # whatever it is, it costs this case alone
                reason = f"{case.location}: {told(error)}"
                one.left_out.append(LeftOut(case.identity, reason, True, len(case.files), error))
                continue
            if same is None and namesake is not None and not case.origin:
                same = namesake
            if same is not None:
                reason = f"{case.location}: is the same scan as {same.location}; it counts once"
                if isinstance(same, DicomCase) and isinstance(case, DicomCase):
                    count = len(same.sets)
                    one.notes += same.take_sets(case)
                    reason += ", with the structure sets of both" if len(same.sets) > count else ""
                one.left_out.append(LeftOut(case.identity, reason, False, len(case.files)))
            elif namesake is not None:
                # Cases of one source are told apart by their own names alone, as in imagesTr and imagesTs.
                what = "one of the two, scan and labels alike" if namesake in kept else "the folder of one source"
                reason = f"{case.files[0]}: has the name of {namesake.files[0]}; rename {what}"
                one.left_out.append(LeftOut(case.identity, reason, True, len(case.files)))
            else:
                by_name[case.name] = by_file[file] = case
                kept.append(case)
        one.cases = kept


def _note_one_patient(found: Sequence[Found]) -> None:
    """Say so where all cases are of one patient, as after an export that gives one PatientID to all."""
    cases = [case for one in found for case in one.cases]
    if len(cases) > 1 and len({case.patient for case in cases}) == 1:
        found[0].notes.append(
            f"all {len(cases)} cases are of one patient, so no fold can part them; if they are of several, whom "
            f"anonymising gave one PatientID, give each a word of its own in the cohort's {PATIENTS_NAME}"
        )


def _take_back(own: OwnFiles) -> None:
    """Remove every file of a cohort that is ours, and the folders that are empty then."""
    folders = {(own.folder / name).parent for name in own.stated()} - {own.folder}
    own.clear()
    for folder in folders:
        with suppress(OSError):  # it holds files of others
            folder.rmdir()


def _refuse(sources: Sequence[Path], left_out: Sequence[LeftOut]) -> NoReturn:
    raise InputError(f"{', '.join(map(str, sources))}: nothing to import: {_first(left_out) or 'no case there'}")


def _first(left_out: Sequence[LeftOut]) -> str:
    """Return the first reasons, and how many more there are; empty where there is none."""
    reasons = "; ".join(entry.said for entry in left_out[:MOST_REASONS])
    more = f"; and {len(left_out) - MOST_REASONS} more" if len(left_out) > MOST_REASONS else ""
    return f"{reasons}{more}"


class _Importer:
    """Writes cases, and keeps in import.json how far it is.

    Args:
        own: the files of the cohort.
        plan: what is to become of the cases.
        privacy: keeps personal data out of all that is written.
        before: what an earlier import reported of its cases.
    """

    def __init__(self, own: OwnFiles, plan: ImportPlan, privacy: Privacy, before: dict[str, Report]) -> None:
        self.own, self.plan, self.privacy, self.before = own, plan, privacy, before
        self.reports: dict[str, Report] = {}
        self.done_before = 0

    def run(self, progress: Progress, engine: Engine) -> list[LeftOut]:
        """Import what is not there yet, and return what was refused on the way.

        Args:
            progress: called with (done, all) after each case.
            engine: does the cases.

        Raises:
            InputError: a file of the cohort that is not ours, before any work; a full disk, or the like.
        """
        cases = self.plan.cases
        failed: dict[str, LeftOut] = {}
        for case in cases:
            for name in self._names(case):
                check_name_fits(self.own.folder / name)
        # A note of an import, and `metricunet check`, advise to change this file: its words must not be lost.
        patients = (
            f"keep a copy, replace it with {argument('overwrite', True)}, and write the patients into it again"
        )
        self.own.check([PATIENTS_NAME], patients)
        self.own.check([*DESCRIPTIONS, *(name for case in cases for name in self._names(case))])
        stated = (self.own.content() or {FILES: {}})[FILES]
        # Who a patient is, is known by all that the sources hold now, not by what they held then.
        self.reports = {
            case.source.name: {**self.before[case.source.name], "patient": case.source.patient}
            for case in cases
            if self._is_done(case, stated)
        }
        done = self.done_before = len(self.reports)
        todo = [case for case in cases if case.source.name not in self.reports]
        if not todo:
            return []
        engine.check_folders(
            self.own.folder, list(dict.fromkeys(case.source.files[0] for case in todo))[:MOST_SEEN]
        )
        self._save(drop=["dataset.json"])  # nobody is to take a part for the whole
        work = self.own.work().absolute()
        make = partial(_CaseWorker, self.plan.names, self.privacy, work)
        tasks = [(case, self._names(case)) for case in todo]
        for (case, names), result in engine.each(tasks, make, NEEDS):
            if isinstance(result, _DiskError):
                raise result.told from result
            if not isinstance(result, Exception):
                for name in names:
                    os.replace(work / name, self.own.stage(name))
                self.reports[case.source.name] = result
                self._save()
            else:
                files = len(case.source.files)
                refused = LeftOut(case.source.identity, told(result), True, files, without_frames(result))
                failed[case.source.name] = refused
                self._save(drop=names)  # of an earlier import; they belong to it no longer
            done += 1
            progress(done, len(cases))
        return [failed[case.source.name] for case in todo if case.source.name in failed]

    def finish(self, found: Sequence[Found], reports: dict[str, Report], content: dict[str, Any]) -> None:
        """Write the files that describe the cohort, and remove what an earlier import left beside."""
        patients = {name: report["patient"] for name, report in reports.items()}
        write_json(self.own.stage(PATIENTS_NAME), patients)
        staged = self.own.stage(CONTOURED_NAME)
        write_json(staged, contoured_content({name: known_structures(report) for name, report in reports.items()}))
        write_json(self.own.stage("dataset.json"), _dataset(self.plan, found, reports))
        wanted = {name for case in self.plan.cases if case.source.name in reports for name in self._names(case)}
        stated = (self.own.content() or {FILES: {}})[FILES]
        self.own.add(content, drop=stated.keys() - wanted)

    def _is_done(self, case: PlannedCase, stated: dict[str, str]) -> bool:
        report = self.before.get(case.source.name)
        try:
            same = report is not None and report.get("key") == self._key(case)
        except Exception:  # as of a source that is gone; the import of the case will say so
            return False
        return same and all(self.own.holds(name, stated.get(name, "")) for name in self._names(case))

    def _key(self, case: PlannedCase) -> str:
        return key_of(case, self.plan.names, self.privacy)

    def _names(self, case: PlannedCase) -> tuple[str, str]:
        """The case's image and labels, relative to the cohort."""
        name, split, folder = case.source.name, case.source.split, self.own.folder
        image, label = image_path(folder, name, split), label_path(folder, name, split)
        return image.relative_to(folder).as_posix(), label.relative_to(folder).as_posix()

    def _save(self, drop: Iterable[str] = ()) -> None:
        content = {"complete": False, "cases": {**self.before, **self.reports}}
        self.own.add(content, drop=drop, more=True)


class _CaseWorker:
    """A worker that reads cases, writes their files into a folder, and reports on them.

    Args:
        names: which spellings mean which structure.
        privacy: keeps personal data out of all that is written.
        folder: folder for the files.
    """

    def __init__(self, names: NamesFile, privacy: Privacy, folder: Path) -> None:
        self.names, self.privacy, self.folder = names, privacy, folder

    def do(self, task: tuple[PlannedCase, tuple[str, str]], tell: Tell) -> Report:
        """Read a case, and write its image and labels under names relative to the folder."""
        case, outputs = task
        source = case.source
        key = ""  # of the files before they are read: the next import reads again what is changed meanwhile
        with suppress(FileNotFoundError):  # reading says so
            key = key_of(case, self.names, self.privacy)
        image = source.read_image()
        refuse_no_hu(image, source.location)
        merged = merge(case, image, list(self.names.structures))
        if not merged.says_anything:
            reasons = "; ".join(entry["reason"] for entry in merged.structures.values() if "reason" in entry)
            raise InputError(f"{source.location}: none of its structures can be used: {reasons}")
        report = {
            "key": key,
            "source": self.privacy.written(source.identity),
            "source_sha256": sha256(source.files),
            "patient": source.patient,
            "split": source.split,
            "structures": {name: self._written(entry) for name, entry in merged.structures.items()},
            "overlaps": merged.overlaps,
        }
        try:
            for output, volume in zip(outputs, (image, merged.labels), strict=True):
                write_nifti(self.folder / output, volume)
        except Exception as error:
            for output in outputs:
                (self.folder / output).unlink(missing_ok=True)
            if isinstance(error.__cause__, OSError) and isinstance(error, InputError):
                raise _DiskError(error) from error
            raise
        return report

    def _written(self, entry: Report) -> Report:
        written: Report = {k: self.privacy.written(entry[k]) for k in ("spelling", "reason") if k in entry}
        if "notes" in entry:
            written["notes"] = [self.privacy.written(note) for note in entry["notes"]]
        return entry | written


def key_of(case: PlannedCase, names: NamesFile, privacy: Privacy) -> str:
    """Return a hash of all that the case's files and their description depend on."""
    return case.key(names.labels, IMPORT_VERSION, privacy.uids)


class _DiskError(Exception):
    """The cohort cannot be written, whatever the case: `told` says why."""

    @property
    def told(self) -> InputError:
        """The reason."""
        error = self.args[0]
        assert isinstance(error, InputError)
        return error


def _dataset(plan: ImportPlan, found: Sequence[Found], reports: dict[str, Report]) -> dict[str, Any]:
    said = [one.trained_on for one in found if one.trained_on is not None]
    return dataset_content(
        plan.names.labels,
        sum(report["split"] == "Tr" for report in reports.values()),
        f"imported from {', '.join(dict.fromkeys(one.layout for one in found))}; see {IMPORT_NAME}",
        "synthetic" if "synthetic" in said else (said[0] if said else "imported scans"),
    )
