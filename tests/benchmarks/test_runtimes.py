"""Torch, onnxruntime and OpenVINO in turn."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.runtimes import bench_runtimes

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


def test_each_network_by_each_library(tiny_model: Path) -> None:
    found = bench_runtimes([], tiny_model, repeats=1)
    for stage in ("locate", "segment"):
        for library in ("torch, fp32", "torch, bf16", "onnxruntime"):
            assert found.rows[f"{stage} {library}"].against.startswith("probabilities differ by")
    assert float(found.rows["segment onnxruntime"].against.split()[-1]) < 1e-3
    assert "network of segment: onnxruntime" in found.text()
