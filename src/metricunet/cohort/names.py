"""Standard names of structures, as planning systems know them (AAPM report TG-263)."""

from __future__ import annotations

import re
from collections.abc import Mapping

#: Structure names as cohorts spell them, and the TG-263 primary name.
TG263_NAMES = {
    "prostate": "Prostate",
    "bladder": "Bladder",
    "urinary_bladder": "Bladder",
    "rectum": "Rectum",
    "seminal_vesicles": "SeminalVes",
    "femur_left": "Femur_L",
    "femur_right": "Femur_R",
    "penile_bulb": "PenileBulb",
    "bowel": "Bag_Bowel",
}

_SIDES = frozenset({"left", "right", "l", "r", "lt", "rt"})
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def standard_name(structure: str, given: Mapping[str, str]) -> str:
    """Return the name for structure sets: the user's, else TG-263's, else the structure's own."""
    return given.get(structure) or TG263_NAMES.get(structure.lower()) or structure


def has_sides(structures: Mapping[str, int]) -> bool:
    """Tell whether any structure is of one side, so that images must not be mirrored in training.

    Words end at anything but a letter, and where a capital follows a small letter or begins a new word:
    `Femur_L`, `femur-lt`, `FemurLeft` and `LFemur` are all of one side.
    """
    words = {word.lower() for name in structures for word in _WORD.findall(name)}
    return bool(words & _SIDES)
