"""The node's web server: review pages over its cases, its queue, STOW-RS, metrics and health."""

from __future__ import annotations

import asyncio
import html
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from metricunet.errors import InputError, told
from metricunet.ledger import Delivery, Job, StateChanged
from metricunet.ledger.job import SENT_AGAIN, TRIED_NOW
from metricunet.ledger.job import State as JobState
from metricunet.workflows.review.decide import Verdict
from metricunet.workflows.review.desk import Desk
from metricunet.workflows.review.recording import Recorder
from metricunet.workflows.review.scans import Scans
from metricunet.workflows.review.server import create_app
from metricunet.workflows.serve.arrivals import Instance, NoRoom, NotTaken, Unwanted, instance_of
from metricunet.workflows.serve.config import MB, NodeConfig, Web
from metricunet.workflows.serve.gate import ROLES, USER, Gate
from metricunet.workflows.serve.multipart import Parts, TooLarge, boundary_of
from metricunet.workflows.serve.node import Node

#: Requests that are answered at a time; others are told to come later.
MOST_REQUESTS = 64
#: Objects of which nothing comes for so long are not waited for, as in an association.
SILENCE_S = 60.0
#: Jobs on the page of the queue: the last ones, and of those before them all that somebody may wait for.
MOST_SHOWN = 500
LEFT_OUT: tuple[JobState, ...] = ("sent", "kept", "rejected", "refused")
#: Objects of a request. A study may have many series, of each of which `limits.slices` are taken.
MOST_PARTS = 100_000
SENDER = "stow"
SCRIPT = Path(__file__).with_name("static") / "node.js"
#: States of a case in which the pages offer to segment it once more.
SEGMENTED_AGAIN: tuple[JobState, ...] = ("refused", "failed", "set aside")
CANNOT_UNDERSTAND, OUT_OF_RESOURCES = 0xC000, 0xA700
#: Elements of an answer to STOW-RS, and of their items. What failed and is not known by name is among the others.
_REFERENCED, _FAILED, _OTHERS_FAILED = "00081199", "00081198", "0008119A"
_SOP_CLASS, _SOP_UID, _RETRIEVE_URL, _REASON = "00081150", "00081155", "00081190", "00081197"


class NodeDesk(Desk):
    """The desk of reviews over a node's cases: who looks and decides is who the gate knows, and is noted.

    Args:
        node: the node.
    """

    def __init__(self, node: Node) -> None:
        super().__init__(node.state.predictions, Scans(None), "", Recorder(node.state.ledger), empty=True)
        self.node = node

    def cases(self) -> dict[str, Any]:
        """Return all cases, with the user's name for the reviewer's."""
        return {**super().cases(), "reviewer": USER.get(), "knows_reviewer": True}

    def case(self, name: str, review: int | None = None) -> dict[str, Any]:
        """Return what the page shows of a case, and note who saw it."""
        found = super().case(name, review)
        job = job_of(self.node, name)
        self.node.queue.note(USER.get(), "saw", job_id=None if job is None else job.id)
        return found

    def decide(
        self, name: str, verdict: Verdict, start: tuple[int, ...], shape: tuple[int, ...], mask: bytes
    ) -> dict[str, Any]:
        """Write what the user decided, under the user's own name, and note it."""
        found = super().decide(name, replace(verdict, reviewer=USER.get()), start, shape, mask)
        job = job_of(self.node, name)
        decision = str(found["decision"])
        self.node.queue.note(USER.get(), "decided", job_id=None if job is None else job.id, detail=decision)
        return found


def job_of(node: Node, case: str) -> Job | None:
    """Return the job of a case; None where the ledger has none."""
    return node.queue.of_folder(f"{node.state.scans.name}/{case}")


