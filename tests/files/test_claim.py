"""Claims: one holder at a time, whatever became of the process before."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from metricunet.errors import InputError
from metricunet.files import claim
from metricunet.files.claim import CLAIM_NAME, AlreadyClaimed, claimed, read_claim, refuse_claimed
from tests.support.cohorts import edit_json
from tests.support.flushes import flushed, flushes

HOLDER = """
import sys
from pathlib import Path
from metricunet.files.claim import claimed

with claimed(Path(sys.argv[1]), "a training"):
    print("held", flush=True)
    sys.stdin.read()
"""

RIVAL = """
import sys
from pathlib import Path
from metricunet.files.claim import AlreadyClaimed, claimed

path = Path(sys.argv[1])
for line in sys.stdin:
    try:
        with claimed(path, "a training"):
            print("held", flush=True)
            sys.stdin.readline()
    except AlreadyClaimed:
        print("refused", flush=True)
        sys.stdin.readline()
    print("left", flush=True)
"""


@contextmanager
def process(code: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def said(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def tell(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("go\n")
    child.stdin.flush()


def leave_claim(path: Path, **changes: Any) -> bytes:
    """Leave the claim of this very process, which lives, with some facts changed; return its bytes."""
    with claimed(path, "a training"):
        content = path.read_bytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    edit_json(path, **changes)
    return path.read_bytes()


@pytest.fixture
def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_claim_is_held_while_the_block_runs_and_gone_after(tmp_path: Path) -> None:
    path = tmp_path / "run" / CLAIM_NAME
    with claimed(path, "a training"):
        holder = read_claim(path)
        assert holder is not None
        assert (holder.pid, holder.is_alive(), holder.is_elsewhere()) == (os.getpid(), True, False)
        assert [p.name for p in path.parent.iterdir()] == [CLAIM_NAME]
    assert read_claim(path) is None
    assert list(tmp_path.iterdir()) == []  # not even the folder that was made for it


def test_a_block_that_fails_gives_its_claim_back_and_keeps_the_folders_that_have_something(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / CLAIM_NAME
    with pytest.raises(ZeroDivisionError), claimed(path, "a training"):
        (path.parent.parent / "result").touch()
        raise ZeroDivisionError
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["result"]


def test_a_live_process_is_named_in_one_line_and_its_claim_stays(tmp_path: Path) -> None:
    path = tmp_path / CLAIM_NAME
    with process(HOLDER, path) as child:
        assert said(child) == "held"
        before = path.read_bytes()
        with pytest.raises(AlreadyClaimed) as refused, claimed(path, "a training"):
            pass
        message = str(refused.value)
        assert message.startswith(f"{tmp_path}: a training is going on here already (process {child.pid} on ")
        assert "UTC" in message
        assert "choose another folder" in message
        assert "remove" not in message  # nobody needs to: it is given back, or its process is seen to be dead
        assert "\n" not in message
        assert path.read_bytes() == before
        child.communicate("")
        assert child.returncode == 0
    with claimed(path, "a training"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_claim_of_a_killed_process_is_taken_over_even_before_its_parent_notices(tmp_path: Path) -> None:
    path = tmp_path / CLAIM_NAME
    with process(HOLDER, path) as child:
        assert said(child) == "held"
        os.kill(child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and left as a zombie
        assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
        assert path.exists()
        with claimed(path, "a training"):
            holder = read_claim(path)
            assert holder is not None
            assert holder.pid == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"started_s": 1.0}, {"boot": "an earlier one", "namespace": "pid:[1]"}])
def test_a_reused_process_number_and_an_earlier_boot_hold_nothing(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / CLAIM_NAME
    leave_claim(path, **change)
    with claimed(path, "a training"):
        holder = read_claim(path)
        assert holder is not None
        assert holder.is_alive()
    assert not path.exists()


def test_a_claim_of_a_dead_process_holds_nothing(tmp_path: Path, dead_pid: int) -> None:
    leave_claim(tmp_path / CLAIM_NAME, pid=dead_pid)
    with claimed(tmp_path / CLAIM_NAME, "a training"):
        pass


@pytest.mark.parametrize(
    "change",
    [
        {"host": "elsewhere", "boot": "that of another computer"},
        {"namespace": "pid:[1]", "device": None},  # on a file system of the network, or of an earlier version
        {"namespace": "pid:[1]", "device": 1},  # seen there through another mount
    ],
)
def test_a_claim_of_another_computer_or_container_holds_until_its_file_is_removed(
    tmp_path: Path, change: dict[str, Any], dead_pid: int
) -> None:
    path = tmp_path / CLAIM_NAME
    before = leave_claim(path, pid=dead_pid, **change)
    with (
        pytest.raises(AlreadyClaimed, match="if it no longer runs, remove") as refused,
        claimed(path, "a training"),
    ):
        pass
    assert str(path) in str(refused.value)
    assert path.read_bytes() == before
    path.unlink()
    with claimed(path, "a training"):
        pass


@pytest.fixture
def lockable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims are locked on whatever file system the tests run."""
    monkeypatch.setattr(claim, "_own_device", lambda folder: folder.stat().st_dev)


