"""The import itself: find the cases, decide on every one, then write them, each whole or not at all.

`import.json` says what became of everything that was found: of each case its structures, what overlapped and what
was odd, and of what was refused or left out the reason. It comes first, dataset.json last: an import that was
stopped can be gone on with, but not be trained on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from metricunet.cohort.case import HIGHEST_MINIMUM_HU
from metricunet.cohort.contoured import write_contoured
from metricunet.cohort.importing.layouts import AUTO, find_cases
from metricunet.cohort.importing.merge import merge
from metricunet.cohort.importing.names_file import listed, read_names, skeleton
from metricunet.cohort.importing.plan import Plan, PlannedCase, default_names, make_plan, spellings
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
from metricunet.cohort.importing.source import Bars, Found, LeftOut, Progress, SourceCase
from metricunet.cohort.layout import image_path, label_path, write_dataset_json
from metricunet.cohort.splits import PATIENTS_NAME
from metricunet.errors import InputError
from metricunet.files.atomic import UNFINISHED, write_json
from metricunet.files.nifti import write_nifti
from metricunet.files.record import RunRecord

IMPORT_NAME = "import.json"
#: Raised whenever the same source begins to give other files.
IMPORT_VERSION = 1
#: Reasons named where nothing can be imported.
MOST_REASONS = 5


def _no_bar(name: str) -> Progress:
    return lambda done, total: None


def list_names(sources: Sequence[Path], *, layout: str = AUTO, bars: Bars = _no_bar) -> Spellings:
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
        return Spellings(text, lines(left_out, True, privacy), lines(left_out, False, privacy))
    except InputError as error:
        raise InputError(privacy.spoken(str(error))) from None


def import_cohort(
    sources: Sequence[Path],
    output: Path,
    *,
    names: Path | None = None,
    layout: str = AUTO,
    uids: Uids = "hash",
    bars: Bars = _no_bar,
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
        record = RunRecord("import", {})
        result = _import(sources, output, names, layout, privacy, bars, record)
    except InputError as error:
        raise InputError(privacy.spoken(str(error))) from None
    return result


def _import(
    sources: Sequence[Path],
    output: Path,
    names: Path | None,
    layout: str,
    privacy: Privacy,
    bars: Bars,
    record: RunRecord,
) -> Imported:
    earlier = _earlier(output)
    given = None if names is None else read_names(names)
    found = [find_cases(source, layout, privacy, bars) for source in sources]
    _drop_twins(found)
    left_out = [entry for one in found for entry in one.left_out]
    if not any(one.cases for one in found):
        _refuse(sources, left_out)
    layouts = [one.layout for one in found]
    plan = make_plan(found, default_names(layouts) if given is None else given)
    left_out += plan.left_out
    if not plan.cases:
        _refuse(sources, left_out)
    stale = earlier.keys() - {case.source.name for case in plan.cases}
    if stale:
        raise InputError(
            f"{output}: holds {len(stale)} cases ({listed(sorted(stale))}) that the sources do not; name all its "
            "sources and the same structures again, or choose another folder with -o"
        )
    importer = _Importer(output, plan, privacy, earlier)
    left_out += importer.run(bars("importing"))
    if not importer.reports:
        (output / IMPORT_NAME).unlink(missing_ok=True)
        _refuse(sources, left_out)
    reports = {
        c.source.name: importer.reports[c.source.name] for c in plan.cases if c.source.name in importer.reports
    }
    write_json(output / PATIENTS_NAME, {name: report["patient"] for name, report in reports.items()})
    write_contoured(output, {name: known_structures(report) for name, report in reports.items()})
    write_json(output / IMPORT_NAME, import_json(plan, found, reports, left_out, privacy, IMPORT_VERSION))
    record.arguments = {
        "sources": [privacy.written(str(source)) for source in sources],
        "output": privacy.written(str(output)),
        "names": None if names is None else privacy.written(str(names)),
        "layout": layout,
        "uids": privacy.uids,
    }
    record.facts = {"layouts": layouts, "cases": len(reports), "left_out": len(left_out)}
    record.write(output)
    _write_dataset(output, plan, found, reports)
    return summarised(output, plan.names, reports, left_out, found, privacy, importer.done_before)


def _earlier(output: Path) -> dict[str, Report]:
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
    """Keep one of the cases that two sources share; refuse those that share no more than a name."""
    by_name: dict[str, SourceCase] = {}
    by_file: dict[Path, SourceCase] = {}
    for one in found:
        kept: list[SourceCase] = []
        for case in one.cases:
            file = case.files[0].resolve()
            same, namesake = by_file.get(file), by_name.get(case.name)
            if same is None and namesake is not None and not case.origin:
                same = namesake
            if same is not None:
                reason = f"{case.place}: is the same scan as {same.place}; it counts once"
                one.left_out.append(LeftOut(case.identity, reason, False, len(case.files)))
            elif namesake is not None:
                reason = f"{case.files[0]}: has the name of {namesake.files[0]}; rename the folder of one source"
                one.left_out.append(LeftOut(case.identity, reason, True, len(case.files)))
            else:
                by_name[case.name] = by_file[file] = case
                kept.append(case)
        one.cases = kept


def _refuse(sources: Sequence[Path], left_out: Sequence[LeftOut]) -> NoReturn:
    reasons = "; ".join(entry.reason for entry in left_out[:MOST_REASONS]) or "no case there"
    more = f"; and {len(left_out) - MOST_REASONS} more" if len(left_out) > MOST_REASONS else ""
    raise InputError(f"{', '.join(map(str, sources))}: nothing to import: {reasons}{more}")


class _Importer:
    """Writes cases, and keeps in import.json how far it is.

    Args:
        output: folder of the cohort.
        plan: what is to become of the cases.
        privacy: for all that is written.
        before: what an earlier import reported of its cases.
    """

    def __init__(self, output: Path, plan: Plan, privacy: Privacy, before: dict[str, Report]) -> None:
        self.output, self.plan, self.privacy, self.before = output, plan, privacy, before
        self.reports: dict[str, Report] = {}
        self.done_before = 0

    def run(self, progress: Progress) -> list[LeftOut]:
        """Import what is not there yet, and return what was refused on the way."""
        cases = self.plan.cases
        failed: list[LeftOut] = []
        self.reports = {case.source.name: self.before[case.source.name] for case in cases if self._is_done(case)}
        done = self.done_before = len(self.reports)
        todo = [case for case in cases if case.source.name not in self.reports]
        if todo:
            (self.output / "dataset.json").unlink(missing_ok=True)  # nobody is to take a part for the whole
            for path in self.output.glob(f"*/{UNFINISHED}"):
                path.unlink()  # an import that was killed could not remove them
            self._save()
        for case in todo:
            try:
                self.reports[case.source.name] = self._import_case(case)
            except InputError as error:
                if isinstance(error.__cause__, OSError) and str(error).startswith(str(self.output)):
                    raise  # the disk is full, or the like: no fault of the case
                failed.append(LeftOut(case.source.identity, str(error), True, len(case.source.files)))
                for path in self._paths(case):
                    path.unlink(missing_ok=True)
            self._save()
            done += 1
            progress(done, len(cases))
        return failed

    def _is_done(self, case: PlannedCase) -> bool:
        report = self.before.get(case.source.name)
        same = report is not None and report.get("key") == self._key(case)
        return same and all(path.is_file() for path in self._paths(case))

    def _key(self, case: PlannedCase) -> str:
        return case.key(self.plan.names.labels, IMPORT_VERSION, self.privacy.uids)

    def _paths(self, case: PlannedCase) -> tuple[Path, Path]:
        name, split = case.source.name, case.source.split
        return image_path(self.output, name, split), label_path(self.output, name, split)

    def _save(self) -> None:
        write_json(self.output / IMPORT_NAME, {"complete": False, "cases": {**self.before, **self.reports}})

    def _import_case(self, case: PlannedCase) -> Report:
        source = case.source
        image = source.read_image()
        lowest = float(image.array.min())
        if lowest > HIGHEST_MINIMUM_HU:
            raise InputError(
                f"{source.place}: the lowest value is {lowest:g}, so these are no Hounsfield units (air is "
                "-1000); expected a CT"
            )
        merged = merge(case, image, list(self.plan.names.structures))
        if not merged.says_anything:
            reasons = "; ".join(entry["reason"] for entry in merged.structures.values() if "reason" in entry)
            raise InputError(f"{source.place}: none of its structures can be used: {reasons}")
        image_file, label_file = self._paths(case)
        write_nifti(image_file, image)
        write_nifti(label_file, merged.labels)
        return {
            "key": self._key(case),
            "source": self.privacy.written(source.identity),
            "patient": source.patient,
            "split": source.split,
            "structures": {name: self._written(entry) for name, entry in merged.structures.items()},
            "overlaps": merged.overlaps,
        }

    def _written(self, entry: Report) -> Report:
        written: Report = {k: self.privacy.written(entry[k]) for k in ("spelling", "reason") if k in entry}
        if "notes" in entry:
            written["notes"] = [self.privacy.written(note) for note in entry["notes"]]
        return entry | written


def _write_dataset(output: Path, plan: Plan, found: Sequence[Found], reports: dict[str, Report]) -> None:
    said = [one.trained_on for one in found if one.trained_on is not None]
    write_dataset_json(
        output,
        plan.names.labels,
        sum(report["split"] == "Tr" for report in reports.values()),
        f"imported from {', '.join(dict.fromkeys(one.layout for one in found))}; see {IMPORT_NAME}",
        "synthetic" if "synthetic" in said else (said[0] if said else "imported scans"),
    )
