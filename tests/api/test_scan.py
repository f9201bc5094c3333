"""Which scan of several is read."""

from __future__ import annotations

from pathlib import Path

import pytest

import metricunet as mu
from tests.support.dicom_series import Written, write_series


def test_one_of_several_series_must_be_named(dicom: Written, tmp_path: Path) -> None:
    first = write_series(tmp_path / "one", shape=(8, 12, 10))
    write_series(tmp_path / "two", shape=(8, 12, 10))
    with pytest.raises(mu.InputError, match=r"holds 2 scans .*series= with the UID"):
        mu.load_scan(tmp_path)
    assert mu.load_scan(tmp_path, series=first.series_uid).volume.array.shape == (8, 12, 10)


def test_a_damaged_neighbour_is_not_passed_over(tmp_path: Path) -> None:
    whole = write_series(tmp_path / "one", shape=(8, 12, 10))
    write_series(tmp_path / "two", shape=(8, 12, 10), leave_out=[4])
    with pytest.raises(mu.InputError, match="Another scan there can be read"):
        mu.load_scan(tmp_path)
    assert mu.load_scan(tmp_path, series=whole.series_uid).is_dicom
    repaired = mu.load_scan(tmp_path / "two", allow_gaps=True)
    assert repaired.notes