@pytest.mark.usefixtures("lockable")
@pytest.mark.parametrize("change", [{"namespace": "pid:[1]"}, {"namespace": "pid:[1]", "host": "0123456789ab"}])
def test_a_container_that_was_killed_and_is_started_again_goes_on(tmp_path: Path, change: dict[str, Any]) -> None:
    """Its processes are numbered anew, so that what it was killed at seems to be of another container."""
    path = tmp_path / CLAIM_NAME
    leave_claim(path, **change)
    refuse_claimed(path, "a training")
    with claimed(path, "a training"):
        holder = read_claim(path)
        assert holder is not None
        assert holder.pid == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("lockable")
def test_a_live_process_in_another_container_keeps_its_claim(tmp_path: Path) -> None:
    path = tmp_path / CLAIM_NAME
    with claimed(path, "a training"):
        edit_json(path, namespace="pid:[1]")
        for _ in range(2):  # nor does asking let go of it
            with pytest.raises(AlreadyClaimed, match="is going on here already"):
                refuse_claimed(path, "a training")
            with pytest.raises(AlreadyClaimed, match="is going on here already"), claimed(path, "a training"):
                pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"host": "a"}', b"\xff\xfe", b"mine"])
def test_a_file_that_is_no_claim_is_never_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / CLAIM_NAME
    path.write_bytes(content)
    with pytest.raises(AlreadyClaimed, match="not readable as a claim; remove this file"), claimed(path, "x"):
        pass
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == [CLAIM_NAME]


def test_only_ones_own_claim_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / CLAIM_NAME
    with claimed(path, "a training"):
        edit_json(path, token="of somebody else")
        other = path.read_bytes()
    assert path.read_bytes() == other
    with claimed(tmp_path / "removed", "a training"):
        (tmp_path / "removed").unlink()


def test_a_clock_that_was_set_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / CLAIM_NAME
    create, boot = psutil.Process.create_time, psutil.boot_time
    with claimed(path, "a training"):
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: create(self) + 7200)
        monkeypatch.setattr(psutil, "boot_time", lambda: boot() + 7200)
        with pytest.raises(AlreadyClaimed), claimed(path, "a training"):
            pass


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_a_clock_that_was_set_changes_nothing_where_the_start_of_a_process_is_noted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    path, boot = tmp_path / CLAIM_NAME, psutil.boot_time
    monkeypatch.setattr(sys, "platform", platform)
    with claimed(path, "a training"):
        monkeypatch.setattr(psutil, "boot_time", lambda: boot() + 2)
        with pytest.raises(AlreadyClaimed), claimed(path, "a training"):
            pass


