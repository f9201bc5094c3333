"""What is to become of each case: which of its structures go where. Nothing is read or written yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metricunet.cohort.importing import label_maps, totalsegmentator
from metricunet.cohort.importing.names_file import NamesFile, SpellingCount, listed
from metricunet.cohort.importing.privacy import hashed
from metricunet.cohort.importing.source import Found, LeftOut, Named, SourceCase
from metricunet.errors import InputError, argument, told

#: What is imported where no names file is given; only layouts whose spellings are fixed have one.
DEFAULT_NAMES: dict[tuple[str, ...], dict[str, tuple[str, ...]]] = {
    (totalsegmentator.LAYOUT,): {"prostate": ("prostate",)},
    (label_maps.NNUNET,): {"prostate": ("prostate", label_maps.BOTH_SEXES)},
}
#: Unmapped spellings and conflicts named in one message.
MOST_CASES = 3


@dataclass(frozen=True, eq=False)
class PlannedCase:
    """A case to be imported.

    Attributes:
        source: the scan and where its structures are read.
        structures: each structure that is drawn, with where it is found.
        undrawn: each structure that is named but not drawn, with where it is named.
        absent: structures that the user says the case does not hold.
    """

    source: SourceCase
    structures: dict[str, Named]
    undrawn: dict[str, Named]
    absent: tuple[str, ...]

    def key(self, labels: Mapping[str, int], *settings: Any) -> str:
        """Return a hash of all that the case's files and their description depend on."""
        stamps = [f"{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in self.source.files]
        wanted = [f"{name}={named.spelling}={named.location}" for name, named in self.structures.items()]
        undrawn = [f"{name}={named.spelling}" for name, named in self.undrawn.items()]
        parts: list[Any] = [settings, labels, self.source.split, stamps, wanted, undrawn, self.absent]
        return hashed(*map(str, parts))


@dataclass(frozen=True, eq=False)
class ImportPlan:
    """What is to be imported.

    Attributes:
        names: the names file that was given, or the names that the layout has.
        cases: the cases that hold something to learn from or to score.
        left_out: the cases that hold nothing of that kind, with the reason.
        ignored: each spelling that is not imported, with how often it occurs.
    """

    names: NamesFile
    cases: tuple[PlannedCase, ...]
    left_out: tuple[LeftOut, ...]
    ignored: dict[str, int]


def spellings(found: Sequence[Found]) -> list[SpellingCount]:
    """Count every spelling, the most frequent first."""
    cases: Counter[str] = Counter()
    undrawn: Counter[str] = Counter()
    loose = Counter(named.spelling for one in found for named in one.loose)
    loose_undrawn = Counter(named.spelling for one in found for named in one.loose if not named.drawn)
    for case in (case for one in found for case in one.cases):
        drawn = {named.spelling for named in case.structures if named.drawn}
        there = {named.spelling for named in case.structures}
        cases.update(there)
        undrawn.update(there - drawn)
    order = sorted(cases.keys() | loose.keys(), key=lambda s: (-cases[s], s.casefold(), s))
    return [SpellingCount(s, cases[s], undrawn[s], loose[s], loose_undrawn[s]) for s in order]


def default_names(found: Sequence[Found]) -> NamesFile:
    """Return the names that are used without a names file.

    Raises:
        InputError: a layout whose spellings anybody chose, or of which no case has a structure of such a name.
    """
    own: dict[str, tuple[str, ...]] = {name: (name,) for one in found for name in one.structures}
    layouts = tuple(dict.fromkeys(one.layout for one in found))
    structures = own or DEFAULT_NAMES.get(layouts)
    if structures is None:
        raise InputError(
            f"layout {', '.join(layouts)} has no fixed names of structures: list the spellings "
            f"with {argument('list_names')}, sort them in a file names.yaml, and give it by {argument('names')}"
        )
    # A fixed name is meant in whatever capitals it is written; what a model calls its structures is exact.
    names = NamesFile("the layout's own names", structures, ignore=("*",), match_case=bool(own))
    there = dict.fromkeys(named.spelling for one in found for case in one.cases for named in case.structures)
    if there and not any(map(names.structure_of, there)):
        raise InputError(
            f"layout {', '.join(layouts)}: no structure is called {' or '.join(structures)}; there are "
            f"{listed(map(repr, there))}. Say in a file names.yaml what they are ({argument('list_names')} lists "
            f"them), and give it by {argument('names')}"
        )
    return names


def plan_import(found: Sequence[Found], names: NamesFile) -> ImportPlan:
    """Decide what becomes of every case. One with two drawn structures that are one by the names is left out.

    Raises:
        InputError: spellings that are not in the names file, or absences that contradict what was drawn.
    """
    sources = [case for one in found for case in one.cases]
    if names.undecided:
        raise InputError(
            f"{names.source}: undecided lists {len(names.undecided)} spellings ({listed(names.undecided)}); move "
            "each to a structure or to ignore"
        )
    _check_all_mapped(sources, names)
    absent = _absences(sources, names, [entry for one in found for entry in one.left_out])
    cases: list[PlannedCase] = []
    left_out: list[LeftOut] = []
    ignored: Counter[str] = Counter()
    for source in sources:
        try:
            planned = _planned(source, names, absent)
        except Exception as error:  # whatever it is, it costs this case alone
            reason = f"{source.location}: {told(error)}"
            planned = LeftOut(source.identity, reason, True, len(source.files), error)
        if isinstance(planned, LeftOut):
            left_out.append(planned)
        else:
            cases.append(planned)
        if not (isinstance(planned, LeftOut) and planned.refused):
            ignored.update(s.spelling for s in source.structures if names.structure_of(s.spelling) is None)
    return ImportPlan(names, tuple(cases), tuple(left_out), dict(ignored))


def _planned(source: SourceCase, names: NamesFile, absent: Mapping[str, tuple[str, ...]]) -> PlannedCase | LeftOut:
    doubles = _doubles(source, names)
    if doubles:
        return LeftOut(source.identity, doubles, True, len(source.files))
    drawn: dict[str, Named] = {}
    undrawn: dict[str, Named] = {}
    for named in source.structures:
        structure = names.structure_of(named.spelling)
        if structure is not None and named.drawn:
            drawn[structure] = named
        elif structure is not None:
            undrawn.setdefault(structure, named)
    undrawn = {name: named for name, named in undrawn.items() if name not in drawn}
    none = absent.get(source.name, ())
    if not drawn and not none:
        reason = f"{source.location}: none of {', '.join(names.structures)} is contoured"
        return LeftOut(source.identity, reason, False, len(source.files))
    ordered = {name: drawn[name] for name in names.structures if name in drawn}
    return PlannedCase(source, ordered, undrawn, none)


def _check_all_mapped(sources: Sequence[SourceCase], names: NamesFile) -> None:
    where: dict[str, list[str]] = {}
    for source in sources:
        for spelling in dict.fromkeys(named.spelling for named in source.structures):
            if not names.sorts(spelling):
                where.setdefault(spelling, []).append(source.location)
    if where:
        told = "; ".join(
            f"'{spelling}' in {len(cases)} ({listed(cases, MOST_CASES)})"
            for spelling, cases in sorted(where.items(), key=lambda item: (-len(item[1]), item[0]))
        )
        raise InputError(
            f"{names.source}: {len(where)} spellings are in no list: {told}. Put each under its structure or "
            "under ignore"
        )


def _doubles(source: SourceCase, names: NamesFile) -> str:
    """What is drawn twice in a case, as two versions of one structure set; empty where nothing is."""
    doubles = []
    advice = []
    first: dict[str, Named] = {}
    for named in source.structures:
        structure = names.structure_of(named.spelling)
        if structure is None or not named.drawn:
            continue
        if structure in first:
            before = first[structure]
            doubles.append(f"{structure} is both {before.location} and {named.location}")
            if before.spelling != named.spelling:
                advice.append("map one of the two spellings elsewhere or ignore it")
            if before.file != named.file:
                advice.append("take one of the two files away")
            elif before.spelling == named.spelling:
                advice.append("rename one of the two in its file")
        first.setdefault(structure, named)
    if not doubles:
        return ""
    return f"{source.location}: drawn twice: {'; '.join(doubles)}; {', or '.join(dict.fromkeys(advice))}"


def _absences(
    sources: Sequence[SourceCase], names: NamesFile, left_out: Sequence[LeftOut]
) -> dict[str, tuple[str, ...]]:
    """Return case to the structures that it does not hold, as the names file says."""
    found: dict[str, list[str]] = {}
    # Of what was refused: its name, which a description may follow, and the name of the case that it would be.
    refused = {part for lost in left_out if lost.refused for part in (lost.what, lost.what.split(" ")[0])}
    refused |= set(map(hashed, refused))
    for structure, stated in names.absent.items():
        for entry in stated:
            meant = [s for s in sources if entry in (s.name, s.patient, s.identity)]
            if not meant and entry not in refused:
                raise InputError(
                    f"{names.source}: absent.{structure} names {entry!r}, which is no case, patient or series here"
                )
            for source in meant:
                for named in source.structures:
                    if named.drawn and names.structure_of(named.spelling) == structure:
                        raise InputError(
                            f"{names.source}: absent.{structure} names {entry!r}, but it is drawn: "
                            f"{named.location}"
                        )
                found.setdefault(source.name, []).append(structure)
    return {case: tuple(dict.fromkeys(structures)) for case, structures in found.items()}
