"""Part `io`: reading and writing scans, masks and structure sets, against pydicom and nibabel by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import torch
from pydicom.pixels.processing import apply_rescale

from benchmarks.report import rate_line
from benchmarks.subject import Subject
from metricunet.files.dicom.series import CtSeries, find_series
from metricunet.files.nifti import read_nifti, write_nifti
from metricunet.files.rtstruct.outlines import Structure
from metricunet.files.rtstruct.read import read_rtstruct
from metricunet.files.rtstruct.write import write_rtstruct
from metricunet.progress import Progress
from metricunet.volume import Volume
from metricunet.workflows.bench.result import MeasuredOn, head, ratio_line
from metricunet.workflows.bench.timing import Ratio, Run, Times, alternate, counter

REPEATS = 3
#: No further round of one row begins after this many seconds.
ROW_BUDGET_S = 60.0
#: Radii of the ellipsoid that is written as mask and structure set; about 47 mL, as a gland.
RADII_MM = (20.0, 22.0, 25.0)
NAME = "PROSTATE"


@dataclass(frozen=True)
class FileRow:
    """One thing read or written.

    Attributes:
        name: what.
        megabytes: of voxels, or of the structure set's file; the rates are of these.
        ours: times of this package.
        baseline_name: what it is held against; empty where there is nothing.
        baseline: its times.
        ratio: baseline over ours: how many times faster ours is.
    """

    name: str
    megabytes: float
    ours: Times
    baseline_name: str
    baseline: Times | None
    ratio: Ratio | None


@dataclass(frozen=True)
class FilesBench:
    """What files cost, with the system's file cache warm.

    Attributes:
        facts: where it was measured.
        subject: the scan, in words.
        rows: one for each thing read or written.
    """

    facts: MeasuredOn
    subject: tuple[str, ...]
    rows: tuple[FileRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain dictionaries and lists."""
        return asdict(self)

    def text(self) -> str:
        """Write it for people to read."""
        lines = [head("io", self.facts) + ", files cached by the system", *self.subject]
        for row in self.rows:
            lines.append(rate_line(row.name, row.ours, _rate(row.megabytes, row.ours)))
            if row.baseline is not None and row.ratio is not None:
                name = f"  {row.baseline_name}"
                lines.append(rate_line(name, row.baseline, _rate(row.megabytes, row.baseline)))
                lines.append(ratio_line(f"  {row.baseline_name} / ours", row.ratio))
        return "\n".join(lines)


def bench_files(
    subject: Subject,
    device: torch.device,
    *,
    repeats: int | None = None,
    progress: Progress | None = None,
) -> FilesBench:
    """Measure reading and writing.

    Args:
        subject: its scan is read and written; the model is not used.
        device: named in the result alone.
        repeats: of each measurement.
        progress: called with (done, all).
    """
    work = _Work(subject)
    tasks = work.tasks()
    repeats = repeats or REPEATS
    advance = counter(sum(1 + (task.theirs is not None) for task in tasks) * repeats, progress)
    rows = []
    for task in tasks:
        runs: dict[str, Run] = {"ours": task.ours}
        if task.theirs is not None:
            runs["theirs"] = task.theirs
        found = alternate(
            runs, repeats, torch.device("cpu"), budget_s=ROW_BUDGET_S, advance=advance
        )  # one round warms the file cache
        theirs = found.get("theirs")
        rows.append(
            FileRow(
                task.name,
                task.megabytes(),
                Times.of(found["ours"]),
                task.baseline,
                None if theirs is None else Times.of(theirs),
                None if theirs is None else Ratio.of(theirs, found["ours"]),
            )
        )
    return FilesBench(MeasuredOn.of(device), tuple(subject.describe()[:1]), tuple(rows))


@dataclass(frozen=True, eq=False)
class _Task:
    name: str
    megabytes: Callable[[], float]
    ours: Run
    baseline: str = ""
    theirs: Run | None = None


