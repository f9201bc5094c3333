"""How a scan reaches a stage: HU on the stage's grid."""

from __future__ import annotations

from metricunet.hu import AIR_HU
from metricunet.volume import Geometry, Volume


def read_hu(image: Volume, grid: Geometry) -> Volume:
    """Read a scan in HU on a stage's grid. What lies beyond the scan is air. Returns float32."""
    return image.resample(grid, fill=AIR_HU)
