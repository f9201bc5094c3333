"""The networks of a predictor without the rest, and slid by MONAI: what its two stages are held against.

Nothing of a stage is written again here. A bare network is run on the very tensors that the predictor gave it. A
network that is slid over its input is put into the predictor instead of its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metricunet.inference.predictor import Predictor

#: How much of a window lies in the next one.
OVERLAP = 0.5
MONAI = "monai>=1.5"
Stage = Literal["locate", "segment"]
Inferer = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]


class Bare:
    """One stage's network alone, on the tensors that it is given while `run` is called once.

    Args:
        network: of a predictor.
        run: makes the predictor use it.
    """

    def __init__(self, network: nn.Module, run: Callable[[], object]) -> None:
        self.network = network
        self.inputs: list[tuple[Tensor, bool, torch.dtype]] = []

        def seen(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            kind = inputs[0].device.type
            enabled, precision = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
            self.inputs.append((inputs[0].detach().clone(), enabled, precision))

        hook = network.register_forward_pre_hook(seen)
        try:
            run()
        finally:
            hook.remove()
        if not self.inputs:
            raise ValueError("the network was not used")

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        """Run the network on all of them, in the precision that it ran in; return the last logits."""
        for images, enabled, precision in self.inputs:
            with torch.autocast(images.device.type, dtype=precision, enabled=enabled):
                logits: Tensor = self.network(images)
        return logits

    @property
    def precision(self) -> Literal["bf16", "fp32"]:
        """What it computes in."""
        _, enabled, precision = self.inputs[0]
        return "bf16" if enabled and precision == torch.bfloat16 else "fp32"


class Slid(nn.Module):
    """A network that is slid over its input by MONAI; in all else it is that network."""

    def __init__(self, network: nn.Module, inferer: Inferer) -> None:
        super().__init__()
        self.network, self.inferer = network, inferer

    def __getattr__(self, name: str) -> Any:
        """Return what the network has."""
        if name in ("network", "inferer") or name in self.__dict__:
            return super().__getattr__(name)
        return getattr(super().__getattr__("network"), name)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, averaged where windows overlap."""
        return self.inferer(images, self.network)


def slid(predictor: Predictor, stage: Stage, inferer: Inferer) -> Predictor:
    """Let one stage of a predictor of one model slide its network; the predictor is changed and returned."""
    (model,) = predictor.models
    changes: dict[str, Any] = {stage: Slid(getattr(model, stage), inferer)}
    predictor.models = [replace(model, **changes)]
    return predictor


def with_crop(predictor: Predictor, voxels: Sequence[int]) -> Predictor:
    """Let stage 2 of a predictor of one model look at a crop of other sides [slice, row, column]."""
    (model,) = predictor.models
    slices, rows, columns = voxels
    segment = replace(model.card.segment, crop_voxels=(slices, rows, columns))
    predictor.models = [replace(model, card=replace(model.card, segment=segment))]
    return predictor


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
