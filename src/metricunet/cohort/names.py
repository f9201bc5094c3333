"""Standard names of structures, as planning systems know them (AAPM report TG-263)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

#: Structure names as cohorts spell them, and the TG-263 primary name.
TG263_NAMES = {
    "prostate": "Prostate",
    "bladder": "Bladder",
    "urinary_bladder": "Bladder",
    "rectum": "Rectum",
    "seminal_vesicles": "SeminalVes",
    "femur_left": "Femur_L",
    "femur_right": "Femur_R",
    "femoral_head_left": "Femur_Head_L",
    "femoral_head_right": "Femur_Head_R",
    "penile_bulb": "PenileBulb",
    "bowel": "Bag_Bowel",
}

#: Words for left and right that go together: English, German and Dutch, French, Spanish, Italian and Latin, and
#: Portuguese.
SIDES = (
    *(("left", "right"), ("l", "r"), ("lt", "rt")),
    *(("links", "rechts"), ("linke", "rechte"), ("linker", "rechter"), ("linkes", "rechtes"), ("li", "re")),
    *(("gauche", "droit"), ("gauche", "droite")),
    *(("izquierdo", "derecho"), ("izquierda", "derecha"), ("izq", "der")),
    *(("sinistro", "destro"), ("sinistra", "destra"), ("sx", "dx"), ("sin", "dx"), ("sin", "dex")),
    *(("esquerdo", "direito"), ("esquerda", "direita"), ("esq", "dir")),
)
#: First letters of such words, which are sides only where the two stand beside each other: gauche and droit,
#: sinistro and destro, izquierdo and derecho, esquerdo and direito.
INITIALS = (frozenset("gd"), frozenset("sd"), frozenset("id"), frozenset("ed"))
#: Each such word with those of the other side.
_OTHER_SIDES = {
    word: [*(right for left, right in SIDES if left == word), *(left for left, right in SIDES if right == word)]
    for pair in SIDES
    for word in pair
}
_OTHER_LETTER = {"l": "r", "r": "l", "L": "R", "R": "L"}
#: Words of a name in which each capital is an A, and each other letter an a.
_WORD = re.compile(r"A+(?!a)|A?a+")


def standard_name(structure: str, given: Mapping[str, str]) -> str:
    """Return the name for structure sets: the user's, else TG-263's, else the structure's own."""
    return given.get(structure) or TG263_NAMES.get(structure.lower()) or structure


def mirrored_classes(structures: Iterable[str]) -> tuple[int, ...] | None:
    """Return the class that each class becomes in a mirror image, the background's first.

    A structure of one side becomes the one of the same name on the other side; all others stay what they are.
    Words end at anything but a letter, and where a capital follows a small letter or begins a new word:
    `Femur_L`, `femur-lt`, `FemurLeft`, `LFemur` and `Femur_links` are all of one side, `Femur_R` is the other of
    the first. Two names of which one word begins or ends with l in one and r in the other (`FEMURL`, `FEMURR`) are
    of two sides as well, but a single such name is of none; nor is `VB_L5`, a vertebra. Nor is `Femur_D` alone;
    beside `Femur_G`, where no third name differs from the two in this letter alone, it is of one side.

    Args:
        structures: names, whose classes are 1, 2, ... in their order.

    Returns:
        None where a structure of one side has no other among them, so that no image may be mirrored.
    """
    names = [unicodedata.normalize("NFC", name) for name in structures]
    classes = [0]
    for name in names:
        has_side, others = _other_names(name)
        if not has_side:
            others += _by_initials(name, names)
        other = next((other for other in others if other in names), None)
        if other is None and has_side:
            return None
        classes.append(names.index(name if other is None else other) + 1)
    if any(classes[classes[k]] != k for k in range(len(classes))):
        return None  # of three names two are the other of one
    return tuple(classes)


def _other_names(name: str) -> tuple[bool, list[str]]:
    """Return whether a name says a side, and how the structure of the other side may be called.

    Of a name that says none these are names that count only if there are such structures.
    """
    shape = _shape(name)
    words = [found.span() for found in _WORD.finditer(shape)]
    pieces: list[list[str]] = []
    end = 0
    for start, stop in words:
        word = name[start:stop]
        is_numbered = stop - start == 1 and shape[stop : stop + 1] == "1"
        others = [] if is_numbered else _OTHER_SIDES.get(word.lower(), [])
        pieces += [[name[end:start]], [_spelt(other, word) for other in others] or [word]]
        end = stop
    pieces.append([name[end:]])
    # Words for a side are seldom two in a name, and then of one language: all their first choices, or all second.
    choices = max(map(len, pieces))
    found = ["".join(piece[k % len(piece)] for piece in pieces) for k in range(choices)]
    if found != [name]:
        return True, found
    edges = sorted({at for start, stop in words for at in (start, stop - 1) if name[at] in _OTHER_LETTER})
    return False, [name[:at] + _OTHER_LETTER[name[at]] + name[at + 1 :] for at in edges]


def _by_initials(name: str, names: Sequence[str]) -> list[str]:
    """Return the names that differ from a name in the first letter of a side alone, which is a word of its own.

    Of three or more that differ in one letter, as `Node_C`, `Node_D` and `Node_E` do, none is a side.
    """
    found = []
    for start, stop in [match.span() for match in _WORD.finditer(_shape(name))]:
        if stop - start > 1:
            continue
        alike = {
            other
            for other in names
            if len(other) == len(name)
            and other[:start] == name[:start]
            and other[stop:] == name[stop:]
            and other[start].isalpha()
        } - {name}
        if len(alike) == 1:
            (other,) = alike
            if frozenset((name[start].lower(), other[start].lower())) in INITIALS:
                found.append(other)
    return found


def _shape(name: str) -> str:
    """Return a name with an A for each capital, an a for each other letter, a 1 for each digit, and else _."""
    # Signs are told apart by what Python knows of them: a pattern knows no capitals but those of English.
    return "".join("A" if c.isupper() else "a" if c.isalpha() else "1" if c.isdigit() else "_" for c in name)


def _spelt(other: str, word: str) -> str:
    """Return a word in capitals as another one is."""
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other
