"""An engine of two machines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from metricunet.engine import Engine, opened


@pytest.fixture
def ray_engine(machines: Any) -> Iterator[Engine]:
    with opened(f"ray://{machines.address}") as engine:
        assert engine is not None
        yield engine
