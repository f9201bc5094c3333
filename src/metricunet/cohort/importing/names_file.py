"""`names.yaml`: which spelling of a structure's name means which structure.

prostate: [Prostate, PROSTATE, prostata_neu]     # a structure of the cohort: every spelling of its name
bladder: [Bladder, Blase]                        # order: where two structures overlap, the first has the voxel
ignore: [BODY, "PTV*"]                           # not imported; * stands for anything
absent: {prostate: [0f3a5b7c9d1e]}               # cases that hold no such structure, as opposed to no contour
match_case: false                                # Prostate and PROSTATE are one spelling; default: true
tolerance_mm: {prostate: 2, bladder: 3}          # by how much a contour may be off, for the evaluation alone
undecided: []                                    # left to be sorted; nothing is imported while it is not empty
codes: {prostate: [41216001, SCT, Prostate]}     # value, scheme and meaning, for DICOM that is written of it
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metricunet.errors import InputError, argument
from metricunet.files.dicom.codes import LONGEST_MEANING, LONGEST_VALUE, Code
from metricunet.files.yaml_file import read_yaml

RESERVED = ("ignore", "absent", "match_case", "undecided", "codes", "tolerance_mm")
#: What nnU-Net keeps for itself among the names of labels.
TAKEN = ("background",)
#: Signs that may stand between the letters of a spelling that a skeleton puts under a structure. A number may be a
#: margin (Rectum+5) or a version, and any other sign a mark.
_PLAIN = re.compile(r"[A-Za-z\s_./,()-]+")
#: These spellings, without anything but letters.
GUESSES = {
    "prostate": ("prostate", "prostata", "prostateuterus"),
    "bladder": ("bladder", "urinarybladder"),
    "rectum": ("rectum",),
    "seminal_vesicles": ("seminalvesicles", "seminalves"),
    "femoral_head_left": ("femoralheadlt", "femoralheadl", "femoralheadleft", "femurheadl"),
    "femoral_head_right": ("femoralheadrt", "femoralheadr", "femoralheadright", "femurheadr"),
    "femur_left": ("femurl", "femurleft"),
    "femur_right": ("femurr", "femurright"),
    "penile_bulb": ("penilebulb",),
}


@dataclass(frozen=True)
class NamesFile:
    """What a names file says.

    Attributes:
        source: the file it was read from, or what stands in for one, for messages.
        structures: each structure with its spellings, in the order of their labels 1, 2, ...
        ignore: spellings that are not imported; `*` stands for anything.
        absent: each structure with the cases, patients or series that do not hold it.
        match_case: whether capital and small letters differ.
        undecided: spellings that are not sorted yet.
        codes: what structures are, for programs that read DICOM.
        tolerances_mm: structure to the tolerance of its contour in an evaluation.
    """

    source: str
    structures: dict[str, tuple[str, ...]]
    ignore: tuple[str, ...] = ()
    absent: dict[str, tuple[str, ...]] = field(default_factory=dict)
    match_case: bool = True
    undecided: tuple[str, ...] = ()
    codes: dict[str, Code] = field(default_factory=dict)
    tolerances_mm: dict[str, float] = field(default_factory=dict)

    @property
    def labels(self) -> dict[str, int]:
        """Structure to its value in the label files."""
        return {name: value for value, name in enumerate(self.structures, start=1)}

    def structure_of(self, spelling: str) -> str | None:
        """Return the structure that a spelling means; None where it means none."""
        wanted = self._key(spelling)
        for name, spellings in self.structures.items():
            if wanted in map(self._key, spellings):
                return name
        return None

    def ignores(self, spelling: str) -> bool:
        """Tell whether a spelling is not to be imported. One that means a structure is, whatever `*` covers."""
        if self.structure_of(spelling) is not None:
            return False
        return any(
            re.fullmatch(re.escape(self._key(pattern)).replace(r"\*", ".*"), self._key(spelling)) is not None
            for pattern in self.ignore
        )

    def sorts(self, spelling: str) -> bool:
        """Tell whether a spelling has its place: it means a structure, or is ignored."""
        return self.structure_of(spelling) is not None or self.ignores(spelling)

    def _key(self, spelling: str) -> str:
        # Accents are typed and stored in two forms, composed and not.
        text = " ".join(unicodedata.normalize("NFC", spelling).split())
        return text if self.match_case else text.casefold()


def read_names(path: Path) -> NamesFile:
    """Read a names file.

    Raises:
        InputError: not YAML, no structure, a field of another kind, or a spelling that occurs twice.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: expected lines such as 'prostate: [Prostate, PROSTATE]'; "
            f"{argument('list_names')} prints them"
        )
    for name in map(str, content):
        if name not in RESERVED and name.casefold() in RESERVED:
            raise InputError(
                f"{path}: {name} would be the name of a structure; write {name.casefold()} in small letters"
            )
    match_case = content.get("match_case", True)
    if not isinstance(match_case, bool):
        raise InputError(f"{path}: match_case is {match_case!r}, expected true or false")
    absent = content.get("absent") or {}
    if not isinstance(absent, dict):
        raise InputError(f"{path}: absent is {absent!r}, expected an object of structure to cases")
    names = NamesFile(
        source=str(path),
        structures={str(k): _spellings(path, k, v) for k, v in content.items() if k not in RESERVED},
        ignore=_spellings(path, "ignore", content.get("ignore")),
        absent={str(k): _spellings(path, f"absent.{k}", v) for k, v in absent.items()},
        match_case=match_case,
        undecided=_spellings(path, "undecided", content.get("undecided")),
        codes=_codes(path, content.get("codes")),
        tolerances_mm=_tolerances(path, content.get("tolerance_mm")),
    )
    _check(path, names)
    return names


