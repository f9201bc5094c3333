"""A tiny cohort whose answer is easy to learn: bright ellipsoids in a body of fat."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from metricunet.cohort.layout import dataset_content, image_path, label_path
from metricunet.files.atomic import write_json
from metricunet.files.nifti import write_nifti
from metricunet.volume import Geometry, Volume

#: Settings under which both stages learn the tiny cohort within seconds.
TINY_SETTINGS = (
    "locate.base_channels=4",
    "locate.levels=3",
    "locate.patch_voxels=[16, 16, 16]",
    "locate.spacing_mm=[6, 6, 6]",
    "locate.epochs=5",
    "locate.updates_per_epoch=100",
    "locate.batch_size=4",
    "locate.learning_rate=0.01",
    "segment.base_channels=4",
    "segment.levels=3",
    "segment.spacing_mm=[4, 2, 2]",
    "segment.crop_mm=[64, 64, 64]",
    "segment.box_mm=[80, 96, 96]",
    "segment.batch_size=4",
    "segment.epochs=2",
    "segment.updates_per_epoch=20",
    "segment.learning_rate=0.01",
    "metric.voxels=64",
    "metric.warm_up_updates=10",
)


def make_scan(seed: int, with_target: bool = True) -> tuple[Volume, Volume]:
    """Return image (int16 HU) and labels (uint8) of one scan."""
    draw = np.random.default_rng(seed)
    geometry = Geometry.from_parts((30, 48, 56), (4, 3, 3), draw.uniform(-100, 100, 3))
    index = np.stack(np.meshgrid(*[np.arange(n) for n in geometry.shape], indexing="ij"), axis=-1)
    place = (index - (np.array(geometry.shape) - 1) / 2) * np.array(geometry.spacing_mm)
    body = np.square(place[..., 1:] / (60, 75)).sum(axis=-1) < 1
    hu = np.where(body, -90.0, -1000.0)
    centre, radii = draw.uniform(-12, 12, 3), draw.uniform(16, 22, 3)
    target = (np.square((place - centre) / radii).sum(axis=-1) < 1) & with_target
    hu[target] = 60
    hu += draw.normal(0, 10, hu.shape)
    return Volume(hu.astype(np.int16), geometry), Volume(target.astype(np.uint8), geometry)


def make_tiny_cohort(folder: Path, n: int, n_test: int = 0, absent: Sequence[int] = ()) -> Path:
    """Write a cohort of n training and n_test unseen cases; those listed in `absent` hold no target."""
    for k in range(n + n_test):
        image, labels = make_scan(k, k not in absent)
        split = "Tr" if k < n else "Ts"
        write_nifti(image_path(folder, f"case_{k:02d}", split), image)
        write_nifti(label_path(folder, f"case_{k:02d}", split), labels)
    write_dataset_json(folder, {"prostate": 1}, n, "bright ellipsoids", "synthetic")
    return folder


#: Structures of the cohorts of `make_organs_cohort`.
ORGAN_LABELS = {"prostate": 1, "side_left": 2, "side_right": 3, "bowl": 4}
#: Settings of the organs' network for them, beside `TINY_SETTINGS`.
ORGANS_SETTINGS = (
    "organs.structures=[side_right, side_left, bowl]",
    "organs.base_channels=4",
    "organs.levels=3",
    "organs.spacing_mm=[4, 4, 4]",
    "organs.crop_mm=[112, 96, 160]",
    "organs.box_mm=[128, 112, 176]",
    "organs.batch_size=4",
    "organs.epochs=2",
    "organs.updates_per_epoch=20",
    "organs.learning_rate=0.01",
)


def make_organs_scan(seed: int, with_target: bool = True) -> tuple[Volume, Volume]:
    """Return image and labels of a scan with a target, an organ above it, and one on either side of it.

    The organs of the two sides look alike: only where they lie tells them apart.
    """
    draw = np.random.default_rng(seed)
    geometry = Geometry.from_parts((30, 36, 56), (4, 3, 3), (-82.5, -52.5, -58.0))
    index = np.stack(np.meshgrid(*[np.arange(n) for n in geometry.shape], indexing="ij"), axis=-1)
    place = geometry.to_world(index)
    hu = np.where(np.square(place[..., :2] / (78, 50)).sum(axis=-1) < 1, -90.0, -1000.0)
    labels = np.zeros(geometry.shape, dtype=np.uint8)
    centre = draw.uniform(-4, 4, 3)
    shapes = {"prostate": ((0, 0, -8), 18, 60), "bowl": ((0, -4, 32), 16, 10)}
    shapes |= {"side_left": ((48, 0, 0), 13, 300), "side_right": ((-48, 0, 0), 13, 300)}
    for name, (offset, radius, value) in shapes.items():
        inside = np.square(place - centre - offset).sum(axis=-1) < draw.uniform(radius - 2, radius + 2) ** 2
        if name != "prostate" or with_target:
            hu[inside], labels[inside] = value, ORGAN_LABELS[name]
    hu += draw.normal(0, 10, hu.shape)
    return Volume(hu.astype(np.int16), geometry), Volume(labels, geometry)


def make_organs_cohort(folder: Path, n: int, n_test: int = 0, absent: Sequence[int] = ()) -> Path:
    """Write a cohort of scans by `make_organs_scan`; those listed in `absent` hold no target."""
    for k in range(n + n_test):
        image, labels = make_organs_scan(k, k not in absent)
        split = "Tr" if k < n else "Ts"
        write_nifti(image_path(folder, f"case_{k:02d}", split), image)
        write_nifti(label_path(folder, f"case_{k:02d}", split), labels)
    write_dataset_json(folder, ORGAN_LABELS, n, "bright balls", "synthetic")
    return folder


def write_dataset_json(
    folder: Path, labels: Mapping[str, int], num_training: int, description: str, trained_on: str
) -> None:
    """Write `dataset.json` as nnU-Net v2 reads it, with `trained_on` as one more field."""
    write_json(folder / "dataset.json", dataset_content(labels, num_training, description, trained_on))


def edit_json(path: Path, **changes: object) -> None:
    """Change fields of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
