"""The command: a server on this machine alone, and what it says where it cannot be."""

from __future__ import annotations

import builtins
import signal
import socket
from typing import Any

import httpx
import pytest

from metricunet.workflows.review.run import _login
from tests.support.command import Command
from tests.workflows.review.conftest import Predicted, served


def test_the_command_serves_this_machine_alone_and_says_nothing_of_cases(predicted: Predicted) -> None:
    with served(predicted.folder, "--reviewer", "Bo") as (process, address):
        url = httpx.URL(address)
        assert url.host == "127.0.0.1"
        with httpx.Client(base_url=f"http://127.0.0.1:{url.port}") as client:
            assert client.get(address).status_code == 200
            listed = client.get("/api/cases").json()
            assert listed["reviewer"] == "Bo"
            assert client.get("/api/cases/flipped?review=77").status_code == 400
        others = [info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
        for other in {name for name in others if not str(name).startswith("127.")}:
            with pytest.raises(ConnectionRefusedError), socket.create_connection((other, url.port), timeout=5):
                pass
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=600)
    assert process.returncode == 0
    assert "flipped" not in out + err
    assert err == ""


def test_arguments_that_cannot_be_followed_are_one_line(
    metricunet: Command, predicted: Predicted, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = metricunet("review", predicted.folder, "--no-browser", "--port", port)
    assert ended.status == 2
    assert f"port {port} of this machine cannot be used" in ended.err
    assert "--port" in ended.err
    for words in ([predicted.scans], [predicted.folder / "run.json"], [predicted.folder, "--scans", "missing"]):
        ended = metricunet("review", *words, "--no-browser")
        assert ended.status == 2
        assert ended.err.count("\n") == 1


def test_without_its_packages_it_says_what_to_install(
    metricunet: Command, predicted: Predicted, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "uvicorn":
            raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    ended = metricunet("review", predicted.folder, "--no-browser")
    assert ended.status == 2
    assert "pip install 'metricunet[review]'" in ended.err


@pytest.mark.parametrize("error", [KeyError("uid"), OSError("no name"), ModuleNotFoundError("pwd")])
def test_a_user_without_a_name_is_the_reviewer(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def nameless() -> str:
        raise error

    monkeypatch.setattr("getpass.getuser", nameless)
    assert _login() == "reviewer"
