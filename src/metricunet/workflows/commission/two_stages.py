"""Both stages of a prediction around networks whose answer is known, from files to files.

Both stages of the model call a voxel the target where its HU lies above a threshold. The networks are U-Nets of
one channel, wired by hand: the input runs over the finest skip to the last layer and nothing else does. What is
left to go wrong is what lies around them: resampling, crop, paste, axes, files.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metricunet import __version__
from metricunet.files.model import ModelCard, joined, write_model
from metricunet.files.nifti import read_labels
from metricunet.files.rtstruct.read import read_rtstruct
from metricunet.files.seg.read import read_seg
from metricunet.inference.predict import predict
from metricunet.networks import build_network
from metricunet.specs import LocateSpec, SegmentSpec
from metricunet.volume import FloatArray, Volume
from metricunet.workflows.commission.checks import VOXELS, CommissionCheck, Measurement
from metricunet.workflows.commission.scans import oriented_files
from metricunet.workflows.commission.subjects import HALF, Site

STRUCTURE = "prostate"
#: HU that map to -1 and 1, and the HU from which on a voxel is the target. In that window no voxel's value in bf16
#: is the threshold, so there are no ties.
WINDOW_HU = (-150.0, 250.0)
THRESHOLD_HU = 0.625
#: Of the last layer: logits over the window.
STEEPNESS = 10.0
COARSE_MM, FINE_MM = (4.0, 4.0, 4.0), (2.0, 1.0, 1.0)
#: Stage 2's crop: larger than the target, smaller than the scan.
CROP_VOXELS = (28, 60, 60)
NEIGHBOURS = 5


def write_known_model(path: Path) -> None:
    """Write a model file whose two stages are the threshold."""
    common = {"architecture": "unet", "classes": 2, "base_channels": 1, "levels": 2, "norm": "batch"}
    arguments: dict[str, dict[str, Any]] = {
        "locate": {**common, "in_channels": 1, "spatial_dims": 3},
        "segment": {**common, "in_channels": NEIGHBOURS, "spatial_dims": 2},
    }
    weights: dict[str, dict[str, Tensor]] = {}
    for stage, own in arguments.items():
        network = build_network(**own)
        _wire(network)
        weights[stage] = network.state_dict()
    card = ModelCard(
        locate=LocateSpec(arguments["locate"], COARSE_MM, WINDOW_HU),
        segment=SegmentSpec(arguments["segment"], FINE_MM, CROP_VOXELS, WINDOW_HU),
        labels={STRUCTURE: 1},
        tg263={STRUCTURE: "Prostate"},
        target=STRUCTURE,
        ranges={},
        validation={},
        trained_on="synthetic",
        data_sha256="",
        seed=0,
        version=__version__,
    )
    write_model(path, card, joined(**weights))


@torch.no_grad()
def _wire(network: Any) -> None:
    """Let the middle slice's HU, plus one so that no ReLU bends them, reach the last layer unchanged."""
    for parameter in network.parameters():
        parameter.zero_()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.weight.fill_(1.0)
            module.running_var.fill_(1.0 - module.eps)  # type: ignore[union-attr]
    first, last = network.encoder[0], network.decoder[-1]
    _pass_on(first[0], first[0].in_channels // 2)
    first[1].bias.fill_(1.0)
    _pass_on(first[3], 0)
    _pass_on(last[0], 1)  # the skip follows the channel that comes from below
    _pass_on(last[3], 0)
    low, high = WINDOW_HU
    edge = 1 + (THRESHOLD_HU - (low + high) / 2) / ((high - low) / 2)
    network.classify.weight[1] = STEEPNESS
    network.classify.bias[1] = -STEEPNESS * edge


def _pass_on(convolution: Any, channel: int) -> None:
    """Make a convolution hand one input channel on as it is."""
    kernel = torch.zeros(convolution.weight.shape[2:])
    kernel[tuple(n // 2 for n in kernel.shape)] = 1
    convolution.weight[0, channel] = kernel


PREDICTED = "predicted"
#: Of the mask that the networks' threshold stands for. Stage 2 sees the scan at 1 x 1 x 2 mm.
CENTRE_TOLERANCE_MM, VOLUME_TOLERANCE_PERCENT, DICE_TOLERANCE = 0.2, 2.0, 0.02


def two_stages(sites: Sequence[Site]) -> Iterator[CommissionCheck]:
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
            overwrite=None,
        )
        mask = _the_mask(site)
        share = site.plan.share(site.plan.target)
        meant = share > HALF
        off = _centre_mm(mask, site) - _centre_mm(share, site)
        centres.append(Measurement(site.plan.name, float(np.linalg.norm(off))))
        z, _, _ = site.plan.grid.axes_mm()
        exact = site.plan.target.sections_ml(z, site.plan.slice_mm)
        volume = mask.sum() * site.geometry.voxel_volume_ml
        volumes.append(Measurement(site.plan.name, 100 * float(volume / exact - 1)))
        overlaps.append(
            Measurement(site.plan.name, 1 - 2 * float((mask & meant).sum() / (mask.sum() + meant.sum())))
        )
        formats.append(Measurement(site.plan.name, float(_formats_differ(site, mask))))
    yield CommissionCheck(
        group, "Centre of the target, DICOM", "off the sections' centre", centres, CENTRE_TOLERANCE_MM, "mm"
    )
    yield CommissionCheck(group, "Its volume", "against sum of sections", volumes, VOLUME_TOLERANCE_PERCENT, "%")
    yield CommissionCheck(group, "Its voxels", "1 − Dice", overlaps, DICE_TOLERANCE)
    yield CommissionCheck(group, "RTSTRUCT and SEG against the NIfTI", VOXELS, formats)
    orders = tuple(_orders(sites[-1], model))
    shutil.rmtree(folder)
    yield CommissionCheck(group, "NIfTI in all 48 orders and directions of axes", VOXELS, orders)


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


def _orders(site: Site, model: Path) -> Iterator[Measurement]:
    """Compare each order's mask with that of the DICOM series, voxel by voxel in the patient."""
    scan: Volume = site.series.read().canonical()
    meant = Volume(_the_mask(site), site.geometry).canonical()
    files, masks = site.folder / "orders", site.folder / "orders-predicted"
    names = dict(oriented_files(scan, files))
    predict([files], [model], masks, device="cpu", overwrite=None)
    for path, axes in names.items():
        found = read_labels(masks / path.name).reordered_like(meant.geometry)
        yield Measurement(axes, float(np.count_nonzero((found.array != 0) != meant.array)))
    shutil.rmtree(files)
    shutil.rmtree(masks)
