"""Decoding in processes: the same pixels as here, and nothing lost when a process fails."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import RLELossless

from metricunet.errors import InputError
from metricunet.files.dicom.decode import decode_in_processes, stored_pixels
from metricunet.files.dicom.pixels import FEWEST_FOR_PROCESSES
from metricunet.files.dicom.series import find_series
from tests.support.dicom_series import pattern, write_series

SHAPE = (FEWEST_FOR_PROCESSES + 5, 12, 10)


@pytest.mark.parametrize("processes", [1, 3])
def test_decodes_what_is_decoded_here(tmp_path: Path, processes: int) -> None:
    written = write_series(tmp_path, shape=(9, 12, 10), transfer_syntax=RLELossless)
    stored = np.zeros((9, 12, 10), dtype=np.uint16)
    assert decode_in_processes(written.files, stored, processes) == []
    assert np.array_equal(stored, [stored_pixels(path) for path in written.files])


def test_names_what_it_could_not_decode_and_decodes_the_rest(tmp_path: Path) -> None:
    written = write_series(tmp_path, shape=(9, 12, 10), transfer_syntax=RLELossless)
    written.files[2].write_bytes(b"nothing of the kind")
    written.files[7].unlink()
    stored = np.zeros((9, 12, 10), dtype=np.uint16)
    assert decode_in_processes(written.files, stored, 2) == [2, 7]
    rest = [0, 1, 3, 4, 5, 6, 8]
    assert np.array_equal(stored[rest], [stored_pixels(written.files[k]) for k in rest])


def test_another_shape_or_kind_is_left_to_the_caller(tmp_path: Path) -> None:
    written = write_series(tmp_path, shape=(3, 12, 10))
    for stored in (np.zeros((3, 12, 11), dtype=np.uint16), np.zeros((3, 12, 10), dtype=np.int16)):
        assert decode_in_processes(written.files, stored, 1) == [0, 1, 2]
        assert not stored.any()


@pytest.mark.parametrize("program", ["/nowhere/python", "/bin/false", "/bin/cat"])
def test_without_working_processes_everything_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    written = write_series(tmp_path, shape=(3, 12, 10))
    monkeypatch.setattr(sys, "executable", program)
    assert decode_in_processes(written.files, np.zeros((3, 12, 10), dtype=np.uint16), 2) == [0, 1, 2]


@pytest.mark.parametrize("works", [True, False])
def test_a_compressed_series_reads_the_same_with_and_without_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    hu = pattern(SHAPE)
    write_series(tmp_path, hu, transfer_syntax=RLELossless)
    if not works:
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert np.array_equal(find_series(tmp_path).series[0].read().array, hu)


def test_a_damaged_slice_of_a_compressed_series_is_named(tmp_path: Path) -> None:
    written = write_series(tmp_path, shape=SHAPE, transfer_syntax=RLELossless)
    (series,) = find_series(tmp_path).series
    content = written.files[4].read_bytes()
    written.files[4].write_bytes(content[: len(content) - 200])
    with pytest.raises(InputError, match=written.files[4].name):
        series.read()


@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (1, 0), (2, -1024), (3, -32768)])
@pytest.mark.parametrize("signed", [True, False])
def test_whole_numbers_are_rescaled_exactly(tmp_path: Path, slope: int, intercept: int, signed: bool) -> None:
    # Products beyond 16 bits whose sums with the intercept fit again.
    stored = np.array([0, 1, 999, 12000, 21000, 10922]).repeat(20).reshape(1, 12, 10).repeat(3, axis=0)
    if intercept > -32768:
        stored = stored // 8
    hu = (stored * slope + intercept).astype(np.int16)
    write_series(tmp_path, hu, slope=slope, intercept=intercept, signed=signed)
    read = find_series(tmp_path).series[0].read().array
    assert read.dtype == np.int16
    assert np.array_equal(read, hu)
