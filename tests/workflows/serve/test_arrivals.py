"""Objects coming in: series put together, whole ones queued, and nothing lost by a kill."""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from metricunet.errors import InputError
from metricunet.workflows.serve.arrivals import NoRoom, TooMuch, Unreadable, Unwanted
from tests.support.dicom_series import Written, companion, save, write_series
from tests.support.flushes import flushed, flushes
from tests.workflows.serve.conftest import Doors

Opened = Callable[..., Doors]


def name_patient(k: int, dataset: Dataset) -> None:
    dataset.PatientName, dataset.PatientID = "Secret^Name", "SECRET77"
    dataset.SeriesDescription = "pelvis"


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return write_series(tmp_path / "ct", shape=(4, 4, 4), edit=name_patient)


def files_in(doors: Doors, folder: str) -> list[Path]:
    return sorted((doors.state.folder / folder).glob("*.dcm"))


def test_a_series_is_whole_after_the_quiet_time(doors: Opened, written: Written) -> None:
    node = doors()
    node.arrivals.begin("a")
    for path in written.files:
        node.bring(path, origin="a")
    node.clock.now += 100
    assert node.arrivals.gather() == []  # its association is open
    node.arrivals.end("a")
    node.clock.now += 9
    assert node.arrivals.gather() == []
    node.clock.now += 2
    (job,) = node.arrivals.gather()
    assert (job.state, job.files, job.sender, job.recipe) == ("waiting", 4, "SCANNER", "any:1")
    assert {p.read_bytes() for p in files_in(node, job.folder)} == {p.read_bytes() for p in written.files}
    assert node.arrivals.gather() == []


def test_an_association_that_ended_without_a_word_holds_up_nothing(doors: Opened, written: Written) -> None:
    node = doors()
    node.arrivals.begin("a")
    node.bring(written.files[0], origin="a")
    for _ in range(2):  # one that has only begun is given a round
        node.arrivals.end_others(set())
    node.clock.now += 11
    assert len(node.arrivals.gather()) == 1


def test_the_announced_count_makes_it_whole_at_once(doors: Opened, tmp_path: Path) -> None:
    node = doors()

    def announce(k: int, dataset: Dataset) -> None:
        dataset.NumberOfSeriesRelatedInstances = 3

    written = write_series(tmp_path / "ct", shape=(3, 4, 4), edit=announce)
    node.arrivals.begin("a")
    for path in written.files[:2]:
        node.bring(path, origin="a")
    node.bring(written.files[0], origin="a")  # once more: it counts once
    assert node.arrivals.gather() == []
    node.bring(written.files[2], origin="a")
    assert [job.files for job in node.arrivals.gather()] == [3]


def test_a_late_slice_makes_a_new_input_of_all_slices(doors: Opened, written: Written) -> None:
    node = doors()
    for path in written.files[:3]:
        node.bring(path)
    (first,) = node.arrivals.gather(at_once=True)
    node.bring(written.files[3])
    (second,) = node.arrivals.gather(at_once=True)
    assert second.id != first.id
    assert (second.files, second.state) == (4, "waiting")
    assert node.queue.job(first.id).state == "refused"  # nobody had begun with it
    assert len(files_in(node, first.folder)) == 3


def test_a_refused_series_is_mended_by_sending_fewer_slices(doors: Opened, written: Written) -> None:
    node = doors()
    for path in written.files:
        node.bring(path)
    (first,) = node.arrivals.gather(at_once=True)
    node.queue.move(first.id, "refused", "two slices lie at one place; keep one copy of each slice")
    for path in written.files[:3]:
        node.bring(path)
    (mended,) = node.arrivals.gather(at_once=True)
    assert (mended.state, mended.files) == ("waiting", 3)
    assert len(files_in(node, mended.folder)) == 3
    # The other slices after all make it the whole series again.
    node.bring(written.files[3])
    (whole,) = node.arrivals.gather(at_once=True)
    assert (whole.id, whole.state, whole.files) == (first.id, "waiting", 4)


