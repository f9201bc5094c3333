"""The whole command: report, results, exit status, and that one broken door does not hide the others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from metricunet.errors import InputError
from metricunet.files.own import OwnFiles
from metricunet.workflows.commission import run, scans
from metricunet.workflows.commission.checks import CommissionCheck, Measurement, checked
from metricunet.workflows.commission.report import render_report
from metricunet.workflows.commission.run import commission, summary_line
from metricunet.workflows.commission.subjects import PLANS, Site
from tests.files.test_claim import leave_claim
from tests.support.command import Command


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> run.Commissioning:
    """All checks on one geometry."""
    return commission(tmp_path_factory.mktemp("v") / "out", plans=PLANS[-1:])


class TestWhole:
    def test_everything_passes_here(self, done: run.Commissioning) -> None:
        assert done.verdict == "pass", done.text()
        assert [name for name, _ in done.groups] == list(run.GROUPS)
        assert not any(line.startswith("fail") for line in done.text().splitlines())

    def test_the_folder(self, done: run.Commissioning) -> None:
        folder = done.report.parent
        assert sorted(path.name for path in folder.iterdir()) == [
            "commission.json",
            "files",
            "report.html",
        ]
        results = json.loads((folder / "commission.json").read_text())
        assert (results["verdict"], results["checks_failed"]) == ("pass", 0)
        assert results["checks_total"] == len(results["checks"]) == len(done.checks)
        assert all(check["findings"] for check in results["checks"] if check["status"] == "pass")
        assert {"numpy", "torch", "pydicom", "highdicom"} <= results["environment"]["packages"].keys()
        assert json.loads((folder / "commission.json").read_text())["command"] == "commission"
        # Left for the planning system: the scan and structure sets on it.
        assert len(list((folder / "files" / "E" / "ct").iterdir())) == PLANS[-1].grid.shape[0]
        assert {"voxel-edges.rtstruct.dcm", "sub-voxel.rtstruct.dcm", "masks.seg.dcm"} <= {
            path.name for path in (folder / "files" / "E").iterdir()
        }
        assert not list((folder / "files").rglob("plastimatch"))

    def test_the_report_says_what_was_found(self, done: run.Commissioning) -> None:
        page = done.report.read_text()
        text = " ".join(re.sub("<[^>]*>", " ", page).split())
        for check in done.checks:
            assert check.name in text.replace("&#39;", "'")
        assert "1.2 x 0.8 x 5 mm, HFS" in text
        for package, version in done.environment["packages"].items():
            assert f"{package} {version}" in text
        # The disc lies on one slice and is 1.1 slices thick: against the solid a tenth is missing.
        assert "−9.1" in text
        assert "http" not in page

    def test_again_in_the_same_folder_and_never_elsewhere(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(run, "GROUPS", {"NRRD, MetaImage in": run.GROUPS["NRRD, MetaImage in"]})
        out = tmp_path / "out"
        commission(out, plans=PLANS[-1:])
        first = {path for path in out.rglob("*") if path.is_file()}
        commission(out, plans=PLANS[-1:])
        assert {path for path in out.rglob("*") if path.is_file()} == first
        for name in ("old.txt", "E/ct/00001.dcm"):
            other = out / "files" / name
            kept = other.read_bytes() if other.exists() else b""
            other.write_bytes(kept + b"mine")
            with pytest.raises(InputError, match=f"{other}: was not written by an earlier commission"):
                commission(out, plans=PLANS[-1:])
            assert other.read_bytes() == kept + b"mine"
            if kept:
                other.write_bytes(kept)
            else:
                other.unlink()
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("dear")
        with pytest.raises(InputError, match="was not written by an earlier commission"):
            commission(tmp_path / "mine")
        assert (tmp_path / "mine" / "thesis.txt").exists()

    def test_a_second_one_in_the_folder_is_refused_and_the_first_loses_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out, real = tmp_path / "out", run.GROUPS["NRRD, MetaImage in"]

        def meanwhile(sites: Sequence[Site]) -> Iterable[CommissionCheck]:
            with monkeypatch.context() as patch:
                patch.setattr(run, "GROUPS", {"NRRD, MetaImage in": real})
                with pytest.raises(InputError, match=f"{out}: a commissioning is going on here already"):
                    commission(out, plans=PLANS[-1:])
            return real(sites)

        monkeypatch.setattr(run, "GROUPS", {"NRRD, MetaImage in": meanwhile})
        result = commission(out, plans=PLANS[-1:])
        assert result.verdict == "pass", result.text()
        assert sorted(path.name for path in out.iterdir()) == ["commission.json", "files", "report.html"]
        # What a killed one left of its claim is in nobody's way.
        monkeypatch.setattr(run, "GROUPS", {"NRRD, MetaImage in": real})
        leave_claim(OwnFiles(out, run.RESULTS, "commission").claim, started_s=1.0)
        assert commission(out, plans=PLANS[-1:]).verdict == "pass"


class TestCommand:
    @pytest.fixture
    def one_geometry(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            run, "GROUPS", {name: run.GROUPS[name] for name in ("DICOM CT in", "NRRD, MetaImage in")}
        )
        monkeypatch.setattr(run, "commission", partial(commission, plans=PLANS[-1:]))

    def test_status_0(self, metricunet: Command, tmp_path: Path, one_geometry: None) -> None:
        ended = metricunet("commission", "-o", tmp_path / "out")
        assert (ended.status, ended.err) == (0, "")
        assert ended.out.splitlines() == [
            "pass     DICOM CT in: 3 checks",
            "pass     NRRD, MetaImage in: 2 checks",
            "pass: 5 checks, 0 failed, 0 not run",
            f"report: {tmp_path / 'out' / 'report.html'}",
        ]

    def test_status_1_and_json(
        self, metricunet: Command, tmp_path: Path, one_geometry: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(scans, "read_scan", lambda path: (_ for _ in ()).throw(RuntimeError("broken\ndoor")))
        ended = metricunet("commission", "-o", tmp_path / "out", "--json")
        assert ended.status == 1
        results = json.loads(ended.out)
        assert (results["verdict"], results["checks_failed"], results["checks_total"]) == ("fail", 1, 4)
        assert results["checks"][-1]["reason"] == "RuntimeError: broken door"
        page = (tmp_path / "out" / "report.html").read_text()
        assert "FAIL" in page
        assert "RuntimeError: broken door" in page
        assert metricunet("commission", "-o", tmp_path / "out").status == 1

    def test_status_2(self, metricunet: Command, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        ended = metricunet("commission", "-o", tmp_path / "file")
        assert ended.status == 2
        assert ended.err.startswith(f"error: {tmp_path / 'file'}: is a file, expected a folder for the results")

    def test_no_scan_can_be_read(
        self, metricunet: Command, tmp_path: Path, one_geometry: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(folder: Path) -> None:
            raise InputError("nothing is accepted today")

        monkeypatch.setattr("metricunet.workflows.commission.subjects.the_series", refuse)
        ended = metricunet("commission", "-o", tmp_path / "out")
        assert ended.status == 1
        assert "fail     DICOM CT in: Runs to its end: nothing is accepted today" in ended.out


class TestChecks:
    def check(self, *values: float, tolerance: float = 0.5) -> CommissionCheck:
        return CommissionCheck("g", "n", "m", tuple(Measurement(f"{v}", v) for v in values), tolerance, "%")

    def test_verdicts(self) -> None:
        assert self.check(0.1, -0.5).status == "pass"
        assert self.check(0.1, -0.51).status == "fail"
        assert self.check(0.1, float("nan")).status == "fail"
        assert self.check(float("inf")).status == "fail"
        assert self.check().status == "fail"
        assert self.check(0, 1, tolerance=0).status == "fail"

    def test_the_worst_counts_whatever_its_sign(self) -> None:
        worst = self.check(0.1, -0.4, 0.3).worst
        assert worst is not None
        assert worst.value == -0.4
        assert self.check(0.1, -0.4, 0.3).found == "0.400 %"
        assert self.check(0.1, -0.4, 0.3).allowed == "0.5 %"

    def test_what_is_no_number_stays_out_of_json(self) -> None:
        content = json.dumps(self.check(float("nan")).to_json(), allow_nan=False)
        assert json.loads(content)["worst"]["value"] is None

    def test_what_was_done_before_a_crash_stays(self) -> None:
        def run_group() -> Iterator[CommissionCheck]:
            yield self.check(0)
            raise KeyError("x")

        first, last = checked("g", run_group)
        assert first.status == "pass"
        assert (last.status, last.reason) == ("fail", "KeyError: 'x'")
        assert summary_line("g", [first, last]) == "fail     g: Runs to its end: KeyError: 'x'"

    def test_a_failure_is_named_in_figures(self) -> None:
        assert summary_line("g", [self.check(0.7)]) == "fail     g: n: 0.700 %, at most 0.5 % allowed"

    def test_a_report_of_failures_is_drawn_too(self, tmp_path: Path) -> None:
        checks = (self.check(0.7), self.check(), self.check(float("nan")), checked("h", lambda: 1 / 0)[0])  # type: ignore[arg-type, return-value]
        result = run.Commissioning(checks, PLANS, run.environment(), {"plastimatch": None}, "now", tmp_path)
        page = render_report(result)
        assert "4 failed" in page
        assert "ZeroDivisionError" in page
