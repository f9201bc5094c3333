"""The program as a whole: what it loads, its version, completion, and one line for what went wrong."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import Command


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['metricunet', '--help']\nfrom metricunet.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'numpy', 'scipy', 'lightning', 'pydicom', 'nibabel', 'matplotlib', 'pydantic'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    for verb in ("demo", "phantom", "check", "train", "predict", "evaluate", "info"):
        assert verb in ended.stdout


def test_version(metricunet: Command) -> None:
    from metricunet import __version__

    assert metricunet("--version").out.strip() == __version__


@pytest.mark.parametrize("words", [[], ["ledger"]])
def test_without_a_command_there_is_the_help_and_no_error_without_words(
    metricunet: Command, words: list[str]
) -> None:
    ended = metricunet(*words)
    assert "Usage:" in ended.out
    assert (ended.status, ended.err) == (2, "")


def test_debug_shows_where_it_came_from(metricunet: Command, tmp_path: Path) -> None:
    plain, ended = (metricunet(*debug, "info", tmp_path / "none") for debug in ([], ["--debug"]))
    assert plain.err.count("\n") == 1
    assert ended.err.startswith("Traceback")
    assert ended.err.endswith(f"\n{plain.err}")
    assert (plain.status, ended.status) == (2, 2), "status 1 says that all but some cases are done"


def test_debug_shows_where_the_program_failed(
    metricunet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(*_: object, **__: object) -> None:
        raise KeyError("odd")

    monkeypatch.setattr("metricunet.workflows.check.check", odd)
    said = "error: an unexpected KeyError stopped it: 'odd'; this is a fault of the program"
    ended = metricunet("check", tmp_path)
    assert (ended.status, ended.err) == (2, f"{said}: --debug after metricunet shows where\n")
    ended = metricunet("--debug", "check", tmp_path)
    assert ended.status == 2
    assert ended.err.startswith("Traceback")
    assert ended.err.endswith(f"\n{said}\n")


def test_that_memory_does_not_suffice_is_no_fault_of_the_program(
    metricunet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("metricunet.workflows.check.check", full)
    ended = metricunet("check", tmp_path)
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert ended.err.startswith(
        "error: there is not enough memory for it on this machine; end other programs on it"
    )
    assert "fault" not in ended.err


def test_a_path_that_the_system_refuses_is_no_fault_of_the_program(
    metricunet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    monkeypatch.setattr("metricunet.workflows.check.check", refused)
    ended = metricunet("check", tmp_path)
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert ended.err.startswith(f"error: {tmp_path}: the system refuses it (Permission denied); check its name")


def test_a_shell_can_complete_commands_and_options() -> None:
    def offered(words: str, at: int) -> list[str]:
        env = {"_METRICUNET_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        code = "import sys; sys.argv = ['metricunet']; from metricunet.cli import main; main()"
        ended = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ | env
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.split()

    assert offered("metricunet pre", 1) == ["predict"]
    assert offered("metricunet predict --fail-on ", 3) == ["fail", "review"]
    assert {"--structures", "--strict"} <= set(offered("metricunet predict --str", 2))
