"""Where networks compute."""

from __future__ import annotations

import pytest

from metricunet.networks.device import pick_device


def test_devices_that_are_there_and_others() -> None:
    assert pick_device("cpu").type == "cpu"
    for name in ("gpu", "meta", "mps", "cuda:99"):
        with pytest.raises(ValueError, match="device"):
            pick_device(name)