def test_two_slices_are_no_mended_series(doors: Opened, written: Written) -> None:
    node = doors()
    for path in written.files:
        node.bring(path)
    (first,) = node.arrivals.gather(at_once=True)
    node.queue.move(first.id, "refused", "a slice is missing")
    for path in written.files[:2]:  # their sender had got no answer
        node.bring(path)
    (again,) = node.arrivals.gather(at_once=True)
    assert (again.id, again.state, again.files) == (first.id, "waiting", 4)


def test_a_repeat_is_the_same_job_and_is_sent_again(doors: Opened, written: Written) -> None:
    node = doors()
    for path in written.files:
        node.bring(path)
    (job,) = node.arrivals.gather(at_once=True)
    node.queue.take("cpu")
    node.queue.move(job.id, "sending")
    delivery = node.queue.deliver(job.id, "pacs", "rtstruct", "predictions/x.dcm", "1.2.3")
    node.queue.delivered(delivery.id)
    for path in written.files:
        node.bring(path)
    (again,) = node.arrivals.gather(at_once=True)
    assert (again.id, again.state) == (job.id, "sending")
    assert [one.sop_uid for one in node.queue.due()] == ["1.2.3"]
    assert not any(node.state.arriving.iterdir())


def test_what_another_sender_brings_is_a_series_of_its_own(doors: Opened, written: Written) -> None:
    node = doors()
    for sender in ("ONE", "TWO"):
        for path in written.files:
            node.bring(path, sender)
    assert sorted(job.sender for job in node.arrivals.gather(at_once=True)) == ["ONE", "TWO"]


def test_a_kill_at_any_moment_loses_nothing(doors: Opened, written: Written) -> None:
    node = doors()
    for path in written.files[:2]:
        node.bring(path)
    (node.state.arriving / "empty").mkdir()  # killed before its first object
    (node.state.receiving / "half").write_bytes(b"x")
    node = node.begun_anew()
    for path in written.files[2:]:
        node.bring(path)
    (job,) = node.arrivals.gather(at_once=True)
    assert job.files == 4
    assert not any(node.state.receiving.iterdir())
    # Killed when the folder had its place, and before the queue knew.
    node.queue.forget(job.input_id)
    node = node.begun_anew()
    (again,) = node.queue.jobs()
    assert (again.state, again.folder, again.files) == ("waiting", job.folder, 4)
    assert len(node.begun_anew().queue.jobs()) == 1


def test_a_series_of_which_no_object_was_kept_is_no_case(
    doors: Opened, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = doors()
    replace = os.replace

    def failing_for_objects(source: Path, target: Path) -> None:
        if Path(target).suffix == ".dcm":
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing_for_objects)
        with pytest.raises(OSError, match="Input/output"):
            node.bring(written.files[0])
    assert node.arrivals.gather(at_once=True) == []
    node = node.begun_anew()  # killed before its sender tried again
    assert node.arrivals.gather(at_once=True) == []
    assert node.queue.jobs() == []
    assert not any(node.state.arriving.iterdir())
    for path in written.files:
        node.bring(path)
    assert [job.files for job in node.arrivals.gather(at_once=True)] == [4]


def test_what_no_rule_takes_is_not_kept_and_the_reason_is_said_once(
    doors: Opened, tmp_path: Path, written: Written
) -> None:
    node = doors(rules=[{"name": "pelvis", "description": "pelvis*"}])

    def of_the_head(k: int, dataset: Dataset) -> None:
        dataset.SeriesDescription = "head"

    other = write_series(tmp_path / "head", shape=(3, 4, 4), edit=of_the_head)
    for path in other.files:
        with pytest.raises(Unwanted, match="description"):
            node.bring(path)
    report = companion("SR", "1.2.840.10008.5.1.4.1.1.88.11")
    save(tmp_path / "sr.dcm", report)
    with pytest.raises(Unwanted, match="modality"):
        node.bring(tmp_path / "sr.dcm")
    node.bring(written.files[0])
    assert [line["why"] for line in node.log if line["event"] == "not taken"] == [
        "pelvis does not take its description",
        "pelvis does not take its modality",
    ]


