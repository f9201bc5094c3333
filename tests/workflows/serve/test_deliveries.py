"""What goes out: to DICOM peers and web servers, tried again for days, each instance once."""

from __future__ import annotations

import io
import json
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RTStructureSetStorage,
    SegmentationStorage,
    generate_uid,
)
from pynetdicom import AE, _config, evt

from metricunet.files.dicom.series import find_series
from metricunet.files.rtstruct.outlines import Structure
from metricunet.files.seg.write import write_seg
from metricunet.ledger import Delivery, Ledger, Queue
from metricunet.volume import Volume
from metricunet.workflows.serve.commitment import Commitments
from metricunet.workflows.serve.config import Destination, NodeConfig
from metricunet.workflows.serve.deliveries import Sender
from metricunet.workflows.serve.journal import Journal
from metricunet.workflows.serve.keep import delete_old
from metricunet.workflows.serve.notices import Notices
from metricunet.workflows.serve.outbound import send
from metricunet.workflows.serve.state import State, without_identifiers
from tests.support.dicom_series import companion, save, write_series
from tests.workflows.serve.conftest import PATIENCE_S, debian, eventually, free_port, listens

#: pynetdicom leaves the socket of a connection that was refused to be collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Answers(BaseHTTPRequestHandler):
    """A web server that answers as it is told, and keeps what was posted."""

    status = 200
    content: Any = None
    posted: list[tuple[str, dict[str, str], bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.posted.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        self.send_response(self.status)
        if self.status == 302:
            self.send_header("location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()
        self.wfile.write(json.dumps(self.content or {}).encode())

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def web() -> Iterator[tuple[str, type[Answers]]]:
    class Own(Answers):
        posted: list[tuple[str, dict[str, str], bytes]] = []  # noqa: RUF012

    with ThreadingHTTPServer(("127.0.0.1", 0), Own) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", Own
        server.shutdown()
        thread.join()


class Out:
    """A queue with one structure set to send, and its sender."""

    def __init__(self, folder: Path, **destination: Any) -> None:
        self.moment = datetime.now(UTC)
        rules = [{"name": "any"}]
        one = {"name": "pacs", **destination}
        self.config = NodeConfig.model_validate(
            {"state": folder / "state", "model": ["none"], "rules": rules, "destinations": [one]}
        )
        self.state = State(self.config.state)
        self.state.make()
        self.queue = Queue(Ledger(self.state.ledger), lambda: self.moment)
        self.uid = generate_uid()
        item = companion("RTSTRUCT", "1.2.840.10008.5.1.4.1.1.481.3", StructureSetLabel="one")
        item.SOPInstanceUID = self.uid
        save(self.state.predictions / "c0ffee.rtstruct.dcm", item)
        job = self.queue.receive("any:1", series="1", study="2", patient=["3"], sender="CT", folder="scans/c0ffee")
        self.queue.whole(job.id, digest="d")
        self.queue.take("cpu")
        self.job = self.queue.move(job.id, "sending")
        self.queue.deliver(job.id, "pacs", "rtstruct", "predictions/c0ffee.rtstruct.dcm", self.uid)
        self.given_up: list[tuple[Delivery, str]] = []
        self.sender = self.make_sender(self.config.destinations[0])

    def make_sender(self, destination: Destination) -> Sender:
        journal = Journal(self.state.log, None)
        return Sender(
            destination,
            self.config,
            self.state,
            self.queue,
            journal,
            Commitments(self.queue, journal),
            lambda *told: self.given_up.append(told),
        )

    @property
    def delivery(self) -> Delivery:
        return self.queue.deliveries(self.job.id)[0]


def test_a_peer_that_is_away_gets_it_later(tmp_path: Path) -> None:
    storescp = debian("storescp")
    port = free_port()
    out = Out(tmp_path, ae_title="PEER", host="127.0.0.1", port=port)
    pauses = []
    for _ in range(3):
        assert out.sender.once() == 1
        assert out.sender.once() == 0  # it is not due
        assert out.delivery.state == "waiting"
        assert "cannot be reached" in out.delivery.error
        due = datetime.fromisoformat(out.delivery.next_attempt)
        pauses.append(round((due - datetime.now(UTC)).total_seconds(), -1))
        out.moment = due + timedelta(seconds=1)
    assert pauses[0] < pauses[1] < pauses[2]
    kept = tmp_path / "peer"
    kept.mkdir()
    peer = subprocess.Popen([storescp, "-od", str(kept), "-aet", "PEER", str(port)])
    try:
        eventually(lambda: listens(port), "the peer's start")
        assert out.sender.once() == 1
    finally:
        peer.terminate()
        peer.wait(PATIENCE_S)
    assert (out.delivery.state, out.queue.job(out.job.id).state) == ("sent", "sent")
    assert [pydicom.dcmread(path).SOPInstanceUID for path in kept.iterdir()] == [out.uid]


def test_a_peer_that_has_it_already_has_taken_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_config, "STORE_RECV_CHUNKED_DATASET", False)  # a node of this process may have set it
    peer = AE("PEER")
    peer.add_supported_context(RTStructureSetStorage)
    answers = [0xA700, 0x0111]  # the second is what some say to an instance whose first answer was lost
    handlers: Any = [(evt.EVT_C_STORE, lambda event: answers.pop(0))]
    server: Any = peer.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        out = Out(tmp_path, ae_title="PEER", host="127.0.0.1", port=server.server_address[1])
        assert out.sender.once() == 1
        assert (out.delivery.state, "0xA700" in out.delivery.error) == ("waiting", True)
        out.moment = datetime.fromisoformat(out.delivery.next_attempt) + timedelta(seconds=1)
        assert out.sender.once() == 1
    finally:
        server.shutdown()
    assert (out.delivery.state, out.queue.job(out.job.id).state) == ("sent", "sent")


@pytest.mark.parametrize("syntaxes", [(ImplicitVRLittleEndian,), (ImplicitVRLittleEndian, ExplicitVRLittleEndian)])
def test_a_segmentation_reaches_also_a_peer_that_takes_the_default_transfer_syntax_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntaxes: tuple[UID, ...]
) -> None:
    monkeypatch.setattr(_config, "STORE_RECV_CHUNKED_DATASET", False)  # a node of this process may have set it
    write_series(tmp_path / "ct", shape=(5, 15, 17))
    (series,) = find_series(tmp_path / "ct").series
    mask = np.random.default_rng(3).random(series.geometry.shape) < 0.4
    path = tmp_path / "seg.dcm"
    write_seg(
        path, series, [Structure("Prostate", Volume(mask, series.geometry), (1, 2, 3))], description="a test"
    )
    peer = AE("PEER")
    peer.add_supported_context(SegmentationStorage, list(syntaxes))
    taken: list[pydicom.Dataset] = []

    def take(event: Any) -> int:
        taken.append(event.dataset)
        taken[-1].file_meta = event.file_meta
        return 0

    server: Any = peer.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, take)])
    try:
        port = server.server_address[1]
        destination = Destination(name="pacs", ae_title="PEER", host="127.0.0.1", port=port, formats=("seg",))
        assert send(destination, [path], "NODE", None) == {path: ""}
    finally:
        server.shutdown()
    (found,) = taken
    assert found.file_meta.TransferSyntaxUID == syntaxes[-1]
    sent = pydicom.dcmread(path)
    assert found.pop("PixelData").value == sent.pop("PixelData").value  # without a VR it is OW
    assert found.to_json_dict() == sent.to_json_dict()


