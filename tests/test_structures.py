"""Structures and the networks' classes."""

from __future__ import annotations

import pytest

from metricunet.structures import class_of


def test_classes_follow_the_order_of_structures_whatever_their_values() -> None:
    labels = {"bladder": 7, "prostate": 3}
    assert [class_of(labels, name) for name in labels] == [1, 2]
    with pytest.raises(ValueError, match="rectum"):
        class_of(labels, "rectum")
