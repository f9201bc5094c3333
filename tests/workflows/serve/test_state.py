"""The node's secrets: made once, for the owner alone, and nothing passes for one."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from metricunet.errors import InputError
from metricunet.workflows.serve.state import State
from tests.support.flushes import flushed, flushes


def test_a_token_is_made_once_for_the_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = flushes(monkeypatch)
    token = State(tmp_path).token("pages")
    path = tmp_path / "pages.token"
    assert said == [flushed(path), ("named", path), flushed(tmp_path)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
    assert State(tmp_path).token("pages") == token == path.read_text().strip()
    assert State(tmp_path).token("stow") != token


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"sesame\n", bytes(44), b"open sesame " * 9, "é".encode() * 50],
    ids=["empty", "a line", "short", "zeros", "words", "letters"],
)
def test_a_file_that_holds_no_token_lets_nobody_in(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pages.token"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"pages\.token: holds no token.*delete it"):
        State(tmp_path).token("pages")
    path.unlink()
    assert State(tmp_path).token("pages")
