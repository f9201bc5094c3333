"""One process at a time: a file in a folder that says which process works there.

A claim holds as long as its process lives. That of a process that was killed, of an earlier boot of this
computer, or of a process whose number another one bears by now, is taken over by whoever comes next; of several
that come at once, by one of them. Whether a process on another computer still lives cannot be told from here, so
its claim holds until somebody removes the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from metricunet.errors import InputError
from metricunet.files.atomic import FULL, explained

if sys.platform != "win32":
    import fcntl

#: Name of the claim of a folder.
CLAIM_NAME = ".claim.json"
#: The start of one process, read twice, differs by no more: the system states its boot in whole seconds.
SAME_START_S = 1.5
#: How often somebody may come in between while a claim is made; more often is another fault.
ATTEMPTS = 100


@dataclass(frozen=True)
class Holder:
    """The process that made a claim.

    Attributes:
        host: name of the computer.
        boot: identifies the computer's boot; None where the system states none.
        namespace: identifies the container that the process number counts in; None where there are none.
        pid: number of the process.
        started_s: when the process began, in seconds after the boot.
        since: when it made the claim, in UTC, as people write it.
        token: random; no two claims have the same.
    """

    host: str
    boot: str | None
    namespace: str | None
    pid: int
    started_s: float
    since: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    def is_elsewhere(self) -> bool:
        """Tell whether the process runs where its life cannot be seen from here."""
        if self.host != socket.gethostname():
            return True
        return self.boot == _boot() and self.namespace != _namespace()

    def is_alive(self) -> bool:
        """Tell whether the process still runs; one that runs elsewhere is taken to do so."""
        if self.is_elsewhere():
            return True
        if self.boot != _boot() or not psutil.pid_exists(self.pid):
            return False
        try:
            process = psutil.Process(self.pid)
            same = abs(_started_s(process) - self.started_s) <= SAME_START_S
            return same and process.status() != psutil.STATUS_ZOMBIE  # killed, and its parent has not noticed
        except psutil.NoSuchProcess:
            return psutil.pid_exists(self.pid)  # some systems hide the processes of other users
        except psutil.AccessDenied:
            return True


class AlreadyClaimed(InputError):  # noqa: N818
    """A live process works there already.

    Attributes:
        path: the claim.
        holder: the process that holds it; None where the file cannot be read.
        what: the work that is going on there.
    """

    def __init__(self, path: Path, holder: Holder | None, what: str) -> None:
        self.path, self.holder, self.what = path, holder, what
        if holder is None:
            said = f"{path}: not readable as a claim; remove this file if nothing else works in {path.parent}"
        else:
            advice = "wait for it or stop it, or choose another folder"
            if holder.is_elsewhere():
                advice += f"; if it no longer runs, remove {path}"
            said = f"{path.parent}: {what} is going on here already ({holder}); {advice}"
        super().__init__(said)

    def __reduce__(self) -> tuple[type[AlreadyClaimed], tuple[Path, Holder | None, str]]:
        """Be picklable: an engine carries out runs in other processes."""
        return AlreadyClaimed, (self.path, self.holder, self.what)


def refuse_claimed(path: Path, what: str) -> None:
    """Refuse a folder where a live process works, and write nothing.

    Raises:
        AlreadyClaimed: it is named.
    """
    holder = _read_or_refuse(path, what) if os.path.lexists(path) else None
    if holder is not None and holder.is_alive():
        raise AlreadyClaimed(path, holder, what)


@contextmanager
def claimed(path: Path, what: str) -> Iterator[None]:
    """Hold a claim while the block runs. Folders that are missing are made; those left empty are removed again.

    Args:
        path: the file of the claim, such as `folder / CLAIM_NAME`. Readers never see half of it.
        what: the work that is going on there, for messages, such as `a training`.

    Raises:
        AlreadyClaimed: a live process, or one on another computer, holds it.
        InputError: the folder cannot be written.
    """
    mine = _own()
    made = _missing_folders(path.parent)
    try:
        try:
            _take(path, mine, what)
        except OSError as error:
            if error.errno in FULL:
                raise explained(path.parent, error) from error
            raise InputError(
                f"{path.parent}: cannot be written ({error.strerror or error}); choose another folder"
            ) from error
        try:
            yield
        finally:
            with suppress(OSError):  # then it is a dead process's claim before long
                _give_back(path, mine)
    finally:
        for folder in made:
            with suppress(OSError):  # it is not empty, or gone
                folder.rmdir()


def read_claim(path: Path) -> Holder | None:
    """Return who made a claim; None where there is none.

    Raises:
        ValueError: the file is no claim.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    try:
        holder = Holder(**content)
    except TypeError as error:
        raise ValueError(str(error)) from error
    kinds: dict[str, Any] = {"host": str, "pid": int, "started_s": int | float, "since": str, "token": str}
    if wrong := [name for name, kind in kinds.items() if not isinstance(getattr(holder, name), kind)]:
        raise ValueError(f"{wrong[0]} is {getattr(holder, wrong[0])!r}")
    return holder


