"""Who may ask the node's web server what.

Pages: a user whom the proxy names, if the request comes from the proxy's own address; or a browser that has opened
the address with the token of the node's folder, which counts as every role. STOW-RS and metrics: a bearer token of
their own. Health: anybody who reaches the port; it tells nothing of cases.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from http.cookies import CookieError, SimpleCookie
from typing import Any, get_args
from urllib.parse import parse_qs, urlsplit

from metricunet.errors import InputError, told
from metricunet.workflows.review.guard import ENTERED, HEADERS
from metricunet.workflows.serve.config import Role, Web
from metricunet.workflows.serve.journal import Journal
from metricunet.workflows.serve.state import State

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Answer = tuple[int, str, list[tuple[bytes, bytes]]]

#: Who asks, while a request is answered.
USER: ContextVar[str] = ContextVar("user", default="")
#: The user of the token in the node's folder.
LOCAL = "local"
ROLES: tuple[Role, ...] = get_args(Role)
_DECIDE = re.compile(r"/api/cases/[^/]+/reviews")
_SEND = re.compile(r"/api/node/[^/]+/(?:send|again)")
_STOW = re.compile(r"/studies(?:/[0-9.]{1,64})?/?")


class Gate:
    """Stands before the application.

    Args:
        app: the application.
        web: the settings.
        port: that it is served at.
        state: folder of the node, where the tokens lie.
        journal: is told of those who are refused.
    """

    def __init__(self, app: App, web: Web, port: int, state: State, journal: Journal) -> None:
        self.app, self.web, self.journal = app, web, journal
        self.tokens = {name: state.token(name) for name in ("pages", "stow", "metrics")}
        self.cookie = f"metricunet-node-{port}"
        self._session = secrets.token_urlsafe(32)
        self._origins = {f"http://127.0.0.1:{port}", f"http://localhost:{port}"}
        if web.proxy is not None:
            self._origins.add(web.proxy.origin)
        self._hosts = {urlsplit(origin).netloc.lower() for origin in self._origins}

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
            answer = self._answer(scope)
            if answer is None:
                await self.app(scope, receive, send_with_headers)
            else:
                await _say(send, *answer)
        except Exception as error:  # whatever it is, the asker is told in one line, and the server goes on
            if not started:
                await _say(send, 400 if isinstance(error, InputError) else 500, told(error), [])

    def _answer(self, scope: Scope) -> Answer | None:
        """Return what a request gets in place of the application; None for one that may pass."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path, method = scope["path"], scope["method"]
        if method not in ("GET", "HEAD", "POST"):
            return 405, "This method is not known.", []
        if path == "/health":
            return None
        if path == "/metrics":
            return None if self._bears(headers, "metrics") else self._refused(scope, 401, "a token for metrics")
        if path.startswith("/studies"):
            if method != "POST" or not _STOW.fullmatch(path) or not self.web.stow:
                return 404, "Only objects are taken here, by POST to /studies.", []
            return None if self._bears(headers, "stow") else self._refused(scope, 401, "a token for STOW-RS")
        return self._page(scope, headers)

    def _page(self, scope: Scope, headers: dict[str, str]) -> Answer | None:
        path, method = scope["path"], scope["method"]
        if headers.get("host", "").lower() not in self._hosts:
            return self._refused(scope, 421, "an address of the node's own")
        foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and path != "/"
        if foreign or (method == "POST" and headers.get("origin") not in self._origins):
            return self._refused(scope, 403, "a request of the node's own pages")
        user, roles = self._user(scope, headers)
        if not user:
            token = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
            if method == "GET" and path == "/" and _equal(token, self.tokens["pages"]):
                value = f"{self.cookie}={self._session}; Path=/; HttpOnly; SameSite=Strict"
                kind = (b"content-type", b"text/html; charset=utf-8")
                return 200, ENTERED, [(b"set-cookie", value.encode()), kind]
            return self._refused(scope, 401, "a user, or the token of the node's folder")
        needed: Role = "look"
        if method == "POST":
            needed = "send" if _SEND.fullmatch(path) else "decide"
            if needed == "decide" and not _DECIDE.fullmatch(path):
                return 404, "There is nothing to post to here.", []
        if needed not in roles:
            return self._refused(scope, 403, f"the role {needed}")
        USER.set(user)
        return None

    def _user(self, scope: Scope, headers: dict[str, str]) -> tuple[str, tuple[Role, ...]]:
        if self._knows(headers.get("cookie", "")) or self._bears(headers, "pages"):
            return LOCAL, ROLES
        proxy = self.web.proxy
        if proxy is None or not self._comes_from_proxy(scope):
            return "", ()
        named = [value for name, value in headers.items() if name == proxy.header.lower()]
        twice = sum(name.decode("latin-1") == proxy.header.lower() for name, _ in scope["headers"]) > 1
        found = next((user for user in self.web.users if named == [user.name] and not twice), None)
        return ("", ()) if found is None else (found.name, found.roles)

    def _comes_from_proxy(self, scope: Scope) -> bool:
        assert self.web.proxy is not None
        try:
            address = ipaddress.ip_address((scope.get("client") or ("",))[0])
        except ValueError:
            return False
        return address in self.web.proxy.addresses

    def _knows(self, cookies: str) -> bool:
        try:
            found = SimpleCookie(cookies).get(self.cookie)
        except CookieError:
            return False
        return found is not None and _equal(found.value, self._session)

    def _bears(self, headers: dict[str, str], name: str) -> bool:
        kind, _, token = headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and _equal(token.strip(), self.tokens[name])

    def _refused(self, scope: Scope, status: int, wanted: str) -> Answer:
        # The address asked for may name anything, so it is not logged.
        self.journal.say("request refused", "warning", address=(scope.get("client") or ("",))[0], status=status)
        return status, f"This needs {wanted}.", []


def _equal(one: str, other: str) -> bool:
    return secrets.compare_digest(one.encode("utf-8", "surrogatepass"), other.encode())


def _guarding() -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in HEADERS.items()]


async def _say(send: Send, status: int, text: str, more: list[tuple[bytes, bytes]]) -> None:
    body = text.encode()
    headers = [*_guarding(), (b"content-length", str(len(body)).encode())]
    headers += more or [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
