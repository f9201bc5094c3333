"""Programs of others as judges, where they are installed: plastimatch reads contours, dciodvfy checks files."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metricunet.files.nifti import read_nifti
from metricunet.workflows.commission.checks import VOXELS, CommissionCheck, Measurement
from metricunet.workflows.commission.structure_sets import BETWEEN, VOLUME_TOLERANCE_PERCENT, VOXEL_EDGES
from metricunet.workflows.commission.subjects import Site

PLASTIMATCH, DCIODVFY = "plastimatch", "dciodvfy"
#: Debian's packages that bring them.
PACKAGES = {PLASTIMATCH: "plastimatch", DCIODVFY: "dicom3tools"}
#: A judge that takes longer than this for one file has stopped.
PATIENCE_S = 600


def by_plastimatch(sites: Sequence[Site]) -> Iterator[CommissionCheck]:
    """Let plastimatch fill both kinds of contours on the scan."""
    group = "Read by plastimatch"
    rows = (("Contours along voxel edges", VOXEL_EDGES), ("Sub-voxel contours", BETWEEN))
    program = shutil.which(PLASTIMATCH)
    volumes: list[Measurement] = []
    for name, file in rows:
        if program is None:
            yield _not_run(group, name, VOXELS, PLASTIMATCH)
            continue
        masks = []
        for site in sites:
            theirs = _filled(program, site.folder / file, site)
            z, _, _ = site.plan.grid.axes_mm()
            for shape, structure in site.each():
                mask = theirs.get(shape.name)
                if mask is None:
                    masks.append(Measurement(site.at(shape), float("nan")))
                    continue
                masks.append(Measurement(site.at(shape), float(np.count_nonzero(mask != structure.mask.array))))
                volume = mask.sum() * site.plan.slice_mm * site.plan.row_mm * site.plan.column_mm / 1000
                exact = shape.sections_ml(z, site.plan.slice_mm)
                volumes.append(Measurement(site.at(shape), 100 * float(volume / exact - 1)))
        yield CommissionCheck(group, f"{name}: mask", VOXELS, masks)
    what = "against sum of sections"
    if program is None:
        yield _not_run(group, "Volume of its masks", what, PLASTIMATCH)
    else:
        yield CommissionCheck(group, "Volume of its masks", what, volumes, VOLUME_TOLERANCE_PERCENT, "%")


def by_dciodvfy(sites: Sequence[Site]) -> Iterator[CommissionCheck]:
    """Let dciodvfy look at every DICOM file that was written."""
    group = "Checked by dciodvfy"
    program = shutil.which(DCIODVFY)
    kinds = (
        ("Structure sets", "*.rtstruct.dcm"),
        ("Segmentations", "*.seg.dcm"),
        ("Scans and registrations of this run", "ct/*.dcm"),
    )
    for name, pattern in kinds:
        if program is None:
            yield _not_run(group, name, "errors", DCIODVFY)
            continue
        found, faults = [], list[str]()
        for site in sites:
            files = sorted(site.folder.rglob(pattern))
            if pattern.startswith("ct"):
                files += sorted(site.folder.glob("*.reg.dcm"))
            errors = 0
            for path in files:
                lines, status = _errors(program, path)
                errors += len(lines)
                if status < 0:
                    faults.append(f"{DCIODVFY} ended with status {status} on {path.name}")
                elif status > 0 and not lines:
                    faults.append(f"{DCIODVFY} ended with status {status} on {path.name}, and reported no error")
            found.append(Measurement(site.plan.name, float(errors), {"files": float(len(files))}))
        count = round(sum((f.details or {})["files"] for f in found))
        if not count:
            faults.append(f"no file {pattern} was written, so none was looked at")
        yield CommissionCheck(group, f"{name}, {count} files", "errors", found, reason=next(iter(faults), ""))


def version_of(program: str) -> str | None:
    """Return what an installed judge says of its version, or `installed`; None where it is not installed.

    One that cannot be started, or never ends, costs its own checks and not the report of all.
    """
    path = shutil.which(program)
    if path is None:
        return None
    if program != PLASTIMATCH:
        return "installed"
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, errors="replace", check=False, timeout=PATIENCE_S
        )
    except (OSError, subprocess.SubprocessError):
        return "installed"
    return next(iter((done.stdout + done.stderr).strip().splitlines()), "installed")


def _not_run(group: str, name: str, measured: str, program: str) -> CommissionCheck:
    reason = f"{program} is not installed (Debian: {PACKAGES[program]})"
    return CommissionCheck(group, name, measured, reason=reason, ran=False)


def _filled(program: str, contours: Path, site: Site) -> dict[str, NDArray[np.bool_]]:
    """Masks on the scan's grid by name."""
    output = site.folder / "plastimatch"
    command = [program, "convert", "--input", contours, "--referenced-ct", site.folder / "ct", "--xor-contours"]
    command += ["--output-prefix", output, "--prefix-format", "nii.gz"]
    subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=PATIENCE_S)
    names = {shape.name.replace(" ", "_"): shape.name for shape in site.plan.shapes}
    masks = {}
    for path in output.iterdir():
        name = path.name.removesuffix(".nii.gz")
        masks[names.get(name, name)] = read_nifti(path).reordered_like(site.geometry).array != 0
    shutil.rmtree(output)
    return masks


def _errors(program: str, path: Path) -> tuple[list[str], int]:
    """Return the lines that report an error, and the exit status, which is negative where a signal ended it."""
    done = subprocess.run(
        [program, str(path)], capture_output=True, text=True, errors="replace", check=False, timeout=PATIENCE_S
    )
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
    return lines, done.returncode
