"""What tells two grids apart, in words whose numbers do."""

from __future__ import annotations

from collections.abc import Iterable

from metricunet.errors import unlike_limits
from metricunet.volume import SAME_GRID_TOLERANCE_MM, Geometry


def difference(found: Geometry, expected: Geometry, expected_name: str) -> str:
    """Say in what a grid differs from the one expected, for a message.

    The axes of `found` are taken in the order and direction of those of `expected`, as by `Volume.reordered_like`.

    Args:
        found: the grid of a file; not one with `expected` (`Geometry.same_grid`).
        expected: the grid that it ought to have.
        expected_name: what has that grid.

    Returns:
        Such as "12 x 64 x 63 voxels against 12 x 64 x 64 of ct.nii.gz".
    """
    found = found.reordered(*found.axes_to(expected))
    if found.shape != expected.shape:
        sizes = [" x ".join(map(str, grid.shape)) for grid in (found, expected)]
        return f"{sizes[0]} voxels (slice, row, column) against {sizes[1]} of {expected_name}"
    spacing = [" x ".join(numbers) for numbers in _told_apart(found.spacing_mm, expected.spacing_mm)]
    origin = [", ".join(numbers) for numbers in _told_apart(found.origin_mm, expected.origin_mm)]
    return (
        f"its voxels lie up to {unlike_limits(found.gap_mm(expected), SAME_GRID_TOLERANCE_MM)} mm from those of "
        f"{expected_name}, and at most {SAME_GRID_TOLERANCE_MM} mm counts as one grid: spacing {spacing[0]} mm "
        f"against {spacing[1]} mm, first voxel at ({origin[0]}) mm against ({origin[1]}) mm"
    )


def _told_apart(found: Iterable[float], expected: Iterable[float]) -> tuple[list[str], list[str]]:
    """Write two triples with as many digits as it takes to see that they differ, where they do."""
    first, second = [], []
    for a, b in zip(found, expected, strict=True):
        digits = next((n for n in range(4, 17) if abs(a - b) <= 1e-9 or f"{a:.{n}g}" != f"{b:.{n}g}"), 17)
        first.append(f"{a + 0.0:.{digits}g}")
        second.append(f"{b + 0.0:.{digits}g}")
    return first, second
