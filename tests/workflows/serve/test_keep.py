"""Retention: what names a patient goes with the case, wherever a kill has left it."""

from __future__ import annotations

import io
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from metricunet.files.own import OwnFiles
from metricunet.ledger import Job
from metricunet.workflows.serve.journal import Journal
from metricunet.workflows.serve.keep import delete_old
from tests.workflows.serve.conftest import Doors

SECRET = b"Secret^Name"


def later() -> datetime:
    return datetime.now(UTC) + timedelta(days=31)


def case_of(node: Doors, name: str) -> Job:
    """A case that was set aside, since its worker was killed while it wrote the files."""
    job = node.queue.receive("any:1", series=name, study="2", patient=["3"], sender="CT", folder=f"scans/{name}")
    folder = node.state.scans / name
    folder.mkdir()
    (folder / "a.dcm").write_bytes(SECRET)
    node.queue.whole(job.id, digest=name)
    node.queue.take("cpu")
    for record, command in ((f"{name}.quality.json", "predict"), (f"{name}.reviewed-2.json", "review")):
        staged = OwnFiles(node.state.predictions, record, command).stage(f"{name}.rtstruct.dcm")
        staged.write_bytes(SECRET)
    (node.state.predictions / f"{name}.nii.gz").write_bytes(SECRET)
    return node.queue.move(job.id, "set aside", "its worker died of it 2 times")


def secrets_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and SECRET in path.read_bytes()]


def delete(node: Doors, said: io.StringIO | None = None) -> int:
    return delete_old(node.config, node.state, node.queue, Journal(None, said), later)


def test_what_a_killed_worker_left_goes_with_its_case(doors: Any) -> None:
    node: Doors = doors()
    case_of(node, "c0ffee")
    other = case_of(node, "decade")
    node.queue.move(other.id, "waiting")
    assert delete(node) == 1
    left = secrets_in(node.state.folder)
    assert len(left) == 4  # of the other case: its scan, its mask, and what is half written of two records
    assert [job.id for job in node.queue.jobs()] == [other.id]
    node.queue.take("cpu")
    node.queue.move(other.id, "failed", "no reason")
    assert delete(node) == 1
    assert secrets_in(node.state.folder) == []
    assert list(node.state.predictions.iterdir()) == []


def test_what_cannot_be_deleted_is_not_forgotten(doors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    node: Doors = doors()
    said = io.StringIO()
    kept, gone = case_of(node, "c0ffee"), case_of(node, "decade")
    rmtree = shutil.rmtree

    def refusing(path: Path, *arguments: Any, **more: Any) -> None:
        if path.name == "c0ffee":
            raise PermissionError(13, "Permission denied")
        rmtree(path, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr("metricunet.workflows.serve.keep.shutil.rmtree", refusing)
        assert delete(node, said) == 1
    assert [job.id for job in node.queue.jobs()] == [kept.id] != [gone.id]
    lines = [json.loads(line) for line in said.getvalue().splitlines()]
    (line,) = [line for line in lines if line["event"] == "not deleted"]
    assert (line["case"], line["why"]) == ("c0ffee", "Permission denied")
    assert delete(node) == 1
    assert secrets_in(node.state.folder) == []


def test_a_case_that_is_segmented_again_meanwhile_keeps_its_files(
    doors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    node: Doors = doors()
    first, second = case_of(node, "c0ffee"), case_of(node, "decade")
    rmtree = shutil.rmtree

    def slow(path: Path, *arguments: Any, **more: Any) -> None:
        if path == node.state.folder / first.folder:  # a person asks for the other one at this moment
            node.queue.again(second.id, "A. Reader")
        rmtree(path, *arguments, **more)

    monkeypatch.setattr("metricunet.workflows.serve.keep.shutil.rmtree", slow)
    assert delete(node) == 1
    assert [(job.id, job.state) for job in node.queue.jobs()] == [(second.id, "waiting")]
    assert (node.state.folder / second.folder / "a.dcm").is_file()
    assert (node.state.predictions / "decade.nii.gz").is_file()