def test_after_days_it_is_given_up_and_told(tmp_path: Path) -> None:
    out = Out(tmp_path, ae_title="PEER", host="127.0.0.1", port=free_port())
    with out.queue.ledger.writing() as db:
        db.execute("UPDATE deliveries SET created = '2020-01-01T00:00:00.000+00:00'")
    out.sender.once()
    assert out.delivery.state == "failed"
    assert out.queue.job(out.job.id).state == "failed"
    assert len(out.given_up) == 1
    # A person has it sent again.
    out.queue.send_again(out.job.id, "A. Reader")
    assert out.delivery.state == "waiting"


def test_by_the_web(tmp_path: Path, web: tuple[str, type[Answers]]) -> None:
    url, server = web
    token = tmp_path / "token"
    token.write_text("sesame\n")
    out = Out(tmp_path, url=f"{url}/dicom-web/", token=token)
    for status, content in (
        (500, None),
        (302, None),
        (200, {"0008119A": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [49152]}}]}}),
        (200, {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [272]}}]}}),
    ):
        server.status, server.content = status, content
        out.sender.once()
        assert out.delivery.state == "waiting", status
        out.moment = datetime.fromisoformat(out.delivery.next_attempt) + timedelta(seconds=1)
    assert "reason 272" in out.delivery.error
    server.content = None
    out.sender.once()
    assert out.delivery.state == "sent"
    path, headers, body = server.posted[-1]
    assert path == "/dicom-web/studies"
    assert headers["authorization"] == "Bearer sesame"
    boundary = headers["content-type"].rpartition("boundary=")[2].encode()
    file = (out.state.predictions / "c0ffee.rtstruct.dcm").read_bytes()
    assert body.split(b"\r\n\r\n", 1)[1].partition(b"\r\n--" + boundary)[0] == file


def test_a_notice_reaches_the_webhook(tmp_path: Path, web: tuple[str, type[Answers]]) -> None:
    url, server = web
    notices = Notices(f"{url}/hook", Journal(None, None))
    notices.tell("case refused", case="c0ffee", why="a slice is missing")
    notices.drain()
    assert json.loads(server.posted[0][2]) == {
        "event": "case refused",
        "case": "c0ffee",
        "why": "a slice is missing",
    }


