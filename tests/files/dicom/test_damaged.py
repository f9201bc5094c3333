"""DICOM files whose headers lie: what fuzzing found, each as small as it gets."""

from __future__ import annotations

import struct
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from metricunet.errors import InputError
from metricunet.files.dicom.codestream import coded_size
from metricunet.files.dicom.decode import frames_apart, stored_frames
from metricunet.files.dicom.file import MOST_UNPACKED, plain_text, read_dataset
from metricunet.files.dicom.header import one_line
from metricunet.files.dicom.series import find_series
from metricunet.files.rtstruct.read import read_rtstruct
from metricunet.files.rtstruct.registration import read_registration
from tests.support.dicom_series import companion, save, write_series
from tests.support.structure_sets import rtstruct, square


def refusal(folder: Path) -> str:
    """Why the only series of a folder, or one that was found, is refused."""
    search = find_series(folder)
    if search.refused:
        return search.refused[0].reason
    with pytest.raises(InputError) as caught:
        search.series[0].read()
    return str(caught.value)


def deflated_bomb(dataset_bytes: bytes = b"") -> bytes:
    """A deflated data set that ends in an element of more zeros than are unpacked."""
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    element = struct.pack("<HH2sHI", 9, 0x1001, b"OB", 0, MOST_UNPACKED + (1 << 20))
    packed = packer.compress(dataset_bytes + element)
    for _ in range((MOST_UNPACKED >> 20) + 1):
        packed += packer.compress(bytes(1 << 20))
    return packed + packer.flush()


def test_a_length_beyond_the_end_takes_no_memory(tmp_path: Path) -> None:
    """An element that says it has 4 GB: Python would make room for them before it reads."""
    path = rtstruct(tmp_path / "set.dcm", [("Prostate", [square(1, 5, 0)])])
    path.write_bytes(path.read_bytes() + struct.pack("<HHI", 0x300E, 0x0004, 0xFFFFFFF0) + b"no more")
    tracemalloc.start()
    with pytest.raises(InputError, match="cannot be read"):
        read_rtstruct(path)
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


