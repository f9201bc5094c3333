"""Identifiers of DICOM objects: the same of the same, others of anything else."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom

from metricunet.files.dicom.identity import RANDOM, Identity
from metricunet.files.rtstruct.outlines import Structure
from metricunet.files.rtstruct.write import write_rtstruct
from metricunet.files.seg.write import write_seg
from metricunet.volume import Volume
from tests.support.dicom_series import find_only, write_series


def test_equal_sources_give_equal_identifiers() -> None:
    one = Identity(("scan", "model"))
    assert one.uid("series") == Identity(("scan", "model")).uid("series")
    others = {Identity(("scan", "other")).uid("series"), Identity(("scanm", "odel")).uid("series"), one.uid("set")}
    assert len({*others, one.uid("series")}) == 4
    assert all(uid.is_valid for uid in others)
    assert RANDOM.uid("series") != RANDOM.uid("series")


def test_an_object_that_is_made_again_is_the_same_to_the_byte(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", shape=(4, 8, 8))
    series = find_only(tmp_path / "ct")
    mask = np.zeros(series.geometry.shape, dtype=bool)
    mask[1:3, 2:6, 2:6] = True
    structures = [Structure("Prostate^auto", Volume(mask, series.geometry), colour=(1, 2, 3))]
    identity = Identity(("scan", "model"), datetime(2026, 1, 2, 3, 4, 5))
    for name in ("one", "two"):
        write_rtstruct(tmp_path / f"{name}.rt", series, structures, description="words", identity=identity)
        write_seg(tmp_path / f"{name}.seg", series, structures, description="words", identity=identity)
    assert (tmp_path / "one.rt").read_bytes() == (tmp_path / "two.rt").read_bytes()
    assert pydicom.dcmread(tmp_path / "one.seg") == pydicom.dcmread(tmp_path / "two.seg")
