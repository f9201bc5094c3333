"""Hundreds of drawn series: every good one is read exactly, every faulty one refused at its slice."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from metricunet.errors import InputError
from metricunet.files.dicom.series import find_series
from tests.support.ct_cases import FAULTS_OF_FILES, FAULTS_OF_SLICES, Fault, draw_series, write
from tests.support.dicom_series import ORIENTATIONS

#: Of each kind, in files of one slice and in enhanced files: 4 x 2 x 40 good, (32 x 2 + 19) x 4 faulty series.
GOOD, FAULTY = 40, 4


@pytest.mark.parametrize("enhanced", [False, True], ids=["files", "frames"])
@pytest.mark.parametrize("position", ORIENTATIONS)
def test_good_series_are_read_exactly(tmp_path: Path, position: str, enhanced: bool) -> None:
    for n in range(GOOD):
        rng = np.random.default_rng([zlib.crc32(position.encode()), enhanced, n])
        drawn = draw_series(rng, position, jitter_mm=0.01 if n % 4 == 0 else 0.0)
        on_disk = write(drawn, tmp_path / str(n), rng, enhanced=enhanced)
        found = find_series(on_disk.folder)
        assert [refused.reason for refused in found.refused] == []
        (series,) = found.series
        assert (series.files, series.frames) == (on_disk.files, on_disk.frames)
        assert series.resampling is None
        assert series.notes == ()
        volume = series.read()
        assert np.array_equal(volume.array, drawn.hu)
        # Every voxel where slice, row and column put it.
        k, row, column = np.indices(drawn.hu.shape)[..., None]
        places = drawn.positions_mm[k[..., 0]] + row * drawn.down_mm + column * drawn.across_mm
        index = np.moveaxis(np.indices(drawn.hu.shape), 0, -1)
        off = np.abs(volume.geometry.to_world(index) - places).max()
        assert off < (2.5 * drawn.jitter_mm or 2e-5), (n, off)


def faulty(fault: str, enhanced: bool) -> Fault:
    return FAULTS_OF_SLICES[fault] if fault in FAULTS_OF_SLICES else FAULTS_OF_FILES[fault]


CASES = [
    *((fault, enhanced) for fault in FAULTS_OF_SLICES for enhanced in (False, True)),
    *((fault, False) for fault in FAULTS_OF_FILES),
]


@pytest.mark.parametrize(("fault", "enhanced"), CASES, ids=lambda v: {False: "file", True: "frame"}.get(v, v))
def test_faulty_series_are_refused_at_the_right_slice(tmp_path: Path, fault: str, enhanced: bool) -> None:
    put_in = faulty(fault, enhanced)
    for n in range(FAULTY):
        rng = np.random.default_rng([zlib.crc32(fault.encode()), enhanced, n])
        drawn = draw_series(rng, list(ORIENTATIONS)[n % 4], slices=int(rng.integers(6, 9)))
        culprits = put_in(drawn, rng)
        on_disk = write(drawn, tmp_path / str(n), rng, enhanced=enhanced)
        found = find_series(on_disk.folder)
        if fault == "unreadable pixels":
            with pytest.raises(InputError) as caught:
                found.series[0].read()
            reason = str(caught.value)
        else:
            assert found.series == (), (n, "was accepted")
            (refused,) = found.refused
            reason = refused.reason
        assert "\n" not in reason
        names = [(on_disk.files[k], on_disk.frames[k]) for k in culprits]
        assert any(
            reason.startswith(f"{path}:")
            and (frame is None or f": frame {frame}" in reason or fault == "two slices")
            for path, frame in names
        ), (n, reason, names)
        assert "Müller" not in reason
        assert "P-00" not in reason
