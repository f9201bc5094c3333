"""A model whose answer is known: each class is a band of HU. And scans of simple shapes for it to segment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from metricunet.files.model import (
    FORMAT_VERSION,
    ORGANS_FORMAT_VERSION,
    Calibration,
    ModelCard,
    write_model,
)
from metricunet.networks import Network, NetworkOutput, build
from metricunet.specs import LocateSpec, SegmentSpec
from metricunet.volume import Geometry, Volume

WINDOW = (-1000.0, 1000.0)
#: Of the logits per HU: sure of themselves, and still steady between voxels.
STEEPNESS = 0.1
FAT_HU, GLAND_HU, AIR_HU = -90.0, 60.0, -1000.0
#: Half-way between fat and gland, and far above it.
GLAND_BAND = (-15.0, 135.0)

Shape = Callable[[NDArray[np.float64]], NDArray[np.bool_]]


class Bands(Network):
    """Class k where the HU lie in its band; its probability is one half at the band's ends. 2D or 3D."""

    divisor = normalised_stride = bottleneck_channels = 1
    decoder_channels = (1,)

    def __init__(self, bands: str, spatial_dims: int, in_channels: int, classes: int) -> None:
        super().__init__()
        self.bands = [tuple(map(float, band.split(":"))) for band in bands.split()]
        self.spatial_dims, self.in_channels = spatial_dims, in_channels
        assert len(self.bands) == classes - 1
        self.nothing = torch.nn.Parameter(torch.zeros(1))  # a model file needs a weight

    def forward_with_maps(self, images: Tensor) -> NetworkOutput:
        hu = images.float() * (WINDOW[1] - WINDOW[0]) / 2 + sum(WINDOW) / 2
        scores = [torch.minimum(hu - low, high - hu) * STEEPNESS for low, high in self.bands]
        logits = torch.cat([torch.zeros_like(hu), *scores], dim=1)
        return NetworkOutput(logits, [images], images)

    def encode(self, images: Tensor) -> list[Tensor]:
        return [images]

    @property
    def encoder_parts(self) -> Sequence[torch.nn.Module]:
        return ()


@contextmanager
def bands_known(architecture: type[Network] = Bands) -> Iterator[None]:
    """Let model files name the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(build.NETWORKS, "bands", architecture)
        yield


def write_bands_model(
    path: Path,
    labels: Mapping[str, int] | None = None,
    bands: Sequence[tuple[float, float]] = (GLAND_BAND,),
    *,
    locate_bands: Sequence[tuple[float, float]] | None = None,
    target: str = "prostate",
    ranges: Mapping[str, tuple[float, float]] | None = None,
    trained_on: str = "drawn shapes",
    spacing_mm: tuple[float, float, float] = (2.0, 2.0, 2.0),
    crop_voxels: tuple[int, int, int] = (32, 32, 32),
    tg263: Mapping[str, str] | None = None,
    calibration: Calibration | None = None,
    organs: Mapping[str, tuple[float, float]] | None = None,
    organs_spacing_mm: tuple[float, float, float] = (4.0, 4.0, 4.0),
    organs_crop_voxels: tuple[int, int, int] = (28, 18, 30),
) -> Path:
    """Write a model file whose stages answer with bands of HU, one for each label of the stage in order.

    Those of `organs` are the organs' network's. The others are the two stages', with `bands`.
    """
    labels, organs = dict(labels or {"prostate": 1}), dict(organs or {})

    def network(found: Sequence[tuple[float, float]], dims: int) -> dict[str, object]:
        # A card holds small numbers and words alone, so the bands are written as text.
        text = " ".join(f"{low:g}:{high:g}" for low, high in found)
        sizes = {"spatial_dims": dims, "in_channels": 1, "classes": len(found) + 1}
        return {"architecture": "bands", "bands": text, **sizes}

    card = ModelCard(
        locate=LocateSpec(network(locate_bands or bands, 3), (4.0, 4.0, 4.0), WINDOW),
        segment=SegmentSpec(network(bands, 2), spacing_mm, crop_voxels, WINDOW, 1),
        labels=labels,
        tg263=dict(tg263 or {name: name.title().replace("_", "") for name in labels}),
        target=target,
        ranges=dict(ranges or {}),
        validation={},
        trained_on=trained_on,
        data_sha256="",
        seed=0,
        version="0",
        calibration=calibration,
        organs=SegmentSpec(network(list(organs.values()), 2), organs_spacing_mm, organs_crop_voxels, WINDOW, 1)
        if organs
        else None,
        organs_structures=tuple(organs),
        format_version=ORGANS_FORMAT_VERSION if organs else FORMAT_VERSION,
    )
    stages = ("locate", "segment", "organs") if organs else ("locate", "segment")
    weights = {f"{stage}.nothing": torch.zeros(1) for stage in stages}
    write_model(path, card, weights)
    return path


def ball(centre_mm: Sequence[float], radii_mm: Sequence[float] | float) -> Shape:
    """An ellipsoid about an LPS point (x, y, z), radii along the same axes."""
    return lambda place: np.asarray((((place - centre_mm) / radii_mm) ** 2).sum(axis=-1) < 1)


def box(low_mm: Sequence[float], high_mm: Sequence[float]) -> Shape:
    """A box between two LPS points."""
    return lambda place: np.asarray(((place >= low_mm) & (place < high_mm)).all(axis=-1))


def drawn_scan(
    *shapes: tuple[Shape, float],
    shape: tuple[int, int, int] = (60, 72, 80),
    spacing_mm: tuple[float, float, float] = (2.0, 2.0, 2.0),
    noise_hu: float = 5.0,
    body_hu: float = FAT_HU,
) -> Volume:
    """Paint shapes with their HU, later ones over earlier ones, into a body in air about LPS (0, 0, 0)."""
    middle = (np.asarray(shape) - 1) / 2 * np.asarray(spacing_mm)
    geometry = Geometry.from_parts(shape, spacing_mm, -middle[::-1])
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    place = geometry.to_world(index)
    hu = np.full(shape, AIR_HU)
    half = np.asarray(geometry.extent_mm)[1:] / 2 - 6
    hu[((place[..., 1] / half[0]) ** 2 + (place[..., 0] / half[1]) ** 2) < 1] = body_hu
    for inside, value in shapes:
        hu[inside(place)] = value
    hu += np.random.default_rng(0).normal(0, noise_hu, shape)
    return Volume(np.rint(hu).astype(np.int16), geometry)
