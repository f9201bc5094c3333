"""Objects coming in: series put together, whole ones queued, and nothing lost by a kill."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from metricunet.workflows.serve.arrivals import NoRoom, Unreadable, Unwanted
from tests.support.dicom_series import Written, companion, save, write_series
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