def create_node_app(node: Node) -> FastAPI:
    """Return the application of a node. It must stand behind a `Gate`."""
    outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    outer.add_exception_handler(InputError, _refused)

    @outer.get("/health")
    def health() -> JSONResponse:
        missing = [worker.device for worker in node.workers if not worker.is_up]
        content = {"status": f"no worker for {missing[0]}" if missing else "ok"}
        return JSONResponse(content, status_code=503 if missing else 200)

    @outer.get("/metrics")
    def metrics() -> Response:
        return Response(
            "".join(f"{line}\n" for line in metric_lines(node)), media_type="text/plain; version=0.0.4"
        )

    @outer.post("/studies")
    async def stow(request: Request) -> Response:
        return await _take(node, request, None)

    @outer.post("/studies/{study}")
    async def stow_study(request: Request, study: str) -> Response:
        return await _take(node, request, study)

    @outer.get("/node")
    def queue_page() -> Response:
        return Response(queue_html(node, "send" in ROLES.get()), media_type="text/html; charset=utf-8")

    @outer.get("/node.js")
    def queue_script() -> Response:
        return Response(SCRIPT.read_bytes(), media_type="text/javascript; charset=utf-8")

    @outer.post("/api/node/{case}/send")
    def send(case: str) -> JSONResponse:
        return _moved(node, case, "send")

    @outer.post("/api/node/{case}/again")
    def again(case: str) -> JSONResponse:
        return _moved(node, case, "again")

    @outer.post("/api/node/{case}/deliveries/{number}")
    def retry(case: str, number: int) -> JSONResponse:
        return _retried(node, case, number)

    outer.mount("/", create_app(NodeDesk(node)))
    return outer


def metric_lines(node: Node) -> Iterator[str]:
    """Yield what Prometheus reads of a node; nothing of a case."""
    yield "# TYPE metricunet_jobs gauge"
    for state, count in node.queue.counts().items():
        yield f'metricunet_jobs{{state="{state}"}} {count}'
    yield "# TYPE metricunet_undelivered gauge"
    for one in node.config.destinations:
        yield f'metricunet_undelivered{{destination="{one.name}"}} {node.queue.undelivered(one.name)}'
    yield "# TYPE metricunet_worker_up gauge"
    for worker in node.workers:
        yield f'metricunet_worker_up{{device="{worker.device}"}} {int(worker.is_up)}'
    yield "# TYPE metricunet_worker_restarts_total counter"
    for worker in node.workers:
        yield f'metricunet_worker_restarts_total{{device="{worker.device}"}} {worker.restarts}'
    for name, kind, value in (
        ("arriving_series", "gauge", node.arrivals.arriving),
        ("associations", "gauge", node.arrivals.connections),
        ("free_disk_bytes", "gauge", node.state.free_bytes()),
        ("notices_total", "counter", node.notices.raised),
        ("start_time_seconds", "gauge", round(node.began)),
    ):
        yield f"# TYPE metricunet_{name} {kind}"
        yield f"metricunet_{name} {value}"


def queue_html(node: Node, may_send: bool) -> str:
    """Return the page of the queue: the last jobs and all that somebody may wait for, with what is to be sent.

    Args:
        node: the node.
        may_send: whether it has the buttons to send and to try again.
    """
    rows = []
    jobs = node.queue.jobs()
    shown = [*(job for job in jobs[:-MOST_SHOWN] if job.state not in LEFT_OUT), *jobs[-MOST_SHOWN:]]
    for job in reversed(shown):
        deliveries = node.queue.deliveries(job.id)
        received = job.created[:19].replace("T", " ")
        cells = (received, Path(job.folder).name, job.sender, job.files, job.state, job.why)
        row = "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells)
        row += f"<td>{'<br>'.join(_sent_html(job, one, may_send) for one in deliveries)}</td>"
        if may_send:
            row += f"<td>{_wishes_html(job, deliveries)}</td>"
        rows.append(row)
    heads = "".join(
        f"<th>{head}</th>" for head in ("received (UTC)", "case", "from", "slices", "state", "why", "sent")
    )
    heads += "<th></th>" * may_send
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    hidden = len(jobs) - len(shown)
    left_out = f"<p>{hidden} older cases, {', '.join(LEFT_OUT)}, are left out.</p>" if hidden else ""
    style = (
        "body{font:14px sans-serif;margin:1em}table{border-collapse:collapse}"
        "td,th{padding:.4em .6em;text-align:left;vertical-align:top;border-bottom:1px solid #ccc}"
        "td:first-child,button{white-space:nowrap}button{margin:0 .3em .2em 0}"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Queue</title>'
        f'<link rel="icon" href="data:,"><style>{style}</style>'
        f'<h1>Queue</h1><p><a href="/">Review</a></p><p id="said" role="status"></p>'
        f"<table><tr>{heads}</tr>{body}</table>{left_out}"
        '<script src="/node.js"></script></html>'
    )