def _own() -> Holder:
    return Holder(
        host=socket.gethostname(),
        boot=_boot(),
        namespace=_namespace(),
        pid=os.getpid(),
        started_s=round(_started_s(psutil.Process()), 2),
        since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        token=uuid4().hex,
    )


def _take(path: Path, mine: Holder, what: str) -> None:
    """Put a claim in place, or find that another one holds. No trace is left of a claim that was not made."""
    # One name for all processes of this computer, which take turns here: what a killed one left is written over.
    origin = hashlib.sha256(f"{mine.host} {mine.namespace}".encode()).hexdigest()[:8]
    temporary = path.parent / f".partial-{origin}{path.name}"
    for attempt in range(ATTEMPTS):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _alone_in(path.parent):
                if path.exists() or path.is_symlink():
                    holder = _read_or_refuse(path, what)
                    if holder is not None and holder.is_alive():
                        raise AlreadyClaimed(path, holder, what)
                try:
                    temporary.write_text(json.dumps(asdict(mine), indent=2) + "\n", encoding="utf-8")
                    if os.path.lexists(path):
                        # Only processes of this computer take over a claim of this computer, and they wait for
                        # each other here; those of another computer find the place taken at every moment.
                        os.replace(temporary, path)
                    else:
                        _put(temporary, path)
                finally:
                    with suppress(OSError):
                        temporary.unlink()
            return
        except (FileExistsError, FileNotFoundError):
            # Another computer came first, or a rival that had made the folder has just removed it.
            if attempt == ATTEMPTS - 1:
                raise


def _put(temporary: Path, path: Path) -> None:
    """Give a written claim its name, if nothing has that name.

    Raises:
        FileExistsError: something has.
    """
    try:
        os.link(temporary, path)
        return
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # a file system without hard links
        content = temporary.read_bytes()
    with path.open("xb") as handle:
        handle.write(content)


def _read_or_refuse(path: Path, what: str) -> Holder | None:
    try:
        return read_claim(path)
    except (OSError, ValueError) as error:
        raise AlreadyClaimed(path, None, what) from error


def _give_back(path: Path, mine: Holder) -> None:
    with _alone_in(path.parent):
        try:
            holder = read_claim(path)
        except ValueError:
            return
        if holder is not None and holder.token == mine.token:
            path.unlink()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes of this computer, and other threads, out of this block; the system ends it with us."""
    if sys.platform == "win32":
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: what remains is the exclusive name
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _missing_folders(folder: Path) -> list[Path]:
    """Return the folders that are yet to be made, the innermost first."""
    return [one for one in (folder, *folder.parents) if not one.exists()]


def _started_s(process: psutil.Process) -> float:
    # Both are by the wall clock, which may be set meanwhile; their difference is not.
    return float(process.create_time()) - float(psutil.boot_time())


def _boot() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def _namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
