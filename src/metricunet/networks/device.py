"""Keeping a CPU's memory from being handed back and faulted in at every step."""

from __future__ import annotations

import ctypes
import sys

#: Buffers up to the first size are kept; older versions of glibc refuse more than the second.
KEPT_BYTES, KEPT_BY_OLD_BYTES = 1 << 30, 1 << 25


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
        # Once any of these is set, glibc no longer raises the other by itself: neither may stay as it was.
        if any(libc.mallopt(mmap_threshold, size) for size in (KEPT_BYTES, KEPT_BY_OLD_BYTES)):
            libc.mallopt(trim_threshold, (1 << 31) - 1)
    except (OSError, AttributeError):
        return
