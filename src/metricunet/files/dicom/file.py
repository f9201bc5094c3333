"""Opening DICOM files that may be anything: what their lengths announce is taken only where it is there.

pydicom asks a file for as many bytes as a header says, unpacks whatever a deflated data set unpacks to, and lets
any element hold sequences within sequences.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

#: A deflated data set may unpack to this many bytes; a structure set of a whole body takes a fifth of it.
MOST_UNPACKED = 1 << 28
#: Reads of fewer bytes than this are not looked at.
SMALL_READ = 1 << 16
#: How a DICOM file begins: bytes of anything, and four letters.
PREAMBLE, PREFIX = 128, b"DICM"
#: Groups that a data set without these begins with.
BARE_GROUPS = (0x0002, 0x0008)
#: Bytes of a tag and a length.
SHORTEST_ELEMENT = 8


class DicomHandle(io.BufferedReader):
    """A file open for pydicom, which never gives more than it has, nor more than can be unpacked."""

    def __init__(self, path: Path) -> None:
        raw = io.FileIO(os.fspath(path))  # pydicom puts its name into messages, and takes it for a text
        super().__init__(raw)
        self._size = os.fstat(raw.fileno()).st_size

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self._size

    def read(self, size: int | None = -1, /) -> bytes:
        """Read bytes; without a size, the rest of the file.

        Raises:
            ValueError: the rest is what only a deflated data set is read by, and unpacks to too much.
        """
        if size is None or size < 0:
            rest = super().read()
            _check_unpacked(rest)
            return rest
        # Python makes room for all that is asked for before it reads.
        return super().read(size if size < SMALL_READ else min(size, max(0, self._size - self.tell())))


def read_dataset(path: Path, **options: Any) -> Dataset:
    """Read a DICOM file as `pydicom.dcmread` does, with its options.

    Raises:
        ValueError: a deflated data set that unpacks to too much, or an element that is a sequence and must not be.
        Exception: whatever pydicom raises for a damaged file.
    """
    with DicomHandle(path) as handle:
        bare = begins_bare(handle)
        return parsed(handle, force=bare, **options)


def read_readable(path: Path, **options: Any) -> Dataset:
    """Read a DICOM file without the elements whose values cannot be interpreted, wherever they stand.

    Raises:
        Exception: whatever pydicom raises for a file of which it cannot tell where its elements begin and end.
    """
    with DicomHandle(path) as handle:
        bare = begins_bare(handle)
        dataset = pydicom.dcmread(handle, force=bare, **options)
    for tag in _wrong_sequences(dataset):
        del dataset[tag]
    _leave_out_unreadable(dataset)
    return dataset


def _leave_out_unreadable(dataset: Dataset) -> None:
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]  # pydicom interprets it now
            for item in element.value if isinstance(element.value, Sequence) else ():
                _leave_out_unreadable(item)
        except Exception:  # whatever its converters raise
            del dataset[tag]


def begins_bare(handle: DicomHandle) -> bool:
    """Tell whether a file is a data set without preamble and file header, as some programs write them.

    It then begins with an element of group 0008, or of the file header's group 0002, whose length is possible.
    The handle is left at its beginning.
    """
    head = handle.read(PREAMBLE + len(PREFIX))
    handle.seek(0)
    if head[PREAMBLE:] == PREFIX or len(head) < SHORTEST_ELEMENT:
        return False
    group, element = struct.unpack("<HH", head[:4])
    if group not in BARE_GROUPS:
        return False
    try:
        representation = "UL" if element == 0 else dictionary_VR(group << 16 | element)
    except KeyError:
        return False
    explicit = head[4:6].decode("latin-1") == representation
    return explicit or int.from_bytes(head[4:8], "little") <= handle.size - SHORTEST_ELEMENT


def parsed(handle: DicomHandle, **options: Any) -> Dataset:
    """Read a data set from an open file, which is left where pydicom stopped reading."""
    dataset = pydicom.dcmread(handle, **options)
    for tag in _wrong_sequences(dataset):
        raise ValueError(f"{pydicom.datadict.keyword_for_tag(tag) or tag} is a sequence")
    return dataset


def _wrong_sequences(dataset: Dataset) -> list[BaseTag]:
    """Return the elements that are sequences and must not be."""
    items = {tag: dataset.get_item(tag) for tag in dataset.keys()}  # noqa: SIM118 - elements would be converted
    return [
        tag
        for tag, item in items.items()
        if item is not None and item.VR == "SQ" and not _may_be_sequence(int(tag))
    ]


def read_meta(path: Path) -> Dataset:
    """Read the file header (group 2), whether or not a preamble stands before it; empty where there is none.

    Raises:
        Exception: whatever pydicom raises for a damaged file.
    """
    if not is_bare(path):
        return read_file_meta_info(path)
    meta: Dataset = read_dataset(path, stop_before_pixels=True).file_meta
    return meta


def is_bare(path: Path) -> bool:
    """Tell whether a file lacks the preamble, and perhaps the file header; see `begins_bare`."""
    with DicomHandle(path) as handle:
        return begins_bare(handle)


def state_syntax(dataset: Dataset) -> None:
    """Let a data set without a file header state the transfer syntax that it was read by."""
    syntax = bare_syntax(dataset)
    if syntax is not None and "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = syntax


def bare_syntax(dataset: Dataset) -> UID | None:
    """The uncompressed transfer syntax that a data set without a file header was read by; None where none fits."""
    implicit, little = dataset.original_encoding
    if not little:
        return None
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian


def plain_text(dataset: Dataset, keyword: str) -> str:
    """An element's value as text; empty where there is none, or a sequence, whose text has no end."""
    value = dataset.get(keyword)
    return "" if value is None or isinstance(value, Sequence | Dataset) else str(value)


def _check_unpacked(packed: bytes) -> None:
    unpacker = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
    count, piece = 0, packed
    while piece and not unpacker.eof:
        count += len(unpacker.decompress(piece, 1 << 20))
        piece = unpacker.unconsumed_tail
        if count > MOST_UNPACKED:
            raise ValueError(f"its deflated data set unpacks to more than {MOST_UNPACKED >> 20} MiB")


def _may_be_sequence(tag: int) -> bool:
    try:
        return dictionary_VR(tag) == "SQ"
    except KeyError:
        return True  # private, or of a later edition: nothing that is read here
