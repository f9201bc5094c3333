"""Objects going out, to a DICOM peer by C-STORE or to a web server by STOW-RS; and whether a peer keeps them."""

from __future__ import annotations

import json
import secrets
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, SegmentationStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    Verification,
)

from metricunet.errors import InputError
from metricunet.files.dicom.file import read_dataset
from metricunet.ledger.job import Outgoing
from metricunet.workflows.serve.config import Destination, Tls
from metricunet.workflows.serve.state import State

CONNECT_S, ANSWER_S = 20, 120
#: A peer that commits to keep objects may say so on the association of the question, which is left open so long.
COMMITTED_S, LOOK_S = 3.0, 0.05
#: The SOP class of each kind of file.
CLASSES = {"rtstruct": RTStructureSetStorage, "seg": SegmentationStorage}
WARNINGS = range(0xB000, 0xC000)
#: The peer has the instance already, of an attempt whose answer was lost for example.
DUPLICATE = 0x0111
#: What a web server answers is read up to here.
MOST_ANSWER_BYTES = 1 << 20
#: Where it lists objects that it has not kept: those it could name, and others.
_FAILED_SEQUENCES = ("00081198", "0008119A")
_FAILURE_REASON = "00081197"
#: SOP class and transfer syntax of a file.
Kind = tuple[str, str]


class NotSent(InputError):  # noqa: N818
    """A destination has not taken an object; the message says why."""


