"""Storage commitment: the node asks, and the peer answers on the same association, on one of its own, or never."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import RTStructureSetStorage
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance, Verification

from metricunet.workflows.serve import outbound
from metricunet.workflows.serve.commitment import ALL_KEPT, SOME_NOT_KEPT, Commitments, transaction_of
from metricunet.workflows.serve.journal import Journal
from metricunet.workflows.serve.scp import DicomServer
from tests.workflows.serve.conftest import Doors, eventually, free_port, orthanc_in
from tests.workflows.serve.test_deliveries import Out

#: pynetdicom leaves the socket of a connection that was refused to be collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
#: The node waits so long for an answer on the association of its question.
NO_WAIT_S, WAIT_S = 0.0, 300.0
HOUR = timedelta(hours=1, seconds=1)


class Peer:
    """A peer that takes objects, and commits to keep them as it is told: `here`, `later`, `never` or `refuse`."""

    def __init__(self, answers: str = "here", offers: bool = True) -> None:
        self.answers, self.port = answers, free_port()
        self.asked: list[Dataset] = []
        self.statuses: list[int | None] = []
        self.stored = 0
        self.entity = AE("PEER")
        self.entity.add_supported_context(RTStructureSetStorage)
        self.entity.add_supported_context(Verification)
        if offers:
            self.entity.add_supported_context(StorageCommitmentPushModel)

    @contextmanager
    def listening(self) -> Iterator[Peer]:
        handlers: list[Any] = [(evt.EVT_C_STORE, self._store), (evt.EVT_N_ACTION, self._action)]
        handlers.append((evt.EVT_PDU_SENT, self._sent))
        server: Any = self.entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        try:
            yield self
        finally:
            server.shutdown()

    def _store(self, event: Any) -> int:
        self.stored += 1
        return 0

    def _action(self, event: Any) -> tuple[int, None]:
        if self.answers == "refuse":
            return 0x0110, None
        self.asked.append(event.action_information)
        return 0, None

    def _sent(self, event: Any) -> None:
        # On the association of the question, as soon as that was answered; not in the thread that writes to it.
        if self.answers == "here" and self.asked:
            self.answers = "answered"
            threading.Thread(target=self._report, args=(event.assoc,)).start()

    def _report(self, association: Any) -> None:
        status, _ = association.send_n_event_report(
            said(self.asked[-1]), ALL_KEPT, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        self.statuses.append(status.get("Status"))

    def call(self, port: int, content: Dataset, kind: int = ALL_KEPT) -> int | None:
        """Call a node by an association of its own, and say what is kept; return the status of its answer."""
        entity = AE("PEER")
        entity.add_requested_context(StorageCommitmentPushModel)
        association = entity.associate(
            "127.0.0.1",
            port,
            ae_title="METRICUNET",
            ext_neg=[build_role(StorageCommitmentPushModel, scp_role=True)],
        )
        assert association.is_established
        assert association.accepted_contexts
        status, _ = association.send_n_event_report(
            content, kind, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        association.release()
        found = status.get("Status")
        return None if found is None else int(found)


def said(asked: Dataset, kept: bool = True) -> Dataset:
    """What a peer says of what it was asked for."""
    content = Dataset()
    content.TransactionUID = asked.TransactionUID
    if kept:
        content.ReferencedSOPSequence = asked.ReferencedSOPSequence
        return content
    for item in asked.ReferencedSOPSequence:
        item.FailureReason = 0x0112
    content.FailedSOPSequence = asked.ReferencedSOPSequence
    return content


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "COMMITTED_S", NO_WAIT_S)


@pytest.fixture
def node(doors: Callable[..., Doors]) -> Iterator[Callable[[Out], DicomServer]]:
    """The DICOM server of a node that waits for answers to what it has asked."""
    servers = []

    def opened(out: Out) -> DicomServer:
        found = doors(port=free_port(), destinations=[{**DESTINATION, "port": 1}])
        journal = Journal(out.state.log, None)
        server = DicomServer(
            found.config, found.arrivals, found.state.receiving, journal, Commitments(out.queue, journal)
        )
        servers.append(server)
        return server

    yield opened
    for server in servers:
        server.stop()


DESTINATION = {"name": "pacs", "ae_title": "PEER", "host": "127.0.0.1", "commitment": True}


def out_to(folder: Path, port: int) -> Out:
    (folder / "out").mkdir()
    out = Out(folder / "out", ae_title="PEER", host="127.0.0.1", port=port, commitment=True)
    out.moment += timedelta(minutes=10)  # what is due a moment later is due
    return out


def states(out: Out) -> tuple[str, str]:
    return out.delivery.state, out.queue.job(out.job.id).state


def test_an_answer_on_the_same_association(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "COMMITTED_S", WAIT_S)
    with Peer("here").listening() as peer:
        out = out_to(tmp_path, peer.port)
        out.sender.once()
        eventually(lambda: peer.statuses == [0], "the node's answer")
    assert states(out) == ("confirmed", "sent")
    assert (peer.stored, len(peer.asked)) == (1, 1)
    (item,) = peer.asked[0].ReferencedSOPSequence
    assert (item.ReferencedSOPInstanceUID, item.ReferencedSOPClassUID) == (out.uid, RTStructureSetStorage)


def test_an_answer_by_a_call_of_the_peer(tmp_path: Path, node: Callable[[Out], DicomServer]) -> None:
    with Peer("later").listening() as peer:
        out = out_to(tmp_path, peer.port)
        server = node(out)
        out.sender.once()
        assert states(out) == ("stored", "sending")
        assert out.sender.once() == 0  # it has been asked, and has time
        guessed = said(peer.asked[0])
        guessed.TransactionUID = "2.25.1"
        assert peer.call(server.port, guessed) == 0x0115
        other = Dataset()
        other.TransactionUID, other.ReferencedSOPSequence = peer.asked[0].TransactionUID, []
        assert peer.call(server.port, other) == 0x0115
        assert peer.call(server.port, said(peer.asked[0]), kind=7) == 0x0113
        assert states(out) == ("stored", "sending")
        assert peer.call(server.port, said(peer.asked[0])) == 0
        assert states(out) == ("confirmed", "sent")
        assert peer.call(server.port, said(peer.asked[0])) == 0  # said twice
        assert peer.call(server.port, said(peer.asked[0], kept=False), SOME_NOT_KEPT) == 0
    assert states(out) == ("confirmed", "sent")


def test_what_is_not_kept_is_sent_again(tmp_path: Path, node: Callable[[Out], DicomServer]) -> None:
    with Peer("later").listening() as peer:
        out = out_to(tmp_path, peer.port)
        server = node(out)
        out.sender.once()
        assert peer.call(server.port, said(peer.asked[0], kept=False), SOME_NOT_KEPT) == 0
        assert states(out) == ("waiting", "sending")
        assert "0x0112" in out.delivery.error
        out.moment += timedelta(minutes=10)
        out.sender.once()
        assert peer.stored == 2
        first, second = (one.TransactionUID for one in peer.asked)
        assert first != second
        assert peer.call(server.port, said(peer.asked[1])) == 0
    assert states(out) == ("confirmed", "sent")


def test_a_peer_that_says_nothing_is_asked_again_and_given_up_in_the_end(
    tmp_path: Path, node: Callable[[Out], DicomServer]
) -> None:
    with Peer("never").listening() as peer:
        out = out_to(tmp_path, peer.port)
        server = node(out)
        out.sender.once()
        out.moment += HOUR
        out.sender.once()
        assert (peer.stored, len(peer.asked)) == (1, 2)
        with out.queue.ledger.writing() as db:
            db.execute("UPDATE deliveries SET created = '2020-01-01T00:00:00.000+00:00'")
        out.moment += HOUR
        out.sender.once()
        assert states(out) == ("failed", "failed")
        assert "has not said that it keeps it" in out.given_up[0][1]
        out.queue.retry(out.delivery.id, "A. Reader")
        out.sender.once()
        assert peer.stored == 2
        assert peer.call(server.port, said(peer.asked[-1])) == 0
    assert states(out) == ("confirmed", "sent")


@pytest.mark.parametrize(
    ("answers", "offers", "why"), [("refuse", True, "0x0110"), ("here", False, "offers no storage commitment")]
)
def test_a_peer_that_does_not_commit_is_said(tmp_path: Path, answers: str, offers: bool, why: str) -> None:
    with Peer(answers, offers).listening() as peer:
        out = out_to(tmp_path, peer.port)
        out.sender.once()
        assert states(out) == ("stored", "sending")
        assert why in out.delivery.error
        assert datetime.fromisoformat(out.delivery.next_attempt) < datetime.now(UTC) + HOUR
        assert peer.stored == 1


def test_a_question_cannot_be_guessed(tmp_path: Path) -> None:
    out = out_to(tmp_path, 1)
    found = {transaction_of(out.queue, out.delivery, attempt) for attempt in range(5)}
    assert len(found) == 5
    assert all(len(one) <= 64 and one.startswith("2.25.") for one in found)
    (tmp_path / "other").mkdir()
    other = Out(tmp_path / "other", ae_title="PEER", host="127.0.0.1", port=1)
    assert transaction_of(other.queue, out.delivery, 1) not in found  # another node has another key


def test_orthanc_commits(tmp_path: Path, node: Callable[[Out], DicomServer]) -> None:
    out = out_to(tmp_path, free_port())
    server = node(out)
    modalities = {"node": {"AET": "METRICUNET", "Host": "127.0.0.1", "Port": server.port}}
    with orthanc_in(tmp_path / "orthanc", out.config.destinations[0].port, DicomModalities=modalities):
        out.sender.once()
        assert out.delivery.error == ""
        eventually(lambda: states(out) == ("confirmed", "sent"), "the commitment")
