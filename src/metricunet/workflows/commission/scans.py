"""Scans through the doors: DICOM CT in, NIfTI out and in, NRRD and MetaImage in."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from metricunet.files.dicom.series import find_series
from metricunet.files.nifti import read_nifti, write_nifti
from metricunet.files.scan import read_scan
from metricunet.volume import FloatArray, Geometry, Volume
from metricunet.workflows.commission.checks import VOXELS, CommissionCheck, Measurement
from metricunet.workflows.commission.subjects import ScanPlan, Site

#: Coordinates are written with six decimals, and NIfTI holds its affine in float32.
PLACE_TOLERANCE_MM = 0.001
CENTRES = "voxel centres off"


def dicom_in(sites: Sequence[Site]) -> Iterator[CommissionCheck]:
    """Each series as read, against the numbers that it was written from."""
    group = "DICOM CT in"
    places, values = [], []
    for site in sites:
        scan = site.series.read()
        places.append(Measurement(site.plan.name, _off_mm(scan.geometry, site.plan)))
        values.append(Measurement(site.plan.name, _differing(scan.array, site.plan.hu)))
    yield CommissionCheck(group, "Grid against the header's equation", CENTRES, places, PLACE_TOLERANCE_MM, "mm")
    yield CommissionCheck(group, "HU against what was stored", VOXELS, values)
    accepted = []
    for site in sites:
        folder = site.folder / "gap"
        shutil.copytree(site.folder / "ct", folder)
        sorted(folder.iterdir())[len(site.series.files) // 2].unlink()
        accepted.append(Measurement(site.plan.name, len(find_series(folder).series)))
        shutil.rmtree(folder)
    yield CommissionCheck(group, "Series that lacks a slice", "accepted", accepted)


def nifti(sites: Sequence[Site]) -> Iterator[CommissionCheck]:
    """Scans out and in, seen by nibabel alone too; and every order and direction of a file's axes."""
    group = "NIfTI out and in"
    places, values = [], []
    for site in sites:
        path = site.folder / "scan.nii.gz"
        write_nifti(path, site.series.read())
        image: Any = nib.load(path)
        # nibabel's world is RAS, its axes here column, row, slice.
        lps: FloatArray = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine[:, [2, 1, 0, 3]]
        stored = np.asanyarray(image.dataobj).transpose()
        back = read_nifti(path)
        off = max(_off_mm(Geometry(back.array.shape, lps), site.plan), _off_mm(back.geometry, site.plan))
        places.append(Measurement(site.plan.name, off))
        differ = max(_differing(stored, site.plan.hu), _differing(back.array, site.plan.hu))
        values.append(Measurement(site.plan.name, differ))
    yield CommissionCheck(group, "Grid, by nibabel and by ours", CENTRES, places, PLACE_TOLERANCE_MM, "mm")
    yield CommissionCheck(group, "HU, by nibabel and by ours", VOXELS, values)
    wrong, unlike = [], []
    site = sites[-1]
    scan = site.series.read().canonical()
    for path, axes in oriented_files(scan, site.folder / "orders"):
        read = read_nifti(path)
        off = 0 if read.canonical().geometry.same_grid(scan.geometry) else scan.array.size
        wrong.append(Measurement(axes, max(off, _differing(read.canonical().array, scan.array))))
        out = path.with_name("out.nii.gz")
        write_nifti(out, read, like=path)
        images: list[Any] = [nib.load(path), nib.load(out)]
        same = np.array_equal(images[0].affine, images[1].affine)
        differ = _differing(np.asanyarray(images[1].dataobj), np.asanyarray(images[0].dataobj))
        unlike.append(Measurement(axes, differ if same else float(scan.array.size)))
        path.unlink()
        out.unlink()
    (site.folder / "orders").rmdir()
    yield CommissionCheck(group, "Axes in all 48 orders and directions, in", VOXELS, wrong)
    yield CommissionCheck(group, "The same, out as they came in", VOXELS, unlike)


