"""`metricunet serve`: run a node until it is stopped, or work off what is there, or check its file."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from metricunet.errors import InputError
from metricunet.files.claim import claimed
from metricunet.workflows.serve.config import NodeConfig, examined, read_node
from metricunet.workflows.serve.journal import Journal
from metricunet.workflows.serve.state import State

ADVICE = "pip install 'metricunet[node]'"


def check_node(file: Path) -> list[str]:
    """Return every mistake in a node's file, a line each.

    Raises:
        InputError: the file cannot be read, or is no table.
    """
    return examined(file)[1]


def serve(
    file: Path,
    *,
    once: bool = False,
    say: Callable[[str], object] = print,
    command: Sequence[str] | None = None,
) -> bool:
    """Run a node until it is interrupted.

    Args:
        file: the node's file.
        once: listen nowhere; take in what lies in the watched folder, work off the queue, try each delivery once,
            and end.
        say: is told the addresses.
        command: of a worker; None for the one of this package.

    Returns:
        Whether all went well; with `once`, False where a case was refused or failed, or something was not sent.

    Raises:
        InputError: a mistake in the file, a port that is taken, another node that serves there, or a package
            that is missing.
    """
    config = read_node(file)
    before = os.umask(0o077)  # all that is written is for the owner alone
    try:
        state = State(config.state)
        state.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with claimed(state.claim, "metricunet serve"):
            state.make()
            return _serve(file, config, state, once, say, command)
    finally:
        os.umask(before)


def _serve(
    file: Path,
    config: NodeConfig,
    state: State,
    once: bool,
    say: Callable[[str], object],
    command: Sequence[str] | None,
) -> bool:
    try:
        from metricunet.workflows.serve.node import Node
        from metricunet.workflows.serve.pool import COMMAND
        from metricunet.workflows.serve.scp import DicomServer
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("metricunet"):
            raise
        raise InputError(f"metricunet serve needs {error.name}, which is not installed; {ADVICE}") from error
    journal = Journal(state.log, sys.stderr)
    node = Node(file, config, journal, command or COMMAND)
    if once:
        try:
            return node.work_off()
        finally:
            node.close()
    _stop_on_signals(node.stop)
    dicom = None
    if config.port is not None:
        dicom = DicomServer(config, node.arrivals, state.receiving, journal, node.commitments)
    web: Any = None
    try:
        if config.web is not None:
            web = _web(node, config)
        node.start()
        if dicom is not None:
            node.prune = dicom.prune
            say(f"DICOM: {config.ae_title} at {config.bind} port {dicom.port}")
        if web is not None:
            say(f"pages: {web.address}")
        journal.say("node begins")
        node.run()
    finally:
        if dicom is not None:
            dicom.stop()
        if web is not None:
            web.stop()
        node.close()
        journal.say("node ends")
    return True


def _web(node: Any, config: NodeConfig) -> Any:
    try:
        from metricunet.workflows.serve.web import WebServer
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("metricunet"):
            raise
        raise InputError(f"web needs {error.name}, which is not installed; {ADVICE}") from error
    return WebServer(node, config)


def _stop_on_signals(stop: Callable[[], None]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop())