def sop_uid_of(path: Path) -> str:
    """Return the SOPInstanceUID of a DICOM file that this program wrote."""
    return str(read_dataset(path, stop_before_pixels=True, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)


def outgoing(state: State, destination: Destination, kind: str, path: Path) -> Outgoing:
    """Return what the queue is told of a file in a folder of state that is to go to a destination."""
    return Outgoing(destination.name, kind, path.relative_to(state.folder).as_posix(), sop_uid_of(path))


def send(destination: Destination, paths: Sequence[Path], ae_title: str, tls: Tls | None) -> dict[Path, str]:
    """Send files to a destination.

    Args:
        destination: where to.
        paths: of DICOM files.
        ae_title: of the node.
        tls: its certificates, for a destination that asks for them.

    Returns:
        For each file why it was not taken, or cannot be read; empty where it was.
    """
    if destination.url is not None:
        return {path: _posted(destination, path) for path in paths}
    kinds: dict[Path, Kind] = {}
    faults: dict[Path, str] = {}
    for path in paths:
        try:
            kinds[path] = _kind(path)
        except Exception as error:  # whatever pydicom raises for a damaged file: the others go
            faults[path] = _unreadable(error)
    try:
        return faults | (_stored(destination, kinds, ae_title, tls) if kinds else {})
    except NotSent as error:
        return faults | dict.fromkeys(kinds, str(error))


def _stored(
    destination: Destination, kinds: Mapping[Path, Kind], ae_title: str, tls: Tls | None
) -> dict[Path, str]:
    entity = AE(ae_title)
    # Every peer takes the default transfer syntax, and some no other: pynetdicom converts to it where it must. It
    # has a context of its own, so that a peer which takes both does not choose the conversion.
    for kind, syntax in sorted({(kind, s) for kind, own in kinds.values() for s in (own, ImplicitVRLittleEndian)}):
        entity.add_requested_context(kind, syntax)
    with _associated(destination, entity, tls) as association:
        return {path: _store(association, path, kind) for path, kind in kinds.items()}


def _unreadable(error: Exception) -> str:
    reason = (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
    return f"its file cannot be read ({reason})"


@dataclass(frozen=True)
class Question:
    """What a peer is asked to commit to.

    Attributes:
        transaction: TransactionUID, by which it answers.
        kind: `rtstruct` or `seg`.
        sop_uid: SOPInstanceUID of the object.
    """

    transaction: str
    kind: str
    sop_uid: str


def ask(
    destination: Destination,
    questions: Sequence[Question],
    ae_title: str,
    tls: Tls | None,
    answered: Callable[[int | None, Dataset], int],
) -> dict[str, str]:
    """Ask a peer to commit to keep what it has taken. It answers when it likes, at once or by a call of its own.

    Args:
        destination: the peer.
        questions: at least one.
        ae_title: of the node.
        tls: its certificates, for a destination that asks for them.
        answered: takes what the peer says while the association is open, see `Commitments.answer`.

    Returns:
        For each transaction why the question was not taken; empty where it was.
    """
    entity, heard, answering = AE(ae_title), set[str](), set[str]()
    entity.add_requested_context(StorageCommitmentPushModel)
    entity.add_requested_context(Verification)  # so that there is an association with a peer that does not commit

    def hear(event: Any) -> tuple[int, None]:
        answering.add(str(event.event_information.get("TransactionUID", "")))
        return answered(event.request.EventTypeID, event.event_information), None

    def sent(event: Any) -> None:  # the peer has its answer, and the association may end
        heard.update(answering)

    handlers = [(evt.EVT_N_EVENT_REPORT, hear), (evt.EVT_PDU_SENT, sent)]
    taken: dict[str, str] = {}
    try:
        with _associated(destination, entity, tls, handlers) as association:
            for one in questions:
                taken[one.transaction] = _ask(association, one)
            waiting, end = {key for key, why in taken.items() if not why}, time.monotonic() + COMMITTED_S
            while association.is_established and waiting - heard and time.monotonic() < end:
                time.sleep(LOOK_S)
    except NotSent as error:
        taken |= {one.transaction: str(error) for one in questions if one.transaction not in taken}
    return taken


def _ask(association: Any, question: Question) -> str:
    content, item = Dataset(), Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CLASSES[question.kind], question.sop_uid
    content.TransactionUID, content.ReferencedSOPSequence = question.transaction, [item]
    if not any(one.abstract_syntax == StorageCommitmentPushModel for one in association.accepted_contexts):
        return "the peer offers no storage commitment"
    try:
        status, _ = association.send_n_action(
            content, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
    except (ValueError, RuntimeError, OSError) as error:
        return f"it could not be asked for its commitment ({error})"
    code = status.get("Status")
    if code is None:
        return "the peer did not answer whether it will commit"
    return "" if code == 0 else f"the peer refuses to commit with status 0x{code:04X}"


@contextmanager
def _associated(
    destination: Destination, entity: AE, tls: Tls | None, handlers: Sequence[Any] = ()
) -> Iterator[Any]:
    """Open an association to a peer, and release it at the end.

    Raises:
        NotSent: there is none to be had.
    """
    assert destination.host is not None
    assert destination.port is not None
    assert destination.ae_title is not None
    entity.connection_timeout, entity.acse_timeout = CONNECT_S, CONNECT_S
    entity.dimse_timeout = entity.network_timeout = ANSWER_S
    try:
        context = (tls.context(server=False), destination.host) if destination.tls and tls is not None else None
        association = entity.associate(
            destination.host,
            destination.port,
            ae_title=destination.ae_title,
            tls_args=context,
            evt_handlers=list(handlers),
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise NotSent(f"the connection failed ({error})") from error
    if not association.is_established:
        words = "refused the association" if association.is_rejected else "cannot be reached, or does not answer"
        if destination.tls and not association.is_rejected:  # the library does not tell these apart
            words += ", or one side does not accept the other's certificate, which may have run out"
        raise NotSent(f"{destination.host} port {destination.port} {words}")
    try:
        yield association
    finally:
        with suppress(Exception):  # all answers are here; how it says goodbye does not matter
            association.release()


def _kind(path: Path) -> Kind:
    dataset = read_dataset(path, stop_before_pixels=True, specific_tags=["SOPClassUID"])
    kind, syntax = dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID
    if kind not in CLASSES.values() or not syntax.is_transfer_syntax:
        raise ValueError("it is no structure set or segmentation")
    return str(kind), str(syntax)


def _store(association: Any, path: Path, kind: Kind) -> str:
    if not association.is_established:
        return "the association broke"
    if not any(str(context.abstract_syntax) == kind[0] for context in association.accepted_contexts):
        return "the peer takes no objects of this kind"
    try:
        status = association.send_c_store(path).get("Status")
    except Exception as error:  # of the association, or whatever pydicom raises for a damaged file
        return f"it could not be sent ({error})"
    if status is None:
        return "the peer did not answer"
    taken = status in (0, DUPLICATE) or status in WARNINGS
    return "" if taken else f"the peer answered with status 0x{status:04X}"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nobody elsewhere with a patient's data."""

    def redirect_request(self, *arguments: Any, **more: Any) -> None:
        """Return no request to follow."""
        return


def _posted(destination: Destination, path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        return _unreadable(error)
    boundary = secrets.token_hex(16)
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = head + content + f"\r\n--{boundary}--\r\n".encode()
    headers = {
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        "Accept": "application/dicom+json",
    }
    try:
        if destination.token is not None:
            headers["Authorization"] = f"Bearer {destination.token.read_text(encoding='utf-8').strip()}"
        answer = post(f"{destination.url}/studies", body, headers, ANSWER_S)
    except (OSError, HTTPException, ValueError) as error:
        return f"{destination.url}: {_in_words(error)}"
    return _failures(answer)


def post(url: str, body: bytes, headers: Mapping[str, str], timeout_s: float) -> bytes:
    """Post to a web server, without following it elsewhere, and return the beginning of its answer.

    Raises:
        OSError: it cannot be reached, or does not answer with success (`urllib.error.HTTPError`).
        HTTPException: its answer is none of HTTP.
    """
    request = urllib.request.Request(url, data=body, headers=dict(headers), method="POST")
    opener = urllib.request.build_opener(_NoRedirect)
    with opener.open(request, timeout=timeout_s) as response:
        answer: bytes = response.read(MOST_ANSWER_BYTES)
        return answer


def _in_words(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code}"
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLError):
        return "its certificate is not accepted"
    if isinstance(reason, socket.timeout | TimeoutError):
        return "it does not answer"
    return f"it cannot be reached ({reason})"


def _failures(answer: bytes) -> str:
    """Return why a server that answered well has not kept an object after all; empty where it has."""
    try:
        content = json.loads(answer or b"{}")
    except ValueError:
        return ""  # XML, say: the status has told
    if isinstance(content, list):
        content = content[0] if content else {}
    told = [content.get(name, {}) for name in _FAILED_SEQUENCES] if isinstance(content, dict) else []
    items = [item for sequence in told if isinstance(sequence, dict) for item in sequence.get("Value") or []]
    if not items:
        return ""
    reasons = items[0].get(_FAILURE_REASON, {}).get("Value", ["unknown"]) if isinstance(items[0], dict) else []
    return f"the server did not keep it (reason {reasons[0] if reasons else 'unknown'})"