def test_a_process_that_the_system_hides_is_not_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / CLAIM_NAME
    with process(HOLDER, path) as child:
        assert said(child) == "held"
        create = psutil.Process.create_time

        def hidden(self: psutil.Process) -> float:
            if self.pid == child.pid:
                raise psutil.NoSuchProcess(self.pid)
            return create(self)

        monkeypatch.setattr(psutil.Process, "create_time", hidden)
        with pytest.raises(AlreadyClaimed), claimed(path, "a training"):
            pass


def test_of_threads_that_find_a_dead_claim_one_gets_it(tmp_path: Path, dead_pid: int) -> None:
    path, n = tmp_path / CLAIM_NAME, 6
    dead = leave_claim(path, pid=dead_pid)
    for _ in range(60):
        path.write_bytes(dead)
        start, end, outcomes = threading.Barrier(n), threading.Barrier(n), []

        def rival(start: threading.Barrier, end: threading.Barrier, outcomes: list[str]) -> None:
            start.wait()
            try:
                with claimed(path, "a training"):
                    outcomes.append("held")
                    end.wait()
            except AlreadyClaimed:
                outcomes.append("refused")
                end.wait()

        rivals = [threading.Thread(target=rival, args=(start, end, outcomes)) for _ in range(n)]
        for one in rivals:
            one.start()
        for one in rivals:
            one.join()
        assert sorted(outcomes) == ["held", *["refused"] * (n - 1)]
        assert list(tmp_path.iterdir()) == []


def test_of_processes_that_find_a_dead_claim_or_none_one_gets_it(tmp_path: Path, dead_pid: int) -> None:
    path = tmp_path / "run" / CLAIM_NAME
    dead = leave_claim(path, pid=dead_pid)
    with process(RIVAL, path) as one, process(RIVAL, path) as two, process(RIVAL, path) as three:
        rivals = (one, two, three)
        for k in range(40):
            if k % 2:
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(dead)
            for rival in rivals:
                tell(rival)
            assert sorted(said(rival) for rival in rivals) == ["held", "refused", "refused"]
            for rival in rivals:
                tell(rival)
            assert [said(rival) for rival in rivals] == ["left"] * 3
            assert not path.exists()


def no_links(*_: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_a_file_system_without_hard_links_has_claims_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim.os, "link", no_links)
    path = tmp_path / CLAIM_NAME
    with claimed(path, "a training"), pytest.raises(AlreadyClaimed), claimed(path, "a training"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("has_links", [True, False])
def test_a_claim_outlives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool) -> None:
    """An empty file in its place would hold until somebody removes it."""
    if not has_links:
        monkeypatch.setattr(claim.os, "link", no_links)
    said = flushes(monkeypatch)
    path = tmp_path / CLAIM_NAME
    with claimed(path, "a training"):
        assert flushed(path) in said


def test_a_full_disk_leaves_no_half_of_a_claim_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / CLAIM_NAME

    def full_from_now_on(handle: int) -> None:
        if path.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(claim.os, "link", no_links)
    monkeypatch.setattr(os, "fsync", full_from_now_on)
    with pytest.raises(InputError, match="the disk is full"), claimed(path, "a training"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        for folder in (tmp_path, tmp_path / "run"):
            with pytest.raises(InputError, match="cannot be written"), claimed(folder / CLAIM_NAME, "a training"):
                pass
    finally:
        tmp_path.chmod(stat.S_IRWXU)


@pytest.mark.parametrize("kind", ["a file", "a link to nothing"])
def test_a_folder_that_cannot_be_one_is_named(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "run"
    if kind == "a file":
        folder.touch()
    else:
        folder.symlink_to(tmp_path / "nowhere" / "at all")
    with pytest.raises(InputError, match=r"run: cannot be written"), claimed(folder / CLAIM_NAME, "a training"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_what_a_process_killed_while_it_claimed_left_goes_with_the_next_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*paths: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", killed)
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(Killed), claimed(tmp_path / "claim", "a training"):
            pass
    assert len(list(tmp_path.iterdir())) == 1
    with claimed(tmp_path / "claim", "a training"):
        assert [path.name for path in tmp_path.iterdir()] == ["claim"]
    assert list(tmp_path.iterdir()) == []
