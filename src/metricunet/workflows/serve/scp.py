"""The DICOM server: C-STORE, C-ECHO, and what peers say that commit to keep what they were sent.

No length that a peer claims is believed, and nobody waits for it.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import socket
import ssl
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from pynetdicom import AE, AllStoragePresentationContexts, _config, dimse_messages, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from metricunet.errors import InputError, told
from metricunet.workflows.serve.arrivals import Arrivals, NoRoom, Unreadable, Unwanted
from metricunet.workflows.serve.commitment import INVALID_ARGUMENT, Commitments
from metricunet.workflows.serve.config import MB, NodeConfig
from metricunet.workflows.serve.journal import Journal

SUCCESS, OUT_OF_RESOURCES, MISMATCH, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xA900, 0xC000
#: Bytes of one PDU: what the node announces, and what it reads at most, for those who send more than they may.
PDU_BYTES, MOST_PDU_BYTES = 131_072, 4 * MB
#: A peer that says nothing for so long is gone; a handshake takes no longer.
NETWORK_S, ACSE_S, DIMSE_S, HANDSHAKE_S = 60, 30, 60, 10
#: Connections that have not asked for an association yet are more than those that have by this factor at most.
CROWD = 4
SYNTAXES = (
    *("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99"),  # explicit, implicit, deflated
    *("1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.57"),  # JPEG, lossless
    *("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"),  # JPEG-LS
    *("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"),  # JPEG 2000
    *("1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"),  # RLE; JPEG, lossy
)
#: Of a rejected association: for good, by the user of the service, since the caller is not known.
CALLER_UNKNOWN = (0x01, 0x01, 0x03)


class _Bounded(AssociationSocket):
    """A connection that reads no more than one PDU and one object may have."""

    most_bytes = 0
    read_bytes = 0

    def recv(self, nr_bytes: int) -> bytearray:
        self.read_bytes += nr_bytes
        if nr_bytes > MOST_PDU_BYTES or self.read_bytes > self.most_bytes:
            raise OSError("the peer sends more than is taken")
        return super().recv(nr_bytes)

    def _shutdown_socket(self) -> None:
        # The library leaves a socket open whose peer has gone first.
        connection = self.socket
        if connection is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            with suppress(OSError):
                connection.close()


class _Handler(RequestHandler):
    server: _Server

    def setup(self) -> None:
        if isinstance(self.request, ssl.SSLSocket):
            self.request.settimeout(HANDSHAKE_S)
            self.request.do_handshake()
        assert isinstance(self.request, socket.socket)
        self.request.settimeout(NETWORK_S)

    def _create_association(self) -> Any:
        association = super()._create_association()
        connection: Any = association.dul.socket
        connection.__class__ = _Bounded  # it was made by the library, which asks for no other kind
        connection.most_bytes = self.server.most_bytes
        return association


class _Server(ThreadedAssociationServer):
    """Accepts connections of listed addresses alone; a slow handshake holds up nobody else."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *args: Any, node: NodeConfig, journal: Journal, **more: Any) -> None:
        self.node, self.journal = node, journal
        self.most_bytes = int(node.limits.object_mb * MB) + 16 * MB
        more["request_handler"] = _Handler
        super().__init__(*args, **more)

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        assert self.socket is not None
        connection, address = self.socket.accept()
        if not _is_listed(self.node, address[0]):
            self.journal.say("connection refused", "warning", address=address[0], why="the address is not listed")
            connection.close()
            raise OSError("the address is not listed")
        if len(self.active_associations) >= CROWD * self.node.limits.connections:
            connection.close()
            raise OSError("too many connections")
        if self.ssl_context is not None:
            connection = self.ssl_context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say that a connection came to nothing, such as one without a certificate; others go on."""
        why = f"no handshake: {_in_words(sys.exc_info()[1])}"
        self.journal.say("connection refused", "warning", address=str(client_address[0]), why=why)
        with suppress(OSError):
            request.close()


class DicomServer:
    """Takes objects for a node until it is stopped.

    Args:
        config: of the node.
        arrivals: takes what comes.
        receiving: folder of objects of which not every byte has come.
        journal: is told.
        commitments: takes what peers say that commit to keep what they were sent.

    Raises:
        InputError: the port is taken, or a certificate cannot be read.
    """

    def __init__(
        self,
        config: NodeConfig,
        arrivals: Arrivals,
        receiving: Path,
        journal: Journal,
        commitments: Commitments,
    ) -> None:
        self.config, self.arrivals, self.journal, self.commitments = config, arrivals, journal, commitments
        self.address = (str(config.bind), config.port or 0)
        _be_quiet()
        # Objects go onto the disk as they come; nothing of their size is held in memory.
        _config.STORE_RECV_CHUNKED_DATASET = True
        in_folder: Any = functools.partial(tempfile.NamedTemporaryFile, dir=receiving)
        setattr(dimse_messages, "NamedTemporaryFile", in_folder)  # noqa: B010 - it is a name that they import
        self._entity = entity = AE(config.ae_title)
        entity.require_called_aet = True
        entity.require_calling_aet = [peer.ae_title for peer in config.peers]
        entity.maximum_associations = config.limits.connections
        entity.maximum_pdu_size = PDU_BYTES
        entity.network_timeout, entity.acse_timeout, entity.dimse_timeout = NETWORK_S, ACSE_S, DIMSE_S
        entity.add_supported_context(Verification)
        for context in AllStoragePresentationContexts:
            entity.add_supported_context(str(context.abstract_syntax), list(SYNTAXES))
        if any(one.commitment for one in config.destinations):
            # Here the caller is the provider, which it has to negotiate.
            entity.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
        handlers = [
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_ESTABLISHED, self._established),
            (evt.EVT_CONN_CLOSE, self._closed),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_ECHO, self._echo),
            (evt.EVT_N_EVENT_REPORT, self._committed),
        ]
        try:
            self._server = entity.make_server(
                self.address,
                evt_handlers=handlers,  # type: ignore[arg-type]
                ssl_context=None if config.tls is None else config.tls.context(server=True),
                server_class=_Server,
                node=config,
                journal=journal,
            )
        except OSError as error:
            raise InputError(
                f"port {config.port} at {config.bind} cannot be listened at ({error.strerror or error}); choose "
                "another port in the node's file"
            ) from error
        entity._servers.append(self._server)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="dicom", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that is listened at."""
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Take no more connections, and end those that are open."""
        self._entity.shutdown()
        self._thread.join(5)

    def prune(self) -> None:
        """Let go of associations that ended without a word."""
        self.arrivals.end_others({id(one) for one in self._server.active_associations})

    def _requested(self, event: Event) -> None:
        asking: Any = event.assoc.requestor
        title, address = str(asking.primitive.calling_ae_title).strip(), asking.address
        if not _is_listed(self.config, address, title):
            self.journal.say(
                "association rejected", "warning", address=address, why="no peer of this title and address"
            )
            event.assoc.acse.send_reject(*CALLER_UNKNOWN)

    def _established(self, event: Event) -> None:
        self.arrivals.begin(id(event.assoc))

    def _closed(self, event: Event) -> None:
        association = event.assoc
        # What had come of an object when the connection broke, and objects that nobody will ask for any more.
        left = [getattr(association.dimse.message, "_data_set_file", None)]
        left += [getattr(one, "_dataset_file", None) for _, one in list(association.dimse.msg_queue.queue)]
        for file in left:
            if file is not None:
                with suppress(OSError):
                    file.close()
                    Path(file.name).unlink()
        self.arrivals.end(id(association))

    def _echo(self, event: Any) -> int:
        event.assoc.dul.socket.read_bytes = 0
        return SUCCESS

    def _committed(self, event: Any) -> tuple[int, None]:
        event.assoc.dul.socket.read_bytes = 0
        try:
            return self.commitments.answer(event.request.EventTypeID, event.event_information), None
        except Exception as error:  # what a peer says may be damaged; it is asked again
            self.journal.say("commitment refused", "warning", why=told(error))
            return INVALID_ARGUMENT, None

    def _store(self, event: Any) -> int:
        event.assoc.dul.socket.read_bytes = 0
        sender = str(event.assoc.requestor.ae_title).strip()
        try:
            self.arrivals.take(
                event.dataset_path, sender, id(event.assoc), sop_uid=str(event.request.AffectedSOPInstanceUID)
            )
        except Unwanted:
            return SUCCESS  # nothing is wrong with it, and the sender need not try again
        except NoRoom as error:
            self.journal.say("object refused", "warning", sender=sender, why=str(error))
            return OUT_OF_RESOURCES
        except Unreadable as error:
            self.journal.say("object refused", "warning", sender=sender, why=str(error))
            return MISMATCH if "announced" in str(error) else CANNOT_UNDERSTAND
        except Exception as error:  # the disk may be full, or gone; the sender keeps the object and tries again
            self.journal.say("object refused", "error", sender=sender, why=told(error))
            return OUT_OF_RESOURCES
        return SUCCESS


def _is_listed(config: NodeConfig, address: str, title: str | None = None) -> bool:
    """Tell whether a caller is one of the peers, by address and, where it is known, by title."""
    if not config.peers:
        return True  # the loopback alone is listened at
    number = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(number, ipaddress.IPv6Address) and number.ipv4_mapped is not None:
        number = number.ipv4_mapped
    return any(
        title in (None, peer.ae_title) and any(number in network for network in peer.addresses)
        for peer in config.peers
    )


def _in_words(error: BaseException | None) -> str:
    """Return why a handshake failed: whose certificate has run out, say, or is not known."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the peer's certificate is not accepted ({error.verify_message})"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()  # such as an alert of the peer, which refuses the node's
    if isinstance(error, TimeoutError):
        return f"it took more than {HANDSHAKE_S} s"
    return getattr(error, "strerror", None) or type(error).__name__


def _be_quiet() -> None:
    """Keep libraries from logging what they read: it may name a patient."""
    _config.LOG_HANDLER_LEVEL = "none"
    for name in ("pynetdicom", "pydicom"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [logging.NullHandler()]
        logger.propagate = False
        logger.setLevel(logging.CRITICAL + 1)
