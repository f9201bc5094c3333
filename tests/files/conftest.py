"""Fixtures of the tests of files."""

from __future__ import annotations

import pytest

from metricunet.files.dicom.series import CtSeries
from tests.support.structure_sets import make_series


@pytest.fixture(scope="session")
def series(tmp_path_factory: pytest.TempPathFactory) -> CtSeries:
    """A small sound CT series of non-square pixels. Not to be changed."""
    return make_series(tmp_path_factory.mktemp("ct"))
