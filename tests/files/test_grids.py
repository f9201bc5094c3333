"""What tells two grids apart: numbers that differ never read alike."""

from __future__ import annotations

import pytest

from metricunet.errors import unlike_limits
from metricunet.files.grids import difference
from metricunet.volume import Geometry

ONE = Geometry.from_parts((12, 64, 64), (3, 2, 2))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            Geometry.from_parts((12, 64, 63), (3, 2, 2)),
            "12 x 64 x 63 voxels (slice, row, column) against 12 x 64 x 64",
        ),
        (Geometry.from_parts((12, 64, 64), (3, 2, 2.002)), "spacing 3 x 2 x 2.002 mm against 3 x 2 x 2 mm"),
        (Geometry.from_parts((12, 64, 64), (3, 2, 2.00002), (0.09, 0, 0)), "2.00002 mm against 3 x 2 x 2 mm"),
        (Geometry.from_parts((12, 64, 64), (3, 2, 2), (0.10001, 0, 0)), "up to 0.10001 mm from"),
    ],
)
def test_the_difference_can_be_seen(other: Geometry, words: str) -> None:
    text = difference(other, ONE, "a.nii.gz")
    assert words in text
    assert "a.nii.gz" in text


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.5"), (0.10001, "0.10001"), (5000.04, "5000.04"), (1 / 3, "0.333")]
)
def test_a_number_beyond_a_limit_never_reads_like_it(value: float, text: str) -> None:
    assert unlike_limits(value, 0.1, 5000.0) == text