def test_what_cannot_be_read_is_refused(doors: Opened, tmp_path: Path, written: Written) -> None:
    node = doors()
    (tmp_path / "text").write_bytes(b"no DICOM at all" * 20)
    with pytest.raises(Unreadable):
        node.bring(tmp_path / "text")

    def lose_series(k: int, dataset: Dataset) -> None:
        del dataset.SeriesInstanceUID

    without = write_series(tmp_path / "without", shape=(3, 4, 4), after=lose_series)
    with pytest.raises(Unreadable, match="SeriesInstanceUID"):
        node.bring(without.files[0])
    copy = node.state.receiving / "x.dcm"
    copy.write_bytes(written.files[0].read_bytes())
    with pytest.raises(Unreadable, match="announced"):
        node.arrivals.take(copy, "SCANNER", sop_uid="1.2.3")


def test_disk_object_and_series_are_bounded(
    doors: Opened, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = doors(limits={"free_disk_gb": 2, "slices": 3, "object_mb": 0.01})
    monkeypatch.setattr("metricunet.workflows.serve.state.State.free_bytes", lambda self: 1 << 30)
    with pytest.raises(NoRoom, match=r"disk has 1\.0 GB left"):
        node.bring(written.files[0])
    monkeypatch.setattr("metricunet.workflows.serve.state.State.free_bytes", lambda self: 1 << 40)
    with pytest.raises(NoRoom, match=r"at most 0\.01"):
        node.arrivals.check_room(1 << 20)
    for path in written.files[:3]:
        node.bring(path)
    with pytest.raises(NoRoom, match="more than 3"):
        node.bring(written.files[3])
    # What came of it is no scan to work on, also after a kill and a second try.
    node = node.begun_anew()
    for _ in range(2):
        (job,) = node.arrivals.gather(at_once=True)
        assert (job.state, job.why) == ("refused", "the series has more than 3 objects")
        for path in written.files[:3]:
            node.bring(path)
        with pytest.raises(NoRoom):
            node.bring(written.files[3])


def test_nothing_names_the_patient_and_nobody_else_can_look(doors: Opened, written: Written) -> None:
    before = os.umask(0o077)
    try:
        node = doors()
        for path in written.files:
            node.bring(path)
        (job,) = node.arrivals.gather(at_once=True)
    finally:
        os.umask(before)
    assert stat.S_IMODE(node.state.folder.stat().st_mode) == 0o700
    names = [str(path.relative_to(node.state.folder)) for path in node.state.folder.rglob("*")]
    said = str(node.log) + str(names) + str(job)
    for secret in ("Secret", "SECRET", written.series_uid):
        assert secret not in said
    assert written.series_uid.encode() not in node.state.ledger.read_bytes()


def test_a_request_of_the_web_is_open_until_it_says_so(doors: Opened, written: Written) -> None:
    node = doors()
    node.arrivals.begin("request", ends_itself=True)
    node.bring(written.files[0], "stow", origin="request")
    for _ in range(4):
        node.arrivals.end_others(set())  # it is none of the associations
    node.clock.now += 100
    assert node.arrivals.gather() == []
    for path in written.files[1:]:
        node.bring(path, "stow", origin="request")
    node.arrivals.end("request")
    node.clock.now += 11
    assert [job.files for job in node.arrivals.gather()] == [4]


def test_an_association_that_begins_while_others_are_counted_stays_open(doors: Opened, written: Written) -> None:
    node = doors()
    node.arrivals.begin("a")
    node.bring(written.files[0], origin="a")
    rounds: list[set[Hashable]] = [set(), {"a"}, set()]
    for alive in rounds:
        node.arrivals.end_others(alive)
    node.clock.now += 100
    assert node.arrivals.gather() == []
    node.arrivals.end_others(set())
    node.clock.now += 11
    assert len(node.arrivals.gather()) == 1


def test_the_surplus_of_a_series_makes_no_scan_of_it(doors: Opened, written: Written) -> None:
    node = doors(limits={"free_disk_gb": 0, "slices": 3})
    for path in written.files[:3]:
        node.bring(path)
    with pytest.raises(TooMuch):
        node.bring(written.files[3])
    assert [job.state for job in node.arrivals.gather(at_once=True)] == ["refused"]
    for _ in range(2):  # the sender tries the rest again, when the series is whole
        node.bring(written.files[3])
        (job,) = node.arrivals.gather(at_once=True)
        assert (job.state, job.why, job.files) == ("refused", "the series has more than 3 objects", 4)
        node = node.begun_anew()
    assert len(node.queue.jobs()) == 2


def test_a_slice_that_is_mended_makes_no_scan_of_what_was_too_large(
    doors: Opened, tmp_path: Path, written: Written
) -> None:
    node = doors(limits={"free_disk_gb": 0, "slices": 3})
    for path in written.files[:3]:
        node.bring(path)
    with pytest.raises(TooMuch):
        node.bring(written.files[3])
    node.arrivals.gather(at_once=True)
    mended = pydicom.dcmread(written.files[0])
    mended.SeriesDescription = "pelvis, corrected"
    mended.save_as(tmp_path / "mended.dcm")
    node.bring(tmp_path / "mended.dcm")
    assert [(job.state, job.files) for job in node.arrivals.gather(at_once=True)] == [("refused", 3)]


def test_with_a_higher_limit_what_was_too_large_is_taken(doors: Opened, written: Written) -> None:
    node = doors(limits={"free_disk_gb": 0, "slices": 3})
    for some in (written.files[:3], written.files[3:]):
        for path in some:
            node.bring(path)
        node.arrivals.gather(at_once=True)
    node = doors(limits={"free_disk_gb": 0, "slices": 4})
    for path in written.files:
        node.bring(path)
    (job,) = node.arrivals.gather(at_once=True)
    assert (job.state, job.files) == ("waiting", 4)
    assert json.loads((node.state.folder / job.folder / "about.json").read_text())["refused"] == ""


@pytest.mark.parametrize("step", ["folders", "receive", "whole"])
def test_a_series_that_cannot_be_queued_is_tried_again(doors: Opened, written: Written, step: str) -> None:
    node = doors()
    for path in written.files[:2]:
        node.bring(path)
    (first,) = node.arrivals.gather(at_once=True)  # what comes later is joined to it
    node.bring(written.files[2])
    node.clock.now += 11
    with pytest.MonkeyPatch.context() as patch:
        if step == "folders":
            patch.setattr(os, "rename", failing(OSError(errno.EIO, "Input/output error")))
        else:
            patch.setattr(node.queue, step, failing(InputError("the ledger is being written all the time")))
        assert node.arrivals.gather() == []
    (line,) = [line for line in node.log if line["event"] == "series not queued, tried again"]
    assert line["level"] == "error"
    assert "error" in line["why"] or "all the time" in line["why"]
    assert [job.id for job in node.queue.jobs("waiting")] == [first.id]
    assert node.arrivals.arriving == 1
    node.bring(written.files[3])
    node.clock.now += 9
    assert node.arrivals.gather() == []
    node.clock.now += 2
    (job,) = node.arrivals.gather()
    assert (job.state, job.files) == ("waiting", 4)
    assert node.arrivals.arriving == 0
    assert not any(node.state.arriving.iterdir())
    assert [one.state for one in node.queue.jobs()] == ["refused", "waiting"]


def test_a_series_with_all_that_was_announced_is_not_tried_all_the_time(
    doors: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def announce(k: int, dataset: Dataset) -> None:
        dataset.NumberOfSeriesRelatedInstances = 3

    node = doors()
    for path in write_series(tmp_path / "ct", shape=(3, 4, 4), edit=announce).files:
        node.bring(path)
    with monkeypatch.context() as patch:
        patch.setattr(node.queue, "receive", failing(InputError("locked")))
        for _ in range(3):
            assert node.arrivals.gather() == []
    assert len([line for line in node.log if line["event"] == "series not queued, tried again"]) == 1
    node.clock.now += 11
    assert [job.files for job in node.arrivals.gather()] == [3]


def test_a_repeat_that_cannot_be_noted_is_tried_again(
    doors: Opened, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = doors()
    for path in written.files:
        node.bring(path)
    (job,) = node.arrivals.gather(at_once=True)
    node.queue.move(job.id, "refused", "a slice is missing")
    for path in written.files:
        node.bring(path)
    with monkeypatch.context() as patch:
        patch.setattr(node.queue, "again", failing(InputError("locked")))
        assert node.arrivals.gather(at_once=True) == []
    assert node.arrivals.arriving == 1
    assert [one.state for one in node.arrivals.gather(at_once=True)] == ["waiting"]
    assert not any(node.state.arriving.iterdir())


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}"])
def test_slices_whose_record_is_damaged_are_kept(doors: Opened, written: Written, damage: str) -> None:
    node = doors()
    for path in written.files[:2]:
        node.bring(path)
    (folder,) = node.state.arriving.iterdir()
    (folder / "about.json").write_text(damage)
    node = node.begun_anew()
    assert len(list(folder.glob("*.dcm"))) == 2
    (line,) = [line for line in node.log if line["event"] == "slices of unknown origin"]
    assert (line["level"], line["arrival"], line["slices"]) == ("error", folder.name, 2)
    assert node.arrivals.gather(at_once=True) == []
    for path in written.files[2:]:
        node.bring(path)
    assert [job.files for job in node.arrivals.gather(at_once=True)] == [4]


def test_slices_of_unknown_origin_are_deleted_when_they_are_old(doors: Opened, written: Written) -> None:
    node = doors()
    for sender in ("ONE", "TWO"):
        node.bring(written.files[0], sender)
    node.arrivals.gather(at_once=True)
    for sender in ("THREE", "FOUR"):
        node.bring(written.files[0], sender)
    first, second = node.queue.jobs()
    damaged, whole = sorted(node.state.arriving.iterdir())
    (damaged / "about.json").write_text("{")
    (node.state.folder / second.folder / "about.json").unlink()
    node.queue.forget(second.input_id)
    node = node.begun_anew()
    assert node.arrivals.delete_unknown() == 0  # they are young
    assert node.arrivals.delete_unknown(lambda: time.time() + 31 * 24 * 3600) == 2
    assert list(node.state.arriving.iterdir()) == [whole]
    assert list(node.state.scans.iterdir()) == [node.state.folder / first.folder]
    said = [line for line in node.log if line["event"] == "deleted"]
    assert [line["objects"] for line in said] == [1, 1]
    assert said[0]["arrival"] == damaged.name


def test_what_was_taken_outlives_a_power_cut(
    doors: Opened, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = doors()
    node.bring(written.files[0])
    (folder,) = node.state.arriving.iterdir()
    said = flushes(monkeypatch)
    node.bring(written.files[1])
    kept, named, last = said
    assert kept[0] == "flushed"
    assert isinstance(named[1], Path)
    assert (named[1].parent, named[1].stat().st_ino) == (folder, kept[1])
    assert last == flushed(folder)
    said.clear()
    (job,) = node.arrivals.gather(at_once=True)
    scan = node.state.folder / job.folder
    assert said == [
        flushed(scan),
        ("named", scan),
        flushed(node.state.scans),
        flushed(node.state.arriving),
    ]


def test_without_hard_links_late_slices_are_joined_to_copies(
    doors: Opened, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = doors()
    for path in written.files[:3]:
        node.bring(path)
    node.arrivals.gather(at_once=True)
    node.bring(written.files[3])
    monkeypatch.setattr(os, "link", failing(OSError(errno.EPERM, "Operation not permitted")))
    (job,) = node.arrivals.gather(at_once=True)
    assert {p.read_bytes() for p in files_in(node, job.folder)} == {p.read_bytes() for p in written.files}
    assert not any(node.state.receiving.iterdir())


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail
