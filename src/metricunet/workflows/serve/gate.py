"""Who may ask the node's web server what.

Pages: a user whom the proxy names, if the request comes from the proxy's own address; or a browser that has opened
the address with the token of the node's folder, which counts as every role. STOW-RS and metrics: a bearer token of
their own. Health: anybody who reaches the port; it tells nothing of cases.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from contextvars import ContextVar
from typing import get_args

from metricunet.workflows.guarded import METHODS, Answer, App, Guarded, Scope, equal, given_token
from metricunet.workflows.serve.config import Role, Web
from metricunet.workflows.serve.journal import Journal
from metricunet.workflows.serve.state import State

ALL_ROLES: tuple[Role, ...] = get_args(Role)
#: Who asks, while a request is answered, and what that user may do.
USER: ContextVar[str] = ContextVar("user", default="")
ROLES: ContextVar[tuple[Role, ...]] = ContextVar("roles", default=())
#: The user of the token in the node's folder.
LOCAL = "local"
_DECIDE = re.compile(r"/api/cases/[^/]+/reviews")
_SEND = re.compile(r"/api/node/[^/]+/(?:send|again|deliveries/[0-9]{1,12})")
_STOW = re.compile(r"/studies(?:/[0-9.]{1,64})?/?")


class Gate(Guarded):
    """Stands before the application.

    Args:
        app: the application.
        web: the settings.
        port: that it is served at.
        state: folder of the node, where the tokens lie.
        journal: is told of those who are refused.
    """

    def __init__(self, app: App, web: Web, port: int, state: State, journal: Journal) -> None:
        outside = None if web.proxy is None else web.proxy.origin
        host = web.host if web.bind.is_loopback else None
        super().__init__(app, port, "metricunet-node", outside, host)
        self.web, self.journal = web, journal
        self.tokens = {name: state.token(name) for name in ("pages", "stow", "metrics")}

    def answer_instead(self, scope: Scope, headers: Mapping[str, str]) -> Answer | None:
        """Return what a request gets in place of the application; None for one that may pass."""
        path, method = scope["path"], scope["method"]
        if method not in METHODS:
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

    def _page(self, scope: Scope, headers: Mapping[str, str]) -> Answer | None:
        path, method = scope["path"], scope["method"]
        if self.comes_to_another_host(headers):
            return self._refused(scope, 421, "an address of the node's own")
        if self.comes_from_another_site(scope, headers):
            return self._refused(scope, 403, "a request of the node's own pages")
        user, roles = self._user(scope, headers)
        if not user:
            if equal(given_token(scope), self.tokens["pages"]):
                return self.entered()
            return self._refused(scope, 401, "a user, or the token of the node's folder")
        needed: Role = "look"
        if method == "POST":
            needed = "send" if _SEND.fullmatch(path) else "decide"
            if needed == "decide" and not _DECIDE.fullmatch(path):
                return 404, "There is nothing to post to here.", []
        if needed not in roles:
            return self._refused(scope, 403, f"the role {needed}")
        USER.set(user)
        ROLES.set(roles)
        return None

    def _user(self, scope: Scope, headers: Mapping[str, str]) -> tuple[str, tuple[Role, ...]]:
        if self.knows(headers) or self._bears(headers, "pages"):
            return LOCAL, ALL_ROLES
        proxy = self.web.proxy
        if proxy is None or not self._comes_from_proxy(scope):
            return "", ()
        # Of a header that stands there twice, one may be the browser's own.
        name = proxy.header.lower().encode("latin-1")
        named = [value for key, value in scope["headers"] if key == name]
        if len(named) != 1:
            return "", ()
        # Proxies write letters beyond ASCII as they have them, which is mostly UTF-8.
        readings = (named[0].decode("utf-8", "replace"), named[0].decode("latin-1"))
        found = next((user for user in self.web.users if user.name in readings), None)
        return ("", ()) if found is None else (found.name, found.roles)

    def _comes_from_proxy(self, scope: Scope) -> bool:
        assert self.web.proxy is not None
        try:
            address = ipaddress.ip_address((scope.get("client") or ("",))[0])
        except ValueError:
            return False
        return address in self.web.proxy.addresses

    def _bears(self, headers: Mapping[str, str], name: str) -> bool:
        kind, _, token = headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and equal(token.strip(), self.tokens[name])

    def _refused(self, scope: Scope, status: int, wanted: str) -> Answer:
        # The address asked for may name anything, so it is not logged.
        self.journal.say("request refused", "warning", address=(scope.get("client") or ("",))[0], status=status)
        return status, f"This needs {wanted}.", []