def _sent_html(job: Job, one: Delivery, may_send: bool) -> str:
    """Return what became of a delivery, with a button where it is put off or was given up."""
    error = f" ({one.error})" if one.error else ""
    words = html.escape(f"{one.kind} to {one.destination}: {one.state}{error}")
    if may_send and job.state in TRIED_NOW and one.state in ("waiting", "stored", "failed"):
        words += f" {_button(job, f'deliveries/{one.id}', 'try now')}"
    return words


def _wishes_html(job: Job, deliveries: Sequence[Delivery]) -> str:
    buttons = []
    if job.state in SENT_AGAIN and any(one.state != "dropped" for one in deliveries):
        buttons.append(_button(job, "send", "send again"))
    if job.state in SEGMENTED_AGAIN:
        buttons.append(_button(job, "again", "segment again"))
    return " ".join(buttons)


def _button(job: Job, wish: str, words: str) -> str:
    address = html.escape(f"/api/node/{Path(job.folder).name}/{wish}")
    return f'<button type="button" data-post="{address}" disabled>{words}</button>'  # until the script hears it


def _refused(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": told(error)}, status_code=400)


def _known(node: Node, case: str) -> Job:
    job = job_of(node, case)
    if job is None:
        raise InputError(f"no case {case!r} in this node")
    return job


def _retried(node: Node, case: str, number: int) -> JSONResponse:
    job = _known(node, case)
    if number not in [one.id for one in node.queue.deliveries(job.id)]:
        raise InputError(f"case {case} has no delivery {number}")
    try:
        delivery = node.queue.retry(number, USER.get())
    except StateChanged as error:
        return JSONResponse({"error": str(error)}, status_code=409)
    node.wake_senders()
    return JSONResponse({"case": case, "delivery": number, "state": delivery.state})


def _moved(node: Node, case: str, wish: str) -> JSONResponse:
    job = _known(node, case)
    try:
        change = node.queue.send_again if wish == "send" else node.queue.again
        job = change(job.id, USER.get())
    except StateChanged as error:
        return JSONResponse({"error": str(error)}, status_code=409)
    node.wake_senders()
    return JSONResponse({"case": case, "state": job.state})


async def _take(node: Node, request: Request, study: str | None) -> Response:
    """Take the objects of a STOW-RS request, each as it comes."""
    limits = node.config.limits
    boundary = boundary_of(request.headers.get("content-type", ""))
    parts = Parts(boundary, node.state.receiving, int(limits.object_mb * MB), MOST_PARTS)
    origin = uuid4().hex
    answers: list[tuple[Instance | None, int]] = []
    node.arrivals.begin(origin, ends_itself=True)
    try:
        await run_in_threadpool(node.arrivals.check_room)
        async for chunk in _chunks(request):
            for path in parts.feed(chunk):
                answers.append(await run_in_threadpool(_take_part, node, path, origin, study))
        if not parts.ended:
            raise InputError("the body breaks off")
    except NoRoom as error:
        return JSONResponse({"error": str(error)}, status_code=503)
    except TooLarge as error:
        return JSONResponse({"error": str(error)}, status_code=413)
    except InputError as error:
        return JSONResponse({"error": told(error)}, status_code=400)
    except OSError as error:  # the disk may be full, or gone; the sender keeps the objects and tries again
        node.journal.say("object refused", "error", sender=SENDER, why=told(error))
        return JSONResponse({"error": "the disk is full or fails; try again later"}, status_code=503)
    finally:
        parts.close()
        node.arrivals.end(origin)
    failed = sum(status != 0 for _, status in answers)
    status = 200 if not failed else 409 if failed == len(answers) else 202
    return JSONResponse(_answer(answers), status_code=status, media_type="application/dicom+json")


def _answer(answers: Sequence[tuple[Instance | None, int]]) -> dict[str, Any]:
    """Return what a sender is told of its objects, each by its UID: which are well, and which are not."""
    items: dict[str, list[dict[str, Any]]] = {}
    for instance, status in answers:
        item: dict[str, Any] = {}
        if instance is not None:
            item[_SOP_CLASS] = {"vr": "UI", "Value": [instance.sop_class]}
            item[_SOP_UID] = {"vr": "UI", "Value": [instance.sop_uid]}
        if status:
            item[_REASON] = {"vr": "US", "Value": [status]}
            sequence = _OTHERS_FAILED if instance is None else _FAILED
        else:
            item[_RETRIEVE_URL] = {"vr": "UR"}  # empty, for nothing is given back
            sequence = _REFERENCED
        items.setdefault(sequence, []).append(item)
    return {tag: {"vr": "SQ", "Value": found} for tag, found in items.items()}


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    """Yield a body as it comes.

    Raises:
        InputError: nothing came for too long.
    """
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(SILENCE_S):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise InputError(f"nothing of the body came for {SILENCE_S:g} s") from error
        yield chunk


def _take_part(node: Node, path: Path, origin: str, study: str | None) -> tuple[Instance | None, int]:
    """Take one object, and return which it is and DICOM's word for what became of it; 0 where it is well."""
    try:
        return node.arrivals.take(path, SENDER, origin, study_uid=study), 0
    except Unwanted:
        return instance_of(path), 0
    except NoRoom:
        return instance_of(path), OUT_OF_RESOURCES
    except NotTaken:
        return instance_of(path), CANNOT_UNDERSTAND
    except (InputError, OSError) as error:
        node.journal.say("object refused", "error", sender=SENDER, why=told(error))
        return instance_of(path), OUT_OF_RESOURCES
    finally:
        path.unlink(missing_ok=True)


def address_of(web: Web, port: int, state: Path) -> str:
    """Return what a person opens to see the pages, and how to be let in.

    Args:
        web: the settings.
        port: that is listened at.
        state: folder of the node, where the token lies.
    """
    if web.bind.is_loopback or web.proxy is None:
        return f"http://{web.host}:{port}/?token=..., with the token in {state}/pages.token"
    return f"{web.proxy.origin}/, for the users whom the proxy names"


class WebServer:
    """Serves a node's pages in a thread of its own.

    Args:
        node: the node.
        config: of the node.

    Raises:
        InputError: the port is taken.
    """

    def __init__(self, node: Node, config: NodeConfig) -> None:
        web = config.web
        assert web is not None
        family = socket.AF_INET6 if web.bind.version == 6 else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((str(web.bind), web.port))
            self._socket.listen(128)
        except OSError as error:
            self._socket.close()
            raise InputError(
                f"port {web.port} at {web.bind} cannot be listened at ({error.strerror or error}); choose another "
                "web.port in the node's file"
            ) from error
        self.port = int(self._socket.getsockname()[1])
        self.address = address_of(web, self.port, node.state.folder)
        self.gate = Gate(create_node_app(node), web, self.port, node.state, node.journal)
        settings = uvicorn.Config(
            self.gate,
            access_log=False,
            log_config=None,
            server_header=False,
            # Who asks is seen from the connection alone; a header that says otherwise counts for nothing.
            proxy_headers=False,
            ws="none",
            lifespan="off",
            limit_concurrency=MOST_REQUESTS,
        )
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="web", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Answer no more."""
        self._server.should_exit = True
        self._thread.join(5)
        self._socket.close()
