"""Choosing where to compute, as the user names it."""

from __future__ import annotations

import torch

from metricunet.errors import InputError, argument


def device_named(name: str) -> torch.device:
    """Resolve `auto` (a CUDA GPU where there is one), `cpu`, `cuda` or `cuda:N`.

    Raises:
        InputError: an unknown name, or a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise _unknown(name) from error
    if device.type not in ("cpu", "cuda"):
        raise _unknown(name)
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= there:
        raise InputError(
            f"{argument('device', name)}: this torch sees {there} CUDA GPUs; use {argument('device', 'cpu')}"
        )
    return device


def _unknown(name: str) -> InputError:
    return InputError(f"{argument('device')} must be auto, cpu, cuda or cuda:N; got {name!r}")
