"""Structures by name, and the classes that stand for them in the networks."""

from __future__ import annotations

from collections.abc import Iterable


def class_of(structures: Iterable[str], name: str) -> int:
    """Return the networks' class of a structure: its position among the structures, from 1. The background is 0.

    Args:
        structures: names in their order, such as the keys of a card's or a cohort's `labels`.
        name: one of them.

    Raises:
        ValueError: no such structure.
    """
    return list(structures).index(name) + 1
