"""Torch, onnxruntime and OpenVINO in turn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.runtimes import _compared, bench_runtimes
from metricunet.volume import Geometry, Volume

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


def test_each_network_by_each_library(tiny_model: Path) -> None:
    found = bench_runtimes([], tiny_model, repeats=1)
    for stage in ("locate", "segment"):
        for library in ("torch, fp32", "torch, bf16", "onnxruntime"):
            assert found.rows[f"{stage} {library}"].against.startswith("probabilities differ by")
    assert float(found.rows["segment onnxruntime"].against.split()[-1]) < 1e-3
    assert "network of segment: onnxruntime" in found.text()


def test_two_label_maps_are_compared() -> None:
    array = np.zeros((2, 10, 10), dtype=np.uint8)
    array[:, 2:6, 2:6] = 1
    array[:, 7:, 7:] = 2
    one = Volume(array, Geometry.from_parts(array.shape, (3, 1, 1), (0, 0, 0)))
    moved = array.copy()
    moved[0, 2, 2:6] = 0
    other = one.with_array(moved).reordered((2, 0, 1), (True, False, True))
    share, dice = _compared(one, other, 1)
    assert share == pytest.approx(4 / 200)
    assert dice == pytest.approx(2 * 28 / (32 + 28))
    assert _compared(None, None, 1) == (0.0, 1.0)
    assert _compared(one, None, 1) == (1.0, 0.0)
