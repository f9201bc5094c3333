"""A model that answers with bands of HU, known to the program while this room's tests run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.threshold_model import bands_known, write_bands_model


@pytest.fixture(scope="module")
def bands_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Everything between fat and bone is prostate; crop of 64 mm at 2 mm."""
    with bands_known():
        yield write_bands_model(tmp_path_factory.mktemp("bands") / "model.safetensors")
