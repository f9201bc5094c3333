"""The DICOM server: who may store, what is stored, and that rubbish holds nobody up."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from metricunet.workflows.serve.commitment import Commitments
from metricunet.workflows.serve.config import Tls
from metricunet.workflows.serve.journal import Journal
from metricunet.workflows.serve.scp import CANNOT_UNDERSTAND, MISMATCH, OUT_OF_RESOURCES, SUCCESS, DicomServer
from tests.support.dicom_series import Written, companion, write_series
from tests.workflows.serve.conftest import PATIENCE_S, Doors, eventually, free_port

#: pynetdicom leaves sockets of connections that came to nothing to be collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

Started = Callable[..., tuple[Doors, DicomServer]]


@pytest.fixture
def started(doors: Callable[..., Doors]) -> Iterator[Started]:
    servers = []

    def start(**settings: Any) -> tuple[Doors, DicomServer]:
        node = doors(port=free_port(), **settings)
        server = DicomServer(
            node.config,
            node.arrivals,
            node.state.receiving,
            Journal(node.state.log, None),
            Commitments(node.queue, Journal(node.state.log, None)),
        )
        servers.append(server)
        return node, server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write_series(tmp_path_factory.mktemp("ct"), shape=(4, 8, 8))


def associate(server: DicomServer, calling: str = "SCANNER", called: str = "METRICUNET") -> Any:
    entity = AE(calling)
    entity.add_requested_context(Verification)
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    entity.add_requested_context("1.2.840.10008.5.1.4.1.1.88.11", ExplicitVRLittleEndian)
    return entity.associate("127.0.0.1", server.port, ae_title=called)


def store(association: Any, item: Any) -> int:
    return int(association.send_c_store(item).Status)


def test_echo_and_store(started: Started, written: Written) -> None:
    node, server = started()
    association = associate(server)
    assert association.send_c_echo().Status == SUCCESS
    assert [store(association, path) for path in written.files] == [SUCCESS] * 4
    assert node.arrivals.connections == 1
    association.release()
    eventually(lambda: node.arrivals.connections == 0, "the end of the association")
    (job,) = node.arrivals.gather(at_once=True)
    stored = [pydicom.dcmread(path) for path in (node.state.folder / job.folder).glob("*.dcm")]
    assert {one.SOPInstanceUID for one in stored} == {
        pydicom.dcmread(path).SOPInstanceUID for path in written.files
    }
    assert all(one.pixel_array.shape == (8, 8) for one in stored)
    assert not any(node.state.receiving.iterdir())


def test_what_is_not_kept_is_answered_in_dicoms_words(
    started: Started, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, server = started()
    association = associate(server)
    report = companion("SR", "1.2.840.10008.5.1.4.1.1.88.11")
    report.file_meta = pydicom.dataset.FileMetaDataset()
    report.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    assert store(association, report) == SUCCESS  # no rule takes it
    nameless = pydicom.dcmread(written.files[0])
    del nameless.SeriesInstanceUID
    assert store(association, nameless) == CANNOT_UNDERSTAND
    monkeypatch.setattr(type(node.state), "free_bytes", lambda self: -1)
    assert store(association, written.files[0]) == OUT_OF_RESOURCES
    assert MISMATCH == 0xA900
    association.release()
    assert node.arrivals.gather(at_once=True) == []


def test_only_peers_of_the_list_are_let_in(started: Started) -> None:
    _, server = started(
        peers=[{"ae_title": "CT1", "addresses": "127.0.0.0/8"}, {"ae_title": "CT2", "addresses": "10.0.0.9"}]
    )
    for calling, called, let_in in (
        ("CT1", "METRICUNET", True),
        ("CT1", "ANOTHER", False),
        ("CT2", "METRICUNET", False),  # from another address than it has
        ("WHO", "METRICUNET", False),
    ):
        association = associate(server, calling, called)
        assert association.is_established == let_in, (calling, called)
        if let_in:
            association.release()


def make_certificates(folder: Path) -> None:
    """An authority, and a certificate that it has signed for each side."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    openssl(
        *[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
            "-days",
            "2",
            "-subj",
            "/CN=authority",
        ]
    )
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    for name in ("node", "peer", "stranger"):
        openssl(*f"req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}".split())
        signer = "-signkey stranger.key" if name == "stranger" else "-CA ca.pem -CAkey ca.key -CAcreateserial"
        openssl(*f"x509 -req -in {name}.csr {signer} -out {name}.pem -days 2 -extfile names".split())
        (folder / f"{name}.key").chmod(0o600)


