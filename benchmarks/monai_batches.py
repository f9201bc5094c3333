"""What `feeding` and `updates` are held against: the same crops by MONAI's transforms, cache and data loader."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import RandomSampler

from metricunet.cohort.prepare import PreparedCase
from metricunet.training.batches import Batch
from metricunet.training.config import TrainConfig

WORKERS = 2
#: Batches that each worker makes ahead: torch's default.
AHEAD = 2
#: Voxels between the control points of the elastic field, in the slice.
ELASTIC_GRID = 32


class MonaiBatches:
    """Batches of stage 2 as a MONAI user would make them: cached boxes, random transforms in worker processes.

    Each range is that of `AugmentConfig`, as nearly as MONAI's transforms go: contrast turns about 0 HU, the
    jitter is uniform with the same spread, and affine and elastic read the image once each. Workers stay alive.

    Args:
        cases: prepared cases with a fine box.
        config: of the training.
        jitter_mm: standard deviation of the crop's middle along row and column.
        count: batches of one pass.
        device: where batches go.

    Raises:
        ImportError: MONAI is not installed.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        config: TrainConfig,
        jitter_mm: tuple[float, float],
        count: int,
        device: torch.device,
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MONAI's own use of names on their way out
            data, transforms = import_module("monai.data"), import_module("monai.transforms")
        items = [
            {
                "image": torch.from_numpy(case.fine.array)[None].float(),
                "label": torch.from_numpy(case.fine_labels.array)[None],
            }
            for case in cases
            if case.fine is not None and case.fine_labels is not None
        ]
        size = config.segment.batch_size
        with _plain_tensors():
            dataset = data.CacheDataset(
                items, transforms.Compose(_transforms(config, jitter_mm)), num_workers=None, progress=False
            )
        self.device = device
        self.loader = data.DataLoader(
            dataset,
            batch_size=size,
            sampler=RandomSampler(dataset, replacement=True, num_samples=count * size),
            num_workers=WORKERS,
            prefetch_factor=AHEAD,
            persistent_workers=True,
            pin_memory=device.type == "cuda",
        )

    def __iter__(self) -> Iterator[Batch]:
        """Yield one pass of batches, on the device."""
        with _plain_tensors():
            batches = iter(self.loader)  # the workers are forked here, with MONAI as it is now
        while True:
            with _plain_tensors():
                drawn = next(batches, None)
            if drawn is None:
                return
            images = drawn["image"].to(self.device, non_blocking=True)
            labels: Tensor = drawn["label"][:, 0].to(self.device, non_blocking=True)
            yield Batch(images, labels.to(torch.uint8))

    def close(self) -> None:
        """Let the workers go."""
        workers = self.loader._iterator
        if workers is not None:
            workers._shutdown_workers()


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """Let MONAI carry no metadata along, which is faster, and keep its warnings to itself."""
    data = import_module("monai.data")
    before = data.get_track_meta()
    data.set_track_meta(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        data.set_track_meta(before)


def _transforms(config: TrainConfig, jitter_mm: tuple[float, float]) -> list[Any]:
    t = import_module("monai.transforms")
    stage, augment = config.segment, config.augment
    both = ["image", "label"]
    modes = ("bilinear", "nearest")
    box, crop = stage.box_voxels, stage.crop_voxels
    uniform_reach = [math.sqrt(3) * mm / step for mm, step in zip(jitter_mm, stage.spacing_mm[1:], strict=True)]
    pixel_mm = stage.spacing_mm[1]
    steps: list[Any] = [
        t.FgBgToIndicesd("label"),
        t.RandCropByPosNegLabeld(
            both,
            label_key="label",
            spatial_size=(stage.slices, *box[1:]),
            pos=stage.target_share,
            neg=1 - stage.target_share,
            fg_indices_key="label_fg_indices",
            bg_indices_key="label_bg_indices",
        ),
        t.SqueezeDimd("image", dim=0),
        t.Lambdad("label", _MiddleSlice(stage.slices // 2)),
        t.RandAffined(
            both,
            prob=1.0,
            rotate_range=math.radians(augment.rotation_deg),
            scale_range=(augment.scale, augment.scale),
            translate_range=uniform_reach,
            spatial_size=crop[1:],
            mode=modes,
            padding_mode="border",
        ),
    ]
    # Later versions of the settings have more ranges; what is not there is not drawn.
    elastic_mm, elastic_share = (float(getattr(augment, f"elastic_{k}", 0)) for k in ("mm", "share"))
    if elastic_mm and elastic_share:
        steps.append(
            t.Rand2DElasticd(
                both,
                spacing=(ELASTIC_GRID, ELASTIC_GRID),
                magnitude_range=(0, elastic_mm / pixel_mm),
                prob=elastic_share,
                mode=modes,
                padding_mode="border",
            )
        )
    if augment.mirror:
        steps.append(t.RandFlipd(both, prob=0.5, spatial_axis=1))
    if augment.blur_share:
        sigma = (0.0, float(getattr(augment, "blur_mm", 1.0)) / pixel_mm)
        steps.append(t.RandGaussianSmoothd("image", prob=augment.blur_share, sigma_x=sigma, sigma_y=sigma))
    share = float(getattr(augment, "low_resolution_share", 0))
    if share:
        factor = float(getattr(augment, "low_resolution_factor", 2))
        steps.append(
            t.RandSimulateLowResolutiond(
                "image", prob=share, zoom_range=(1 / factor, 1.0), upsample_mode="bilinear"
            )
        )
    low, high = stage.hu_window
    return [
        *steps,
        t.RandScaleIntensityd("image", factors=augment.contrast, prob=1.0),
        t.RandShiftIntensityd("image", offsets=augment.shift_hu, prob=1.0),
        t.RandGaussianNoised("image", prob=1.0, std=augment.noise_hu),
        t.ScaleIntensityRanged("image", a_min=low, a_max=high, b_min=-1, b_max=1, clip=True),
        t.SelectItemsd(both),
    ]


class _MiddleSlice:
    """Takes the middle slice of [1, slices, rows, columns]; a class, for worker processes must pickle it."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, labels: Tensor) -> Tensor:
        return labels[:, self.index]
