"""Scores, as the command writes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.command import Command


def test_evaluate_misses_count(metricunet: Command, tiny_cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "pred").mkdir()
    shutil.copy(tiny_cohort / "labelsTs" / "case_06.nii.gz", tmp_path / "pred")
    ended = metricunet("evaluate", tmp_path / "pred", tiny_cohort / "labelsTs", "-o", tmp_path / "out")
    assert ended.status == 1
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())["prostate"]
    assert summary["dice"]["mean"] == pytest.approx(0.5)
    assert summary["dice"]["missed"] == 1
