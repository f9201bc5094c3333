"""Bodies of several parts (multipart/related), taken apart as they come: each part goes onto the disk at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from metricunet.errors import InputError

MOST_HEADER_BYTES = 8192
#: The standard of the web has 70 characters at most (RFC 2046), and Orthanc sends 73.
_BOUNDARY = re.compile(r'boundary="?([0-9A-Za-z\'()+_,./:=? -]{1,200}?)"?\s*(?:;|$)')


class TooLarge(InputError):  # noqa: N818
    """A part has more bytes, or there are more parts, than are taken."""


def boundary_of(content_type: str) -> bytes:
    """Return what stands between the parts of a body.

    Raises:
        InputError: the type is another one, or states none.
    """
    kind = content_type.partition(";")[0].strip().lower()
    found = _BOUNDARY.search(content_type)
    if kind != "multipart/related" or found is None:
        raise InputError(
            'expected Content-Type multipart/related; type="application/dicom"; boundary=..., as STOW-RS has it'
        )
    return found[1].encode("latin-1")


class Parts:
    """Takes a body apart.

    Args:
        boundary: that stands between the parts.
        folder: that parts are written into.
        most_bytes: of a part.
        most_parts: of the body.
    """

    def __init__(self, boundary: bytes, folder: Path, most_bytes: int, most_parts: int) -> None:
        self.folder, self.most_bytes, self.most_parts = folder, most_bytes, most_parts
        self._delimiter = b"\r\n--" + boundary
        self._buffer = bytearray(b"\r\n")  # the first boundary may stand at the very beginning
        self._reading = self._preamble
        self._handle: BinaryIO | None = None
        self._path: Path | None = None
        self._size = self._count = 0
        self._done: list[Path] = []
        self.ended = False

    def feed(self, chunk: bytes) -> list[Path]:
        """Take the next bytes of the body; return the parts that are complete with them.

        Raises:
            TooLarge: see there.
            InputError: the body is none of several parts.
        """
        self._buffer += chunk
        while not self.ended and self._reading():
            pass
        if self.ended:
            self._buffer.clear()
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """Remove what is not complete, and what was not handed out."""
        for path in self._done:
            path.unlink(missing_ok=True)
        if self._handle is not None:
            self._handle.close()
            self._handle = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None

    def _preamble(self) -> bool:
        at = self._buffer.find(self._delimiter)
        if at < 0:
            if len(self._buffer) > MOST_HEADER_BYTES:
                raise InputError("the body does not begin with its boundary")
            return False
        del self._buffer[: at + len(self._delimiter)]
        self._reading = self._after_boundary
        return True

    def _after_boundary(self) -> bool:
        if len(self._buffer) < 2:
            return False
        if self._buffer.startswith(b"--"):
            self.ended = True
            return False
        self._reading = self._header
        return True

    def _header(self) -> bool:
        at = self._buffer.find(b"\r\n\r\n")
        if at > MOST_HEADER_BYTES or (at < 0 and len(self._buffer) > MOST_HEADER_BYTES):
            raise InputError("the header of a part has no end")
        if at < 0:
            return False
        del self._buffer[: at + 4]
        self._count += 1
        if self._count > self.most_parts:
            raise TooLarge(f"the body has more than {self.most_parts} parts")
        self._path = self.folder / f"{uuid4().hex}.dcm"
        self._handle, self._size = self._path.open("wb"), 0
        self._reading = self._body
        return True

    def _body(self) -> bool:
        assert self._handle is not None
        assert self._path is not None
        at = self._buffer.find(self._delimiter)
        end = at if at >= 0 else max(0, len(self._buffer) - len(self._delimiter) + 1)
        self._size += end
        if self._size > self.most_bytes:
            raise TooLarge(f"a part has more than {self.most_bytes} bytes")
        self._handle.write(self._buffer[:end])
        if at < 0:
            del self._buffer[:end]
            return False
        del self._buffer[: at + len(self._delimiter)]
        self._handle.close()
        self._done.append(self._path)
        self._handle = self._path = None
        self._reading = self._after_boundary
        return True
