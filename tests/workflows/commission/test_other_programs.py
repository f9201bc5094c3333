"""What a judge of another maker says counts, and so does that it says nothing: played by small scripts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from metricunet.workflows.commission.checks import CommissionCheck
from metricunet.workflows.commission.other_programs import by_dciodvfy, version_of
from metricunet.workflows.commission.subjects import Site


def judged(site: Site, monkeypatch: pytest.MonkeyPatch, script: str) -> dict[str, CommissionCheck]:
    """Let a script judge as dciodvfy; return the checks by their names."""
    folder = site.folder.parent / "bin"
    folder.mkdir(exist_ok=True)
    program = folder / "dciodvfy"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return {check.name.partition(",")[0]: check for check in by_dciodvfy([site])}


@pytest.fixture
def written(site: Site) -> Site:
    (site.folder / "a.rtstruct.dcm").write_bytes(b"")
    return site


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("kill -SEGV $$", "dciodvfy ended with status -11 on a.rtstruct.dcm"),
        ("echo 'Error - first'; kill -SEGV $$", "dciodvfy ended with status -11 on a.rtstruct.dcm"),
        ("exit 3", "dciodvfy ended with status 3 on a.rtstruct.dcm, and reported no error"),
    ],
)
def test_a_judge_that_breaks_off_lets_nothing_pass(
    written: Site, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    check = judged(written, monkeypatch, script)["Structure sets"]
    assert check.status == "fail"
    assert check.reason.startswith(words)


def test_errors_are_counted_and_their_status_is_no_fault(written: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    check = judged(written, monkeypatch, "echo 'Error - one' >&2; echo 'Warning - two'; exit 1")["Structure sets"]
    assert (check.status, check.found, check.reason) == ("fail", "1", "")
    assert judged(written, monkeypatch, "echo 'Warning - two'")["Structure sets"].status == "pass"


def test_no_file_is_no_file_without_errors(written: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = judged(written, monkeypatch, "exit 0")
    assert [checks[name].status for name in ("Structure sets", "Segmentations")] == ["pass", "fail"]
    assert checks["Segmentations"].reason == "no file *.seg.dcm was written, so none was looked at"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("#!/bin/sh\necho plastimatch version 1.9.4\n", "plastimatch version 1.9.4"),
        ("#!/bin/sh\necho\n", "installed"),
        ("#!/nowhere/sh\n", "installed"),
    ],
    ids=["sound", "silent", "cannot be started"],
)
def test_a_judge_that_does_not_say_its_version_costs_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, said: str
) -> None:
    program = tmp_path / "plastimatch"
    program.write_text(content)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert version_of("plastimatch") == said
