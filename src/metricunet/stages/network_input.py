"""How HU reach networks of torch: as numbers, as stacks of neighbouring slices, in what precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Precision = Literal["auto", "bf16", "fp32"]


def normalise_hu(hu: Tensor, window: tuple[float, float]) -> Tensor:
    """Map the HU window to -1..1, linearly, and clip what lies outside. Any shape; returns float32."""
    low, high = window
    return ((hu.float() - (low + high) / 2) / ((high - low) / 2)).clamp_(-1, 1)


def neighbouring_slices(volume: Tensor, slices: int) -> Tensor:
    """Stack each slice with its neighbours; the outermost slices are repeated beyond the ends.

    Args:
        volume: [slice, row, column].
        slices: how many, an odd number.

    Returns:
        [slice, slices, row, column], a view where torch can make one.
    """
    reach = slices // 2
    padded = F.pad(volume[None, None], (0, 0, 0, 0, reach, reach), mode="replicate")[0, 0] if reach else volume
    return padded.unfold(0, slices, 1).permute(0, 3, 1, 2)


def pick_precision(precision: Precision, device: torch.device) -> Literal["bf16", "fp32"]:
    """Resolve `auto`: bf16 where the processor multiplies it natively, fp32 elsewhere. `mps` always has fp32."""
    if device.type == "mps":
        return "fp32"
    if precision != "auto":
        return precision
    if device.type == "cuda":
        with torch.cuda.device(device):  # torch tells of the current GPU alone, and those of a machine may differ
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        native = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return "bf16" if any(getattr(torch.cpu, name, lambda: False)() for name in native) else "fp32"
    return "fp32"


def autocast(precision: Literal["bf16", "fp32"], device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a network computes in the precision."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