def itk(sites: Sequence[Site]) -> Iterator[CommissionCheck]:
    """Scans in NRRD and MetaImage, whose headers are written out by hand here."""
    group = "NRRD, MetaImage in"
    places, values = [], []
    for site in sites:
        for path in (site.folder / "scan.nrrd", site.folder / "scan.mha"):
            path.write_bytes((_nrrd if path.suffix == ".nrrd" else _meta)(site.plan))
            back = read_scan(path)
            places.append(Measurement(site.at(path.suffix), _off_mm(back.geometry, site.plan)))
            values.append(Measurement(site.at(path.suffix), _differing(back.array, site.plan.hu)))
    yield CommissionCheck(group, "Grid against the header's numbers", CENTRES, places, PLACE_TOLERANCE_MM, "mm")
    yield CommissionCheck(group, "HU against what was stored", VOXELS, values)


def oriented_files(scan: Volume, folder: Path) -> Iterator[tuple[Path, str]]:
    """Write a scan as NIfTI with its axes in each of 48 orders and directions, by nibabel alone.

    Args:
        scan: its axes to the head, the back and the left.
        folder: made if need be.

    Yields:
        The file, and where its axes lead, such as `LPS`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ scan.geometry.affine[:, [2, 1, 0, 3]]
    image = nib.Nifti1Image(np.ascontiguousarray(scan.array.transpose()), affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    for order, signs in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
        turned = image.as_reoriented(np.array([[axis, sign] for axis, sign in zip(order, signs, strict=True)]))
        name = "".join(nib.aff2axcodes(turned.affine))
        path = folder / f"{name}.nii.gz"
        nib.save(turned, path)
        yield path, name


def _off_mm(geometry: Geometry, plan: ScanPlan) -> float:
    """How far the outermost voxels' centres lie from where the plan has them."""
    if geometry.shape != plan.grid.shape:
        return float("inf")
    corners = np.array(list(itertools.product(*[(0, n - 1) for n in plan.grid.shape])))
    meant = plan.grid.place_mm(*corners.T)
    return float(np.linalg.norm(geometry.to_world(corners) - meant, axis=1).max())


def _differing(found: NDArray[Any], meant: NDArray[Any]) -> float:
    return float(np.count_nonzero(found != meant)) if found.shape == meant.shape else float(meant.size)


def _steps_mm(plan: ScanPlan) -> tuple[FloatArray, FloatArray]:
    """The steps from column to column, row to row, slice to slice, as rows; and the first voxel's centre."""
    here = plan.grid.place_mm(0, 0, 0)
    return np.array([plan.grid.place_mm(*index) - here for index in ((0, 0, 1), (0, 1, 0), (1, 0, 0))]), here


def _nrrd(plan: ScanPlan) -> bytes:
    steps, first = _steps_mm(plan)

    def vector(values: FloatArray) -> str:
        return "(" + ",".join(repr(float(v)) for v in values) + ")"

    header = [
        "NRRD0004",
        "type: float",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(str(n) for n in plan.grid.shape[::-1])}",
        f"space directions: {' '.join(vector(step) for step in steps)}",
        f"space origin: {vector(first)}",
        "endian: little",
        "encoding: raw",
    ]
    return "\n".join([*header, "", ""]).encode() + plan.hu.astype("<f4").tobytes()


def _meta(plan: ScanPlan) -> bytes:
    steps, first = _steps_mm(plan)
    spacing = np.linalg.norm(steps, axis=1)

    def numbers(values: FloatArray) -> str:
        return " ".join(repr(float(v)) for v in values.ravel())

    header = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        f"TransformMatrix = {numbers(steps / spacing[:, None])}",
        f"Offset = {numbers(first)}",
        f"ElementSpacing = {numbers(spacing)}",
        f"DimSize = {' '.join(str(n) for n in plan.grid.shape[::-1])}",
        "ElementType = MET_FLOAT",
        "ElementDataFile = LOCAL",
    ]
    return "\n".join([*header, ""]).encode() + plan.hu.astype("<f4").tobytes()