def test_a_deflated_data_set_unpacks_to_no_more_than_it_may(tmp_path: Path) -> None:
    written = write_series(tmp_path, shape=(3, 8, 10), transfer_syntax=DeflatedExplicitVRLittleEndian)
    content = written.files[1].read_bytes()
    dataset = read_dataset(written.files[1])
    meta = len(content) - len(content[132:]) + 12 + dataset.file_meta.FileMetaInformationGroupLength
    assert zlib.decompress(content[meta:], -zlib.MAX_WBITS)
    written.files[1].write_bytes(content[:meta] + deflated_bomb())
    tracemalloc.start()
    assert "unpacks to more than 256 MiB" in refusal(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


def nested(depth: int) -> Dataset:
    item = Dataset()
    item.PatientID = "x"
    for _ in range(depth):
        outer = Dataset()
        outer.ReferencedStudySequence = [item]
        item = outer
    return item


def test_a_name_that_is_a_sequence_has_no_text(tmp_path: Path) -> None:
    """Nested deeply it would take pydicom longer to print than anyone waits."""
    holder = Dataset()
    holder.add_new("PatientName", "SQ", Sequence([nested(3)]))
    assert plain_text(holder, "PatientName") == ""

    def edit(k: int, dataset: Dataset) -> None:
        if k == 1:
            del dataset.SeriesDescription
            dataset.add_new(0x0008103E, "SQ", Sequence([nested(30)]))

    write_series(tmp_path, shape=(4, 8, 10), edit=edit)
    assert "SeriesDescription is a sequence" in refusal(tmp_path)


@pytest.mark.parametrize("name", [b"rot13     ", b"utf-7\\x   ", b"\0\0\0       "])
def test_no_character_set_is_a_defect_of_ours(tmp_path: Path, name: bytes) -> None:
    written = write_series(tmp_path, shape=(4, 8, 10))
    for path in written.files:
        path.write_bytes(path.read_bytes().replace(b"ISO_IR 100", name))
    search = find_series(tmp_path)  # some are known to Python and to no one else: either way is borne
    assert len(search.series) + len(search.refused) == 1


def test_no_message_holds_the_traceback_of_another() -> None:
    """pydicom writes one into the message where an element deep in a data set cannot be read."""
    error = AttributeError("With tag (0008,0090) got exception: no\nTraceback (most recent call last):\n  File x")
    assert one_line(error) == "With tag (0008,0090) got exception: no"


class TestPictures:
    SIZE = struct.pack(">BHBHHB", 0xC3, 11, 16, 65535, 65535, 1)

    def test_sizes_are_read_from_the_streams(self) -> None:
        comment = b"\xff\xfe\x00\x04ab"
        assert coded_size(b"\xff\xd8" + comment + b"\xff" + self.SIZE, JPEGLosslessSV1) == (65535, 65535)
        assert coded_size(b"\xff\xd8" + comment + b"\xff" + self.SIZE, JPEGLSLossless) is None
        assert coded_size(b"\xff\xd8\xff\xda\x00\x02" + self.SIZE, JPEGLosslessSV1) is None
        assert coded_size(b"", JPEGLosslessSV1) is None

    def test_another_size_than_the_header_says_is_refused_before_it_is_decoded(self, tmp_path: Path) -> None:
        def edit(k: int, dataset: Dataset) -> None:
            stream = b"\xff\xd8\xff" + self.SIZE + bytes(40)
            dataset.PixelData = encapsulate([stream])
            dataset["PixelData"].VR = "OB"
            dataset["PixelData"].is_undefined_length = True
            dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1

        write_series(tmp_path, shape=(3, 8, 10), after=edit)
        assert "the compressed picture is 65535 x 65535, the header says 8 x 10" in refusal(tmp_path)

    def test_a_decoder_that_crashes_costs_a_slice_and_not_the_program(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The program that stands in for Python says that it is ready, and ends."""
        crashing = tmp_path / "python"
        crashing.write_text("#!/bin/sh\necho ready\nkill -ABRT $$\n")
        crashing.chmod(0o755)
        folder = tmp_path / "ct"
        write_series(folder, shape=(3, 8, 10))
        (series,) = find_series(folder).series
        monkeypatch.setattr("metricunet.files.dicom.pixels._needs_process", lambda header: True)
        monkeypatch.setattr(sys, "executable", str(crashing))
        with pytest.raises(InputError, match="the decoder crashed"):
            series.read()

    def test_frames_apart_are_those_that_are_decoded_here(self, tmp_path: Path) -> None:
        written = write_series(tmp_path, shape=(3, 8, 10))
        apart, here = (next(iter(f(written.files[1], [None]))) for f in (frames_apart, stored_frames))
        assert apart.dtype == here.dtype
        np.testing.assert_array_equal(apart, here)


def test_a_matrix_that_no_memory_holds(tmp_path: Path) -> None:
    def edit(k: int, dataset: Dataset) -> None:
        dataset.Rows = dataset.Columns = 30000
        dataset.PixelData = encapsulate([bytes(8)])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = RLELossless

    write_series(tmp_path, shape=(3, 8, 10), after=edit)
    assert "at most 1 GiB is read" in refusal(tmp_path)


def test_a_registration_whose_item_is_no_item(tmp_path: Path) -> None:
    dataset = companion("REG", "1.2.840.10008.5.1.4.1.1.66.1", FrameOfReferenceUID="1.2.3")
    dataset.RegistrationSequence = []
    save(tmp_path / "reg.dcm", dataset)
    content = (tmp_path / "reg.dcm").read_bytes()
    (tmp_path / "reg.dcm").write_bytes(content + struct.pack("<HH2sHI", 0x0070, 0x0309, b"SQ", 0, 0x7FFFFFFF))
    with pytest.raises(InputError, match=r"reg\.dcm"):
        read_registration(tmp_path / "reg.dcm").matrix("1.2.9", "1.2.3")
