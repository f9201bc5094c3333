"""Structures and the networks' classes."""

from __future__ import annotations

import numpy as np
import pytest

from metricunet.structures import IGNORE_CLASS, class_of, classes_of, values_of


def test_classes_follow_the_order_of_structures_whatever_their_values() -> None:
    labels = {"bladder": 7, "prostate": 3}
    assert [class_of(labels, name) for name in labels] == [1, 2]
    with pytest.raises(ValueError, match="rectum"):
        class_of(labels, "rectum")


@pytest.mark.parametrize(("prostate", "kind"), [(255, np.uint8), (256, np.uint16), (65535, np.uint16)])
def test_classes_and_values_are_each_others_inverse(prostate: int, kind: type[np.generic]) -> None:
    labels = {"bladder": 7, "prostate": prostate}
    values = np.array([[0, 7], [prostate, 7]], dtype=kind)
    classes = classes_of(values, labels)
    assert classes.dtype == np.uint8
    assert classes.tolist() == [[0, 1], [2, 1]]
    back = values_of(classes, labels)
    assert back.dtype == kind
    assert back.tolist() == values.tolist()


def test_what_nobody_contoured_and_what_has_no_name() -> None:
    values = np.array([9, 7, 3, 0], dtype=np.uint16)
    assert classes_of(values, {"bladder": 7}, 9).tolist() == [IGNORE_CLASS, 1, 0, 0]
    assert classes_of(values, {"bladder": 300}, None).tolist() == [0, 0, 0, 0]
