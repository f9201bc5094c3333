"""Which names of two sides mean one structure, which structures are compared, and how far off each may be."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from metricunet.cohort.importing.names_file import NamesFile, listed
from metricunet.cohort.names import TG263_NAMES
from metricunet.errors import InputError, argument
from metricunet.evaluation.measures import SURFACE_TOLERANCE_MM

#: What a prediction's structure set adds to a structure's name: ^auto, ^autosyn, and a number where it was taken.
MARK = re.compile(r"\^auto(syn)?(_\d+)?$")
#: What a review's structure set adds: somebody has looked at it, so it is no prediction.
REVIEWED = re.compile(r"\^rev(_\d+)?$")
#: Names that one note lists.
MOST_NAMED = 8


@dataclass(frozen=True)
class Naming:
    """Tells which structure a name means.

    Attributes:
        file: the names file; None where there is none.
        exact: whether, without a file, a name means itself alone: both sides have the names of one dataset.json.
            Else names are one that differ in capitals, signs and spaces alone, or are TG-263's for the other.
    """

    file: NamesFile | None = None
    exact: bool = False

    def structure_of(self, spelling: str) -> str | None:
        """Return what a name means: the same text for all names of one structure; None where it means none."""
        if self.file is None:
            return spelling if self.exact else _folded(unmarked(spelling))
        for name in (spelling, unmarked(spelling)):
            if (found := self.file.structure_of(name)) is not None:
                return found
        # The structure's own name is one of its spellings, unless it is to be ignored.
        own = unmarked(spelling)
        return own if own in self.file.structures and own not in self.file.ignore else None

    def ignores(self, spelling: str) -> bool:
        """Tell whether a name is to be passed over without a word."""
        return self.file is not None and self.file.ignores(spelling)

    def is_absent(self, structure: str, *names: str) -> bool:
        """Tell whether the names file says that a case does not hold a structure.

        Args:
            structure: what `structure_of` returns.
            names: those by which the case is known: its name, its series' UID.
        """
        return self.file is not None and bool(set(self.file.absent.get(structure, ())) & set(names))

    def counterparts(self, names: Collection[str], others: Collection[str]) -> dict[str, str]:
        """Return each name that some other means, too, and that other: itself, else the only one.

        Args:
            names: of one side.
            others: of the other side.
        """
        found = {name: name for name in names if name in others}

        def by_structure(spellings: Iterable[str]) -> dict[str, list[str]]:
            meant: dict[str, list[str]] = {}
            for name in spellings:
                if name not in found and (key := self.structure_of(name)) is not None:
                    meant.setdefault(key, []).append(name)
            return meant

        here, there = by_structure(names), by_structure(others)
        alike = [(own, there[key]) for key, own in here.items() if key in there]
        return found | {own[0]: other[0] for own, other in alike if len(own) == len(other) == 1}

    def differ(self, name: str, other: str) -> bool:
        """Tell whether two names are known to mean two structures: by the names file, without one by TG-263."""
        if self.file is None:
            keys = [key if (key := _folded(unmarked(one))) in _STANDARD else None for one in (name, other)]
        else:
            keys = [self.structure_of(one) for one in (name, other)]
        return None not in keys and keys[0] != keys[1]


@dataclass(frozen=True)
class NamedCase:
    """The names that both sides of one case have; those of a prediction that is missing are none.

    Attributes:
        case: names by which the case is known.
        prediction, reference: names as they are spelled.
    """

    case: tuple[str, ...]
    prediction: tuple[str, ...]
    reference: tuple[str, ...]


@dataclass(frozen=True)
class ChosenStructures:
    """What is compared.

    Attributes:
        keys: name of each structure for people, to what `Naming.structure_of` calls it.
        notes: sentences on the names that are not compared.
    """

    keys: dict[str, str]
    notes: tuple[str, ...]


def unmarked(spelling: str) -> str:
    """Return a name without the mark that predictions and reviews give to it."""
    return REVIEWED.sub("", MARK.sub("", spelling.strip()))


def counted_names(names: Sequence[str], naming: Naming, predicted: bool) -> tuple[str, ...]:
    """Return the names of a side that count, where a set holds a prediction beside what somebody drew.

    Of a prediction these are the names with a prediction's mark, if there are any. Of a reference these are all
    but the marked names of structures that it has without a mark, too.

    Args:
        names: of the side.
        naming: which names are one.
        predicted: whether it is the side that is judged.
    """
    marked = {name for name in names if MARK.search(name.strip())}
    if predicted:
        return tuple(name for name in names if name in marked or not marked)
    plain = {naming.structure_of(name) for name in names if name not in marked}
    return tuple(name for name in names if name not in marked or naming.structure_of(name) not in plain)


def choose_structures(
    naming: Naming, cases: Sequence[NamedCase], titles: Iterable[str], sides: tuple[str, str]
) -> ChosenStructures:
    """Choose the structures to compare, over all cases.

    With a names file these are its structures that some reference names, or that it calls absent in some case.
    Without one these are the structures that both sides of some case name.

    Args:
        naming: which names are one.
        cases: the names of each.
        titles: names that people know the structures by, where there is no names file; the references' own count
            where a structure is not among them.
        sides: what to call predictions and references in messages.

    Raises:
        InputError: there is no such structure.
    """
    of_references = {key for case in cases for name in case.reference if (key := naming.structure_of(name))}
    if naming.file is not None:
        absent = {s for s in naming.file.structures for case in cases if naming.is_absent(s, *case.case)}
        keys = {name: name for name in naming.file.structures if name in of_references | absent}
    else:
        common = {
            key
            for case in cases
            for name in case.prediction
            if (key := naming.structure_of(name)) and key in {naming.structure_of(r) for r in case.reference}
        }
        keys = {}
        for name in (*titles, *(unmarked(name) for case in cases for name in case.reference)):
            key = naming.structure_of(name)
            if key in common and key not in keys.values():
                keys[name] = str(key)
    if not keys:
        raise InputError(_none_in_common(naming, cases, sides))
    _refuse_near_misses(naming, keys.values(), cases, sides[0])
    notes = [
        note
        for side, names in (("predictions", "prediction"), ("references", "reference"))
        if (note := _left_out(naming, keys.values(), side, [getattr(case, names) for case in cases]))
    ]
    return ChosenStructures(keys, tuple(notes))


def choose_tolerances(
    keys: Mapping[str, str], naming: Naming, general_mm: float | None, of_structures: Mapping[str, float] | None
) -> dict[str, float]:
    """Return each structure's tolerance: its own, else that of the names file, else the general one.

    Args:
        keys: name of each structure to what `Naming.structure_of` calls it.
        naming: the names file may state tolerances.
        general_mm: of the structures that have none of their own; None for `SURFACE_TOLERANCE_MM`.
        of_structures: structure to its tolerance, in any spelling of its name.

    Raises:
        InputError: a tolerance that is no distance, or of a structure that is not compared.
    """
    general = SURFACE_TOLERANCE_MM if general_mm is None else general_mm
    stated = {} if naming.file is None else naming.file.tolerances_mm
    found = {name: stated.get(key, general) for name, key in keys.items()}
    for spelling, value in (of_structures or {}).items():
        own = [name for name, key in keys.items() if spelling == name or naming.structure_of(spelling) == key]
        if not own:
            raise InputError(
                f"{argument('tolerances_mm')} names {spelling!r}, which is not compared; expected one of "
                f"{', '.join(keys)}"
            )
        found[own[0]] = value
    for name, value in found.items():
        if not (math.isfinite(value) and value >= 0):
            raise InputError(
                f"{argument('tolerance_mm')}: {value:g} mm for {name}; expected a distance of 0 mm or more"
            )
    return found


def split_tolerances(texts: Sequence[str]) -> tuple[float | None, dict[str, float]]:
    """Read tolerances as they are typed: `2` for all structures, `rectum=3` for one.

    Returns:
        The general one, None where there is none, and structure to its own, in millimetres.

    Raises:
        InputError: a text that is no number.
    """
    general: float | None = None
    own: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            raise InputError(
                f"{argument('tolerance_mm')} is {text!r}; expected millimetres such as 2, or rectum=3"
            ) from None
        if name:
            own[name.strip()] = value
        else:
            general = value
    return general, own


def _folded(name: str) -> str:
    standard = TG263_NAMES.get(name.lower(), name)
    return re.sub(r"[\W_]+", "", standard).casefold() or standard.casefold()


#: Names that TG-263 knows, as `_folded` returns them.
_STANDARD = frozenset(map(_folded, TG263_NAMES))


def _none_in_common(naming: Naming, cases: Sequence[NamedCase], sides: tuple[str, str]) -> str:
    predicted = listed(dict.fromkeys(name for case in cases for name in case.prediction), MOST_NAMED) or "none"
    drawn = listed(dict.fromkeys(name for case in cases for name in case.reference), MOST_NAMED) or "none"
    if naming.file is None:
        return (
            f"{sides[0]}: has no structure of a name that {sides[1]} has, too (prediction: {predicted}; "
            f"reference: {drawn}); say which names are one in a file, and give it by {argument('names')}"
        )
    return (
        f"{naming.file.source}: no spelling in it is the name of a structure in {sides[1]} (which has {drawn}); "
        "list the names as they are spelled there"
    )


def _refuse_near_misses(naming: Naming, keys: Iterable[str], cases: Sequence[NamedCase], side: str) -> None:
    """Refuse to call a structure missed that no prediction names as the names file does, and some nearly so.

    Raises:
        InputError: it names the first one.
    """
    if naming.file is None:
        return
    file = naming.file
    by_name = replace(file, ignore=tuple(pattern for pattern in file.ignore if pattern.strip("*")))
    there = dict.fromkeys(name for case in cases for name in case.prediction)
    for key in keys:
        if any(naming.structure_of(name) == key for name in there):
            continue
        meant = {_folded(name) for name in (key, *file.structures[key])}
        near = [
            name
            for name in there
            if _folded(unmarked(name)) in meant
            and naming.structure_of(name) is None
            and not by_name.ignores(name)
            and not by_name.ignores(unmarked(name))
        ]
        if near:
            raise InputError(
                f"{file.source}: no spelling of {key} is the name of a structure in {side}, which has "
                f"{listed(near, MOST_NAMED)}; add {unmarked(near[0])!r} to its spellings, or to ignore"
            )


def _left_out(naming: Naming, keys: Iterable[str], side: str, names: Sequence[Sequence[str]]) -> str:
    """Say which names of one side are not compared; empty where there are none."""
    kept = set(keys)
    count = Counter(name for of_case in names for name in dict.fromkeys(of_case))
    rest = [name for name in count if naming.structure_of(name) not in kept and not naming.ignores(name)]
    return f"not compared, of the {side}: {listed(rest, MOST_NAMED)}" if rest else ""