def test_what_is_old_goes_and_it_is_said(tmp_path: Path) -> None:
    out = Out(tmp_path, ae_title="PEER", host="127.0.0.1", port=free_port())
    scan = out.state.folder / out.job.folder
    scan.mkdir()
    (scan / "a.dcm").write_bytes(b"pixels")
    (out.state.predictions / "c0ffee.reviewed.json").write_text("{}")
    (out.state.predictions / "other.nii.gz").write_bytes(b"x")
    (out.state.log / "2020-01-01.jsonl").write_text("{}\n")
    stream = io.StringIO()
    journal = Journal(out.state.log, stream)

    def later() -> datetime:
        return datetime.now(UTC) + timedelta(days=31)

    assert delete_old(out.config, out.state, out.queue, journal, later) == 0  # it is being sent
    out.queue.delivered(out.delivery.id)
    assert delete_old(out.config, out.state, out.queue, journal) == 0  # it is young
    assert delete_old(out.config, out.state, out.queue, journal, later) == 1
    assert not scan.exists()
    assert [path.name for path in out.state.predictions.iterdir()] == ["other.nii.gz"]
    assert out.queue.jobs() == []
    said = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert not (out.state.log / "2020-01-01.jsonl").exists()
    wanted = {"case": "c0ffee", "objects": 1, "files": 2}
    assert any(wanted.items() <= line.items() for line in said)
    with out.queue.ledger.reading() as db:
        assert db.execute("SELECT count(*) FROM events").fetchone()[0] == 0


def test_what_is_kept_longer_than_the_calendar_is_old_stays(tmp_path: Path) -> None:
    out = Out(tmp_path, ae_title="PEER", host="127.0.0.1", port=free_port())
    out.queue.delivered(out.delivery.id)
    (out.state.log / "2020-01-01.jsonl").write_text("{}\n")
    config = out.config.model_copy(update={"keep": timedelta(days=999_999)})
    assert delete_old(config, out.state, out.queue, Journal(None, None)) == 0
    assert out.queue.job(out.job.id).state == "sent"
    assert (out.state.log / "2020-01-01.jsonl").exists()


def beside(out: Out, name: str) -> Delivery:
    """Another structure set that goes to the peer as well."""
    item = companion("RTSTRUCT", "1.2.840.10008.5.1.4.1.1.481.3", StructureSetLabel="two")
    save(out.state.predictions / name, item)
    return out.queue.deliver(out.job.id, "pacs", "rtstruct", f"predictions/{name}", item.SOPInstanceUID)


def test_a_file_that_cannot_be_read_holds_up_no_other(tmp_path: Path) -> None:
    storescp = debian("storescp")
    port, kept = free_port(), tmp_path / "peer"
    out = Out(tmp_path, ae_title="PEER", host="127.0.0.1", port=port)
    good = beside(out, "decade.rtstruct.dcm")
    (out.state.predictions / "c0ffee.rtstruct.dcm").write_bytes(b"rubbish")
    kept.mkdir()
    peer = subprocess.Popen([storescp, "-od", str(kept), "-aet", "PEER", str(port)])
    try:
        eventually(lambda: listens(port), "the peer's start")
        assert out.sender.once() == 2
    finally:
        peer.terminate()
        peer.wait(PATIENCE_S)
    assert [pydicom.dcmread(path).SOPInstanceUID for path in kept.iterdir()] == [good.sop_uid]
    bad, sent = out.queue.deliveries(out.job.id)
    assert (bad.state, bad.attempts, sent.state) == ("waiting", 1, "sent")
    assert "its file cannot be read" in bad.error


def test_nor_does_one_on_its_way_to_the_web(tmp_path: Path, web: tuple[str, type[Answers]]) -> None:
    out = Out(tmp_path, url=f"{web[0]}/dicom-web")
    beside(out, "decade.rtstruct.dcm")
    bad = out.state.predictions / "c0ffee.rtstruct.dcm"
    bad.unlink()
    bad.symlink_to("/proc/self/mem")  # nobody can read its beginning, not even the superuser
    out.sender.once()
    assert [one.state for one in out.queue.deliveries(out.job.id)] == ["waiting", "sent"]


def test_what_can_never_be_read_is_given_up_in_its_time(tmp_path: Path) -> None:
    out = Out(tmp_path, ae_title="PEER", host="127.0.0.1", port=free_port())
    (out.state.predictions / "c0ffee.rtstruct.dcm").write_bytes(b"rubbish")
    with out.queue.ledger.writing() as db:
        db.execute("UPDATE deliveries SET created = '2020-01-01T00:00:00.000+00:00'")
    out.sender.once()
    assert (out.delivery.state, out.queue.job(out.job.id).state) == ("failed", "failed")


@pytest.mark.parametrize(
    "uid", ["1.2.826.0.1.3680043.8.498.1234", "2.25.329800735698586629295641978511506172918", "1.2.840.1234567890"]
)
def test_identifiers_are_left_out_of_sentences(uid: str) -> None:
    text = f"the slices of series {uid} are\ntilted by 2.5 mm at z = -3.25"
    assert without_identifiers(text) == "the slices of series (UID) are tilted by 2.5 mm at z = -3.25"
    assert without_identifiers(f"CT.{uid}.dcm: see {uid}.") == "CT.(UID).dcm: see (UID)."


def test_numbers_that_are_no_identifiers_stay_in_sentences() -> None:
    text = "10.0.0.7 port 104, version 0.1.0: 2.25 mm, 0.1234567890123, 1.25e-9 and 2026.11.30"
    assert without_identifiers(text) == text
