"""Running all checks: analytic shapes through every door and back, and a report of what became of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

from metricunet import __version__
from metricunet.errors import InputError
from metricunet.files.atomic import write_text
from metricunet.files.claim import claimed, refuse_claimed
from metricunet.files.own import OwnFiles
from metricunet.files.record import RunRecord, machine
from metricunet.progress import Progress, no_progress
from metricunet.workflows.commission.checks import CommissionCheck, checked
from metricunet.workflows.commission.measures import spheres, volumes
from metricunet.workflows.commission.other_programs import (
    DCIODVFY,
    PLASTIMATCH,
    by_dciodvfy,
    by_plastimatch,
    version_of,
)
from metricunet.workflows.commission.report import render_report
from metricunet.workflows.commission.scans import dicom_in, itk, nifti
from metricunet.workflows.commission.structure_sets import (
    adding,
    between_voxels,
    holes,
    registered,
    segmentations,
    smoothing,
    voxel_edges,
)
from metricunet.workflows.commission.subjects import PLANS, ScanPlan, Site, make_site
from metricunet.workflows.commission.two_stages import two_stages

Checks = Callable[[Sequence[Site]], Iterable[CommissionCheck]]
REPORT, RESULTS, FILES = "report.html", "commission.json", "files"
#: What is going on in the folder, for another one that would work there.
COMMISSIONING = "a commissioning"
#: Whose versions the report states: everything that reads, writes or computes.
PACKAGES = ("numpy", "scipy", "torch", "pydicom", "python-gdcm", "highdicom", "nibabel")
#: In this order: later ones use the files of earlier ones.
GROUPS: dict[str, Checks] = {
    "DICOM CT in": dicom_in,
    "NIfTI out and in": nifti,
    "NRRD, MetaImage in": itk,
    "RTSTRUCT, voxel edges": voxel_edges,
    "RTSTRUCT, sub-voxel": between_voxels,
    "RTSTRUCT, smoothed": smoothing,
    "RTSTRUCT, holes": holes,
    "RTSTRUCT, adding": adding,
    "RTSTRUCT, registered": registered,
    "DICOM SEG out and in": segmentations,
    "Resampling and crop": volumes,
    "Measures": spheres,
    "Two-stage prediction": two_stages,
    "Read by plastimatch": by_plastimatch,
    "Checked by dciodvfy": by_dciodvfy,
}


@dataclass(frozen=True)
class Commissioning:
    """What became of all checks.

    Attributes:
        checks: all checks, in the order of the report.
        plans: the scan geometries.
        environment: processor, system and versions.
        judges: for each program of others the version that it states; None where it is not installed.
        finished: the local time at which the last check ended.
        report: path of the page.
    """

    checks: tuple[CommissionCheck, ...]
    plans: tuple[ScanPlan, ...]
    environment: dict[str, Any]
    judges: dict[str, str | None]
    finished: str
    report: Path

    @property
    def failed(self) -> tuple[CommissionCheck, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.status == "fail")

    @property
    def not_run(self) -> tuple[CommissionCheck, ...]:
        """The checks that need a program that is not installed."""
        return tuple(check for check in self.checks if check.status == "not run")

    @property
    def verdict(self) -> str:
        """`pass` where nothing failed, else `fail`."""
        return "fail" if self.failed else "pass"

    @property
    def groups(self) -> list[tuple[str, list[CommissionCheck]]]:
        """The checks by door."""
        return [(name, list(checks)) for name, checks in groupby(self.checks, key=lambda check: check.group)]

    def text(self) -> str:
        """Say in a line what became of each door, and in a last one of all."""
        counts = f"{len(self.failed)} failed, {len(self.not_run)} not run"
        lines = [summary_line(name, checks) for name, checks in self.groups]
        return "\n".join([*lines, f"{self.verdict}: {len(self.checks)} checks, {counts}"])

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "verdict": self.verdict,
            "checks_total": len(self.checks),
            "checks_failed": len(self.failed),
            "checks_not_run": len(self.not_run),
            "version": __version__,
            "finished": self.finished,
            "environment": self.environment,
            "judges": self.judges,
            "geometries": {plan.name: plan.title for plan in self.plans},
            "checks": [check.to_json() for check in self.checks],
        }


def commission(
    output: Path,
    *,
    plans: Sequence[ScanPlan] = PLANS,
    progress: Progress | None = None,
) -> Commissioning:
    """Send analytic shapes through every door and back, and report how they came through.

    Args:
        output: folder of report.html, files/ with all that was written, and commission.json, the results and the
            record. Nothing is there before all is done; only files of an earlier commissioning are replaced.
        plans: scan geometries.
        progress: called with (done, all).

    Raises:
        InputError: the folder holds a file that is not an earlier commissioning's or was changed since, another
            commissioning works there, or it cannot be written.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file, expected a folder for the results; choose another folder")
    own = OwnFiles(output, RESULTS, "commission")
    refuse_claimed(own.claim, COMMISSIONING)
    own.check_alone()  # in a folder of others not even a claim is left
    with claimed(own.claim, COMMISSIONING):
        own.check_alone()
        return _commission(own, plans, progress or no_progress)


def _commission(own: OwnFiles, plans: Sequence[ScanPlan], progress: Progress) -> Commissioning:
    record = RunRecord("commission", {"output": own.folder})
    progress(0, len(GROUPS))
    try:
        work = own.work()
        sites = _sites(plans, work / FILES)
        checks: list[CommissionCheck] = []
        for done, (name, run) in enumerate(GROUPS.items(), start=1):
            checks += checked(name, lambda run=run: run(sites()))  # type: ignore[misc]
            progress(done, len(GROUPS))
        result = Commissioning(
            checks=tuple(checks),
            plans=tuple(plans),
            environment=environment(),
            judges={name: version_of(name) for name in (PLASTIMATCH, DCIODVFY)},
            finished=datetime.now().astimezone().isoformat(timespec="seconds"),
            report=own.folder / REPORT,
        )
        write_text(work / REPORT, render_report(result))
        own.stage_tree()
        record.facts = {"failed": [f"{c.group}: {c.name}" for c in result.failed]}
        own.commit(record.content() | result.to_json())
    except BaseException:
        own.discard()
        raise
    return result


def environment() -> dict[str, Any]:
    """Describe where the checks ran; nothing that names the computer or its user."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "missing"
    return {**machine(), "packages": packages}


def summary_line(name: str, checks: Sequence[CommissionCheck]) -> str:
    """Say in one line what became of a group."""
    failed = [check for check in checks if check.status == "fail"]
    if failed:
        words = [check.reason or f"{check.found}, at most {check.allowed} allowed" for check in failed]
        texts = (f"{check.name}: {word}" for check, word in zip(failed, words, strict=True))
        return f"fail     {name}: {'; '.join(texts)}"
    if all(check.status == "not run" for check in checks):
        return f"not run  {name}: {checks[0].reason}"
    return f"pass     {name}: {len(checks)} checks"


def _sites(plans: Sequence[ScanPlan], folder: Path) -> Callable[[], Sequence[Site]]:
    """Write all scans and read them back; what goes wrong there is raised to whoever asks for them."""
    try:
        sites = [make_site(plan, folder / plan.name) for plan in plans]
    except Exception as error:  # the report must tell of a door that is broken altogether
        trouble = error

        def broken() -> Sequence[Site]:
            raise trouble

        return broken
    return lambda: sites
