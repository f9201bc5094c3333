"""The two stages one by one, as the predictor runs them, and the sliding window that they are held against."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metricunet.inference.predictor import LoadedModel
from metricunet.specs import SegmentSpec
from metricunet.stages.locate import Localisation, class_probabilities, coarse_grid, localise
from metricunet.stages.network_input import autocast, neighbouring_slices, normalise_hu, pick_precision, read_hu
from metricunet.stages.segment import View, covered_part, crop_probabilities, read_field
from metricunet.volume import FloatArray, Volume

#: How much of a window lies in the next one.
OVERLAP = 0.5
#: Windows, or stacks of slices, that go through stage 2's network at once: what is fastest for it.
STACKS_AT_ONCE = {"cpu": 8, "cuda": 64}
MONAI = "monai>=1.5"
Inferer = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]


@dataclass(frozen=True, eq=False)
class Stages:
    """Both stages of one model on one scan.

    Attributes:
        model: of the networks.
        image: the scan, its axes to the head, the back and the left.
        device: to compute on.
    """

    model: LoadedModel
    image: Volume
    device: torch.device

    @property
    def target(self) -> int:
        """Class of the target."""
        return self.model.card.target_class

    @property
    def precision(self) -> str:
        """What the networks compute in."""
        return pick_precision("auto", self.device)

    def coarse(self) -> Volume:
        """Read the scan on stage 1's grid."""
        return read_hu(self.image, coarse_grid(self.image.geometry, self.model.card.locate.spacing_mm))

    def locate(self) -> Localisation:
        """Run stage 1: resample, network, the best candidate."""
        coarse, stage = self.coarse(), self.model.card.locate
        hu = torch.from_numpy(coarse.array).to(self.device)
        found = class_probabilities(self.model.locate, hu, stage.hu_window)
        return localise(coarse.with_array(found[self.target].cpu().numpy()))

    def slide_coarse(self, inferer: Inferer) -> Localisation:
        """Run stage 1 by a sliding window over the coarse grid."""
        coarse, stage = self.coarse(), self.model.card.locate
        hu = normalise_hu(torch.from_numpy(coarse.array).to(self.device), stage.hu_window)
        found = self._slide(hu[None, None], self.model.locate, inferer)[0, self.target]
        return localise(coarse.with_array(found.cpu().numpy()))

    def segment(self, centre_mm: FloatArray) -> Volume:
        """Run stage 2: resample the crop, network, read back on the scan's grid, paste into an empty scan."""
        stage = self.model.card.segment
        view = View(centre_mm)
        crop = read_field(stage, self.image, view)
        found = crop_probabilities(self.model.segment, stage, torch.from_numpy(crop.array).to(self.device))
        box, start = covered_part([stage], self.image.geometry, view)
        shares = crop.with_array(found[self.target].cpu().numpy()).resample(box).array
        empty = self.image.with_array(np.zeros(self.image.geometry.shape, dtype=np.uint8))
        return empty.paste((shares > 0.5).astype(np.uint8), start)

    def slide_fine(self, inferer: Inferer) -> Volume:
        """Run stage 2 by a sliding window over every slice of the whole scan, at its own spacing."""
        stage = self.model.card.segment
        fine = read_hu(self.image, self.image.geometry.with_spacing(stage.spacing_mm))
        hu = normalise_hu(torch.from_numpy(fine.array).to(self.device), stage.hu_window)
        stacks = neighbouring_slices(hu, _slices(stage))
        shares = np.empty(fine.array.shape, dtype=np.float32)
        for k in range(len(stacks)):
            found = self._slide(stacks[k : k + 1].contiguous(), self.model.segment, inferer)
            shares[k] = found[0, self.target].cpu().numpy()
        mask = fine.with_array(shares).resample(self.image.geometry).array > 0.5
        return self.image.with_array(mask.astype(np.uint8))

    def bare_locate(self) -> Callable[[], Tensor]:
        """Return stage 1's network alone, on a fixed tensor of the coarse grid."""
        shape = self.coarse().array.shape
        divisor = self.model.locate.divisor
        sides = [n + -n % divisor for n in shape]
        return self._bare(self.model.locate, (torch.randn(1, 1, *sides, device=self.device),))

    def bare_segment(self) -> Callable[[], Tensor]:
        """Return stage 2's network alone, on fixed stacks of slices of the crop."""
        stage = self.model.card.segment
        depth, *sides = stage.crop_voxels
        stacks = torch.randn(depth, _slices(stage), *sides, device=self.device)
        return self._bare(self.model.segment, torch.split(stacks, STACKS_AT_ONCE[self.device.type]))

    def _bare(self, network: Any, parts: tuple[Tensor, ...]) -> Callable[[], Tensor]:
        @torch.inference_mode()
        def run() -> Tensor:
            with autocast(pick_precision("auto", self.device), self.device):
                for part in parts:
                    logits: Tensor = network(part)
            return logits

        return run

    @torch.inference_mode()
    def _slide(self, images: Tensor, network: Any, inferer: Inferer) -> Tensor:
        with autocast(pick_precision("auto", self.device), self.device):
            return inferer(images, lambda windows: F.softmax(network(windows).float(), dim=1))


def monai_slider(roi: tuple[int, ...], at_once: int) -> Inferer | None:
    """Return MONAI's sliding window; None where MONAI is not installed.

    Args:
        roi: sides of the window.
        at_once: windows that go through the network together.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MONAI's own use of names on their way out
            slide = import_module("monai.inferers").sliding_window_inference
    except ImportError:
        return None

    def run(images: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: Tensor = slide(images, roi, at_once, network, overlap=OVERLAP)
        return found

    return run


def _slices(stage: SegmentSpec) -> int:
    return int(stage.network["in_channels"])