def test_with_certificates_both_sides_must_show_one(started: Started, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    make_certificates(tmp_path)

    def own(name: str) -> Tls:
        return Tls(
            certificate=tmp_path / f"{name}.pem", key=tmp_path / f"{name}.key", authorities=tmp_path / "ca.pem"
        )

    node, server = started(tls=own("node").model_dump())
    silent = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)  # never shakes hands

    def comes_through(context: ssl.SSLContext | None) -> bool:
        entity = AE("SCANNER")
        entity.add_requested_context(Verification)
        entity.acse_timeout = entity.network_timeout = entity.connection_timeout = 20
        association = entity.associate(
            "127.0.0.1",
            server.port,
            ae_title="METRICUNET",
            tls_args=None if context is None else (context, "localhost"),
        )
        if association.is_established:
            association.release()
        return bool(association.is_released)

    assert comes_through(own("peer").context(server=False))
    assert not comes_through(own("stranger").context(server=False))
    assert not comes_through(None)
    bare = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    assert not comes_through(bare)
    silent.close()

    def told(words: str) -> bool:
        return any(line["event"] == "connection refused" and words in line["why"] for line in node.log)

    # Whoever looks for the fault is told whose certificate it is, and of what kind.
    eventually(lambda: told("peer's certificate is not accepted"), "a line of the stranger")
    eventually(lambda: told("did not return a certificate"), "a line of who shows none")


def test_an_address_that_is_not_listed_is_cut_off(started: Started) -> None:
    node, server = started(peers=[{"ae_title": "CT1", "addresses": "10.0.0.9"}])
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
        assert connection.recv(1) == b""
    assert any(line["event"] == "connection refused" for line in node.log)


def test_rubbish_holds_up_nobody(started: Started, written: Written) -> None:
    node, server = started()
    waiting = []
    for begin in (
        os.urandom(4000),
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">BBL", 1, 0, 0xFFFFFFF0) + b"x" * 4096,  # announces four gigabytes
        struct.pack(">BBL", 4, 0, 12) + b"\0" * 12,  # data before any association
        struct.pack(">BBL", 1, 0, 200),  # and then silence
        b"",
    ):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)
        connection.sendall(begin)
        waiting.append(connection)
    # Broken off in the middle of an object.
    association = associate(server)
    association.dul.socket.send(struct.pack(">BBL", 4, 0, 5000) + b"\0\0\x13\x84\x03\0" + b"\0" * 100)
    association.dul.socket.close()
    good = associate(server)
    assert [store(good, path) for path in written.files] == [SUCCESS] * 4
    good.release()
    for connection in waiting:
        connection.close()
    eventually(lambda: not any(node.state.receiving.iterdir()), "the end of what was broken off")

    def nobody_is_left() -> bool:
        server.prune()
        return node.arrivals.connections == 0

    eventually(nobody_is_left, "the end of the associations")
    (job,) = node.arrivals.gather(at_once=True)
    assert job.files == 4


def test_an_endless_object_is_cut_off(started: Started, written: Written) -> None:
    node, server = started(limits={"free_disk_gb": 0, "object_mb": 1})
    endless = pydicom.dcmread(written.files[0])
    endless.PixelData = b"\0" * (40 << 20)
    association = associate(server)
    answer = association.send_c_store(endless)
    assert answer.get("Status") is None
    eventually(lambda: not any(node.state.receiving.iterdir()), "the end of the object")
    too_large = pydicom.dcmread(written.files[0])
    too_large.PixelData = b"\0" * (2 << 20)
    association = associate(server)
    assert store(association, too_large) == OUT_OF_RESOURCES
    association.release()
