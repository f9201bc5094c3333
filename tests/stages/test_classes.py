"""Classes from probabilities, and the target in one piece, on arrays whose answer is counted by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from metricunet.stages.classes import Pieces, border_probability, box_of, keep_largest_piece, likeliest

MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, max_side=7))


@given(st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_the_level_one_half_is_the_border_of_the_likeliest_class(structures: int, seed: int) -> None:
    draws = np.random.default_rng(seed).dirichlet(np.ones(structures + 1), (3, 4, 5)).astype(np.float32)
    shares = np.moveaxis(draws, -1, 0)[1:]
    classes = likeliest(shares)
    whole = np.concatenate([1 - shares.sum(axis=0, keepdims=True), shares])
    np.testing.assert_array_equal(classes, whole.argmax(axis=0))
    for k in range(structures):
        field = border_probability(shares, k)
        assert field.min() >= 0
        assert field.max() <= 1
        away = abs(field - 0.5) > 1e-6
        np.testing.assert_array_equal((field > 0.5)[away], (classes == k + 1)[away])


def test_with_one_structure_it_is_the_probability() -> None:
    shares = np.array([0.0, 0.2, 0.5, 0.9, 1.0], dtype=np.float32).reshape(1, 1, 1, 5)
    np.testing.assert_allclose(border_probability(shares, 0), shares[0], atol=1e-6)
    assert likeliest(shares).ravel().tolist() == [0, 0, 0, 1, 1]  # the background wins ties


def test_the_largest_piece_stays_and_other_classes_too() -> None:
    classes = np.zeros((1, 4, 9), dtype=np.uint8)
    classes[0, 0, :4] = 1
    classes[0, 2, :2] = 1
    classes[0, 3, 2] = 1  # by a corner only
    classes[0, 0, 6] = 2
    assert keep_largest_piece(classes, 1) == Pieces(3, 3)
    assert (classes == 1).sum() == 4
    assert (classes == 2).sum() == 1
    assert keep_largest_piece(classes, 3) == Pieces(0, 0)


@given(MASKS)
def test_the_box_is_the_smallest_that_holds_the_mask(mask: np.ndarray) -> None:
    box = box_of(mask)
    if box is None:
        assert not mask.any()
        return
    inside = mask[box]
    assert inside.sum() == mask.sum()
    assert all(inside.take(k, axis).any() for axis in range(3) for k in (0, -1))
