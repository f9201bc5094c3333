"""Outputs appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from metricunet.errors import InputError
from metricunet.files.atomic import write_json, write_text, written_whole
from tests.support.flushes import flushed, flushes


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), written_whole(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_folders_are_made_and_suffixes_kept(tmp_path: Path) -> None:
    with written_whole(tmp_path / "x" / "a.nii.gz") as temporary:
        assert temporary.name.endswith(".nii.gz")
        temporary.write_bytes(b"1")
    assert (tmp_path / "x" / "a.nii.gz").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission"), (errno.EIO, "cannot be")],
)
def test_what_the_system_refuses_is_explained(tmp_path: Path, number: int, words: str) -> None:
    with pytest.raises(InputError, match=words), written_whole(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise OSError(number, os.strerror(number))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(InputError, match=r"b\.txt: cannot be written"):
        write_text(tmp_path / "a" / "b.txt", "text")


def test_a_disk_that_may_only_be_read_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the system refuses to remove even what is not there."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", refused)
    monkeypatch.setattr(Path, "write_text", refused)
    with pytest.raises(InputError, match="no permission to write here"):
        write_text(tmp_path / "a.txt", "text")


def test_nan_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_file_outlives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = flushes(monkeypatch)
    path = tmp_path / "a.txt"
    write_text(path, "text")
    assert said == [flushed(path), ("named", path), flushed(tmp_path)]


def test_a_file_is_flushed_where_the_system_flushes_none_that_is_open_for_reading_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Windows does, which opens no folders either."""

    def flush(handle: int) -> None:
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            os.write(handle, b"")  # a handle for reading alone is refused

    monkeypatch.setattr(os, "fsync", flush)
    write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_flushes_no_folders_is_none_the_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "fsync", refusing_folders(number))
    write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"


def test_a_system_that_opens_no_folders_is_none_the_worse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: object, flags: int) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr("metricunet.files.atomic.os.open", closed)
        write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"


def test_a_disk_that_fails_under_a_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", refusing_folders(errno.EIO))
    with pytest.raises(InputError, match="cannot be written"):
        write_text(tmp_path / "a.txt", "text")


def refusing_folders(number: int) -> Callable[[int], None]:
    fsync = os.fsync

    def flush(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    return flush
