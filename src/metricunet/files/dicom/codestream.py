"""What a compressed picture says of its own size, before a decoder believes it.

A decoder makes room for the picture that its stream announces, whatever the DICOM header around it says: 65535 x
65535 pixels of three bytes in a file of a few hundred.
"""

from __future__ import annotations

import struct

from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import (
    JPEG2000,
    UID,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

JPEG = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1})
JPEG_LS = frozenset({JPEGLSLossless, JPEGLSNearLossless})
JPEG_2000 = frozenset({JPEG2000Lossless, JPEG2000})
#: Markers of the header of a frame: of JPEG, all but the tables that lie between, and of JPEG-LS.
_JPEG_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_JPEG_LS_FRAMES = frozenset({0xF7})
_SCAN, _END = 0xDA, 0xD9
_START_OF_CODESTREAM = b"\xff\x4f\xff\x51"
#: Of the boxes that may lie around a JPEG 2000 codestream.
_BOXES = 4096


def check_codestreams(dataset: Dataset) -> None:
    """Make sure that JPEG, JPEG-LS and JPEG 2000 pictures have the size that the data set states.

    Raises:
        ValueError: a picture of another size, or none at all.
    """
    if not has_codestreams(dataset.file_meta):
        return
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    expected = int(dataset.Rows), int(dataset.Columns)
    count = int(dataset.get("NumberOfFrames") or 1)
    for frame in generate_frames(dataset.PixelData, number_of_frames=count):
        found = coded_size(frame, syntax)
        if found is None:
            raise ValueError(f"what is stored as {syntax.name} is none")
        if found != expected:
            raise ValueError(
                f"the compressed picture is {found[0]} x {found[1]}, the header says {expected[0]} x {expected[1]}"
            )


def has_codestreams(meta: Dataset) -> bool:
    """Tell from a file's group 2 whether its pictures are JPEG, JPEG-LS or JPEG 2000."""
    return meta.get("TransferSyntaxUID", "") in JPEG | JPEG_LS | JPEG_2000


def coded_size(stream: bytes, syntax: UID) -> tuple[int, int] | None:
    """Return the rows and columns that a compressed picture announces; None where it is no such picture."""
    if syntax in JPEG_2000:
        begin = stream.find(_START_OF_CODESTREAM, 0, _BOXES)
        if begin < 0 or len(stream) < begin + 24:
            return None
        width, height, left, top = struct.unpack(">4I", stream[begin + 8 : begin + 24])
        return height - top, width - left
    if not stream.startswith(b"\xff\xd8"):
        return None
    wanted = _JPEG_LS_FRAMES if syntax in JPEG_LS else _JPEG_FRAMES
    offset = 2
    while offset + 9 <= len(stream) and stream[offset] == 0xFF:
        marker = stream[offset + 1]
        if marker == 0xFF:  # padding
            offset += 1
            continue
        if marker in wanted:
            height, width = struct.unpack(">2H", stream[offset + 5 : offset + 9])
            return height, width
        if marker in (_SCAN, _END):
            return None
        offset += 2 + int.from_bytes(stream[offset + 2 : offset + 4], "big")
    return None
