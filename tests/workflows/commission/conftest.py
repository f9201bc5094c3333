"""One geometry on disk: few slices, so that a group of checks takes a second."""

from __future__ import annotations

from pathlib import Path

import pytest

from metricunet.workflows.commission.subjects import PLANS, ScanPlan, Site, make_site


@pytest.fixture
def plan() -> ScanPlan:
    """5 mm slices, 1.2 x 0.8 mm pixels."""
    return PLANS[-1]


@pytest.fixture
def site(plan: ScanPlan, tmp_path: Path) -> Site:
    return make_site(plan, tmp_path / plan.name)
