"""Who may talk to the pages: a browser on this machine that has opened the address with the token, nobody else.

The token in the address works once.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping

from metricunet.workflows.guarded import METHODS, Answer, App, Guarded, Scope, equal, given_token


class Guard(Guarded):
    """Stands before an ASGI application.

    Args:
        app: the application.
        port: that it is served at.

    Attributes:
        token: to be given once, as `/?token=...`.
    """

    def __init__(self, app: App, port: int) -> None:
        super().__init__(app, port, "metricunet-review")
        self.port = port
        self.token = secrets.token_urlsafe(32)
        self._lock = threading.Lock()
        self._used = False

    def answer_instead(self, scope: Scope, headers: Mapping[str, str]) -> Answer | None:
        """Return what a request gets in place of the application; None for one that may pass."""
        if self.comes_to_another_host(headers):
            return (
                421,
                f"This address is not the review's, which answers at http://127.0.0.1:{self.port} alone. Where "
                "that port is forwarded to another machine, it must have the same number there.",
                [],
            )
        if scope["method"] not in METHODS:
            return 405, "This method is not known.", []
        if self.comes_from_another_site(scope, headers):
            return 403, "Requests of other sites are refused.", []
        if self.knows(headers):
            return None
        if self._takes(given_token(scope)):
            return self.entered()
        return (
            401,
            "Open the address that metricunet review has printed. It works once, in one browser; "
            "to use another one, start metricunet review again.",
            [],
        )

    def _takes(self, token: str) -> bool:
        with self._lock:
            if self._used or not equal(token, self.token):
                return False
            self._used = True
            return True
