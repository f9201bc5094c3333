"""Outputs that appear whole or not at all: written beside, flushed, renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from metricunet.errors import InputError

#: Pattern of the temporary files, of which a process that is killed leaves one.
UNFINISHED = ".partial-*"
#: How the hidden folders of unfinished work begin.
STAGING = ".metricunet-"
#: Numbers of the errors of a disk, or of a user's share of it, that is full.
FULL = (errno.ENOSPC, errno.EDQUOT)
#: What file systems say that flush files and no folders.
NOT_FLUSHED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, flush it and rename it to `path`.

    The temporary name keeps the last suffixes, for libraries that choose a format by them. When the block fails
    the temporary file is removed and `path` is as it was.

    Raises:
        InputError: if the folder cannot be written or the disk is full.
    """
    temporary = path.parent / _temporary_name(path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as handle:  # Windows flushes no file that is open for reading alone
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise explained(path, error) from error
    finally:
        with suppress(OSError):  # there is none, or the folder is what could not be written
            temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder, so that what was made or renamed there outlives a power cut.

    Nothing is done where a folder cannot be opened or flushed, as on Windows.

    Raises:
        OSError: the disk fails.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NOT_FLUSHED:
            raise
    finally:
        os.close(handle)


def _temporary_name(name: str) -> str:
    """Return a short name, so that it fits wherever the final one does; its suffixes are kept for libraries."""
    number = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    return f".partial-{os.getpid()}-{secrets.token_hex(4)}-{number}{''.join(Path(name).suffixes[-2:])[-24:]}"


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file for people and programs to read, whole or not at all. NaN is refused."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def explained(path: Path, error: OSError) -> InputError:
    """Return what the user is told where a file cannot be written; of a hidden folder, the one that it is in."""
    path = next((hidden.parent for hidden in (path, *path.parents) if hidden.name.startswith(STAGING)), path)
    if error.errno in FULL:
        return InputError(f"{path}: the disk is full; nothing was left there. Free some space and run again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(f"{path}: no permission to write here; choose another folder")
    return InputError(f"{path}: cannot be written ({error.strerror or error})")
