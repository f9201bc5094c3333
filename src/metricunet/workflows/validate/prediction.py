"""Both stages of a prediction around networks whose answer is known, from files to files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricunet.files.nifti import read_labels
from metricunet.files.rtstruct.read import read_rtstruct
from metricunet.files.seg.read import read_seg
from metricunet.inference.predict import predict
from metricunet.volume import FloatArray, Volume
from metricunet.workflows.validate.checks import Check, Finding
from metricunet.workflows.validate.known_network import write_known_model
from metricunet.workflows.validate.scans import oriented_files
from metricunet.workflows.validate.subjects import HALF, Site

PREDICTED = "predicted"
#: Of the mask that the networks' threshold stands for. Stage 2 sees the scan at 1 x 1 x 2 mm.
CENTRE_TOLERANCE_MM, VOLUME_TOLERANCE_PERCENT, DICE_TOLERANCE = 0.2, 2.0, 0.02
VOXELS = "voxels that differ"


def two_stages(sites: Sequence[Site]) -> Iterator[Check]:
    """Predict each series, and one scan in every order and direction of a NIfTI's axes."""
    group = "Two-stage prediction"
    folder = sites[0].folder.parent / "model"
    model = folder / "known.safetensors"
    write_known_model(model)
    centres, volumes, overlaps, formats = [], [], [], []
    for site in sites:
        predict(
            [site.folder / "ct"],
            [model],
            site.folder / PREDICTED,
            formats=("nifti", "rtstruct", "seg"),
            device="cpu",
        )
        mask = _the_mask(site)
        share = site.plan.share(site.plan.target)
        meant = share > HALF
        off = _centre_mm(mask, site) - _centre_mm(share, site)
        centres.append(Finding(site.plan.name, float(np.linalg.norm(off))))
        z, _, _ = site.plan.grid.axes_mm()
        exact = site.plan.target.sections_ml(z, site.plan.slice_mm)
        volume = mask.sum() * site.geometry.voxel_volume_ml
        volumes.append(Finding(site.plan.name, 100 * float(volume / exact - 1)))
        overlaps.append(Finding(site.plan.name, 1 - 2 * float((mask & meant).sum() / (mask.sum() + meant.sum()))))
        formats.append(Finding(site.plan.name, float(_formats_differ(site, mask))))
    yield Check(
        group,
        "Centre of the target, DICOM",
        "off the sections' centre",
        "mm",
        CENTRE_TOLERANCE_MM,
        tuple(centres),
    )
    yield Check(
        group,
        "Its volume",
        "against sum of sections",
        "%",
        VOLUME_TOLERANCE_PERCENT,
        tuple(volumes),
    )
    yield Check(group, "Its voxels", "1 − Dice", "", DICE_TOLERANCE, tuple(overlaps))
    yield Check(group, "RTSTRUCT and SEG against the NIfTI", VOXELS, "", 0, tuple(formats))
    orders = tuple(_orders(sites[-1], model))
    shutil.rmtree(folder)
    yield Check(group, "NIfTI in all 48 orders and directions of axes", VOXELS, "", 0, orders)


def _the_mask(site: Site) -> NDArray[np.bool_]:
    path = site.folder / PREDICTED / f"{site.series.case}.nii.gz"
    return np.asarray(read_labels(path).reordered_like(site.geometry).array != 0)


def _centre_mm(weight: NDArray[Any], site: Site) -> FloatArray:
    """Centre of mass of voxels at the places that the plan gives them."""
    z, y, x = site.plan.grid.axes_mm()
    sums = weight.sum(axis=(0, 1)) @ x, weight.sum(axis=(0, 2)) @ y, weight.sum(axis=(1, 2)) @ z
    return np.asarray(np.array(sums) / weight.sum(), dtype=np.float64)


def _formats_differ(site: Site, mask: NDArray[np.bool_]) -> int:
    base = site.folder / PREDICTED / site.series.case
    (structure,) = read_rtstruct(Path(f"{base}.rtstruct.dcm"), site.series).structures
    contours = read_rtstruct(Path(f"{base}.rtstruct.dcm"), site.series).mask(structure.name, site.geometry)
    (segment,) = read_seg(Path(f"{base}.seg.dcm"), site.series).values()
    return sum(int(np.count_nonzero((other.array != 0) != mask)) for other in (contours, segment))


def _orders(site: Site, model: Path) -> Iterator[Finding]:
    """Compare each order's mask with that of the DICOM series, voxel by voxel in the patient."""
    scan: Volume = site.series.read().canonical()
    meant = Volume(_the_mask(site), site.geometry).canonical()
    files, masks = site.folder / "orders", site.folder / "orders-predicted"
    names = dict(oriented_files(scan, files))
    predict([files], [model], masks, device="cpu")
    for path, axes in names.items():
        found = read_labels(masks / path.name).reordered_like(meant.geometry)
        yield Finding(axes, float(np.count_nonzero((found.array != 0) != meant.array)))
    shutil.rmtree(files)
    shutil.rmtree(masks)
