"""The web server of a review: its pages, and the few addresses that they ask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from metricunet.errors import InputError, told
from metricunet.inference.page.script import STATIC as SHARED_STATIC
from metricunet.ledger.table import csv_lines, read_rows
from metricunet.workflows.review.decide import MeanwhileReviewed, PredictedAnew, Verdict
from metricunet.workflows.review.desk import Desk
from metricunet.workflows.review.ledger_page import render_ledger, render_no_ledger

STATIC = Path(__file__).with_name("static")
#: These are also in the page that `predict --page` writes.
SHARED = ("base.css", "viewer.js", "paint.js", "niivue.js", "niivue.LICENSE.txt")
#: Every file that is served, with its type. Nothing else in any folder can be asked for.
PAGES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "review.js": ("review.js", "text/javascript; charset=utf-8"),
    "viewer.js": ("viewer.js", "text/javascript; charset=utf-8"),
    "paint.js": ("paint.js", "text/javascript; charset=utf-8"),
    "base.css": ("base.css", "text/css; charset=utf-8"),
    "review.css": ("review.css", "text/css; charset=utf-8"),
    "ledger.css": ("ledger.css", "text/css; charset=utf-8"),
    "niivue.js": ("niivue.js", "text/javascript; charset=utf-8"),
    "niivue.LICENSE.txt": ("niivue.LICENSE.txt", "text/plain; charset=utf-8"),
}
#: The table of the ledger is saved, not shown.
AS_FILE = {"content-disposition": 'attachment; filename="ledger.csv"'}
#: A decision's fields, as JSON, take no more bytes than this; its mask follows them.
MOST_FIELD_BYTES = 64 * 1024
#: The length of the fields, little-endian, comes first.
LENGTH_BYTES = 4


class Said(JSONResponse):
    """JSON in which the bytes of a file's name that are no text are question marks."""

    def render(self, content: Any) -> bytes:
        """Return the bytes of the answer."""
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "replace")


def create_app(desk: Desk) -> FastAPI:
    """Return the application that serves a folder under review. It must stand behind a `Guard`."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(Exception, _failed)
    app.add_exception_handler(InputError, _refused)
    app.add_exception_handler(PredictedAnew, _predicted_anew)
    app.add_exception_handler(RequestValidationError, _misunderstood)
    app.add_exception_handler(HTTPException, _not_there)

    @app.get("/api/cases")
    def cases() -> JSONResponse:
        return Said(desk.cases())

    @app.get("/api/cases/{name}")
    def case(name: str, review: int | None = None) -> JSONResponse:
        return Said(desk.case(name, review))

    @app.get("/api/cases/{name}/scan")
    def scan(name: str, start: str, shape: str, prediction: str | None = None) -> Response:
        return _bytes(desk.scan(name, _three(start), _three(shape), prediction))

    @app.get("/api/cases/{name}/mask")
    def mask(name: str, review: int, start: str, shape: str, prediction: str | None = None) -> Response:
        return _bytes(desk.mask(name, review, _three(start), _three(shape), prediction))

    @app.post("/api/cases/{name}/reviews")
    async def decide(name: str, request: Request) -> JSONResponse:
        most = LENGTH_BYTES + MOST_FIELD_BYTES + await run_in_threadpool(desk.voxels, name)
        body = await _body(request, most)
        fields, labels = _parted(body)
        verdict, start, shape = _understood(fields)
        try:
            return Said(await run_in_threadpool(desk.decide, name, verdict, start, shape, labels))
        except MeanwhileReviewed as error:
            content = {
                "error": str(error),
                "latest": error.review.number,
                "has_mask": error.review.mask is not None,
            }
            return Said(content, status_code=409)

    @app.get("/ledger")
    def ledger(request: Request) -> Response:
        status = 200
        try:
            html = render_ledger(desk.ledger(), request.query_params)
        except InputError as error:  # said on a page, for it is one that was asked for
            html, status = render_no_ledger(told(error)), 400
        return Response(html, status, media_type="text/html; charset=utf-8")

    @app.get("/ledger.csv")
    def ledger_csv() -> Response:
        text = "".join(csv_lines(read_rows(desk.ledger())))
        return Response(text, media_type="text/csv; charset=utf-8", headers=AS_FILE)

    @app.get("/{file}")
    def page(file: str) -> Response:
        return _page(file)

    @app.get("/")
    def first() -> Response:
        return _page("")

    return app


def _page(file: str) -> Response:
    if file not in PAGES:
        raise HTTPException(404)
    name, kind = PAGES[file]
    folder = SHARED_STATIC if name in SHARED else STATIC
    return Response((folder / name).read_bytes(), media_type=kind)


async def _body(request: Request, most: int) -> bytes:
    """Read what a request carries, and no more than is allowed."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise HTTPException(413, f"the request has more than {most} bytes")
        parts.append(part)
    return b"".join(parts)


def _parted(body: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(body[:LENGTH_BYTES], "little")
    end = LENGTH_BYTES + length
    if length > MOST_FIELD_BYTES or len(body) < end:
        raise InputError("the request is cut off, or is none of the review's pages")
    try:
        fields = json.loads(body[LENGTH_BYTES:end])
    except (ValueError, RecursionError) as error:
        raise InputError("the request's fields are no JSON") from error
    if not isinstance(fields, dict):
        raise InputError("the request's fields are no table")
    return fields, body[end:]


def _understood(fields: dict[str, Any]) -> tuple[Verdict, tuple[int, ...], tuple[int, ...]]:
    kinds: dict[str, Any] = {"rejected": bool, "reason": str, "reviewer": str, "seconds": int | float}
    kinds |= {"based_on": int, "latest": int, "beside": bool, "prediction": str, "start": list, "shape": list}
    for name, kind in kinds.items():
        value = fields.get(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise InputError(f"the request's field {name} is {str(value)[:50]!r}")
    start, shape = (fields.pop(name) for name in ("start", "shape"))
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in [*start, *shape]):
        raise InputError("the request's field is not given in whole voxels")
    return Verdict(**{name: fields[name] for name in kinds if name in fields}), tuple(start), tuple(shape)


def _three(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.isascii() and part.isdecimal() and len(part) < 8 for part in parts):
        raise InputError("a field is given as three whole numbers, such as 0,0,0")
    return tuple(int(part) for part in parts)


def _bytes(content: bytes) -> Response:
    return Response(content, media_type="application/octet-stream")


def _refused(request: Request, error: Exception) -> Response:
    return Said({"error": told(error)}, status_code=400)


def _predicted_anew(request: Request, error: Exception) -> Response:
    return Said({"error": told(error), "predicted_anew": True}, status_code=409)


def _failed(request: Request, error: Exception) -> Response:
    return Said({"error": told(error)}, status_code=500)


def _misunderstood(request: Request, error: Exception) -> Response:
    return Said({"error": "the request is none of the review's pages"}, status_code=400)


def _not_there(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    words = str(error.detail) if isinstance(error, HTTPException) else "not found"
    return Said({"error": words}, status_code=status)
