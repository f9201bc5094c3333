"""`metricunet review`: serve the pages of a prediction folder to this machine's browser until it is stopped."""

from __future__ import annotations

import getpass
import socket
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path

from metricunet.errors import InputError, argument
from metricunet.workflows.review.desk import Desk
from metricunet.workflows.review.folder import read_cases
from metricunet.workflows.review.recording import Recorder, register
from metricunet.workflows.review.scans import Scans

#: The one address that is listened at: this machine itself.
HOST = "127.0.0.1"


def review(
    folder: Path,
    *,
    scans: Path | None = None,
    reviewer: str | None = None,
    port: int = 0,
    browser: bool = True,
    ledger: Path | None = None,
    say: Callable[[str], object] = print,
) -> None:
    """Serve a prediction folder for review until the process is interrupted.

    Args:
        folder: that `metricunet predict` wrote.
        scans: folder of the scans; None where the predictions say where they lie.
        reviewer: name that is written with each decision; the page can change it. None: the user's login.
        port: to listen at, on this machine alone; 0 chooses a free one.
        browser: whether to open the page in the user's browser.
        ledger: file that verdicts and decisions are also written into; None for none.
        say: is told the address, and where the ledger is.

    Raises:
        InputError: no predictions there, no such scans, the port is taken, or FastAPI is not installed.
    """
    try:
        import uvicorn

        from metricunet.workflows.review.server import create_app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("metricunet"):
            raise
        raise InputError(
            f"metricunet review needs {error.name}, which is not installed; pip install 'metricunet[review]'"
        ) from error
    from metricunet.workflows.review.guard import Guard

    recorder = None if ledger is None else Recorder(ledger)
    desk = Desk(folder, Scans(scans), reviewer or _login(), recorder)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
            listening.listen()  # a browser that is faster than the server waits
        except (OSError, OverflowError) as error:
            raise InputError(
                f"port {port} of this machine cannot be used ({error}); choose another {argument('port')}"
            ) from error
        port = listening.getsockname()[1]
        guard = Guard(create_app(desk), port)
        address = f"http://{HOST}:{port}/?token={guard.token}"
        say(f"review: {address}")
        say("The address works once, in one browser of this machine. Stop with Ctrl-C.")
        # While the browser starts, which takes about as long as reading a large scan.
        threading.Thread(target=desk.warm, daemon=True).start()
        if recorder is not None:
            register(recorder, read_cases(folder)[0], say)
        if browser:
            webbrowser.open(address)
        # No line is logged for a request: its address names a case.
        config = uvicorn.Config(guard, access_log=False, log_level="warning", server_header=False, ws="none")
        try:
            uvicorn.Server(config).run(sockets=[listening])
        except KeyboardInterrupt:
            return


def _login() -> str:
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # a user without a name
        return "reviewer"
