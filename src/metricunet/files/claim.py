"""One process at a time: a file in a folder that says which process works there.

A claim holds as long as its process lives. That of a process that was killed, of an earlier boot of this
computer, or of a process whose number another one bears by now, is taken over by whoever comes next; of several
that come at once, by one of them. A process in another container of this computer cannot be seen, but it keeps a
lock on its claim, which the system ends with it: a container that was killed and is started again goes on. Whether
a process on another computer still lives cannot be told from here, so its claim holds until somebody removes the
file; so does that of another container where the folder lies on a file system of the network.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO
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
#: Kinds of file systems of one computer, whose locks all its containers share.
OWN_FILE_SYSTEMS = frozenset({"ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"})


@dataclass(frozen=True)
class Holder:
    """The process that made a claim.

    Attributes:
        host: name of the computer.
        boot: identifies the computer's boot; None where the system states none.
        namespace: identifies the container that the process number counts in; None where there are none.
        pid: number of the process.
        started_s: when the process began, in seconds after the boot; where the system is not Linux, after 1970.
        since: when it made the claim, in UTC, as people write it.
        token: random; no two claims have the same.
        device: number of the device that holds the claim's folder, where the process keeps a lock on the claim;
            None on file systems that are not this computer's own, and in claims of earlier versions.
    """

    host: str
    boot: str | None
    namespace: str | None
    pid: int
    started_s: float
    since: str
    token: str
    device: int | None = None

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
    if holder is not None and _holds(path, holder):
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
        with ExitStack() as lock:
            try:
                _take(path, mine, what, lock)
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
                    _give_back(path, mine, lock)
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
    kinds: dict[str, Any] = {
        "host": str,
        "pid": int,
        "started_s": int | float,
        "since": str,
        "token": str,
        "device": int | None,
    }
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


def _take(path: Path, mine: Holder, what: str, lock: ExitStack) -> None:
    """Put a claim in place, or find that another one holds. No trace is left of a claim that was not made.

    Args:
        path: of the claim.
        mine: what it says.
        what: the work, for messages.
        lock: gets what keeps the claim's file locked.
    """
    # One name for all processes of this computer, which take turns here: what a killed one left is written over.
    origin = hashlib.sha256(f"{mine.host} {mine.namespace}".encode()).hexdigest()[:8]
    temporary = path.parent / f".partial-{origin}{path.name}"
    for attempt in range(ATTEMPTS):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _alone_in(path.parent) as has_locks:
                if path.exists() or path.is_symlink():
                    holder = _read_or_refuse(path, what)
                    if holder is not None and _holds(path, holder):
                        raise AlreadyClaimed(path, holder, what)
                said = replace(mine, device=_own_device(path.parent) if has_locks else None)
                try:
                    with temporary.open("wb") as handle:
                        _fill(handle, (json.dumps(asdict(said), indent=2) + "\n").encode())
                    if os.path.lexists(path):
                        # Only processes of this computer take over a claim of this computer, and they wait for
                        # each other here; those of another computer find the place taken at every moment.
                        os.replace(temporary, path)
                    else:
                        _put(temporary, path)
                finally:
                    with suppress(OSError):
                        temporary.unlink()
                if said.device is not None:  # who would ask for the lock waits for this block to end
                    _lock(path, lock)
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
        try:
            _fill(handle, content)
        except OSError:
            path.unlink(missing_ok=True)
            raise


def _fill(handle: BinaryIO, content: bytes) -> None:
    """Write a claim and flush it: one that is left empty, as by a power cut, holds until somebody removes it."""
    handle.write(content)
    handle.flush()
    os.fsync(handle.fileno())


def _lock(path: Path, lock: ExitStack) -> None:
    """Lock a claim's file until the stack is closed or the process ends."""
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(lock.enter_context(path.open("rb")), fcntl.LOCK_EX)
    except OSError:
        path.unlink(missing_ok=True)  # it says that it is locked
        raise


def _holds(path: Path, holder: Holder) -> bool:
    """Tell whether a claim holds: its process lives, or runs elsewhere and is not known to have ended."""
    return holder.is_alive() and not (holder.is_elsewhere() and _has_let_go(path, holder))


def _has_let_go(path: Path, holder: Holder) -> bool:
    """Tell whether the process of another container of this computer has ended, and its lock with it.

    A lock tells nothing where the folder is seen here through another mount than there, or from another computer.
    """
    if sys.platform == "win32" or holder.device is None or holder.boot is None or holder.boot != _boot():
        return False
    try:
        if path.parent.stat().st_dev != holder.device:
            return False
        with path.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # it is locked, or gone by now
        return False
    return True


def _read_or_refuse(path: Path, what: str) -> Holder | None:
    try:
        return read_claim(path)
    except (OSError, ValueError) as error:
        raise AlreadyClaimed(path, None, what) from error


def _give_back(path: Path, mine: Holder, lock: ExitStack) -> None:
    with _alone_in(path.parent):
        lock.close()
        try:
            holder = read_claim(path)
        except ValueError:
            return
        if holder is not None and holder.token == mine.token:
            path.unlink()


@contextmanager
def _alone_in(folder: Path) -> Iterator[bool]:
    """Keep other processes of this computer, and other threads, out of this block; the system ends it with us.

    Yields whether the file system has locks. Without them what remains is the exclusive name.
    """
    if sys.platform == "win32":
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        has_locks = False
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
            has_locks = True
        yield has_locks
    finally:
        os.close(handle)


def _missing_folders(folder: Path) -> list[Path]:
    """Return the folders that are yet to be made, the innermost first."""
    return [one for one in (folder, *folder.parents) if not one.exists()]


def _started_s(process: psutil.Process) -> float:
    if sys.platform != "linux":
        # Noted once, by the clock of that moment; the time of the boot follows a clock that is set, or corrected
        # by the network day by day.
        return float(process.create_time())
    # Both are by the wall clock, which may be set meanwhile; their difference is not.
    return float(process.create_time()) - float(psutil.boot_time())


def _own_device(folder: Path) -> int | None:
    """Return the number of a folder's device, if its file system is of this computer alone; else None.

    Locks on a file system of the network may not reach every computer, or wait for a server.
    """
    device = folder.stat().st_dev
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for mount in mounts:
        place, _, kind = mount.partition(" - ")
        number = f" {os.major(device)}:{os.minor(device)} "
        if number in place and kind.split(" ")[0] in OWN_FILE_SYSTEMS:
            return device
    return None


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
