"""A whole node between a sender and Debian's Orthanc: what comes in, and what lies in the study afterwards."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless
from pynetdicom import AE

from metricunet.inference.predict import predict
from metricunet.ledger import Ledger, Queue
from metricunet.volume import Volume
from tests.fuzz.node import KINDS, fuzzed_stores, many_objects, rubbish
from tests.support.dicom_series import recompress, write_series
from tests.support.threshold_model import GLAND_HU, ball, bands_known, drawn_scan, write_bands_model
from tests.workflows.serve.conftest import (
    NODE,
    ROOT,
    Orthanc,
    Served,
    debian,
    eventually,
    orthanc_in,
    serving,
    write_node,
)

PATIENT = "Secret^Patient"


@dataclass
class Setting:
    """A node, a peer that it sends to, and the model."""

    node: Served
    peer: Orthanc
    model: Path
    home: Path

    def send(self, *series: tuple[Path, str]) -> None:
        """Send series in associations of their own, an object of each in turn."""
        associations = []
        for number, (_, syntax) in enumerate(series):
            entity = AE(f"CT{number}")
            entity.add_requested_context(CTImageStorage, syntax)
            associations.append(entity.associate("127.0.0.1", self.node.port, ae_title="METRICUNET"))
        files = [sorted(folder.glob("*.dcm")) for folder, _ in series]
        for k in range(max(map(len, files))):
            for association, paths in zip(associations, files, strict=True):
                if k < len(paths):
                    assert association.send_c_store(paths[k]).Status == 0
        for association in associations:
            association.release()

    def sets(self) -> list[Dataset]:
        """The structure sets at the peer."""
        return [
            pydicom.dcmread(io.BytesIO(self.peer.file(instance)))
            for series in self.peer.find("RTSTRUCT")
            for instance in series["Instances"]
        ]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    home = tmp_path_factory.mktemp("node")
    with bands_known():
        model = write_bands_model(home / "model.safetensors", crop_voxels=(40, 40, 40))
    with orthanc_in(home / "orthanc") as peer:
        destinations = [
            {"name": "pacs", "ae_title": "ORTHANC", "host": "127.0.0.1", "port": peer.dicom},
            {"name": "web", "url": f"http://127.0.0.1:{peer.http}/dicom-web", "formats": ["seg"]},
            {"name": "tps", "ae_title": "ORTHANC", "host": "127.0.0.1", "port": peer.dicom, "send": "on_accept"},
        ]
        rules = [
            {"name": "boost", "description": "boost*", "destinations": ["tps"]},
            {"name": "pelvis", "description": "pelvis*", "destinations": ["pacs", "web"]},
        ]
        settings = {"model": str(model), "quiet": "2 seconds", "rules": rules, "destinations": destinations}
        with serving(home, **settings) as node:
            yield Setting(node, peer, model, home)


def scan(shift: float) -> Volume:
    return drawn_scan(
        (ball((shift, 0, 0), (16, 12, 14)), GLAND_HU), shape=(30, 60, 66), spacing_mm=(3.0, 2.0, 2.0)
    )


def write(folder: Path, shift: float, description: str = "pelvis", leave_out: tuple[int, ...] = ()) -> Path:
    volume = scan(shift)

    def named(k: int, dataset: Dataset) -> None:
        dataset.PatientName, dataset.PatientID = PATIENT, f"SECRET{shift:g}"
        dataset.SeriesDescription = description

    write_series(
        folder,
        volume.array,
        spacing_mm=volume.spacing_mm,
        origin_mm=tuple(volume.geometry.origin_mm),
        edit=named,
        leave_out=leave_out,
    )
    return folder


def contours(dataset: Dataset) -> list[Any]:
    return [
        [(c.ContourImageSequence[0].ReferencedSOPInstanceUID, list(c.ContourData)) for c in roi.ContourSequence]
        for roi in dataset.ROIContourSequence
    ]


def test_each_study_gets_the_structure_set_that_predict_makes(setting: Setting, tmp_path: Path) -> None:
    plain, compressed = write(tmp_path / "plain", 4), write(tmp_path / "j2k", -6)
    for path in compressed.glob("*.dcm"):
        recompress(path, "JPEG2000Lossless")
    for folder, syntax in ((plain, "-xe"), (compressed, "-xv")):  # as in a clinic, the peer has the scans
        subprocess.run(
            [
                debian("storescu"),
                syntax,
                "-aec",
                "ORTHANC",
                "+sd",
                "127.0.0.1",
                str(setting.peer.dicom),
                str(folder),
            ],
            check=True,
        )
    setting.send((plain, ExplicitVRLittleEndian), (compressed, JPEG2000Lossless))
    jobs = setting.node.ended(2)
    assert [job.state for job in jobs] == ["sent", "sent"], [job.why for job in jobs]
    found = {one.StudyInstanceUID: one for one in setting.sets()}
    with bands_known():
        predict([plain, compressed], [setting.model], tmp_path / "out", formats=["rtstruct"], device="cpu")
    expected = {
        (one := pydicom.dcmread(p)).StudyInstanceUID: one for p in (tmp_path / "out").glob("*.rtstruct.dcm")
    }
    assert found.keys() == expected.keys()
    for folder in (plain, compressed):
        slices = [pydicom.dcmread(path, stop_before_pixels=True) for path in folder.glob("*.dcm")]
        one = found[slices[0].StudyInstanceUID]
        frame = (
            one.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
        )
        assert frame.SeriesInstanceUID == slices[0].SeriesInstanceUID
        named = {item.ReferencedSOPInstanceUID for item in frame.ContourImageSequence}
        assert named == {item.SOPInstanceUID for item in slices}
        assert contours(one) == contours(expected[one.StudyInstanceUID])
    assert len(setting.peer.find("SEG")) == 2
    kinds = [
        {
            setting.peer.get(f"/series/{s}")["MainDicomTags"]["Modality"]
            for s in setting.peer.get(f"/studies/{name}")["Series"]
        }
        for name in setting.peer.get("/studies")
    ]
    assert kinds == [{"CT", "RTSTRUCT", "SEG"}] * 2
    if shutil.which("dciodvfy"):
        for k, one in enumerate(found.values()):
            one.save_as(tmp_path / f"{k}.dcm")
            said = subprocess.run(
                ["dciodvfy", str(tmp_path / f"{k}.dcm")], capture_output=True, text=True, check=False
            )
            assert "Error" not in said.stderr, said.stderr


def test_a_repeat_is_the_same_instance_and_a_late_slice_another_one(setting: Setting, tmp_path: Path) -> None:
    before = len(setting.sets())
    folder = write(tmp_path / "ct", 2)
    whole = sorted(folder.glob("*.dcm"))
    late = tmp_path / "late"
    late.mkdir()
    top = max(whole, key=lambda p: pydicom.dcmread(p, stop_before_pixels=True).ImagePositionPatient[2])
    shutil.move(top, late / top.name)
    count = len(setting.node.queue.jobs())
    setting.send((folder, ExplicitVRLittleEndian))
    setting.node.ended(count + 1)
    assert len(setting.sets()) == before + 1
    setting.send((folder, ExplicitVRLittleEndian))
    eventually(lambda: any(line["event"] == "series repeated" for line in setting.node.log), "the repeat")
    setting.node.ended(count + 1)
    assert len(setting.sets()) == before + 1
    assert sum(line["event"] == "delivered" and line["kind"] == "rtstruct" for line in setting.node.log) >= 2
    setting.send((late, ExplicitVRLittleEndian))
    jobs = setting.node.ended(count + 2)
    assert jobs[-1].files == len(whole)
    assert len(setting.sets()) == before + 2


def test_a_bad_case_sends_nothing_and_is_told(setting: Setting, tmp_path: Path) -> None:
    before, count = len(setting.sets()), len(setting.node.queue.jobs())
    setting.send((write(tmp_path / "gap", 3, leave_out=(12,)), ExplicitVRLittleEndian))
    jobs = setting.node.ended(count + 1)
    assert jobs[-1].state == "refused"
    assert "missing" in jobs[-1].why or "gap" in jobs[-1].why or "distance" in jobs[-1].why
    notice = eventually(lambda: [line for line in setting.node.log if line["event"] == "notice"], "the notice")[-1]
    assert (notice["what"], notice["why"]) == ("case refused", jobs[-1].why)
    assert len(setting.sets()) == before


def test_an_accepted_case_is_sent_only_then(setting: Setting, tmp_path: Path) -> None:
    from metricunet.workflows.review.decide import Verdict
    from metricunet.workflows.review.desk import Desk
    from metricunet.workflows.review.scans import Scans

    before, count = len(setting.sets()), len(setting.node.queue.jobs())
    setting.send((write(tmp_path / "boost", 1, "Boost 1"), ExplicitVRLittleEndian))
    job = setting.node.ended(count + 1)[-1]
    assert job.state == "review"
    assert len(setting.sets()) == before
    desk = Desk(setting.node.state / "predictions", Scans(None), "A. Reader")
    desk.decide(Path(job.folder).name, Verdict(False, "", "A. Reader", 3.0, 0, 0), (0, 0, 0), (0, 0, 0), b"")
    eventually(lambda: setting.node.queue.job(job.id).state == "sent", "the delivery")
    assert len(setting.sets()) == before + 1


def test_a_worker_that_dies_is_replaced_and_its_case_taken_up(setting: Setting, tmp_path: Path) -> None:
    count = len(setting.node.queue.jobs())
    (worker,) = psutil.Process(setting.node.process.pid).children()
    worker.send_signal(signal.SIGSTOP)
    setting.send((write(tmp_path / "ct", 5), ExplicitVRLittleEndian))
    eventually(lambda: len(setting.node.queue.jobs()) > count, "the job")
    os.kill(worker.pid, signal.SIGKILL)
    assert setting.node.ended(count + 1)[-1].state == "sent"
    assert any(line["event"] == "worker died" for line in setting.node.log)


def test_once_works_off_a_watched_folder_and_ends(setting: Setting, tmp_path: Path) -> None:
    before = len(setting.sets())
    write(tmp_path / "in" / "Secret^Folder", 7)
    write(tmp_path / "in" / "gap", 7, leave_out=(12,))
    destination = {"name": "pacs", "ae_title": "ORTHANC", "host": "127.0.0.1", "port": setting.peer.dicom}
    file = write_node(
        tmp_path,
        state=str(tmp_path / "state"),
        port=None,
        watch={"folder": str(tmp_path / "in")},
        model=str(setting.model),
        rules=[{"name": "any"}],
        destinations=[destination],
    )
    ended = subprocess.run(
        [sys.executable, "-c", NODE, str(file), "once"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1, ended.stderr  # one of the two is refused
    queue = Queue(Ledger(tmp_path / "state" / "ledger.sqlite"))
    assert sorted(job.state for job in queue.jobs()) == ["refused", "sent"]
    assert len(setting.sets()) == before + 1
    assert "Secret" not in ended.stderr + str(list((tmp_path / "state").rglob("*")))


def test_nothing_of_a_patient_is_in_log_or_names(setting: Setting) -> None:
    names = [str(path) for path in setting.node.state.rglob("*")]
    said = str(setting.node.log) + str(names) + (setting.home / "node.err").read_text()
    uids = {str(one.StudyInstanceUID) for one in setting.sets()}
    for secret in ("Secret", "SECRET", *uids):
        assert secret not in said


def test_a_good_case_between_rubbish_is_delivered(setting: Setting, tmp_path: Path) -> None:
    rng = random.Random(0)
    small = [pydicom.dcmread(path) for path in write_series(tmp_path / "small", shape=(5, 8, 8)).files]
    before, port = len(setting.sets()), setting.node.port
    for kind in range(KINDS):
        rubbish(kind, port, small, rng)
    fuzzed_stores(port, small[0], 20, rng)
    setting.send((write(tmp_path / "good", 6), ExplicitVRLittleEndian))
    many_objects(port, small[0], 50)
    fuzzed_stores(port, small[0], 20, rng)
    eventually(lambda: len(setting.sets()) == before + 1, "the delivery")
    assert setting.node.process.poll() is None
