"""What stands before an application that a browser on this machine opens: whose requests are let through.

A token in the address is exchanged for a cookie that scripts cannot read and that other sites' requests do not
carry. The Host of a request must be one of the application's own, so that no name that is made to point here can
be used; a request that changes something must come from one of the application's pages. Answers carry headers that
keep pages from loading or telling anything elsewhere.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from metricunet.errors import InputError, told

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
#: Status, text, and headers beside those that every answer has.
Answer = tuple[int, str, list[tuple[bytes, bytes]]]

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
METHODS = ("GET", "HEAD", "POST")
#: Browsers leave it out of the addresses that they ask.
HTTP_PORT = 80
#: Sent by the browser itself from within the page, so that the strict cookie goes with it.
ENTERED = (
    '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url=/">'
    '<link rel="icon" href="data:,"><title>review</title>'
)


class Guarded(ABC):
    """Stands before an ASGI application. Who may ask what, `answer_instead` says.

    Args:
        app: the application.
        port: that it is served at, on this machine's loopback.
        cookie: beginning of the cookie's name; cookies of one host are shared by its ports, so the port is added.
        outside: origin of the pages as browsers elsewhere know them, such as a proxy's; None for none.
        host: by which browsers on this machine know the pages beside 127.0.0.1 and localhost; None for none.

    Attributes:
        cookie: name of the cookie.
    """

    def __init__(
        self, app: App, port: int, cookie: str, outside: str | None = None, host: str | None = None
    ) -> None:
        self.app = app
        self.cookie = f"{cookie}-{port}"
        self._session = secrets.token_urlsafe(32)
        self._outside = outside
        names = {"127.0.0.1", "localhost", *([] if host is None else [host.lower()])}
        self._hosts = {f"{name}:{port}" for name in names}
        if port == HTTP_PORT:
            self._hosts |= names
        if outside is not None:
            self._hosts.add(urlsplit(outside).netloc.lower())

    @abstractmethod
    def answer_instead(self, scope: Scope, headers: Mapping[str, str]) -> Answer | None:
        """Return what a request gets in place of the application; None for one that may pass.

        Args:
            scope: of the request.
            headers: of the request; of one that stands there twice, the last.
        """

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
                message["headers"] = [*message.get("headers", []), *_guarding()]
            await send(message)

        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            answer = self.answer_instead(scope, headers)
            if answer is None:
                await self.app(scope, receive, send_with_headers)
            else:
                await _say(send, answer)
        except Exception as error:  # whatever it is, the asker is told in one line, and the server goes on
            if not started:
                await _say(send, (400 if isinstance(error, InputError) else 500, told(error), []))

    def comes_to_another_host(self, headers: Mapping[str, str]) -> bool:
        """Tell whether a request names a host that is none of the application's."""
        return headers.get("host", "").lower() not in self._hosts

    def comes_from_another_site(self, scope: Scope, headers: Mapping[str, str]) -> bool:
        """Tell whether a request was caused by a page of another site, or changes something and does not say."""
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and scope["path"] != "/":
            return True
        own: Collection[str | None] = (f"http://{headers.get('host', '').lower()}", self._outside or "")
        return scope["method"] == "POST" and (headers.get("origin") or None) not in own

    def knows(self, headers: Mapping[str, str]) -> bool:
        """Tell whether a request carries the cookie."""
        # Other servers of this machine may set cookies that are against the rules, and they come along with ours.
        pairs = (part.strip().partition("=") for part in headers.get("cookie", "").split(";"))
        return any(name == self.cookie and equal(value, self._session) for name, _, value in pairs)

    def entered(self) -> Answer:
        """Return the answer that gives a browser the cookie."""
        value = f"{self.cookie}={self._session}; Path=/; HttpOnly; SameSite=Strict"
        kind = (b"content-type", b"text/html; charset=utf-8")
        return 200, ENTERED, [(b"set-cookie", value.encode()), kind]


def given_token(scope: Scope) -> str:
    """Return the token that a request for the first page carries in its address; empty where it carries none."""
    if scope["method"] != "GET" or scope["path"] != "/":
        return ""
    query: str = scope["query_string"].decode("latin-1")
    return parse_qs(query).get("token", [""])[0]


def equal(given: str, secret: str) -> bool:
    """Compare what somebody says a secret is with the secret, in a time that tells nothing of it.

    Args:
        given: what was said; nothing is never the secret.
        secret: the secret.
    """
    return bool(given) and secrets.compare_digest(given.encode("utf-8", "surrogatepass"), secret.encode())


def _guarding() -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in HEADERS.items()]


async def _say(send: Send, answer: Answer) -> None:
    status, text, more = answer
    body = text.encode()
    headers = [*_guarding(), (b"content-length", str(len(body)).encode())]
    headers += more or [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
