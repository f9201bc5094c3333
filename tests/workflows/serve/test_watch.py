"""A watched folder: each file once, and none lost by what is wrong with the machine for a while."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from metricunet.errors import InputError
from metricunet.workflows.serve.journal import Journal
from metricunet.workflows.serve.watch import WatchedFolder
from tests.support.dicom_series import Written, write_series
from tests.workflows.serve.conftest import Doors

SETTLED_S = 10.0


@dataclass
class Watched:
    """A watched folder with a series of four slices, the doors that it leads to, and how often a file was read."""

    written: Written
    doors: Doors
    folder: WatchedFolder
    read: list[Path]

    def begun_anew(self) -> WatchedFolder:
        """The same after a restart."""
        return WatchedFolder(
            self.folder.folder,
            SETTLED_S,
            self.doors.arrivals,
            self.doors.state,
            Journal(self.doors.state.log, None),
        )

    def said(self, event: str) -> list[str]:
        return [str(line["why"]) for line in self.doors.log if line["event"] == event]


@pytest.fixture
def watched(
    tmp_path: Path, doors: Callable[..., Doors], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Watched]:
    def opened(**settings: Any) -> Watched:
        node = doors(**settings)
        written = write_series(tmp_path / "in" / "ct", shape=(4, 4, 4))
        folder = WatchedFolder(
            tmp_path / "in", SETTLED_S, node.arrivals, node.state, Journal(node.state.log, None)
        )
        read: list[Path] = []
        copyfile = shutil.copyfile

        def counted(source: Path, target: Path) -> None:
            read.append(source)
            copyfile(source, target)

        monkeypatch.setattr("metricunet.workflows.serve.watch.shutil.copyfile", counted)
        return Watched(written, node, folder, read)

    return opened


def test_each_file_is_taken_once_when_it_has_settled(watched: Callable[..., Watched]) -> None:
    here = watched()
    youngest = max(path.stat().st_mtime for path in here.written.files)
    here.folder.clock = lambda: youngest + SETTLED_S - 1
    assert here.folder.look() == 0
    here.folder.clock = lambda: youngest + SETTLED_S + 1
    assert here.folder.look() == 4
    assert here.folder.look() == 0
    assert here.begun_anew().look(at_once=True) == 0
    assert len(here.read) == 4
    assert [job.files for job in here.doors.arrivals.gather(at_once=True)] == [4]


def test_files_of_a_clock_that_is_ahead_are_taken_when_they_change_no_more(
    watched: Callable[..., Watched],
) -> None:
    here = watched()
    files = here.written.files
    now = min(path.stat().st_mtime for path in files) - 3600
    here.folder.clock = lambda: now
    assert here.folder.look() == 0
    later = files[0].stat().st_mtime_ns + 10**9  # it is still being written
    os.utime(files[0], ns=(later, later))
    now += SETTLED_S - 1
    assert here.folder.look() == 0
    now += 2
    assert here.folder.look() == 3
    now += SETTLED_S
    assert [here.folder.look() for _ in range(2)] == [1, 0]
    assert [job.files for job in here.doors.arrivals.gather(at_once=True)] == [4]


@pytest.mark.parametrize(
    "error",
    [
        InputError("about.json: the disk is full"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EIO, "Input/output error"),
    ],
)
def test_what_is_wrong_with_the_machine_for_a_while_loses_no_slice(
    watched: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    here = watched()
    take, faults = here.doors.arrivals.take, [error, error]

    def failing_at_first(*arguments: Any, **more: Any) -> None:
        if faults:
            raise faults.pop()
        take(*arguments, **more)

    monkeypatch.setattr(here.doors.arrivals, "take", failing_at_first)
    looks = [here.folder.look(at_once=True) for _ in range(4)]
    assert sum(looks) == 4
    assert [job.files for job in here.doors.arrivals.gather(at_once=True)] == [4]
    assert not any(here.doors.state.receiving.iterdir())


def test_a_full_disk_is_said_once_and_then_all_is_taken(
    watched: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = watched()

    def full(*_: object) -> None:
        raise InputError("about.json: the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("metricunet.workflows.serve.arrivals.write_json", full)
        assert [here.folder.look(at_once=True) for _ in range(3)] == [0, 0, 0]
    assert here.said("watched folder not taken in") == ["about.json: the disk is full"]
    assert len(here.read) == 3  # the others were spared
    assert here.begun_anew().look(at_once=True) == 4


def test_a_file_that_cannot_be_read_holds_up_no_other(
    watched: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = watched()
    copyfile = shutil.copyfile

    def unreadable(source: Path, target: Path) -> None:
        if source == here.written.files[2]:
            raise PermissionError(errno.EACCES, "Permission denied")
        copyfile(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("metricunet.workflows.serve.watch.shutil.copyfile", unreadable)
        assert [here.folder.look(at_once=True) for _ in range(2)] == [3, 0]
    assert here.said("watched file not read") == ["Permission denied"]
    assert here.folder.look(at_once=True) == 1


def test_a_folder_that_cannot_be_looked_into_is_said_once(
    watched: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = watched()
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if Path(path).name == "ct":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refusing)
        assert [here.folder.look(at_once=True) for _ in range(2)] == [0, 0]
    assert here.said("watched folder not read") == ["one below it: Permission denied"]
    away = here.folder.folder.rename(here.folder.folder.with_name("away"))  # a disk that is not mounted
    assert [here.folder.look(at_once=True) for _ in range(2)] == [0, 0]
    assert here.said("watched folder not read")[1:] == ["No such file or directory"]
    away.rename(here.folder.folder)
    assert here.folder.look(at_once=True) == 4


def test_what_is_wrong_with_the_file_is_not_tried_again(watched: Callable[..., Watched]) -> None:
    here = watched(rules=[{"name": "none", "description": "head"}])
    (here.folder.folder / "notes.txt").write_text("no DICOM at all" * 20)
    assert [here.folder.look(at_once=True) for _ in range(3)] == [0, 0, 0]
    assert here.begun_anew().look(at_once=True) == 0
    assert len(here.read) == 5


def test_the_surplus_of_a_series_is_read_once_and_makes_no_scan(watched: Callable[..., Watched]) -> None:
    here = watched(limits={"free_disk_gb": 0, "slices": 3})
    assert [here.folder.look(at_once=True) for _ in range(2)] == [3, 0]
    (job,) = here.doors.arrivals.gather(at_once=True)
    assert (job.state, job.why) == ("refused", "the series has more than 3 objects")
    assert here.folder.look(at_once=True) == 0
    assert here.doors.arrivals.gather(at_once=True) == []
    assert len(here.read) == 4


def test_what_had_come_before_the_disk_was_full_waits_for_the_rest(
    watched: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = watched(limits={"free_disk_gb": 1})
    arrivals, clock = here.doors.arrivals, here.doors.clock
    (late,) = here.written.files[3:]
    late.rename(here.folder.folder.parent / "late.dcm")
    assert here.folder.look(at_once=True) == 3
    (here.folder.folder.parent / "late.dcm").rename(late)
    with monkeypatch.context() as patch:
        patch.setattr(type(here.doors.state), "free_bytes", lambda self: 0)
        assert here.folder.look(at_once=True) == 0
        clock.now += 100
        assert arrivals.gather() == []
    assert here.folder.look(at_once=True) == 1
    clock.now += 11
    assert [job.files for job in arrivals.gather()] == [4]


def test_a_file_that_is_too_large_is_said_once_and_holds_up_nothing(watched: Callable[..., Watched]) -> None:
    here = watched(limits={"free_disk_gb": 0, "object_mb": 0.01})
    (here.folder.folder / "large.dcm").write_bytes(bytes(20_000))
    assert [here.folder.look(at_once=True) for _ in range(2)] == [4, 0]
    assert len(here.said("watched file not taken")) == 1
    here.doors.clock.now += 11
    assert [job.files for job in here.doors.arrivals.gather()] == [4]
