"""Pixels of CT series: every way of storing them gives the same HU, and damage names its slice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from metricunet.errors import InputError
from metricunet.files.dicom.pixels import read_hu
from metricunet.files.dicom.series import find_series
from tests.support.dicom_series import only, pattern, recompress, write_series


class TestPixels:
    @pytest.mark.parametrize(
        "syntax",
        [ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless],
        ids=lambda uid: uid.name,
    )
    @pytest.mark.parametrize("signed", [False, True])
    def test_transfer_syntaxes(self, tmp_path: Path, syntax: pydicom.uid.UID, signed: bool) -> None:
        write_series(tmp_path, transfer_syntax=syntax, signed=signed)
        volume = only(find_series(tmp_path)).read()
        assert volume.array.dtype == np.int16
        assert np.array_equal(volume.array, pattern((8, 12, 10)))

    def test_big_endian(self, tmp_path: Path) -> None:
        def swap(k: int, ds: Dataset) -> None:
            ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()

        write_series(tmp_path, transfer_syntax=ExplicitVRBigEndian, edit=swap)
        assert np.array_equal(only(find_series(tmp_path)).read().array, pattern((8, 12, 10)))

    @pytest.mark.parametrize(
        "name",
        ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "JPEG2000"],
    )
    @pytest.mark.parametrize(("signed", "bits"), [(False, 16), (True, 16), (False, 12)])
    def test_compressed_pixels_come_back_to_the_bit(
        self, tmp_path: Path, name: str, signed: bool, bits: int
    ) -> None:
        def store(k: int, ds: Dataset) -> None:
            ds.BitsStored, ds.HighBit = bits, bits - 1

        written = write_series(tmp_path, signed=signed, edit=store)
        for path in written.files:
            recompress(path, name)
        assert pydicom.dcmread(written.files[0]).file_meta.TransferSyntaxUID.is_compressed
        assert np.array_equal(only(find_series(tmp_path)).read().array, pattern((8, 12, 10)))

    def test_compressed_pixels_of_files_without_a_preamble(self, tmp_path: Path) -> None:
        written = write_series(tmp_path)
        for path in written.files:
            recompress(path, "JPEG2000Lossless")
            path.write_bytes(path.read_bytes()[132:])
        assert np.array_equal(only(find_series(tmp_path)).read().array, pattern((8, 12, 10)))

    def test_unused_high_bits_are_ignored(self, tmp_path: Path) -> None:
        def overlay(k: int, ds: Dataset) -> None:
            ds.BitsStored, ds.HighBit = 12, 11
            ds.PixelData = (np.frombuffer(ds.PixelData, "<u2") | 0x4000).tobytes()

        write_series(tmp_path, edit=overlay)
        assert np.array_equal(only(find_series(tmp_path)).read().array, pattern((8, 12, 10)))

    def test_fractional_rescale_gives_float(self, tmp_path: Path) -> None:
        write_series(tmp_path, slope=0.5, intercept=-1024.0)
        array = only(find_series(tmp_path)).read().array
        assert array.dtype == np.float32
        assert np.array_equal(array, pattern((8, 12, 10)))

    def test_values_that_overflow_give_float(self, tmp_path: Path) -> None:
        def bright(k: int, ds: Dataset) -> None:
            if k == 5:
                ds.PixelData = bright_slice.tobytes()

        bright_slice = np.full((12, 10), 60000, "<u2")
        bright_slice[0] = 50000

        write_series(tmp_path, edit=bright)
        array = only(find_series(tmp_path)).read().array
        assert array.dtype == np.float32
        assert np.array_equal(array[5], bright_slice - 1024.0)
        assert np.array_equal(np.delete(array, 5, axis=0), np.delete(pattern((8, 12, 10)), 5, axis=0))

    def test_damage_that_only_decoding_shows_names_the_slice(self, tmp_path: Path) -> None:
        def spoil(k: int, ds: Dataset) -> None:
            if k == 4:
                ds.PixelData = pydicom.encaps.encapsulate([b"\1\0\0\0" + b"\0" * 80])

        written = write_series(tmp_path, transfer_syntax=RLELossless, after=spoil)
        with pytest.raises(InputError, match=r"-110\.00 mm.*truncated or damaged") as caught:
            only(find_series(tmp_path)).read()
        assert str(written.files[4]) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_file_that_goes_between_search_and_reading(self, tmp_path: Path) -> None:
        written = write_series(tmp_path)
        series = only(find_series(tmp_path))
        written.files[2].unlink()
        with pytest.raises(InputError, match=rf"{written.files[2]}.*has gone"):
            series.read()


class TestSize:
    def test_whole_hu_count_two_bytes_a_voxel_and_fractions_four(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, slope in (("whole", 1.0), ("fractions", 0.5)):
            write_series(tmp_path / name, slope=slope)
        whole, fractions = (only(find_series(tmp_path / name)) for name in ("whole", "fractions"))
        monkeypatch.setattr("metricunet.files.voxels.MOST_BYTES", 2 * 8 * 12 * 10)
        assert np.array_equal(whole.read().array, pattern((8, 12, 10)))
        with pytest.raises(InputError, match="8 x 12 x 10 voxels take"):
            fractions.read()
        monkeypatch.setattr("metricunet.files.voxels.MOST_BYTES", 2 * 8 * 12 * 10 - 1)
        with pytest.raises(InputError, match="8 x 12 x 10 voxels take"):
            whole.read()

    def test_whole_hu_that_do_not_fit_count_four(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def bright(k: int, ds: Dataset) -> None:
            ds.PixelData = np.linspace(0, 60000, 120).astype("<u2").tobytes()

        write_series(tmp_path, edit=bright)
        series = only(find_series(tmp_path))
        assert series.read().array.dtype == np.float32
        monkeypatch.setattr("metricunet.files.voxels.MOST_BYTES", 4 * 8 * 12 * 10 - 1)
        with pytest.raises(InputError, match="8 x 12 x 10 voxels take"):
            series.read()

    def test_a_long_scan_is_no_larger_than_it_will_be(self, tmp_path: Path) -> None:
        write_series(tmp_path / "ct", shape=(3, 4, 4))
        one = only(find_series(tmp_path / "ct")).slices[0]
        # Headers alone: what is told of the first slice shows that the size was none of the matter.
        long = tuple(replace(one, path=tmp_path / f"{k}.dcm", rows=512, columns=512) for k in range(1100))
        with pytest.raises(InputError, match="has gone"):
            read_hu(long)
        with pytest.raises(InputError, match=r"1100 x 512 x 512 voxels take 1\.1 GiB, at most 1 GiB"):
            read_hu(tuple(replace(header, slope=0.5) for header in long))
