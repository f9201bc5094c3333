"""Choosing where to compute, and keeping a CPU's memory from being handed back and faulted in at every step."""

from __future__ import annotations

import ctypes
import sys

import torch


def pick_device(name: str) -> torch.device:
    """Resolve `auto` (a CUDA GPU where there is one), `cpu`, `cuda` or `cuda:N`.

    Raises:
        ValueError: unknown name, or a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N; got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N; got {name!r}")
    if device.type == "cuda" and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        raise ValueError(f"device {name}: this torch sees {torch.cuda.device_count()} CUDA GPUs; use cpu")
    return device


def keep_freed_memory() -> None:
    """Ask glibc to keep large buffers instead of returning them to the kernel after each step.

    A training step on a CPU allocates the same large buffers again and again; by default each is mapped, faulted
    in page by page, and unmapped. Elsewhere than on Linux with glibc this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    trim_threshold, mmap_threshold = -1, -3
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)
    except (OSError, AttributeError):
        return
