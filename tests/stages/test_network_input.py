"""HU windows, stacks of slices, precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from metricunet.stages.network_input import neighbouring_slices, normalise_hu, pick_precision


def test_the_window_maps_to_minus_one_and_one() -> None:
    hu = torch.tensor([-1000, -150, 50, 250, 3000], dtype=torch.int16)
    assert normalise_hu(hu, (-150, 250)).tolist() == [-1, -1, 0, 1, 1]


def test_neighbours_of_each_slice() -> None:
    volume = torch.arange(4.0)[:, None, None].expand(4, 2, 3)
    stacks = neighbouring_slices(volume, 5)
    assert stacks.shape == (4, 5, 2, 3)
    assert stacks[:, :, 0, 0].tolist() == [[0, 0, 0, 1, 2], [0, 0, 1, 2, 3], [0, 1, 2, 3, 3], [1, 2, 3, 3, 3]]
    assert torch.equal(neighbouring_slices(volume, 1)[:, 0], volume)


def test_precision() -> None:
    assert pick_precision("fp32", torch.device("cpu")) == "fp32"
    assert pick_precision("bf16", torch.device("cpu")) == "bf16"
    assert pick_precision("auto", torch.device("cpu")) in ("bf16", "fp32")
    assert {pick_precision(asked, torch.device("mps")) for asked in ("auto", "bf16", "fp32")} == {"fp32"}


def test_the_precision_is_that_of_the_gpu_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    current = [0]

    @contextmanager
    def entered(device: torch.device) -> Iterator[None]:
        before, current[0] = current[0], device.index
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "device", entered)
    # The first GPU multiplies bf16, the second is too old for it.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: current[0] == 0)
    assert pick_precision("auto", torch.device("cuda:0")) == "bf16"
    assert pick_precision("auto", torch.device("cuda:1")) == "fp32"
    assert current == [0]
