"""Text files that people or other programs wrote, in any of Unicode's encodings."""

from __future__ import annotations

import codecs
from pathlib import Path

#: The marks that programs of Windows put first, the longer ones first, for one begins as another does.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """Read a text file: UTF-8, or UTF-8, UTF-16 or UTF-32 that begins with a byte order mark.

    PowerShell's `>` writes UTF-16 with a mark, and Windows' editors write UTF-8 with one. In what is returned a
    line ends in a line feed, and the mark is no part of it.

    Raises:
        OSError: not readable.
        UnicodeDecodeError: in none of these encodings.
    """
    content = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    return content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
