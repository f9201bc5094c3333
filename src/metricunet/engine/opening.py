"""The engine that a user names: Ray on this machine, or a cluster that is running."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from metricunet.engine.interface import Engine
from metricunet.engine.ray_engine import NAME, RayEngine, why
from metricunet.errors import InputError, argument

INSTALL = "pip install 'metricunet[ray]'"
#: A cluster that does not answer within this time is not there. Ray itself asks for minutes.
CONNECT_S = 10.0
#: Where Ray puts its folders. The paths of its sockets must be short, so no longer place will do.
SHORT_TEMPORARY = Path("/tmp")
#: How every Ray that this process is connected to is told to print nothing.
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
#: Whom Ray lets in: by which means, and the secret or the file that holds it.
MODE, TOKEN, TOKEN_FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


@contextmanager
def opened(name: str | None) -> Iterator[Engine | None]:
    """Open the engine that a user names; it ends with the block, and its workers with it.

    Args:
        name: `ray` for workers on this machine; `ray://ADDRESS` for a cluster that is running, by the address of
            its head as in `ray start --address`, or `ray://auto` for the one that this machine is part of; None
            for no engine.

    Raises:
        InputError: another name, Ray is not installed, there is no such cluster, or this process has connected Ray
            by itself: what it does there would end with the engine.
    """
    if name is None:
        yield None
        return
    kind, _, address = name.partition("://")
    if kind != NAME or (not address and name != NAME):
        raise InputError(f"{argument('engine')} must be {NAME} or {NAME}://ADDRESS; got {name!r}")
    ray = _ray()
    if ray.is_initialized():
        raise InputError(
            f"{argument('engine', name)}: this process has Ray in use already, which would end with the engine; "
            "call ray.shutdown() first, or work without an engine"
        )
    with ExitStack() as after:
        if not address:
            folder = after.enter_context(_folder())
            after.enter_context(_token(ray))
        after.callback(ray.shutdown)
        with _without_pages(ray):
            if address:
                _join(ray, address)
            else:
                _start(ray, folder)
            yield RayEngine(ray, alone=not address)


def _ray() -> Any:
    """Import Ray, which then says nothing of this machine to its makers unless the user has asked for that."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning, where no GPU is asked for
    try:
        import ray
    except ModuleNotFoundError as error:
        raise InputError(f"{argument('engine', NAME)} needs Ray, which is not installed: {INSTALL}") from error
    return ray


@contextmanager
def _without_pages(ray: Any) -> Iterator[None]:
    """Keep from the screen the page that Ray prints of each lost worker; we say that in a line."""
    worker = ray._private.worker
    before, worker.print_to_stdstream = worker.print_to_stdstream, lambda *_, **__: None
    try:
        yield
    finally:
        worker.print_to_stdstream = before


@contextmanager
def _folder() -> Iterator[Path]:
    """Yield a folder for what Ray writes, which its owner alone can look into; it goes with what is in it.

    What workers print stands in Ray's logs, and may name a patient. Ray lets everybody read and write the folder
    that it is given, so that is one within.
    """
    given = os.environ.get("RAY_TMPDIR")
    parent = Path(given) if given else SHORT_TEMPORARY if SHORT_TEMPORARY.is_dir() else None
    try:
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="ray-", dir=parent)).resolve()
    except OSError as error:
        raise InputError(
            f"{argument('engine', NAME)}: no folder can be made in {parent or tempfile.gettempdir()} "
            f"({error.strerror or error}); name another in RAY_TMPDIR"
        ) from error
    try:
        yield folder / NAME
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a process of Ray may be about to end


@contextmanager
def _token(ray: Any) -> Iterator[None]:
    """Let nobody in but processes of this one, by a token that no file holds.

    Whoever gets in can run programs as this user. Of itself Ray asks for no token before 2.59, and later ones keep
    it in a file that others may read. What the user has said of it stays.
    """
    own = {} if MODE in os.environ else {MODE: "token"}
    if os.environ.get(MODE, "token") == "token" and not (TOKEN in os.environ or TOKEN_FILE in os.environ):
        own[TOKEN] = secrets.token_hex(32)
    os.environ |= own
    try:
        _look_again(ray)
        yield
    finally:
        for name in own:
            os.environ.pop(name, None)
        _look_again(ray)


def _look_again(ray: Any) -> None:
    """Let Ray read anew whom it lets in: it did as it was imported, or as it was started before."""
    with suppress(AttributeError):
        ray._raylet.Config.initialize("")
        ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


def _join(ray: Any, address: str) -> None:
    """Connect to a cluster that is running."""
    try:
        with _loopback(ray, _is_at_loopback_alone(ray, address)):
            ray.init(address=address, **QUIET)
    # Ray has an error of its own for a cluster that asks for a token, where there is none here.
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
        raise InputError(
            f"{argument('engine')} {NAME}://{address}: {why(error)}; start Ray on this machine and the "
            "others with `ray start`, and give the address that it prints"
        ) from error


def _start(ray: Any, folder: Path) -> None:
    """Start a cluster on this machine that nobody reaches from another; what it writes goes into a folder."""
    try:
        with _loopback(ray, True):
            ray.init(
                address="local",
                num_cpus=_cores(),
                include_dashboard=False,
                _temp_dir=str(folder),
                **QUIET,
            )
    except Exception as error:  # its processes have half a minute to begin, which a busy machine may not give them
        raise InputError(
            f"{argument('engine', NAME)}: Ray did not start on this machine ({why(error)}); try again when "
            "there is less going on"
        ) from error


@contextmanager
def _loopback(ray: Any, alone: bool) -> Iterator[None]:
    """Let Ray's processes listen, and be sought, at 127.0.0.1 alone: as where there are no other computers."""
    ray_constants = ray._private.ray_constants
    before = ray_constants.ENABLE_RAY_CLUSTER
    if alone:
        ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _is_at_loopback_alone(ray: Any, address: str) -> bool:
    """Return whether a cluster is heard at the loopback alone.

    Ray itself takes 127.0.0.1 for this machine's other address, and would look there.

    Raises:
        ConnectionError: nothing answers at an address.
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        return False
    if not _answers(host.strip("[]"), int(port)):
        raise ConnectionError("nothing answers there")
    return host in ("127.0.0.1", "localhost") and not _answers(ray.util.get_node_ip_address(), int(port))


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), CONNECT_S).close()
        return True
    except (OSError, OverflowError):
        return False


def _cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
