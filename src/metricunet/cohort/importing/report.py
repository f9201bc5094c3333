"""What an import says of itself: to the terminal, and in import.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metricunet.cohort.importing.merge import OVERLAP_RULE
from metricunet.cohort.importing.names_file import NamesFile, plural
from metricunet.cohort.importing.plan import ImportPlan
from metricunet.cohort.importing.privacy import Privacy
from metricunet.cohort.importing.source import Found, LeftOut

#: Structure to what became of it in a case, as `merge` says, and beside that what the case is.
Report = dict[str, Any]


@dataclass(frozen=True)
class Spellings:
    """The names of structures in some sources.

    Attributes:
        text: a names file to be completed, with the counts of spellings beside them.
        refused: the cases that failed a check, a line each.
        left_out: what cannot be imported for another reason, a line each.
    """

    text: str
    refused: tuple[str, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Imported:
    """What became of an import. Its texts hold neither names nor birth dates of patients.

    Attributes:
        folder: folder of the cohort.
        cases: names of the cases.
        patients: number of patients.
        done_before: cases that an earlier run left there.
        structures: for each structure the number of cases of each status.
        overlaps: what overlapped, a line for each two structures.
        refused: the cases that failed a check, a line each.
        left_out: the cases that hold nothing that was asked for, a line each.
        notes: what a user of the cohort has to know, and what was odd about the contours, a line each.
        errors: the exceptions that cases failed with; their texts may name patients.
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
    errors: tuple[Exception, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether anything was refused, or a contoured structure could not be used."""
        return bool(self.refused) or any("unusable" in counts for counts in self.structures.values())

    def text(self) -> str:
        """Return a summary for the terminal."""
        before = f", {self.done_before} of them done before" if self.done_before else ""
        lines = [
            f"{plural(len(self.cases), 'case')} of {plural(self.patients, 'patient')} in {self.folder}{before}"
        ]
        for name, counts in self.structures.items():
            lines.append(f"{name}: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
        return "\n".join([*lines, *self.overlaps])


def lines(left_out: Sequence[LeftOut], refused: bool, privacy: Privacy) -> tuple[str, ...]:
    """Return the reasons for what was refused, or left out for another reason."""
    chosen = [entry for entry in left_out if entry.refused == refused]
    return tuple(
        privacy.spoken(entry.said if entry.what in entry.said else f"{entry.said} [{entry.what}]")
        for entry in chosen
    )


def known_structures(report: Report) -> list[str]:
    """Return the structures of which a case's labels speak."""
    return [name for name, e in report["structures"].items() if e["status"] in ("contoured", "absent")]


def import_json(
    plan: ImportPlan,
    found: Sequence[Found],
    reports: dict[str, Report],
    left_out: Sequence[LeftOut],
    privacy: Privacy,
    version: int,
) -> dict[str, Any]:
    """Return what import.json holds when all is done."""
    names = plan.names
    return {
        "complete": True,
        "import_version": version,
        "layouts": [one.layout for one in found],
        "uids": privacy.uids,
        "overlaps": OVERLAP_RULE,
        "structures": {name: [privacy.written(s) for s in names.structures[name]] for name in names.structures},
        "ignored": {privacy.written(spelling): count for spelling, count in plan.ignored.items()},
        "notes": [privacy.written(note) for one in found for note in one.notes],
        "left_out": [
            {
                "what": privacy.written(entry.what),
                "refused": entry.refused,
                "files": entry.files,
                "reason": privacy.written(entry.reason),
            }
            for entry in left_out
        ],
        "cases": reports,
    }


def summarised(
    output: Path,
    names: NamesFile,
    reports: dict[str, Report],
    left_out: Sequence[LeftOut],
    found: Sequence[Found],
    privacy: Privacy,
    done_before: int,
) -> Imported:
    """Return what became of an import."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in names.structures}
    shared: dict[tuple[str, str], list[float]] = {}
    notes = [note for one in found for note in one.notes]
    for case, report in reports.items():
        for name, entry in report["structures"].items():
            counts[name][entry["status"]] += 1
            if entry["status"] == "unusable":
                notes.append(f"{case}: {name} is unusable, and counts as not contoured: {entry['reason']}")
            notes += [f"{case}: {note}" for note in entry.get("notes", ())]
        for overlap in report["overlaps"]:
            shared.setdefault((overlap["kept"], overlap["lost"]), []).append(overlap["volume_ml"])
    overlaps = tuple(
        f"{kept} and {lost} overlap in {plural(len(volumes), 'case')}: {max(volumes):.2f} mL at most, {kept}'s now"
        for (kept, lost), volumes in shared.items()
    )
    return Imported(
        output,
        tuple(reports),
        len({report["patient"] for report in reports.values()}),
        done_before,
        {name: dict(count) for name, count in counts.items()},
        overlaps,
        lines(left_out, True, privacy),
        lines(left_out, False, privacy),
        tuple(privacy.spoken(note) for note in notes),
    )
