"""What a node says is kept, whatever becomes of those who listen."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from metricunet.workflows.serve.journal import Journal


class Gone(io.StringIO):
    """A stream whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [Gone(), closed()], ids=["gone", "closed"])
def test_the_file_is_written_also_where_nobody_reads_the_stream(tmp_path: Path, stream: io.StringIO) -> None:
    Journal(tmp_path, stream).say("case done", case="c0ffee")
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text())["case"] == "c0ffee"


def test_the_stream_is_written_also_where_the_file_cannot_be(tmp_path: Path) -> None:
    stream = io.StringIO()
    Journal(tmp_path / "missing", stream).say("case done", case="c0ffee")
    assert json.loads(stream.getvalue())["case"] == "c0ffee"