class _Work:
    """The files of one subject, and what is done with them."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.scan = subject.scan.canonical()
        self.folder = subject.folder
        self.mask = ellipsoid(self.scan)
        self.series = find_series(subject.uncompressed).series[0]

    def tasks(self) -> list[_Task]:
        voxels = self.scan.array.size * 2 / 1e6
        folders = {"DICOM read, uncompressed": self.subject.uncompressed}
        given = self.subject.given
        if given is not None and self.subject.is_dicom:
            folders[f"DICOM read, as given ({syntax(find_series(given).series[0])})"] = given
        tasks = [
            _Task(
                name,
                lambda: voxels,
                partial(read_series, folder),
                "pydicom slice by slice",
                partial(read_slice_by_slice, folder),
            )
            for name, folder in folders.items()
        ]
        for what, volume in (("scan", self.scan), ("mask", self.mask)):
            tasks += self._nifti(what, volume)
        rtstruct = self.folder / "bench.rtstruct.dcm"
        structures = [Structure(NAME, Volume(self.mask.array, self.series.geometry))]

        def write() -> None:
            write_rtstruct(rtstruct, self.series, structures, description="Made by a benchmark")

        def read() -> Volume:
            return read_rtstruct(rtstruct, self.series).mask(NAME, self.series.geometry)

        def size() -> float:
            return rtstruct.stat().st_size / 1e6

        return [*tasks, _Task("RTSTRUCT write", size, write), _Task("RTSTRUCT read to a mask", size, read)]

    def _nifti(self, what: str, volume: Volume) -> list[_Task]:
        ours, theirs = self.folder / f"{what}.nii.gz", self.folder / f"{what}-nibabel.nii.gz"
        size = volume.array.nbytes / 1e6
        write_nifti(ours, volume)
        image: Any = nib.load(ours)
        plain = nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine)
        return [
            _Task(
                f"NIfTI write, {what} .nii.gz",
                lambda: size,
                lambda: write_nifti(ours, volume),
                "nibabel",
                lambda: nib.save(plain, theirs),
            ),
            _Task(
                f"NIfTI read, {what} .nii.gz",
                lambda: size,
                lambda: read_nifti(ours),
                "nibabel",
                partial(read_with_nibabel, ours),
            ),
        ]


def read_slice_by_slice(folder: Path) -> np.ndarray:
    """Read a series as a script does: every file, rescaled, stacked by position. Returns int16 HU."""
    slices = []
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        hu = apply_rescale(dataset.pixel_array, dataset).astype(np.int16)
        slices.append((float(dataset.ImagePositionPatient[2]), hu))
    return np.stack([hu for _, hu in sorted(slices, key=lambda pair: pair[0])])


def read_series(folder: Path) -> Volume:
    """Find, check and read the one series of a folder."""
    return find_series(folder).series[0].read()


def read_with_nibabel(path: Path) -> np.ndarray:
    """Read the voxels of a NIfTI file."""
    image: Any = nib.load(path)
    return np.asanyarray(image.dataobj)


def ellipsoid(scan: Volume) -> Volume:
    """Return the mask of an ellipsoid of a gland's size in the middle of a scan."""
    squared: np.ndarray = np.zeros(scan.array.shape, dtype=np.float32)
    for axis, (n, step, radius) in enumerate(zip(scan.array.shape, scan.spacing_mm, RADII_MM, strict=True)):
        along = (((np.arange(n) - (n - 1) / 2) * step / radius) ** 2).astype(np.float32)
        squared += along.reshape([-1 if a == axis else 1 for a in range(3)])
    return scan.with_array((squared <= 1).astype(np.uint8))


def syntax(series: CtSeries) -> str:
    """Name the transfer syntax of a series, such as JPEG2000Lossless."""
    meta = pydicom.dcmread(series.files[0], stop_before_pixels=True).file_meta
    return str(meta.TransferSyntaxUID.keyword)


def _rate(megabytes: float, times: Times) -> str:
    return f"{megabytes / times.median_s:.0f} MB/s" if megabytes >= 1 else f"{megabytes * 1e3:.0f} kB"
