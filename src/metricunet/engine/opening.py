"""The engine that a user names: Ray on this machine, or a cluster that is running."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from metricunet.engine.interface import Engine
from metricunet.engine.ray_engine import NAME, RayEngine, why
from metricunet.errors import InputError, argument

INSTALL = "pip install 'metricunet[ray]'"
#: A cluster that does not answer within this time is not there. Ray itself asks for minutes.
CONNECT_S = 10.0


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
    try:
        with _without_pages(ray):
            _start(ray, address)
            yield RayEngine(ray, alone=not address)
    finally:
        ray.shutdown()


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


def _start(ray: Any, address: str) -> None:
    """Connect to a cluster, or start one on this machine that nobody reaches from another."""
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address:
        try:
            with _loopback(ray, _is_at_loopback_alone(ray, address)):
                ray.init(address=address, **quiet)
        # Ray has an error of its own for a cluster that asks for a token, where there is none here.
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
            raise InputError(
                f"{argument('engine')} {NAME}://{address}: {why(error)}; start Ray on this machine and the "
                "others with `ray start`, and give the address that it prints"
            ) from error
        return
    try:
        with _loopback(ray, True):
            ray.init(address="local", num_cpus=_cores(), include_dashboard=False, **quiet)
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
