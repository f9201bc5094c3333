"""Who may talk to the pages: a browser on this machine that has opened the address with the token, nobody else.

The token in the address works once. It is exchanged for a cookie that scripts cannot read and that other sites'
requests do not carry. The Host of a request must be this machine's own, so that no name that is made to point here
can be used; a request that changes something must come from one of the pages.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from metricunet.errors import InputError, told

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
#: Sent by the browser itself from within the page, so that the strict cookie goes with it.
ENTERED = (
    '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url=/">'
    '<link rel="icon" href="data:,"><title>review</title>'
)


class Guard:
    """Stands before an ASGI application.

    Args:
        app: the application.
        port: that it is served at.

    Attributes:
        token: to be given once, as `/?token=...`.
        cookie: name of the cookie; cookies of one host are shared by its ports, so it has the port's number.
    """

    def __init__(self, app: App, port: int) -> None:
        self.app, self.port = app, port
        self.token = secrets.token_urlsafe(32)
        self.cookie = f"metricunet-review-{port}"
        self._session = secrets.token_urlsafe(32)
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self._lock = threading.Lock()
        self._used = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        started = False

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", []), *_headers()]
            await send(message)

        try:
            answer = self._refusal(scope)
            if answer is None:
                await self.app(scope, receive, send_with_headers)
            else:
                await _answer(send, *answer)
        except Exception as error:  # whatever it is, the user is told in one line, and the server goes on
            if not started:
                await _answer(send, 400 if isinstance(error, InputError) else 500, told(error))

    def _refusal(self, scope: Scope) -> tuple[int, str] | tuple[int, str, list[tuple[bytes, bytes]]] | None:
        """Return what a request gets in place of the application; None for one that may pass."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "").lower()
        if host not in self._hosts:
            return 421, "This address is not the review's."
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, "This method is not known."
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and scope["path"] != "/":
            return 403, "Requests of other sites are refused."
        if scope["method"] == "POST" and headers.get("origin") != f"http://{host}":
            return 403, "Requests of other sites are refused."
        if self._knows(headers.get("cookie", "")):
            return None
        token = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["method"] == "GET" and scope["path"] == "/" and self._takes(token):
            value = f"{self.cookie}={self._session}; Path=/; HttpOnly; SameSite=Strict"
            return 200, ENTERED, [(b"set-cookie", value.encode()), (b"content-type", b"text/html; charset=utf-8")]
        return 401, (
            "Open the address that metricunet review has printed. It works once, in one browser; "
            "to use another one, start metricunet review again."
        )

    def _knows(self, cookies: str) -> bool:
        try:
            found = SimpleCookie(cookies).get(self.cookie)
        except CookieError:
            return False
        return found is not None and secrets.compare_digest(found.value.encode(), self._session.encode())

    def _takes(self, token: str) -> bool:
        with self._lock:
            if self._used or not secrets.compare_digest(token.encode(), self.token.encode()):
                return False
            self._used = True
            return True


def _headers() -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in HEADERS.items()]


async def _answer(send: Send, status: int, text: str, more: list[tuple[bytes, bytes]] | None = None) -> None:
    body = text.encode()
    headers = [*_headers(), (b"content-length", str(len(body)).encode())]
    headers += more or [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
