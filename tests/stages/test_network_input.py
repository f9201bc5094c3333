"""HU windows, stacks of slices, precision."""

from __future__ import annotations

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
