"""JSON of others: what is none is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from metricunet.errors import InputError
from metricunet.files.json_file import read_json


def test_reads(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [1, null]}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"a": [1, None]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_reads_what_windows_writes(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.json").write_bytes('{\r\n"a": "Größe 前"}'.encode(encoding))
    assert read_json(tmp_path / "a.json") == {"a": "Größe 前"}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5000, b"{\n1}"])
def test_refuses(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json: not valid JSON \(.*\); do this$") as caught:
        read_json(path, "; do this")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="not valid JSON"):
        read_json(tmp_path / "missing.json")
