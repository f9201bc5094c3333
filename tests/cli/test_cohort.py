"""Checking a cohort or a scan."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from metricunet.files.nifti import read_labels, write_nifti
from tests.support.command import Command
from tests.support.dicom_series import write_series


def test_check(metricunet: Command, tiny_cohort: Path, tmp_path: Path) -> None:
    ended = metricunet("check", tiny_cohort)
    assert ended.status == 0
    assert "0 errors, 1 warnings" in ended.out
    cohort = Path(shutil.copytree(tiny_cohort, tmp_path / "cohort"))
    path = cohort / "labelsTr" / "case_01.nii.gz"
    labels = read_labels(path)
    write_nifti(path, labels.with_array(labels.array * 3))
    ended = metricunet("check", cohort, "--json")
    assert ended.status == 1
    found = {(p["case"], p["severity"]) for p in json.loads(ended.out)}
    assert found == {("case_01", "error"), ("case_05", "warning")}
    assert metricunet("check", tiny_cohort / "imagesTs" / "case_06_0000.nii.gz").status == 0
    assert metricunet("check", tmp_path / "none").status == 2
    write_series(tmp_path / "ct", leave_out=[3])
    assert metricunet("check", tmp_path / "ct").status == 1