def _spellings(path: Path, name: Hashable, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        value = [value]
    for text in value:
        # The value of a label is a number; anything else that is no text was meant as one: NO, Y, 1.5.
        if isinstance(text, bool) or not isinstance(text, str | int):
            raise InputError(f"{path}: {name} has the spelling {text!r}, which is no text; put it in quotes")
    return tuple(str(text) for text in value)


def _codes(path: Path, value: Any) -> dict[str, Code]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(
            f"{path}: codes is {value!r}, expected an object such as {{prostate: [41216001, SCT, Prostate]}}"
        )
    codes: dict[str, Code] = {}
    for name, entry in value.items():
        texts = [str(text).strip() for text in entry] if isinstance(entry, list) else []
        longest = (LONGEST_VALUE, LONGEST_VALUE, LONGEST_MEANING)
        if len(texts) != len(longest) or not all(
            0 < len(text) <= most and text.isprintable() and "\\" not in text
            for text, most in zip(texts, longest, strict=True)
        ):
            raise InputError(
                f"{path}: codes: {name} has {entry!r}, expected [value, scheme, meaning], such as "
                f"[41216001, SCT, Prostate], of at most {', '.join(map(str, longest))} characters"
            )
        codes[str(name)] = Code(texts[0], texts[1], texts[2])
    return codes


def _tolerances(path: Path, value: Any) -> dict[str, float]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{path}: tolerance_mm is {value!r}, expected an object of structure to millimetres")
    for name, number in value.items():
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if not is_number or not 0 <= number < math.inf:
            raise InputError(f"{path}: tolerance_mm.{name} is {number!r}, expected a distance of 0 mm or more")
    return {str(name): float(number) for name, number in value.items()}


def _check(path: Path, names: NamesFile) -> None:
    if not names.structures:
        raise InputError(f"{path}: names no structure; expected lines such as 'prostate: [Prostate, PROSTATE]'")
    for name, spellings in names.structures.items():
        if name.casefold() in TAKEN or name != name.strip() or not name:
            raise InputError(f"{path}: a structure cannot be named {name!r}; choose another name")
        if not spellings:
            raise InputError(f"{path}: {name} has no spelling; list those of its name, or take it out")
    places: dict[str, tuple[str, str]] = {}
    lists = [*names.structures.items(), ("ignore", names.ignore), ("undecided", names.undecided)]
    for name, spellings in lists:
        for spelling in spellings:
            key = names._key(spelling)
            before = places.get(key)
            if before is not None:
                how = (
                    ""
                    if before[1] == spelling
                    else f" (as {before[1]!r}, which is the same with match_case: false)"
                )
                raise InputError(
                    f"{path}: spelling {spelling!r} is under {before[0]} and under {name}{how}; keep one"
                )
            places[key] = name, spelling
    for field_name, named in (
        ("absent", names.absent),
        ("codes", names.codes),
        ("tolerance_mm", names.tolerances_mm),
    ):
        for name in named:
            if name not in names.structures:
                known = ", ".join(names.structures)
                raise InputError(f"{path}: {field_name} names {name!r}, expected one of {known}")


@dataclass(frozen=True)
class SpellingCount:
    """How often a structure's name occurs.

    Attributes:
        spelling: the name.
        cases: number of cases that have a structure of this name.
        undrawn: number of these cases in which nothing is drawn for it.
        loose: number of structure sets without a scan that have it; they are not among the cases.
        loose_undrawn: number of these sets in which nothing is drawn for it.
    """

    spelling: str
    cases: int
    undrawn: int
    loose: int
    loose_undrawn: int


def skeleton(counts: Sequence[SpellingCount], n_cases: int, known: NamesFile | None = None) -> str:
    """Return a names file to be completed: plain spellings in their place, all others under `undecided`.

    Args:
        counts: every spelling.
        n_cases: number of cases that they are of.
        known: a names file; what it sorts is left out, and the rest is to be added to it.
    """
    if known is not None:
        counts = [one for one in counts if not known.sorts(one.spelling)]
    placed: dict[str, list[SpellingCount]] = {}
    for count in counts:
        is_plain = _PLAIN.fullmatch(count.spelling) is not None
        letters = re.sub(r"[^a-z]", "", count.spelling.lower()) if is_plain else ""
        name = next((name for name, plain in GUESSES.items() if letters in plain), "undecided")
        placed.setdefault(name, []).append(count)
    order = sorted(placed, key=lambda name: [*GUESSES, "undecided"].index(name))
    found = f"# {plural(n_cases, 'case')}, {plural(len(counts), 'spelling')}"
    if known is None:
        lines = [
            f"{found}. Move what stands under undecided to a",
            "# structure, as prostate: [Prostate, PROSTATE], or to ignore. Where two overlap the first has "
            "the voxel.",
        ]
    else:
        lines = [f"{found} that the names file does not sort. Add each to a structure there, or to ignore."]
    for name in order:
        lines.append(f"{name}:")
        for count in placed[name]:
            lines.append(f"  - {json.dumps(count.spelling, ensure_ascii=False)}  # {_counted(count)}")
    return "\n".join([*lines, *(["ignore: []"] if known is None else []), ""])


def _counted(count: SpellingCount) -> str:
    text = plural(count.cases, "case")
    if count.undrawn:
        text += f", {count.undrawn} with nothing drawn"
    if count.loose:
        text += f"; {plural(count.loose, 'structure set')} without a scan"
    if count.loose_undrawn:
        text += f", {count.loose_undrawn} with nothing drawn"
    return text


def plural(count: int, noun: str) -> str:
    """Return a count with its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(names: Iterable[str], most: int = 3) -> str:
    """Name a few, for a message."""
    ordered = list(names)
    return ", ".join(ordered[:most]) + (f" and {len(ordered) - most} more" if len(ordered) > most else "")
