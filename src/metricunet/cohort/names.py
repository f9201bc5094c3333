"""Standard names of structures, as planning systems know them (AAPM report TG-263)."""

from __future__ import annotations

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


def standard_name(structure: str, given: Mapping[str, str]) -> str:
    """Return the name for structure sets: the user's, else TG-263's, else the structure's own."""
    return given.get(structure) or TG263_NAMES.get(structure.lower()) or structure


def has_sides(structures: Mapping[str, int]) -> bool:
    """Tell whether any structure is of one side, so that images must not be mirrored in training."""
    words = {word for name in structures for word in name.lower().replace("-", "_").split("_")}
    return bool(words & {"left", "right", "l", "r"})
