"""Standard names of structures, as planning systems know them (AAPM report TG-263)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

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

_OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l", "lt": "rt", "rt": "lt"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def standard_name(structure: str, given: Mapping[str, str]) -> str:
    """Return the name for structure sets: the user's, else TG-263's, else the structure's own."""
    return given.get(structure) or TG263_NAMES.get(structure.lower()) or structure


def mirrored_classes(structures: Iterable[str]) -> tuple[int, ...] | None:
    """Return the class that each class becomes in a mirror image, the background's first.

    A structure of one side becomes the one of the same name on the other side; all others stay what they are.
    Words end at anything but a letter, and where a capital follows a small letter or begins a new word:
    `Femur_L`, `femur-lt`, `FemurLeft` and `LFemur` are all of one side, `Femur_R` is the first one's other.

    Args:
        structures: names, whose classes are 1, 2, ... in their order.

    Returns:
        None where a structure of one side has no other among them, so that no image may be mirrored.
    """
    names = [None, *structures]
    others = [None if name is None else _WORD.sub(_other_side, name) for name in names]
    if not set(others) <= set(names):
        return None
    return tuple(names.index(name) for name in others)


def _other_side(word: re.Match[str]) -> str:
    """Return the word for the other side as the word is spelt; a word that names no side as it is."""
    found = word.group()
    other = _OTHER_SIDE.get(found.lower())
    if other is None:
        return found
    return other.upper() if found.isupper() else other.capitalize() if found[0].isupper() else other
