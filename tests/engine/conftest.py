"""An engine of two machines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from metricunet.engine import Engine, opened


@pytest.fixture(scope="module")
def ray_engine(machines: Any) -> Iterator[Engine]:
    """One for all tests of a file: to join a cluster, and to leave it, takes a while."""
    with pytest.MonkeyPatch.context() as patch, opened(f"ray://{machines.address}") as engine:
        patch.setattr("metricunet.engine.ray_engine.POLL_S", 0.2)  # how far tasks are is told sooner
        assert engine is not None
        yield engine
