"""The engine that a user names is found, or refused in a line, and nobody else is told of it."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from metricunet.engine import opened
from metricunet.errors import InputError
from tests.support.command import Command
from tests.support.engines import short_folder

MODE, TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"


@pytest.mark.parametrize(
    "command", [("phantom",), ("import", "src"), ("predict", "scan.nii"), ("study", "s.yaml")]
)
def test_without_ray_one_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, metricunet: Command, tmp_path: Path, command: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    ended = metricunet(*command, "-o", tmp_path / "out", "--engine", "ray")
    assert ended.status == 2
    line = "error: --engine ray needs Ray, which is not installed: pip install 'metricunet[ray]'\n"
    assert ended.err.removeprefix("warning: ").endswith(line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["dask", "ray://", "ray:auto", "Ray"])
def test_an_engine_that_there_is_not_is_named(name: str) -> None:
    expected = re.escape(f"engine must be ray or ray://ADDRESS; got {name!r}")
    with pytest.raises(InputError, match=expected), opened(name):
        pass


def test_no_engine_is_none() -> None:
    with opened(None) as engine:
        assert engine is None


def test_a_cluster_that_is_not_there_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", exc_type=ModuleNotFoundError)

    def refused(**_: object) -> None:
        raise ConnectionError("first line\nnobody listens there")

    monkeypatch.setattr(ray, "init", refused)
    expected = r"^engine ray://auto: nobody listens there; start Ray"
    with pytest.raises(InputError, match=expected), opened("ray://auto"):
        pass


def test_a_cluster_that_does_not_let_one_in_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", exc_type=ModuleNotFoundError)

    def refused(**_: object) -> None:
        raise ray.exceptions.RayError("a token is asked for, and there is none here")

    monkeypatch.setattr(ray, "init", refused)
    expected = r"^engine ray://auto: a token is asked for, and there is none here; start Ray"
    with pytest.raises(InputError, match=expected), opened("ray://auto"):
        pass


@pytest.mark.parametrize("name", ["ray", "ray://auto"])
def test_what_the_user_has_in_ray_already_does_not_end(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    ray = pytest.importorskip("ray", exc_type=ModuleNotFoundError)
    called: list[str] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    for function in ("init", "shutdown"):
        monkeypatch.setattr(ray, function, lambda *_, called_as=function, **__: called.append(called_as))
    with (
        pytest.raises(InputError, match=r"this process has Ray in use already.*; call ray\.shutdown"),
        opened(name),
    ):
        pass
    assert called == []


def test_an_address_where_nothing_answers_is_said_at_once() -> None:
    pytest.importorskip("ray", exc_type=ModuleNotFoundError)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        expected = rf"^engine ray://{re.escape(address)}: nothing answers there; start Ray"
        with pytest.raises(InputError, match=expected), opened(f"ray://{address}"):
            pass


@pytest.fixture
def started() -> Iterator[list[dict[str, Any]]]:
    """Ray starts no processes, but makes its folder as it does; what it was started with is in the list."""
    ray = pytest.importorskip("ray", exc_type=ModuleNotFoundError)
    known: list[dict[str, Any]] = []

    def init(**how: Any) -> None:
        folder = Path(how.get("_temp_dir", "/nowhere"))
        if "_temp_dir" in how:
            ray._common.utils.try_to_create_directory(str(folder))
            (folder / "worker.out").write_text("a patient's name")
        known.append({"folder": folder, **{name: os.environ.get(name, "") for name in (MODE, TOKEN)}})

    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            patch.delenv(name)
        patch.setattr(ray, "init", init)
        yield known
    # What a test said of tokens is forgotten: Ray ends the process where it has to have one and there is none.
    with suppress(AttributeError):
        ray._raylet.Config.initialize("")
        ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


def test_what_ray_of_this_machine_writes_is_for_its_owner_alone_and_goes_with_it(
    started: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself would let everybody read and write its folder, and leave it there."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with opened("ray"):
        written = started[0]["folder"]
        assert written.is_relative_to(tmp_path.resolve())
        above = [folder for folder in written.parents if folder.is_relative_to(tmp_path)]
        assert 0o700 in [stat.S_IMODE(folder.stat().st_mode) for folder in above if folder != tmp_path]
    assert list(tmp_path.iterdir()) == []


def test_ray_of_this_machine_lets_in_nobody_without_a_token_that_no_file_holds(
    started: list[dict[str, Any]],
) -> None:
    for _ in range(2):
        with opened("ray"):
            pass
        assert not {MODE, TOKEN} & os.environ.keys(), "a cluster that is joined later has its own"
    first, second = started
    assert first[MODE] == second[MODE] == "token"
    assert min(len(first[TOKEN]), len(second[TOKEN])) >= 32
    assert first[TOKEN] != second[TOKEN]


@pytest.mark.parametrize("given", [{MODE: "disabled"}, {MODE: "token", TOKEN: 64 * "a"}])
def test_whom_the_user_lets_in_counts(
    started: list[dict[str, Any]], given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with opened("ray"):
        assert {name: started[0][name] for name in given} == given
        assert started[0][TOKEN] == given.get(TOKEN, "")
    assert {name: os.environ[name] for name in given} == given


def test_a_folder_that_cannot_be_made_for_ray_is_said_in_one_line(
    started: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file"))
    with (
        pytest.raises(InputError, match=r"no folder can be made in .*; name another in RAY_TMPDIR"),
        opened("ray"),
    ):
        pass
    assert not started


#: Joins a cluster and has something computed there.
JOINING = """
import sys
from metricunet.engine import Needs, opened

with opened(sys.argv[1]) as engine:
    print(engine.submit(Needs(1 << 28), pow, 2, 5).result())
"""


#: Starts Ray on this machine, has something computed, and prints where its processes listen.
LISTENING = """
import os, psutil
from metricunet.engine import Needs, opened

with opened("ray") as engine:
    print(engine.submit(Needs(1 << 28), pow, 2, 5).result())
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        for connection in process.net_connections():
            if connection.status == psutil.CONN_LISTEN:
                print(connection.laddr.ip)
    import ray
    from ray._common.usage.usage_lib import usage_stats_enabled
    print("dashboard" if ray._private.worker.get_dashboard_url() else "no dashboard")
    print("told" if usage_stats_enabled() else "not told")
"""


def in_another_process(script: str, *words: str, **environment: str) -> str:
    root = Path(__file__).parents[2]
    found = subprocess.run(
        [sys.executable, "-c", script, *words],
        env=os.environ | {"PYTHONPATH": str(root / "src")} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout


def test_a_cluster_at_the_loopback_alone_is_found_there(machines: Any) -> None:
    """Ray itself would seek it at this machine's other address."""
    assert in_another_process(JOINING, f"ray://{machines.address}") == "32\n"


def test_ray_of_this_machine_is_heard_by_no_other_and_tells_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", exc_type=ModuleNotFoundError)
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    with short_folder() as folder:
        found = in_another_process(LISTENING, HOME=str(tmp_path), RAY_TMPDIR=folder)
    computed, *heard, dashboard, told = found.splitlines()
    assert computed == "32"
    assert {ip.rpartition(":")[2] for ip in heard} == {"127.0.0.1"}
    assert (dashboard, told) == ("no dashboard", "not told")
    assert not (tmp_path / ".ray").exists(), "others may read the token that Ray keeps there"
