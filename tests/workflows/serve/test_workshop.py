"""What a worker says of a case, whatever the models are."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom.dataset import Dataset

from metricunet.cohort.importing.dicom_tree import person_of
from metricunet.errors import InputError
from metricunet.files.atomic import explained
from metricunet.ledger import Job
from metricunet.ledger.table import read_rows
from metricunet.workflows.serve.config import Rule
from metricunet.workflows.serve.journal import Journal
from metricunet.workflows.serve.work import Workshop
from metricunet.workflows.serve.worker import BeginAnew, work_once
from tests.support.dicom_series import Written, companion, find_only, save, write_series
from tests.workflows.serve.conftest import RTSTRUCT, Doors


class Bench(Workshop):
    """A workshop without models; what segmenting a case gives, or raises, a test may say."""

    def __init__(self, node: Doors, segment: Callable[[Job], Any] | None = None, device: str = "cpu") -> None:
        self.config, self.state, self.device = node.config, node.state, device
        self.queue, self.ledger = node.queue, node.queue.ledger
        self.provenance = {"model_sha256": "0" * 64}
        self.segment = segment

    def _segment(self, job: Job) -> Any:
        return super()._segment(job) if self.segment is None else self.segment(job)


def taken(node: Doors, written: Written) -> Job:
    """Bring a series in, and give it to a worker."""
    for path in written.files:
        if path.exists():
            node.bring(path)
    node.arrivals.gather(at_once=True)
    job = node.queue.take("cpu")
    assert job is not None
    return job


def test_a_refusal_advises_nothing_that_a_node_cannot_do(doors: Callable[..., Doors], tmp_path: Path) -> None:
    node = doors()
    job = taken(node, write_series(tmp_path / "gap", shape=(8, 4, 4), leave_out=(4,)))
    worked = Bench(node).work(job)
    assert worked.state == "refused"
    assert "missing" in worked.why
    assert "allow" not in worked.why


@pytest.mark.parametrize("number", ["4711", ""], ids=["with a number", "without one"])
def test_patient_and_scanner_are_recorded_as_by_a_review(
    doors: Callable[..., Doors], tmp_path: Path, number: str
) -> None:
    def scanned(k: int, dataset: Dataset) -> None:
        dataset.PatientID, dataset.IssuerOfPatientID = number, "HOSPITAL"
        dataset.ManufacturerModelName, dataset.ConvolutionKernel = "Force", ["Br40d", "3"]

    node = doors()
    job = taken(node, write_series(tmp_path / "ct", shape=(4, 4, 4), edit=scanned))
    series = find_only(node.state.folder / job.folder)
    quality = SimpleNamespace(verdict="fail", doubt="strong", flags=[], reasons=["nothing there"], boundary={})
    assert Bench(node, lambda job: ("sha256", series, quality)).work(job).state == "failed"
    (row,) = read_rows(node.queue.ledger)
    assert row["patient"] == job.patient == node.queue.ledger.key.hashed("patient", *person_of(series))
    assert (row["manufacturer"], row["scanner"], row["kernel"]) == ("Synthetic", "Force", "Br40d\\3")


def test_a_case_whose_rule_is_gone_has_not_ended_well(doors: Callable[..., Doors], tmp_path: Path) -> None:
    node = doors()
    job = taken(node, write_series(tmp_path / "ct", shape=(4, 4, 4)))
    series = find_only(node.state.folder / job.folder)
    quality = SimpleNamespace(verdict="pass", doubt="none", flags=[], reasons=[], boundary={})
    bench = Bench(node, lambda job: ("sha256", series, quality))
    bench.config = node.config.model_copy(update={"rules": (Rule(name="renamed"),)})
    worked = bench.work(job)
    assert (worked.state, node.queue.job(job.id).state) == ("failed", "failed")
    assert "no rule 'any' any more" in worked.why


@pytest.mark.parametrize(("doubt", "state"), [("strong", "review"), ("some", "sending")])
def test_strong_doubt_waits_for_a_person_whatever_the_model(
    doors: Callable[..., Doors], tmp_path: Path, doubt: str, state: str
) -> None:
    node = doors(destinations=[{"name": "pacs", "ae_title": "PEER", "host": "127.0.0.1", "port": 104}])
    job = taken(node, write_series(tmp_path / "ct", shape=(4, 4, 4)))
    series = find_only(node.state.folder / job.folder)
    drawn = node.state.predictions / f"{Path(job.folder).name}.rtstruct.dcm"
    save(drawn, companion("RTSTRUCT", RTSTRUCT))
    quality = SimpleNamespace(verdict="review", doubt=doubt, flags=[], reasons=["odd"], boundary={})
    bench = Bench(node, lambda job: ("sha256", series, quality))
    bench.predictor = SimpleNamespace(ensemble=SimpleNamespace(held_back=""))  # of a model that saw patients
    worked = bench.work(job)
    assert (worked.state, node.queue.job(job.id).state) == (state, state)
    assert len(node.queue.due()) == (state == "sending")
    assert worked.why == ("the doubt is strong" if state == "review" else "")


def test_a_full_disk_is_no_fault_of_the_case(doors: Callable[..., Doors], tmp_path: Path) -> None:
    def fill(job: Job) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise explained(node.state.predictions / "c0ffee.nii.gz", error) from error

    node, said = doors(), io.StringIO()
    for name in ("one", "two"):
        for path in write_series(tmp_path / name, shape=(4, 4, 4)).files:
            node.bring(path)
    node.arrivals.gather(at_once=True)
    bench = Bench(node, fill, "cuda:0")
    assert [work_once(bench, "cuda:0", Journal(None, said)) for _ in range(3)] == [True, True, False]
    jobs = node.queue.jobs()
    assert [(job.state, "the disk is full" in job.why) for job in jobs] == [("waiting", True)] * 2
    assert all(job.is_put_off for job in jobs)  # so that it is not tried all the time
    assert [json.loads(line)["event"] for line in said.getvalue().splitlines()] == ["case put off"] * 2


@pytest.mark.parametrize(
    ("device", "error", "anew"),
    [
        ("cuda:0", RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        ("cuda:0", InputError("the scan is too small"), False),
        ("cpu", RuntimeError("an odd scan"), False),
    ],
)
def test_what_may_have_spoilt_a_gpu_costs_no_other_case(
    doors: Callable[..., Doors], tmp_path: Path, device: str, error: Exception, anew: bool
) -> None:
    def fail(job: Job) -> None:
        raise error

    node = doors()
    written = write_series(tmp_path / "ct", shape=(4, 4, 4))
    for sender in ("ONE", "TWO"):
        for path in written.files:
            node.bring(path, sender)
    node.arrivals.gather(at_once=True)
    bench, journal = Bench(node, fail, device), Journal(None, None)
    if anew:
        with pytest.raises(BeginAnew):
            work_once(bench, device, journal)
    else:
        assert work_once(bench, device, journal)
    assert [job.state for job in node.queue.jobs()] == ["failed", "waiting"]
